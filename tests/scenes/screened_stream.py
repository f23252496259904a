"""A screen of the gate, and a stream of samples whose true click probabilities the model knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from learner.gate import screen as screens
from learner.gate.screen import WARM_ROWS
from learner.gate.verdicts import GateRefusal
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from tests.scenes.learning import SCHEMA, START_MS

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
Scored = tuple[SampleBatch, np.ndarray]
LAYOUT = SCHEMA.layout


class Screen(screens.Screen):
    """A screen whose clock meets what it is asked about, as the gate's does."""

    def look(self, batch: SampleBatch, p: np.ndarray) -> GateRefusal | None:
        self.clock.meet(batch)
        return super().look(batch, p)

    def absurd(self, batch: SampleBatch) -> np.ndarray:
        self.clock.meet(batch)
        return super().absurd(batch)


class Stream:
    """Samples whose true click probabilities the model knows: pages of ten rows, ten a second, each of another user.

    Args:
        rate: factor on the odds of a click, which the model does not know of.
    """

    def __init__(self, seed: int, rate: float = 1.0, base: float = -2.6) -> None:
        self.rng, self.rate, self.base = np.random.default_rng(seed), rate, base
        self.ts_ms, self.rows = START_MS, 0

    def batch(self, n: int) -> Scored:
        rng = self.rng
        t = self.base + rng.normal(0, 1.2, n)
        p = (1 / (1 + np.exp(-t))).astype(np.float32)
        label = rng.random(n) < 1 / (1 + np.exp(-t) / self.rate)
        cat = rng.integers(1, 50, (n, LAYOUT.F))
        num = rng.random((n, LAYOUT.N), np.float32) * (rng.random((n, LAYOUT.N)) < 0.7)
        page = (self.rows + np.arange(n)) // 10
        self.rows += n
        kind = np.where(label, POSITIVE, NEGATIVE).astype(np.uint8)
        user = page.astype(np.uint64) + np.uint64(1)
        return SampleBatch.of_rows(kind, START_MS + page * 1000, cat, num.astype(np.float32), user=user), p

    def batches(self, rows: int, size: int) -> Iterator[Scored]:
        for _ in range(rows // size):
            yield self.batch(size)


def learn(screen: Screen, batches: Iterator[Scored]) -> list[GateRefusal]:
    """Looks at batches and learns those that pass; a stretch of 2,048 rows is promoted at once."""
    refused, stretch = [], 0
    for batch, p in batches:
        refusal = screen.look(batch, p)
        if refusal is not None:
            refused.append(refusal)
            continue
        screen.learnt(batch, p)
        stretch += len(batch)
        if stretch >= 2048:
            screen.promoted()
            stretch = 0
    return refused


def warm(seed: int = 0, size: int = 512, **world: float) -> tuple[Screen, Stream]:
    """A screen that has met enough of a stream, and what comes next."""
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(seed, **world)
    assert learn(screen, stream.batches(2 * WARM_ROWS, size)) == []
    assert screen.warm
    return screen, stream


def labelled(batch: SampleBatch, label: Any) -> SampleBatch:
    label = np.asarray(label, np.float32)
    return replace(batch, label=label, kind=np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8))
