"""A worker takes up a snapshot or a retrieval version beside its requests, and lets the one before go beside them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from scorer.worker import scorer_worker
from scorer.worker.scorer_worker import ScorerWorker


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
def test_the_version_before_is_let_go_by_another_thread_than_the_one_of_requests(
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

    async def requests() -> None:
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()

        def let_go() -> None:
            threads.append(threading.get_ident())
            loop.call_soon_threadsafe(gone.set)

        weakref.finalize(made.serving.model if kind == "base" else made.serving.retrieval, let_go)
        made._attach("", SimpleNamespace(kind=kind, regions=[]))
        await asyncio.wait_for(gone.wait(), 30)

    asyncio.run(requests())
    made._attaching.shutdown()
    assert threads != [threading.get_ident()]
