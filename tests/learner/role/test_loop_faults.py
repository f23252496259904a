"""What a learner's loop does where it cannot do what it has to: it says so, now and then, and loses nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kafka import KafkaProducer
from structlog.testing import capture_logs

from learner.gate.admin import Command
from learner.promotion.gatejudge import GateJudge
from learner.ranker.model import OnlineModel
from learner.role.learner import Learner
from learner.role.topicoutput import TopicOutput
from learner.training.publisher import Publisher
from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from millrace.versions.decisions import HeldBack, decode_decisions
from millrace.versions.modellog import Assembler, Decisions
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.planned_producer import Producer


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    """It has learnt some rows, waits for more, and has no broker."""
    learner = Learner(Settings(data=str(tmp_path), heldout_share=0.0), SCHEMA)
    learner.loop.promotion.begin(None)
    learner.loop.promotion.take(make_samples(100, 0), 0, 0)
    learner.loop.learn(drain=True)
    learner.loop.promotion.take(make_samples(50, 1), 0, 1)
    return learner


def damage(learner: Learner) -> None:
    model = learner.trainer.model
    assert isinstance(model, OnlineModel)
    model.dense.weights[0] = float("nan")


def test_that_no_model_is_there_to_go_back_to_is_said_now_and_then(learner: Learner) -> None:
    damage(learner)
    with capture_logs() as lines:
        for _ in range(5):
            learner.loop.publish()
    errors = [line for line in lines if line["log_level"] == "error" and "error" in line]
    assert [line["event"] for line in errors] == ["nothing newer goes out; tried again"]
    assert "gives a sound model; empty the store" in errors[0]["error"]
    assert not learner.loop.promotion.takes


def test_rows_that_wait_as_a_command_comes_are_not_lost_with_it(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be mended just then ends the role, as it does without a command: a restart learns those rows."""
    asked = Command("hold", {})
    asked.take()
    output = TopicOutput.__new__(TopicOutput)
    output._learner, output._admin = learner, cast(Any, SimpleNamespace(next=lambda: asked))
    output._comparison = learner.comparison()

    def away(*_: object) -> bool:
        raise BrokerError("broker 'x' does not answer", "start it")

    monkeypatch.setattr(GateJudge, "mend", away)
    damage(learner)
    with pytest.raises(BrokerError):
        output.between(0.0)
    assert not asked.answered.done()
    assert not learner.loop.promotion.state.standing.held


class LockWith:
    """A lock behind whose next release something happens, as another thread does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.then = list[Any]()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.then:
            self.then.pop()()


def test_a_decision_that_is_lost_just_then_is_sent_again(learner: Learner) -> None:
    """The producer's thread hears that a message was lost between any two of the loop's questions."""
    producer, lock = Producer(), LockWith()
    publisher = Publisher(learner.settings, cast(KafkaProducer, producer), "the log")
    publisher._lock = cast(Any, lock)
    output = TopicOutput.__new__(TopicOutput)
    output._publisher, output._unpublished = publisher, []
    output._tenure = cast(Any, SimpleNamespace(check=lambda: None, epoch=1, claimant="a"))
    loop, commands = learner.loop, learner.loop.promotion.commands
    loop.output = output
    commands.hold()
    loop.publish()
    assert len(producer.sent) == 1
    lock.then.append(lambda: producer.fail(0))
    loop.publish()
    loop.publish()
    notes = [entry for value in producer.values[1:] for entry in Assembler().take(value)]
    decided = [d.what for e in notes if isinstance(e, Decisions) for d in decode_decisions(e.note.decisions).decided]
    assert any(isinstance(what, HeldBack) for what in decided)
    for number in range(1, len(producer.sent)):
        producer.deliver(number, number)
    loop.publish()
    assert loop.promotion.state.log.newest_sent == 0, "and it is there then"
