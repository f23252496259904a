# shell
"""An open-loop load generator for HTTP: requests leave at times that were drawn before, whatever became of the others.

A closed loop asks seldom while the server is slow, and does not see what everybody else would have waited (Schroeder
et al., "Open Versus Closed", NSDI 2006). Here times come from a Poisson process, and a latency counts from the
*intended* time: it holds what the request waited for a connection, and how late this process was.

It asks a scorer for pages, or sends an intake ``size`` clicks of as many users at a time, in a process of its own
(``python -m benchmarks.tools.openloop``) with one thread and plain sockets. Beside it, what latencies of runs say.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics.errors import ServiceError
from millrace.contracts.events import Click, to_json

MOST_CONNECTIONS = 256
_HEAD_END = b"\r\n\r\n"
_HOST = "127.0.0.1"
_ITEMS = 5000
Ms = NDArray[np.float64]
FAILED_MS = 10_000.0  # what a request counts for that had no answer, or another than was asked for
CHUNK_S = 1.0  # requests of so many seconds are drawn together: those of one moment wait for the same thing
DRAWS = 1000


class Plan(Struct, frozen=True, kw_only=True):
    """What to ask, and when."""

    port: int
    rate: float  # requests a second
    seconds: float
    seed: int
    prefix: str  # of the request ids: "<prefix>-<number>"
    users: int  # user ids are drawn from 1 to this
    size: int  # items a page, or events a request
    path: str = "/recommend"  # /similar; or /events, whose requests are no pages
    items: list[int | str] = []  # that others are to be like, in turn
    connections: int = 8  # opened before the first request, and used in turn
    patience_s: float = 10.0  # how long an answer may take; the connection is given up then


class Outcome(Struct, frozen=True):
    """What came of it; lists have an entry for each request. Times are seconds of :func:`time.monotonic`."""

    intended_s: list[float]
    seen_s: list[float | None]  # when this process came to it, which is its own delay
    sent_s: list[float | None]  # later than that where no connection was free; None: not sent
    done_s: list[float | None]  # None: no answer
    status: list[int]  # 0: no answer
    whole: list[bool]  # its own request id and as many items as were asked for; or all events kept


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Times from 0 to ``seconds`` of a Poisson process, sorted."""
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rate * seconds))
    times: list[float] = np.sort(rng.uniform(0.0, seconds, count)).tolist()
    return times


def event_ids(plan: Plan, request: int) -> list[str]:
    """The ids of a request's events."""
    return [f"{plan.prefix}-{request}-{number}" for number in range(plan.size)]


def requests_of(plan: Plan, n: int) -> list[bytes]:
    """The plan's first n requests."""
    draw = np.random.default_rng([plan.seed, 1])
    if plan.path == "/events":
        bodies = [_events(plan, i, draw) for i in range(n)]
    else:
        like = [{"item_id": item} for item in plan.items] if plan.path == "/similar" else [{}]
        users = draw.integers(1, plan.users + 1, n).tolist()
        asked = ({"user_id": u, "size": plan.size, "request_id": f"{plan.prefix}-{i}"} for i, u in enumerate(users))
        bodies = [msgspec.json.encode(one | like[i % len(like)]) for i, one in enumerate(asked)]
    head = f"POST {plan.path} HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: application/json\r\nContent-Length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def _events(plan: Plan, i: int, draw: np.random.Generator) -> bytes:
    users = draw.integers(1, plan.users + 1, plan.size).tolist()
    items = draw.integers(1, _ITEMS + 1, plan.size).tolist()
    clicks = [
        # The intake fills in the time, as it does for most shops.
        to_json(Click(id, f"page-{i}", 1, user, item, 0)).replace(b'"ts_ms":1,', b"")
        for id, user, item in zip(event_ids(plan, i), users, items, strict=True)
    ]
    return clicks[0] if plan.size == 1 else b"[" + b",".join(clicks) + b"]"


def is_whole(plan: Plan, i: int, body: bytes) -> bool:
    """Whether an answer is the one that request i asked for."""
    if plan.path == "/events":
        return f'"kept":{plan.size},'.encode() in body
    return body.count(b'"item_id":') == plan.size and f'"{plan.prefix}-{i}"'.encode() in body


