"""What a learner's loop does where it cannot do what it has to: it says so, now and then, and loses nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from learner.gate.admin import Command
from learner.promotion.gatejudge import GateJudge
from learner.ranker.model import OnlineModel
from learner.role.service import Learner, TopicOutput
from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from tests.scenes.learning import SCHEMA, make_samples


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    """It has learnt some rows, waits for more, and has no broker."""
    learner = Learner(Settings(data=str(tmp_path), heldout_share=0.0), SCHEMA)
    learner.loop.promotion.begin(None)
    learner.loop.promotion.take(make_samples(100, 0), 0, 0, 0)
    learner.loop.learn(drain=True)
    learner.loop.promotion.take(make_samples(50, 1), 0, 0, 1)
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
