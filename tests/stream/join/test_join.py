"""The partition against the per-event reference on random streams, and its invariants."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import span_name
from millrace.contracts.events import PROFILE_MISSING, WINDOWS_MISSING
from millrace.contracts.samples import CORRECTION, NEGATIVE, PAGE, POLICIES, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.evidence.learners import NamedLearner
from millrace.labels import LabelPolicy, policy_named
from stream.join.join import InputMessage, Policy
from stream.join.labelling import Labeller
from stream.join.page_again import OTHERS, drawn
from stream.partition.partition import Partition, StepOutput
from tests.scenes.arrivals import NOW, SETTLED, arrivals
from tests.scenes.exploring import examples
from tests.scenes.reference_partition import ReferencePartition
from tests.scenes.stream_world import (
    HOUR,
    KINDS,
    MINUTE,
    POLICY,
    SCHEMA,
    T0,
    Log,
    Sum,
    World,
    action,
    dead_of,
    exposure,
    hashed,
    keys_of,
    page_log,
    resumed,
)

WITHOUT_SLACK = ("wait", "equal-wait", "fake-negative-weighted")
"""Policies under which disorder within the allowed bound changes no sample. Under the others a click that comes out of
order may be a correction, where it would have been a positive."""


class Played:
    """A partition that takes messages, and all that it put out.

    Args:
        rng: draws batches, and crashes: the state is saved, some messages come again. None: one batch, no crash.
        patience: whether it settles, and of how many batches one finds the page logs read that it wants; None: all
            page logs stay in memory.
    """

    def __init__(self, policy: Policy, rng: random.Random | None = None, patience: int | None = None) -> None:
        self.policy, self.rng, self.patience = policy, rng, patience
        self.partition, self.total = Partition(0, SCHEMA, policy, settles=patience is not None), Sum()
        self.topic: dict[int, bytes] = {}

    def take(self, messages: list[InputMessage]) -> Played:
        at, rng = 0, self.rng
        self.topic |= {m.offset: m.raw for m in messages if m.topic == "page_logs"}
        while at < len(messages):
            n = rng.randrange(1, 8) if rng else len(messages)
            self.total += self.partition.take(messages[at : at + n], NOW)
            at += n
            if rng and self.patience is not None and rng.randrange(self.patience + 1) == 0:
                self.answer()
            if rng and rng.random() < 0.3:
                again = Partition(0, SCHEMA, self.policy, settles=self.partition.settles)
                again.resume(self.partition.snapshot().to_bytes())
                self.partition, at = again, max(0, at - rng.randrange(4))
        self.answer()
        return self

    def answer(self) -> None:
        """What is wanted is read."""
        found = {request: self.topic.get(at) for request, at in self.partition.wanted.items()}
        if found:
            self.total += self.partition.returned(found)
        assert not self.partition.wanted

    def advance(self, to_ms: int) -> None:
        self.total += self.partition.advance(to_ms)
        self.answer()


def check_conservation(partition: Partition, total: Sum) -> None:
    labelled = Counter((r.request, r.position) for r in total.samples if r.kind in (POSITIVE, NEGATIVE))
    assert not [i for i, n in labelled.items() if n > 1]
    assert total.counts["exposures"] == len(labelled) + partition.pending + total.lost


def check_against_reference(partition: Partition, total: Sum, reference: ReferencePartition) -> None:
    assert sorted(total.samples) == hashed(reference.samples)
    assert dead_of(total.dead) == dead_of(reference.dead)
    assert (partition.pending, partition.join.held) == (reference.pending, reference.held)
    assert (partition.newest_ms, partition.watermark_ms) == (reference.newest_ms, reference.watermark_ms)
    names = ("exposures", "duplicates", "late", "ahead", "page_logs", *(f"events.{k}" for k in KINDS))
    assert {n: total.counts[n] for n in names} == {n: reference.counts[n] for n in names}
    keys = np.concatenate([keys_of(user, range(1, 13)) for user in range(3)]).ravel()
    ts = partition.newest_ms + 1
    assert partition.windows.counts(keys, ts).tolist() == [reference.window(int(k), ts) for k in keys]


def check_whatever_comes(messages: list[InputMessage], seed: int, policy: Policy, patience: int | None) -> None:
    policy = replace(policy, sends_pages=seed % 4 > 0)
    reference = ReferencePartition(SCHEMA, policy)
    reference.take(messages, NOW)
    played = Played(policy, random.Random(seed), patience).take(messages)
    check_against_reference(played.partition, played.total, reference)
    check_conservation(played.partition, played.total)
    for hours in (0.2, 0.6, 5):
        # all that came may be ahead
        later = max(played.partition.newest_ms, played.partition.ahead_ms) + round(hours * HOUR)
        reference.advance(later)
        played.advance(later)
        check_against_reference(played.partition, played.total, reference)
        check_conservation(played.partition, played.total)
    assert played.partition.pending == played.partition.ahead_ms == len(played.partition.join.settled) == 0


LABELS = st.sampled_from(POLICIES).map(policy_named)


@examples(150)
@given(arrivals(wild=True), st.integers(0, 2**32), LABELS)
def test_equals_the_reference_whatever_comes(messages: list[InputMessage], seed: int, label: LabelPolicy) -> None:
    check_whatever_comes(messages, seed, replace(POLICY, label=label), None)


@examples(150)
@given(arrivals(wild=True), st.integers(0, 2**32), LABELS, st.integers(0, 4))
def test_pages_that_settle_equal_the_reference_too(
    messages: list[InputMessage], seed: int, label: LabelPolicy, patience: int
) -> None:
    """Whatever comes, however long reading takes, with crashes between."""
    check_whatever_comes(messages, seed, replace(SETTLED, label=label), patience)


@examples(100)
@given(arrivals(wild=True, clocked=True), st.integers(0, 2**32), LABELS, st.sampled_from([31, 3]))
def test_equals_the_reference_whatever_is_dated_ahead(
    messages: list[InputMessage], seed: int, label: LabelPolicy, pages: int
) -> None:
    """With so few pages that the three users of these stories can move the time, and with so many that they cannot."""
    with patch("millrace.contracts.clock.PAGES", pages), patch("tests.scenes.reference_partition.PAGES", pages):
        check_whatever_comes(messages, seed, replace(POLICY, label=label), None)


@examples(60)
@given(arrivals(wild=False), st.integers(0, 2**32), st.sampled_from(WITHOUT_SLACK))
def test_order_of_arrival_within_the_disorder_changes_nothing(
    messages: list[InputMessage], seed: int, label: str
) -> None:
    policy = replace(POLICY, label=policy_named(label), sends_pages=seed % 4 > 0)
    rng = random.Random(seed)
    results = []
    for order in (messages, sorted(messages, key=time_of), jitter(messages, rng)):
        log = Log()
        played = Played(policy).take([log(m.topic, m.raw) for m in order])
        partition, total = played.partition, played.total
        total += partition.advance(partition.newest_ms + 5 * HOUR)
        ts = partition.newest_ms + 1
        keys = np.concatenate([keys_of(user, range(1, 13)) for user in range(3)]).ravel()
        results.append(
            (
                sorted(total.samples),
                dead_of(total.dead)[0],
                {
                    (dead_letter.reason, dead_letter.raw) for dead_letter in total.dead
                },  # a bad message sent twice may be two dead letters
                partition.windows.counts(keys, ts).tolist(),
                total.counts["exposures"],
            )
        )
    assert results[0] == results[1] == results[2]


@examples(60)
@given(arrivals(wild=False), st.integers(0, 2**32), st.sampled_from(POLICIES))
def test_when_page_logs_come_changes_no_sample(messages: list[InputMessage], seed: int, label: str) -> None:
    """After a crash the two topics are read in another order. Events that are out of order stay so."""
    policy = replace(POLICY, label=policy_named(label), sends_pages=seed % 4 > 0)
    events = jitter([m for m in messages if m.topic == "events"], random.Random(seed))
    early = [m for m in messages if m.topic == "page_logs"]
    come = accumulate(map(time_of, events), max)  # the events' order stays: under some policies it decides labels
    timed = [*zip(come, events, strict=True), *((time_of(m) + 3 * MINUTE, m) for m in early)]
    late = [m for _, m in sorted(timed, key=lambda one: one[0])]
    results = []
    for order in ([*early, *events], late):
        log = Log()
        played = Played(policy).take([log(m.topic, m.raw) for m in order])
        played.advance(played.partition.newest_ms + 5 * HOUR)
        results.append(sorted(played.total.samples))
    assert results[0] == results[1]


@pytest.mark.parametrize("label", POLICIES)
def test_a_click_out_of_order_is_the_same_kind_wherever_the_page_log_comes(label: str) -> None:
    """The exposure's observation window is over when its click comes, dated within it."""
    policy, kinds = replace(POLICY, label=policy_named(label)), []
    start = T0 + 24 * HOUR
    reported = [
        ("events", exposure("a", start, [1, 2])),
        ("events", exposure("b", start + 50_000, [1, 2])),
        ("events", action("click", "a", start + 5_000, 1, 2)),
    ]
    for at in range(len(reported) + 1):
        log, partition, total = Log(), Partition(0, SCHEMA, policy), Sum()
        for k in range(120):  # traffic has flowed for long
            total += partition.take(log.events(exposure(f"old{k}", T0 + k * 12 * MINUTE, [1, 2])), NOW)
        for topic, raw in [*reported[:at], ("page_logs", page_log("a", start, [1, 2])), *reported[at:]]:
            total += partition.take([log(topic, raw)], NOW)
        total += partition.advance(start + 5 * HOUR)
        kinds.append(sorted(r.kind for r in total.samples if (r.request, r.position) == ("a", 1)))
    assert kinds == [kinds[0]] * len(kinds)


