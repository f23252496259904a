"""The role `learn` against the embedded broker: versions out, offsets kept, restarts, kills, damage, other schemas."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from structlog.testing import capture_logs

from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.retrieval import MICRO
from learner.retrieval.tower import Tower
from learner.role import learnloop, samplereader
from learner.role.learner import Learner
from learner.role.learner_metrics import SKIPPED, Board
from learner.role.service import run
from learner.role.topicoutput import TopicOutput
from learner.serving.serving_model import ServingModel
from learner.training.learner_versions import Progress, Versions, write_root
from learner.training.writer import SnapshotWriter
from millrace.basics.errors import BrokerError, SnapshotError
from millrace.contracts.schema import Field, parse_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS, SAMPLES
from millrace.processes.deltas import read_deltas
from millrace.processes.kafka import create_topics, make_producer
from millrace.versions.clicks import ClickHistogram
from millrace.versions.image import split
from millrace.versions.modellog import Assembler, Delta, Snapshot
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import unpack
from millrace.versions.proof import prove
from tests.scenes import learner_role
from tests.scenes.learner_role import Role, deltas, end_of_topic, entries, send, trained
from tests.scenes.learning import SCHEMA, START_MS, make_samples, tables_of
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG), pytest.mark.usefixtures("short_stretches")]

PUBLISHED_MS = 1_800_000_000_000
SCHEMA_TEXT = """
name = "small"
fields = [{name = "user_id", of = "user"}]
"""

broker, settings, short_stretches = learner_role.broker, learner_role.settings, learner_role.short_stretches


@pytest.mark.slow
def test_life_of_a_learner(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, learn, publish, stop; start again at the stored offsets; recognise what was sent twice."""
    # How many snapshots there are depends on how long learning takes: with none removed, all can be verified.
    monkeypatch.setattr(SnapshotWriter, "tidy", lambda self, epoch: None)
    past = end_of_topic(settings)
    batches = [make_samples(100, seed) for seed in range(6)]
    store = ModelStore(settings.place("models"), writes=False)

    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    send(settings, [batches[0], batches[0], batches[2], batches[3]], [batches[1]])
    until(lambda: trained(settings) == 400, "four batches were learnt, one of them once")
    role.end()
    first = entries(settings, past)
    notes = [entry.note for entry in first]
    assert isinstance(first[0], Snapshot)
    assert notes[0].is_root
    assert {n.epoch for n in notes} == {notes[0].epoch}
    assert notes[-1].trained == 400
    assert sum(n.kind == "delta" for n in notes) >= 1
    sent = np.concatenate([b.origin_ms for b in batches[:4]])
    assert ClickHistogram.merged([n.clicks for n in notes if n.kind == "delta"]) == ClickHistogram.of(sent[sent > 0])
    found = prove(store, read_deltas(settings))
    assert sum(p.deltas for p in found.proofs) == notes[-1].version - notes[0].version
    assert not found.unproved

    # A scorer that follows the topic holds what the last snapshot says: its ranker, and its retrieval head.
    root = [split(part) for part in store.read_parts(notes[0])]
    model = ServingModel.of(SCHEMA, notes[0].spec, (ranker for ranker, _ in root))
    tower = Tower(SCHEMA, read_spec(notes[0].spec))
    for _, head in root:
        tower.apply(head)
    at = notes[0].hash
    for entry in first:
        if isinstance(entry, Delta):
            assert entry.note.parent == at
            ranker, head = split(unpack(entry.body, model.dense()))
            assert bool(head.tables) == (entry.note.retrieval_clicks >= 0)
            model.patch(ranker)
            tower.apply(head)
            at = entry.note.hash
    newest = store.latest()
    assert newest is not None
    assert newest.hash == at
    ranker, head = split(store.read(newest))
    assert model.snapshot().same_bits(ranker) == ""
    assert tables_of(tower).same_bits(head) == ""
    assert newest.retrieval_clicks == (sent > 0).sum() // MICRO * MICRO > 0, "others wait for more"
    assert sum(p.heads for p in found.proofs) == sum(n.kind == "delta" and n.retrieval_clicks >= 0 for n in notes) > 0
    assembler, topic = Assembler(), records(settings, MODEL_DELTAS)
    behind = [r.offset + 1 for r in topic for entry in assembler.take(r.value) if isinstance(entry, Delta)]
    assert newest.follows == max(behind)

    # Between the runs more arrives, and before it something already learnt from.
    send(settings, [batches[1], batches[4]])
    role = Role(settings)
    until(lambda: trained(settings) == 500, "the fifth was learnt")
    role.end()
    second = [entry.note for entry in entries(settings, past)][len(notes) :]
    assert second[0].is_root
    assert second[0].place == (notes[0].epoch + 1, notes[-1].version + 1)
    assert second[0].trained == 400
    assert second[-1].trained == 500
    newest = store.latest()
    assert newest is not None
    assert newest.extra["counts"]["repeated"] == 200
    history = [json.loads(line) for line in (settings.folder("learner") / "history.jsonl").read_text().splitlines()]
    assert history[-1]["trained"] == 500
    assert {"event_time", "arm", "rows", "auc", "log_loss", "calibration", "learning_auc"} <= set(history[-1])

    # A damaged newest snapshot: the one before it is used, the damaged file is kept aside, nothing is learnt twice.
    damaged = Path(settings.place("models"), newest.parts[0].name)
    damaged.write_bytes(b"not a part")
    send(settings, [batches[5]])
    role = Role(settings)
    until(lambda: trained(settings) >= 600, "the sixth was learnt")
    role.end()
    assert trained(settings) == 600
    assert damaged.with_name(f"damaged-{damaged.name}").exists()
    third = [entry.note for entry in entries(settings, past)][len(notes) + len(second) :]
    assert third[0].place == (newest.epoch + 1, newest.version + 1)

    # Rubbish in the topic is passed over.
    producer = make_producer(settings)
    producer.send(SAMPLES, b"rubbish", partition=0)
    producer.flush()
    producer.close()
    send(settings, [make_samples(100, 77)])
    role = Role(settings)
    until(lambda: trained(settings) == 700, "what follows the rubbish was learnt")
    role.end()

    # What the broker removed before it was learnt is counted, and told of in one line.
    send(settings, [make_samples(100, seed) for seed in (78, 79, 80)])
    with closing(KafkaAdminClient(bootstrap_servers=settings.brokers)) as admin:
        admin.delete_records({TopicPartition(SAMPLES, 0): 12})
    before = SKIPPED.labels("gone")._value.get()
    with capture_logs() as lines:
        role = Role(settings)
        until(lambda: trained(settings) == 800, "what is left was learnt")
        role.end()
    assert SKIPPED.labels("gone")._value.get() - before == 2
    (line,) = [line for line in lines if "removed messages" in line["event"]]
    assert (line["partition"], line["messages"], line["expected"], line["found"]) == (0, 2, 10, 12)

    other = msgspec.structs.replace(settings, model="logistic")
    with pytest.raises(SnapshotError, match="MILLRACE_MODEL"):
        run(other, threading.Event())


