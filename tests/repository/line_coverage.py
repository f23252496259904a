"""Line coverage of the tests that run in one process, by room: ``make coverage``, which installs what it needs for the
one run. No part of ``make test``: it takes twice as long, and a line that runs is not a line that is tested.

Roles that tests start as processes of their own are not seen, and neither is the inside of what numba compiles, so
that compiled functions are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module

import pytest

from tests.architecture import FOLDERS, ROOMS, ROOT


def main(arguments: list[str]) -> int:
    """Runs pytest with these arguments and prints lines, those that ran and their share, for each room."""
    measured = import_module("coverage").Coverage(
        source=[str(ROOT / top) for top in FOLDERS], data_file=None, config_file=False
    )
    measured.set_option(
        "report:exclude_also", ["@compiled", "if TYPE_CHECKING:", r"^\s*\.\.\.$", "raise NotImplementedError"]
    )
    measured.start()
    status = pytest.main(arguments)
    measured.stop()
    lines, missed = Counter[str](), Counter[str]()
    for top in FOLDERS:
        for path in sorted((ROOT / top).rglob("*.py")):
            _, statements, _, missing, _ = measured.analysis2(str(path))
            room = ".".join(path.relative_to(ROOT).parts[:-1])
            lines[room] += len(statements)
            missed[room] += len(missing)
    for room in (*(room for room in ROOMS if room in lines), "all"):
        total, gone = (lines[room], missed[room]) if room != "all" else (lines.total(), missed.total())
        print(f"{room:28}{total:8,}{total - gone:8,}{100 * (total - gone) / max(total, 1):7.1f} %")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
