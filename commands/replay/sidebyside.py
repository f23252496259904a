# shell
"""A run through a log in three threads: features of what comes next, scores, and learning.

::

    maker     steps ──► channel (bounded in rows) ──┐
    learner                                         ├─► take a step ── read, forward, backward ─┤ wait ├─ write ──► next
    scorer                                          └─► score its rows by the unchanged model ──┘

The result equals that of one thread to the bit: the scorer has the model as the step before left it, and the learner
writes nothing until the scorer is done (learner/ranker/frozen_scores.py). For a model that cannot be read while it
learns, the learner's thread scores first. Threads help because nearly all of the time is in compiled code that lets
other threads run.

A failure in any thread ends all of them and is raised as itself. So does Ctrl-C, which the learner's thread gets.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from commands.replay.grouped import GroupedRows
from commands.replay.known import ReplayModel, ReplayObserver
from commands.replay.outcomefigures import OutcomeScores
from commands.replay.steps import Step
from learner.ranker.frozen_scores import Still
from learner.ranker.model import OnlineModel

_SWITCH_S = 0.0002

MOST_ROWS = 32_768
"""Rows of features that wait in a channel, or the one step that is more."""


@dataclass(slots=True)
class Timing:
    """Seconds that the parts of a run took. Side by side they add up to more than the run took."""

    features: float = 0.0
    scoring: float = 0.0
    learning: float = 0.0
    waiting: float = 0.0  # of the learner, for features or scores


class StepQueue:
    """Steps from the maker's thread to the learner's. At most ``most_rows`` wait; a larger step passes alone."""

    def __init__(self, steps: Iterator[Step], timing: Timing, most_rows: int = MOST_ROWS) -> None:
        self._steps, self._timing, self._most = steps, timing, most_rows
        self._changed = threading.Condition()
        self._held: deque[Step] = deque()
        self._rows = 0
        self._done = self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="features", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Step]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._done)
                if not self._held:
                    if self._failure is not None:
                        raise self._failure
                    return
                step = self._held.popleft()
                self._rows -= step.size
                self._changed.notify_all()
            yield step

    def close(self) -> None:
        """Ends the maker's thread, after the stretch it is making."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _make(self) -> None:
        try:
            while (step := self._next()) is not None:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not self._held or self._rows < self._most)
                    if self._closed:
                        return
                    self._held.append(step)
                    self._rows += step.size
                    self._changed.notify_all()
        except BaseException as failure:  # whatever it is, it is the learner's thread that must raise it
            self._failure = failure
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _next(self) -> Step | None:
        began = time.perf_counter()
        try:
            return next(self._steps, None)
        finally:
            self._timing.features += time.perf_counter() - began


