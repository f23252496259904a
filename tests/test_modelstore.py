"""The delta log: base plus deltas is the snapshot, damage and gaps are found, files are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.contracts.errors import SnapshotError
from millrace.contracts.modelstore import Announcement, Image, ModelStore, TableRows, chain, verify

META: dict[str, Any] = {
    "schema_id": "s",
    "spec": {"model": "toy"},
    "event_ms": 1,
    "trained": 0,
    "origins": [],
    "published_ms": 1,
}


def image(values: dict[int, float], dense: float = 0.0, removed: tuple[int, ...] = ()) -> Image:
    ids = np.array(sorted(values), np.int64)
    columns = {"emb": np.array([[values[i], -values[i]] for i in ids.tolist()], np.float32).reshape(-1, 2)}
    return Image({"w": np.array([dense], np.float32)}, {"t": TableRows(ids, columns, np.array(removed, np.int64))})


def write_chain(store: ModelStore) -> list[Announcement]:
    """snapshot 0, deltas 1 and 2, snapshot 2, delta 3, snapshot 3."""
    notes = [store.write_snapshot(image({1: 1.0, 2: 2.0}), {}, version=0, **META)]
    notes.append(store.write_delta(image({2: 5.0, 3: 3.0}, 1.0), notes[-1].hash, version=1, **META))
    notes.append(store.write_delta(image({4: 4.0}, 2.0, removed=(1,)), notes[-1].hash, version=2, **META))
    state = image({2: 5.0, 3: 3.0, 4: 4.0}, 2.0)
    notes.append(store.write_snapshot(state, {}, version=2, hash=notes[-1].hash, **META))
    notes.append(store.write_delta(image({1: 9.0}, 3.0), notes[-1].hash, version=3, **META))
    state = image({1: 9.0, 2: 5.0, 3: 3.0, 4: 4.0}, 3.0)
    notes.append(store.write_snapshot(state, {}, version=3, hash=notes[-1].hash, **META))
    return notes


def test_base_plus_deltas_is_the_snapshot(tmp_path: Path) -> None:
    write_chain(ModelStore(tmp_path))
    assert [(p.base, p.target, p.deltas, p.rows) for p in verify(tmp_path)] == [(0, 2, 2, 3), (2, 3, 1, 4)]


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    notes = write_chain(store)
    path = tmp_path / notes[1].file
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(SnapshotError, match="version 1"):
        verify(tmp_path)


def test_a_state_that_differs_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    root = store.write_snapshot(image({1: 1.0}), {}, version=0, **META)
    delta = store.write_delta(image({1: 2.0}), root.hash, version=1, **META)
    store.write_snapshot(
        image({1: np.nextafter(np.float32(2), np.float32(3)).item()}), {}, version=1, hash=delta.hash, **META
    )
    with pytest.raises(SnapshotError, match="table/t/column/emb"):
        verify(tmp_path)


def test_a_missing_delta_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    notes = write_chain(store)
    (tmp_path / notes[2].file).unlink()
    (tmp_path / f"{notes[2].file}.json").unlink()
    with pytest.raises(SnapshotError, match="delta 2 is missing"):
        verify(tmp_path)


def test_a_restart_roots_a_chain_of_its_own(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    notes = write_chain(store)
    store.write_delta(image({7: 7.0}, 4.0), notes[-1].hash, version=4, **META)  # published, then the learner died
    root = store.write_snapshot(image({1: 9.5}, 3.0), {}, version=5, **META)
    delta = store.write_delta(image({2: 1.0}), root.hash, version=6, **META)
    store.write_snapshot(image({1: 9.5, 2: 1.0}), {}, version=6, hash=delta.hash, **META)
    assert [(p.base, p.target) for p in verify(tmp_path)] == [(0, 2), (2, 3), (5, 6)]


def test_an_unfinished_snapshot_is_not_there(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    write_chain(store)
    (tmp_path / ".snapshot-00000009.1.tmp").mkdir()
    (tmp_path / ".snapshot-00000009.1.tmp" / "serving.safetensors").write_bytes(b"half")
    latest = store.latest()
    assert latest is not None
    assert latest.version == 3


@pytest.mark.parametrize("what", ["snapshot", "delta"])
def test_a_crash_while_writing_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    store = ModelStore(tmp_path)
    notes = write_chain(store)
    before = sorted(tmp_path.rglob("*"))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        if what == "snapshot":
            store.write_snapshot(image({1: 1.0}), {}, version=4, **META)
        else:
            store.write_delta(image({1: 1.0}), notes[-1].hash, version=4, **META)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write()
    assert sorted(tmp_path.rglob("*")) == before


def test_pruning_clears_what_dead_writers_left(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    write_chain(store)
    dead = 2**22 + 12345  # above the largest process id
    (tmp_path / f".snapshot-00000009.{dead}.tmp").mkdir()
    (tmp_path / f".delta-00000009.safetensors.{dead}.tmp").write_bytes(b"half")
    store.prune()
    assert not list(tmp_path.glob(".*"))
    assert len(list(store.snapshots())) == 3


def test_pruning_keeps_what_the_kept_need(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    write_chain(store)
    store.prune(keep_snapshots=2)
    assert [n.version for n in store.snapshots()] == [2, 3]
    assert [n.version for n in store.deltas()] == [3]
    assert [(p.base, p.target) for p in verify(tmp_path)] == [(2, 3)]


def test_the_chain_depends_on_order() -> None:
    assert chain(chain("", "a"), "b") != chain(chain("", "b"), "a")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.integers(-50, 50), st.floats(-5, 5, width=32), max_size=6),
            st.sets(st.integers(-50, 50), max_size=3),
        ),
        max_size=6,
    )
)
def test_apply_equals_a_dictionary(changes: list[tuple[dict[int, float], set[int]]]) -> None:
    state, plain = image({}), dict[int, float]()
    for rows, removed in changes:
        gone = tuple(sorted(removed - rows.keys()))
        state = state.apply(image(rows, removed=gone))
        plain = {k: v for k, v in plain.items() if k not in gone} | rows
    assert state.same_bits(image(plain)) == ""
