"""The load generator: it keeps to its times, and an answer that is none counts as a failure."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import numpy as np
import pytest

from benchmarks.tools.openloop import (
    FAILED_MS,
    MOST_CONNECTIONS,
    Outcome,
    Plan,
    Run,
    chunks,
    cost_ms,
    latencies_ms,
    percentile,
    schedule,
)

HEAD_END = b"\r\n\r\n"
Answer = Callable[[int, bytes], bytes | None]
"""From the number of a request, in the order of arrival, and its id to the whole answer; None: the connection ends."""


class Server:
    """Answers on many connections at once; ``hold`` requests must have come before the first is answered."""

    def __init__(self, answer: Answer, hold: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=MOST_CONNECTIONS)
        self.port: int = self.listener.getsockname()[1]
        self.arrived = 0
        self._answer, self._hold = answer, hold
        self._all_here, self._lock = threading.Event(), threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        self.listener.close()
        self._all_here.set()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may have given up
            while data := connection.recv(65_536):
                asked = msgspec.json.decode(data.partition(HEAD_END)[2])["request_id"].encode()
                with self._lock:
                    number, self.arrived = self.arrived, self.arrived + 1
                    if self.arrived >= self._hold:
                        self._all_here.set()
                self._all_here.wait()
                answer = self._answer(number, asked)
                if answer is None:
                    return
                connection.sendall(answer)


@contextmanager
def serving(answer: Answer, hold: int = 0) -> Iterator[Server]:
    server = Server(answer, hold)
    try:
        yield server
    finally:
        server.end()


def page(asked: bytes, items: int = 2, status: bytes = b"200 OK") -> bytes:
    entries = b",".join(b'{"item_id":%d}' % i for i in range(items))
    body = b'{"request_id":"%s","model_version":7,"items":[%s],"notes":[]}' % (asked, entries)
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def plan(port: int, **changed: object) -> Plan:
    given = {"rate": 400.0, "seconds": 0.1, "seed": 1, "prefix": "t", "users": 5, "size": 2, **changed}
    return Plan(port=port, **given)  # type: ignore[arg-type]


def test_times_are_those_of_a_poisson_process() -> None:
    times = np.array(schedule(200.0, 100.0, seed=3))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= 100
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)  # exponential: both are 1 / rate
    assert schedule(200.0, 100.0, seed=3) == times.tolist() != schedule(200.0, 100.0, seed=4)


def test_requests_leave_while_none_is_answered() -> None:
    """The server answers nobody before everybody has asked: a closed loop would wait for ever."""
    due = len(schedule(400.0, 0.1, 1))
    assert 20 < due < MOST_CONNECTIONS
    with serving(lambda _, asked: page(asked), hold=due) as server:
        outcome = Run(plan(server.port, connections=3)).run()
    assert outcome.whole == [True] * due
    assert outcome.status == [200] * due


def test_a_latency_counts_from_the_intended_time() -> None:
    """Everybody waits for the last to ask: who was due first waits longest."""
    due = len(schedule(400.0, 0.1, 1))
    with serving(lambda _, asked: page(asked), hold=due) as server:
        outcome = Run(plan(server.port)).run()
    ms = latencies_ms(outcome)
    last = max(at for at in outcome.sent_s if at is not None)
    assert (ms >= 1000 * (last - np.array(outcome.intended_s))).all()
    assert ms[0] > 1000 * (outcome.intended_s[-1] - outcome.intended_s[0])


def test_what_was_not_asked_for_is_a_failure() -> None:
    def answer(number: int, asked: bytes) -> bytes | None:
        wrong = {
            3: page(asked, items=1),
            5: page(b"another"),
            7: page(asked, status=b"503 Service Unavailable"),
            9: None,
        }
        return wrong.get(number, page(asked))

    due = len(schedule(400.0, 0.1, 1))
    with serving(answer) as server:
        outcome = Run(plan(server.port)).run()
    assert outcome.whole.count(False) == 4
    assert sorted(outcome.status)[:2] == [0, 200]
    assert sorted(outcome.status)[-1] == 503
    ms = latencies_ms(outcome)
    assert (ms == FAILED_MS).sum() == 4
    assert len(ms) == due


def test_no_answer_is_waited_for_longer_than_patience() -> None:
    with serving(lambda _, asked: page(asked), hold=10**9) as server:
        outcome = Run(plan(server.port, patience_s=0.2)).run()
    assert not any(outcome.whole)
    assert outcome.done_s == [None] * len(outcome.whole)


def test_it_is_a_process_of_its_own() -> None:
    with serving(lambda _, asked: page(asked)) as server:
        asked = msgspec.json.encode(plan(server.port))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tools.openloop"], input=asked, stdout=subprocess.PIPE, check=True
        )
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    assert all(outcome.whole)


def test_percentiles_are_latencies_that_occurred() -> None:
    ms = np.array([5.0, 1.0, 3.0, 2.0, 4.0])
    assert [percentile(ms, share) for share in (0.2, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert np.isnan(percentile(np.empty(0), 0.5))


def test_a_cost_is_found_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0, 60, 3000))
    base, more = rng.exponential(4.0, 3000), rng.exponential(4.0, 3000) + 2.0
    cost, low, high = cost_ms(chunks(at, more), chunks(at, base), 0.5)
    assert low < 2.0 < high
    assert low < cost < high
    none, low, high = cost_ms(chunks(at, base), chunks(at, base), 0.99)
    assert none == 0.0
    assert low < 0 < high


def test_seconds_without_a_request_are_no_chunk() -> None:
    parts = chunks([0.1, 0.9, 1.5, 7.2], np.array([1.0, 2.0, 3.0, 4.0]))
    assert [part.tolist() for part in parts] == [[1.0, 2.0], [3.0], [4.0]]