class SharedWork:
    """An :class:`~learner.network.backward.Aside`: a thread does the work, or the caller if that thread had no time
    yet."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    def begin(self, work: Callable[[], None]) -> Callable[[], None]:
        job = self._thread.submit(work)

        def wait() -> None:
            if job.cancel():
                work()
            else:
                job.result()

        return wait


class Runner:
    """Takes a model through steps. ``p``: (n,) gets the score of each row of the log. ``outcomes``: get
    their predictions and labels."""

    def __init__(
        self,
        model: ReplayModel,
        p: NDArray[np.float32],
        groups: GroupedRows | None,
        observer: ReplayObserver | None,
        timing: Timing,
        outcomes: OutcomeScores | None = None,
    ) -> None:
        self._model, self._p, self._groups, self._observer, self._timing = model, p, groups, observer, timing
        self._outcomes = outcomes

    def run(self, steps: Iterator[Step]) -> Iterator[int]:
        """Runs the steps, one after another; yields how many rows are scored, after each micro-batch."""
        for step in steps:
            self._score(step, self._model)
            if step.batch is not None:
                self._observe_scored(step)
                began = time.perf_counter()
                self._model.learn(step.batch)
                self._timing.learning += time.perf_counter() - began
                self._observe_learnt(step)
                yield step.scored

    def run_beside(self, steps: Iterator[Step], model: OnlineModel) -> Iterator[int]:
        """The same, scores in a thread of their own."""
        still, timing = Still(model), self._timing
        jobs: list[Future[None]] = []
        # Each thread of the system has a number of its own, and sums depend on it.
        begin, given = torch.set_num_threads, (torch.get_num_threads(),)
        with _quick_switches(), ThreadPoolExecutor(1, "scores", begin, given) as scorer:
            model.share(SharedWork(scorer))
            try:
                for step in _timed(steps, timing):
                    if step.shown:
                        jobs.append(scorer.submit(self._score, step, still))
                    if step.batch is None:
                        if len(jobs) > 1:  # a day's frozen rows: no more than two pieces are held
                            jobs.pop(0).result()
                        continue
                    settled = False

                    def settle(step: Step = step) -> None:
                        nonlocal settled
                        began = time.perf_counter()
                        while jobs:
                            jobs.pop(0).result()
                        timing.waiting += time.perf_counter() - began
                        settled = True
                        self._observe_scored(step)

                    began, waited = time.perf_counter(), timing.waiting
                    model.learn(step.batch, before_writing=settle)
                    if not settled:  # nothing was written
                        settle()
                    timing.learning += time.perf_counter() - began - (timing.waiting - waited)
                    still.refresh()
                    self._observe_learnt(step)
                    yield step.scored
                for job in jobs:
                    job.result()
            finally:
                model.share(None)
                scorer.shutdown(cancel_futures=True)

    def _score(self, step: Step, model: ReplayModel | Still) -> None:
        began = time.perf_counter()
        for rows, cat, num in step.shown:
            if self._outcomes is not None and not step.frozen:
                assert isinstance(model, OnlineModel | Still)
                found = model.predict(cat, num)
                self._p[rows], self._outcomes.q[rows] = found[:, 0], found[:, 1:]
                continue
            p = model.score(cat, num)
            if not step.frozen:
                self._p[rows] = p
            else:
                assert self._groups is not None
                self._groups.put(rows, num, p)
        self._timing.scoring += time.perf_counter() - began

    def _observe_scored(self, step: Step) -> None:
        if self._observer is not None:
            for rows, cat, num in step.shown:
                self._observer.scored(rows, cat, num, self._p[rows])

    def _observe_learnt(self, step: Step) -> None:
        if self._outcomes is not None and step.samples is not None:
            self._outcomes.hear(step.samples)
        if self._observer is not None and step.batch is not None and step.samples is not None:
            self._observer.learnt(step.samples, slice(0, len(step.batch)), step.batch)


def run_side_by_side(
    steps: Iterator[Step],
    model: ReplayModel,
    p: NDArray[np.float32],
    groups: GroupedRows | None = None,
    observer: ReplayObserver | None = None,
    timing: Timing | None = None,
    outcomes: OutcomeScores | None = None,
) -> Generator[int, None, None]:
    """Takes a model through steps that another thread makes; yields how many rows are scored, after each micro-batch.
    Arguments as in :class:`Runner`. Exhaust or close it: that ends the threads."""
    timing = timing or Timing()
    runner = Runner(model, p, groups, observer, timing, outcomes)
    with closing(StepQueue(steps, timing)) as channel:
        if type(model) is OnlineModel:
            yield from runner.run_beside(iter(channel), model)
        else:
            yield from runner.run(_timed(iter(channel), timing))


@contextmanager
def _quick_switches() -> Iterator[None]:
    """Makes threads switch after .2 ms of Python code instead of 5, since the learner must not wait at each of many
    short calls of compiled code."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _timed(steps: Iterator[Step], timing: Timing) -> Iterator[Step]:
    while True:
        began = time.perf_counter()
        step = next(steps, None)
        timing.waiting += time.perf_counter() - began
        if step is None:
            return
        yield step
