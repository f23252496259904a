# shell
"""Threads that give way: where cores are few, whoever answers a request comes before whoever prepares the next."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICER = 5


def step_back() -> None:
    """This thread, and those that it starts, run only where nothing else of the machine wants the core, roughly.

    On Linux, where priorities are a thread's own; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER)
