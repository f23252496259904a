"""Who may import whom, and what no core may reach. docs/architecture.md draws the rooms, ``tests/architecture.py``
reads the code. Every rule is shown to fail: a violation is planted in a copy of the real tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.architecture import ROOMS, ROOT, TOPS, Tree, drawn, problems, read_tree

REAL = read_tree(ROOT)
KNOWN = set(problems(REAL))
CORE = "stream.join.join"
"""Where most violations are planted: a core that others import."""


def planted(module: str, text: str, tree: Tree = REAL) -> dict[str, str]:
    """The tree with lines added to a module, or with a new module."""
    return {**tree, module: tree.get(module, "") + text}


def new_problems(tree: Tree, rooms: tuple[str, ...] = ROOMS, tops: Mapping[str, set[str]] = TOPS) -> list[str]:
    return [problem for problem in problems(tree, rooms, tops) if problem not in KNOWN]


def of(module: str, found: list[str]) -> list[str]:
    return [problem for problem in found if problem.startswith(f"{module} ")]


def test_the_code_keeps_to_its_architecture() -> None:
    assert not KNOWN, "\n".join(["", *sorted(KNOWN)])


def test_the_page_draws_the_rooms_as_they_are() -> None:
    assert drawn((ROOT / "docs" / "architecture.md").read_text()) == TOPS


def test_test_modules_share_scenes_and_not_each_other() -> None:
    """What two of them need stands in tests/scenes: a module of tests may go, or be left out of a run, by itself."""
    imports = re.compile(
        r"^\s*(?:from|import) tests\.[\w.]*\btest_\w+|^\s*from tests\.[\w.]+ import test_\w+", re.MULTILINE
    )
    assert imports.search("    from tests.stream.join.test_join import NOW")
    assert imports.search("from tests.stream.join import test_join as join")
    found = [
        (path.name, match[0]) for path in (ROOT / "tests").rglob("*.py") for match in imports.finditer(path.read_text())
    ]
    assert not [one for one in found if one[0] != "test_architecture.py"]


# -- must be shown: each rule fails where it is broken ------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["stream.join.join", "learner.tables.admission", "millrace.basics.hashing", "simulator.world"]
)
def test_a_planted_clock_in_a_core_is_found(module: str) -> None:
    found = of(module, new_problems(planted(module, "\n\nimport time\n\n\ndef now():\n    return time.time()\n")))
    assert len(found) == 1
    assert f"{module} is a core and reaches a clock: it uses time (line " in found[0]
    assert "take that as an argument" in found[0]


def test_a_planted_import_of_redis_through_a_shell_is_found() -> None:
    """The store is the stream's own shell: what it imports, its importer reaches."""
    found = of(CORE, new_problems(planted(CORE, "\nfrom stream.worker.online_writer import OnlineStore\n")))
    store = [problem for problem in found if "reaches Redis" in problem]
    assert len(store) == 1
    assert f"{CORE} imports stream.worker.online_writer, which uses redis" in store[0]
    assert store[0].endswith(
        "leave stream.worker.online_writer to a shell, and take what is needed of it as an argument"
    )


def test_a_planted_import_of_redis_two_modules_away_is_found() -> None:
    tree = planted(CORE, "\nfrom stream.join import shelf\n")
    tree = planted("stream.join.shelf", "# core\nfrom stream.join.cupboard import Cupboard\n", tree)
    tree = planted("stream.join.cupboard", "# shell\nimport redis\n", tree)
    found = new_problems(tree)
    assert (
        f"{CORE} is a core and reaches Redis: {CORE} imports stream.join.shelf imports stream.join.cupboard, which uses"
        " redis (line 2); leave stream.join.shelf to a shell, and take what is needed of it as an argument"
    ) in found
    assert any("stream.partition.partition imports stream.join.join imports stream.join.shelf" in p for p in found), (
        "and who imports it"
    )


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        (
            "millrace.windows.tiles",
            "import stream.join.join",
            "stream.join.join: upward, from millrace.windows to stream.join",
        ),
        (
            "millrace.contracts.events",
            "from millrace.processes import wall",
            "upward, from millrace.contracts to millrace.processes",
        ),
        (
            "millrace.processes.spawn",
            "def f():\n    from millrace.commands.cli import cli",
            "upward, from millrace.processes to millrace.commands.cli",
        ),
        (
            "learner.tables.admission",
            "from scorer.page.page_wire import decode",
            "scorer.page.page_wire: upward, from learner.tables to scorer.page",
        ),
        (
            "millrace.reports.page",
            "from millrace.commands.demo import settle",
            "upward, from millrace.reports to millrace.commands.demo",
        ),
        (
            "learner.tables.admission",
            "from stream.join import page_rows",
            "stream.join.page_rows: from learner.tables to stream.join",
        ),
        (
            "stream.join.join",
            "from stream.worker import turn",
            "stream.worker.turn: upward, from stream.join to stream.worker",
        ),
    ],
)
def test_a_planted_import_against_the_plan_is_found(module: str, line: str, expected: str) -> None:
    found = [p for p in of(module, new_problems(planted(module, f"\n{line}\n"))) if f"{module} imports " in p]
    assert any(expected in p and "move what is shared below both" in p for p in found), found


