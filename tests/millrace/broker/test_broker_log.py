"""The log of a partition against a plain list: appends, reads, times, retention, deletion, compaction, restarts."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kafka.record.memory_records import MemoryRecords

from millrace.broker import batches, compact, segment
from millrace.broker.batches import HEAD_BYTES, Unreadable, read_head, records_of
from millrace.broker.codes import (
    CORRUPT_MESSAGE,
    INVALID_PRODUCER_EPOCH,
    INVALID_RECORD,
    MESSAGE_TOO_LARGE,
    OFFSET_OUT_OF_RANGE,
    OUT_OF_ORDER_SEQUENCE_NUMBER,
    UNSUPPORTED_COMPRESSION_TYPE,
    UNSUPPORTED_FOR_MESSAGE_FORMAT,
    BrokerRefusal,
)
from millrace.broker.log import Limits, PartitionLog
from millrace.broker.producers import Producers
from tests.scenes.record_batches import CODECS, Row, batch, flipped, one, put


def read(log: PartitionLog, offset: int, count: int = 1 << 20) -> list[tuple[int, bytes | None, bytes | None]]:
    """(offset, key, value) of what one fetch brings from ``offset`` on, read by kafka-python."""
    found = []
    records = MemoryRecords(log.fetch(offset, count))
    while records.has_next():
        whole = records.next_batch()
        assert whole.validate_crc()
        found += [(r.offset, r.key, r.value) for r in whole if r.offset >= offset]
    return found


def read_on(log: PartitionLog, offset: int, count: int = 1 << 20) -> list[tuple[int, bytes | None, bytes | None]]:
    """All from ``offset`` to the end, by as many fetches as it takes."""
    found: list[tuple[int, bytes | None, bytes | None]] = []
    while offset < log.end:
        some = read(log, offset, count)
        if not some:  # the rest of a batch that compaction has thinned: clients step over it by the batch's head
            data = log.fetch(offset, count)
            if not data:
                break
            offset = max(offset + 1, read_head(data).last + 1)
            continue
        found += some
        offset = some[-1][0] + 1
    return found


# ------------------------------------------------------------------ what is taken


VALID = batch([(b"k", b"value", 5), (None, b"w", 7)])


def resealed(data: bytes, at: int, form: str, value: int) -> bytes:
    """The batch with one field of its head changed, and the checksum that fits."""
    out = bytearray(data)
    struct.pack_into(form, out, at, value)
    struct.pack_into(">I", out, 17, crc32c.crc32c(memoryview(out)[21:]))
    return bytes(out)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", CORRUPT_MESSAGE),
        (VALID[:-1], CORRUPT_MESSAGE),
        (VALID + b"x", CORRUPT_MESSAGE),
        (VALID + VALID, CORRUPT_MESSAGE),
        (VALID[:40], CORRUPT_MESSAGE),
        (flipped(VALID, len(VALID) - 1), CORRUPT_MESSAGE),
        (flipped(VALID, 22), CORRUPT_MESSAGE),
        (VALID[:16] + b"\1" + VALID[17:], UNSUPPORTED_FOR_MESSAGE_FORMAT),
        (bytes(2000), MESSAGE_TOO_LARGE),
        (resealed(VALID, 21, ">h", 5), UNSUPPORTED_COMPRESSION_TYPE),
        (resealed(VALID, 21, ">h", 16), INVALID_RECORD),  # transactional
        (resealed(VALID, 21, ">h", 32), INVALID_RECORD),  # a control batch
        (resealed(VALID, 57, ">i", 0), INVALID_RECORD),  # no records
        (resealed(VALID, 57, ">i", 3), INVALID_RECORD),
        (resealed(VALID, 23, ">i", -1), INVALID_RECORD),
    ],
)
def test_what_is_no_valid_batch_is_refused_with_kafkas_code_and_leaves_no_trace(
    data: bytes, code: int, tmp_path: Path
) -> None:
    log = PartitionLog(tmp_path, Limits(message_bytes=1500), 0)
    with pytest.raises(BrokerRefusal) as refused:
        put(log, data)
    assert refused.value.code == code
    assert (log.end, log.size) == (0, 0)
    assert put(log, VALID) == 0


def test_batches_are_kept_byte_for_byte_but_for_their_place(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    for codec in CODECS:
        sent = batch([(b"k", bytes(1000), 5)] * 3, codec)
        base = put(log, sent)
        kept = log.fetch(base, 1 << 20)
        assert kept[16:] == sent[16:]
        assert read_head(kept).base == base
        assert [(r.offset, r.key) for r in records_of(kept)] == [(base + i, b"k") for i in range(3)]


# ------------------------------------------------------------------ reading


def test_a_fetch_brings_at_least_one_batch_and_no_more_bytes_than_asked_for_otherwise(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    for number in range(50):
        put(log, one(bytes(100 * number)))
    size = len(one(bytes(100 * 30)))
    assert [r[0] for r in read(log, 30, 1)] == [30]
    assert len(log.fetch(30, 1)) == size
    assert len(log.fetch(0, 5000)) == 5000
    assert log.fetch(50, 5000) == b""
    for wrong in (-1, 51):
        with pytest.raises(BrokerRefusal) as refused:
            log.fetch(wrong, 1)
        assert refused.value.code == OFFSET_OUT_OF_RANGE


def test_to_find_an_offset_reads_a_bounded_piece_however_many_batches_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    sizes: list[int] = []
    whole = segment.Segment.read

    def counted(self: segment.Segment, position: int, count: int) -> bytes:
        found = whole(self, position, count)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(segment.Segment, "read", counted)
    for number in range(5000):
        put(log, one(b"%d" % number))
    for offset in range(0, 5000, 61):
        sizes.clear()
        assert read(log, offset, 100)[0] == (offset, None, b"%d" % offset)
        assert len(sizes) <= 3
        assert sum(sizes) <= segment.INDEX_BYTES + 1000
    entries = len(log.segments[-1]._positions)
    assert entries <= log.size / segment.INDEX_BYTES + 1


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), max_size=12),
    st.integers(-1, 52),
    st.integers(0, 20),
    st.sampled_from([200, 100_000]),
)
def test_the_offset_of_a_time_is_the_first_record_of_that_time_or_later(
    times: list[list[int]], asked: int, start: int, segment_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = PartitionLog(Path(folder), Limits(segment_bytes=segment_bytes), 0)
        for some in times:
            put(log, batch([(None, b"v", time_ms) for time_ms in some], "zstd"))
        flat = list(itertools.chain.from_iterable(times))
        assert (log.newest() or (0, -1))[1] == max(flat, default=-1)
        start = log.trim(min(start, len(flat)))
        expected = next(((at, time_ms) for at, time_ms in enumerate(flat) if at >= start and time_ms >= asked), None)
        assert log.offset_since(asked) == expected


# ------------------------------------------------------------------ forgetting


def test_age_counts_from_when_the_broker_took_a_record_and_even_the_open_segment_goes(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(segment_bytes=1, retention_ms=100), 0)
    for now_ms in (0, 50, 90):
        put(log, one(time_ms=10**12), now_ms)
    assert log.expire(100) == 0
    log.expire(151)
    assert (log.start, log.end) == (2, 3)
    log.expire(10_000)
    assert (log.start, log.end, log.size) == (3, 3, 0)
    log.close()
    again = PartitionLog(tmp_path, Limits(), 0)
    assert (again.start, again.end) == (3, 3), "a log that expired whole keeps its end over a restart"
    assert put(again, one(), 10_000) == 3
    again.close()
    again = PartitionLog(tmp_path, Limits(), 0)
    assert (again.start, again.end) == (3, 4)


def test_a_log_stays_within_its_bound_and_a_segment(tmp_path: Path) -> None:
    bound = 64 * 1024
    log = PartitionLog(tmp_path, Limits(retention_bytes=bound), 0)
    for number in range(3000):
        put(log, one(bytes(100)), number)
        if number % 50 == 0:
            log.expire(number)
            assert log.size <= bound + bound // 8
    assert log.size > bound // 2
    assert [r[0] for r in read_on(log, log.start)] == list(range(log.start, 3000))
    assert len(list(tmp_path.glob("*.log"))) == len(log.segments)


def test_no_bound_means_none(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(segment_bytes=1, retention_bytes=-1, retention_ms=-1), 0)
    for _ in range(20):
        put(log, one())
    assert log.expire(10**15) == 0
    assert (log.start, log.end) == (0, 20)


def test_deleted_records_stay_deleted_over_a_restart_and_their_files_go(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(segment_bytes=1), 0)
    for _ in range(10):
        put(log, one())
    assert log.trim(4) == 4
    assert log.trim(2) == 4, "what is deleted does not come back"
    assert len(log.segments) == 6
    with pytest.raises(BrokerRefusal):
        log.fetch(3, 1)
    with pytest.raises(BrokerRefusal):
        log.trim(11)
    log.close()
    again = PartitionLog(tmp_path, Limits(), 0)
    assert again.start == 4
    assert again.trim(-1) == 10
    assert again.size == 0
    assert put(again, one()) == 10


# ------------------------------------------------------------------ producers


def numbered(sequence: int, count: int = 1, producer: int = 7, epoch: int = 0) -> bytes:
    return batch([(None, b"v", 1)] * count, producer=producer, sequence=sequence, epoch=epoch)


def test_a_batch_that_comes_twice_is_written_once_and_has_its_first_offset(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    places = [put(log, numbered(sequence, 2)) for sequence in (0, 2, 4, 6, 8)]
    assert places == [0, 2, 4, 6, 8]
    assert [put(log, numbered(sequence, 2)) for sequence in (8, 0, 4)] == [8, 0, 4]
    assert log.end == 10
    log.close()
    again = PartitionLog(tmp_path, Limits(), 0)
    assert put(again, numbered(6, 2)) == 6, "a restart knows them still"
    assert put(again, numbered(10, 2)) == 10


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (numbered(11), OUT_OF_ORDER_SEQUENCE_NUMBER),  # one is missing
        (numbered(3), OUT_OF_ORDER_SEQUENCE_NUMBER),  # long ago, or with another end
        (numbered(5, epoch=2), OUT_OF_ORDER_SEQUENCE_NUMBER),  # a new epoch begins with 0
        (numbered(10, epoch=0), INVALID_PRODUCER_EPOCH),
    ],
)
def test_a_batch_out_of_order_is_refused(data: bytes, code: int, tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    put(log, numbered(0, 10, epoch=1))
    with pytest.raises(BrokerRefusal) as refused:
        put(log, data if read_head(data).producer_epoch != 0 or code == INVALID_PRODUCER_EPOCH else restamped(data))
    assert refused.value.code == code
    assert log.end == 10
    assert put(log, numbered(10, epoch=1)) == 10


def restamped(data: bytes) -> bytes:
    """The same batch in epoch 1."""
    return resealed(data, 51, ">h", 1)


def test_numbers_go_round_after_the_largest() -> None:
    known = Producers()
    largest = (1 << 31) - 1
    known.note(read_head(numbered(largest - 1, 2)), 0)
    assert known.offset_of(read_head(numbered(0))) is None
    known.note(read_head(numbered(largest, 3)), 2)
    assert known.offset_of(read_head(numbered(largest, 3))) == 2
    assert known.offset_of(read_head(numbered(2))) is None


def test_what_is_remembered_of_producers_is_bounded() -> None:
    known = Producers()
    for producer in range(10_000):
        known.note(read_head(numbered(0, producer=producer)), producer)
    assert len(known) == 4096
    assert known.offset_of(read_head(numbered(5, producer=1))) is None, "what is forgotten is believed"


# ------------------------------------------------------------------ restarts


def filled(folder: Path, count: int = 5) -> tuple[PartitionLog, list[int]]:
    """A closed log of batches of different length, and where each of them ends."""
    log = PartitionLog(folder, Limits(), 0)
    ends = []
    for number in range(count):
        put(log, one(b"%d" % number * (number + 1)))
        ends.append(log.size)
    log.close()
    return log, ends


@given(st.data())
def test_a_torn_end_is_cut_off_behind_the_last_whole_batch(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, ends = filled(Path(folder))
        path = log.segments[-1].path
        at = data.draw(st.integers(0, ends[-1] - 1))
        path.write_bytes(path.read_bytes()[:at])
        whole = sum(end <= at for end in ends)
        again = PartitionLog(Path(folder), Limits(), 0)
        assert again.end == whole
        assert (again.torn_bytes, again.damaged_bytes) == (at - ([0, *ends][whole]), 0)
        assert put(again, one(b"new")) == whole
        assert [r[2] for r in read_on(again, 0)] == [*(b"%d" % n * (n + 1) for n in range(whole)), b"new"]


@given(st.data())
def test_a_damaged_batch_is_skipped_alone_and_its_bytes_are_kept(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, ends = filled(Path(folder))
        path = log.segments[-1].path
        at = data.draw(st.integers(0, ends[-1] - 1))
        before = path.read_bytes()
        path.write_bytes(flipped(before, at))
        hit = sum(end <= at for end in ends)
        within = at - [0, *ends][hit]
        again = PartitionLog(Path(folder), Limits(), 0)
        rows = {r[0]: r[2] for r in read_on(again, 0)}
        sent = {n: b"%d" % n * (n + 1) for n in range(5)}
        assert rows.items() >= {n: sent[n] for n in range(hit)}.items(), "all before it"
        if within >= 17:  # the checksum, or what it covers
            assert rows == {n: value for n, value in sent.items() if n != hit}
            assert path.with_suffix(".damaged").read_bytes() == flipped(before, at)[[0, *ends][hit] : ends[hit]]
        kept = path.with_suffix(".damaged").stat().st_size if path.with_suffix(".damaged").exists() else 0
        assert again.damaged_bytes + again.torn_bytes == kept == ends[-1] - again.size, "no byte goes, none in silence"
        if within >= HEAD_BYTES:
            again.close()
            again = PartitionLog(Path(folder), Limits(), 0)
            assert again.end == 5, "offsets are not given twice"
        place = put(again, one(b"new"))
        assert read(again, place) == [(place, None, b"new")]


@pytest.mark.parametrize("hit", range(4))
def test_a_flipped_bit_of_an_offset_costs_its_batch_alone(hit: int, tmp_path: Path) -> None:
    """The checksum does not cover a batch's base offset; only what stands around it tells."""
    log, ends = filled(tmp_path)
    log.close()
    path, sent = log.segments[-1].path, {n: b"%d" % n * (n + 1) for n in range(5)}
    before = path.read_bytes()
    for bit in range(64):
        raw = bytearray(before)
        raw[[0, *ends][hit] + bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(raw))
        again = PartitionLog(tmp_path, Limits(), 0)
        assert {r[0]: r[2] for r in read_on(again, 0)} == {n: value for n, value in sent.items() if n != hit}, bit
        again.close()


