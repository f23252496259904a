"""A scorer that follows a scene of versions."""

from __future__ import annotations

from typing import Any

from learner.network.models.spec import read_spec
from learner.retrieval.tower import Tower
from learner.serving.serving_model import ServingModel
from millrace.contracts.settings import Settings
from millrace.versions.image import Image, split
from millrace.versions.versioning import Announcement, Place
from scorer.feeder.modelfeed import ModelFeed
from tests.scenes.learning import SCHEMA, tables_of
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_log import caught_up
from tests.scenes.version_scene import Scene


class Heads:
    """Has retrieval versions served, as far as these tests go: it checks each against what was published."""

    def __init__(self, place: Scene, wrong: list[str]) -> None:
        self.scene, self.tower, self.served = place, Tower(SCHEMA, read_spec(place.spec)), list[Place]()
        self._wrong = wrong

    def install(self, note: Announcement, tower: Tower | None) -> None:
        assert tower is not None
        self.tower = tower
        self._check(note)

    def patch(self, note: Announcement, head: Image) -> None:
        self.tower.apply(head)
        self._check(note)

    def _check(self, note: Announcement) -> None:
        self._wrong += misplaced(self.served, note)
        if note.retrieval_clicks < 0 or tables_of(self.tower).same_bits(self.scene.heads[note.place]):
            self._wrong.append(f"head {note.place} is torn")


def misplaced(served: list[Place], note: Announcement) -> list[str]:
    """What is wrong with the order, if this version is served next; notes it as served."""
    before = served[-1:]
    served.append(note.place)
    return [f"backwards from {place} to {note.place}" for place in before if note.place <= place]


class Scorer:
    """A scorer as a follower of the scene.

    Attributes:
        head: the version that it serves; None: none yet.
        image: its state.
        loads: each full load, by place.
        served: each version that began to serve, in order.
        wrong: what was wrong with them. A feed survives every failure, so a check that failed within it is noted here,
            and :meth:`catch_up` fails.
    """

    def __init__(self, place: Scene) -> None:
        self.scene, self.loads, self.served = place, list[Place](), list[Place]()
        chosen = Settings(store=place.url.removesuffix("/models"))
        self.whole = Whole(chosen, schema=SCHEMA)
        self.wrong: list[str] = []
        self.now, self.heads = 0.0, Heads(place, self.wrong)
        here: Any = {"broker": place.broker, "monotonic": lambda: self.now, "towers": self.heads}
        self.feed = ModelFeed(self.whole.state, self.whole.host, **here)
        install = self.whole.host.install

        def installed(note: Announcement, *rest: Any) -> None:
            self.loads.append(note.place)
            install(note, *rest)

        self.whole.host.install = installed  # type: ignore[method-assign, assignment]
        self.whole.began = self._check
        self.catch_up()

    def catch_up(self) -> None:
        self.now += 100
        caught_up(self.feed)
        self.whole.fold()
        assert not self.wrong, "; ".join(self.wrong)

    @property
    def head(self) -> Announcement | None:
        return self.whole.note

    @property
    def image(self) -> Image:
        """What ranks, and the retrieval version beside it."""
        assert isinstance(self.whole.model, ServingModel)
        ranker = self.whole.model.snapshot()
        return Image(ranker.dense, {**ranker.tables, **tables_of(self.heads.tower).tables})

    def _check(self, note: Announcement) -> None:
        self.wrong += misplaced(self.served, note)
        assert isinstance(self.whole.model, ServingModel)
        if self.whole.model.snapshot().same_bits(split(self.scene.truth[note.place])[0]):
            self.wrong.append(f"version {note.place} is torn")
