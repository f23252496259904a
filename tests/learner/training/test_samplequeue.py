"""Samples wait in order, and late clicks for company; none is lost, none comes twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.ranker.model import OnlineModel
from learner.training.samplequeue import AT_LEAST, AT_ONCE_ROWS, MOST_WAITING, LateClickQueue, MicroBatch, SampleQueue
from millrace.contracts.samples import CORRECTION, NEGATIVE, OUTCOME, PAGE, POSITIVE
from tests.learner.training.test_trainer import trainer
from tests.scenes.learning import SCHEMA, make_samples

KINDS = np.array([NEGATIVE, POSITIVE, CORRECTION, PAGE, OUTCOME], np.uint8)


def part(kind: list[int] | np.ndarray, offset: int = 0) -> MicroBatch:
    """Rows of these kinds, at an offset."""
    n = len(kind)
    batch = replace(make_samples(max(n, 1), 0).take(slice(0, n)), kind=np.asarray(kind, np.uint8))
    places = np.stack([np.zeros(n, np.int64), np.full(n, offset), np.arange(n)], axis=1)
    return MicroBatch(batch, places, np.full(n, 1000 + offset, np.int64))


def late(n: int, offset: int = 0) -> MicroBatch:
    return part([CORRECTION] * n, offset)


def negatives(n: int, offset: int = 0) -> MicroBatch:
    return part([NEGATIVE] * n, offset)


def count(rows: MicroBatch) -> int:
    return int((rows.batch.kind == CORRECTION).sum())


@given(st.lists(st.integers(0, 40), max_size=8), st.lists(st.integers(1, 90), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_queue_gives_what_was_put_in_order(sizes: list[int], wanted: list[int]) -> None:
    queue, again, given_ = SampleQueue(), SampleQueue(), list[list[int]]()
    for offset, size in enumerate(sizes):
        queue.put(negatives(size, offset))
    put = [[0, offset, row] for offset, size in enumerate(sizes) for row in range(size)]
    for rows in wanted:
        if not queue.rows:
            break
        assert queue.head(rows).places[:rows].tolist() == put[len(given_) : len(given_) + rows]
        found = queue.pop(rows)
        assert len(found.batch) == len(found.joined_ms) == min(rows, len(put) - len(given_))
        assert (found.joined_ms == 1000 + found.places[:, 1]).all()
        given_ += found.places.tolist()
    again.resume(queue.snapshot())
    assert queue.rows == again.rows == len(put) - len(given_)
    if queue.rows:
        given_ += again.pop(queue.rows).places.tolist()
    assert given_ == put


def test_rows_with_the_usual_late_clicks_pass_as_they_are() -> None:
    queue, rng = LateClickQueue(), np.random.default_rng(5)
    for offset in range(200):
        came = part(rng.choice(KINDS, 100, p=[0.6, 0.1, 0.15, 0.1, 0.05]), offset)
        assert queue.through(came) is came
    assert queue.waiting.rows == 0


def test_where_each_click_comes_late_and_each_row_is_clicked_none_waits() -> None:
    """As with a policy that first says of each exposure that it was not clicked."""
    queue = LateClickQueue()
    for offset in range(600):
        assert queue.through(negatives(90, offset)).batch.kind.tolist() == [NEGATIVE] * 90
        assert count(queue.through(late(90, offset))) == 90


def test_late_clicks_alone_wait_and_come_beside_negatives_first_ones_first() -> None:
    queue = LateClickQueue()
    for offset in range(1000):
        queue.through(part([NEGATIVE] * 98 + [CORRECTION] * 2, offset))
    came = [queue.through(late(10, 1000 + offset)) for offset in range(60)]
    alone = sum(len(rows.batch) for rows in came)
    assert 0 < alone <= 0.03 * AT_ONCE_ROWS
    assert queue.waiting.rows == 600 - alone
    assert count(queue.through(part([POSITIVE] * 200, 4000))) == 0, "where pages begin again, clicks are known first"
    passed, rows = list[list[int]](), 0
    while queue.waiting.rows:
        found = queue.through(negatives(100, 5000))
        passed += found.places[found.batch.kind == CORRECTION].tolist()
        assert (found.places[:, 1] == 5000).sum() == 100
        rows += 100
        # Twice 2.0%, and these 600 and the 256 of the beginning as parts of 65,536.
        assert len(passed) <= 2 * (0.0205 + 856 / 65_536) * rows + 1
    assert [place[1:] for place in passed] == [[1000 + n // 10, n % 10] for n in range(alone, 600)]
    assert rows <= 600 / 0.04


def test_where_late_clicks_are_few_some_pass_at_once() -> None:
    queue = LateClickQueue()
    for offset in range(100):
        queue.through(negatives(5000, offset))
    assert [count(queue.through(late(1, 1000 + n))) for n in range(AT_LEAST + 1)] == [1] * AT_LEAST + [0]


def test_more_than_may_wait_are_let_through() -> None:
    queue = LateClickQueue()
    queue.through(negatives(70_000))
    queue.through(late(MOST_WAITING))
    found = queue.through(late(500, 1))
    assert queue.waiting.rows == MOST_WAITING
    assert found.places[:, 1].tolist() == [0] * len(found.places)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), max_size=12))
@settings(max_examples=60, deadline=None)
def test_none_is_lost_and_a_restart_changes_nothing(messages: list[tuple[int, int, bool]]) -> None:
    queue, twin = LateClickQueue(), LateClickQueue()
    for one in (queue, twin):
        one.through(negatives(5000, 100))
    came, passed = set[tuple[int, ...]](), list[tuple[int, ...]]()
    for offset, (others, clicks, restarts) in enumerate(messages):
        rows = part([NEGATIVE] * others + [CORRECTION] * clicks, offset)
        came |= {tuple(place) for place in rows.places.tolist()}
        if restarts:
            state, queue = queue.snapshot(), LateClickQueue()
            queue.resume(state)
        found = queue.through(rows)
        assert found.places.tolist() == twin.through(rows).places.tolist()
        passed += [tuple(place) for place in found.places.tolist()]
    waiting = twin.waiting.head(twin.waiting.rows).places.tolist() if twin.waiting.rows else []
    everything = passed + [tuple(place) for place in waiting]
    assert len(everything) == len(came)
    assert set(everything) == came


def test_a_model_that_meets_late_clicks_alone_stays_calibrated() -> None:
    """Pages stop, and the clicks on the last of them still come: then pages come again."""
    t, probe = trainer(), make_samples(2000, 77)

    def said() -> float:
        return float(t.model.score(probe.cat, probe.num).mean())

    def learn(batch: object, offset: int) -> None:
        t.take(batch, offset=offset)  # type: ignore[arg-type]
        while t.step(drain=True) is not None:
            pass

    for seed in range(60):
        learn(make_samples(200, seed), seed)
    usual, learnt = said(), t.counts["trained"]
    batch = make_samples(2000, 100)
    clicked = batch.take(batch.label > 0)
    for start in range(0, len(clicked), 10):
        few = clicked.take(slice(start, start + 10))
        learn(replace(few, kind=np.full(len(few), CORRECTION, np.uint8)), 100 + start)
    assert len(t.waiting) > len(clicked) // 2
    assert t.counts["trained"] - learnt + len(t.waiting) == len(clicked)
    alone = OnlineModel(SCHEMA, t.model.spec, 0)
    alone.resume(*t.model.snapshot())
    for start in range(0, len(clicked), 64):
        alone.learn(clicked.take(slice(start, start + 64)))
    unheld = float(alone.score(probe.cat, probe.num).mean())
    assert abs(said() - usual) < 0.25 * (unheld - usual)


def test_what_waits_outlives_a_restart() -> None:
    t, again = trainer(), trainer()
    t.take(make_samples(200, 0), offset=0)
    for offset in range(1, 9):
        batch = make_samples(100, offset)
        t.take(replace(batch, kind=np.full(100, CORRECTION, np.uint8)), offset=offset)
    image, training = t.model.snapshot()
    training |= t.snapshot()
    again.model.resume(image, training)
    again.resume(training, {})
    assert len(t.waiting)
    assert again.waiting.tolist() == t.waiting.tolist()
    for one in (t, again):
        one.take(make_samples(300, 50), offset=50)
        while one.step(drain=True) is not None:
            pass
    assert t.model.snapshot()[0].same_bits(again.model.snapshot()[0]) == ""
    assert again.waiting.tolist() == t.waiting.tolist()
