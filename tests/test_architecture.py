"""Who may import whom. The rooms and their doors are drawn in docs/architecture.md; this test keeps them shut."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CONTRACTS = {p.stem for p in (ROOT / "millrace").glob("*.py")} - {"__init__", "cli"}

ALLOWED: dict[str, set[str]] = {
    # millrace's own modules are contracts: they know none of the packages that use them.
    "millrace": set(),
    "simulator": {"millrace"},
    "stream": {"millrace"},
    "learner": {"millrace"},
    # The scorer ranks with the learner's models and reads windows with the stream's pure cores.
    "scorer": {"millrace", "learner", "stream"},
    # Programs and benchmarks put the packages together.
    "millrace.run": {"millrace", "simulator", "stream", "learner", "scorer", "benchmarks"},
    "benchmarks": {"millrace", "simulator", "stream", "learner", "scorer"},
}
PACKAGES = {"millrace", "simulator", "stream", "learner", "scorer", "benchmarks", "tests"}
SHELLS = {"stream.worker"}
"""Modules that talk to Faust: nothing but the command line and programs may import them."""


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: write imports in full"
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("millrace", "run"):
        return "millrace.run"
    return parts[0]


FILES = [p for package in PACKAGES - {"tests"} for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_the_plan(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        top = name.split(".")[0]
        if top not in PACKAGES or path.name == "cli.py":
            continue
        assert top in ALLOWED[own] | {own.split(".")[0]}, f"{own} imports {name}"
        if own != "millrace.run":
            assert not name.startswith("millrace.run"), (
                f"{own} imports {name}: programs are imported by the command line only"
            )
            assert not any(name == s or name.startswith(s + ".") for s in SHELLS), f"{own} imports the shell {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_cores_know_no_broker_no_store_no_clock(path: Path) -> None:
    """Kafka, Faust, Redis and HTTP are imported by shells alone; everything else can be replayed."""
    shells = {
        "millrace/processes/kafka.py",
        "millrace/cli.py",
        "stream/worker.py",
        "stream/faustio.py",
        "stream/headers.py",
        "stream/online.py",
        "stream/listkeeper.py",
        "learner/service.py",
        "scorer/app.py",
        "scorer/feed.py",
        "scorer/figures.py",
        "scorer/store.py",
        "simulator/live.py",
        "simulator/playback.py",
        "simulator/wire.py",
        "simulator/figures.py",
        "millrace/processes/metrics.py",
    }
    relative = str(path.relative_to(ROOT))
    if relative in shells or room(path) in {"millrace.run", "benchmarks"}:
        return
    outside = {
        "kafka",
        "aiokafka",
        "faust",
        "mode",
        "redis",
        "aiohttp",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "random",
    }
    met = {name.split(".")[0] for name in imports(path)} & outside
    assert not met, f"{relative} is a pure core but imports {met}"
