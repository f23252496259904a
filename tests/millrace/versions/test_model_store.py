"""The model store: parts make the snapshot, damage costs one snapshot alone, old stores are carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import SnapshotError
from millrace.basics.store import DamagedError
from millrace.versions.modelstore import Announcement, ModelStore, Place, chain, thinned
from millrace.versions.versioning import digest_of
from tests.scenes.small_snapshot import META, image, snapshot

NOTE: dict[str, Any] = META | {
    "kind": "snapshot",
    "epoch": 1,
    "version": 0,
    "parent": "",
    "hash": "",
    "digest": "",
    "size": 0,
}


WHOLE = image({1: 3.0, 2: 3.0, 7: 3.0}, dense=3.0)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "models") if request.param == "folder" else f"memory://{tmp_path.name}-{request.node.name}"


def test_parts_are_the_snapshot(url: str) -> None:
    store = ModelStore(url)
    note = snapshot(store, 1, 4, 3.0)
    assert store.read(note).same_bits(WHOLE) == ""
    assert [sorted(t) for t in store.read_training(note)] == [["z"], ["z"], ["clock"]]
    assert [len(i.tables["t"].ids) for i, _ in store.read_whole(note)] == [2, 2, 1]
    assert note.is_root
    assert note.hash == chain("", digest_of(note.parts))
    later = snapshot(store, 1, 9, 4.0, own_hash="of delta 9")
    assert not later.is_root
    assert [n.place for n in ModelStore(url, writes=False).snapshots()] == [(1, 9), (1, 4)]
    assert ModelStore(url, writes=False).latest() == later


def test_epoch_comes_before_number(url: str) -> None:
    store = ModelStore(url)
    for place in ((1, 30), (2, 7), (1, 31)):
        snapshot(store, *place)
    assert [n.place for n in store.snapshots()] == [(2, 7), (1, 31), (1, 30)]
    assert store.highest() == (2, 31)


def test_prune_keeps_the_newest_two_and_what_another_learner_writes(url: str) -> None:
    store = ModelStore(url)
    for version in range(1, 5):
        snapshot(store, 2, version)
    store.write_part(Place(2, 3_000), 0, image({1: 1.0}), {})  # of one that never became whole
    foreign = store.write_part(Place(3, 1), 0, image({1: 1.0}), {})
    store.prune()
    assert [n.place for n in store.snapshots()] == [(2, 4), (2, 3)]
    names = store.store.names()
    assert len(names) == 2 * 7 + 2
    assert {f.name for f in foreign} <= set(names)
    for note in store.snapshots():
        store.read(note)


MINUTE_MS = 60_000


def versions_of(store: ModelStore, minutes: dict[int, float], epoch: int = 1) -> None:
    """A snapshot of each version, of that minute of event time, with its cuts, pruned after each as the
    learner does it."""
    for version, minute in minutes.items():
        meta = META | {"event_ms": round(minute * MINUTE_MS)}
        part = store.write_part(Place(epoch, version), 0, image({1: version}), {})
        store.store.put(f"cuts-{epoch:08d}-{version:016d}.acts", {}, b"acts")
        store.write_manifest([part], epoch=epoch, version=version, **meta)
        store.prune()


def kept_minutes(store: ModelStore) -> list[float]:
    return [note.event_ms / MINUTE_MS for note in store.snapshots()]


def test_versions_of_an_hour_are_kept_thinned(url: str) -> None:
    store = ModelStore(url, keep_ms=60 * MINUTE_MS)
    versions_of(store, {v: 4 * v - 1 for v in range(1, 33)})  # one each four minutes
    assert kept_minutes(store) == [127, 123, 119, 107, 99, 87, 79, 67]
    assert kept_minutes(store)[-1] <= 127 - 60, "one is an hour old"
    names = store.store.names()
    assert len([n for n in names if n.startswith("cuts-")]) == 32 - 17, "what was learnt since any of them is known"
    for note in store.snapshots():
        store.read(note)
    versions_of(store, {33: 131, 34: 135})
    assert kept_minutes(store) == [135, 131, 127, 119, 107, 99, 87, 79, 67], "what has passed stays what it was"


@given(
    st.lists(st.floats(0.1, 45), min_size=1, max_size=20),
    st.integers(6, 120),
)
def test_thinned_has_one_that_is_old_enough_and_few_more(steps: list[float], keep: int) -> None:
    """However unevenly snapshots come."""
    at = np.cumsum(steps) * MINUTE_MS
    notes: list[Announcement] = []
    for version, ms in enumerate(at.tolist()):
        note = Announcement(**{**NOTE, "version": version, "event_ms": round(ms)})
        notes = [note, *notes]
        old = thinned(notes, keep * MINUTE_MS)
        notes = [n for n in notes if n in notes[:2] or n in old]
        assert len(notes) <= 2 + 7 + 1
    newest, step = notes[0].event_ms, keep * MINUTE_MS // 6
    if newest - at[0] >= keep * MINUTE_MS + step and len(at) > 2:
        assert notes[-1].event_ms <= newest - keep * MINUTE_MS or len(notes) <= 2
    times = [n.event_ms for n in notes]
    assert times == sorted(times, reverse=True)


def test_after_a_rollback_the_newest_line_is_kept(url: str) -> None:
    """Event time goes back with the content: of a sixth that was lived twice, the later life counts."""
    store = ModelStore(url, keep_ms=60 * MINUTE_MS)
    versions_of(store, {1: 5, 2: 15, 3: 25, 4: 35})
    versions_of(store, {5: 15, 6: 18, 7: 24, 8: 26, 9: 28})  # 5 is the content of 2
    assert [n.version for n in store.snapshots()] == [9, 8, 6, 4, 1]


def test_an_older_learner_never_removes_what_a_newer_one_wrote(url: str) -> None:
    store = ModelStore(url)
    for place in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3)):
        snapshot(store, *place)
    store.prune()
    assert [n.place for n in store.snapshots()] == [(2, 2), (2, 1)]


def damage(path: Path, how: str) -> None:
    body = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "flipped":
        body[len(body) // 2] ^= 4
    path.write_bytes(bytes(body[: len(body) // 2] if how == "torn" else b"" if how == "empty" else body))


@pytest.mark.parametrize("how", ["flipped", "torn", "empty", "gone"])
@pytest.mark.parametrize("which", ["manifest", "00000.serving", "00002.serving", "00001.training"])
def test_one_damaged_file_costs_its_own_snapshot_alone(tmp_path: Path, which: str, how: str) -> None:
    store = ModelStore(tmp_path)
    older, newer = snapshot(store, 1, 1, 3.0), snapshot(store, 1, 2)
    path = next(p for p in tmp_path.glob(f"*-{2:016d}*") if p.name.endswith(which))
    damage(path, how)
    reader = ModelStore(tmp_path, writes=False)
    if which == "manifest" or how == "gone":
        assert reader.latest() == older
    else:
        assert reader.latest() == newer
        with pytest.raises(DamagedError):
            list(reader.read_whole(newer))
        assert path.exists(), "who only reads moves nothing"
        with pytest.raises(DamagedError):
            list(store.read_whole(newer))
    assert store.latest() == older
    assert not path.exists()
    assert (tmp_path / f"damaged-{path.name}").exists() == (how != "gone")
    assert store.read(older).same_bits(WHOLE) == ""
    assert store.damaged == ([] if how == "gone" else [path.name])
    third = snapshot(store, 1, 3)
    store.prune()
    assert store.snapshots() == [third, older], "what is damaged does not count as one that is kept"
    assert store.highest() == (1, 3)


def test_training_of_another_snapshot_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    older, newer = snapshot(store, 1, 1), snapshot(store, 1, 2)
    (tmp_path / newer.training[2].name).write_bytes((tmp_path / older.training[2].name).read_bytes())
    with pytest.raises(DamagedError, match="not the one"):
        list(store.read_whole(newer))


def test_whole_files_that_hold_something_else(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    note = snapshot(store, 1, 1)
    store.store.put(f"snapshot-{2:08d}-{2:016d}.manifest", {"kind": "snapshot"})
    store.store.put(f"snapshot-{1:08d}-{5:016d}.manifest", note)
    assert store.snapshots() == [note]
    assert len(store.damaged) == 2
    odd = store.store.put("part-odd", {"arrays": [["table/t/ids", "<f4", [16]]]}, bytes(64))
    with pytest.raises(SnapshotError, match="ids"):
        list(store.read_parts(msgspec.structs.replace(note, parts=[odd])))
    heads: list[Any] = [{"arrays": [["x", "<f4", [17]]]}, {}, {"arrays": "x"}, []]
    for head in heads:
        odd = store.store.put("part-odd", head, bytes(64))
        with pytest.raises(SnapshotError, match="holds no arrays"):
            list(store.read_parts(msgspec.structs.replace(note, parts=[odd])))


@given(st.integers(0, 2**31), st.integers(0, 7), st.data())
def test_no_flip_in_any_file_is_served(at: int, bit: int, data: st.DataObject) -> None:
    url = f"memory://flips-{data.draw(st.uuids())}"
    store = ModelStore(url)
    older, newer = snapshot(store, 1, 1, 3.0), snapshot(store, 1, 2)
    name = data.draw(st.sampled_from([n for n in store.store.names() if int(n.split("-")[2][:16].split(".")[0]) == 2]))
    path = store.store._path(name)
    raw = bytearray(store.store._fs.cat_file(path))
    raw[at % len(raw)] ^= 1 << bit
    store.store._fs.pipe_file(path, bytes(raw))
    found = store.latest()
    assert found is not None
    if found == newer:
        with pytest.raises(DamagedError):
            list(store.read_whole(newer))
        found = store.latest()
    assert found == older
    assert store.read(older).same_bits(WHOLE) == ""
    store.store.remove(store.store.names(aside=True))
