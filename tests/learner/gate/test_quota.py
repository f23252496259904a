"""Limits of what one id may teach in an hour, against a plain count row by row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from learner.gate import quota
from millrace.basics.durations import HOUR_MS
from millrace.basics.errors import SettingError
from millrace.contracts.samples import SampleBatch
from tests.scenes.learning import SCHEMA

START_MS = 472_223 * HOUR_MS


class Quota(quota.Quota):
    """Limits at the time of what it is asked about."""

    def over(self, batch: SampleBatch, counts: bool = True) -> np.ndarray:
        self.clock.now_ms = int(np.sort(batch.ts_ms)[(len(batch) - 1) // 2]) if len(batch) else 0
        return super().over(batch, counts)


def rows(
    user: list[int], item: list[int] | None = None, ts_ms: int = START_MS, cat: np.ndarray | None = None
) -> SampleBatch:
    n = len(user)
    return SampleBatch.of_rows(
        np.zeros(n, np.uint8),
        np.full(n, ts_ms, np.int64),
        np.ones((n, SCHEMA.layout.F), np.int64) if cat is None else cat,
        np.ones((n, SCHEMA.layout.N), np.float32),
        user=np.array(user, np.uint64),
        item=np.array(item or range(100, 100 + n), np.uint64),
    )


def test_rows_beyond_the_limit_of_an_hour_are_over() -> None:
    q = Quota(SCHEMA, {"user": 3})
    assert q.over(rows([1, 1, 2])).tolist() == [False] * 3
    assert q.over(rows([1, 1, 2, 1])).tolist() == [False, True, False, True]
    assert q.over(rows([1, 2, 2])).tolist() == [True, False, True]
    assert q.over(rows([1, 1], ts_ms=START_MS + HOUR_MS)).tolist() == [False, False]


def test_what_was_counted_before_is_judged_and_not_counted() -> None:
    q = Quota(SCHEMA, {"user": 2, "item": 9})
    assert q.over(rows([1, 2]), counts=False).tolist() == [False] * 2
    assert q.over(rows([1, 2])).tolist() == [False] * 2
    assert q.over(rows([1, 1, 1, 2]), counts=False).tolist() == [False] * 4
    assert q.over(rows([1, 2])).tolist() == [False] * 2, "the limit is reached only now"
    assert q.over(rows([1, 3]), counts=False).tolist() == [True, False]


def test_a_late_row_and_one_with_a_wrong_clock_begin_no_new_hour() -> None:
    q = Quota(SCHEMA, {"user": 2})
    q.over(rows([1, 1]))
    assert q.over(rows([1], ts_ms=START_MS - HOUR_MS)).tolist() == [True]
    mixed = rows([1, 2, 3])
    mixed.ts_ms[1] += 9 * HOUR_MS
    assert q.over(mixed).tolist() == [True, False, False]
    assert q.over(rows([2, 2])).tolist() == [False, True]


def test_a_row_that_is_over_counts_for_no_other_limit() -> None:
    q = Quota(SCHEMA, {"user": 1, "item": 2})
    assert q.over(rows([1, 1, 1, 2, 3], [9, 9, 9, 9, 9])).tolist() == [False, True, True, False, True]


def test_missing_ids_have_no_limit() -> None:
    q = Quota(SCHEMA, {"user": 1})
    assert not q.over(rows([0, 0, 0])).any()
    assert q.over(rows([0, 5, 5])).tolist() == [False, False, True]
    assert not q.over(rows([0, 0])).any()


def test_each_slot_of_a_field_counts() -> None:
    layout = SCHEMA.layout
    first = layout.cat_names.index("tags")
    cat = np.ones((3, layout.F), np.int64)
    cat[:, first : first + 3] = [[-7, 0, 0], [0, 8, -7], [8, 0, 0]]
    assert Quota(SCHEMA, {"tags": 1}).over(rows([1, 2, 3], cat=cat)).tolist() == [False, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_count_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = {"user": int(rng.integers(2, 30)), "item": int(rng.integers(2, 30))}
    q, plain = Quota(SCHEMA, limits), {name: Counter[int]() for name in limits}
    over = 0
    for _ in range(40):
        n = int(rng.integers(1, 20))
        user, item = rng.integers(0, 8, n).tolist(), rng.integers(0, 8, n).tolist()
        expected = []
        for ids in zip(user, item, strict=True):
            known = [(name, i) for name, i in zip(limits, ids, strict=True) if i]
            expected.append(any(plain[name][i] >= limits[name] for name, i in known))
            if not expected[-1]:
                for name, i in known:
                    plain[name][i] += 1
        assert q.over(rows(user, item)).tolist() == expected
        over += sum(expected)
    assert over


def test_goes_on_from_a_snapshot() -> None:
    q, other = (Quota(SCHEMA, {"user": 3, "item": 50}) for _ in range(2))
    q.over(rows([1, 1, 2]))
    other.resume(q.snapshot())
    q.over(rows([1, 1, 1]))
    assert other.over(rows([1, 1, 2, 2])).tolist() == [False, True, False, False]
    other.resume({})
    assert not other.over(rows([1, 1, 2, 2])).any()


def test_a_limit_that_is_new_counts_from_nothing() -> None:
    old, new = Quota(SCHEMA, {"user": 1}), Quota(SCHEMA, {"user": 1, "item": 1})
    old.over(rows([1], [9]))
    new.resume(old.snapshot())
    assert new.over(rows([1, 2, 3], [9, 9, 9])).tolist() == [True, False, True]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MOST_IDS", 4)
    q = Quota(SCHEMA, {"user": 1})
    for first in range(1, 50, 5):
        assert not q.over(rows([*range(first, first + 5)])).any()
    assert len(q.snapshot()["user/ids"]) == 4
    assert q.over(rows([1, 49])).tolist() == [True, False]


def test_nothing_is_limited_without_limits() -> None:
    assert not Quota(SCHEMA, {}).over(rows([1] * 9)).any()
    assert not Quota(SCHEMA, {"user": 1}).over(rows([])).any()


def test_a_limit_of_no_field() -> None:
    with pytest.raises(SettingError, match="'price', which is no categorical field"):
        Quota(SCHEMA, {"price": 3})
