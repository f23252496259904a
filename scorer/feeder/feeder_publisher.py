# shell
"""Keeps the workers' item tables, recall's lists and readiness up to date with the feeder's index.

::

    each 50 ms   what changed of the index ──► "items", in slices        what there is to read ──► "status"
    each second  hotness, lists ─────────────► "lists"                   some dead window keys are dropped
    a worker starts: the whole index, the lists, what was kept (:meth:`IndexPublisher.keep`)
    changed rows, once they are queued for each worker ──► the thread that makes vectors of items

A list is sent after the rows that it names. One lock covers computing and queueing, so a worker gets messages in the
order of the changes.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog

from millrace.basics.errors import one_line
from millrace.processes.priority import step_back
from scorer.feeder.state import FeederState, Stopped
from scorer.feeder.towerhost import TowerHost
from scorer.feeder.versionhost import VersionHost
from scorer.ipc.link import Packet, Receiver
from scorer.ipc.meters import STAGED

log = structlog.get_logger("scorer")

CHANGE_SECONDS, NEXT_SLICE_SECONDS = 0.05, 0.004
"""Between two checks for changes while messages come; between two slices while there are more."""
ROWS, SLOTS = 1024, 4096
"""In a slice: a worker needs about half a millisecond for it."""
FIRST_ROWS, FIRST_SLOTS = 16_384, 65_536
"""In a slice for workers that rank no pages yet."""
LIST_SECONDS = 1.0
EXPIRE_PARTS = 64


class IndexPublisher(threading.Thread):
    def __init__(
        self,
        state: FeederState,
        host: VersionHost,
        *towers: TowerHost,
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self.state, self.primary, self.stop, self._host = state, state.primary, state.stop, host
        self._towers = towers
        self._workers: set[Receiver] = set()
        self._kept: dict[str, Packet] = {}
        self._sending = threading.RLock()
        self._status: dict[str, Any] = {}
        self._lists: Packet | None = None
        self._whole = False  # the index has been sent to whoever was there
        self._unsent: dict[str, Any] = {}  # changes that could not be sent: the index tells of each once
        self._part = 0

    # -- workers ----------------------------------------------------------------------------------------------

    def add(self, worker: Receiver) -> None:
        with self._sending:
            self._workers.add(worker)
            primary, start = self.primary, 0
            while arrays := self.state.alone(primary.index.whole, start, start + FIRST_ROWS, primary.now_ms):
                worker.put(Packet("items", None, arrays))
                start += FIRST_ROWS
            if self._lists is not None:
                worker.put(self._lists)
            for packet in self._kept.values():
                worker.put(packet)
            worker.put(Packet("status", self._status or self._now()))

    def remove(self, worker: Receiver) -> None:
        with self._sending:
            self._workers.discard(worker)

    def keep(self, name: str, packet: Packet) -> None:
        """Sends ``packet`` to all workers after the rows that it may name, and to each new worker until another packet
        has this name. Any thread may call this."""
        with self._sending:
            if self._whole:
                self.changes(all_of_them=True)
            self._kept[name] = packet
            self._put(packet)

    # -- the thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        step_back()
        lists_at = 0.0
        while not self.stop.is_set():
            pause = CHANGE_SECONDS
            self.state.changed.clear()
            try:
                if self.primary.index_complete:
                    if not self._whole:
                        self.changes(FIRST_ROWS, FIRST_SLOTS, all_of_them=True)
                        self._whole = True
                    elif self.changes():
                        pause = NEXT_SLICE_SECONDS
                    if time.monotonic() >= lists_at:
                        self.lists()
                        self.expire()
                        lists_at = time.monotonic() + LIST_SECONDS
                self.status()
            except Stopped:
                return
            except Exception as error:  # what workers have serves on
                self.state.meters.error("lists")
                log.error("the workers' item tables or lists could not be renewed", error=one_line(error))
                pause = LIST_SECONDS
            STAGED.set(self._host.unfolded)
            if not self.stop.wait(pause) and pause == CHANGE_SECONDS:
                self.state.changed.wait(max(0.0, lists_at - time.monotonic()))

    def changes(self, rows: int = ROWS, slots: int = SLOTS, all_of_them: bool = False) -> bool:
        """Sends a slice of the index's changes, or all of them; returns whether there were any."""
        found = False
        with self._sending:
            while arrays := self._unsent or self.state.alone(
                self.primary.index.changes, self.primary.now_ms, rows, slots
            ):
                found, self._unsent = True, arrays
                self._put(Packet("items", None, arrays))
                self._unsent = {}
                for towers in self._towers:
                    towers.take(arrays)
                if not all_of_them:
                    break
        return found

    def lists(self) -> None:
        """Sorts recall's lists again, and sends them after the rows that they name."""
        while self.state.alone(self.primary.refresh_hot):
            pass
        lists = self.state.alone(self.primary.sorting)()
        with self._sending:
            self.changes(all_of_them=True)
            self._lists = Packet("lists", None, lists.arrays())
            self._put(self._lists)

    def expire(self) -> None:
        """Drops window keys with empty windows in a part of the item-side counts."""
        primary, part = self.primary, self._part
        self.state.alone(primary.index.counts.expire, primary.now_ms, part / EXPIRE_PARTS, (part + 1) / EXPIRE_PARTS)
        self._part = (part + 1) % EXPIRE_PARTS

    def status(self) -> None:
        """Sends progress in the topics and the newest event time, if changed."""
        now = self._now()
        if now != self._status:
            with self._sending:
                self._status = now
                self._put(Packet("status", now))

    # -- within -----------------------------------------------------------------------------------------------

    def _now(self) -> dict[str, Any]:
        """Progress in the topics. Items count as read once they are in the item tables."""
        to_read = dict(self.primary.to_read)
        if not self._whole and not to_read:
            to_read = {"items": 0}
        return {"to_read": to_read, "newest_counted_ms": self.primary.newest_counted_ms}

    def _put(self, packet: Packet) -> None:
        for worker in self._workers:
            worker.put(packet)