def test_samples_in_several_partitions_are_refused(settings: Settings) -> None:
    """As a version before 0.3.0 has made them: they have no one order."""
    settings = msgspec.structs.replace(settings, prefix="several.")
    create_topics(settings)
    with closing(KafkaAdminClient(bootstrap_servers=settings.brokers)) as admin:
        admin.delete_topics([settings.topic(SAMPLES)])
        admin.create_topics({settings.topic(SAMPLES): {"num_partitions": 2, "replication_factor": 1}})
    with pytest.raises(BrokerError, match=r"'several.samples' has 2 partitions where 1 is needed; remove the topic"):
        run(settings, threading.Event())


def test_another_schema_is_carried_over_when_told_to(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field and a setting more: refused in one line, with `evolve` carried over, aloud, and then simply resumed."""
    settings = msgspec.structs.replace(settings, model="wide_deep")
    store = ModelStore(settings.place("models"))
    before = OnlineModel(SCHEMA, {"model": "wide_deep"}, 0)
    for seed in range(5):
        before.learn(make_samples(100, seed))
    extra = {"counts": {"trained": 500}, "columns": msgspec.to_builtins(before.columns)}
    write_root(store, Versions(before), Progress(500, 10**9, "", extra), {}, PUBLISHED_MS)
    wider = msgspec.structs.replace(SCHEMA, fields=(*SCHEMA.fields, Field("stock", "item", "numeric")))
    monkeypatch.setattr(Settings, "load_schema", lambda self: wider)
    with pytest.raises(SnapshotError, match="MILLRACE_EVOLVE"):
        run(settings, threading.Event())
    with capture_logs() as lines:
        learner = Learner(
            msgspec.structs.replace(settings, evolve=True, model_spec={"width": 8}), settings.load_schema()
        )
    said = [line["what"] for line in lines if line["event"] == "carried over"]
    assert {"new: number stock, a number", "changed: width: 16 -> 8"} <= set(said)
    model = learner.trainer.model
    assert (model.schema.id, model.spec["width"], model.rows) == (wider.id, 8, before.rows)
    assert learner.trainer.counts["trained"] == 500
    versions = Versions(model, version=store.highest().number)
    note = write_root(store, versions, learner.loop.progress(), learner.trainer.snapshot(), PUBLISHED_MS)
    assert (note.version, note.schema_id, note.offset) == (1, wider.id, 10**9)
    assert note.published_ms == PUBLISHED_MS
    with capture_logs() as lines:
        again = Learner(
            msgspec.structs.replace(settings, model_spec={"width": 8, "dense_rate": 0.01}), settings.load_schema()
        )
    assert "carried over" not in {line["event"] for line in lines}
    assert again.trainer.model.spec["dense_rate"] == 0.01  # no matter of shape: simply taken
    assert again.trainer.model.snapshot()[0].same_bits(model.snapshot()[0]) == ""
    with pytest.raises(SnapshotError, match="MILLRACE_MODEL_SPEC"):
        Learner(msgspec.structs.replace(settings, model_spec={"width": 4}), settings.load_schema())


@pytest.mark.parametrize("unread", [0, 3])
def test_a_partition_is_waited_for_until_nothing_comes_of_it_while_others_come(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """Labels settle when every partition's event time has passed them. A learner that stood still hears no silence."""
    settings = msgspec.structs.replace(settings, label_policy="fake-negative-weighted")
    learner = Learner(settings, settings.load_schema())
    learner.samples._reader = cast(KafkaConsumer, None)
    learner.served.time.expect([0, 1])
    samples = make_samples(300, 0)
    late = 299 * 100 + round(settings.attribution_minutes * 60_000 + settings.disorder_seconds * 1000)
    for seed, start_ms in ((0, START_MS), (1, START_MS + late)):
        batch = make_samples(300, seed, start_ms=start_ms)
        version, policy = samples.version + 2, samples.policy + np.uint8(2)
        learner.trainer.take(replace(batch, score=samples.num[:, 0], version=version, policy=policy))
    learner.loop.learn(drain=True)
    board = Board(learner.trainer, settings.folder("learner") / "history.jsonl")
    long_ago, now = -1e9, 1e9
    settled = []
    for lag, heard in ((3, {0: long_ago, 1: long_ago}), (0, {0: now, 1: now}), (unread, {0: now, 1: long_ago})):
        monkeypatch.setattr(samplereader, "lag_of", lambda reader, lag=lag: {0: lag})
        learner.samples._heard = heard
        learner.samples.lag()
        board.show()
        settled.append(learner.served.figures("model")["rows"])
    assert settled == [0, 0, 300]
    told = [json.loads(line) for line in (settings.folder("learner") / "history.jsonl").read_text().splitlines()]
    assert [(line["trained"], line["auc"]) for line in told] == [(600, None)], "one line for what was learnt"


def test_the_attribution_window_says_when_clicks_have_come(settings: Settings) -> None:
    learner = Learner(msgspec.structs.replace(settings, attribution_minutes=7.0), settings.load_schema())
    assert learner.trainer.model.spec["settled_minutes"] == 7.0


def test_the_head_goes_out_now_and_then_and_is_in_every_snapshot(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltas go out each 200 ms, the head is due once in an hour: it goes with the delta before a snapshot's end."""
    monkeypatch.setattr(SnapshotWriter, "tidy", lambda self, epoch: None)
    monkeypatch.setattr(learnloop, "PACE", replace(learnloop.PACE, retrieval_seconds=3600.0))
    settings = msgspec.structs.replace(settings, snapshot_seconds=2.0)
    past = end_of_topic(settings)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    seeds, told = itertools.count(100), list[int]()

    def enough() -> bool:
        """Whether both kinds have gone out, after some more samples."""
        send(settings, [make_samples(100, next(seeds))])
        told[:] = [entry.note.retrieval_clicks for entry in deltas(settings, past)]
        return sum(clicks < 0 for clicks in told) >= 3 and max(told) > 0

    until(enough, "three deltas without the head, and one with it", more=lambda: f"the head's clicks: {told}")
    role.end()
    found = [entry.note for entry in entries(settings, past)]
    snapshots = {n.place: n.retrieval_clicks for n in found if n.kind == "snapshot"}
    heads = {n.place: n.retrieval_clicks for n in found if n.kind == "delta" and n.retrieval_clicks >= 0}
    assert heads == {place: clicks for place, clicks in snapshots.items() if place != found[0].place}


def test_a_store_without_a_head_goes_on_with_an_empty_one(settings: Settings) -> None:
    """And the other way round. Nothing is refused, and one line says so."""

    def begun(spec: dict[str, Any], version: int) -> tuple[Learner, list[str]]:
        with capture_logs() as lines:
            learner = Learner(msgspec.structs.replace(settings, model_spec=spec), SCHEMA)
        said = [line["event"] for line in lines if line["log_level"] == "warning"]
        learner.trainer.take(make_samples(300, version))
        learner.loop.learn(drain=True)
        versions = Versions(learner.trainer.model, version=version)
        write_root(learner.store, versions, learner.loop.progress(), learner.trainer.snapshot(), PUBLISHED_MS)
        return learner, said

    first, said = begun({"retrieval_width": 0}, 0)
    assert (first.trainer.model.head, said) == (None, [])
    second, said = begun({}, 1)
    assert said == ["the snapshot has no retrieval head like this one: it begins empty"]
    head = second.trainer.model.head
    assert head is not None
    assert 0 < head.clicks < second.trainer.counts["trained"], "it has learnt from its own clicks alone"
    again, said = begun({}, 2)
    assert again.trainer.model.head is not None
    assert (again.trainer.model.head.clicks > head.clicks, said) == (True, [])
    other, said = begun({"retrieval_width": 16}, 3)
    assert other.trainer.model.head is not None
    assert other.trainer.model.head.clicks < again.trainer.model.head.clicks
    assert said == ["the snapshot has no retrieval head like this one: it begins empty"]
    last, said = begun({"retrieval_width": 0}, 4)
    assert (last.trainer.model.head, said) == (
        None,
        ["the snapshot's retrieval head is left behind: there is none now"],
    )
    assert last.trainer.counts["trained"] == 5 * 300


def test_a_schema_without_users_has_no_head(settings: Settings) -> None:
    fields = tuple(f for f in SCHEMA.fields if f.of != "user")
    with capture_logs() as lines:
        learner = Learner(settings, msgspec.structs.replace(SCHEMA, fields=fields, crosses=()))
    assert learner.trainer.model.head is None
    assert [line["event"] for line in lines] == [
        "no retrieval head: the schema has no fields of users, or none of items"
    ]


def test_another_schema_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnlineModel(SCHEMA, {"model": settings.model}, 0)
    write_root(ModelStore(settings.place("models")), Versions(model), Progress(), {}, PUBLISHED_MS)
    monkeypatch.setattr(Settings, "load_schema", lambda self: parse_schema(SCHEMA_TEXT))
    with pytest.raises(SnapshotError, match="MILLRACE_SCHEMA"):
        run(settings, threading.Event())


class Killed(Exception):
    pass


def kill(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a learner between two rounds of its loop: it writes no last snapshot."""

    def killed(self: TopicOutput, now: float) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TopicOutput, "between", killed)
        until(lambda: not role.thread.is_alive(), "it is dead")
    assert isinstance(role.error, Killed)


def published(settings: Settings) -> int:
    """Samples that the newest delta on the topic has learnt from."""
    return max((delta.note.trained for delta in deltas(settings, 0)), default=0)


def test_a_learner_that_is_killed_goes_on_as_what_it_was_when_it_last_published(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was published is learnt again with the same cuts, in another life of that store. A store that was emptied,
    or another one, begins anew: what somebody else decided is not done."""
    settings = msgspec.structs.replace(settings, snapshot_seconds=3600.0, prefix="killed.")
    create_topics(settings)
    monkeypatch.setattr(learnloop, "PACE", replace(learnloop.PACE, dense_seconds=0.0, retrieval_seconds=0.0))
    store = ModelStore(settings.place("models"), writes=False)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    batches = [make_samples(100, seed) for seed in range(5)]
    for batch in batches[:4]:
        send(settings, [batch])
    until(lambda: published(settings) == 400, "all of it is published")
    kill(role, monkeypatch)
    assert trained(settings) == 0, "no snapshot has it"
    served = store.read(store.snapshots()[0])
    for delta in deltas(settings, 0):
        served = served.apply(unpack(delta.body, served.dense))

    with capture_logs() as lines:
        role = Role(settings)
        until(lambda: trained(settings) == 400, "a root has it, and nothing was sent since")
    assert any(line["event"] == "decisions done again" for line in lines)
    newest = store.latest()
    assert newest is not None
    assert store.read(newest).same_bits(served) == ""
    send(settings, [batches[0], batches[4]])  # one of them once more
    until(lambda: published(settings) == 500, "it goes on behind what it read")
    role.end()
    end = store.latest()
    assert end is not None
    assert end.extra["counts"]["repeated"] == 100

    role = Role(settings)
    send(settings, [make_samples(100, 50)])
    until(lambda: published(settings) == 600, "something is decided")
    kill(role, monkeypatch)
    other = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
    with capture_logs() as lines:
        role = Role(other)
        until(lambda: trained(other) >= 0, "it serves")
        role.end()
    assert not any(line["event"] == "decisions done again" for line in lines)
