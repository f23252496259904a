"""The replay engine against the plain path: the same to the bit, in bounded memory, and failures are themselves."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from learner.network.dense import threads
from learner.ranker.frozen_scores import Still
from learner.ranker.model import OnlineModel
from millrace.basics.ranking_metrics import auc, group_ranks, log_loss, log_losses, within
from millrace.commands.replay.grouped import GroupedRows, day_codes, joint, page_codes
from millrace.commands.replay.logfeatures import LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, _promises
from millrace.commands.replay.replayrun import run_log
from millrace.commands.replay.sidebyside import Runner, StepQueue, Timing
from millrace.commands.replay.steps import Step, WaitingBlocks, WaitingRows, steps
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.labels import REGISTRY, Traffic, Waits, policy_named
from millrace.logs import LogTable, local_days
from tests.commands.replay.plain_replay import run_plain
from tests.scenes.exploring import examples
from tests.scenes.replayed_logs import (
    BY_PAGE,
    OF_USERS,
    PAGES,
    POLICIES,
    SCHEMA,
    SMALL,
    Recorder,
    beside,
    make_log,
    same,
)


@given(
    n=st.integers(1, 90),
    seed=st.integers(0, 1000),
    at_once=st.integers(1, 40),
    how=st.sampled_from(POLICIES + BY_PAGE),
    text=st.sampled_from([SCHEMA, PAGES, OF_USERS]),
    minutes=st.sampled_from([1, 90, 3 * 1440]),
)
@examples(40)
def test_scores_batches_and_frozen_scores_equal_the_plain_path(
    n: int, seed: int, at_once: int, how: LabelSettings, text: str, minutes: int
) -> None:
    schema = parse_schema(text)
    log = make_log(schema, n, seed, minutes)
    plain, engine = Recorder(), Recorder()
    groups, own = GroupedRows(log, schema), GroupedRows(log, schema)
    expected = run_plain(log, schema, plain, 16, lambda _: None, groups, how)
    found = beside(log, schema, engine, own, how, at_once)
    assert np.array_equal(expected, found)
    assert np.array_equal(groups.compared(expected)[0], own.compared(found)[0])
    assert len(plain.batches) == len(engine.batches)
    for one, other in zip(plain.batches, engine.batches, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    "more", [{}, {"averaging": 0.0}, {"model": "deepfm"}, {"model": "wide_deep"}, {"model": "wide_resnet_bn"}], ids=str
)
def test_a_model_scores_beside_its_learning_as_it_does_before(more: dict[str, Any]) -> None:
    schema, spec = parse_schema(PAGES), SMALL | more
    log = make_log(schema, 400, 3)
    groups, own = GroupedRows(log, schema), GroupedRows(log, schema)
    with threads(1):
        models = OnlineModel(schema, spec, 0), OnlineModel(schema, spec, 0)
        expected = run_plain(log, schema, models[0], 16, lambda _: None, groups, POLICIES[1])
        found = beside(log, schema, models[1], own, POLICIES[1], 50)
    assert np.array_equal(expected, found)
    assert np.array_equal(groups.compared(expected)[0], own.compared(found)[0])
    one, other = (m.snapshot() for m in models)
    for name in one[0].dense:
        assert np.array_equal(one[0].dense[name], other[0].dense[name]), name


def test_a_still_model_is_what_the_model_was_until_it_writes() -> None:
    schema = parse_schema(PAGES)
    log = make_log(schema, 200, 4)
    made = [s for s in steps(log, schema, 32, POLICIES[0]) if s.batch is not None and s.shown]
    model = OnlineModel(schema, SMALL, 0)
    still = Still(model)
    reported = []
    for step in made:
        still.refresh()
        _, cat, num = step.shown[0]
        before = model.score(cat, num)
        assert step.batch is not None
        score = partial(lambda c, n: reported.append(still.score(c, n)), cat, num)
        model.learn(step.batch, before_writing=score)
        assert np.array_equal(before, reported[-1])
    assert len(reported) == len(made) > 2


class Watch:
    """Notes what it is told, and that it is always the same thread."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, bytes]] = []
        self.threads = {threading.get_ident()}

    def scored(self, rows: np.ndarray, cat: np.ndarray, num: np.ndarray, p: np.ndarray) -> None:
        self.threads.add(threading.get_ident())
        self.reported.append(("scored", rows.tobytes() + cat.tobytes() + num.tobytes() + p.tobytes()))

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
        self.threads.add(threading.get_ident())
        columns = (samples.row[part], samples.known_ms[part], samples.kind[part], batch.cat)
        self.reported.append(("learnt", b"".join(np.ascontiguousarray(c).tobytes() for c in columns)))