class _Connection(asyncio.Protocol):
    """A connection, and the request that waits for its answer on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._read, self._answer = bytearray(), asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes) -> bytes:
        """The whole answer. Raises OSError where the connection ends before."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return bytes(await self._answer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(_HEAD_END)
        if head >= 0 and len(self._read) >= head + len(_HEAD_END) + _length(bytes(self._read[:head])):
            whole = bytes(self._read)
            self._read.clear()
            if not self._answer.done():
                self._answer.set_result(whole)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionResetError("no answer"))
            self._answer.exception()  # whoever waits has it; nobody may


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.due = plan, schedule(plan.rate, plan.seconds, plan.seed)
        n = len(self.due)
        self.requests = requests_of(plan, n)
        self._free: deque[_Connection] = deque()
        self.seen: list[float | None] = [None] * n
        self.sent: list[float | None] = [None] * n
        self.done: list[float | None] = [None] * n
        self.status, self.whole = [0] * n, [False] * n

    def run(self) -> Outcome:
        """Asks as planned, and returns when every request has its answer or was given up. Raises OSError where nothing
        listens there."""
        # select() keeps time to microseconds, where epoll rounds up to milliseconds.
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._run())
        return Outcome(self.due, self.seen, self.sent, self.done, self.status, self.whole)

    async def _run(self) -> None:
        self._free.extend([await self._open() for _ in range(self.plan.connections)])
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)
        began = time.monotonic()
        self.due = [began + at for at in self.due]
        async with asyncio.TaskGroup() as asking:
            for i, due in enumerate(self.due):
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self.seen[i] = time.monotonic()
                asking.create_task(self._ask(i))
        for connection in self._free:
            connection.transport.close()

    def _idle(self) -> _Connection | None:
        while self._free:
            connection = self._free.popleft()
            if not connection.transport.is_closing():  # the server may have ended it
                return connection
        return None

    async def _open(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, _HOST, self.plan.port)
        return connection

    async def _ask(self, i: int) -> None:
        async with self._room:
            connection = None
            try:
                async with asyncio.timeout(self.plan.patience_s):
                    connection = self._idle() or await self._open()
                    self.sent[i] = time.monotonic()
                    answer = await connection.ask(self.requests[i])
            except (OSError, TimeoutError):
                if connection is not None:
                    connection.transport.abort()
                return
        self.done[i] = time.monotonic()
        head, _, body = answer.partition(_HEAD_END)
        self.status[i] = int(head[9:12])
        self.whole[i] = self.status[i] == 200 and is_whole(self.plan, i, body)
        if b"connection: close" in head.lower():
            connection.transport.close()
        else:
            self._free.append(connection)


def _length(head: bytes) -> int:
    found = head.lower().find(b"content-length:")
    return int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0


class Asking:
    """The load generator at work, in a process of its own; :meth:`outcome` waits for its end. ``cores``: that it is
    bound to; None: any."""

    def __init__(self, plan: Plan, cores: set[int] | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.tools.openloop"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(plan))
        self._process.stdin.close()

    def outcome(self) -> Outcome:
        """What came of it. Raises ServiceError where the generator failed; its error stands above."""
        assert self._process.stdout is not None
        with self._process.stdout as out:
            written = out.read()
        if self._process.wait():
            raise ServiceError(f"the load generator ended with status {self._process.returncode}", "see its output")
        return msgspec.json.decode(written, type=Outcome)


def latencies_ms(outcome: Outcome) -> Ms:
    """From the intended time of each request to its answer; :data:`FAILED_MS` for one that failed. (n,)"""
    done = np.array([np.nan if at is None else at for at in outcome.done_s])
    spent = 1000.0 * (done - np.array(outcome.intended_s))
    return np.where(np.array(outcome.whole, np.bool_), spent, FAILED_MS)


def percentile(ms: Ms, share: float) -> float:
    """The smallest latency that at least ``share`` of the requests kept to. NaN of none."""
    return float(np.percentile(ms, 100 * share, method="inverted_cdf")) if len(ms) else float("nan")


def chunks(at_s: Sequence[float] | Ms, ms: Ms) -> list[Ms]:
    """Latencies of requests by the second in which they were due, seconds without one left out."""
    numbers = (np.asarray(at_s) // CHUNK_S).astype(np.int64)
    return [ms[numbers == number] for number in np.unique(numbers)]


def cost_ms(with_it: Sequence[Ms], without: Sequence[Ms], share: float, seed: int = 0) -> tuple[float, float, float]:
    """By how many milliseconds answers come later *with* something than *without*, at the percentile ``share``, and the
    bounds of the 95% interval: a bootstrap's over seconds (Efron, 1979)."""
    rng = np.random.default_rng(seed)

    def at(parts: Sequence[Ms]) -> float:
        return percentile(np.concatenate(parts), share)

    def drawn(parts: Sequence[Ms]) -> float:
        return at([parts[i] for i in rng.integers(0, len(parts), len(parts))])

    found = [drawn(with_it) - drawn(without) for _ in range(DRAWS)]
    low, high = np.percentile(found, [2.5, 97.5])
    return at(with_it) - at(without), float(low), float(high)


def main() -> None:
    """Reads a plan from standard input and writes the outcome to standard output."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(Run(plan).run()))


if __name__ == "__main__":
    main()