def test_an_append_that_fails_half_way_leaves_no_half_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = PartitionLog(tmp_path, Limits(), 0)
    put(log, one(b"first"))
    size = log.size

    def full(fd: int, pieces: tuple[bytes, memoryview]) -> int:
        os.write(fd, pieces[0])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(BrokerRefusal, match="No space left"):
            put(log, one(b"second"))
    assert log.segments[-1].path.stat().st_size == size
    assert put(log, one(b"third")) == 1
    assert [r[2] for r in read_on(log, 0)] == [b"first", b"third"]


# ------------------------------------------------------------------ compaction


def compacted(log: PartitionLog, now_ms: int = 0) -> None:
    closed = list(log.segments[:-1])
    if closed:
        assert compact.adopt(log, closed, compact.merge(closed, now_ms - log.limits.tombstone_ms), now_ms)


COMPACT = Limits(compact=True, segment_bytes=400, tombstone_ms=1000)


@pytest.mark.parametrize("codec", list(CODECS))
def test_of_each_key_the_newest_record_stays_at_its_offset(codec: str, tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, COMPACT, 0)
    for number in range(60):
        put(log, batch([(b"k%d" % (number % 7), b"%d" % number, 1), (b"once%d" % number, b"x", 1)], codec))
    before = {key: (offset, value) for offset, key, value in read_on(log, 0)}
    assert compact.due(log)
    size = log.size
    compacted(log)
    assert log.size < size
    assert not compact.due(log)
    rows = read_on(log, 0)
    assert {key: (offset, value) for offset, key, value in rows} == before
    assert len(rows) < 60 + 7 + 30
    assert (log.start, log.end) == (0, 120)
    log.close()
    again = PartitionLog(tmp_path, COMPACT, 0)
    assert read_on(again, 0) == rows
    assert again.end == 120