@pytest.mark.parametrize(
    "text",
    [
        'import importlib\nimportlib.import_module("stream.join.join")',
        'from importlib import import_module as load\nload("stream.join.join")',
        '__import__("stream.join.join")',
        'import importlib\nNAMES = {"join": "stream.join.join"}\nimportlib.import_module(NAMES["join"])',
        'import importlib\nname = "join"\nimportlib.import_module(f"stream.{name}")',
    ],
)
def test_a_module_that_is_imported_by_its_name_counts_as_imported(text: str) -> None:
    found = of("millrace.windows.tiles", new_problems(planted("millrace.windows.tiles", f"\n{text}\n")))
    assert any("imports stream.join.join: upward" in problem for problem in found), found


def test_an_import_that_nobody_can_follow_is_found() -> None:
    text = "\ndef load(name):\n    import importlib\n    return importlib.import_module(name)\n"
    assert any("does not name" in p for p in of(CORE, new_problems(planted(CORE, text))))
    assert any("write imports in full" in p for p in of(CORE, new_problems(planted(CORE, "\nfrom . import gate\n"))))


@pytest.mark.parametrize("source", ['"""A module."""\n', "", "#core\n", '"""A module."""\n# core\n', "# cores\n"])
def test_a_module_without_its_mark_is_found(source: str) -> None:
    found = new_problems({**REAL, "stream.join.unmarked": source})
    assert found == ["stream.join.unmarked does not say what it is: write '# core' or '# shell' into its first line"]


def test_a_shell_that_reaches_nothing_is_found() -> None:
    found = new_problems({**REAL, "stream.partition.idle": "# shell\nfrom stream.join import join\n"})
    assert found == ["stream.partition.idle says that it is a shell and reaches nothing outside: mark it '# core'"]


def test_a_module_in_no_room_is_found() -> None:
    for module in ("millrace.attic.box", "warehouse.shelf"):
        found = new_problems({**REAL, module: "# core\n"})
        assert any(p.startswith(f"{module} is in no room; move it into one of millrace.basics, ") for p in found), found


def test_an_entry_of_the_table_that_nobody_uses_is_found() -> None:
    tops = {**TOPS, "learner": {"millrace", "simulator"}}
    assert new_problems(REAL, tops=tops) == ["learner no longer imports simulator; take it out of TOPS and the drawing"]
    assert new_problems(REAL, (*ROOMS, "cellar")) == ["room cellar is empty; take it out of FLOORS"]


def test_an_upward_import_for_types_alone_is_found() -> None:
    text = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stream.worker.turn import Turns\n"
    found = of(CORE, new_problems(planted(CORE, text)))
    assert any("imports stream.worker.turn: upward" in problem for problem in found), found


@pytest.mark.parametrize(
    "text",
    [
        "\nfrom stream.join import shown\n",
        "\ndef f():\n    from stream.join import shown\n",
        "\nimport typing\nif typing.TYPE_CHECKING:\n    from stream.join import shown\n",
    ],
)
def test_a_circle_of_modules_is_found(text: str) -> None:
    found = new_problems(planted("stream.join.page_rows", text))
    assert any("stream.join.page_rows" in p and "stream.join.shown" in p and "a circle" in p for p in found), found


def test_a_class_name_that_two_have_is_found() -> None:
    found = new_problems(planted("stream.join.topic_order", "\nclass Partition: ...\n"))
    assert any("stream.join.topic_order" in one and "have both a class Partition" in one for one in found), found


