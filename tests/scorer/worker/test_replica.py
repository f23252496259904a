"""What a worker makes of the feeder's messages about vectors and neighbours, whenever attaching ends."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from millrace.contracts.settings import Settings
from scorer.ipc.link import LinkMessage, Packet
from scorer.recall.nearest import Retrieval
from scorer.worker import replica, scorer_worker
from scorer.worker.scorer_worker import ScorerWorker
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import ITEMS, SCHEMA, item
from tests.scenes.scorer_vectors import WIDTH, features, head, inputs, note, tower

FEATURES = features(inputs([*ITEMS, item("new")]))


class Slow(Whole):
    """Attaching ends when a test says so."""

    def __init__(self, settings: Settings) -> None:
        self.coming: list[LinkMessage] = []
        super().__init__(settings)

    def _attach(self, message: LinkMessage) -> None:
        assert isinstance(message, LinkMessage)
        self.coming.append(message)

    def attached(self, which: int = 0) -> None:
        message = self.coming.pop(which)
        self.replica.attached(message, replica.attach(SCHEMA, message, 4))

    def version(self, number: int, epoch: int = 1) -> None:
        self.towers.install(note(number, epoch), tower(head(number, FEATURES)))
        self.vectors()

    @property
    def held(self) -> Retrieval:
        found = self.serving.retrieval
        assert isinstance(found, Retrieval)
        return found


@pytest.fixture
def scorer(tmp_path: Path) -> Slow:
    whole = Slow(Settings(data=str(tmp_path)))
    whole.stock(ITEMS)
    return whole


def knows(scorer: Slow, i: Any) -> bool:
    row = int(scorer.serving.items.rows_of([i])[0])
    return row in scorer.held.nearest(np.ones(WIDTH, np.float32), 1000)


@pytest.mark.parametrize("versions", [1, 2])
def test_vectors_that_come_while_versions_are_attached_wait_for_the_newest(scorer: Slow, versions: int) -> None:
    for version in range(1, versions + 1):
        scorer.version(version)
    scorer.stock([item("new")])
    scorer.vectors()
    for _ in range(versions):
        assert scorer.serving.retrieval is None
        scorer.attached()
    assert scorer.held.version == (1, versions)
    assert knows(scorer, "new")
    assert len(scorer.held) == len(ITEMS) + 1


def test_the_version_before_goes_on_until_the_next_is_attached(scorer: Slow) -> None:
    scorer.version(1)
    scorer.attached()
    before = scorer.held
    scorer.version(2)
    scorer.stock([item("new")])
    scorer.vectors()
    assert scorer.held is before
    assert not knows(scorer, "new")  # its vector is of version 2
    scorer.attached()
    assert scorer.held.version == (1, 2)
    assert knows(scorer, "new")


def test_a_version_that_was_withdrawn_while_it_was_attached_stays_withdrawn(scorer: Slow) -> None:
    scorer.version(1)
    scorer.towers.install(note(2, clicks=-1), None)
    scorer.vectors()
    scorer.attached()
    assert scorer.serving.retrieval is None


def test_where_a_version_cannot_be_attached_its_vectors_do_not_mix_with_the_one_before(scorer: Slow) -> None:
    scorer.version(1)
    scorer.attached()
    scorer.version(2)
    scorer.stock([item("new")])
    scorer.vectors()
    scorer.replica.failed(scorer.coming.pop())
    scorer.stock([item(5, gone=True), item(6, "other"), item("new", "other")])
    scorer.vectors()
    assert scorer.held.version == (1, 1)
    assert not knows(scorer, "new")
    assert len(scorer.held) == len(ITEMS)
    assert not scorer.replica._since  # nothing piles up for a version that never comes
    scorer.version(3)
    scorer.attached()
    assert knows(scorer, "new")
    assert len(scorer.held) == len(ITEMS)


def test_the_same_number_of_another_learner_is_another_version(scorer: Slow) -> None:
    scorer.version(7, epoch=1)
    scorer.attached()
    vectors = Packet(
        "vectors",
        {"epoch": 2, "version": 7},
        {"rows": np.empty(0, np.int32), "vectors": np.empty((0, WIDTH), np.float32), "gone": np.arange(9, dtype="i4")},
    )
    scorer.put(vectors)
    assert len(scorer.held) == len(ITEMS)


def test_what_is_kept_reaches_all_workers_and_those_that_start_later(scorer: Slow) -> None:
    def along() -> list[int]:
        assert scorer.serving.neighbours is not None
        found: list[int] = scorer.serving.neighbours.of(np.array([0]), 5).tolist()
        return found

    for number in (1, 2):
        scorer.index.put([scorer.index.prepare(item(f"late {number}"))])
        arrays = {name: np.array([n], np.int32) for name, n in (("near", number), ("worth", 1))}
        arrays["starts"] = np.array([0, 1], np.int32)
        scorer.publisher.keep("neighbours", Packet("neighbours", None, arrays))
        assert along() == [number]
        assert scorer.serving.items.rows_of([f"late {number}"])[0] >= 0  # rows come before what names them
    scorer.replace_worker()
    assert along() == [2]


# -- Attaching ---------------------------------------------------------------------------------------------------------
# A worker takes up a snapshot or a retrieval version beside its requests, and lets the one before go beside them.


class Version:
    """Stands for a model or a retrieval version."""


class Replica:
    def __init__(self, held: Any) -> None:
        self.held = held

    @property
    def model(self) -> Any:
        return self.held.model

    def attached(self, message: Any, made: Any) -> None:
        setattr(self.held, "model" if message.kind == "base" else "retrieval", made)


@pytest.mark.parametrize("kind", ["base", "retrieval"])
async def test_the_version_before_is_let_go_by_another_thread_than_the_one_of_requests(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_worker, "attach", lambda *_: Version())
    made: Any = ScorerWorker.__new__(ScorerWorker)
    made.serving, made.settings, made.schema = (
        SimpleNamespace(model=Version(), retrieval=Version(), arms=SimpleNamespace(candidates=1)),
        SimpleNamespace(of_learner=lambda _: SimpleNamespace(model="")),
        None,
    )
    made._replicas, made._attaching = {"": Replica(made.serving)}, ThreadPoolExecutor(1)
    made._report_ready = lambda: None
    threads: list[int] = []
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def let_go() -> None:
        threads.append(threading.get_ident())
        loop.call_soon_threadsafe(gone.set)

    weakref.finalize(made.serving.model if kind == "base" else made.serving.retrieval, let_go)
    made._attach("", SimpleNamespace(kind=kind, regions=[]))
    await asyncio.wait_for(gone.wait(), 30)
    made._attaching.shutdown()
    assert threads != [threading.get_ident()]