def test_a_tombstone_goes_once_every_reader_can_have_met_it(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, COMPACT, 0)
    put(log, one(b"v", key=b"gone"))
    put(log, batch([(b"gone", None, 1)]))
    log._roll(0)
    put(log, one(key=b"other"))
    compacted(log, 500)
    assert read_on(log, 0)[0] == (1, b"gone", None)
    compacted(log, 5000)
    assert [r[1] for r in read_on(log, 0)] == [b"other"]


def test_what_cannot_be_taken_apart_is_kept_whole(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, COMPACT, 0)
    odd = resealed(batch([(b"k", b"old", 1)]), 21, ">h", 3)  # says lz4, which is not read here
    with pytest.raises(Unreadable):
        records_of(odd)
    put(log, odd)
    put(log, one(b"new", key=b"k"))
    log._roll(0)
    compacted(log)
    assert log.fetch(0, len(odd))[16:] == odd[16:]
    assert read(log, 1) == [(1, b"k", b"new")]


def test_a_batch_that_inflates_without_end_is_kept_whole(tmp_path: Path) -> None:
    bomb = batch([(b"k", bytes(batches.INFLATED_BYTES + 1), 1)], "zstd")
    assert len(bomb) < 100_000
    with pytest.raises(Unreadable, match="when inflated"):
        records_of(bomb)


