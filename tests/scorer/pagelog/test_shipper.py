"""Logs of pages from the ring to the topic, whatever ends meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from millrace.basics.errors import SettingError
from millrace.contracts.events import key_of
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.pagepack import Rates
from millrace.contracts.settings import Settings
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.shipper import Drain, open_spool, rescue
from scorer.pagelog.spool import FULL, Spool
from tests.scenes.page_logs import SCHEMA, Losses, N, made

T = TypeVar("T")


class Line:
    """A ring, a spool, and the drain between them."""

    def __init__(self, folder: Path, ring: int = 1 << 20, most: int = 1 << 30, message: int = 1_000_000) -> None:
        self.lost = Losses()
        self.memory = np.zeros(ring, np.uint8)
        self.writer, self.reader = RingWriter(self.memory), RingReader(self.memory)
        self.spool = Spool(folder, most, self.lost)
        self.drain = Drain(self.spool, Rates.of(SCHEMA), message, self.lost, lambda: 0)

    def keys_and_values(self) -> list[tuple[bytes | None, bytes]]:
        found = []
        while (entry := self.spool.next()) is not None:
            found.append((entry.key, entry.value))
        return found


def test_pages_come_packed_and_in_order_under_their_users_key(tmp_path: Path) -> None:
    line = Line(tmp_path)
    pages = [made(i, i) for i in range(5)]
    for p in pages:
        assert line.writer.put(p)
    assert [line.drain.step(line.reader), line.drain.step(line.reader)] == [5, 0]
    line.memory[512:] = 255  # whoever has drained looks at the ring no more
    found = line.keys_and_values()
    assert [decode_page_log(value) for _, value in found] == pages
    assert [key for key, _ in found] == [key_of(p.user_id) for p in pages]
    assert not line.lost.pages


def test_each_lost_page_is_counted_once_with_its_exposures(tmp_path: Path) -> None:
    small = len(made(0, 1).num) * 3
    line = Line(tmp_path, ring=64 * 1024, message=small)
    with capture_logs() as said:
        for n in (1, 2 * N, 1, 2 * N, 1):
            assert line.writer.put(made(n, n))
            line.drain.step(line.reader)
        while line.writer.put(made(1, 1)):
            pass
        line.writer.put(made(3, 3))
        while line.drain.step(line.reader):
            pass
    assert line.lost.pages == {"too-large": 2, "ring-full": 2}
    assert line.lost.exposures == {"too-large": 4 * N, "ring-full": 4}
    assert [entry["reason"] for entry in said] == ["too-large", "ring-full"], "a line for the first of each"
    assert "ask for fewer items" in said[0]["detail"]


def test_beyond_the_spools_bound_every_exposure_is_counted(tmp_path: Path) -> None:
    line = Line(tmp_path, most=60_000)
    count = 60
    for number in range(count):
        assert line.writer.put(made(number, number % 7))
        line.drain.step(line.reader)
    found = [decode_page_log(value) for _, value in line.keys_and_values()]
    taken = len(found)
    assert 0 < taken < count
    assert line.lost.pages == {FULL: count - taken}
    assert line.lost.exposures[FULL] + sum(len(i.items) for i in found) == sum(i % 7 for i in range(count))


def test_a_page_that_cannot_be_packed_and_a_damaged_ring_cost_no_other_page(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.writer.put(msgspec.structs.replace(made(1), user_id=None))
    line.drain.step(line.reader)
    line.writer.put(made(2))
    line.memory[512:] = 255
    line.drain.step(line.reader)
    line.writer.put(made(3))
    line.drain.step(line.reader)
    assert [decode_page_log(value).request_id for _, value in line.keys_and_values()] == ["r3"]
    assert sum(line.lost.pages.values()) == 2


def test_where_the_spool_is(tmp_path: Path) -> None:
    spool = open_spool(Settings(data=str(tmp_path)), Losses())
    assert spool.folder.parent == tmp_path / "spool"
    spool.close()
    spool = open_spool(Settings(), Losses())
    folder = spool.folder.parent
    assert folder.exists()
    spool.close()
    del spool
    assert not folder.exists(), "what has no folder of its own leaves nothing behind"
    (tmp_path / "spool" / "0" / "lock").unlink()
    (tmp_path / "spool" / "0" / "lock").mkdir()
    with pytest.raises(SettingError, match="spool"):
        open_spool(Settings(data=str(tmp_path)), Losses())


def test_what_a_dead_feeder_had_not_drained_its_workers_write_down(tmp_path: Path) -> None:
    """Each of them finds a folder, also while the next scorer runs already."""
    lost, settings = Losses(), Settings(data=str(tmp_path))
    with contextlib.closing(open_spool(settings, lost)) as next_one:
        for first in (0, 10):
            memory = np.zeros(1 << 20, np.uint8)
            writer, reader = RingWriter(memory), RingReader(memory)
            for number in range(first, first + 4):
                writer.put(made(number))
            reader.take(1)
            reader.give_back()  # the feeder came as far as this
            rescue(settings, SCHEMA, RingReader(memory), lost)
            next_one.adopt()
        found = []
        while (entry := next_one.next()) is not None:
            found.append(decode_page_log(entry.value).request_id)
    assert found == [f"r{i}" for i in (1, 2, 3, 11, 12, 13)]
    assert not lost.pages