def time_of(message: InputMessage) -> int:
    import msgspec

    decode = msgspec.json.decode if message.topic == "events" else msgspec.msgpack.decode
    return int(decode(message.raw)["ts_ms"])


def jitter(messages: list[InputMessage], rng: random.Random) -> list[InputMessage]:
    """Again out of order, every message by less than the allowed disorder."""
    return sorted(messages, key=lambda m: time_of(m) + rng.randrange(POLICY.disorder_ms))


def test_samples_say_what_their_page_lacked_of_its_user() -> None:
    """Those that settle, also after a restart, and those that are corrected."""
    log, pages = Log(), {"a": PROFILE_MISSING | WINDOWS_MISSING, "b": 0, "c": PROFILE_MISSING}
    partition = Partition(0, SCHEMA, POLICY)
    for page, missing in pages.items():
        partition.take(log.page_logs(page_log(page, T0, [1, 2], user_missing=missing)), NOW)
        partition.take(log.events(exposure(page, T0, [1, 2])), NOW)
    partition = resumed(partition.snapshot().to_bytes(), policy=POLICY)
    found = [partition.advance(T0 + 31 * MINUTE).samples]
    found.append(partition.take(log.events(action("click", "a", T0 + 29 * MINUTE, 1, 2)), NOW).samples)
    said = [
        (page, position, int(missing))
        for batch in found
        if batch is not None
        for (page, position), missing in zip(batch.ids(), batch.user_missing, strict=True)
    ]
    assert sorted(said[:6]) == [(page, position, missing) for page, missing in pages.items() for position in (0, 1)]
    assert said[6:] == [("a", 1, pages["a"])]