def test_a_crash_between_renaming_and_removing_leaves_nothing_twice(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, COMPACT, 0)
    for number in range(40):
        put(log, one(b"%d" % number, key=b"k%d" % (number % 3)))
    newest = {key: value for _, key, value in read_on(log, 0)}
    closed = list(log.segments[:-1])
    assert len(closed) > 2
    path = compact.merge(closed, 0)
    path.replace(closed[0].path)  # and then the process ends
    log.close()
    again = PartitionLog(tmp_path, COMPACT, 0)
    assert sorted(tmp_path.glob("*.log")) == [closed[0].path, log.segments[-1].path], "the rest are leftovers"
    rows = read_on(again, 0)
    assert {key: value for _, key, value in rows} == newest
    assert [r[0] for r in rows] == sorted({r[0] for r in rows})
    assert again.end == 40


def test_compaction_gives_way_when_the_log_was_deleted_beneath_it(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, COMPACT, 0)
    for _ in range(20):
        put(log, one(key=b"k"))
    closed = list(log.segments[:-1])
    path = compact.merge(closed, 0)
    log.trim(10)
    assert not compact.adopt(log, closed, path, 0)
    assert not path.exists()
    assert [r[0] for r in read_on(log, 10)] == list(range(10, 20))


@given(st.binary(max_size=200))
def test_random_bytes_in_a_record_set_are_refused(data: bytes) -> None:
    with pytest.raises(BrokerRefusal):
        batches.admit(memoryview(data), 1 << 20)


