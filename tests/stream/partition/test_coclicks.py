"""Co-clicks against plain Python, written from the rules: pairs, days, who makes room for whom."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import DAY_MS
from millrace.contracts.coclick_message import DAYS, MOST, WEIGHTS
from stream.partition.coclick_counts import EARLIER, WITHIN_MS, CoClicks
from stream.worker.stream_output import REPUBLISH_AT_ONCE, REPUBLISH_SECONDS, Rotation
from tests.scenes.coclick_worth import worth
from tests.scenes.exploring import examples
from tests.scenes.turn_scene import lists_of, whole_lists

Days = dict[int, int]
"""Day -> common clicks."""


class Plain:
    """Dictionaries of day counts. A list's order is that of counting: the first was counted longest ago."""

    def __init__(self, most_items: int) -> None:
        self.most, self.day = most_items, -1
        self.lists: dict[int, dict[int, Days]] = {}  # the item that was counted longest ago first

    def add(self, pairs: list[tuple[int, int]], days: list[int]) -> None:
        for (a, b), day in zip(pairs, days, strict=True):
            self._begin(day)
            if day <= self.day - DAYS:
                continue
            if len(self.lists) + 2 > self.most:
                for item in list(self.lists)[: max(2, self.most // 8)]:
                    del self.lists[item]
            for item, other in ((a, b), (b, a)):
                own = self.lists[item] = self.lists.pop(item, {})
                self._count(own, other, day)

    def _begin(self, day: int) -> None:
        if day <= self.day:
            return
        self.day = day
        for item, own in list(self.lists.items()):
            for other, counts in list(own.items()):
                own[other] = {d: n for d, n in counts.items() if d > day - DAYS}
                if not own[other]:
                    del own[other]
            if not own:
                del self.lists[item]

    def worth(self, counts: Days) -> int:
        return sum(n * WEIGHTS[self.day - day] for day, n in counts.items())

    def _count(self, own: dict[int, Days], other: int, day: int) -> None:
        if other not in own and len(own) == MOST:
            least = min(own, key=lambda o: self.worth(own[o]))  # the first of equals: counted longest ago
            if self.worth(own[least]) > WEIGHTS[self.day - day]:
                oldest = min(own[least])
                own[least][oldest] -= 1
                if not own[least][oldest]:
                    del own[least][oldest]
                return
            del own[least]
        counts = own[other] = own.pop(other, {})
        counts[day] = counts.get(day, 0) + 1

    def reported(self) -> dict[tuple[int, int], dict[int, Days]]:
        return {(0, item): own for item, own in self.lists.items()}


def add(counted: CoClicks, pairs: list[tuple[int, int]], days: list[int]) -> None:
    counted.add(np.array(pairs, np.uint64).reshape(-1, 2), np.array(days, np.int64) * DAY_MS + 5)


DEED = st.tuples(st.integers(1, 6), st.integers(7, 30), st.integers(-2, 1))
"""Two items, of few and of many, and how much later than the last pair."""


@examples(200)
@given(st.lists(DEED, max_size=250), st.sampled_from([4, 12, 100]), st.lists(st.integers(0, 250), max_size=4))
def test_counts_are_those_of_plain_python_however_pairs_are_cut(
    deeds: list[tuple[int, int, int]], most_items: int, cuts: list[int]
) -> None:
    pairs, days, day = [(a, b) for a, b, _ in deeds], [], 20_000
    for _, _, later in deeds:
        day += later
        days.append(day)
    counted, plain = CoClicks(most_items), Plain(most_items)
    plain.add(pairs, days)
    bounds = sorted({0, len(pairs), *(min(cut, len(pairs)) for cut in cuts)})
    for start, stop in pairwise(bounds):
        add(counted, pairs[start:stop], days[start:stop])
    assert whole_lists(0, counted) == plain.reported()
    assert len(counted) == len(plain.lists) <= most_items
    again = CoClicks(most_items)
    again.resume(counted.snapshot().plain())
    for each in (counted, again):  # and both go on alike
        add(each, pairs[::-1], sorted(days))
    plain.add(pairs[::-1], sorted(days))
    assert whole_lists(0, counted) == whole_lists(0, again) == plain.reported()


def test_who_comes_often_stays_and_who_keeps_coming_gets_in() -> None:
    counted = CoClicks()
    add(counted, [(1, 100 + k) for k in range(MOST)] * 5, [20_000] * 5 * MOST)
    add(counted, [(1, 500 + k) for k in range(30)], [20_000] * 30)  # each comes once
    near = lists_of(0, counted.changes())[0, 1]
    often = {100 + k for k in range(MOST)}
    assert len(often - set(near)) <= 1, "what came once pushed out what came five times"
    add(counted, [(1, 999)] * (5 * MOST), [20_000] * 5 * MOST)
    near = lists_of(0, counted.changes())[0, 1]
    assert 999 in near
    assert near[999][20_000] <= 5 * MOST, "no count is too high"


def test_a_click_is_counted_with_those_before_it_each_other_item_once() -> None:
    counted, now = CoClicks(), 20_000 * DAY_MS + 1000
    before = np.array([7, 2, 7, 1, 3], np.uint64)  # 7 twice, and the item itself
    before_ms = np.array([now, now - 1, now - 2, now - 3, now - WITHIN_MS])  # the last one is a day ago
    counted.click(np.array([1], np.uint64), np.array([now]), np.array([EARLIER]), before, before_ms)
    day = 20_000
    assert whole_lists(0, counted) == {
        (0, 1): {7: {day: 1}, 2: {day: 1}},
        (0, 7): {1: {day: 1}},
        (0, 2): {1: {day: 1}},
    }


def test_what_is_over_goes_with_its_days() -> None:
    counted = CoClicks()
    add(counted, [(1, 2), (1, 3)], [20_000, 20_003])
    counted.sweep(20_006 * DAY_MS)
    assert len(counted) == 3, "the newest day is not over"
    add(counted, [(8, 9)], [20_007])
    assert lists_of(0, counted.part(0.0, 1.0))[0, 1] == {3: {20_003: 1}}
    assert (0, 2) not in whole_lists(0, counted)
    counted.sweep(20_014 * DAY_MS)
    assert len(counted) == 0
    add(counted, [(8, 9)], [20_014])
    assert whole_lists(0, counted) == {(0, 8): {9: {20_014: 1}}, (0, 9): {8: {20_014: 1}}}


def test_a_late_click_counts_on_its_own_day_and_one_that_is_too_late_on_none() -> None:
    counted = CoClicks()
    add(counted, [(1, 2), (1, 2), (3, 4)], [20_010, 20_004, 20_003])
    assert whole_lists(0, counted) == {(0, 1): {2: {20_010: 1, 20_004: 1}}, (0, 2): {1: {20_010: 1, 20_004: 1}}}
    lists = counted.changes()
    assert worth(lists.counts[:1]).tolist() == [WEIGHTS[0] + WEIGHTS[6]]


def test_everything_is_published_again_in_turn_whatever_comes_and_goes_meanwhile() -> None:
    rng, counted, turn = np.random.default_rng(0), CoClicks(), Rotation()
    counted.add(rng.integers(0, 2**64, (500, 2), np.uint64), np.full(500, 20_000 * DAY_MS))
    counted.changes()
    there = set(whole_lists(0, counted))
    reported: set[tuple[int, int]] = set()
    steps = 40
    for step in range(steps + 2):
        reported |= set(lists_of(0, turn.next(counted, step * REPUBLISH_SECONDS / steps)))
        counted.add(rng.integers(0, 2**64, (5, 2), np.uint64), np.full(5, 20_000 * DAY_MS))
    assert there <= reported
    assert len(counted.changes().items), "what is told again has not thereby been told as changed"
    late = turn.next(counted, 1e9)  # after a long silence it is no flood
    assert len(late.items) < len(counted) * 2 * REPUBLISH_AT_ONCE


def test_the_first_and_the_last_hash_have_their_turn() -> None:
    counted = CoClicks()
    counted.add(np.array([[1, 2**64 - 1]], np.uint64), np.array([20_000 * DAY_MS]))
    assert counted.part(0.0, 0.5).items.tolist() == [1]
    assert counted.part(0.5, 1.0).items.tolist() == [2**64 - 1]


@pytest.mark.parametrize("name", ["items", "filled", "counts", "when"])
def test_a_state_whose_arrays_do_not_fit_is_refused(name: str) -> None:
    counted = CoClicks()
    add(counted, [(1, 2), (3, 4)], [20_000, 20_000])
    state = counted.snapshot().plain()
    with pytest.raises(ValueError, match="arrays"):
        CoClicks().resume({**state, name: state[name] + b"\1" * 8})


def test_items_are_published_again_whether_they_are_there_or_not_once() -> None:
    """Of one that is there, its list; of another, that it has none. A snapshot keeps what is still to be told."""
    counted = CoClicks()
    counted.add(np.array([[1, 2]], np.uint64), np.array([DAY_MS]))
    assert counted.changes().items.tolist() == [1, 2]
    counted.republish(np.array([9, 2], np.uint64))
    again = CoClicks()
    again.resume(counted.snapshot().plain())
    for one in (counted, again):
        assert lists_of(0, one.changes()) == {(0, 2): {1: {1: 1}}, (0, 9): {}}
        assert not len(one.changes().items)
