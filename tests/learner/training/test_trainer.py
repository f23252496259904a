"""The trainer: predicts before it learns, learns nothing twice, keeps count, and goes on where a snapshot ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.evaluation.progressive import Progressive
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.training.decisionlog import places_of
from learner.training.trainer import Trainer
from millrace.basics.errors import SnapshotError
from millrace.basics.ranking_metrics import log_loss
from millrace.contracts.events import PROFILE_MISSING, WINDOWS_MISSING
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, PAGE, SampleBatch
from millrace.versions.decisions import Span
from tests.scenes.learning import SCHEMA, START_MS, make_samples

SPEC = {"model": "wide_resnet_bn", "hidden": [16, 16], "width": 4}
HOUR_MS = 3_600_000


def trainer(batch_rows: int = 64, keep_ms: int = HOUR_MS, page_weight: float = 0.0) -> Trainer:
    spec = {**SPEC, "page_weight": page_weight}
    return Trainer(OnlineModel(SCHEMA, spec, 0), Progressive(1000), Repeats(keep_ms), batch_rows)


def as_kind(batch: SampleBatch, kind: int) -> SampleBatch:
    return replace(batch, kind=np.full(len(batch), kind, np.uint8))


def test_micro_batches_are_full_or_drained() -> None:
    t = trainer()
    t.take(make_samples(100, 0))
    report = t.step()
    assert report is not None
    assert report.rows == 64
    assert t.step() is None
    assert t.pending == 36
    report = t.step(drain=True)
    assert report is not None
    assert report.rows == 36
    assert t.step(drain=True) is None
    assert t.counts["trained"] == 100


def test_a_micro_batch_that_was_cut_before_is_cut_there_again_or_not_at_all() -> None:
    """No row is passed over: what was learnt of other rows is not what is learnt now."""
    t, twin = trainer(), trainer()
    for offset in (5, 6):
        t.take(make_samples(50, offset), 7, offset)
        twin.take(make_samples(50, offset), 7, offset)
    cuts = [twin.cut(), twin.cut(drain=True)]
    assert [len(cut.batch) for cut in cuts if cut is not None] == [64, 36]
    next_ones = places_of([Span(5, 0, 50), Span(6, 0, 14)])
    twice = np.concatenate([next_ones[:-1], next_ones[:1]])
    for wrong in (next_ones[1:], twice, np.add(next_ones, (1, 0))):
        with pytest.raises(SnapshotError, match=f"the next {len(wrong)} rows are not those that were learnt"):
            t.cut_at(wrong)
    assert t.pending == 100, "nothing was cut"
    for cut in cuts:
        assert cut is not None
        again = t.cut_at(cut.places[::-1])  # in the order of the queue: those that were put aside are named last
        assert list(again.batch.ids()) == list(cut.batch.ids())
        assert (again.places.tolist(), again.joined_ms.tolist()) == (cut.places.tolist(), cut.joined_ms.tolist())
    with pytest.raises(SnapshotError, match="the next 1 rows are not those"):
        t.cut_at(places_of([Span(6, 49, 50)]))


def test_pages_whose_user_was_not_read_teach_nothing_and_are_counted() -> None:
    """Those whose user the store does not have are learnt as served."""
    batch, t, twin = make_samples(64, 0), trainer(), trainer()
    missing = np.repeat(np.array([0, PROFILE_MISSING | WINDOWS_MISSING, 7, 7], np.uint8), 16)
    t.take(replace(batch, user_missing=missing))
    twin.take(batch.take(missing < 7))
    assert t.step(drain=True) == twin.step(drain=True)
    assert t.model.snapshot()[0].same_bits(twin.model.snapshot()[0]) == ""
    assert (t.counts["unread"], twin.counts["unread"]) == (32, 0)


def test_judged_on_what_was_predicted_before_learning() -> None:
    t = trainer()
    twin = OnlineModel(SCHEMA, SPEC, 0)
    predicted, labels = [], []
    for seed in range(5):
        batch = make_samples(64, seed)
        t.take(batch)
        t.step()
        predicted.append(twin.score(batch.cat, batch.num))
        labels.append(batch.label)
        twin.learn(batch)
    exact = log_loss(np.concatenate(predicted), np.concatenate(labels))
    assert t.progressive.log_loss == pytest.approx(exact)


def test_nothing_is_learnt_twice() -> None:
    t, twin = trainer(), trainer()
    first, second = make_samples(64, 0), make_samples(64, 1)
    for batch in (first, first, second, first):
        t.take(SampleBatch.concat([batch, batch.take(slice(0, 5))]))
    while t.step(drain=True):
        pass
    for batch in (first, second):
        twin.take(batch)
        twin.step()
    assert t.counts["trained"] == 128
    assert t.counts["repeated"] == 2 * 64 + 4 * 5
    image, _ = t.model.snapshot()
    assert image.same_bits(twin.model.snapshot()[0]) == ""


def test_corrections_are_learnt_follow_ups_only_counted() -> None:
    t = trainer()
    batch = make_samples(64, 0)
    t.take(batch)
    t.step()
    t.take(as_kind(batch, CORRECTION))
    t.take(as_kind(batch, FOLLOW_UP))
    t.step(drain=True)
    assert t.counts["trained"] == 128
    assert t.counts["follow_ups"] == 64
    assert t.counts["repeated"] == 0
    assert t.progressive.rows == 64


def drained(t: Trainer, *batches: SampleBatch) -> Trainer:
    for batch in batches:
        t.take(batch)
        while t.step(drain=True) is not None:
            pass
    return t


def late_clicks(n: int, seed: int) -> SampleBatch:
    return replace(as_kind(make_samples(n, seed), CORRECTION), label=np.ones(n, np.float32))


def negatives(n: int, seed: int) -> SampleBatch:
    return replace(as_kind(make_samples(n, seed), NEGATIVE), label=np.zeros(n, np.float32))


def usual() -> list[SampleBatch]:
    """200 negatives with 20 late clicks, 100 times."""
    return [SampleBatch.concat([negatives(200, seed), late_clicks(20, 1000 + seed)]) for seed in range(100)]


def test_late_clicks_alone_teach_next_to_nothing() -> None:
    """Pages stop, and clicks on the last of them still come: a model would expect clicks of everybody."""
    t, twin, probe = drained(trainer(), *usual()), OnlineModel(SCHEMA, SPEC, 0), make_samples(2000, 77)
    assert (t.counts["trained"], t.counts["alone"]) == (22_000, 0)
    twin.resume(*t.model.snapshot())
    before = float(t.model.score(probe.cat, probe.num).mean())
    for seed in range(50):
        drained(t, late_clicks(20, 2000 + seed))
        twin.learn(late_clicks(20, 2000 + seed))
    assert 900 < t.counts["alone"] < 1000
    after, unheld = (float(model.score(probe.cat, probe.num).mean()) for model in (t.model, twin))
    assert after - before < 0.2 * (unheld - before)
    drained(t, negatives(200, 5000))
    alone = t.counts["alone"]
    drained(t, late_clicks(20, 3000))
    assert t.counts["alone"] == alone, "pages have begun again"


def test_what_is_usual_of_late_clicks_outlives_a_restart() -> None:
    t, again = drained(trainer(), *usual()), trainer()
    again.model.resume(*t.model.snapshot())
    again.resume(t.snapshot(), {})
    for one in (t, again):
        drained(one, *(late_clicks(20, 2000 + seed) for seed in range(5)), negatives(50, 5000), late_clicks(20, 3000))
    assert 0 < t.counts["alone"] == again.counts["alone"]
    assert t.model.snapshot()[0].same_bits(again.model.snapshot()[0]) == ""


def test_twice_the_late_clicks_are_a_sale() -> None:
    t = drained(trainer(), *usual())
    drained(t, *(SampleBatch.concat([negatives(100, seed), late_clicks(20, 1000 + seed)]) for seed in range(200, 300)))
    assert t.counts["alone"] == 0


def test_where_each_exposure_is_clicked_and_said_not_to_be_before_all_is_learnt() -> None:
    t = trainer()
    for seed in range(40):
        batch = make_samples(100, seed)
        drained(t, as_kind(batch, NEGATIVE), as_kind(batch, CORRECTION))
    assert (t.counts["trained"], t.counts["alone"]) == (8000, 0)


def test_a_page_that_is_sent_again_is_learnt_whole_and_judged_no_second_time() -> None:
    """Pages of ten rows; one of a hundred and fifty is longer than a batch, and stays whole."""
    t, batch = trainer(page_weight=1.0), make_samples(100, 0)
    t.take(batch)
    t.take(as_kind(batch, PAGE))
    t.take(as_kind(batch, PAGE))
    large = replace(make_samples(150, 1), page=np.zeros(150, np.int32), position=np.arange(150, dtype=np.int32))
    t.take(as_kind(large, PAGE))
    sizes = []
    while (report := t.step(drain=True)) is not None:
        sizes.append(report.rows)
    assert sizes == [64, 66, 70, 150], "100 labelled rows, then pages to their ends"
    assert (t.counts["trained"], t.counts["repeated"], t.counts["unread"]) == (350, 100, 0)
    assert t.progressive.rows == 100


def test_pages_are_cut_alike_by_whoever_goes_on() -> None:
    """A process that is killed with rows in its queue, and one that lives on."""
    t, again = trainer(page_weight=1.0), trainer(page_weight=1.0)
    batch = make_samples(70, 0)
    t.take(batch)
    t.take(as_kind(batch, PAGE))
    t.step()
    image, training = t.model.snapshot()
    training |= t.snapshot()
    again.model.resume(image, training)
    again.resume(training, {"trained": t.counts["trained"]})
    for one in (t, again):
        one.take(as_kind(batch, PAGE))
        while one.step(drain=True) is not None:
            pass
    assert t.counts["trained"] == again.counts["trained"] == 140
    assert t.model.snapshot()[0].same_bits(again.model.snapshot()[0]) == ""


def test_a_model_without_a_loss_within_pages_never_gets_them() -> None:
    t, twin, batch = trainer(), trainer(), make_samples(100, 0)
    t.take(SampleBatch.concat([as_kind(batch, PAGE), batch]))
    twin.take(batch)
    assert t.pending == 100
    assert t.step() == twin.step()
    assert t.step(drain=True) == twin.step(drain=True)
    assert t.model.snapshot()[0].same_bits(twin.model.snapshot()[0]) == ""


def test_memory_of_ids_is_bounded_by_time_and_size() -> None:
    memory = Repeats(HOUR_MS, max_ids=500)
    for i in range(50):
        fresh = memory.first_time(make_samples(100, i, start_ms=START_MS + i * HOUR_MS // 20))
        assert fresh.all()
        assert len(memory) <= 500
    assert not memory.first_time(make_samples(100, 49, start_ms=START_MS)).any()
    memory = Repeats(HOUR_MS)
    for i in range(50):
        memory.first_time(make_samples(100, i, start_ms=START_MS + i * HOUR_MS))
    assert len(memory) <= 300


def test_memory_of_ids_survives_a_snapshot() -> None:
    t, again = trainer(), trainer()
    t.take(make_samples(64, 0))
    t.step()
    image, training = t.model.snapshot()
    training |= t.snapshot()
    again.model.resume(image, training)
    again.resume(training, {"trained": 64})
    again.take(make_samples(64, 0))
    assert again.pending == 0
    assert again.counts == {"trained": 64, "repeated": 64, "follow_ups": 0}


def test_clicks_are_those_that_were_learnt() -> None:
    t = trainer()
    batch = make_samples(64, 0)
    t.take(batch, joined_ms=7)
    t.take(make_samples(64, 1), joined_ms=9)
    t.step()
    clicks = t.take_clicks()
    assert clicks.sent_ms.tolist() == batch.origin_ms[batch.label > 0].tolist()
    assert set(clicks.joined_ms.tolist()) == {7}
    assert len(t.take_clicks().sent_ms) == 0, "each is given once"
    t.step()
    assert set(t.take_clicks().joined_ms.tolist()) == {9}


def test_a_row_that_waits_keeps_the_time_at_which_it_was_joined() -> None:
    t = trainer()
    sent: list[tuple[int, int]] = []
    for joined_ms, seed in ((7, 0), (9, 1)):
        batch = make_samples(40, seed)
        t.take(batch, joined_ms=joined_ms)
        sent += [(ms, joined_ms) for ms in batch.origin_ms.tolist() if ms]
    seen: list[tuple[int, int]] = []
    while t.step(drain=True) is not None:
        clicks = t.take_clicks()
        seen += zip(clicks.sent_ms.tolist(), clicks.joined_ms.tolist(), strict=True)
    assert seen == sent
