"""Versions over links, in threads: workers that come and go, snapshots between deltas, folds beside pages."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.serving.staging import ModelWriter
from millrace.contracts.clock import EventClock
from millrace.contracts.settings import Settings
from millrace.processes.shared import Pool
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement
from scorer.feeder.primary import Primary
from scorer.feeder.state import FeederState
from scorer.feeder.versionhost import VersionHost
from scorer.ipc.link import Closed, FeederLink, Inbox, Packet
from scorer.ipc.meters import ScorerMeters
from scorer.worker.replica import Replica, attach
from tests.scenes.scorer_shop import NOW_MS
from tests.scenes.torn_pages import SCHEMA, SPEC, Versions
from tests.scenes.waiting import PATIENCE, until


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


class Shop:
    """A host, the feed of its versions, and the truth of each."""

    def __init__(self, folder: Path) -> None:
        self.stop = threading.Event()
        self.meters = ScorerMeters()
        self.primary = Primary(Settings(data=str(folder)), SCHEMA, EventClock(), lambda: NOW_MS)
        self.host = VersionHost(FeederState(self.primary, self.meters, self.stop), Pool())
        self.versions = Versions()
        self.truth: dict[int, Any] = {}
        self.image = Image({}, {})
        self.torn: list[str] = []
        self.pages = 0

    def next(self) -> tuple[Announcement, Image]:
        image, truth = self.versions.next()
        number = self.versions.number
        self.truth[number] = truth
        self.truth.pop(number - 200, None)
        return Announcement("delta", 1, number, "c", "", "", "", 0, SCHEMA.id, SPEC, NOW_MS, 0, NOW_MS), image

    def snapshot(self) -> None:
        note, change = self.next()
        self.image = self.image.apply(change)
        writer = ModelWriter.of(SCHEMA, SPEC, self.image, None, self.host.pool.allocate)
        self.host.install(note, writer, 0, [])

    def delta(self) -> None:
        note, change = self.next()
        self.image = self.image.apply(change)
        self.host.patch(note, change, [])


class Guest(threading.Thread):
    """A worker in a thread of its own: messages come over a socket, and between two of them there are pages."""

    def __init__(self, shop: Shop, leave_after: int) -> None:
        super().__init__(daemon=True)
        self.shop, self._left = shop, leave_after
        ours, self.socket = socket.socketpair()
        self.gone = threading.Event()
        self.link = FeederLink(ours, lambda m: shop.host.serves(self, int(m.facts)), self._ended)
        self.replica = Replica(self, self._attach, self._serves)  # type: ignore[arg-type]
        self.note: Announcement | None = None
        self.model: Any = None
        self._rng = np.random.default_rng(leave_after)
        shop.host.add(self)
        self.link.start()

    def put(self, packet: Packet) -> None:
        self.link.put(packet)

    def install(self, note: Announcement, model: Any) -> None:
        self.note, self.model = note, model

    def _serves(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the feeder has closed the link
            Packet("serves", number).send(self.socket)

    def _attach(self, message: Any) -> None:
        self.replica.attached(message, attach(SCHEMA, message, 20, self.replica.model))

    def _ended(self) -> None:
        self.shop.host.remove(self)
        self.gone.set()

    def run(self) -> None:
        inbox = Inbox(self.socket)
        try:
            while self._left > 0:
                for message in inbox.read():
                    self.replica.take(message)
                    self._left -= 1
                    self._page()
        except Closed:
            pass
        finally:
            inbox.close()
            self.socket.close()
            self.model = None

    def _page(self) -> None:
        if self.note is None:
            return
        shop, truth = self.shop, self.shop.truth[self.note.version]
        first = truth.first
        ids = self._rng.integers(max(1, first - 60), first + 4000, 20)
        got = self.model.score(ids[:, None], np.zeros((20, 1), np.float32))
        shop.pages += 1
        wanted = truth.scores(ids, self.model.form.inputs.prior_logit)
        if not np.array_equal(got, wanted):
            shop.torn.append(f"version {self.note.version}: {(got != wanted).sum()} of 20")


def walk(shop: Shop) -> None:
    """250 versions, of which some are snapshots, and about forty workers."""
    shop.snapshot()
    shop.host.start()
    rng = np.random.default_rng(1)
    guests: list[Guest] = []
    for n in range(1, 250):
        guests = [guest for guest in guests if not guest.gone.is_set()]
        if len(guests) < 3:
            guests.append(Guest(shop, int(rng.integers(1, 60))))
            guests[-1].start()
        if n % 60 == 0:
            shop.snapshot()
        else:
            shop.delta()
    for guest in guests:
        guest.link.close()
    for guest in guests:
        assert guest.gone.wait(PATIENCE)
        guest.join()
    until(lambda: shop.host.unfolded == 0, "all is folded")
    shop.stop.set()


@pytest.mark.slow
def test_workers_come_and_go_while_versions_are_staged_and_folded_and_nothing_is_torn_or_left(tmp_path: Path) -> None:
    before = open_files()
    shops = [Shop(tmp_path)]
    walk(shops[0])
    assert shops[0].torn == []
    assert shops[0].pages > 300
    assert not shops[0].meters.errors
    shops.clear()
    until(lambda: open_files() == before, "all that was shared is given back")
