"""The learner's role in a thread beside an embedded broker, one for each module, and what is on its topics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest

from learner.gate import checks
from learner.gate.shift import Shift
from learner.role import learnloop
from learner.role.learnloop import LearnPace
from learner.role.service import run
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS, SAMPLES
from millrace.processes.kafka import create_topics, make_producer, make_reader, wait_for_broker
from millrace.processes.services import EmbeddedBroker
from millrace.versions.modellog import Assembler, Delta, Snapshot
from millrace.versions.modelstore import ModelStore
from tests.scenes.learning import SCHEMA
from tests.scenes.topic_records import records
from tests.scenes.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With all topics, of two partitions."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as running:
        settings = Settings(kafka=running.address, partitions=2)
        wait_for_broker(settings)
        create_topics(settings)
        yield running.address


@pytest.fixture
def settings(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(Settings, "load_schema", lambda self: SCHEMA)
    monkeypatch.setattr(learnloop, "PACE", LearnPace(batch_ms=50, delta_seconds=0.2, retrieval_seconds=0.5))
    return Settings(
        kafka=broker,
        data=str(tmp_path),
        partitions=2,
        snapshot_seconds=1.0,
        heldout_share=0.0,  # so that every row is learnt
        admin_port=0,
    )


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot waits for the end of a stretch: here each delta is one, and never refused for a shift."""
    short = partial(Shift, stretch=1, least=1, most=inf)
    monkeypatch.setattr(checks, "Shift", short)


class Role:
    """The learner in a thread, with what it raised."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stop = settings, threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            run(self.settings, self.stop)
        except Exception as error:
            self.error = error

    def end(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


def send(settings: Settings, *partitions: list[SampleBatch]) -> None:
    """Sends samples of the stream's partitions 0, 1, ...; a learner takes them in this order."""
    producer = make_producer(settings)
    for number, batches in enumerate(partitions):
        for batch in batches:
            one = replace(batch, partition=np.full(len(batch), number, np.uint16))
            producer.send(SAMPLES, one.to_bytes(), partition=0)
    producer.flush()
    producer.close()


def entries(settings: Settings, past: int = 0) -> list[Delta | Snapshot]:
    """What was published on the topic behind its first ``past`` messages. A learner that has ended left its newest
    version in the store: when that was read, all was."""
    newest = ModelStore(settings.place("models"), writes=False).latest()
    assert newest is not None
    reader, assembler = make_reader(settings, MODEL_DELTAS, {0: past}), Assembler()
    found: list[Delta | Snapshot] = []

    def all_read() -> bool:
        records = [r for rs in reader.poll(timeout_ms=100).values() for r in rs]
        new = [entry for r in records for entry in assembler.take(r.value)]
        found.extend(entry for entry in new if isinstance(entry, Delta | Snapshot))
        return bool(found) and (found[-1].note.kind, found[-1].note.place) == ("snapshot", newest.place)

    until(all_read, f"the snapshot of version {newest.version} was announced")
    reader.close()
    return found


def trained(settings: Settings) -> int:
    note = ModelStore(settings.place("models"), writes=False).latest()
    return note.trained if note else -1


def end_of_topic(settings: Settings) -> int:
    """Messages of earlier tests: brokers are shared."""
    return len(records(settings, MODEL_DELTAS))


def deltas(settings: Settings, past: int) -> list[Delta]:
    """Those that are on the topic now, behind its first ``past`` messages."""
    assembler, behind = Assembler(), [r for r in records(settings, MODEL_DELTAS) if r.offset >= past]
    return [entry for r in behind for entry in assembler.take(r.value) if isinstance(entry, Delta)]
