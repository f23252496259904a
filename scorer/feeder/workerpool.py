# shell
"""The workers of a scorer: starts, watches, restarts and ends them.

::

    slot 0   ring of page logs (stays) ── worker process, link to it      ended? the next one, in the same slot
    slot 1   ...

A worker that makes no progress with the versions for :data:`STUCK_LOOKS` looks, or answers none of them, is killed: it
would block folding, and its messages would pile up. Restarts of a worker that ends again and again have growing pauses.
A template that has ended is replaced at once, and its workers go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import structlog

from millrace.basics.errors import MillraceError, ServiceError, one_line
from millrace.processes.shared import Region
from scorer.feeder.state import FeederState
from scorer.feeder.versionhost import VersionHost
from scorer.ipc.link import FeederLink, Handles, LinkMessage, Packet, Receiver
from scorer.ipc.meters import WORKER_RESTARTS, WORKERS
from scorer.ipc.scorer_metrics import Sums, values_of
from scorer.pagelog.ring import RING_BYTES
from scorer.worker.acceptor import NOBODY
from scorer.worker.door import Door
from scorer.worker.template import Template

log = structlog.get_logger("scorer")

STUCK_LOOKS = 10
"""One each :data:`MEASURE_SECONDS`. This counts looks and not time, because a feeder that was itself suspended has not
looked."""
LOOK_SECONDS = 0.1
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 5.0
STABLE_SECONDS = 10.0
"""A worker that ran for so long is restarted without a pause."""
TEMPLATES = 3
"""Limit of consecutive templates that start no worker: then the cause lies elsewhere."""
ASKERS, MOST_ASKED = 4, 64
"""Threads that answer workers' questions; limit of waiting questions, beyond which the answer is none."""
MEASURE_SECONDS = 1.0
MEASURED_WITHIN_SECONDS = 0.3


class Sender(Protocol):
    def add(self, worker: Receiver) -> None:
        """A new worker: it gets what the others have, and all later messages."""

    def remove(self, worker: Receiver) -> None:
        """A worker has ended."""


class PoolMember:
    def __init__(self, slot: int, pid: int, started: float) -> None:
        self.slot, self.pid, self.started = slot, pid, started
        self.link: FeederLink
        self.ready = self.gone = False
        self.unanswered = self.unmoved = 0  # looks since it said anything; since it came further with the versions
        self.reached: dict[str, int] = {}  # by learner, where it is behind
        self.measured = threading.Event()

    def put(self, packet: Packet) -> None:
        """Queues a message."""
        self.link.put(packet)


