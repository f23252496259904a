"""What people install: the wheel builds, installs five names, and what is in it is enough for the command to run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from types import BuiltinFunctionType, FunctionType

import aiokafka.codec
import aiokafka.record.util
import kafka.codec
import kafka.record.util
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"millrace", "simulator", "stream", "learner", "scorer"}
"""The import names that an installation adds, and no others."""
FILES = sorted(path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel was installed, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, str(folder / "dist"), str(ROOT)], check=True, cwd=folder)
    (built,) = (folder / "dist").glob("millrace-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(built)], check=True, cwd=folder)
    return folder / "site"


def installed(site: Path, *arguments: str) -> str:
    """What a Python prints in another folder, with our installed files in reach and not this checkout's: data files
    that were left out would be missed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        check=True,
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    return done.stdout


def sources(package: Path) -> set[Path]:
    """The files of a package, from its folder's parent, without what Python compiled."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent) for path in files}


def test_site_packages_gains_five_names_and_no_others(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.name != "bin" and not path.name.endswith(".dist-info")}
    assert names == PACKAGES
    assert [path.name for path in (site / "bin").iterdir()] == ["millrace"]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_each_package_is_installed_whole(site: Path, package: str) -> None:
    assert sources(site / package) == sources(ROOT / package)
    assert len(sources(site / package)) > 5


def test_the_installed_command_runs_and_finds_its_data(site: Path) -> None:
    rooms = ["simulator.live", "stream.worker", "learner.service", "scorer.app", "millrace.bench.stream"]
    code = (
        "import importlib.resources as r, importlib.util as u, millrace.contracts.schema as s\n"
        "page = r.files('millrace.demo.page').joinpath('index.html').is_file()\n"
        f"print(s.__file__, s.shop_schema().name, page, all(u.find_spec(n) for n in {rooms}))"
    )
    where, *rest = installed(site, "-c", code).split()
    assert Path(where).is_relative_to(site)
    assert rest == ["shop", "True", "True"]
    commands = installed(site, str(site / "bin" / "millrace"), "--help")
    assert installed(site, "-m", "millrace", "--help") == commands
    for name in ("demo", "simulate", "stream", "learn", "serve", "replay"):
        assert re.search(rf"\b{name}\b", commands)


def test_installing_gives_the_command() -> None:
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "millrace"]
    assert script.value == "millrace.cli:main"


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
        for module in set(imports(path)) - PACKAGES - {"tests"} - set(sys.stdlib_module_names):
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


def test_every_dependency_has_both_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for line in wanted:
        bounds = line.split(";")[0]
        assert ">=" in bounds, line
        assert "<" in bounds, line
