"""Models of one's own for the tests: one that is as it must be, and some that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema

Arrays = dict[str, NDArray[Any]]


class Hashed:
    """Logistic regression on hashed ids, in NumPy. ``training/steps`` is of use to learning alone."""

    def __init__(self, schema: Schema, spec: dict[str, Any], seed: int) -> None:
        self.rate, self.bits = spec.get("rate", 0.5), spec.get("bits", 12)
        self.weights = np.random.default_rng(seed).normal(0, 0.001, 1 << self.bits).astype(np.float32)
        self.intercept = np.array([np.log(schema.windows.prior_rate / (1 - schema.windows.prior_rate))], np.float32)
        self.steps = np.zeros(1, np.int64)

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        t = self.intercept[0] + (self.weights[self._at(cat)] * (cat != 0)).sum(1)
        p: NDArray[np.float32] = 1 / (1 + np.exp(-t))
        return p

    def learn(self, batch: SampleBatch) -> None:
        slope = batch.weight * (self.score(batch.cat, batch.num) - batch.label)  # (B,)
        rate = self.rate / (1 + 0.01 * self.steps[0]) / len(batch)
        self.steps += 1
        np.add.at(self.weights, self._at(batch.cat), (-rate * slope[:, None] * (batch.cat != 0)).astype(np.float32))
        self.intercept -= np.float32(rate * slope.sum())

    def snapshot(self) -> Arrays:
        named = {"weights": self.weights, "intercept": self.intercept, "training/steps": self.steps}
        return {name: array.copy() for name, array in named.items()}

    def resume(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if arrays["weights"].shape != self.weights.shape:
            raise ValueError(f"{len(arrays['weights'])} weights, not {len(self.weights)}")
        self.weights, self.intercept = arrays["weights"], arrays["intercept"]
        self.steps = arrays.get("training/steps", self.steps)

    def _at(self, cat: NDArray[np.int64]) -> NDArray[np.int64]:
        at: NDArray[np.int64] = (cat.view(np.uint64) >> np.uint64(64 - self.bits)).astype(np.int64)
        return at


BAD_WEIGHT, ODD_WEIGHT, ENDING_WEIGHT = 1313.0, 1717.0, 1919.0
"""Samples of these weights make :class:`Moody` do something bad."""


class Moody(Hashed):
    """Valid on what it is tried with, and not later."""

    fails: ClassVar[set[str]] = set()  # verbs that raise from now on, in all objects
    last: ClassVar[SampleBatch | None] = None  # learnt by any of them

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        if "score" in self.fails:
            raise RuntimeError("no mood to score")
        return super().score(cat, num)

    def learn(self, batch: SampleBatch) -> None:
        type(self).last = batch
        if (batch.weight == BAD_WEIGHT).any():
            self.weights[:] = 7  # half of it is done when it raises
            raise RuntimeError("no mood to learn")
        if (batch.weight == ENDING_WEIGHT).any():
            self.weights[:] = 7
            raise SystemExit(3)
        super().learn(batch)
        if (batch.weight == ODD_WEIGHT).any():
            self.intercept[0] = np.nan

    def snapshot(self) -> Arrays:
        if "snapshot" in self.fails:
            raise RuntimeError("no mood for snapshots")
        return super().snapshot()

    def resume(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if "resume" in self.fails:
            raise RuntimeError("no mood to resume")
        super().resume(arrays)


class Grows(Hashed):
    """Its scoring writes."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        self.weights[self._at(cat)] += 1e-6
        return super().score(cat, num)


class Column(Hashed):
    """A column in place of a vector."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().score(cat, num)[:, None]


class Logits(Hashed):
    """Logits in place of probabilities."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().score(cat, num) - 3


class Texts(Hashed):
    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> Any:
        return super().score(cat, num).astype(str)


class Forgets(Hashed):
    """Its snapshot lacks something that scores depend on."""

    def snapshot(self) -> Arrays:
        return {name: array for name, array in super().snapshot().items() if name != "intercept"}

    def resume(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().resume({"intercept": self.intercept, **arrays})


class Shares(Hashed):
    """Its snapshot is live."""

    def snapshot(self) -> Arrays:
        return {"weights": self.weights, "intercept": self.intercept, "training/steps": self.steps}


class NeedsAll(Hashed):
    """It cannot score without the arrays of training."""

    def resume(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().resume(arrays)
        self.steps = arrays["training/steps"]


class NewNames(Hashed):
    def snapshot(self) -> Arrays:
        return {**super().snapshot(), **({"seen": np.ones(1)} if self.steps[0] else {})}


class Objects(Hashed):
    def snapshot(self) -> Any:
        return {**super().snapshot(), "self": np.array([object()], object)}


class Plain(Hashed):
    def snapshot(self) -> Any:
        return {**super().snapshot(), "rate": 0.5}


class NotFinite(Hashed):
    def snapshot(self) -> Arrays:
        return {**super().snapshot(), "more": np.full(2, np.inf)}


class OnlyTraining(Hashed):
    def snapshot(self) -> Arrays:
        return {f"training/{name}": array for name, array in super().snapshot().items()}


class Tuple(Hashed):
    def snapshot(self) -> Any:
        return tuple(super().snapshot().values())


class Tells(Hashed):
    def learn(self, batch: SampleBatch) -> Any:
        super().learn(batch)
        return 0.5


class CannotLearn(Hashed):
    def learn(self, batch: SampleBatch) -> None:
        raise ZeroDivisionError("by design")


class WritesToPage(Hashed):
    """It scores in place: what a page logs would not be what it was ranked by."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        num += 1
        return super().score(cat, num)


class WritesToBatch(Hashed):
    """It learns in place: other models and a batch that is learnt again would get other rows."""

    def learn(self, batch: SampleBatch) -> None:
        batch.label[:] = 0
        super().learn(batch)


class Draws(Hashed):
    """It draws from a generator that no seed made."""

    def learn(self, batch: SampleBatch) -> None:
        super().learn(batch)
        self.weights += np.random.default_rng().normal(0, 1e-3, len(self.weights)).astype(np.float32)


class Unsure(Hashed):
    """It draws while it scores, as a module does that was left in training mode."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        p: NDArray[np.float32] = super().score(cat, num) * np.random.default_rng().random(len(cat), np.float32)
        return p


class ForgetsSteps(Hashed):
    """It scores as before once it is resumed, and learns otherwise."""

    def snapshot(self) -> Arrays:
        return {name: array for name, array in super().snapshot().items() if name != "training/steps"}


class NeedsTwo(Hashed):
    """It cannot learn from a row alone."""

    def learn(self, batch: SampleBatch) -> None:
        if len(batch) == 1:
            raise ValueError("more than one row is needed")
        super().learn(batch)


class Leaves(Hashed):
    """It ends the process that it is in."""

    def learn(self, batch: SampleBatch) -> None:
        raise SystemExit(3)


class Mute:
    """It lacks verbs."""

    def __init__(self, schema: Schema, spec: dict[str, Any], seed: int) -> None: ...

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros(len(cat), np.float32)


class NoArguments(Hashed):
    def __init__(self) -> None: ...


NUMBER = 5