def test_a_late_click_corrects_the_negative_and_nothing_is_counted_twice() -> None:
    world = World().page("a", T0, [1, 2]).until(T0 + 31 * MINUTE)
    assert world.samples == [(0, NEGATIVE), (1, NEGATIVE)]
    late = action("click", "a", T0 + 29 * MINUTE, 1, 2)
    world.events(late, late)
    assert world.samples[2:] == [(1, CORRECTION)]
    assert world.total.counts["duplicates"] == 1
    check_conservation(world.partition, world.total)


@pytest.mark.parametrize("early_ms", [0, 1])
def test_an_action_without_its_exposure_is_late_behind_the_lateness_and_not_on_it(early_ms: int) -> None:
    world = World().events(exposure("b", T0 + HOUR, [1]))
    at = world.partition.watermark_ms - POLICY.lateness_ms - early_ms
    world.act("click", "a", at, 0, 1)
    assert world.dead == [("late", 0)] * early_ms
    world.page("a", at, [1]).until(T0 + 2 * HOUR)
    assert world.samples == [(0, NEGATIVE if early_ms else POSITIVE)]


def test_an_action_whose_exposure_comes_too_late_is_a_dead_letter_too() -> None:
    world = World()
    world.page("b", T0 + 2 * HOUR, [1])
    seen_ms = world.partition.watermark_ms - POLICY.life_ms
    world.act("click", "a", seen_ms + POLICY.attribution_ms, 0, 1)
    world.page("a", seen_ms, [1])
    assert (world.dead, world.partition.join.held) == ([("late", 1)], 1)
    world.until(T0 + 3 * HOUR)
    assert (world.dead, world.partition.join.held) == ([("late", 1), ("no-exposure", 0)], 0)


