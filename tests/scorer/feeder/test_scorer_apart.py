"""Learner and scorer with nothing in common but Kafka and an object store: no folder, and no machine's time."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millrace.contracts.events import key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS, SAMPLES
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.versions.modelstore import ModelStore
from tests.scenes.scorer_process import Scorer
from tests.scenes.scorer_shop import ITEMS as SHOP_ITEMS
from tests.scenes.scorer_shop import SCHEMA_TOML, SPEC, batch
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


class Learner:
    """The role as a process, with a folder of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "learner.log"
        own = msgspec.structs.replace(settings, data=str(folder), metrics_port=0)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "millrace", "run", "learn"],
                env=Scorer.environment_of(own),
                stderr=log,
                stdout=log,
            )

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
def test_a_scorer_follows_a_learner_that_it_shares_no_folder_with(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker, EmbeddedRedis(tmp_path / "redis") as redis:
        settings = Settings(
            kafka=broker.address,
            redis=redis.address,
            store=f"file://{tmp_path / 'object store'}",
            schema=str(SCHEMA_TOML),
            model_spec=SPEC,
            port=free_port(),
            partitions=3,
            control_share=0,
            snapshot_seconds=1.0,
            redis_seconds=PATIENCE,
        )
        create_topics(settings)
        (tmp_path / "scorer").mkdir()
        scorer = Scorer(msgspec.structs.replace(settings, data=str(tmp_path / "scorer")), tmp_path / "scorer")
        learners = [Learner(settings, tmp_path / "learner")]
        try:
            with closing(make_producer(settings)) as producer:
                _life(scorer, learners, settings, producer)
        finally:
            for process in (scorer.process, *(learner.process for learner in learners)):
                if process.poll() is None:
                    process.kill()
                process.wait()
    below = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.manifest")}
    assert below == {"object store"}, "no model lies anywhere else"


def _life(scorer: Scorer, learners: list[Learner], settings: Settings, producer: Any) -> None:
    for one in SHOP_ITEMS:
        producer.send(ITEMS, key=key_of(one.item_id), value=to_json(one))
    turns = iter(range(10_000))

    def learn(until_trained: int) -> None:
        """Sends samples until the scorer serves a version that has learnt from so many."""

        def served() -> bool:
            turn = next(turns)
            samples = replace(batch(turn), request=(f"page {turn}",))
            producer.send(SAMPLES, samples.to_bytes(), partition=0)
            producer.flush()
            return bool(scorer.model()["trained"] >= until_trained)

        scorer.until(served, f"{until_trained} samples are in what is served")

    scorer.until(lambda: scorer.ask("/readyz")[0] == 200, "ready")
    learn(1000)
    before = scorer.model()
    learners[-1].kill()
    learners.append(Learner(settings, scorer.log.parent.parent / "another learner"))  # on another machine
    learn(before["trained"] + 1000)
    learners[-1].end()
    newest = ModelStore(settings.place("models"), writes=False).latest()
    assert newest is not None
    assert newest.epoch == 2
    until(lambda: scorer.model()["hash"] == newest.hash, "the scorer serves the learner's last version")
    facts = scorer.model()
    assert facts["version"] > before["version"]
    assert (facts["gaps"], facts["errors_by_kind"]) == (0, {})
    assert scorer.ask("/recommend", {"user_id": 1, "size": 10})[1]["model_version"] == facts["version"]
