"""What people install: the wheel builds, and what is in it is enough for the command to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from types import BuiltinFunctionType

import kafka.record.util

from tests.test_architecture import FILES, PACKAGES, imports

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_all_that_the_command_needs(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, str(tmp_path / "dist"), str(ROOT)], check=True, cwd=tmp_path)
    (built,) = (tmp_path / "dist").glob("millrace-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(built)], check=True, cwd=tmp_path)
    # From another folder, with only the installed files in reach: data files that were left out would be missed.
    code = (
        "import importlib.util as u, importlib.resources as r, millrace.cli, millrace.contracts.schema as s\n"
        "rooms = ['simulator.live', 'stream.worker', 'learner.service', 'scorer.app', 'millrace.bench.stream']\n"
        "page = r.files('millrace.demo.page').joinpath('index.html').is_file()\n"
        "print(s.__file__, s.shop_schema().name, page, all(u.find_spec(n) for n in rooms))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    where, *rest = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert rest == ["shop", "True", "True"]
    assert (tmp_path / "site" / "bin" / "millrace").exists()


def test_installing_gives_the_command() -> None:
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "millrace"]
    assert script.value == "millrace.cli:main"


def test_every_import_is_declared() -> None:
    """Of the project's own packages: each module that they import comes with Python, with them, or with a dependency
    that the project names itself, not only with one of its dependencies'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [line for lines in project["optional-dependencies"].values() for line in lines]
    named = {re.split(r"[\s<>=;\[]", line, maxsplit=1)[0].lower() for line in [*project["dependencies"], *extra]}
    provided = packages_distributions()
    undeclared = set()
    for path in FILES:
        for module in {name.split(".")[0] for name in imports(path)} - PACKAGES - set(sys.stdlib_module_names):
            makers = {maker.lower().replace("_", "-") for maker in provided.get(module, [module])}
            if not makers & named:
                undeclared.add((str(path.relative_to(ROOT)), module))
    assert undeclared == set()


def test_the_checksum_of_a_message_is_not_computed_in_python() -> None:
    """In pure Python it takes 43 ms for the log of a page of 600 items; the client takes a library where one is."""
    assert isinstance(kafka.record.util._crc32c, BuiltinFunctionType)


def test_every_dependency_has_both_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for line in wanted:
        bounds = line.split(";")[0]
        assert ">=" in bounds, line
        assert "<" in bounds, line
