"""Who may import whom, and what no core may reach. docs/architecture.md draws the rooms, ``tests/architecture.py``
reads the code. Every rule is shown to fail: a violation is planted in a copy of the real tree.
"""

from __future__ import annotations

import pytest

from tests.architecture import ROOMS, ROOT, Tree, drawn, problems, read_tree

REAL = read_tree(ROOT)
KNOWN = set(problems(REAL))
CORE = "stream.join"
"""Where most violations are planted: a core that others import."""


def planted(module: str, text: str, tree: Tree = REAL) -> dict[str, str]:
    """The tree with lines added to a module, or with a new module."""
    return {**tree, module: tree.get(module, "") + text}


def new_problems(tree: Tree, rooms: dict[str, set[str]] = ROOMS) -> list[str]:
    return [problem for problem in problems(tree, rooms) if problem not in KNOWN]


def of(module: str, found: list[str]) -> list[str]:
    return [problem for problem in found if problem.startswith(f"{module} ")]


def test_the_code_keeps_to_its_architecture() -> None:
    assert not KNOWN, "\n".join(["", *sorted(KNOWN)])


def test_the_page_draws_the_rooms_as_they_are() -> None:
    assert drawn((ROOT / "docs" / "architecture.md").read_text()) == ROOMS


# -- must be shown: each rule fails where it is broken ------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["stream.join", "learner.admission", "millrace.contracts.hashing", "simulator.world"]
)
def test_a_planted_clock_in_a_core_is_found(module: str) -> None:
    found = of(module, new_problems(planted(module, "\n\nimport time\n\n\ndef now():\n    return time.time()\n")))
    assert len(found) == 1
    assert f"{module} is a core and reaches a clock: it uses time (line " in found[0]
    assert "take that as an argument" in found[0]


def test_a_planted_import_of_redis_through_a_shell_is_found() -> None:
    """The store is the stream's own shell: what it imports, its importer reaches."""
    found = of(CORE, new_problems(planted(CORE, "\nfrom stream.online import OnlineStore\n")))
    store = [problem for problem in found if "reaches Redis" in problem]
    assert len(store) == 1
    assert f"{CORE} imports stream.online, which uses redis" in store[0]
    assert store[0].endswith("leave stream.online to a shell, and take what is needed of it as an argument")


def test_a_planted_import_of_redis_two_modules_away_is_found() -> None:
    tree = planted(CORE, "\nfrom stream import shelf\n")
    tree = planted("stream.shelf", "# core\nfrom stream.cupboard import Cupboard\n", tree)
    tree = planted("stream.cupboard", "# shell\nimport redis\n", tree)
    found = new_problems(tree)
    assert (
        f"{CORE} is a core and reaches Redis: {CORE} imports stream.shelf imports stream.cupboard, which uses redis"
        " (line 2); leave stream.shelf to a shell, and take what is needed of it as an argument"
    ) in found
    assert any("stream.partition imports stream.join imports stream.shelf" in p for p in found), "and who imports it"


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("millrace.windows.tiles", "import stream.join", "stream.join: upward, from windows to stream"),
        ("millrace.contracts.events", "from millrace.processes import wall", "upward, from contracts to processes"),
        ("millrace.processes.spawn", "def f():\n    from millrace import cli", "upward, from processes to cli"),
        ("learner.admission", "from scorer.wire import decode", "scorer.wire: upward, from learner to scorer"),
        ("millrace.reports.page", "from millrace.demo import settle", "upward, from reports to demo"),
        ("millrace", "from millrace.contracts import events", "upward, from millrace to contracts"),
        ("simulator.world", "from learner import table", "learner.table: from simulator to learner"),
        ("stream.join", "from millrace.logs import files", "millrace.logs.files: from stream to logs"),
    ],
)
def test_a_planted_import_against_the_plan_is_found(module: str, line: str, expected: str) -> None:
    found = [p for p in of(module, new_problems(planted(module, f"\n{line}\n"))) if f"{module} imports " in p]
    assert any(expected in p and "move what is shared below both" in p for p in found), found


