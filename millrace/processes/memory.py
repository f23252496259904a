# core
"""How much memory processes hold: their resident pages, as the system counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def resident_bytes(process: int | str = "self") -> int | None:
    """Resident memory of a process, in bytes. None: it is gone, or this system has no ``/proc``.

    Pages that processes share are counted in each of them, so a sum is rather too high than too low.
    """
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def resident(processes: Mapping[str, int | None]) -> dict[str, int]:
    """Resident memory by name, of the processes that live."""
    found = {name: resident_bytes(process) for name, process in processes.items() if process is not None}
    return {name: held for name, held in found.items() if held is not None}
