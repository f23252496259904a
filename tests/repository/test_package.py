"""What people install. The wheel of ``millrace`` has five names, and what is in it is enough for the command to run.
The wheel of the client has one name, and brings nothing heavy."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from importlib.metadata import version as version_of
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import aiokafka.codec
import aiokafka.record.util
import kafka.codec
import kafka.record.util
import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from millrace import __version__
from tests.architecture import ROOT
from tests.scenes.tiny_log import SMALL, rows
from tests.scenes.waiting import LONG

PACKAGES = {"millrace", "simulator", "stream", "learner", "scorer"}
"""The import names that an installation adds, and no others."""
CHECKOUT = {"benchmarks", "deploy", "experiments", "tests"}
"""Packages that are not installed."""
CLIENT = ROOT / "client"
ROLES = ["simulator.live", "stream.worker.stream_worker", "learner.role.service", "scorer.worker.page_app"]
VERSIONED = {
    "pyproject.toml": 'version = "{}"',
    "client/pyproject.toml": 'version = "{}"',
    "client/js/package.json": '"version": "{}"',
    "deploy/compose.yaml": "image: millrace:{}",
    "deploy/kubernetes/kustomization.yaml": "newTag: {}}}",
    "CITATION.cff": "\nversion: {}",
    "CHANGELOG.md": "\n## {}, 20",
}
"""Files that name the version, beside `millrace/__init__.py`, and how."""
FILES = sorted(path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py"))


def site_of(project: Path, folder: Path) -> Path:
    """A folder into which the project's built wheel was installed, and nothing else."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, str(folder / "dist"), str(project)], check=True, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(built)], check=True, cwd=folder)
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_of(ROOT, tmp_path_factory.mktemp("wheel"))


def installed(site: Path, *arguments: str, **environment: str) -> str:
    """What a Python prints in another folder, with our installed files in reach and not this checkout's: data files
    that were left out would be missed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        check=True,
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), **environment},
        capture_output=True,
        text=True,
    )
    return done.stdout


def sources(package: Path) -> set[Path]:
    """The files of a package, from its folder's parent, without what Python compiled."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent) for path in files}


@pytest.mark.slow
def test_site_packages_gains_five_names_and_no_others(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.name != "bin" and not path.name.endswith(".dist-info")}
    assert names == PACKAGES
    assert [path.name for path in (site / "bin").iterdir()] == ["millrace"]


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_each_package_is_installed_whole(site: Path, package: str) -> None:
    assert sources(site / package) == sources(ROOT / package)
    assert len(sources(site / package)) > 5


@pytest.mark.slow
def test_the_installed_command_runs_and_finds_its_data(site: Path) -> None:
    code = (
        "import importlib.resources as r, importlib.util as u, millrace.contracts.schema as s\n"
        "page = r.files('millrace.commands.loop.page').joinpath('index.html').is_file()\n"
        f"print(s.__file__, s.shop_schema().name, page, all(u.find_spec(n) for n in {ROLES}))"
    )
    where, *rest = installed(site, "-c", code).split()
    assert Path(where).is_relative_to(site)
    assert rest == ["shop", "True", "True"]
    commands = installed(site, str(site / "bin" / "millrace"), "--help")
    assert installed(site, "-m", "millrace", "--help") == commands
    for name in ("demo", "up", "run", "log", "model", "data", "config"):
        assert re.search(rf"\b{name}\b", commands)


