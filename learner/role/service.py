# shell
"""The role ``learn``: samples from Kafka, versions to the topic ``model.deltas`` and the model store.

It makes a model, or resumes one, and gives it to :class:`~learner.role.learnloop.LearnLoop`. One snapshot holds the
model and its offsets in the samples, so the two cannot disagree. After a crash it learns again what came after the
snapshot; it never skips. Of two learners on one store one ends (:mod:`learner.training.learner_claim`).

A learner with a name has a store and a topic of its own (:mod:`millrace.evidence.learners`), and is compared with the
first one (:mod:`learner.role.comparison`). It begins with the first's newest snapshot where its model has that shape,
else with an untrained model and the oldest sample.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from pathlib import Path

import structlog
import torch
from kafka import KafkaProducer
from kafka.errors import KafkaError

from learner.network.dense import role_threads
from learner.role.learner import Learner, rehearse
from learner.role.learner_warmup import warm_up
from learner.role.topicoutput import TopicOutput
from learner.training.learner_claim import LearnerClaim
from learner.training.publisher import Publisher
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import make_producer, open_broker, topic_ids
from millrace.processes.metrics import serve_metrics
from millrace.processes.priority import step_back
from millrace.processes.profiles import check_whole

log = structlog.get_logger("learner")


def run(settings: Settings, stop: threading.Event) -> None:
    """Learns until ``stop`` is set; then learns what it has read, publishes a last snapshot, and returns.

    Raises:
        SnapshotError: the model store is of another schema or model.
        BrokerError: the broker or the topic is not there.
        PortError: the metrics port is taken.
        StoreError: the model store cannot be written, or the history in the store is not whole.
        FencedError: another learner has taken over.
        SettingError: there is no learner of this name.
    """
    check_whole(settings)
    own = settings.of_learner(settings.learner)
    if own.learner and own.learner not in settings.served_learners:
        step_back()  # pages, and those learners that make them, come first
    torch.set_num_threads(role_threads())
    serve_metrics(own.learner_role, settings.metrics_port, settings.host)
    schema = settings.load_schema()
    # A learner that cannot read the store ends here, before it takes the epoch from one that can.
    learner = Learner(settings, schema)
    warm_up(learner.trainer.model)
    rehearse(own, schema, learner.trainer.model.spec)
    open_broker(settings)
    decision = 0 if learner.found is None else learner.found.note.extra.get("decision", 0)
    tenure = LearnerClaim(own, uuid.uuid4().hex, _mark(own), decision)
    try:
        producer = make_producer(own, linger_ms=0)  # a delta is sent whole: it has nothing to wait for
        try:
            publisher = Publisher(own, producer, topic_ids(own).get(MODEL_DELTAS, ""))
            if not tenure.win(publisher, learner.store.highest(), stop):
                return
            newest = next(iter(learner.store.snapshots(held=True)), None)
            if newest is not None and (learner.found is None or newest.place > learner.found.note.place):
                learner = Learner(settings, schema)  # the one before has published since
            _learn(learner, stop, tenure, producer, publisher)
        finally:
            with contextlib.suppress(KafkaError):  # it may not hide what ends this role
                producer.close(timeout=5)
    finally:
        tenure.close()


def _learn(
    learner: Learner, stop: threading.Event, tenure: LearnerClaim, producer: KafkaProducer, publisher: Publisher
) -> None:
    """Learns until ``stop`` is set, as :func:`run`. ``tenure``: an epoch that was won."""
    versions = learner.loop.versions
    versions.epoch, versions.claimant = tenure.epoch, tenure.claimant
    versions.version = max(learner.store.highest().number, tenure.newest)
    with contextlib.closing(TopicOutput(learner, tenure, producer, publisher)) as output:
        learner.loop.output = output
        learner.samples.bad, learner.samples.gone = output.bad, output.gone
        decided, tenure.decided = tenure.decided, []
        learner.loop.run(learner.found, stop, decided)
        try:
            producer.flush(timeout=10)
        except KafkaError as error:  # all of it is in the snapshot too, but for dead letters
            log.warning("the broker took not all of what was sent last", error=type(error).__name__)


def _mark(settings: Settings) -> Path:
    return settings.folder("learner") / "fenced"