@given(st.binary(min_size=0, max_size=60), st.integers(1, 5))
def test_random_bytes_as_records_are_unreadable_or_read(body: bytes, records: int) -> None:
    """A batch with a right checksum around anything at all: what takes it apart ends, and raises nothing else."""
    head = bytearray(VALID[:HEAD_BYTES])
    struct.pack_into(">i", head, 8, HEAD_BYTES - 12 + len(body))
    sealed = resealed(bytes(head) + body, 57, ">i", records)
    try:
        found = records_of(sealed)
    except Unreadable:
        return
    assert len(found) == records


# ------------------------------------------------------------------ any order of all of it


@dataclass
class Model:
    """What a log is: a list with a beginning."""

    rows: list[tuple[bytes | None, bytes | None]] = field(default_factory=list)
    start: int = 0


class LogMachine(RuleBasedStateMachine):
    """Appends, deletions, retention and restarts in any order: the log holds what the list holds."""

    compact = False

    @initialize(segment_bytes=st.sampled_from([1, 300, 100_000]))
    def begin(self, segment_bytes: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.limits = Limits(segment_bytes=segment_bytes, compact=self.compact, retention_ms=10, tombstone_ms=10**9)
        self.now_ms = 0
        self.log = PartitionLog(Path(self.folder.name), self.limits, 0)
        self.model = Model()
        self.sequence = 0

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            self.folder.cleanup()

    @rule(
        keys=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4), codec=st.sampled_from(list(CODECS))
    )
    def append(self, keys: list[bytes], codec: str) -> None:
        rows: list[Row] = [(key, b"%d" % (len(self.model.rows) + n), self.now_ms) for n, key in enumerate(keys)]
        sent = batch(rows, codec, producer=3, sequence=self.sequence, epoch=0)
        assert put(self.log, sent, self.now_ms) == len(self.model.rows)
        assert put(self.log, sent, self.now_ms) == len(self.model.rows), "sent again, written once"
        self.sequence += len(rows)
        self.model.rows += [(key, value) for key, value, _ in rows]

    @rule(by=st.integers(1, 8))
    def time_passes(self, by: int) -> None:
        self.now_ms += by

    @rule()
    def expire(self) -> None:
        self.log.expire(self.now_ms)
        assert self.model.start <= self.log.start <= self.log.end
        if self.compact:
            assert self.log.start == self.model.start
        self.model.start = self.log.start

    @rule(share=st.floats(0, 1))
    def delete(self, share: float) -> None:
        offset = round(share * len(self.model.rows))
        self.model.start = max(self.model.start, offset)
        assert self.log.trim(offset) == self.model.start

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.log = PartitionLog(Path(self.folder.name), self.limits, self.now_ms)

    @rule(torn=st.binary(min_size=1, max_size=70))
    def killed_while_writing(self, torn: bytes) -> None:
        self.log.close()
        with self.log.segments[-1].path.open("ab") as file:
            file.write(torn)
        self.restart()

    @precondition(lambda self: self.compact)
    @rule()
    def compact_now(self) -> None:
        compacted(self.log, self.now_ms)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "log"):
            return
        assert (self.log.start, self.log.end) == (self.model.start, len(self.model.rows))
        rows = read_on(self.log, self.log.start, 150)
        expected = [(n, *row) for n, row in enumerate(self.model.rows) if n >= self.model.start]
        if self.compact:
            assert set(rows) <= set(expected)
            assert {key: row for row in rows for key in [row[1]]} == {row[1]: row for row in expected}
        else:
            assert rows == expected


