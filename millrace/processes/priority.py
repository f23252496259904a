# shell
"""Low-priority threads: where cores are few, answers to requests come before preparation of later ones."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICER = 5


def step_back() -> None:
    """Gives this thread, and those that it starts, the lowest priority on the machine. It works on Linux, where each
    thread has its own priority; elsewhere it does nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER)
