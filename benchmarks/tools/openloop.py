# shell
"""An open-loop load generator for HTTP: requests leave at times that were drawn before, whatever became of the others.

A closed loop asks again when it has its answer. So it asks seldom while the server is slow, and does not see what
everybody else would have waited ("coordinated omission": Schroeder et al., "Open Versus Closed", NSDI 2006). Here the
times come from a Poisson process, and a latency counts from the *intended* time: it holds what the request waited for
a connection, and how late this process was.

It is a process of its own (``python -m benchmarks.tools.openloop``, a :class:`Plan` in, an :class:`Outcome` out, both
JSON), with one thread, one selector and plain sockets: a request costs it less than a tenth of a millisecond.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from select import select

import msgspec
import numpy as np
from msgspec import Struct

from millrace.basics.errors import ServiceError

MOST_CONNECTIONS = 256
_HEAD_END = b"\r\n\r\n"
_READ_BYTES = 1 << 18


class Plan(Struct, frozen=True, kw_only=True):
    """What to ask, and when."""

    port: int
    rate: float  # requests a second
    seconds: float
    seed: int
    prefix: str  # of the request ids: "<prefix>-<number>"
    users: int  # user ids are drawn from 1 to this
    size: int  # items a page
    path: str = "/recommend"
    connections: int = 8  # opened before the first request, and used in turn
    keep_every: int = 20  # of the answers, whole
    patience_s: float = 10.0  # how long an answer may take; the connection is given up then
    host: str = "127.0.0.1"


class Outcome(Struct, frozen=True):
    """What came of it; lists have an entry for each request. Times are seconds of :func:`time.monotonic`."""

    intended_s: list[float]
    seen_s: list[float | None]  # when this process came to it, which is its own delay
    sent_s: list[float | None]  # later than that where no connection was free; None: not sent
    done_s: list[float | None]  # None: no answer
    status: list[int]  # 0: no answer
    bytes: list[int]  # of the answer's body
    whole: list[bool]  # its own request id, as many items as were asked for
    noted: list[bool]  # the answer has notes
    versions: list[int]  # model version of the answer; -1: none
    kept: dict[str, str]  # request id -> body of every `keep_every`-th answer
    cpu_s: float  # of this process, from the first request to the last answer


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Times from 0 to ``seconds`` of a Poisson process, sorted."""
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rate * seconds))
    times: list[float] = np.sort(rng.uniform(0.0, seconds, count)).tolist()
    return times


@dataclass(slots=True, eq=False)
class Connection:
    """A connection, and the request that waits for its answer on it."""

    socket: socket.socket
    asks: int = -1  # number of the request on it
    read: bytearray = field(default_factory=bytearray)
    awaited: int = -1  # bytes of head and body; -1: the head has not come whole


