# core
"""The contract of a label policy, and its promise for an exposure.

::

    exposure ────────────── hold ─────────── observe ─────────────────────► event time since the exposure
        a click in here waits ┘ a click in here │ a click in here comes after a negative:
        for the end of hold     labels at once  │ CORRECTION, at once
        then POSITIVE           POSITIVE        └ without a click until here: NEGATIVE

``hold`` is 0 where no click waits, and ``observe`` is 0 where each exposure is a negative first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import POLICIES
from millrace.contracts.settings import Settings

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
T = TypeVar("T")
Ms = TypeVar("Ms", int, NDArray[np.int64])
"""Of one exposure, or of many: (n,) each."""

MOST = np.float32(0.9)
"""Predictions are cut here before weights are made of them. A negative's weight has the factor ``1 - p``: a model that
predicts 1 would otherwise never learn from negatives again. The model predicts too little for true rates above it."""


class Waits(NamedTuple):
    """The settings that policies read, in milliseconds of event time."""

    attribution_ms: int  # an exposure without a click for so long has none
    observation_ms: int  # and for so long it is a negative for the time being
    disorder_ms: int  # how much out of order events may come
    lateness_ms: int = 0  # how long after the attribution window a page accepts its messages

    @classmethod
    def of(cls, settings: Settings) -> Waits:
        return cls(
            round(settings.attribution_minutes * 60_000),
            round(settings.observation_seconds * 1000),
            round(settings.disorder_seconds * 1000),
            round(settings.lateness_minutes * 60_000),
        )

    @property
    def life_ms(self) -> int:
        """From an exposure to the moment at which its page is dropped: nothing more is taken for it."""
        return self.attribution_ms + self.lateness_ms

    def too_early(self, after_ms: int) -> bool:
        """Whether an action so long after its exposure is none of it: it is dated before it by more than the disorder.
        An action that is dated less before it, by another clock, counts as one at the exposure."""
        return after_ms < -self.disorder_ms

    @property
    def window_ms(self) -> int:
        return min(self.observation_ms, self.attribution_ms)

    @property
    def settled_ms(self) -> int:
        """From an exposure to the event time at which its label is final: no click in its window can come any more."""
        return self.attribution_ms + self.disorder_ms


class Promise(NamedTuple, Generic[T]):
    """The promise for an exposure, or for many. Times are in milliseconds of event time, from the exposure.

    ``slack_ms`` is the part of the allowed disorder that is not waited for. With 0 the events' own times alone
    decide the label, in whatever order they come. With all of it the label is given as soon as event time is there,
    and a click that comes out of order is a correction.
    """

    code: T
    hold_ms: T
    observe_ms: T
    slack_ms: T


def label_ms(promise: Promise[Ms]) -> Ms:
    """The watermark, from the exposure, at which exposures without a click are negatives."""
    return promise.observe_ms - promise.slack_ms


def is_early(promise: Promise[Ms], after_ms: Ms, came_ms: Ms) -> Any:
    """Whether a click is its exposure's first label; if not, it corrects a negative.

    Args:
        after_ms: the click's time from the exposure, and not below 0: an action before its exposure counts at it.
        came_ms: the watermark when it came, from the exposure.
    """
    return (after_ms < promise.observe_ms) & (came_ms < label_ms(promise))


@dataclass(slots=True)
class Traffic:
    """How long exposures have been coming without a gap, which policies read.

    Traffic begins again after an attribution window without any. The join has one of each partition, a replay one of
    the log.
    """

    began_ms: int = -(1 << 62)
    newest_ms: int = -(1 << 62)

    def promise(self, policy: LabelPolicy, waits: Waits, ts_ms: int) -> Promise[int]:
        """The policy's promise for an exposure of this time, which comes now."""
        if ts_ms - self.newest_ms > waits.attribution_ms:
            self.began_ms = ts_ms
        self.newest_ms = max(self.newest_ms, ts_ms)
        return policy.promise(waits, max(0, ts_ms - self.began_ms))


class LabelPolicy(ABC):
    """One policy. It has no state."""

    name: ClassVar[str]
    weighs: ClassVar[bool] = False
    """Whether samples weigh other than 1."""
    asks: ClassVar[bool] = False
    """Whether the weights depend on ``early``, so that somebody must know how late clicks come."""

    early: ClassVar[bool] = False
    """Whether an outcome that comes late may have it, and is told before its window is over (tellings.py)."""

    final: ClassVar[bool] = False
    """Whether the first labels of a page come at one time, when no click is expected any more."""

    @property
    def code(self) -> int:
        """The policy's number in samples and promises."""
        return POLICIES.index(self.name)

    @abstractmethod
    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        """The promise for an exposure ``flowing_ms`` after traffic began (again, if it had stopped). Waits never grow
        while traffic flows."""

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        """Weights of samples, (B,); 1 unless the policy says otherwise.

        Args:
            kind: NEGATIVE, POSITIVE or CORRECTION, (B,).
            p: the model's own click probabilities, (B,). No gradient flows through them.
            early: P(a click comes before its exposure's label | there is a click, the exposure), (B,).
        """
        return np.ones(len(kind), np.float32)
