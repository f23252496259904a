"""Messages of model.deltas: chunks in any order, twice, between others' and damaged; claims and who is
admitted. What messages hold: bodies of deltas, and the times of clicks."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest

from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import SnapshotError
from millrace.basics.store import Sealed
from millrace.commands.loop.stage_times import quantile_ms
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, POSITIVE
from millrace.processes.tally import TimesHistogram
from millrace.versions import packing
from millrace.versions.clicks import MOST_BUCKETS, WIDTH_MS, ClickHistogram
from millrace.versions.image import Image, TableRows
from millrace.versions.modellog import (
    MESSAGE_BYTES,
    PIECE_BYTES,
    Assembler,
    Bad,
    Claimed,
    Delta,
    Entry,
    Fence,
    Snapshot,
    encode_claim,
    encode_delta,
    encode_snapshot,
)
from millrace.versions.packing import pack, unpack
from millrace.versions.versioning import Announcement, Claim, Place, VersionClicks, chain, decode_announcement
from scorer.ipc.meters import RECENT, ClickTrace, Steps
from stream.worker.stream_metrics import joined
from tests.scenes.learning import make_samples


def note(body: bytes | None, version: int = 5, epoch: int = 1, claimant: str = "a", **more: Any) -> Announcement:
    digest = hashlib.sha256(body or b"").hexdigest()
    fields: dict[str, Any] = {
        "kind": "delta", "epoch": epoch, "version": version, "claimant": claimant, "parent": "p",
        "hash": chain("p", digest), "digest": digest, "size": len(body or b""), "schema_id": "s", "spec": {},
        "event_ms": 1, "trained": 2, "published_ms": 4, "clicks": ClickHistogram.of([3]),
    }  # fmt: skip
    return Announcement(**{**fields, **more})


def read(messages: list[bytes | None], assembler: Assembler | None = None) -> list[Entry]:
    reader = assembler or Assembler()
    return [entry for raw in messages for entry in reader.take(raw)]


BODY = bytes(range(256)) * (3 * PIECE_BYTES // 256)
MESSAGES = encode_delta(note(BODY), BODY)


def test_a_body_travels_in_chunks_that_a_broker_takes() -> None:
    assert len(MESSAGES) == 3
    assert max(map(len, MESSAGES)) <= MESSAGE_BYTES
    (entry,) = read([None, *MESSAGES])[1:]
    assert isinstance(entry, Delta)
    assert (entry.note, entry.body) == (note(BODY), BODY)


@given(st.permutations(MESSAGES * 2))
def test_chunks_twice_and_in_any_order_are_one_delta(messages: list[bytes]) -> None:
    (entry,) = read(list(messages))
    assert isinstance(entry, Delta)
    assert entry.body == BODY


def test_chunks_of_two_learners_between_each_other() -> None:
    mine, theirs = encode_delta(note(BODY), BODY), encode_delta(note(BODY[1:], claimant="b"), BODY[1:])
    entries = read([m for pair in zip(mine, theirs, strict=True) for m in pair])
    assert [(e.note.claimant, e.body) for e in entries if isinstance(e, Delta)] == [("a", BODY), ("b", BODY[1:])]


@pytest.mark.parametrize("lost", range(3))
def test_a_delta_of_which_a_chunk_is_lost_is_bad_when_the_next_is_whole(lost: int) -> None:
    after = encode_delta(note(b"x", 6), b"x")
    found = read([*(m for i, m in enumerate(MESSAGES) if i != lost), *after])
    assert isinstance(found[0], Bad)
    assert found[0].place == Place(1, 5)
    assert isinstance(found[1], Delta)


@given(st.integers(0, 2), st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_costs_its_delta_and_no_other(which: int, at: int, bit: int) -> None:
    messages: list[bytes | None] = list(MESSAGES)
    broken = bytearray(MESSAGES[which])
    broken[at % len(broken)] ^= 1 << bit
    messages[which] = bytes(broken)
    found = read([*messages, *encode_delta(note(b"x", 6), b"x")])
    assert [type(e) for e in found] == [Bad, Bad, Delta]
    assert [e.place for e in found if isinstance(e, Bad)] == [None, Place(1, 5)]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.sampled_from(MESSAGES)), max_size=12))
def test_any_messages_give_entries_and_the_next_delta_is_whole(messages: list[bytes | None]) -> None:
    reader = Assembler()
    read(messages, reader)
    last = reader.take(encode_delta(note(b"x", 6), b"x")[0])[-1]
    assert isinstance(last, Delta)


@given(st.sampled_from(b"CSDX"), st.binary(max_size=80))
def test_rubbish_with_a_right_checksum_is_bad(kind: int, rest: bytes) -> None:
    from millrace.versions.modellog import _sealed

    assert all(isinstance(entry, Bad) for entry in read([_sealed(bytes([kind]), rest)]))


def test_what_never_becomes_whole_is_given_up() -> None:
    firsts = [encode_delta(note(BODY, version), BODY)[0] for version in (2**52, 7, 8, 9, 10)]
    (bad,) = read(list(firsts))
    assert bad == Bad(f"delta {2**52} of epoch 1 has 1 of 3 chunks", Place(1, 2**52))


def test_a_note_that_lies_is_found() -> None:
    body = b"body"
    for wrong in (
        note(body, digest="0" * 64),
        note(body, size=3),
        note(body, kind="snapshot"),
    ):
        (bad,) = read(list(encode_delta(wrong, body)))
        assert isinstance(bad, Bad)
        assert bad.place == Place(1, 5)
    with pytest.raises(SnapshotError, match="bytes"):
        encode_delta(note(body, spec={"model": "x" * 300_000}), body)


def test_no_file_name_leads_out_of_the_store() -> None:
    for name in ("../x", ".hidden", "a/b", "damaged-x", "", "x" * 201, "ä"):
        parts = [Sealed(name, "00", 7)]
        (bad,) = read([encode_snapshot(note(None, kind="snapshot", parts=parts, training=parts))])
        assert isinstance(bad, Bad)


def test_claims_and_snapshots() -> None:
    part = Sealed("part-1.serving", "11", 9)
    snapshot = note(
        None,
        kind="snapshot",
        parts=[part],
        training=[part],
        extra={"x": 1, "rows": {"w": 2}},
        offset=3,
        follows=4,
    )
    claimed, announced = read([encode_claim(Claim(3, "me")), encode_snapshot(snapshot)])
    assert claimed == Claimed(Claim(3, "me"))
    assert isinstance(announced, Snapshot)
    assert announced.note == msgspec.structs.replace(snapshot, training=[], extra={"rows": {"w": 2}}, offset=None)
    many = msgspec.structs.replace(
        snapshot, parts=[Sealed(f"part-{i}", "0" * 64, 1) for i in range(20_000)], training=[]
    )
    message = encode_snapshot(many)
    assert len(message) <= MESSAGE_BYTES
    assert isinstance(read([message])[0], Snapshot)


def test_the_first_claim_of_the_highest_epoch_wins() -> None:
    fence = Fence()
    assert fence.claims(Claim(7, "a"))
    assert not fence.claims(Claim(7, "b"))
    assert fence.claims(Claim(7, "a")), "it says that it is still there"
    assert fence.admits(7, "a")
    assert not fence.admits(7, "b")
    assert not fence.admits(6, "c")
    assert fence.claims(Claim(8, "b"))
    assert not fence.admits(7, "a")
    assert not fence.claims(Claim(7, "a"))
    assert fence.admits(8, "b")


def test_where_the_log_begins_between_two_claims_what_is_published_tells_who_won() -> None:
    """The winner's claim was removed by retention; the loser's came after it and is the first that is read."""
    fence = Fence()
    assert fence.claims(Claim(7, "loser"))
    assert fence.admits(7, "winner")
    assert not fence.admits(7, "loser")
    assert not fence.claims(Claim(7, "loser"))
    fresh = Fence()
    assert fresh.admits(9, "of a snapshot")
    assert not fresh.claims(Claim(9, "late"))


# -- Bodies of deltas: bit for bit, small, differences only against the right tensors, any bytes an error --------------


DTYPES = st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.float64, np.int32])
ARRAYS = DTYPES.flatmap(lambda d: some.arrays(d, some.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
DENSE = st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=4)


@st.composite
def images(draw: st.DrawFn) -> Image:
    tables = {}
    for name in draw(st.lists(st.sampled_from(["w0", "w16", "a/b"]), unique=True, max_size=2)):
        ids = draw(some.arrays(np.int64, st.integers(0, 6), unique=True))
        width = draw(st.integers(0, 3))
        embedding = draw(some.arrays(np.float32, (len(ids), width)))
        removed = draw(some.arrays(np.int64, st.integers(0, 3)))
        tables[name] = TableRows(ids, {"embedding": embedding, "wide": np.arange(len(ids), dtype=np.float32)}, removed)
    return Image(draw(DENSE), tables)


def same(a: Image, b: Image) -> None:
    mine, theirs = a.tensors(), b.tensors()
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        other = theirs[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


@given(images())
def test_an_image_comes_out_as_it_went_in(image: Image) -> None:
    same(unpack(pack(image)), image)


@given(images(), st.randoms())
def test_a_difference_needs_the_tensors_it_was_made_against(image: Image, random: Any) -> None:
    parent = {name: np.zeros_like(array) for name, array in image.dense.items()}
    body = pack(image, parent)
    same(unpack(body, parent), image)
    sizes = {name: array.size for name, array in image.dense.items() if array.size}
    if sizes:
        other = {name: array.copy() for name, array in parent.items()}
        other[random.choice(sorted(sizes))].reshape(-1).view(np.uint8)[0] ^= 1
        with pytest.raises(SnapshotError, match="against others"):
            unpack(body, other)
        with pytest.raises(SnapshotError, match="not there"):
            unpack(body)


def test_weights_that_moved_little_are_small_as_differences() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=60_000).astype(np.float32)
    after = before + rng.normal(scale=1e-6, size=before.size).astype(np.float32)
    image = Image({"w": after}, {})
    whole, plain = len(pack(image, {"w": before})), len(pack(image))
    assert whole < plain / 2 < after.nbytes / 2
    assert unpack(pack(image, {"w": before}), {"w": before}).dense["w"].tobytes() == after.tobytes()


@given(images(), st.data())
def test_damaged_bodies_end_in_the_named_error(image: Image, data: st.DataObject) -> None:
    body = bytearray(pack(image))
    at = data.draw(st.integers(0, len(body) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if how == "flip":
        body[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del body[at:]
    else:
        body += data.draw(st.binary(min_size=1, max_size=9))
    with contextlib.suppress(SnapshotError):
        unpack(bytes(body))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_the_named_error(body: bytes) -> None:
    with pytest.raises(SnapshotError):
        unpack(body)
    with pytest.raises(SnapshotError):
        unpack(b"MRI1" + body)


def test_what_is_said_makes_no_room() -> None:
    """A list that tells of a gigabyte too much, and a frame that does, are refused before anything is made for them."""
    body = pack(Image({"w": np.zeros(10, np.float32)}, {}))
    for shape in ("[10]", "[1000000000]", f"[{2**47}]", "[1,1,1,1,1,1,1,1,10]", "[-1]"):
        changed = body.replace(b"[10]", shape.encode())
        changed = (
            changed[:4] + (int.from_bytes(changed[4:8], "little") + len(shape) - 4).to_bytes(4, "little") + changed[8:]
        )
        if shape == "[10]":
            unpack(changed)
        else:
            with pytest.raises(SnapshotError):
                unpack(changed)


def test_a_delta_beyond_what_can_be_unpacked_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_IMAGE_BYTES", 39)
    with pytest.raises(SnapshotError, match="40 bytes"):
        pack(Image({"w": np.zeros(10, np.float32)}, {}))


@given(DENSE)
def test_arrays_are_read_where_they_lie(arrays: dict[str, Any]) -> None:
    body = b"".join(lay(arrays))
    assert len(body) % 64 == 0
    found = view(specs_of(arrays), body)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )
        assert not found[name].flags.writeable


@pytest.mark.parametrize(
    "reported",
    [
        [ArraySpec("a", "<f4", [3])],
        [ArraySpec("a", "<f4", [16]), ArraySpec("a", "<f4", [0])],
        [ArraySpec("a", "|O8", [2])],
        [ArraySpec("a", "<f1", [2])],
        [ArraySpec("a", "<f4", [-1])],
        [ArraySpec("a", "<f4", [2**40])],
        [],
    ],
)
def test_lists_that_do_not_fit_are_refused(reported: list[ArraySpec]) -> None:
    with pytest.raises(SnapshotError):
        view(reported, bytes(128))


# -- Clicks on their way to the weights that serve ---------------------------------------------------------------------
# Their times in a version, the histograms of stages, the figures.


NOW_MS = 1_772_000_000_000
times = st.lists(st.integers(0, NOW_MS), max_size=60)


@given(st.lists(times, max_size=4))
def test_every_click_is_there_at_its_time(many: list[list[int]]) -> None:
    found = ClickHistogram.merged([ClickHistogram.of(part) for part in many])
    sent = np.sort(np.array([ms for part in many for ms in part], np.int64))
    reported = np.repeat(found.sent_ms(), found.counts)
    assert found.total == len(sent) == len(reported)
    assert np.abs(reported - sent).max(initial=0) <= WIDTH_MS // 2
    assert found.is_valid
    assert msgspec.json.decode(msgspec.json.encode(found), type=ClickHistogram) == found


def test_clicks_of_hours_become_coarse_and_none_is_left_out() -> None:
    sent = np.arange(NOW_MS, NOW_MS + 3_600_000, 7)
    found = ClickHistogram.of(sent)
    assert len(found.counts) <= MOST_BUCKETS
    assert found.total == len(sent)
    reported = np.repeat(found.sent_ms(), found.counts)
    assert np.abs(reported - sent).max() <= found.width_ms // 2
    assert len(msgspec.json.encode(found)) < 20_000


def test_a_second_of_traffic_is_small_however_much_it_is() -> None:
    sent = np.random.default_rng(0).integers(NOW_MS, NOW_MS + 1000, 100_000)
    assert len(msgspec.json.encode(ClickHistogram.of(sent))) < 1000


@pytest.mark.parametrize(
    "clicks",
    [
        {"gaps": [1, 2], "counts": [1]},
        {"gaps": [2**53], "counts": [1]},
        {"width_ms": 2**53, "gaps": [5], "counts": [1]},
    ],
)
def test_times_that_cannot_be_read_are_an_announcement_that_cannot(clicks: dict[str, Any]) -> None:
    note = Announcement(
        kind="delta", epoch=1, version=2, claimant="c", parent="p", hash="h", digest="d", size=1, schema_id="s",
        spec={}, event_ms=0, trained=0, published_ms=0,
    )  # fmt: skip
    assert decode_announcement(msgspec.json.encode(note)) == note
    with pytest.raises(SnapshotError, match="clicks"):
        decode_announcement(msgspec.json.encode(msgspec.to_builtins(note) | {"clicks": clicks}))


def without_created(registry: CollectorRegistry) -> str:
    lines = generate_latest(registry).decode().splitlines()
    return "\n".join(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.3, 5.0]), st.integers(1, 5)), max_size=30))
def test_a_histogram_of_many_shows_what_the_clients_own_does(values: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    many = TimesHistogram("took_seconds", "Text.", bounds=(0.01, 0.25, 1), registry=ours)
    one = Histogram("took_seconds", "Text.", buckets=(0.01, 0.25, 1), registry=theirs)
    many.observe([v for v, _ in values], [n for _, n in values])
    for value, count in values:
        for _ in range(count):
            one.observe(value)

    def read(text: str) -> dict[str, float]:
        return {k: float(v) for k, v in re.findall(r"^(took\S+) (\S+)$", text, re.MULTILINE)}

    assert read(without_created(ours)) == pytest.approx(read(without_created(theirs)))


def test_a_stage_is_a_label_and_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    stages = TimesHistogram("stage_seconds", "Text.", "stage", ("a", "b"), registry=registry)
    stages.observe(0.05, 7, "b")
    assert registry.get_sample_value("stage_seconds_count", {"stage": "a"}) == 0
    assert registry.get_sample_value("stage_seconds_count", {"stage": "b"}) == 7
    assert registry.get_sample_value("stage_seconds_sum", {"stage": "b"}) == pytest.approx(0.35)


@given(st.lists(st.tuples(st.integers(0, 500_000), st.integers(1, 9)), min_size=1, max_size=60))
def test_percentiles_are_those_of_all_times(values: list[tuple[int, int]]) -> None:
    steps = Steps()
    steps.add([ms for ms, _ in values], [n for _, n in values])
    took = np.repeat([ms for ms, _ in values], [n for _, n in values])
    found = steps.figures()
    assert found["count"] == len(took)
    for name, share in (("p50", 50), ("p99", 99)):
        exact = float(np.percentile(took, share, method="inverted_cdf"))
        assert found[name] == pytest.approx(exact, abs=5.001, rel=0.0051)


def test_figures_are_over_all_clicks_and_over_the_newest() -> None:
    trace = ClickTrace()
    assert trace.figures() == {
        "p50": None, "p99": None, "count": 0, "recent": {"p50": None, "p99": None, "count": 0}
    }  # fmt: skip
    slow = ClickHistogram.of([NOW_MS - 2000], [3 * RECENT])
    trace.served([VersionClicks(NOW_MS - 100, slow)], NOW_MS)
    for _ in range(3):
        trace.served([VersionClicks(NOW_MS, ClickHistogram.of([NOW_MS - 300], [RECENT // 2]))], NOW_MS)
    found = trace.figures()
    assert found["count"] == 4 * RECENT + RECENT // 2
    assert found["p50"] == pytest.approx(2000, abs=10)
    assert found["recent"]["p50"] == found["recent"]["p99"] == pytest.approx(300, abs=10)
    assert found["recent"]["count"] == RECENT


def test_a_clock_that_is_behind_the_clients_gives_no_time_below_nothing() -> None:
    trace = ClickTrace()
    trace.served([VersionClicks(NOW_MS + 50, ClickHistogram.of([NOW_MS + 5000]))], NOW_MS)
    assert trace.figures()["p50"] == pytest.approx(0, abs=5)


def test_a_quantile_lies_where_the_line_crosses_it() -> None:
    assert quantile_ms({}, 0.5) is None
    assert quantile_ms({"0.1": 0.0, "+Inf": 0.0}, 0.5) is None
    assert quantile_ms({"+Inf": 10, "0.4": 10, "0.2": 0}, 0.5) == pytest.approx(300)
    assert quantile_ms({"0.1": 0, "0.2": 4, "+Inf": 10}, 0.99) == pytest.approx(200), "beyond the last bound"


def test_the_stream_observes_each_click_that_labels_and_no_follow_up() -> None:
    def seen() -> tuple[float, float]:
        found = [
            REGISTRY.get_sample_value(f"millrace_click_stage_seconds_{n}", {"stage": "joined"})
            for n in ("count", "sum")
        ]
        return found[0] or 0.0, found[1] or 0.0

    batch = make_samples(20, 0)
    kinds = np.full(20, POSITIVE, np.uint8)
    kinds[3], kinds[4] = FOLLOW_UP, CORRECTION
    sent = np.zeros(20, np.int64)
    sent[3:6] = NOW_MS - 500
    before = seen()
    joined(replace(batch, kind=kinds, origin_ms=sent), NOW_MS)
    after = seen()
    assert after[0] - before[0] == 2
    assert after[1] - before[1] == pytest.approx(1.0)
