"""Quarantine: what was refused is there, bit for bit and once, until somebody decides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from learner.gate import quarantine
from learner.gate.quarantine import Quarantine
from learner.gate.verdicts import GateRefusal
from millrace.basics.errors import SchemaError, StoreError
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.samples import SampleBatch
from tests.scenes.refused_rows import places, rows

LABELS = GateRefusal("labels", 2.4, 1.6)


def same(one: SampleBatch, other: SampleBatch) -> bool:
    arrays = [f.name for f in dataclasses.fields(SampleBatch) if f.name not in ("request", "page")]
    return list(one.ids()) == list(other.ids()) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name in ("num", "score")) for name in arrays
    )


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "quarantine") if request.param == "folder" else f"memory://{tmp_path.name}-q"


def test_what_was_refused_comes_back_bit_for_bit(url: str) -> None:
    kept = Quarantine(Store(url), "s")
    kept.keep(LABELS, rows(5), places(5), 7_000)
    kept.keep(LABELS._replace(value=3.0), rows(4, 5), places(4), 8_000)  # of the same check: one file
    kept.keep(GateRefusal("finite", float("nan"), 0.0, "dense/w"), rows(2, 90), places(2), 9_000)
    assert (kept.entries(), kept.rows, kept.waiting_rows) == ([], 11, 11)
    kept.flush()
    reader = Quarantine(Store(url, writes=False), "s", writes=False)
    assert reader.entries() == kept.entries()
    first, second = reader.entries()
    assert (first.check, first.value, first.rows, first.from_ms, first.to_ms, first.made_ms) == (
        *("labels", 2.4, 9),
        *(1_000, 1_008, 7_000),
    )
    assert (second.check, second.what, second.value, second.rows) == ("finite", "dense/w", np.finfo(float).max, 2)
    batch, lay = reader.read(first.name)
    assert same(batch, SampleBatch.concat([rows(5), rows(4, 5)]))
    assert lay.tolist() == [*places(5).tolist(), *places(4).tolist()]
    assert same(kept.read(second.name)[0], rows(2, 90))
    assert (kept.rows, kept.waiting_rows, kept.lost_rows) == (11, 0, 0)


def test_many_rows_become_files_that_can_be_read(url: str) -> None:
    kept = Quarantine(Store(url), "s")
    whole = rows(2 * quarantine.FILE_ROWS + 10)
    kept.keep(LABELS, whole, places(len(whole)), 1)
    assert [e.rows for e in kept.entries()] == [quarantine.FILE_ROWS, quarantine.FILE_ROWS, 10], "written by itself"
    parts = [kept.read(e.name) for e in kept.entries()]
    assert same(SampleBatch.concat([batch for batch, _ in parts]), whole)
    assert np.array_equal(np.concatenate([lay for _, lay in parts]), places(len(whole)))


def test_names_are_chosen_in_the_order_of_refusal(url: str) -> None:
    kept = Quarantine(Store(url), "s")
    for check in ("labels", "auc", "numbers"):
        kept.keep(GateRefusal(check, 0.0, 0.0), rows(1), places(1), 1)
    kept.flush()
    names = [e.name for e in kept.entries()]
    assert names == ["00000001-labels", "00000002-auc", "00000003-numbers"]
    assert kept.chosen("all") == names
    assert kept.chosen([names[2], names[0], names[2]]) == [names[0], names[2]]
    with pytest.raises(AbsentError, match="no '00000009-labels'; take a name"):
        kept.chosen([names[0], "00000009-labels"])
    kept.remove([names[1]])
    assert kept.chosen("all") == [names[0], names[2]]
    with pytest.raises(AbsentError, match="no '00000002-auc'"):
        kept.read(names[1])
    assert not kept.store.names("00000002"), "its rows go too"
    assert Quarantine(Store(url), "s").chosen("all") == [names[0], names[2]]


def test_a_learner_that_goes_on_finds_what_its_snapshot_has_not_learnt(url: str) -> None:
    dead = Quarantine(Store(url), "s")
    for check in ("labels", "auc"):
        dead.keep(GateRefusal(check, 0.0, 0.0), rows(1), places(1), 1)
    dead.flush()
    dead.keep(LABELS, rows(3), places(3), 2)  # never written: its samples come again
    dead.store.put("00000003-labels.rows", {}, b"")  # killed before its entry
    again = Quarantine(Store(url), "s")
    assert len(again.entries()) == 2, "rows without an entry are nothing"
    again.begin(["00000001-labels", "00000007-auc"])  # learnt by the snapshot; one of them is removed already
    assert [e.name for e in again.entries()] == ["00000002-auc"]
    assert again.store.names() == ["00000002-auc.entry", "00000002-auc.rows"]
    again.keep(LABELS, rows(3), places(3), 2)
    again.flush()
    assert [e.name for e in again.entries()] == ["00000002-auc", "00000008-labels"], "no name is given twice"


def test_a_store_that_takes_nothing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Quarantine(Store(tmp_path), "s")

    def full(*_: object) -> None:
        raise StoreError("no space", "make some")

    with monkeypatch.context() as patch:
        patch.setattr(kept.store, "put", full)
        kept.keep(LABELS, rows(quarantine.FILE_ROWS), places(quarantine.FILE_ROWS), 1)  # learning goes on
        kept.keep(LABELS, rows(5, 1), places(5), 1)
        with pytest.raises(StoreError, match="no space"):
            kept.flush()
    assert kept.waiting_rows == quarantine.FILE_ROWS + 5
    kept.flush()
    assert (sum(e.rows for e in kept.entries()), kept.waiting_rows) == (quarantine.FILE_ROWS + 5, 0)


def test_beyond_its_bound_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    size = 0
    for most in (1 << 30, 0):
        kept = Quarantine(Store(tmp_path / str(most)), "s", most_bytes=most or round(2.5 * size))
        for first in range(4):
            kept.keep(GateRefusal("labels", 0.0, 0.0, str(first)), rows(50, first), places(50), 1)
            kept.flush()
        size = max(p.stat().st_size for p in (tmp_path / str(most)).glob("*.rows"))
        assert [e.what for e in kept.entries()] == (["0", "1", "2", "3"] if most else ["2", "3"])
        assert kept.lost_rows == (0 if most else 100)


def test_another_schema_and_a_damaged_file_are_refused_by_name(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "one")
    kept.keep(LABELS, rows(9), places(9), 1)
    kept.flush()
    (name,) = kept.chosen("all")
    with pytest.raises(SchemaError, match="of schema one, the learner's is two; discard them"):
        Quarantine(Store(tmp_path), "two").read(name)
    path = tmp_path / f"{name}.rows"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="is damaged"):
        kept.read(name)
    (tmp_path / f"{name}.entry").write_bytes(b"torn")
    assert Quarantine(Store(tmp_path), "one").entries() == []
    assert (tmp_path / f"damaged-{name}.entry").exists()


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(LABELS, rows(1).take(slice(0, 0)), places(0), 1)
    kept.flush()
    assert kept.store.names() == []
