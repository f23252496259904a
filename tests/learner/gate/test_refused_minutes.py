"""Which minutes were refused: more of their exposures than were learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.gate.refused_minutes import KEPT_MINUTES, RefusedMinutes
from millrace.contracts.samples import CORRECTION, NEGATIVE, PAGE, POSITIVE, SampleBatch
from tests.learner.gate.plain_model import MINUTE_MS, START_MS
from tests.scenes.exploring import examples

START = START_MS // MINUTE_MS


def rows(minutes: list[int], kind: int = NEGATIVE, writeable: bool = True) -> SampleBatch:
    """Rows of these minutes."""
    n = len(minutes)
    ts_ms = (START + np.array(minutes, np.int64)) * MINUTE_MS + 59_999
    made = SampleBatch.of_rows(np.zeros(n, np.uint8), ts_ms, np.ones((n, 1), np.int64), np.ones((n, 1), np.float32))
    made = replace(made, kind=np.full(n, kind, np.uint8))
    for array in (made.ts_ms, made.kind):
        array.flags.writeable = writeable
    return made


def of(known: RefusedMinutes, *minutes: int) -> list[bool]:
    found: list[bool] = known.of((START + np.array(minutes, np.int64)) * MINUTE_MS).tolist()
    return found


Step = tuple[str, list[int], bool]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["learnt", "refused", "back"]), st.lists(st.integers(-3, 5), max_size=9), st.booleans()
        ),
        max_size=20,
    )
)
@examples(100)
def test_a_minute_is_refused_where_more_of_it_was_refused_than_learnt(steps: list[Step]) -> None:
    known, learnt, refused = RefusedMinutes(), list[tuple[int, list[int]]](), list[int]()
    for n, (what, minutes, writeable) in enumerate(steps):
        batch = rows(minutes, writeable=writeable)
        if what == "learnt":
            known.learnt(n, batch)
            learnt.append((n, minutes))
        elif what == "refused":
            known.refused(batch)
            refused += minutes
        else:
            known.went_back([number for number, _ in learnt[len(minutes) :]])
            refused += [minute for _, gone in learnt[len(minutes) :] for minute in gone]
            del learnt[len(minutes) :]
    again, there = RefusedMinutes(), [minute for _, some in learnt for minute in some]
    again.resume(known.snapshot())
    wanted = [refused.count(minute) > there.count(minute) for minute in range(-3, 6)]
    assert of(known, *range(-3, 6)) == of(again, *range(-3, 6)) == wanted


def test_only_what_went_back_changes_and_a_release_ends_it() -> None:
    """A way back from the middle of a minute leaves what was learnt of it before."""
    known = RefusedMinutes()
    known.learnt(1, rows([0] * 128))
    known.learnt(2, rows([0] * 32 + [41] * 8))
    known.refused(rows([0] * 32))
    known.went_back([2])
    assert of(known, 0, 1, 20, 41) == [False, False, False, True]
    known.learnt(3, rows([41] * 8), released=True)
    assert of(known, 0, 41) == [False, False]
    known.went_back([3])
    assert of(known, 0, 41) == [False, True], "what was released may go back, too"


def test_a_release_without_the_rows_of_a_deleted_user_ends_it_too() -> None:
    known = RefusedMinutes()
    known.refused(rows([3] * 60))
    known.learnt(1, rows([3] * 58), released=True)
    assert of(known, 3) == [False]


def test_nothing_goes_back_behind_a_snapshot() -> None:
    known = RefusedMinutes()
    known.learnt(1, rows([0]))
    known.learnt(2, rows([1]))
    known.forget(1)
    known.went_back([1, 2])
    assert of(known, 0, 1) == [False, True]


def test_only_exposures_count() -> None:
    known = RefusedMinutes()
    known.refused(rows([1], POSITIVE))
    for kind in (CORRECTION, PAGE):
        known.learnt(kind, rows([1, 1], kind))
        known.refused(rows([2, 2], kind))
    assert of(known, 1, 2) == [True, False]


def test_a_minute_of_more_than_a_month_ago_is_not_known_any_more() -> None:
    known = RefusedMinutes()
    known.refused(rows([1, 2]))
    known.learnt(1, rows([1 - KEPT_MINUTES, 1 + KEPT_MINUTES, 2 - KEPT_MINUTES]))
    assert of(known, 1, 2, 1 + KEPT_MINUTES, 2 + KEPT_MINUTES) == [False, True, False, False]


def test_an_empty_state_is_a_fresh_one() -> None:
    known = RefusedMinutes()
    known.refused(rows([1]))
    known.resume({})
    assert of(known, 1) == [False]