@pytest.mark.parametrize("exposed_first", [True, False])
@pytest.mark.parametrize("beyond_ms", [0, 1])
def test_a_click_dated_before_its_exposure_is_none_of_it_beyond_the_disorder(
    beyond_ms: int, exposed_first: bool
) -> None:
    """Less than that is a matter of clocks. The click that comes after a refused one labels."""
    world, seen, at = World(), exposure("a", T0, [1, 2]), T0 - POLICY.disorder_ms - beyond_ms
    clicks = [action("click", "a", at, position, 1 + position) for position in (0, 1)]
    world.page_logs(page_log("a", T0, [1, 2]))
    world.events(*([seen, *clicks] if exposed_first else [*clicks, seen]))
    assert [(one.reason, one.detail) for one in world.total.dead] == [
        ("no-exposure", f"{span_name(POLICY.disorder_ms + 1)} before its exposure")
    ] * (2 * beyond_ms)
    world.act("click", "a", T0 + MINUTE, 1, 2)
    world.until(T0 + 2 * HOUR)
    assert dict(world.samples) == {0: NEGATIVE if beyond_ms else POSITIVE, 1: POSITIVE}
    check_conservation(world.partition, world.total)


def test_a_page_that_silence_dropped_is_forgotten_in_time_when_the_watermark_is_set_back() -> None:
    world = World().events(exposure("a", T0, [1])).until(T0 + 100 * HOUR)
    world.partition.set_back()
    later = T0 + POLICY.life_ms + HOUR
    counts = [world.take(*world.log.events(exposure(name, later, [1]))).counts for name in ("b", "a")]
    assert [(one.get("exposures"), one.get("duplicates")) for one in counts] == [(1, None)] * 2


def test_a_late_exposure_is_no_stop_of_traffic() -> None:
    policy = replace(POLICY, label=policy_named("prompt"))
    labeller = Labeller(policy, None)
    promises = [labeller.promise(T0 + after * MINUTE) for after in (0, -20, 15)]
    assert promises == [policy.label.promise(policy.waits, flowing * MINUTE) for flowing in (0, 0, 15)]
    assert promises[2] != promises[0]


# -- pages that are sent again -----------------------------------------------------------------------------------------

AGAIN = replace(POLICY, label=policy_named("prompt"), sends_pages=True)


def sent_again(*outputs: StepOutput) -> list[SampleBatch]:
    """What was sent again, a batch for each output with such rows."""
    batches = [o.samples.take(o.samples.kind == PAGE) for o in outputs if o.samples is not None]
    return [batch for batch in batches if len(batch)]


def test_a_page_is_sent_again_once_with_its_final_labels() -> None:
    """Its two clicks and five of the eighteen others; a click behind the window is a correction, and nothing else."""
    log, partition, items = Log(), Partition(0, SCHEMA, AGAIN), list(range(1, 21))
    partition.take(log.page_logs(page_log("a", T0, items)), NOW)
    first = partition.take(
        log.events(
            exposure("a", T0, items),
            action("click", "a", T0 + MINUTE, 3, 4),
            action("click", "a", T0 + 29 * MINUTE, 17, 18),
        ),
        NOW,
    )
    assert not sent_again(first)
    partition = resumed(partition.snapshot().to_bytes(), policy=AGAIN)
    (batch,) = sent_again(partition.advance(T0 + 31 * MINUTE))
    assert batch.position[:2].tolist() == [3, 17], "clicked rows come first"
    assert batch.label.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert len(set(batch.position.tolist())) == 7
    assert not batch.origin_ms.any(), "no click is waited for"
    late = partition.take(log.events(action("click", "a", T0 + 32 * MINUTE, 9, 10)), NOW)
    assert late.samples is not None
    assert late.samples.kind.tolist() == [CORRECTION]
    assert not sent_again(late, partition.advance(T0 + 5 * HOUR))