def test_a_package_that_does_more_than_hand_names_on_is_found() -> None:
    found = new_problems(planted("stream.join", "\ndef join(): ...\n"))
    assert any(p.startswith("stream.join line ") and "more than hand names on" in p for p in found), found
    silent = new_problems({**REAL, "stream.join": "# core\n"})
    assert any("stream.join does not say what it is for" in problem for problem in silent), silent


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("from time import perf_counter", "a clock"),
        ("import datetime as d\nNOW = d.datetime.now()", "a clock"),
        ("from datetime import datetime\nNOW = datetime.now", "a clock"),
        ("from datetime import date\nNOW = date.today()", "a clock"),
        ('import numpy as np\nNOW = np.datetime64("now")', "a clock"),
        ("from millrace.processes.wall import wall_ms", "a clock"),
        ("import random", "randomness"),
        ("from uuid import uuid4", "randomness"),
        ("import os\nNONCE = os.urandom(4)", "randomness"),
        ("import numpy as np\nRNG = np.random.default_rng()", "randomness"),
        ("import numpy as np\nRNG = np.random.default_rng(None)", "randomness"),
        ("from numpy.random import Generator, PCG64\nRNG = Generator(PCG64())", "randomness"),
        ("import numpy as np\nX = np.random.rand(3)", "randomness"),
        ("from numpy import random\nrandom.seed(0)", "randomness"),
        ("from kafka.errors import KafkaError", "Kafka"),
        ("import faust", "Kafka"),
        ("def f():\n    import redis.asyncio", "Redis"),
        ("import urllib.request", "HTTP"),
        ("from urllib import request", "HTTP"),
        ("from http.server import HTTPServer", "HTTP"),
        ("from prometheus_client import Counter", "Prometheus"),
        ("import asyncio", "threads, tasks or processes"),
        ("from concurrent.futures import ThreadPoolExecutor", "threads, tasks or processes"),
        ("import threading\nLOCK = threading.Thread()", "threads, tasks or processes"),
    ],
)
def test_everything_outside_is_known_whatever_its_import_looks_like(line: str, what: str) -> None:
    found = of(CORE, new_problems(planted(CORE, f"\n{line}\n")))
    assert any(f"reaches {what}:" in problem for problem in found), found


@pytest.mark.parametrize(
    "line",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import redis",
        "import typing\nif typing.TYPE_CHECKING:\n    from kafka import KafkaProducer",
        "import numpy as np\nRNG = np.random.default_rng(7)",
        "import numpy as np\ndef f(rng: np.random.Generator): return np.random.Generator(np.random.PCG64([1, 2]))",
        "import threading\nOWN = threading.local()",
        "from datetime import datetime, UTC\nAT = datetime.fromtimestamp(0, UTC)",
        "from urllib.parse import urlsplit",
        'import numpy as np\nDAY = np.datetime64("2026-01-01")',
        "class _Clock:\n    def now(self): ...\n_Clock().now()",
    ],
)
def test_what_a_core_may_do_is_not_taken_for_more(line: str) -> None:
    assert new_problems(planted(CORE, f"\n{line}\n")) == []


def test_a_packages_init_runs_before_each_of_its_modules() -> None:
    tree = {**REAL, "stream.join.inner": "# shell\nimport redis\n", "stream.join.inner.leaf": "# core\n"}
    found = new_problems(planted(CORE, "\nfrom stream.join.inner import leaf\n", tree))
    assert any(f"{CORE} imports stream.join.inner, which uses redis" in problem for problem in of(CORE, found)), found
    assert any("reaches Redis" in problem for problem in of("stream.join.inner.leaf", found)), found


@pytest.mark.parametrize(
    "line", ["import json", "from millrace.commands.replay import replayrun", "def f(): ...", "X = open('f')"]
)
def test_the_facade_imports_nothing_at_once_and_does_nothing_else(line: str) -> None:
    found = new_problems(planted("millrace", f"\n{line}\n"))
    assert any(p.startswith("millrace line ") and "more than hand names on" in p for p in found), found


def test_no_other_package_hands_names_on_lazily() -> None:
    lazy = "\ndef __getattr__(name):\n    from millrace.commands.cli import cli\n    return cli\n"
    found = of("stream.join", new_problems(planted("stream.join", lazy)))
    assert any("upward, from stream.join to millrace.commands.cli" in p for p in found), found
    assert any("more than hand names on" in p for p in found), found
