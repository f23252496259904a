# core
"""Benchmarks and experiments: they stand beside the package in a checkout, and are no part of what is installed."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from millrace.basics.errors import SettingError


def module(name: str) -> ModuleType:
    """Imports a module of a checkout: the folder above this package, else the current one.

    The folder is put on the path of this process and of those that it starts.

    Raises:
        SettingError: neither is a checkout.
    """
    for root in (Path(__file__).absolute().parents[3], Path.cwd()):
        if root.joinpath(*name.split(".")).with_suffix(".py").exists():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if str(root) not in paths:
                os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, paths)])
            return importlib.import_module(name)
    raise SettingError(
        f"there is no '{name}' here: benchmarks and experiments are not installed with Millrace",
        "run the command in a checkout of its source",
    )
