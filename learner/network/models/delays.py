# core
"""How likely a click is an early one: P(the click came before its exposure's label | there is a click, the exposure).

The weights of the label policies ``es-dfm`` and ``prompt`` depend on it (millrace/labels). One number would not do:
people scroll, so a page's first item is mostly clicked within half a minute and its last hardly ever. A logistic model
over the position on the page and the exposure's categorical features gives it::

    logit g = logit(PRIOR) + u[position] + sum_f v[h(id of field f)]        one-hot positions, hashed ids

It learns online, by Adagrad (Duchi et al. 2011), from clicks whose exposure is *settled*: the attribution window has
passed. Before that, early clicks would be too many, since the late ones of the same exposures have not come. Until
:data:`ENOUGH` clicks are settled, g is :data:`PRIOR`.

An outcome that is told by age has such a model of its own (learner/ranker/outcome_heads.py): its first telling is the
label, and an exposure is settled when the outcome's window has passed.

The weights are a buffer of the network, so deltas and snapshots carry them, and a proof of the deltas covers them.
Waiting clicks and Adagrad's sums serve training only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch

Array = NDArray[Any]
Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Places = NDArray[np.int32]

PRIOR = 0.5
ENOUGH = 200

_POSITIONS = 64
_IDS = 1024
SIZE = _POSITIONS + _IDS
"""Weights of the model: positions, then hashed ids."""

_PRIOR_LOGIT = np.float32(np.log(PRIOR / (1 - PRIOR)))
_RATES = np.repeat(np.array([0.3, 0.02], np.float32), [_POSITIONS, _IDS])  # ids are many and each says little
MOST_WAITING = 200_000
"""Clicks; beyond it the oldest are learnt from unsettled."""


class Delays:
    """The model of delays. ``weights``: (SIZE,) a buffer of the network; read and written in place. ``settled_ms``:
    event time from an exposure until its clicks have come."""

    def __init__(self, weights: Tensor, settled_ms: int) -> None:
        self.settled_ms = settled_ms
        self.count = 0  # clicks learnt from
        self._weights: Floats = weights.numpy()
        self._squares = np.zeros(SIZE, np.float32)
        self._newest_ms = 0
        self._waiting: deque[_Clicks] = deque()
        self._rows = 0

    def __len__(self) -> int:
        """Clicks that wait for their exposure to be settled."""
        return self._rows

    def early(self, position: NDArray[np.int32], cat: Ids) -> Floats:
        """g for exposures at these positions (B,) with features cat (B, F). (B,)"""
        if self.count < ENOUGH:
            return np.full(len(position), PRIOR, np.float32)
        return self._predict(_places(position, cat))

    def learn(self, batch: SampleBatch) -> None:
        """Takes in a batch's clicks; learns from those that are settled by now."""
        self._newest_ms = max(self._newest_ms, int(batch.ts_ms.max()))
        clicked = batch.kind != NEGATIVE
        if clicked.any():
            places = _places(batch.position[clicked], batch.cat[clicked])
            newest_ms = int(batch.ts_ms[clicked].max())
            self._waiting.append(_Clicks(newest_ms, places, batch.kind[clicked] == POSITIVE))
            self._rows += len(places)
        # Batches are nearly in the order of time, so the oldest says whether there is anything to learn.
        waiting = self._waiting
        while waiting and (waiting[0].newest_ms <= self._newest_ms - self.settled_ms or self._rows > MOST_WAITING):
            clicks = waiting.popleft()
            self._rows -= len(clicks.places)
            self._step(clicks.places, clicks.early)

    def _predict(self, places: Places) -> Floats:
        logit = _PRIOR_LOGIT + self._weights[places].sum(1)
        early: Floats = (1 / (1 + np.exp(-logit))).astype(np.float32)
        return early

    def _step(self, places: Places, early: NDArray[np.bool_]) -> None:
        slope = self._predict(places) - early  # (B,)
        gradient = np.zeros(SIZE, np.float32)
        np.add.at(gradient, places, slope[:, None])
        self._squares += gradient**2
        self._weights -= _RATES * gradient / np.sqrt(self._squares + 1)
        self.count += len(early)

    def snapshot(self) -> dict[str, Array]:
        """What only training needs: ``clock`` (clicks learnt from, newest event), Adagrad's ``squares``, and the
        waiting clicks: ``sizes`` and ``newest`` of their batches, ``places`` and ``early`` of each."""
        waiting = self._waiting
        width = waiting[0].places.shape[1] if waiting else 0
        return {
            "clock": np.array([self.count, self._newest_ms], np.int64),
            "squares": self._squares.copy(),
            "sizes": np.array([len(c.places) for c in waiting], np.int64),
            "newest": np.array([c.newest_ms for c in waiting], np.int64),
            "places": np.concatenate([np.zeros((0, width), np.int32), *(c.places for c in waiting)]),
            "early": np.concatenate([np.zeros(0, np.uint8), *(c.early.astype(np.uint8) for c in waiting)]),
        }

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`; the weights come with the network. Raises KeyError where an array is
        missing, and ValueError where an array has another shape than its fellows."""
        squares, sizes, places, early = (np.array(state[n]) for n in ("squares", "sizes", "places", "early"))
        rows = int(sizes.sum())
        if squares.shape != (SIZE,) or len(places) != rows or len(early) != rows or len(state["newest"]) != len(sizes):
            raise ValueError(f"delays: {len(squares)} squares, {rows} clicks that wait, {len(places)} places")
        self._squares, self._rows = squares.astype(np.float32), rows
        self.count, self._newest_ms = (int(v) for v in state["clock"])
        ends = np.cumsum(sizes).tolist()
        self._waiting = deque(
            _Clicks(int(newest), places[end - size : end].astype(np.int32), early[end - size : end].astype(np.bool_))
            for newest, size, end in zip(state["newest"].tolist(), sizes.tolist(), ends, strict=True)
        )


class _Clicks(NamedTuple):
    newest_ms: int  # newest of their exposures
    places: Places  # (n, 1 + F) of their weights
    early: NDArray[np.bool_]  # (n,)


def _places(position: NDArray[np.int32], cat: Ids) -> Places:
    out = np.empty((len(position), 1 + cat.shape[1]), np.int32)
    out[:, 0] = np.clip(position, 0, _POSITIONS - 1)
    out[:, 1:] = _POSITIONS + (cat.view(np.uint64) % np.uint64(_IDS)).astype(np.int32)
    return out
