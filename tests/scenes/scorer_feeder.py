"""A whole scorer in one process, without threads: a feeder's part and a worker's, and messages between them that pass
through the bytes and descriptors of the link."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from array import array
from collections.abc import Callable
from typing import Any

from learner.serving.serving_model import ServingModel
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Item, PageLog
from millrace.contracts.settings import Settings
from millrace.processes.shared import Pool
from millrace.versions.versioning import Announcement
from scorer.catalog.item_index import ItemIndex
from scorer.feeder.feeder_publisher import IndexPublisher
from scorer.feeder.primary import Primary
from scorer.feeder.state import FeederState
from scorer.feeder.towerhost import TowerHost
from scorer.feeder.versionhost import VersionHost
from scorer.ipc.link import Inbox, LinkMessage, Packet
from scorer.ipc.meters import ScorerMeters
from scorer.page.page_service import Serving
from scorer.worker.replica import Replica, attach
from tests.scenes.scorer_shop import NOW_MS, SCHEMA, Users, copied


class _Wire:
    """A socket that gives what a packet sends."""

    def __init__(self, packet: Packet) -> None:
        self._data = packet.data
        self._fds = [os.dup(region.fd) for region in packet.regions]

    def recvmsg(self, size: int, _: int) -> Any:
        data, self._data = self._data[:size], self._data[size:]
        fds, self._fds = self._fds, []
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds).tobytes())] if fds else []
        return data, ancillary, 0, None

    @property
    def left(self) -> int:
        return len(self._data)


def delivered(packet: Packet) -> LinkMessage:
    """What arrives of a packet at the other end of a link."""
    wire: Any = _Wire(packet)
    inbox = Inbox(wire)
    found: list[LinkMessage] = []
    while wire.left:
        found += inbox.read()
    (message,) = found
    return message


class Whole:
    """Feeder and worker. What the feeder sends is applied at once."""

    def __init__(self, settings: Settings, users: Users | None = None, schema: Any = SCHEMA) -> None:
        self.settings = settings
        self._users, self._schema = users or Users(), schema
        self.meters, self.sent = ScorerMeters(), list[PageLog]()
        self.stop = threading.Event()
        self.primary = Primary(settings, schema, EventClock(), lambda: NOW_MS)
        self.state = FeederState(self.primary, self.meters, self.stop)
        self.host, self.towers = VersionHost(self.state, Pool()), TowerHost(self.state)
        self.publisher = IndexPublisher(self.state, self.host, self.towers)
        self.began: Callable[[Announcement], None] = lambda _: None
        """Called with each version as it begins to serve."""
        self._start_worker()

    def replace_worker(self) -> None:
        """The worker is gone; another one starts with nothing."""
        self.host.remove(self)
        self.publisher.remove(self)
        self.towers.remove(self)
        began, self.began = self.began, lambda _: None
        self._start_worker()
        self.began = began

    def _start_worker(self) -> None:
        numbers = itertools.count()
        self.serving = Serving(
            self.settings,
            self._schema,
            EventClock(),
            self._users,
            lambda page: self.sent.append(copied(page)),
            self.meters,
            lambda: NOW_MS,
            lambda: f"request-{next(numbers)}",
        )
        self.replica = Replica(self.serving, self._attach, lambda number: self.host.serves(self, number))
        install = self.serving.install

        def installed(note: Announcement, model: Any) -> None:
            before = self.serving.note
            install(note, model)
            if before is None or before.place != note.place:
                self.began(note)

        self.serving.install = installed  # type: ignore[method-assign]
        self.host.add(self)
        self.publisher.add(self)
        self.towers.add(self)

    def put(self, packet: Packet) -> None:
        self.replica.take(delivered(packet))

    def _attach(self, message: LinkMessage) -> None:
        self.replica.attached(message, attach(self.serving.schema, message, 4, named=self.settings.model))

    # -- what tests look at -----------------------------------------------------------------------------------

    @property
    def index(self) -> ItemIndex:
        return self.primary.index

    @property
    def note(self) -> Announcement | None:
        return self.serving.note

    @property
    def model(self) -> ServingModel | None:
        found: Any = self.serving.model
        assert found is None or isinstance(found, ServingModel)
        return found

    def not_ready(self) -> str:
        """As the worker says it, once all that changed has reached it."""
        self.publisher.status()
        if self.primary.index_complete:
            self.spread()
        return self.serving.not_ready()

    @property
    def to_read(self) -> dict[str, int]:
        return self.primary.to_read

    def fold(self) -> None:
        """Everything that is staged moves into the base."""
        while self.host.fold(3):
            pass

    def spread(self) -> None:
        """What changed of the index reaches the worker, with new lists."""
        self.publisher.changes(all_of_them=True)
        self.publisher._whole = True
        self.publisher.lists()
        self.publisher.status()

    def vectors(self) -> None:
        """What there is to do about vectors is done, and has reached the worker."""
        while self.towers.step():
            pass

    def stock(self, items: list[Item]) -> None:
        """Puts items in the item tables, as their feed would."""
        self.index.put([self.index.prepare(i) for i in items])
        self.spread()