class CompactedMachine(LogMachine):
    """The same with compaction: the newest of each key is always there, and nothing that was not sent."""

    compact = True


TestLog = LogMachine.TestCase
TestCompactedLog = CompactedMachine.TestCase


# ------------------------------------------------------------------ the disk


class Disk:
    """Counts what is synced, and fails when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced, self.fails = 0, False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, fd: int) -> None:
        if self.fails:
            self.fails = False  # as Linux: it says so once, and yes from then on
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(fd)
        self.synced += 1


def test_what_was_never_synced_is_never_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    log = PartitionLog(tmp_path, Limits(), 0)
    put(log, one(b"a"))
    log.sync()
    before = disk.synced
    log.sync()
    assert disk.synced == before, "nothing was appended"
    put(log, one(b"b"))
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        log.sync()
    assert disk.synced == before
    log.sync()
    assert disk.synced == before + 1, "it is not taken for synced"


def test_what_a_failed_sync_left_is_cut_off_and_its_offsets_are_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log = PartitionLog(tmp_path, Limits(), 0)
    put(log, batch([(None, b"a", 0)], producer=7, sequence=0))
    log.sync()
    sent = batch([(None, b"b", 0), (None, b"c", 0)], producer=7, sequence=1)
    assert put(log, sent) == 1
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        log.sync()
    log.cut(0)
    log.close()
    again = PartitionLog(tmp_path, Limits(), 0)
    assert read_on(again, 0) == [(0, None, b"a")]
    assert put(again, sent) == 3, "readers may have come to 3"
    again.sync()
    assert read_on(again, 3) == [(3, None, b"b"), (4, None, b"c")]
    assert (again.torn_bytes, again.damaged_bytes) == (0, 0)


def test_what_a_killed_broker_left_is_synced_before_it_is_acknowledged_and_is_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the broker before had synced it, nobody knows."""
    disk = Disk(monkeypatch)
    sent = batch([(None, b"a", 0)], producer=7, sequence=0)
    killed = PartitionLog(tmp_path, Limits(), 0)
    put(killed, sent)
    log = PartitionLog(tmp_path, Limits(), 0)
    assert put(log, sent) == 0, "its producer sends it again"
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        log.sync()
    before = disk.synced
    log.cut(0)
    assert disk.synced > before, "written again"
    assert read_on(PartitionLog(tmp_path, Limits(), 0), 0) == [(0, None, b"a")]