@pytest.mark.slow
def test_the_installed_package_answers_in_a_notebook(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel of its own, in a folder with nothing but a log."""
    pq.write_table(pa.table(rows()), tmp_path / "log.parquet")
    monkeypatch.setenv("PYTHONPATH", str(site))
    cells = (
        "import millrace as mr\nprint(mr.__file__)",
        "schema = mr.guess('log.parquet')\nschema",
        f"mr.replay('log.parquet', schema, spec={SMALL}, progress=False)",
    )
    made = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(made, timeout=LONG, kernel_name="python3", resources=where).execute()
    (printed,), (guessed,), (replayed,) = (cell.outputs for cell in made.cells)
    assert Path(printed.text.strip()).is_relative_to(site)
    assert "time 'at', user 'user', item 'item', label 'click'" in guessed.data["text/plain"]
    assert "Replay of log.parquet" in replayed.data["text/html"]


KERNELS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if not path.is_relative_to(ROOT / "tests") and re.search("^@(compiled|njit)", path.read_text(), re.MULTILINE)
)
"""The modules that have compiled loops."""


@pytest.mark.slow
def test_where_nothing_can_be_cached_the_roles_start_and_their_loops_compile(site: Path, tmp_path: Path) -> None:
    """A read-only installation. Root may write to any folder, so what would be a folder is a file here."""
    copy = tmp_path / "site"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for package in [path.parent for path in copy.rglob("*.py")]:
        (package / "__pycache__").touch()
    code = (
        "import sys, importlib, numpy as np\n"
        "from numba.core.dispatcher import Dispatcher\n"
        f"modules = [importlib.import_module(name) for name in {ROLES + KERNELS}]\n"
        "loops = {f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)}\n"
        "from learner.tables.table_kernels import live\n"
        "used = live(np.array([[5], [0], [7], [9]]), 0, 4, np.empty(4, np.int64))\n"
        "print(len(loops), sum(f.stats.cache_path is not None for f in loops), used)"
    )
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), os.devnull + "/cache")
    loops, cached, used = map(int, installed(copy, "-c", code, **nowhere).split())
    assert (cached, used) == (0, 3)
    assert loops > 100
    assert next(copy.rglob("*.nbi"), None) is None


def test_all_compiled_loops_share_one_decorator() -> None:
    """What is cached is guarded: a bare ``njit(cache=True)`` ends a role in a read-only installation."""
    bare = [path for path in FILES if re.search(r"njit\([^)]*cache", path.read_text()) and path != Path(__file__)]
    assert bare == [ROOT / "millrace" / "basics" / "compiled.py"]


@pytest.mark.slow
@pytest.mark.parametrize("project", [ROOT, CLIENT], ids=["millrace", "client"])
def test_what_is_uploaded_is_whole_and_of_this_version(project: Path, tmp_path: Path) -> None:
    """The source distribution has all that the wheel is built of: one that is built from it has the same files."""

    def build(source: Path, kind: str, target: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
        subprocess.run(command, check=True, cwd=source, capture_output=True)
        (built,) = target.iterdir()
        return built

    source, wheel = build(project, "sdist", tmp_path / "source"), build(project, "wheel", tmp_path / "wheel")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(source), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / source.name.removesuffix(".tar.gz"), "wheel", tmp_path / "again")
    assert again.name == wheel.name
    assert wheel.name.split("-")[1] == __version__
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.mark.parametrize(("file", "line"), VERSIONED.items())
def test_each_file_names_the_same_version(file: str, line: str) -> None:
    assert line.format(__version__) in (ROOT / file).read_text()


def test_the_clients_wheel_brings_one_name_and_nothing_heavy(tmp_path: Path) -> None:
    client = site_of(CLIENT, tmp_path)
    assert {path.name for path in client.iterdir() if not path.name.endswith(".dist-info")} == {"millrace_client"}
    assert sources(client / "millrace_client") == sources(CLIENT / "millrace_client")
    assert (client / "millrace_client" / "py.typed").is_file()
    code = "import sys, millrace_client; print(millrace_client.__file__, *{name.split('.')[0] for name in sys.modules})"
    where, *loaded = installed(client, "-c", code).split()
    assert Path(where).is_relative_to(client)
    assert not {"torch", "numba", "faust", "numpy", "aiokafka", "kafka", "redis", *PACKAGES} & set(loaded)
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert {re.split("[<>=]", line)[0] for line in project["dependencies"]} == {"httpx", "msgspec"}
    used = {name for path in (CLIENT / "millrace_client").rglob("*.py") for name in imports(path)}
    assert used - set(sys.stdlib_module_names) == {"httpx", "msgspec", "millrace_client"}


def test_installing_gives_the_command() -> None:
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "millrace"]
    assert script.value == "millrace.commands.cli.cli:main"


def imports(path: Path) -> Iterator[str]:
    """The first name of each module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_every_import_is_declared() -> None:
    """Each module that our packages and tests import comes with Python, with us, or with a dependency that the project
    names itself, not only with one of its dependencies'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [line for lines in project["optional-dependencies"].values() for line in lines]
    named = {re.split(r"[\s<>=;\[]", line, maxsplit=1)[0].lower() for line in [*project["dependencies"], *extra]}
    provided = packages_distributions()
    undeclared = set()
    for path in FILES:
        for module in set(imports(path)) - PACKAGES - {*CHECKOUT, "millrace_client"} - set(sys.stdlib_module_names):
            makers = {maker.lower().replace("_", "-") for maker in provided.get(module, [module])}
            if not makers & named:
                undeclared.add((str(path.relative_to(ROOT)), module))
    assert undeclared == set()


def test_the_checksum_of_a_message_is_not_computed_in_python() -> None:
    """In pure Python it takes 43 ms for the log of a page of 600 items; the client takes a library where one is."""
    assert isinstance(kafka.record.util._crc32c, BuiltinFunctionType)
    assert not isinstance(aiokafka.record.util.calc_crc32c, FunctionType)  # compiled with aiokafka


def test_both_clients_have_zstd() -> None:
    """Without it a client can neither write what we send nor read it."""
    assert aiokafka.codec.has_zstd()
    assert kafka.codec.has_zstd()


def wanted_of(project: dict[str, Any]) -> list[str]:
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for lines in extras.values() for line in lines)]


def test_every_dependency_has_both_bounds() -> None:
    projects = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, CLIENT)]
    for line in (line for project in projects for line in wanted_of(project)):
        bounds = line.split(";")[0]
        assert ">=" in bounds, line
        assert "<" in bounds, line


def test_the_tested_versions_are_named_for_all_and_lie_within_the_bounds() -> None:
    pinned: dict[str, str] = {}
    for line in (ROOT / "deploy" / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert version, line
        assert "+" not in version, "an index elsewhere would have to be named"
        pinned[canonicalize_name(name)] = version
    for folder in (ROOT, CLIENT):
        for line in wanted_of(tomllib.loads((folder / "pyproject.toml").read_text())["project"]):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate():
                assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, line
    for name in ("kafka-python", "faust-streaming", "aiokafka", "torch", "numba"):
        assert version_of(name).partition("+")[0] == pinned[name], "what these tests run with"


def test_a_demo_installs_the_loop_alone_and_an_old_python_is_told_before(tmp_path: Path) -> None:
    asked = subprocess.run(
        ["make", "--dry-run", "demo", "VENV=/nowhere/env"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "--editable . --editable ./client" in asked
    assert "[dev" not in asked
    old = tmp_path / "python3.10"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 10); exec(sys.argv[1])' \"$2\"\n"
    )
    old.chmod(0o755)
    told = subprocess.run(
        ["make", "--silent", "demo", f"VENV={tmp_path / 'env'}", f"PYTHON={old}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode
    assert told.stderr.startswith("Millrace needs Python 3.11 to 3.13, and this is 3.10; name another")
    assert not (tmp_path / "env").exists()