class Run:
    """One run of a plan. What is asked, and which answer is whole, is a page's here; others override both."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        due = schedule(plan.rate, plan.seconds, plan.seed)
        n = len(due)
        users = np.random.default_rng([plan.seed, 1]).integers(1, plan.users + 1, n).tolist()
        self.requests = [self._request(i, user) for i, user in enumerate(users)]
        self.selector = selectors.DefaultSelector()
        self.free: deque[Connection] = deque()
        self.busy: dict[int, Connection] = {}  # by request, oldest first
        self.waiting: deque[int] = deque()
        for _ in range(plan.connections):
            self.free.append(self._open())
        self.due = due
        self.seen: list[float | None] = [None] * n
        self.sent: list[float | None] = [None] * n
        self.done: list[float | None] = [None] * n
        self.status, self.bytes, self.versions = [0] * n, [0] * n, [-1] * n
        self.whole, self.noted = [False] * n, [False] * n
        self.kept: dict[str, str] = {}
        self.left = n

    def _request(self, i: int, user: int) -> bytes:
        plan = self.plan
        body = msgspec.json.encode({"user_id": user, "size": plan.size, "request_id": f"{plan.prefix}-{i}"})
        head = (
            f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def run(self) -> Outcome:
        plan, n, following = self.plan, len(self.due), 0
        began, cpu_s = time.monotonic(), time.process_time()
        self.due = [began + at for at in self.due]
        ready = [self.selector.fileno()] if isinstance(self.selector, selectors.EpollSelector) else None
        last_s = self.due[-1] + plan.patience_s if n else began
        while self.left:
            now = time.monotonic()
            while following < n and self.due[following] <= now:
                self.seen[following] = now
                self.waiting.append(following)
                following += 1
            while self.waiting and self._send(self.waiting[0]):
                self.waiting.popleft()
            self._give_up(now)
            if now > last_s:
                break
            pause = max(0.0, min(self.due[following] if following < n else last_s, now + 0.1) - time.monotonic())
            if ready:  # select() takes microseconds where epoll rounds up to milliseconds
                pause = 0.0 if select(ready, [], [], pause)[0] else -1.0
            for key, _ in self.selector.select(pause) if pause >= 0 else ():
                self._take(key.data)
        for connection in [*self.free, *self.busy.values()]:
            connection.socket.close()
        self.selector.close()
        return Outcome(
            self.due, self.seen, self.sent, self.done, self.status, self.bytes, self.whole, self.noted, self.versions,
            self.kept, time.process_time() - cpu_s,
        )  # fmt: skip

    def _open(self) -> Connection:
        connected = socket.create_connection((self.plan.host, self.plan.port), self.plan.patience_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        connection = Connection(connected)
        self.selector.register(connected, selectors.EVENT_READ, connection)
        return connection

    def _send(self, i: int) -> bool:
        """Whether the request is on its way, or failed; False: no connection is free."""
        if not self.free and len(self.busy) >= MOST_CONNECTIONS:
            return False
        try:
            connection = self.free.popleft() if self.free else self._open()
        except OSError:
            self.left -= 1  # nobody listens: it failed
            return True
        self.sent[i] = time.monotonic()
        connection.asks = i
        self.busy[i] = connection
        try:
            connection.socket.send(self.requests[i])  # a few hundred bytes: an idle connection takes them whole
        except OSError:
            self._lose(connection)
        return True

    def _take(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or connection.asks < 0:  # closed, or an answer that nobody asked for
            self._lose(connection)
            return
        read = connection.read
        read += data
        if connection.awaited < 0:
            head = read.find(_HEAD_END)
            if head < 0:
                return
            connection.awaited = head + len(_HEAD_END) + _length(bytes(read[:head]))
        if len(read) >= connection.awaited:
            self._answered(connection)

    def _answered(self, connection: Connection) -> None:
        i = connection.asks
        self.done[i] = time.monotonic()
        raw = bytes(connection.read)
        head, _, body = raw.partition(_HEAD_END)
        self.status[i], self.bytes[i] = int(raw[9:12]), len(body)
        asked = f"{self.plan.prefix}-{i}"
        self.whole[i] = self.status[i] == 200 and self._is_whole(i, body)
        self.noted[i] = b'"notes":[]' not in body
        self.versions[i] = _number(body, b'"model_version":')
        if i % self.plan.keep_every == 0 and self.whole[i]:
            self.kept[asked] = body.decode("utf-8", "replace")
        del self.busy[i]
        self.left -= 1
        connection.asks, connection.awaited = -1, -1
        connection.read.clear()
        if b"connection: close" in head.lower():
            self._close(connection)
        else:
            self.free.append(connection)

    def _is_whole(self, i: int, body: bytes) -> bool:
        """Whether the answer is the one that was asked for."""
        return body.count(b'"item_id":') == self.plan.size and f'"{self.plan.prefix}-{i}"'.encode() in body

    def _give_up(self, now: float) -> None:
        """Ends what has waited too long. The oldest come first."""
        late = [c for i, c in self.busy.items() if now > (self.sent[i] or now) + self.plan.patience_s]
        for connection in late:
            self._lose(connection)

    def _lose(self, connection: Connection) -> None:
        if connection.asks >= 0:
            del self.busy[connection.asks]
            self.left -= 1
        elif connection in self.free:
            self.free.remove(connection)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.selector.unregister(connection.socket)
        connection.socket.close()


def _length(head: bytes) -> int:
    found = head.lower().find(b"content-length:")
    return int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0


def _number(body: bytes, name: bytes) -> int:
    found = body.find(name)
    if found < 0:
        return -1
    digits = body[found + len(name) : found + len(name) + 20].split(b",", 1)[0].strip()
    return int(digits) if digits.lstrip(b"-").isdigit() else -1


def drive(plan: Plan) -> Outcome:
    """Asks as planned, and returns when every request has its answer or was given up.

    Raises:
        OSError: nothing listens there.
    """
    return Run(plan).run()


class Asking:
    """The load generator at work, in a process of its own; :meth:`outcome` waits for its end.

    Args:
        module: what runs it.
        cores: that it is bound to; None: any.
    """

    def __init__(self, plan: Plan, module: str = "benchmarks.tools.openloop", cores: set[int] | None = None) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)
        self._said: list[bytes] = []
        self._waiter = threading.Thread(target=self._wait, args=(msgspec.json.encode(plan),), daemon=True)
        self._waiter.start()

    def _wait(self, plan: bytes) -> None:
        self._said.append(self._process.communicate(plan)[0])

    def outcome(self) -> Outcome:
        """What came of it.

        Raises:
            ServiceError: the generator failed; its error stands above.
        """
        self._waiter.join()
        if self._process.returncode or not self._said:
            raise ServiceError(f"the load generator ended with status {self._process.returncode}", "see its output")
        return msgspec.json.decode(self._said[0], type=Outcome)


def main() -> None:
    """Reads a plan from standard input and writes the outcome to standard output."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(drive(plan)))


if __name__ == "__main__":
    main()
