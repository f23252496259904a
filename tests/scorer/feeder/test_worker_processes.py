"""Workers that are started, asked, found stuck and killed: the feeder's side, with processes that are none."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from millrace.basics.errors import ServiceError
from millrace.contracts.clock import EventClock
from millrace.contracts.settings import Settings
from millrace.processes.shared import Region
from scorer.feeder import workerpool
from scorer.feeder.primary import Primary
from scorer.feeder.state import FeederState
from scorer.feeder.workerpool import ASKERS, MOST_ASKED, STUCK_LOOKS, TEMPLATES, PoolMember, WorkerPool
from scorer.ipc.link import Closed, Handles, Inbox, Packet
from scorer.ipc.meters import ScorerMeters
from scorer.ipc.scorer_metrics import Sums
from scorer.worker import template as templates
from tests.scenes.scorer_shop import NOW_MS, SCHEMA
from tests.scenes.waiting import PATIENCE, until

PIDS = itertools.count(1_000_000_000)
"""Of no process."""


class Template:
    """Starts "processes": their ends of links, by process id."""

    def __init__(self, *_: Any) -> None:
        self.ends: dict[int, socket.socket] = {}
        self.killed: list[int] = []
        self.fails = self.lost = False
        self.renewed, self.stable_after = 0, 1

    def renew(self) -> None:
        self.lost = False
        self.renewed += 1
        self.fails = self.fails and self.renewed < self.stable_after

    def fork(self, number: int, handles: Any) -> int:
        if self.fails:
            raise ServiceError("the template has ended", "see above")
        pid = next(PIDS)
        self.ends[pid] = socket.socket(fileno=os.dup(handles.link))
        return pid

    def kill(self, pid: int) -> bool:
        if self.fails:
            raise ServiceError("the template has ended", "see above")
        if pid not in self.ends:
            return False
        self.killed.append(pid)
        self.ends.pop(pid).close()
        return True


class Host:
    """What a pool asks of versions."""

    def __init__(self) -> None:
        self.members: list[PoolMember] = []
        self.come: dict[PoolMember, int] = {}
        self.newest = 0
        self.fails = False
        self.before_join: Callable[[PoolMember], None] = lambda _: None

    def add(self, worker: PoolMember) -> None:
        self.before_join(worker)
        if self.fails:
            raise OSError(errno.EMFILE, "too many open files")
        self.members.append(worker)
        self.come[worker] = 0

    def remove(self, worker: PoolMember) -> None:
        if worker in self.members:
            self.members.remove(worker)

    def serves(self, worker: PoolMember, number: int) -> None:
        self.come[worker] = number

    def behind(self, worker: PoolMember) -> int | None:
        come = self.come.get(worker, self.newest)
        return come if come < self.newest else None


class Scene:
    """A pool of workers, started."""

    def __init__(self, workers: int = 2, answer: Any = lambda *_: (None, {})) -> None:
        self.template, self.host, self.stop = Template(), Host(), threading.Event()
        self.listener = socket.socket()
        template: Any = self.template
        host: Any = self.host
        shares = Region(8 * workers)
        door: Any = SimpleNamespace(listener=self.listener, shares=shares, connections=shares.array((workers,), "i8"))
        primary = Primary(Settings(workers=workers), SCHEMA, EventClock(), lambda: NOW_MS)
        state = FeederState(primary, ScorerMeters(), self.stop)
        self.pool = WorkerPool(state, door, template, {"": host}, [host], Sums(), answer, os.eventfd(0))

    def end(self) -> None:
        self.stop.set()
        for template in (self.template, self.pool._template):
            for end in getattr(template, "ends", {}).values():
                end.close()
        until(lambda: not self.members(), "all have ended")
        self.listener.close()

    def members(self) -> list[PoolMember]:
        return self.pool._all()

    def says(self, member: PoolMember, kind: str, facts: Any = None) -> None:
        """A worker's message."""
        Packet(kind, facts).send(self.template.ends[member.pid])

    def look(self, times: int, meanwhile: Callable[[PoolMember], None] = lambda _: None) -> None:
        """Has the pool look at its workers as often."""
        for _ in range(times):
            for member in self.members():
                self.pool._look_at(member)
                if member.pid in self.template.ends:
                    meanwhile(member)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Two workers, and nobody who looks at them."""
    found = Scene()
    for slot in range(2):
        found.pool._begin(slot)
    yield found
    found.end()


def hears(scene: Scene, member: PoolMember) -> None:
    """The worker answers the pool's question, and the answer comes."""
    scene.says(member, "measured", [])
    until(member.measured.is_set, "its answer comes")
    member.measured.clear()


def test_a_worker_that_says_nothing_is_killed_whether_versions_come_or_not(scene: Scene) -> None:
    """What it does not take would pile up for ever."""
    answering, silent = scene.members()
    scene.look(STUCK_LOOKS + 1, lambda member: hears(scene, member) if member is answering else None)
    assert scene.template.killed == [silent.pid]
    until(lambda: scene.members() == [answering], "the other one is there")


