"""Logs of pages on disk: a queue that a kill does not empty, bounded, and whose damage costs what it hit;
and the ring before it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import PageLog
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.spool import DAMAGED, DISK, FULL, Spool
from scorer.pagelog.spoolfile import RecordPlace, segments
from tests.architecture import ROOT
from tests.scenes.page_logs import Losses, page, put
from tests.scenes.scorer_shop import copied
from tests.scenes.waiting import until

MANY = 1 << 30


@contextmanager
def opened(folder: Path, most: int = MANY, lost: Losses | None = None, segment: int = 300) -> Iterator[Spool]:
    spool = Spool(folder, most, lost or Losses(), segment)
    try:
        yield spool
    finally:
        spool.close()


def number_of(entry: RecordPlace) -> int:
    number = int(entry.value.split(b"|")[0])
    assert (entry.key, entry.exposures) == (b"k%d" % number, number)
    assert set(entry.value.split(b"|")) == {b"%d" % number, b""}
    return number


def rest_of(spool: Spool) -> list[int]:
    found = []
    while (entry := spool.next()) is not None:
        found.append(number_of(entry))
    return found


def killed(folder: Path, into: Path) -> Path:
    """What a sudden end of the process that has the spool leaves: the files, without a lock."""
    return Path(shutil.copytree(folder, into))


story = st.lists(st.one_of(st.just("put"), st.just("next"), st.integers(0, 5), st.just("kill")), max_size=50)


@given(story=story, segment=st.sampled_from([1, 200, 5000]))
def test_whatever_is_not_acknowledged_comes_again_after_a_kill(story: list[str | int], segment: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "0"
        spool, count = Spool(folder, MANY, Losses(), segment), 0
        under_way: list[RecordPlace] = []
        done: set[int] = set()
        expected: list[int] = []  # what next() gives, in this order
        for step in [*story, "kill"]:
            if step == "put":
                assert put(spool, count) == ""
                expected.append(count)
                count += 1
            elif step == "next":
                entry = spool.next()
                assert (entry and number_of(entry)) == (expected.pop(0) if expected else None)
                if entry is not None:
                    again = spool.again(entry.at)
                    assert again == entry
                    under_way.append(entry)
            elif isinstance(step, int):
                if step < len(under_way):
                    entry = under_way.pop(step)
                    done.add(number_of(entry))
                    spool.acknowledge(entry.at)
                    assert spool.empty == (not under_way and not expected)
            else:
                folder = killed(folder, folder.parent / str(int(folder.name) + 1))
                spool.close()
                spool = Spool(folder, MANY, Losses(), segment)
                # All before the first that is not acknowledged is gone; what is after it may come twice.
                first = min({number_of(e) for e in under_way} | set(expected), default=count)
                expected, under_way = list(range(first, count)), []
                assert set(range(first)) <= done
        assert rest_of(spool) == expected
        spool.close()


def test_acknowledged_segments_are_deleted_and_the_bound_counts_what_is_there(tmp_path: Path) -> None:
    with opened(tmp_path, most=4000) as spool:
        taken = 0
        while not (reason := put(spool, taken)):
            taken += 1
        assert reason == FULL
        assert sum(segments(spool.folder).values()) == spool.held_bytes <= 4000
        for _ in range(taken):
            entry = spool.next()
            assert entry is not None
            spool.acknowledge(entry.at)
        assert spool.empty
        assert len(segments(spool.folder)) == 1
        assert sum(segments(spool.folder).values()) == spool.held_bytes
        assert put(spool, 99) == "", "there is room again"
        assert rest_of(spool) == [99]


@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_byte_costs_one_record(at: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as name, opened(Path(name)) as spool:
        for number in range(9):
            put(spool, number)
        sizes = segments(spool.folder)
        place = int(at * sum(sizes.values()))
        for segment, size in sizes.items():
            if place < size:
                path = spool.folder / f"{segment:012d}.log"
                raw = bytearray(path.read_bytes())
                raw[place] ^= flip
                path.write_bytes(raw)
                break
            place -= size
        lost = Losses()
        spool._lost = lost
        found = rest_of(spool)
        assert len(found) == 8
        assert found == sorted(found)
        missing = (set(range(9)) - set(found)).pop()
        assert lost.pages == {DAMAGED: 1}
        assert lost.exposures[DAMAGED] in (missing, 0)  # 0: the head itself is damaged
        assert not spool.empty


def test_a_torn_end_is_one_page_whose_exposures_are_known(tmp_path: Path) -> None:
    lost = Losses()
    with opened(tmp_path / "a", segment=10_000) as spool:
        for number in (3, 4):
            put(spool, number)
        copy = killed(tmp_path / "a", tmp_path / "b")
    last = max((copy / "0").glob("*.log"))
    os.truncate(last, last.stat().st_size - 1)
    with opened(copy, lost=lost) as spool:
        put(spool, 5)
        entries = [spool.next(), spool.next()]
        assert [number_of(e) for e in entries if e] == [3, 5]
        assert (lost.pages, lost.exposures) == ({DAMAGED: 1}, {DAMAGED: 4})
        for entry in entries:
            assert entry is not None
            spool.acknowledge(entry.at)
        assert spool.empty, "what was damaged is not waited for"


def test_a_record_that_was_damaged_after_it_was_given_is_lost_once(tmp_path: Path) -> None:
    lost = Losses()
    with opened(tmp_path, lost=lost) as spool:
        put(spool, 7)
        entry = spool.next()
        assert entry is not None
        (spool.folder / f"{entry.at[0]:012d}.log").unlink()
        assert spool.again(entry.at) is None
        assert lost.pages == {DAMAGED: 1}
        assert spool.empty


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"\xff" * 20])
def test_without_a_mark_all_comes_again(tmp_path: Path, damage: bytes) -> None:
    with opened(tmp_path / "a") as spool:
        for number in range(6):
            put(spool, number)
        entry = spool.next()
        assert entry is not None
        spool.acknowledge(entry.at)
        copy = killed(tmp_path / "a", tmp_path / "b")
    (copy / "0" / "acknowledged").write_bytes(damage)
    with opened(copy) as spool:
        assert rest_of(spool)[-5:] == [1, 2, 3, 4, 5]


def test_two_scorers_have_spools_of_their_own_and_the_next_one_takes_over_what_both_left(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        assert one.folder != two.folder
        for number in (1, 2):
            put(one, number)
        for number in (3, 4):
            put(two, number)
        for spool in (one, two):
            entry = spool.next()
            assert entry is not None
            spool.acknowledge(entry.at)
        assert rest_of(one) == [2], "nobody takes what a living scorer has"
    with opened(tmp_path) as next_one:
        assert sorted(rest_of(next_one)) == [2, 4]
        with opened(tmp_path) as another:
            assert rest_of(another) == []


def test_what_is_left_later_is_taken_over_too(tmp_path: Path) -> None:
    with opened(tmp_path) as one:
        with opened(tmp_path) as two:
            put(two, 3)
            one.adopt()
            assert rest_of(one) == []
        one.adopt()
        one.adopt()
        assert rest_of(one) == [3]


def test_what_finds_no_room_stays_where_it_is_until_there_is(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        for number in range(1, 5):
            put(one, number)
            put(two, number + 10)
        held = one.held_bytes
    lost = Losses()
    with opened(tmp_path, most=held + 300, lost=lost) as spool:
        assert spool.held_bytes <= held + 300
        found = []
        for _ in range(9):
            while (entry := spool.next()) is not None:
                found.append(number_of(entry))
                spool.acknowledge(entry.at)
            spool.adopt()
        assert found == [1, 2, 3, 4, 11, 12, 13, 14]
        assert not lost.pages


def test_a_folder_that_cannot_be_emptied_is_not_taken_over_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "not to be written to")

    with opened(tmp_path) as one:
        with opened(tmp_path) as two:
            put(two, 3)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            one.adopt()
            one.adopt()
        one.adopt()
        assert rest_of(one) == [3]


@pytest.mark.parametrize(("part", "pages"), [(None, 1), (10, 1), (None, 100)])
def test_a_full_disk_costs_the_pages_that_it_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int | None, pages: int
) -> None:
    """And leaves no heap of empty files, however long it stays full."""

    def writev(file: int, parts: list[bytes]) -> int:
        if part is None:
            raise OSError(errno.ENOSPC, "no space")
        return os.write(file, b"".join(parts)[:part])

    with opened(tmp_path) as spool:
        assert put(spool, 1) == ""
        with monkeypatch.context() as patched:
            patched.setattr("scorer.pagelog.spool.os.writev", writev)
            assert {put(spool, number) for number in range(pages)} == {DISK}
        assert len(segments(spool.folder)) <= 2
        assert put(spool, 3) == ""
        assert rest_of(spool) == [1, 3]


def test_where_the_mark_cannot_be_written_what_is_acknowledged_makes_room_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(file: int, raw: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with opened(tmp_path / "a") as spool:
        for number in range(20):
            put(spool, number)
        with monkeypatch.context() as patched:
            patched.setattr("scorer.pagelog.spoolfile.os.pwrite", pwrite)
            for _ in range(19):
                entry = spool.next()
                assert entry is not None
                spool.acknowledge(entry.at)
        assert len(segments(spool.folder)) <= 2
        copy = killed(tmp_path / "a", tmp_path / "b")
    with opened(copy) as spool:
        assert rest_of(spool)[-1] == 19, "what was acknowledged may come again; nothing is missing"


def test_a_process_without_a_free_file_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(path: Path, mode: str) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    lost = Losses()
    with opened(tmp_path, lost=lost) as spool:
        put(spool, 1)
        put(spool, 2)
        first = spool.next()
        assert first is not None
        with monkeypatch.context() as patched:
            patched.setattr("scorer.pagelog.spoolfile.Path.open", none_left)
            for read in (spool.next, lambda: spool.again(first.at)):
                with pytest.raises(OSError, match="too many"):
                    read()
        assert spool.again(first.at) == first
        assert rest_of(spool) == [2]
        assert not lost.pages


def test_a_part_of_a_record_that_a_full_disk_took_is_not_found_by_the_next_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a", segment=10_000) as spool:
        put(spool, 1)
        with monkeypatch.context() as patched:
            patched.setattr("scorer.pagelog.spool.os.writev", lambda file, parts: os.write(file, b"".join(parts)[:40]))
            assert put(spool, 2) == DISK
        put(spool, 3)
        copy = killed(tmp_path / "a", tmp_path / "b")
    lost = Losses()
    with opened(copy, lost=lost) as spool:
        assert rest_of(spool) == [1, 3]
        assert not lost.pages, "it was counted when it happened"


# -- The ring between a worker and the feeder: what goes in comes out, in order, or is counted as lost -----------------


steps = st.lists(st.one_of(st.integers(0, 12), st.just("take"), st.just("restart")), max_size=60)


@given(steps=steps, size=st.sampled_from([1024, 2048, 5000]), most=st.integers(1, 5))
def test_a_ring_is_a_queue_that_counts_what_it_does_not_take(steps: list[int | str], size: int, most: int) -> None:
    memory = np.zeros(size, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    waiting: list[PageLog] = []
    lost = [0, 0]
    for number, step in enumerate([*steps, *["take"] * len(steps)]):
        if step == "restart":
            writer = RingWriter(memory)  # the worker ended, and another one has its ring
        elif step == "take":
            found = [copied(i) for i in reader.take(most)]
            reader.give_back()
            expected, waiting = waiting[:most], waiting[most:]
            assert found == expected
        elif isinstance(step, int):
            made = page(number, step)
            if writer.put(made):
                waiting.append(made)
            else:
                lost[0] += 1
                lost[1] += step
                assert waiting or step > 2, "an empty ring takes a small page"
    assert not waiting
    assert reader.lost() == tuple(lost)
    assert reader.lost() == (0, 0)


def test_room_comes_back_only_when_it_is_given_back() -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    count = 0
    while writer.put(page(count, 4)):
        count += 1
    taken = reader.take(count)
    assert not writer.put(page(99, 4)), "what was taken is still looked at"
    assert [copied(i) for i in taken] == [page(i, 4) for i in range(count)]
    reader.give_back()
    assert writer.put(page(99, 4))


def test_pages_that_are_read_at_once_take_the_first_part_of_the_memory_alone() -> None:
    memory = np.zeros(64 << 10, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    for number in range(1000):
        assert writer.put(page(number, 4))
        assert [i.request_id for i in reader.take(5)] == [f"r{number}"]
        reader.give_back()
    assert not memory[len(memory) // 2 :].any()


def test_whoever_waits_for_pages_hears_of_each() -> None:
    bell = os.eventfd(0)
    try:
        writer = RingWriter(np.zeros(4096, np.uint8), bell)
        for number in range(3):
            assert writer.put(page(number, 4))
        assert os.eventfd_read(bell) == 3
    finally:
        os.close(bell)


@pytest.mark.parametrize(("at", "value"), [(256, 0xFF), (256 + 7, 1), (264, 0xFF), (272, 0xC1)])
def test_damage_is_reported_and_the_next_page_comes(at: int, value: int) -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.put(page(1, 4))
    memory[at] = value
    with pytest.raises(ValueError, match="no record"):
        reader.take(5)
    reader.give_back()
    writer.put(page(2, 4))
    assert [i.request_id for i in reader.take(5)] == ["r2"]


def test_pages_before_a_damaged_one_are_given_first() -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.put(page(1, 4))
    writer.put(page(2, 4))
    place = 256 + int(memory[:256].view(np.uint64)[0])  # of the third
    writer.put(page(3, 4))
    memory[place] = 0xFF
    assert [i.request_id for i in reader.take(5)] == ["r1", "r2"]
    reader.give_back()
    with pytest.raises(ValueError, match="no record"):
        reader.take(5)


def test_too_small_a_ring_is_an_error() -> None:
    with pytest.raises(ValueError, match="100 bytes"):
        RingWriter(np.zeros(100, np.uint8))


WRITER = """
import os, sys
import numpy as np
from scorer.pagelog.ring import RingWriter
from tests.scenes.page_logs import page
writer = RingWriter(np.memmap(sys.argv[1], np.uint8, "r+"))
for number in range(int(sys.argv[2])):
    made = page(number, number % 20)
    while not writer.put(made):
        os.sched_yield()
"""


def test_pages_cross_between_two_processes(tmp_path: Path) -> None:
    count, shared = 400, tmp_path / "ring"
    shared.write_bytes(bytes(16 * 1024))
    reader, seen = RingReader(np.memmap(shared, np.uint8, "r+")), list[PageLog]()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(shared), str(count)], cwd=ROOT) as child:

        def took() -> bool:
            found = [copied(i) for i in reader.take(8)]
            reader.give_back()
            seen.extend(found)
            return len(seen) >= count or child.poll() not in (0, None)

        until(took, "all pages came through", every=0)
    assert child.returncode == 0
    assert seen == [page(i, i % 20) for i in range(count)]
