# core
"""How much memory processes hold: their resident pages, as the system counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from millrace.basics.errors import MillraceError


def resident_bytes(process: int | str = "self") -> int | None:
    """Resident memory of a process, in bytes. None: it is gone, or this system has no ``/proc``.

    Pages that processes share are counted in each of them, so a sum is rather too high than too low.
    """
    return _told(process, "VmRSS:")


def measured_bytes(process: int | str = "self", peak: bool = False) -> int:
    """Resident memory of a process, in bytes, for whoever can do nothing without it; ``peak``: the most it ever was.

    Raises:
        MillraceError: it is gone, or this system has no ``/proc``.
    """
    held = _told(process, "VmHWM:" if peak else "VmRSS:")
    if held is None:
        raise MillraceError(f"no resident memory in /proc/{process}/status", "measure a living process, on Linux")
    return held


def _told(process: int | str, name: str) -> int | None:
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def resident(processes: Mapping[str, int | None]) -> dict[str, int]:
    """Resident memory by name, of the processes that live."""
    found = {name: resident_bytes(process) for name, process in processes.items() if process is not None}
    return {name: held for name, held in found.items() if held is not None}
