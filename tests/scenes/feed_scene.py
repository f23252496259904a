"""A scorer's feed of model versions over topics and a store in memory, and what goes wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learner.serving.serving_model import ServingModel
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Image
from scorer.feeder.kafka_feed import FeedRecord, TopicFeed
from scorer.feeder.modelfeed import ModelFeed
from scorer.ipc.meters import ScorerMeters
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_log import MemoryBroker, caught_up
from tests.scenes.scorer_shop import Learner


def feed(
    kind: type[TopicFeed],
    folder: Path,
    broker: MemoryBroker | None = None,
    settings: Settings | None = None,
    whole: Whole | None = None,
    **more: Any,
) -> tuple[Any, Whole, ScorerMeters, list[Any]]:
    """A feed that is no thread, and the scorer that it feeds."""
    settings = settings or Settings(data=str(folder), control_share=0, candidates=50)
    whole = whole or Whole(settings)
    broker = broker or MemoryBroker()
    if kind is ModelFeed:
        reader: Any = ModelFeed(whole.state, whole.host, broker=broker, **more)
    else:
        reader = kind(whole.state, broker=broker, **more)
    whole.primary.to_read = {reader.what: -1}
    whole.publisher.status()
    return reader, whole, whole.meters, whole.sent


def records(*messages: tuple[bytes | None, bytes | None]) -> list[FeedRecord]:
    return [FeedRecord(key, value, offset) for offset, (key, value) in enumerate(messages)]


def same_model(scorer: Whole, learner: Learner, dense: bool = True) -> bool:
    """Whether the model served is, bit for bit, the learner's newest. Not ``dense``: the network's weights are those
    that were published last."""
    assert isinstance(scorer.model, ServingModel)
    image, _ = learner.model.snapshot()
    return scorer.model.snapshot().same_bits(Image(image.dense if dense else learner.dense, image.tables)) == ""


class Scene:
    """A store, a log, a learner and a scorer's feed between them, without threads."""

    def __init__(self, folder: Path, store: str = "", **more: Any) -> None:
        self.folder = folder / "data"
        self.settings = Settings(data=str(self.folder), store=store, control_share=0, candidates=50)
        self.broker = MemoryBroker()
        self.learner = self.another(**more)
        self.start()

    def another(self, **more: Any) -> Learner:
        log = self.broker.log(MODEL_DELTAS)
        return Learner(self.settings.place("models"), log.append, log.id, **more)

    def start(self) -> None:
        """A scorer of its own. The one before is no more."""
        self.now = 0.0
        self.feed, self.scorer, self.meters, self.sent = feed(
            ModelFeed, self.folder, broker=self.broker, monotonic=lambda: self.now, settings=self.settings
        )

    def read(self) -> int | None:
        """The version that is served once all is read."""
        caught_up(self.feed)
        return self.scorer.note.version if self.scorer.note else None

    def file(self, name: str) -> Path:
        return self.folder / "models" / name


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    body = bytearray(path.read_bytes())
    body[len(body) // 3] ^= 1
    path.write_bytes(body)