class WorkerPool:
    """See the module's text.

    Args:
        door: the socket that all workers accept from.
        hosts: of each learner's versions, by its name.
        answer: answers a worker's question: what, facts -> facts, arrays. Runs in a thread of its own.
        bell: the eventfd that each worker rings for a page in its ring.
        senders: each new worker is added to all of them, in this order.
    """

    def __init__(
        self,
        state: FeederState,
        door: Door,
        template: Template,
        hosts: Mapping[str, VersionHost],
        senders: Sequence[Sender],
        sums: Sums,
        answer: Callable[[str, Any], tuple[Any, dict[str, Any]]],
        bell: int,
    ) -> None:
        settings = self._settings = state.primary.settings
        self._door, self._template, self._hosts, self._bell = door, template, hosts, bell
        self._senders, self._sums, self._answer = senders, sums, answer
        self._meters, self._stop = state.meters, state.stop
        self._askers = ThreadPoolExecutor(ASKERS, "asked")
        self._asked = threading.BoundedSemaphore(MOST_ASKED)
        self.rings = [Region(RING_BYTES) for _ in range(settings.workers)]
        for ring in self.rings:
            fcntl.lockf(ring.fd, fcntl.LOCK_EX)  # for as long as we live: a worker sees by it whether its log is read
        self._members: dict[int, PoolMember] = {}  # by slot
        self._next_at = dict.fromkeys(range(settings.workers), 0.0)
        self._pauses = dict.fromkeys(range(settings.workers), FIRST_PAUSE_SECONDS)
        self._lock = threading.RLock()
        self._changed = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)

    def ring(self, slot: int) -> Any:
        region = self.rings[slot]
        return region.array((region.size,), np.uint8)

    def start(self) -> None:
        """Starts the workers; the first one when the template has imported everything. Raises ServiceError: several
        templates have ended, or the role ends."""
        for slot in range(self._settings.workers):
            self._begin(slot)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether every worker can rank pages."""
        members = self._all()
        return len(members) == self._settings.workers and all(member.ready for member in members)

    def broadcast(self, packet: Packet) -> None:
        for member in self._all():
            member.put(packet)

    def measure(self) -> None:
        """Asks all workers for their figures, and waits a moment for them."""
        members = self._all()
        for member in members:
            member.measured.clear()
            member.put(Packet("measure"))
        deadline = time.monotonic() + MEASURED_WITHIN_SECONDS
        for member in members:
            member.measured.wait(max(0.0, deadline - time.monotonic()))

    def end(self, seconds: float) -> None:
        """Drains and ends all workers; kills the remaining ones after ``seconds``."""
        self._ending = True
        self.broadcast(Packet("end"))
        deadline = time.monotonic() + seconds
        while self._all() and time.monotonic() < deadline:
            self._changed.wait(0.05)
            self._changed.clear()
        for member in self._all():
            log.warning("worker does not end: killed", worker=member.slot, pid=member.pid)
            self._kill(member)

    # -- within -----------------------------------------------------------------------------------------------

    def _all(self) -> list[PoolMember]:
        with self._lock:
            return list(self._members.values())

    def _begin(self, slot: int) -> None:
        ours, pid = self._fork(slot)
        member = PoolMember(slot, pid, time.monotonic())
        member.link = FeederLink(ours, lambda message: self._received(member, message), lambda: self._gone(member))
        with self._lock:
            self._members[slot] = member
        WORKERS.set(len(self._members))
        try:
            for sender in self._senders:
                sender.add(member)
            member.put(Packet("all"))
        except BaseException:  # it lacks something: it ends, and another one is started
            member.put(Packet("end"))
            member.link.close()
            raise
        finally:  # not before: who joins after it has gone is waited for by everybody
            member.link.start()
        if self._ending:  # it was not there when the others were asked
            member.put(Packet("end"))

    def _fork(self, slot: int) -> tuple[socket.socket, int]:
        """Our end of a new worker's link, and its process id. Replaces a template that cannot start it."""
        for left in reversed(range(TEMPLATES)):
            ours, theirs = socket.socketpair()
            with theirs:
                ring, listener, shares = self.rings[slot].fd, self._door.listener.fileno(), self._door.shares.fd
                handles = Handles(theirs.fileno(), listener, ring, shares, self._bell)
                try:
                    return ours, self._template.fork(slot, handles)
                except ServiceError:
                    ours.close()  # a worker that was started all the same sees it, and ends
                    if not left:
                        raise
            self._template.renew()
        raise AssertionError("unreachable")

    def _received(self, member: PoolMember, message: LinkMessage) -> None:
        member.unanswered = 0
        if message.kind == "serves":
            learner, number = message.facts
            self._hosts[learner].serves(member, number)
        elif message.kind == "ready":
            member.ready = bool(message.facts)
        elif message.kind == "measured":
            self._sums.update(member.pid, values_of(message.facts))
            member.measured.set()
        elif message.kind == "ask":
            if self._asked.acquire(blocking=False):
                self._askers.submit(self._answers, member, message.facts)
            else:
                member.put(Packet("answer", {"ask": message.facts["ask"], "answer": None}))

    def _answers(self, member: PoolMember, asked: dict[str, Any]) -> None:
        try:
            answer, arrays = self._answer(asked["what"], asked["facts"])
        except Exception as error:  # the worker goes on without
            self._meters.error("ask")
            log.warning("a worker's question cannot be answered", what=asked["what"], error=one_line(error))
            answer, arrays = None, {}
        finally:
            self._asked.release()
        member.put(Packet("answer", {"ask": asked["ask"], "answer": answer}, arrays))

    def _gone(self, member: PoolMember) -> None:
        with self._lock:
            member.gone = True
            if self._members.get(member.slot) is member:
                del self._members[member.slot]
                self._door.connections[member.slot] = NOBODY
        WORKERS.set(len(self._members))
        for sender in self._senders:
            sender.remove(member)
        self._sums.ended(member.pid)
        if not self._ending:
            WORKER_RESTARTS.inc()
            pause = self._pauses[member.slot]
            stable = time.monotonic() - member.started > STABLE_SECONDS
            self._pauses[member.slot] = FIRST_PAUSE_SECONDS if stable else min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._next_at[member.slot] = time.monotonic() + (0.0 if stable else pause)
            log.warning("worker has ended: another one is started", worker=member.slot, pid=member.pid)
        self._changed.set()

    def _run(self) -> None:
        looked = 0.0
        while not self._stop.is_set() and not self._ending:
            whole = len(self._members) == self._settings.workers
            self._changed.wait(MEASURE_SECONDS if whole else LOOK_SECONDS)
            self._changed.clear()
            try:
                if self._template.lost:
                    self._template.renew()
                now = time.monotonic()
                for slot, at in self._next_at.items():
                    if not self._ending and slot not in self._members and now >= at:
                        self._again(slot)
                if now - looked >= MEASURE_SECONDS:
                    looked = now
                    for member in self._all():
                        self._look_at(member)
            except Exception as error:  # unforeseen: workers are still to be looked after
                self._meters.error("worker")
                log.error("workers could not be looked after", error=one_line(error))

    def _again(self, slot: int) -> None:
        try:
            self._begin(slot)
        except (MillraceError, OSError) as error:
            self._meters.error("worker")
            log.error("no worker can be started: trying again", worker=slot, error=one_line(error))
            self._next_at[slot] = time.monotonic() + LONGEST_PAUSE_SECONDS

    def _look_at(self, member: PoolMember) -> None:
        reached = {name: at for name, host in self._hosts.items() if (at := host.behind(member)) is not None}
        member.unmoved = member.unmoved + 1 if reached.items() & member.reached.items() else 0
        member.reached = reached
        member.unanswered += 1
        member.put(Packet("measure"))
        why = ""
        if member.unanswered > STUCK_LOOKS:
            why = "worker does not answer: killed"
        elif member.unmoved > STUCK_LOOKS:
            why = "worker does not take up versions: killed"
        if why:
            log.error(why, worker=member.slot, pid=member.pid)
            member.unanswered = member.unmoved = 0
            self._kill(member)

    def _kill(self, member: PoolMember) -> None:
        try:
            killed = self._template.kill(member.pid)
        except MillraceError:
            killed = False
        if not killed and not member.gone:  # of a template that is no more; its link is open, so the id is its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
