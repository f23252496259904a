"""Steps the wall clock of one role: Python imports this by its name where PYTHONPATH has this folder.

``time.time`` and ``time.time_ns`` add the seconds that the file ``$CRASH_CLOCKS/ROLE`` holds, an eight-byte float that
may change while the role runs. Monotonic clocks are left alone, as a step of the system's clock leaves them.
"""

import mmap
import os
import struct
import time
from pathlib import Path


def _step(folder: str, role: str) -> None:
    path = Path(folder, role)
    if not path.is_file():
        return
    with path.open("r+b") as file:
        held = mmap.mmap(file.fileno(), 8)
    seconds, nanoseconds = time.time, time.time_ns

    def stepped() -> float:
        ahead: float = struct.unpack_from("<d", held)[0]
        return seconds() + ahead

    def stepped_ns() -> int:
        ahead: float = struct.unpack_from("<d", held)[0]
        return nanoseconds() + round(1e9 * ahead)

    time.time, time.time_ns = stepped, stepped_ns


if "CRASH_CLOCKS" in os.environ:
    _step(os.environ["CRASH_CLOCKS"], os.environ.get("CRASH_ROLE", ""))
