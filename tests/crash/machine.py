"""What a loop has of its machine: small disks that can be filled, and wall clocks that can be stepped."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DISK_MIB = 192
CLOCKS = Path(__file__).with_name("clock")


class Disks:
    """Folders with a small disk of their own each, where this process may mount one."""

    def __init__(self) -> None:
        self.places: dict[str, Path] = {}

    @contextmanager
    def mounted(self, name: str, place: Path) -> Iterator[None]:
        """Makes a folder, with a disk if mounting is not refused. What is on it stays in the folder, for a look."""
        place.mkdir()
        asked = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            yield
            return
        self.places[name] = place
        try:
            yield
        finally:
            copy = place.with_name(f"{place.name}.copy")
            with suppress(OSError, shutil.Error):
                shutil.copytree(place, copy)
            subprocess.run(["umount", "--lazy", str(place)], check=False)
            place.rmdir()
            copy.rename(place)

    def fill(self, name: str) -> Callable[[], None]:
        """Leaves no byte on a disk; what it returns takes that back."""
        ballast = self.places[name] / "ballast"
        for piece in (bytes(1 << 16), b"0"):
            with suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(piece)
        return lambda: ballast.unlink(missing_ok=True)


class Clocks:
    """A wall clock for each role. ``folder`` is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def made(self, roles: Iterable[str]) -> dict[str, str]:
        """Makes them; returns what the environment of roles has to have, beside a role's own name as CRASH_ROLE."""
        self._folder.mkdir()
        for name in roles:
            (self._folder / name).write_bytes(bytes(8))
        path = os.pathsep.join(filter(None, (str(CLOCKS), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "CRASH_CLOCKS": str(self._folder)}

    def step(self, role: str, seconds: float) -> None:
        """The clock of a role is ``seconds`` ahead of ours from now on."""
        with (self._folder / role).open("r+b") as file, mmap.mmap(file.fileno(), 8) as held:
            struct.pack_into("<d", held, 0, seconds)
