"""A learner that is killed goes on as what it was when it last published or answered, through a real broker."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from learner.role import learnloop
from learner.role.learnloop import LearnPace
from learner.role.topicoutput import TopicOutput
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, wait_for_broker
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import unpack
from tests.scenes import learner_role
from tests.scenes.learner_role import Role, deltas, end_of_topic, send, trained
from tests.scenes.learning import make_samples
from tests.scenes.waiting import LONG, until

broker, settings = learner_role.broker, learner_role.settings

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


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


def test_what_was_published_is_learnt_again_with_the_same_cuts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_broker(settings)
    create_topics(settings)
    settings = msgspec.structs.replace(settings, snapshot_seconds=3600.0)
    pace = LearnPace(batch_ms=50, delta_seconds=0.2, dense_seconds=0.0, retrieval_seconds=0.0)
    monkeypatch.setattr(learnloop, "PACE", pace)
    past = end_of_topic(settings)
    store = ModelStore(settings.place("models"), writes=False)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    batches: list[SampleBatch] = [make_samples(100, seed) for seed in range(5)]
    for batch in batches[:4]:
        send(settings, [batch])
    until(lambda: max((d.note.trained for d in deltas(settings, past)), default=0) == 400, "all of it is published")
    kill(role, monkeypatch)
    assert trained(settings) == 0, "no snapshot has it"
    served = store.read(store.snapshots()[0])
    for delta in deltas(settings, past):
        served = served.apply(unpack(delta.body, served.dense))

    with capture_logs() as lines:
        role = Role(settings)
        until(lambda: trained(settings) == 400, "a root has it, and nothing was sent since")
    assert any(line["event"] == "decisions done again" for line in lines)
    newest = store.latest()
    assert newest is not None
    assert store.read(newest).same_bits(served) == ""
    send(settings, [batches[0], batches[4]])  # one of them once more
    until(
        lambda: max((d.note.trained for d in deltas(settings, past)), default=0) == 500,
        "it goes on behind what it read",
    )
    role.end()
    end = store.latest()
    assert end is not None
    assert end.extra["counts"]["repeated"] == 100


def test_another_store_on_the_same_broker_is_another_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store that was emptied, or another one, begins anew: what somebody else decided is not done."""
    wait_for_broker(settings)
    create_topics(settings)
    past = end_of_topic(settings)
    role = Role(msgspec.structs.replace(settings, snapshot_seconds=3600.0))
    send(settings, [make_samples(100, 50)])
    until(lambda: max((d.note.trained for d in deltas(settings, past)), default=0) >= 100, "something was decided")
    kill(role, monkeypatch)
    other = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
    with capture_logs() as lines:
        role = Role(other)
        until(lambda: trained(other) >= 0, "it serves")
        role.end()
    assert not any(line["event"] == "decisions done again" for line in lines)
