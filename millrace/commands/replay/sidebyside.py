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
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from learner.ranker.frozen_scores import Still
from learner.ranker.model import OnlineModel
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.kept import KeptReplay
from millrace.commands.replay.logsamples import ReplayModel, ReplayObserver
from millrace.commands.replay.outcomefigures import OutcomeScores
from millrace.commands.replay.steps import Step

_SWITCH_S = 0.0002

MOST_ROWS = 32_768
"""Rows of features that wait in a channel, or the one step that is more."""


@dataclass(slots=True)
class Timing:
    """Seconds that the parts of a run took, and what windows hold at its end. Side by side they add up to more than the
    run took."""

    features: float = 0.0
    scoring: float = 0.0
    learning: float = 0.0
    waiting: float = 0.0  # of the learner, for features or scores
    windows_bytes: int = 0


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
            began = time.perf_counter()
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._done)
                self._timing.waiting += time.perf_counter() - began
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


@dataclass(frozen=True, slots=True)
class Runner:
    """Takes a model through the steps of a log of n rows."""

    model: ReplayModel
    p: NDArray[np.float32]  # (n,) gets the score of each row
    groups: GroupedRows | None = None
    observer: ReplayObserver | None = None
    timing: Timing = field(default_factory=Timing)
    outcomes: OutcomeScores | None = None  # get their predictions and labels
    kept: KeptReplay | None = None  # goes on behind its steps, and is kept on the way

    def run(self, steps: Iterator[Step]) -> Generator[int, None, None]:
        """Runs the steps, which another thread makes; yields how many rows are scored, after each micro-batch. Exhaust
        or close it: that ends the threads."""
        with closing(StepQueue(steps, self.timing)) as made:
            to_come = iter(made)
            for step in islice(to_come, 0 if self.kept is None else self.kept.steps):
                self._again(step)
                yield step.scored
            yield from self._beside(to_come, self.model) if type(self.model) is OnlineModel else self._in_turn(to_come)

    def _in_turn(self, steps: Iterable[Step]) -> Iterator[int]:
        for step in steps:
            self._score(step, self.model)
            if step.batch is not None:
                began = time.perf_counter()
                self.model.learn(step.batch)
                self.timing.learning += time.perf_counter() - began
                self._observe(step)
                yield step.scored

    def _beside(self, steps: Iterable[Step], model: OnlineModel) -> Iterator[int]:
        """Scores in a thread of their own."""
        still, timing = Still(model), self.timing
        jobs: list[Future[None]] = []

        def wait() -> None:
            began = time.perf_counter()
            while jobs:
                jobs.pop(0).result()
            timing.waiting += time.perf_counter() - began

        # Each thread of the system has a number of its own, and sums depend on it.
        begin, given = torch.set_num_threads, (torch.get_num_threads(),)
        with _quick_switches(), ThreadPoolExecutor(1, "scores", begin, given) as scorer:
            model.share(SharedWork(scorer))
            try:
                for number, step in enumerate(steps, 1 if self.kept is None else self.kept.steps + 1):
                    if step.shown:
                        jobs.append(scorer.submit(self._score, step, still))
                    if step.batch is None:
                        if len(jobs) > 1:  # a day's frozen rows: no more than two pieces are held
                            jobs.pop(0).result()
                        continue
                    began, waited = time.perf_counter(), timing.waiting
                    model.learn(step.batch, before_writing=wait)
                    wait()  # where nothing was written
                    timing.learning += time.perf_counter() - began - (timing.waiting - waited)
                    still.refresh()
                    self._observe(step)
                    if self.kept is not None:
                        self.kept.look(number)
                    yield step.scored
                wait()
            finally:
                model.share(None)
                scorer.shutdown(cancel_futures=True)

    def _score(self, step: Step, model: ReplayModel | Still) -> None:
        began = time.perf_counter()
        for rows, cat, num in step.shown:
            if self.outcomes is not None and not step.frozen:
                assert isinstance(model, OnlineModel | Still)
                found = model.predict(cat, num)
                self.p[rows], self.outcomes.q[rows] = found[:, 0], found[:, 1:]
                continue
            p = model.score(cat, num)
            if not step.frozen:
                self.p[rows] = p
            else:
                assert self.groups is not None
                self.groups.put(rows, num, p)
        self.timing.scoring += time.perf_counter() - began

    def _again(self, step: Step) -> None:
        """A step that was scored and learnt before."""
        if step.batch is not None:
            self._observe(step)
        elif self.groups is not None:
            for rows, _, num in step.shown:
                self.groups.put(rows, num)

    def _observe(self, step: Step) -> None:
        """Shows what was scored and then learnt."""
        assert step.batch is not None
        assert step.samples is not None
        if self.outcomes is not None:
            self.outcomes.hear(step.samples)
        if self.observer is not None:
            for rows, cat, num in step.shown:
                self.observer.scored(rows, cat, num, self.p[rows])
            self.observer.learnt(step.samples, slice(0, len(step.batch)), step.batch)


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