@pytest.mark.parametrize(
    "text",
    [
        'import importlib\nimportlib.import_module("stream.join")',
        'from importlib import import_module as load\nload("stream.join")',
        '__import__("stream.join")',
        'import importlib\nNAMES = {"join": "stream.join"}\nimportlib.import_module(NAMES["join"])',
        'import importlib\nname = "join"\nimportlib.import_module(f"stream.{name}")',
    ],
)
def test_a_module_that_is_imported_by_its_name_counts_as_imported(text: str) -> None:
    found = of("millrace.windows.tiles", new_problems(planted("millrace.windows.tiles", f"\n{text}\n")))
    assert any("imports stream.join: upward" in problem for problem in found), found


def test_an_import_that_nobody_can_follow_is_found() -> None:
    text = "\ndef load(name):\n    import importlib\n    return importlib.import_module(name)\n"
    assert any("does not name" in p for p in of(CORE, new_problems(planted(CORE, text))))
    assert any("write imports in full" in p for p in of(CORE, new_problems(planted(CORE, "\nfrom . import gate\n"))))


@pytest.mark.parametrize("source", ['"""A module."""\n', "", "#core\n", '"""A module."""\n# core\n', "# cores\n"])
def test_a_module_without_its_mark_is_found(source: str) -> None:
    found = new_problems({**REAL, "stream.unmarked": source})
    assert found == ["stream.unmarked does not say what it is: write '# core' or '# shell' into its first line"]


def test_a_shell_that_reaches_nothing_is_found() -> None:
    found = new_problems({**REAL, "stream.idle": "# shell\nfrom stream import join\n"})
    assert found == ["stream.idle says that it is a shell and reaches nothing outside: mark it '# core'"]


def test_a_module_in_no_room_is_found() -> None:
    for module in ("millrace.attic.box", "millrace.loose", "warehouse.shelf"):
        found = new_problems({**REAL, module: "# core\n"})
        assert any(p.startswith(f"{module} is in no room; move it into one of contracts, ") for p in found), found


def test_an_entry_of_the_table_that_nobody_uses_is_found() -> None:
    rooms = {**ROOMS, "simulator": ROOMS["simulator"] | {"windows"}}
    assert new_problems(REAL, rooms) == [
        "simulator no longer imports windows; take it out of ROOMS and the drawing",
    ]
    found = new_problems(REAL, {**ROOMS, "cellar": set()})
    assert found == ["room cellar is empty; take it out of ROOMS and the drawing"]


def test_a_table_that_points_upwards_is_found() -> None:
    rooms = {**ROOMS, "windows": ROOMS["windows"] | {"stream"}}
    assert any("lets windows import stream, which is not below it" in problem for problem in new_problems(REAL, rooms))


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
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import redis\n    from stream import online",
        "import typing\nif typing.TYPE_CHECKING:\n    from kafka import KafkaProducer",
        "import numpy as np\nRNG = np.random.default_rng(7)",
        "import numpy as np\ndef f(rng: np.random.Generator): return np.random.Generator(np.random.PCG64([1, 2]))",
        "import threading\nOWN = threading.local()",
        "from datetime import datetime, UTC\nAT = datetime.fromtimestamp(0, UTC)",
        "from urllib.parse import urlsplit",
        'import numpy as np\nDAY = np.datetime64("2026-01-01")',
        "class Clock:\n    def now(self): ...\nClock().now()",
    ],
)
def test_what_a_core_may_do_is_not_taken_for_more(line: str) -> None:
    assert new_problems(planted(CORE, f"\n{line}\n")) == []


def test_a_packages_init_runs_before_each_of_its_modules() -> None:
    tree = {**REAL, "stream.inner": "# shell\nimport redis\n", "stream.inner.leaf": "# core\n"}
    found = new_problems(planted(CORE, "\nfrom stream.inner import leaf\n", tree))
    assert any(f"{CORE} imports stream.inner, which uses redis" in problem for problem in of(CORE, found)), found
    assert any("reaches Redis" in problem for problem in of("stream.inner.leaf", found)), found
