"""The sparse table against a dictionary, and its optimisers against their papers' update rules in plain Python."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.tables import row_index as index_module
from learner.tables.admission import Admission
from learner.tables.row_index import Index
from learner.tables.table import SparseTable, StepSizes, distinct
from millrace.basics.probing import EMPTY
from tests.scenes.exploring import examples

RATES = StepSizes(embedding=0.1, epsilon=1e-6, alpha=0.1, beta=1.0, l1=0.5, l2=0.01)

# Ids whose home slots crowd together, among them the extremes of int64: a run of followers must survive an erase.
IDS = st.sampled_from([*range(1, 40), *(k << 60 for k in range(-8, 8) if k), -(2**63), 2**63 - 1])
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.lists(IDS, max_size=30)), max_size=30)


def int64(values: Any) -> Any:
    return np.array(list(values), np.int64)


@examples(150)
@given(STEPS, st.integers(20, 60))
def test_index_is_a_dictionary(steps: list[tuple[str, list[int]]], max_rows: int) -> None:
    index = Index({"value": 1, "pair": 2}, max_rows)
    index._rehash(7)  # small: probing runs long and wraps round the end
    oracle: dict[int, int] = {}
    for n, (what, ids) in enumerate(steps):
        if what == "add":
            new = [i for i in dict.fromkeys(ids) if i not in oracle]
            rows = index.add(int64(new))
            assert len(rows) == min(len(new), max_rows - len(oracle))
            assert (index.column("value")[rows] == 0).all()
            for i, row in zip(new, rows, strict=False):
                index.column("value")[row] = oracle[i] = 1000 * n + i % 997
        else:
            index.remove(int64(ids))
            for i in ids:
                oracle.pop(i, None)
        assert len(index) == len(oracle)
        known = list(oracle)
        rows = index.find(int64(known))
        assert len(set(rows.tolist())) == len(known)
        assert index.column("value")[rows].tolist() == [oracle[i] for i in known]
        absent = [i for i in (0, 5, 7 << 60, 12345, *ids) if i not in oracle]
        assert (index.find(int64(absent)) == EMPTY).all()
    assert index.ids_of(index.rows()).tolist() == sorted(oracle)


def test_index_grows_without_losing_anything() -> None:
    index = Index({"value": 1}, 100_000)
    ids = np.random.default_rng(0).permutation(np.arange(1, 50_001))
    for part in np.array_split(ids, 37):
        index.column("value")[index.add(part)] = part * 3
    assert (index.column("value")[index.find(ids)] == ids * 3).all()


FEW = st.lists(st.tuples(st.booleans(), st.lists(IDS | st.integers(1, 400), max_size=5)), min_size=20, max_size=120)


@pytest.mark.slow
@examples(300)
@given(FEW)
def test_ids_are_found_while_their_slots_move(steps: list[tuple[bool, list[int]]]) -> None:
    """Between two sizes an id is in the old slots or in the new ones: wherever its home says, however it got there."""
    with mock.patch.object(index_module, "_AT_ONCE_BITS", 0), mock.patch.object(index_module, "_PACE", 2):
        index = Index({"value": 1}, 1000)
        index._rehash(6)
        oracle: dict[int, int] = {}
        for adding, ids in steps:
            if adding:
                new = [i for i in dict.fromkeys(ids) if i not in oracle]
                rows = index.add(int64(new))
                oracle |= {i: int(row) for i, row in zip(new, rows, strict=True)}
            else:
                index.remove(int64(ids))
                for i in ids:
                    oracle.pop(i, None)
            known = list(oracle)
            assert index.find(int64(known)).tolist() == [oracle[i] for i in known]
            absent = [i for i in (0, *ids, *range(1, 50)) if i not in oracle]
            assert (index.find(int64(absent)) == EMPTY).all()
        assert index.ids_of(index.rows()).tolist() == sorted(oracle)


def test_slots_move_bit_by_bit() -> None:
    index = Index({}, 1_000_000)
    ids = np.random.default_rng(0).permutation(np.arange(1, 240_001))
    moves = []
    for n, part in enumerate(np.array_split(ids, 1000)):
        index.add(part)
        moves.append(int(index._move[1]))
        if n % 50 == 0:
            assert (index.find(ids[: len(index)]) == np.arange(len(index))).all()
    slots = len(index._slots)
    assert len(index) > 3 * slots / 8
    steps = np.diff([m for m in moves if m])
    assert len(steps) > 20
    assert steps.max() < slots / 50  # no add moved many


@given(st.lists(st.lists(st.integers(-3, 6), min_size=3, max_size=3), max_size=20))
def test_distinct_ids(rows: list[list[int]]) -> None:
    columns = np.array(rows, np.int64).reshape(-1, 3)
    ids, counts, inverse = distinct(columns)
    assert len(set(ids.tolist())) == len(ids)
    assert 0 not in ids
    flat = columns.ravel()
    assert {i: int((flat == i).sum()) for i in ids.tolist()} == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    back = np.where(inverse == EMPTY, 0, np.append(ids, 0)[inverse])
    np.testing.assert_array_equal(back, columns)


def paper_ftrl(gradients: list[float], r: StepSizes) -> float:
    """McMahan et al. 2013, algorithm 1, one coordinate."""
    z = n = w = 0.0
    for g in gradients:
        w = 0.0 if abs(z) <= r.l1 else -(z - math.copysign(r.l1, z)) / ((r.beta + math.sqrt(n)) / r.alpha + r.l2)
        sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / r.alpha
        z += g - sigma * w
        n += g * g
    return 0.0 if abs(z) <= r.l1 else -(z - math.copysign(r.l1, z)) / ((r.beta + math.sqrt(n)) / r.alpha + r.l2)


def table(width: int = 2, **options: Any) -> SparseTable:
    values = {"max_rows": 1000, "max_age_min": 0, "admit": 1, "scale": 0.1, "salt": 7} | options
    return SparseTable(width, RATES, **values)


def touch(t: SparseTable, ids: list[int], now_min: int = 0) -> None:
    block = t.read(int64(ids).reshape(-1, 1), learning=True)
    t.write(block, np.ones((len(block.ids), t.width), np.float32), np.ones(len(block.ids), np.float32), now_min)


def held(t: SparseTable) -> list[int]:
    return t.index.ids_of(t.index.rows()).tolist()  # type: ignore[no-any-return]


def test_optimisers_follow_their_papers() -> None:
    rng = np.random.default_rng(0)
    t = table(width=3)
    steps = 30
    grads = rng.normal(size=(steps, 2, 3)).astype(np.float32)
    wides = rng.normal(size=(steps, 2)).astype(np.float32)
    columns = int64([[11], [22]])
    first = t.read(columns, learning=True).embedding.astype(np.float64)
    assert np.abs(first).max() <= 0.1
    assert len(np.unique(first)) == 6
    for g, w in zip(grads, wides, strict=True):
        t.write(t.read(columns, learning=True), g, w, 0)
    for k in range(2):
        value, total = first[k].copy(), 0.0
        for g in grads[:, k].astype(np.float64):
            total += (g @ g) / 3  # row-wise: the mean of the squares, one sum for the row
            value -= RATES.embedding / (math.sqrt(total) + RATES.epsilon) * g
        block = t.read(columns, learning=False)
        np.testing.assert_allclose(block.embedding[k], value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(block.wide[k], paper_ftrl(wides[:, k].tolist(), RATES), rtol=1e-4, atol=1e-6)


def test_l1_leaves_weak_weights_at_zero() -> None:
    t = table(width=0)
    columns = int64([[5]])
    t.write(t.read(columns, True), np.zeros((1, 0), np.float32), np.array([0.4], np.float32), 0)
    assert t.read(columns, False).wide[0] == 0
    t.write(t.read(columns, True), np.zeros((1, 0), np.float32), np.array([0.4], np.float32), 0)
    assert t.read(columns, False).wide[0] < 0


def test_first_values_depend_on_id_and_salt_alone() -> None:
    a, b, other = table(), table(), table(salt=8)
    touch(a, [1, 2, 3])
    touch(b, [3])
    touch(b, [9, 1])
    touch(other, [1])
    columns = int64([[1], [3]])
    np.testing.assert_array_equal(a.read(columns, False).embedding, b.read(columns, False).embedding)
    assert (a.read(columns, False).embedding[0] != other.read(columns, False).embedding[0]).all()


def test_reading_for_learning_writes_nothing() -> None:
    t = table(admit=2)
    for _ in range(5):
        t.read(int64([[1], [2]]), learning=True)
    assert len(t) == 0
    assert not t.admission.counts.any()


def test_admission_by_count() -> None:
    t = table(admit=3)
    touch(t, [1, 2])
    touch(t, [1])
    assert held(t) == []
    assert (t.read(int64([[1]]), learning=False).embedding == 0).all()
    touch(t, [1, 3, 3, 3])
    assert held(t) == [1, 3]


def test_admission_forgets_and_holds_little() -> None:
    admission = Admission(2)
    size = admission.counts.nbytes
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(40):
        ids = rng.integers(1, 2**62, 50_000)
        ones = np.ones(len(ids), np.int32)
        wrong += int(admission.admits(ids, ones).sum())
        admission.count(ids, ones)
    assert admission.counts.nbytes == size
    assert wrong < 0.05 * 40 * 50_000  # ids taken for earlier ones


@examples(60)
@given(st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=8), max_size=25), st.integers(8, 16))
def test_table_full_keeps_what_was_seen_last(batches: list[list[int]], max_rows: int) -> None:
    t = table(max_rows=max_rows)
    seen: dict[int, int] = {}
    for now, batch in enumerate(batches):
        touch(t, batch, now)
        seen.update(dict.fromkeys(batch, now))
        assert len(t) <= max_rows
        assert set(batch) <= set(held(t))
        kept = [seen[i] for i in held(t)]
        gone = [when for i, when in seen.items() if i not in held(t)]
        seen = {i: when for i, when in seen.items() if i in held(t)}
        assert not gone or max(gone) <= min(k for k in [*kept, now])


def test_more_new_ids_than_rows_are_refused_and_counted() -> None:
    t = table(max_rows=4)
    touch(t, [1, 2, 3, 4, 5, 6, 6])
    assert len(t) == 4
    assert t.refused == 3


def test_age_evicts_row_and_optimiser_state() -> None:
    t = table(max_age_min=60)
    touch(t, [1, 2], 0)
    touch(t, [2], 50)
    assert t.expire(61) == 1
    assert held(t) == [2]
    change = t.changes()
    assert change.removed.tolist() == [1]
    touch(t, [1], 62)
    assert t.index.column("square")[t.index.find(int64([1]))] == 1.0  # one step of ones: nothing was left over


def test_changes_say_what_was_touched_and_removed_since() -> None:
    t = table(max_age_min=10)
    touch(t, [1, 2, 3], 0)
    assert t.changes().ids.tolist() == [1, 2, 3]
    touch(t, [2], 20)
    t.expire(21)
    touch(t, [3], 21)  # removed, then back: a row, not a tombstone
    change = t.changes()
    assert change.ids.tolist() == [2, 3]
    assert change.removed.tolist() == [1]
    assert t.changes().ids.tolist() == t.changes().removed.tolist() == []