def test_a_click_that_came_behind_the_window_is_not_on_the_page_that_is_sent_again() -> None:
    """It is dated within; and the page waits for its second part."""
    log, partition, items = Log(), Partition(0, SCHEMA, AGAIN), list(range(1, 21))
    partition.take(log.page_logs(page_log("a", T0, items)), NOW)
    partition.take(log.events(exposure("a", T0, items[:10]), action("click", "a", T0 + MINUTE, 3, 4)), NOW)
    partition.take(log.events(exposure("a", T0 + 20 * MINUTE, items[10:], 10)), NOW)
    partition.advance(T0 + 36 * MINUTE)
    partition.take(log.events(action("click", "a", T0 + 29 * MINUTE, 5, 6)), NOW)
    (batch,) = sent_again(partition.advance(T0 + 55 * MINUTE))
    assert batch.position[batch.label > 0].tolist() == [3]


@pytest.mark.parametrize("clicked", [[], [0, 1, 2]])
def test_a_page_of_one_kind_is_not_sent_again(clicked: list[int]) -> None:
    log, partition = Log(), Partition(0, SCHEMA, AGAIN)
    partition.take(log.page_logs(page_log("a", T0, [1, 2, 3])), NOW)
    clicks = [action("click", "a", T0 + MINUTE, p, p + 1) for p in clicked]
    partition.take(log.events(exposure("a", T0, [1, 2, 3]), *clicks), NOW)
    assert not sent_again(partition.advance(T0 + 31 * MINUTE), partition.advance(T0 + 5 * HOUR))


def test_parts_of_a_page_are_sent_together_and_what_comes_later_is_not() -> None:
    log, partition = Log(), Partition(0, SCHEMA, AGAIN)
    partition.take(log.page_logs(page_log("a", T0, [1, 2, 3, 4])), NOW)
    partition.take(log.events(exposure("a", T0, [1]), exposure("a", T0 + 20 * MINUTE, [2], offset=1)), NOW)
    partition.take(log.events(action("click", "a", T0 + 21 * MINUTE, 1, 2)), NOW)
    assert not sent_again(partition.advance(T0 + 32 * MINUTE))
    later = exposure("a", T0 + 50 * MINUTE, [3], offset=2)
    (batch,) = sent_again(partition.take(log.events(later), NOW), partition.advance(T0 + 51 * MINUTE))
    assert batch.position.tolist() == [0, 1]
    assert batch.label.tolist() == [0, 1]
    assert batch.ts_ms.tolist() == [T0, T0 + 20 * MINUTE]
    assert not sent_again(partition.advance(T0 + 5 * HOUR))


def test_pages_are_sent_again_only_where_a_model_wants_them_and_labels_come_apart() -> None:
    wanting = {"page_weight": 0.5}
    assert not Policy.of(Settings()).sends_pages
    assert Policy.of(Settings(model_spec=wanting)).sends_pages
    assert not Policy.of(Settings(model_spec={"page_weight": 0})).sends_pages
    assert not Policy.of(Settings(learners={"b": NamedLearner("wide_deep")})).sends_pages
    assert Policy.of(Settings(learners={"b": NamedLearner("wide_deep", wanting)})).sends_pages
    assert not Policy.of(Settings(model_spec=wanting, label_policy="equal-wait")).sends_pages


def test_each_of_the_others_is_drawn_as_often() -> None:
    counts = Counter(k for page in range(4000) for k in drawn(f"page-{page}", 12))
    assert sum(counts.values()) == 4000 * OTHERS
    assert set(counts) == set(range(12))
    expected = 4000 * OTHERS / 12
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 35, "chi-squared, 11 degrees of freedom"