def test_an_observer_is_given_the_same_in_the_same_order_by_the_thread_that_calls() -> None:
    schema = parse_schema(SCHEMA)
    log = make_log(schema, 300, 5)
    with threads(1):
        watches = Watch(), Watch()
        model = OnlineModel(schema, SMALL, 0)
        run_plain(log, schema, model, 16, lambda _: None, None, POLICIES[0], watches[0])
        run_log(log, schema, OnlineModel(schema, SMALL, 0), 16, lambda _: None, None, POLICIES[0], watches[1])
    assert watches[0].reported == watches[1].reported
    assert len(watches[1].threads) == 1


@given(
    policy=st.sampled_from(sorted(REGISTRY)),
    steps_ms=st.lists(st.sampled_from([0, 1, 700, 9_000, 50_000, 60_000, 60_001, 400_000]), min_size=1, max_size=80),
    cut=st.integers(0, 80),
    attribution_ms=st.sampled_from([1, 60_000, 300_000]),
)
@examples(200)
def test_promises_of_a_stretch_equal_those_made_one_by_one(
    policy: str, steps_ms: list[int], cut: int, attribution_ms: int
) -> None:
    ts_ms, waits = np.cumsum(steps_ms), Waits(attribution_ms, 10_000, 0)
    one, many = Traffic(), Traffic()
    expected = [one.promise(policy_named(policy), waits, at) for at in ts_ms.tolist()]
    parts = [part for part in np.split(ts_ms, [min(cut, len(ts_ms))]) if len(part)]
    found = [np.stack(_promises(part, policy_named(policy), waits, many), axis=1) for part in parts]
    assert np.concatenate(found).tolist() == [list(promise) for promise in expected]
    assert one == many


# -- memory ------------------------------------------------------------------------------------------------------------


def held(days: int) -> tuple[int, int]:
    """(most rows, most events) that are held at once on a log of as many like days."""
    schema = parse_schema(PAGES)
    log = make_log(schema, 500 * days, 6, days * 1440)
    made, waiting = Stretches(log, schema, POLICIES[0], rows_at_once=50), WaitingBlocks()
    rows = events = 0
    for number, start in enumerate(made.bounds[:-1].tolist()):
        if known := waiting.known(int(made.ts_ms[start])):
            waiting.pop(known)
        waiting.release(start)
        stretch = made.make(number)
        waiting.add(WaitingRows.of(stretch, None), stretch.samples)
        rows, events = max(rows, waiting.held), max(events, made.waiting)
    return rows, events


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_the_log() -> None:
    short, long = held(6), held(24)
    assert long[0] <= 1.25 * short[0]
    assert long[1] <= 1.25 * short[1]
    assert long[0] < 500 * 24 / 20


def test_a_late_click_does_not_keep_its_whole_stretch() -> None:
    schema = parse_schema(SCHEMA)
    log = make_log(schema, 400, 7)
    made, waiting = Stretches(log, schema, POLICIES[1], rows_at_once=400), WaitingBlocks()
    stretch = made.make(0)
    waiting.add(WaitingRows.of(stretch, None), stretch.samples)
    waiting.pop(len(waiting.queue.row) - 3)
    left = set(waiting.queue.row.tolist())
    waiting.release(stretch.rows.n)
    assert waiting.held == len(left)
    batch = waiting.pop(3)[1]
    assert len(batch) == 3


# -- threads -----------------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def an_engine(schema: Schema) -> tuple[LogTable, OnlineModel]:
    return make_log(schema, 300, 8), OnlineModel(schema, SMALL, 0)


def no_thread_is_left() -> bool:
    return not any(t.name.startswith(("features", "scores")) for t in threading.enumerate())


def test_a_failure_of_the_features_surfaces_as_itself() -> None:
    schema = parse_schema(SCHEMA)
    log, model = an_engine(schema)

    def failing() -> Iterator[Step]:
        for k, step in enumerate(steps(log, schema, 16, POLICIES[0])):
            if k == 3:
                raise Broken("features")
            yield step

    done: list[int] = []
    with pytest.raises(Broken, match="features"):
        done.extend(Runner(model, np.empty(300, np.float32)).run(failing()))
    assert len(done) == 3
    assert no_thread_is_left()


