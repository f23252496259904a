# shell
"""Open-loop load on an intake: :mod:`benchmarks.tools.openloop` with events in the place of pages.

A request holds ``size`` clicks of as many users, with event ids ``<prefix>-<request>-<number>``; its answer is whole
when each of them was kept. ``python -m benchmarks.tools.intakeload`` reads a plan and writes an outcome, both JSON.
"""

from __future__ import annotations

import socket
import sys

import msgspec
import numpy as np

from benchmarks.tools.openloop import Connection, Plan, Run
from millrace.contracts.events import Click, to_json

_SEND_BYTES = 1 << 20
"""A request of a hundred events is sent in one call."""
_ITEMS = 5000


def event_ids(plan: Plan, request: int) -> list[str]:
    """The ids of a request's events."""
    return [f"{plan.prefix}-{request}-{number}" for number in range(plan.size)]


class EventRun(Run):
    """A run whose requests are POSTs of events."""

    def __init__(self, plan: Plan) -> None:
        self._draw = np.random.default_rng([plan.seed, 2])
        super().__init__(plan)
        self._all = f'"kept":{plan.size},'.encode()

    def _request(self, i: int, user: int) -> bytes:
        plan = self.plan
        users = self._draw.integers(1, plan.users + 1, plan.size).tolist()
        items = self._draw.integers(1, _ITEMS + 1, plan.size).tolist()
        clicks = [
            # The intake fills in the time, as it does for most shops.
            to_json(Click(id, f"page-{i}", 1, user, item, 0)).replace(b'"ts_ms":1,', b"")
            for id, user, item in zip(event_ids(plan, i), users, items, strict=True)
        ]
        body = clicks[0] if plan.size == 1 else b"[" + b",".join(clicks) + b"]"
        head = f"POST /events HTTP/1.1\r\nHost: {plan.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def _is_whole(self, i: int, body: bytes) -> bool:
        return self._all in body

    def _open(self) -> Connection:
        connection = super()._open()
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        return connection


def main() -> None:
    """Reads a plan from standard input and writes the outcome to standard output."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(EventRun(plan).run()))


if __name__ == "__main__":
    main()