def test_a_worker_that_is_behind_all_the_time_but_comes_further_is_left_alone(scene: Scene) -> None:
    def versions(member: PoolMember) -> None:
        hears(scene, member)
        scene.host.newest += 1
        if member is busy:
            scene.host.serves(member, scene.host.newest - 5)

    busy, stuck = scene.members()
    scene.look(STUCK_LOOKS + 2, versions)
    assert scene.template.killed == [stuck.pid]


def test_a_worker_of_a_template_that_is_no_more_is_killed_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    old: Any = scene.template
    _, silent = scene.members()
    scene.pool._template = Template()  # type: ignore[assignment]
    scene.pool._kill(silent)
    old.fails = True
    scene.pool._template = old
    scene.pool._kill(silent)
    assert killed == [(silent.pid, signal.SIGKILL)] * 2


def test_templates_that_end_while_a_worker_is_started_are_replaced_and_given_up_after_some() -> None:
    for stable_after in (TEMPLATES - 1, TEMPLATES):
        scene = Scene(1)
        scene.template.fails, scene.template.stable_after = True, stable_after
        if stable_after < TEMPLATES:
            scene.pool._begin(0)
            assert len(scene.members()) == 1
        else:
            with pytest.raises(ServiceError, match="the template has ended"):
                scene.pool._begin(0)
        assert scene.template.renewed == TEMPLATES - 1
        scene.end()


def test_a_template_that_has_ended_is_replaced_while_its_workers_go_on() -> None:
    scene = Scene(1)
    scene.pool.start()
    before = scene.members()
    scene.template.lost = True
    until(lambda: scene.template.renewed == 1, "another template")
    assert scene.members() == before
    scene.end()


def test_a_worker_that_ends_before_all_is_put_on_its_way_leaves_nothing_behind() -> None:
    """Versions would wait for it for ever."""
    scene = Scene(1)

    def ends(member: PoolMember) -> None:
        scene.template.ends.pop(member.pid).close()
        if member.link._threads[0].is_alive():
            until(lambda: member.gone, "its end is seen")

    scene.host.before_join = ends
    scene.pool._begin(0)
    until(lambda: not scene.members(), "it is gone")
    assert scene.host.members == []
    scene.end()


def test_a_worker_that_cannot_be_sent_all_ends_and_its_place_is_free(scene: Scene) -> None:
    pid = scene.members()[0].pid
    scene.template.ends.pop(pid).close()
    until(lambda: len(scene.members()) == 1, "one is gone")
    scene.host.fails = True
    with pytest.raises(OSError, match="too many"):
        scene.pool._begin(0)
    end = scene.template.ends.pop(max(scene.template.ends))
    inbox = Inbox(end)
    with contextlib.suppress(Closed):
        while inbox.read():
            pass
    end.close()
    until(lambda: len(scene.members()) == 1, "nobody is there whom nobody hears")
    assert len(scene.host.members) == 1


def test_the_pool_goes_on_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(1)
    looks = itertools.count()

    def fails(_: PoolMember) -> None:
        next(looks)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(workerpool, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(scene.pool, "_look_at", fails)
    scene.pool.start()
    until(lambda: next(looks) > 3, "it looks again")
    scene.end()


def test_questions_that_nobody_answers_are_bounded() -> None:
    """Somebody asks for /model all the time, and the answer takes long."""
    answer = threading.Event()

    def asked(*_: Any) -> tuple[Any, dict[str, Any]]:
        answer.wait(PATIENCE)
        return 7, {}

    scene = Scene(1, asked)
    scene.pool._begin(0)
    (member,) = scene.members()
    before = threading.active_count()
    for n in range(200):
        scene.says(member, "ask", {"ask": n, "what": "model", "facts": None})
    inbox, answers = Inbox(scene.template.ends[member.pid]), dict[int, Any]()
    while len(answers) < 200 - MOST_ASKED:  # these are refused at once
        answers |= {m.facts["ask"]: m.facts["answer"] for m in inbox.read() if m.kind == "answer"}
    assert set(answers.values()) == {None}
    assert threading.active_count() <= before + ASKERS
    answer.set()
    while len(answers) < 200:
        answers |= {m.facts["ask"]: m.facts["answer"] for m in inbox.read() if m.kind == "answer"}
    assert list(answers.values()).count(7) == MOST_ASKED
    scene.end()


def test_nobody_waits_for_a_template_that_compiles_when_the_role_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh clone that takes minutes."""
    stop = threading.Event()
    theirs: list[socket.socket] = []

    class Process:
        """It was handed its end of the socket, and says nothing."""

        def __init__(self, argv: list[str], pass_fds: tuple[int, ...], **_: Any) -> None:
            theirs.append(socket.socket(fileno=os.dup(pass_fds[0])))

        def poll(self) -> None:
            return None

        def wait(self, *_: Any) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    template = templates.Template(Settings(), stop)
    failed: list[ServiceError] = []

    def fork() -> None:
        try:
            template.fork(0, Handles(0, 0, 0, 0, 0))
        except ServiceError as error:
            failed.append(error)

    waiting = threading.Thread(target=fork)
    waiting.start()
    theirs[0].recv(1)  # it has been asked
    stop.set()
    waiting.join(PATIENCE)
    assert failed
    template.close()
    theirs[0].close()