def test_a_failure_of_the_scores_surfaces_as_itself_and_nothing_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = parse_schema(SCHEMA)
    log, model = an_engine(schema)

    def broken(*_: Any) -> None:
        raise Broken("scores")

    monkeypatch.setattr(Still, "score", broken)
    with pytest.raises(Broken, match="scores"):
        run_log(log, schema, model, 16, lambda _: None, None, POLICIES[0])
    assert model.rows == 0
    assert no_thread_is_left()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, Broken])
def test_an_end_in_the_learners_thread_ends_the_others(failure: type[BaseException]) -> None:
    schema = parse_schema(SCHEMA)
    log, model = an_engine(schema)

    def tick(_: int) -> None:
        raise failure

    with pytest.raises(failure):
        run_log(log, schema, model, 16, tick, None, POLICIES[0])
    assert no_thread_is_left()


def test_a_channel_holds_no_more_rows_than_it_may() -> None:
    schema = parse_schema(SCHEMA)
    log, _ = an_engine(schema)
    made = list(steps(log, schema, 16, POLICIES[0]))
    most, begun, given_out = 40, 0, 0
    waits = threading.Event()

    def counted() -> Iterator[Step]:
        nonlocal begun
        for step in made:
            begun += step.size
            if begun - step.size > most:
                waits.set()
            yield step

    channel = StepQueue(counted(), Timing(), most)
    largest = max(step.size for step in made)
    for step in channel:
        given_out += step.size
        assert begun - given_out <= most + 3 * largest  # what is held, the one that waits to be put in, the next
    assert waits.is_set()
    assert given_out == sum(step.size for step in made)
    channel.close()


# -- figures in little memory ------------------------------------------------------------------------------------------


@given(n=st.integers(0, 200), seed=st.integers(0, 1000), distinct=st.integers(1, 50), groups=st.integers(1, 30))
@examples(60)
def test_figures_of_long_logs_equal_those_of_short_ones(n: int, seed: int, distinct: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    p = (rng.integers(0, distinct, n) / distinct).astype(np.float32)
    y, group = (rng.random(n) < 0.3).astype(np.int8), rng.integers(0, groups, n).astype(np.int32)
    high, low = int(y.sum()), n - int(y.sum())
    area = (rankdata(p)[y == 1].sum() - high * (high + 1) / 2) / (high * low) if high and low else math.nan
    for ours, plain in (
        (auc(p, y), area),
        *zip(group_ranks(p, y, group, 16).means().values(), within(p, y, group).values(), strict=True),
        (float(log_losses(p, y, 16).mean()) if n else math.nan, log_loss(p, y)),
    ):
        assert ours == plain or (np.isnan(ours) and np.isnan(plain))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.booleans())
def test_joint_numbers_combinations_in_ascending_order(pairs: list[tuple[int, int]], ordered: bool) -> None:
    pairs = sorted(pairs) if ordered else pairs
    number = {pair: k for k, pair in enumerate(sorted(set(pairs)))}
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    assert joint(a, b).tolist() == [number[pair] for pair in pairs]


@given(n=st.integers(1, 90), seed=st.integers(0, 1000))
@examples(20)
def test_a_page_is_a_users_where_the_identity_has_the_user(n: int, seed: int) -> None:
    """Pages are numbered as they first appear; without the user in the identity a page is a request."""
    log = make_log(parse_schema(PAGES), n, seed)
    names, users = (log.table[name].to_pylist() for name in ("page", "user"))
    for text, of in ((PAGES, names), (OF_USERS, list(zip(names, users, strict=True)))):
        schema, number = parse_schema(text), {page: k for k, page in enumerate(dict.fromkeys(of))}
        codes, rows = page_codes(log, schema), LogRows(log, schema)
        assert codes is not None
        assert codes.tolist() == rows.page.tolist() == [number[page] for page in of]
        assert list(rows.requests(rows.page)) == rows.names().tolist() == names
        assert rows.named().tolist() == [number[of[names.index(name)]] for name in names]


def test_day_codes_are_the_local_days() -> None:
    schema = parse_schema(SCHEMA + 'day = "page"\n')
    log = make_log(schema, 200, 9)
    named = pa.array([f"2022-04-2{k % 5}" for k in range(200)])
    table = log.table.set_column(log.table.column_names.index("page"), "page", named)
    for plan, one in ((parse_schema(SCHEMA), log), (schema, LogTable(table, "user", "item", "click", 200, 0))):
        names, code = day_codes(one, plan)
        assert [names[c] for c in code.tolist()] == local_days(one, plan)
        assert list(names) == sorted(names)
