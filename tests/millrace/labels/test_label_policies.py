"""Label policies: promises, weights against their papers, the rate that a model comes to, a log against the join."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learner.network.models.delays import ENOUGH, PRIOR, Delays
from learner.ranker.model import OnlineModel
from learner.training.evolve import evolve
from millrace.basics.errors import SettingError
from millrace.commands.history.logevents import LogEvents
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples
from millrace.contracts.events import ACTIONS
from millrace.contracts.samples import CORRECTION, NEGATIVE, POLICIES, POSITIVE, SampleBatch
from millrace.contracts.schema import load_schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY, WITH_EXPOSURE, Promise, Traffic, Waits, final, policy_named, weigh, weighs
from millrace.labels.policy import MOST
from millrace.logs import read_log
from stream.partition.partition import Partition
from tests.scenes.examples_samples import SAMPLES
from tests.scenes.exploring import examples
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.stream_world import MINUTE, T0, Log, Sum, action, exposure, page_log
from tests.scenes.stream_world import POLICY as JOIN
from tests.scenes.stream_world import SCHEMA as STREAM_SCHEMA

WAITS = Waits(attribution_ms=300_000, observation_ms=30_000, disorder_ms=60_000)
LONG = 10**10
CODE = {name: code for code, name in enumerate(POLICIES)}


def test_settings_samples_and_registry_name_the_same_policies() -> None:
    assert set(Settings.__annotations__) >= {"label_policy", "observation_seconds"}
    assert tuple(REGISTRY) == POLICIES
    for name in POLICIES:
        assert Settings(label_policy=name).label_policy == policy_named(name).name == name  # type: ignore[arg-type]
        assert policy_named(name).promise(WAITS, 0).code == CODE[name]
    with pytest.raises(SettingError, match=r"'guess'.*equal-wait"):
        policy_named("guess")


def test_what_is_promised_in_steady_traffic() -> None:
    promised = {name: policy.promise(WAITS, LONG)[1:] for name, policy in REGISTRY.items()}  # hold, observe, slack
    assert promised == {
        "wait": (0, 300_000, 0),
        "equal-wait": (300_000, 300_000, 0),
        "fake-negative-weighted": (0, 0, 60_000),
        "es-dfm": (30_000, 30_000, 60_000),
        "prompt": (0, 30_000, 60_000),
    }


@given(st.integers(0, LONG), st.integers(1, 10**7), st.integers(1, 10**7), st.sampled_from(POLICIES))
def test_no_promise_waits_longer_than_the_attribution_window(
    flowing: int, window: int, observe: int, name: str
) -> None:
    promise = REGISTRY[name].promise(Waits(window, observe, 0), flowing)
    assert 0 <= promise.hold_ms <= promise.observe_ms <= window


def test_the_waits_of_prompt_shrink_evenly_from_the_start_of_traffic() -> None:
    prompt = REGISTRY["prompt"]
    first = prompt.promise(WAITS, 0)
    assert first.hold_ms == first.observe_ms > WAITS.observation_ms
    made = [prompt.promise(WAITS, t) for t in range(0, 2_000_000, 1000)]
    holds, observes = ([getattr(p, n) for p in made] for n in ("hold_ms", "observe_ms"))
    for waits in (holds, observes):
        steps = -np.diff(waits)
        assert steps.min() >= 0
        assert steps.max() <= 101  # of a second: samples come denser by a tenth at most
    assert (holds[-1], observes[-1]) == (0, WAITS.observation_ms)


# -- weights ---------------------------------------------------------------------------------------------------


def by_hand(name: str, kind: int, p: float, g: float) -> float:
    """The weight of one sample, from the probabilities of the papers and not from their simplified forms."""
    p_click_early, p_click_late, p_none = p * g, p * (1 - g), 1 - p
    if name in ("wait", "equal-wait"):
        return 1.0
    if name == "fake-negative-weighted":  # arXiv 1907.06558, the fake negative weighted loss
        return 1 + p if kind == CORRECTION else (1 - p) * (1 + p)
    assert p_click_early + p_click_late + p_none == pytest.approx(1)
    p_dp, p_rn = p_click_late, p_none / (p_none + p_click_late)  # arXiv 2012.03245, section 4
    return (1 + p_dp) * p_rn if kind == NEGATIVE else 1 + p_dp


@pytest.mark.parametrize("name", POLICIES)
def test_weights_are_the_papers(name: str) -> None:
    rng = np.random.default_rng(0)
    n = 300
    kind = rng.integers(0, 3, n).astype(np.uint8)
    p, g = rng.uniform(0, 0.89, n).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32)
    expected = [by_hand(name, *row) for row in zip(kind.tolist(), p.tolist(), g.tolist(), strict=True)]
    policy = np.full(n, CODE[name], np.uint8)
    np.testing.assert_allclose(weigh(policy, kind, p, g), expected, rtol=1e-5)
    assert weighs(policy) == (np.ptp(expected) > 0)


def test_samples_of_several_policies_are_each_weighed_by_their_own() -> None:
    rng = np.random.default_rng(1)
    n = 200
    policy, kind = rng.integers(0, len(POLICIES), n).astype(np.uint8), rng.integers(0, 3, n).astype(np.uint8)
    p, g = rng.uniform(0, 0.8, n).astype(np.float32), rng.uniform(0, 1, n).astype(np.float32)
    rows = zip(policy.tolist(), kind.tolist(), p.tolist(), g.tolist(), strict=True)
    np.testing.assert_allclose(weigh(policy, kind, p, g), [by_hand(POLICIES[c], *row) for c, *row in rows], rtol=1e-5)


@pytest.mark.parametrize("name", ["fake-negative-weighted", "es-dfm", "prompt"])
def test_a_model_that_predicts_1_can_still_learn_from_negatives(name: str) -> None:
    kind, p = np.array([NEGATIVE], np.uint8), np.ones(1, np.float32)
    assert weigh(np.array([CODE[name]], np.uint8), kind, p, np.full(1, 0.5, np.float32))[0] > (1 - MOST) / 2


def stream(rows: int, seed: int, early: float, name: str) -> SampleBatch:
    """Exposures clicked with 0.3, or 0.6 where the hour is even; ``early`` of the clicks come before the label."""
    batch = make_samples(rows, seed)
    hours = np.unique(batch.cat[:, SCHEMA.layout.cat_names.index("hour")])
    rate = np.where(np.isin(batch.cat[:, SCHEMA.layout.cat_names.index("hour")], hours[::2]), 0.6, 0.3)
    rng = np.random.default_rng(seed)
    click, first = rng.random(rows) < rate, rng.random(rows) < early
    batch = replace(
        batch,
        policy=np.full(rows, CODE[name], np.uint8),
        label=(click & first).astype(np.float32),
        kind=np.where(click & first, POSITIVE, NEGATIVE).astype(np.uint8),
        ts_ms=batch.ts_ms + seed * 3_600_000,
    )
    later = batch.take(click & ~first)
    later = replace(later, label=np.ones(len(later), np.float32), kind=np.full(len(later), CORRECTION, np.uint8))
    return SampleBatch.concat([batch, later])


@pytest.mark.slow
@pytest.mark.parametrize("early", [0.1, 0.6])
@pytest.mark.parametrize("name", ["fake-negative-weighted", "es-dfm", "prompt"])
def test_a_model_comes_to_the_true_rate(name: str, early: float) -> None:
    """And without the weights it does not. The share of early clicks is learnt too."""
    spec = {"model": "logistic", "ftrl_alpha": 0.1, "dense_rate": 0.02, "numerics": "norm", "step_rows": 256}
    weighted, plain = OnlineModel(SCHEMA, spec, 0), OnlineModel(SCHEMA, spec, 0)
    for i in range(150):
        weighted.learn(stream(256, i, early, name))
        plain.learn(stream(256, i, early, "wait"))
    probe = make_samples(6000, 999)
    column = SCHEMA.layout.cat_names.index("hour")
    even = np.isin(probe.cat[:, column], np.unique(probe.cat[:, column])[::2])
    found, biased = ([m.score(probe.cat, probe.num)[rows].mean() for rows in (even, ~even)] for m in (weighted, plain))
    np.testing.assert_allclose(found, [0.6, 0.3], atol=0.035)
    late = 1 - early
    np.testing.assert_allclose(biased, [0.6 / (1 + 0.6 * late), 0.3 / (1 + 0.3 * late)], atol=0.035)
    assert max(biased) < 0.6 - 0.05
    g = weighted.delays.early(probe.position, probe.cat)
    assert g.mean() == pytest.approx(PRIOR if name == "fake-negative-weighted" else early, abs=0.08)


# -- the model of delays ---------------------------------------------------------------------------------------


def clicks(rows: int, seed: int, start_ms: int) -> SampleBatch:
    """Clicks alone. Nine in ten of the first positions are early ones, and one in ten of the last."""
    batch = make_samples(rows, seed, start_ms=start_ms)
    share = np.where(batch.position < 5, 0.9, 0.1)
    kind = np.where(np.random.default_rng(seed).random(rows) < share, POSITIVE, CORRECTION).astype(np.uint8)
    return replace(batch, kind=kind, label=np.ones(rows, np.float32))


def delays_of(model: OnlineModel) -> Delays:
    return model.delays


def test_delays_are_learnt_by_position_from_settled_exposures_alone() -> None:
    delays = delays_of(OnlineModel(SCHEMA, {"settled_minutes": 5.0}, 0))
    probe = clicks(400, 99, 10**12)
    first = probe.position < 5
    assert (delays.early(probe.position, probe.cat) == PRIOR).all()
    for i in range(60):
        delays.learn(clicks(64, i, 10**12 + i))
    assert (len(delays), delays.count) == (60 * 64, 0), "nothing is settled yet"
    assert (delays.early(probe.position, probe.cat) == PRIOR).all()
    delays.learn(clicks(1, 60, 10**12 + 10_000_000))
    assert (len(delays), delays.count) == (1, 60 * 64)
    assert delays.count >= ENOUGH
    g = delays.early(probe.position, probe.cat)
    assert g[first].mean() == pytest.approx(0.9, abs=0.07)
    assert g[~first].mean() == pytest.approx(0.1, abs=0.07)


def test_delays_travel_with_snapshots_and_deltas() -> None:
    model = OnlineModel(SCHEMA, {"model": "wide_deep", "hidden": [8], "step_rows": 64}, 0)
    for i in range(30):
        model.learn(stream(64, i, 0.5, "prompt"))
    assert model.delays.count > 0
    image, training = model.snapshot()
    assert image.dense["delays"].any()
    model.changes()  # everything so far
    twin = OnlineModel(SCHEMA, model.spec, 1)
    twin.resume(image, training)
    for i in range(30, 40):
        assert twin.learn(stream(64, i, 0.5, "prompt")) == model.learn(stream(64, i, 0.5, "prompt"))
    assert not twin.snapshot()[0].same_bits(model.snapshot()[0])
    assert not image.apply(model.changes()).same_bits(model.snapshot()[0]), "a delta carries them"


def test_clicks_of_policies_without_an_observation_window_teach_no_delays() -> None:
    """Under fake negatives every click is a correction, and under ``wait`` nearly none: another meaning of early."""
    model = OnlineModel(SCHEMA, {"model": "logistic", "step_rows": 64}, 0)
    for i in range(8):
        model.learn(stream(64, i, 0.0, "fake-negative-weighted"))
        mixed = SampleBatch.concat([stream(64, i, 1.0, "wait"), stream(64, i, 0.0, "fake-negative-weighted")])
        model.learn(mixed)
    assert (len(model.delays), model.delays.count) == (0, 0)
    model.learn(SampleBatch.concat([stream(64, 9, 1.0, "wait"), clicks_of("es-dfm", 30)]))
    assert len(model.delays) == 30


def clicks_of(name: str, rows: int) -> SampleBatch:
    return replace(clicks(rows, 5, 10**12), policy=np.full(rows, CODE[name], np.uint8))


def test_another_network_goes_on_with_the_delays() -> None:
    spec = {"model": "wide_deep", "hidden": [8], "step_rows": 64}
    model = OnlineModel(SCHEMA, spec, 0)
    for i in range(20):
        model.learn(replace(clicks(64, i, 10**12 + i * 10**6), policy=np.full(64, CODE["prompt"], np.uint8)))
    assert model.delays.count >= ENOUGH
    other, _ = evolve(model.columns, model.spec, *model.snapshot(), SCHEMA, {**spec, "model": "wide_resnet"}, 0)
    probe = clicks(100, 99, 10**12)
    np.testing.assert_array_equal(
        other.delays.early(probe.position, probe.cat), model.delays.early(probe.position, probe.cat)
    )
    assert other.delays.count == model.delays.count


# -- a log and the join ----------------------------------------------------------------------------------------


def no_outcomes(n: int) -> dict[str, Any]:
    """What a log of a schema without outcomes has of them."""
    none = {"outcomes": np.zeros((n, 0)), "outcome_ms": np.zeros((n, 0), np.int64), "on_click": np.zeros(0, np.bool_)}
    return none | {"of_events": [], "corrects": np.zeros(n, np.bool_)}


PAGES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 20_000), st.just(40 * MINUTE)),  # gap to the page before
        st.lists(st.one_of(st.none(), st.integers(1, 40 * MINUTE)), min_size=1, max_size=4),  # delay of each click
    ),
    min_size=1,
    max_size=30,
)


@examples(60)
@given(PAGES, st.sampled_from(POLICIES))
@example([(0, [JOIN.waits.observation_ms])], "es-dfm")
@example([(0, [JOIN.waits.observation_ms])], "prompt")
@example([(0, [JOIN.waits.attribution_ms])], "wait")
@example([(0, [1])], "fake-negative-weighted")
def test_a_log_becomes_known_as_the_join_makes_it_known(pages: list[tuple[int, list[int | None]]], name: str) -> None:
    """The same kinds for the same exposures, by the same policy, where nothing is out of order."""
    waits = JOIN.waits
    ts = T0
    when: list[tuple[int, str, int, int | None]] = []
    reported: list[tuple[int, int, str, list[int], int | None]] = []
    for number, (gap, delays) in enumerate(pages):
        ts += gap
        items = list(range(1, len(delays) + 1))
        reported.append((ts, 0, f"p{number}", items, None))
        when += [(ts, f"p{number}", at, delay) for at, delay in enumerate(delays)]
        reported += [(ts + d, 1, f"p{number}", items, at) for at, d in enumerate(delays) if d is not None]
    log, messages = Log(), []
    for at_ms, kind, request, items, place in sorted(reported, key=lambda m: m[:3]):
        if kind == 0:
            messages += log.page_logs(page_log(request, at_ms, items))
            messages += log.events(exposure(request, at_ms, items))
        else:
            assert place is not None
            messages += log.events(action("click", request, at_ms, place, items[place]))
    partition = Partition(0, STREAM_SCHEMA, replace(JOIN, label=policy_named(name)))
    total = Sum()
    for message in messages:
        total += partition.take([message], T0 * 2)
    total += partition.advance(T0 + 10**9)
    live = sorted((r.request, r.position, r.kind) for r in total.samples)

    ts_ms = np.array([w[0] for w in when])
    delay = [w[3] for w in when]
    labels = SimpleNamespace(
        wait_ms=waits.attribution_ms,
        clicked=np.array([d is not None for d in delay]),
        acted_ms=ts_ms + np.array([d or 0 for d in delay]),
        **no_outcomes(len(ts_ms)),
    )
    samples = KnownSamples.of(ts_ms, labels, policy_named(name), waits.observation_ms)  # type: ignore[arg-type]
    assert (np.diff(samples.known_ms) >= 0).all()
    replayed = sorted(
        (when[row][1], when[row][2], kind)
        for row, kind in zip(samples.row.tolist(), samples.kind.tolist(), strict=True)
    )
    assert live == replayed


def plainly(promise: Promise[int], delay_ms: int | None) -> list[tuple[int, int]]:
    """Kinds of the samples of an exposure, and when each is due after it, in a stream where nothing is out of order."""
    if delay_ms is not None and delay_ms < promise.observe_ms:
        return [(POSITIVE, max(delay_ms, promise.hold_ms))]
    corrected = [] if delay_ms is None else [(CORRECTION, delay_ms)]
    return [(NEGATIVE, promise.observe_ms), *corrected]


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_example_log_has_the_labels_that_it_has_live(tmp_path: Path, name: str) -> None:
    """Its pages and clicks go through the join, one message after another, and through replay. A log without action
    times, whose labels are known at their exposures, is played as if clicked then."""
    where, writer = SAMPLES[name]
    schema = load_schema(Path("examples") / where)
    log = read_log(writer(tmp_path, np.random.default_rng(1)), schema)
    rows = LogRows(log, schema)
    labels, played = Labels(log, schema, rows), LogEvents(log, schema, rows, LONG)
    items: list[Any] = list(map(str, played.items(np.arange(rows.n))))
    names, users = played.names(slice(0, played.pages)), played.users(slice(0, played.pages))
    sent, feed = list[tuple[int, int, bytes, list[bytes]]](), Log()
    for page, at_ms in enumerate(played.page_ms.tolist()):
        shown = [items[row] for row in played.order[played.starts[page] : played.starts[page + 1]]]
        served = page_log(names[page], at_ms, shown, user_id=users[page])
        sent.append((at_ms, 0, exposure(names[page], at_ms, shown, user_id=users[page]), [served]))
    is_label = played.act_kind == ACTIONS.index(schema.windows.labelling)
    for at_ms, row in zip(played.act_ms[is_label].tolist(), played.act_row[is_label].tolist(), strict=True):
        about = names[played.page_of[row]], at_ms, int(played.place_of[row]), items[row]
        sent.append((at_ms, 1, action("click", *about, user_id=users[played.page_of[row]]), []))
    sent.sort(key=lambda one: one[:2])
    attribution_ms = labels.wait_ms or MINUTE
    rule = replace(JOIN, attribution_ms=attribution_ms, disorder_ms=0, lateness_ms=LONG)
    clicked = dict(zip(played.act_row[is_label].tolist(), played.act_ms[is_label].tolist(), strict=True))
    assert clicked.keys() == set(np.flatnonzero(labels.clicked).tolist())
    ids = list(zip([names[page] for page in played.page_of.tolist()], played.place_of.tolist(), strict=True))
    for policy in REGISTRY.values() if labels.wait_ms else (REGISTRY["wait"], REGISTRY["prompt"]):
        partition, traffic, waits = Partition(0, STREAM_SCHEMA, replace(rule, label=policy)), Traffic(), rule.waits
        live = list[tuple[Any, ...]]()  # request, position and kind, and the watermarks before and after
        for at_ms, _, event, logs in sent:
            before_ms = partition.watermark_ms
            out = Sum()
            out += partition.take([*feed.page_logs(*logs), *feed.events(event)], at_ms)
            assert not out.dead
            live += [(one.request, one.position, one.kind, before_ms, at_ms) for one in out.samples]
        out = Sum()
        out += partition.advance(at_ms + LONG)
        live += [(one.request, one.position, one.kind, at_ms, at_ms + LONG) for one in out.samples]
        expected = dict[tuple[Any, ...], int]()
        for row, ts_ms in enumerate(rows.ts_ms.tolist()):
            delay_ms = clicked[row] - ts_ms if row in clicked else None
            for kind, after_ms in plainly(traffic.promise(policy, waits, ts_ms), delay_ms):
                expected[*ids[row], kind] = ts_ms + after_ms
        assert sorted(one[:3] for one in live) == sorted(expected)
        assert all(before_ms <= expected[*of] <= after_ms for *of, before_ms, after_ms in live)
        made = KnownSamples.of(rows.ts_ms, labels, policy, waits.observation_ms)
        replayed = {
            (*ids[row], kind): known_ms
            for row, kind, known_ms in zip(made.row.tolist(), made.kind.tolist(), made.known_ms.tolist(), strict=True)
        }
        if not labels.wait_ms:
            kinds = [POSITIVE if row in clicked else NEGATIVE for row in range(rows.n)]
            expected = {(*ids[row], kinds[row]): ts_ms for row, ts_ms in enumerate(rows.ts_ms.tolist())}
        assert replayed == expected
        assert set(made.policy.tolist()) == {policy.code if labels.wait_ms else WITH_EXPOSURE}


def test_immediate_labels_are_known_at_the_exposure() -> None:
    ts_ms = np.array([1000, 2000, 2000, 9000])
    clicked = np.array([True, False, True, False])
    labels = SimpleNamespace(wait_ms=300_000, clicked=clicked, acted_ms=ts_ms + 10**6, **no_outcomes(4))
    samples = KnownSamples.of(ts_ms, labels, None)  # type: ignore[arg-type]
    assert samples.known_ms.tolist() == ts_ms.tolist()
    assert (samples.kind == POSITIVE).tolist() == clicked.tolist()
    assert not weighs(samples.policy)
    assert final(samples.policy).all(), "a page's come together, and stay"
