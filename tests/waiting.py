"""How tests wait: for a condition, never for a time; and ports that nobody else is given before they are bound."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from itertools import chain, cycle
from pathlib import Path

from millrace.processes.services import free_port

PATIENCE = 280.0
"""Seconds until we say that something does not come about. It only ends a broken run: in a fresh clone a role compiles
before it is ready, another's work may keep all cores busy meanwhile, and nothing is asserted about how long it takes.
"""

LONG = 1500
"""Seconds that a test may take (``pytest.mark.timeout``) that waits so several times, one after the other."""


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)


def quiet_port() -> int:
    """A loopback port that is free, and will be when it is bound later by another process.

    ``free_port`` asks the system, which may hand the same number to the next who asks. These lie below all that it
    hands out, so only who names such a port can take it, and in this process each is named once.
    """
    return next(_ports)


def _quiet_ports() -> Iterator[int]:
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        lowest = 49_152
    span = range(20_000, min(lowest, 49_152))
    if len(span) < 1000:  # the system hands out nearly all there are
        while True:
            yield free_port()
    start = os.getpid() * 37 % len(span)  # two suites at once begin elsewhere
    for port in cycle(chain(span[start:], span[:start])):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = _quiet_ports()
