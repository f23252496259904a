# core
"""How far a model's logits on reference rows moved: no label is needed.

::

    learning   ── stretch ──┬── stretch ──┬── stretch ──┬─ ...           of 2,048 rows, or of 5 minutes
                          mark          mark          mark               look, promoted: the next mark, of newer rows
    anchor     ●──────────────────── an hour of event time ──────●       of rows of then

A stretch ends by rows or by time, whichever comes first: with a row a second 2,048 rows are half an hour. But it has
256 rows at least. At night that is longer than five minutes, and tells of nobody: nothing else is learnt meanwhile.

With d_r the difference of the logits of row r, now and at the mark (or the anchor), m its mean over R rows, and n the
rows learnt since the mark, and at least 2,048::

    shift   mean_r |d_r|        to the mark,    at most .06  sqrt(n / 2048)
    turn    mean_r |d_r - m|    to the mark,    at most .035 sqrt(n / 2048)
    drift   mean_r |d_r - m|    to the anchor,  at most .15

The mean is left out of the drift: within an hour a shop's click rate may double for good (a sale), which moves all
logits alike and ranks nothing otherwise. Labels that are flipped or all of one kind move the mean by .09 in 512 rows
and .3 in 2,048; numbers that are all zero turn by .043 in 2,048; a clean stream turns by .02 at most, by .01 mostly.

The rows of a mark are the newest promoted ones. Older ones tell less and less: in a young shop window counts grow by
the hour, and what a model says of a row as there are none any more moves though nothing is wrong.

A young model moves more, and so does one that few visitors teach. So a bound is never below three times what is usual:
the median of figures that passed; of shift and turn, each over the root of its n, as large as the newest 16 of them
allow. (Their 13th is below the median once in a hundred times, and so is the largest of seven.) Nothing is refused
before there are 16: with the rows until the first reference, some 35,000 rows. Or before there are seven, over half an
hour: an hour at a row a second, with the time until the first reference. That is for shift and turn. The drift of a
young model's hours differs by more than that of its stretches: it is judged each 2,048 rows, and after 16 times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import comb

import numpy as np
from numpy.typing import NDArray

from learner.gate.median_clock import MedianClock
from learner.gate.verdicts import GateRefusal
from learner.ranker.verbs import Predicting
from millrace.contracts.samples import SampleBatch
from millrace.versions.image import Array

Logits = NDArray[np.float64]

HOUR_MS = 3_600_000
WARM_LOOKS = 16
"""Figures that must have passed before one is refused; what is usual is told by so many, too."""
FEWEST_LOOKS, WARM_MS = 7, 1_800_000
"""Or so many, where they are of so long."""

_USUAL = 3.0  # times the median of what passed is still usual
_BELOW_MEDIAN = 0.011  # chance that what is taken for the median, or more, is less
_EVERY, _EVERY_MS = 32, 10_000  # of so many rows met, or of so long, one becomes a reference row: one of a page or less
_CLIP = 1e-7
FIGURES = ("shift", "turn", "drift")


class Shift:
    """See the module's text. One thread at a time.

    A look costs the prediction of twice ``rows`` rows, a mark that of ``rows``; each comes once a stretch.

    Args:
        rows: R.
        stretch, stretch_ms, least: rows learnt that make one; or the time, where there are as many as ``least``.
        most, most_turn, most_drift: bounds of the three figures.
        clock: the gate's.

    Attributes:
        figures: of the newest look, by name; empty before the first.
    """

    def __init__(
        self,
        rows: int = 256,
        stretch: int = 2048,
        most: float = 0.06,
        most_drift: float = 0.15,
        most_turn: float = 0.035,
        clock: MedianClock | None = None,
        stretch_ms: int = 300_000,
        least: int = 256,
    ) -> None:
        self.stretch_ms, self.least = stretch_ms, least
        self.rows, self.stretch, self.clock = rows, stretch, clock or MedianClock()
        self.most = {"shift": most, "turn": most_turn, "drift": most_drift}
        self.figures: dict[str, float] = {}
        self._past: dict[str, deque[float]] = {name: deque(maxlen=WARM_LOOKS) for name in FIGURES}
        self._met = _Newest(rows)  # since the mark
        self._ring = _Newest(rows)  # before it
        self._turn = 0  # rows met, of which every so many-th is taken
        self._newest: _Rows | None = None  # of the mark
        self._reference: _Rows | None = None  # of the anchor
        self._mark: Logits = np.empty(0)
        self._anchor: Logits = np.empty(0)
        self._anchor_ms = self._since = 0
        self._began_ms = self._taken_ms = self._first_ms = 0  # of the stretch, the newest reference row, the first look
        self._drifted = 0  # rows promoted since the newest figure of drift
        self._looked = False  # whether the state was looked at

    def meet(self, batch: SampleBatch) -> None:
        """Rows that passed the screen: some of them become reference rows, once they are promoted."""
        if self.clock.now_ms - self._taken_ms >= _EVERY_MS:
            self._turn = 0
        first = -self._turn % _EVERY
        self._turn += len(batch)
        if first < len(batch):
            self._taken_ms = self.clock.now_ms
            self._met.add((batch.cat[first::_EVERY].copy(), batch.num[first::_EVERY].copy()))

    def learnt(self, rows: int) -> None:
        """So many rows more were learnt."""
        if not self._since:
            self._began_ms = self.clock.now_ms
        self._since += rows
        self._looked = False

    @property
    def due(self) -> bool:
        """Whether a whole stretch was learnt since the last promotion of one."""
        long = self.clock.now_ms - self._began_ms >= self.stretch_ms
        return self._since >= (min(self.least, self.stretch) if long else self.stretch)

    @property
    def armed(self) -> bool:
        """Whether there is a past to judge by."""
        looks = len(self._past["shift"])
        return looks == WARM_LOOKS or (looks >= FEWEST_LOOKS and self.clock.now_ms - self._first_ms >= WARM_MS)

    def look(self, model: Predicting) -> GateRefusal | None:
        """Compares with the mark (the state at the last :meth:`promoted`) and with the anchor. None too while unarmed,
        but for logits that are not finite. Changes nothing that is judged by."""
        if self._newest is None or self._reference is None:
            return None
        now, of_anchor = logits_of(model, self._newest), logits_of(model, self._reference)
        self._looked = True
        step, hour = now - self._mark, of_anchor - self._anchor
        self.figures = {
            "shift": float(np.abs(step).mean()),
            "turn": float(np.abs(step - step.mean()).mean()),
            "drift": float(np.abs(hour - hour.mean()).mean()),
        }
        if not (np.isfinite(now).all() and np.isfinite(of_anchor).all()):
            return GateRefusal("finite", float("nan"), 0.0, "logits of reference rows")
        for name, value in self.figures.items():
            if name == "drift" and not self._drift_due:
                continue
            bound = self.bound(name)
            if value > bound:
                return GateRefusal(
                    "drift" if name == "drift" else "shift", value, bound, "about their mean" * (name != "shift")
                )
        return None

    def bound(self, name: str) -> float:
        """What a figure may be, now; infinite while there is no past to judge by."""
        past = self._past[name]
        if not self.armed or (name == "drift" and len(past) < WARM_LOOKS):
            return float("inf")
        if name == "drift":  # within an hour it sums up: its newest figures are no independent ones
            return max(self.most[name], _USUAL * float(np.median(past)))
        usual = _USUAL * sorted(past)[_median_at_most(len(past))]
        return max(self.most[name] * max(1.0, self._scale), usual * self._scale)

    @property
    def _drift_due(self) -> bool:
        return self._drifted + self._since >= self.stretch

    @property
    def _scale(self) -> float:
        """How far a stretch of as many rows moves, over one of :attr:`stretch`."""
        return float((max(self._since, self.least) / self.stretch) ** 0.5)

    def promoted(self, model: Predicting) -> None:
        """The state just looked at is the mark from now on, and the anchor where an hour of event time has passed."""
        if self._looked:
            if not self._past["shift"]:
                self._first_ms = self.clock.now_ms
            for name in ("shift", "turn"):
                self._past[name].append(self.figures[name] / self._scale)
            if self._drift_due:
                self._past["drift"].append(self.figures["drift"])
        self._drifted = 0 if self._drift_due else self._drifted + self._since
        self._join()
        self._since, self._looked = 0, False
        self._set_mark(model)
        if self._reference is None or self.clock.now_ms - self._anchor_ms >= HOUR_MS:
            self._drop_anchor()

    def went_back(self) -> None:
        """The model is at the mark again: what it met since never was."""
        self._met.clear()
        self._since, self._looked = 0, False

    def rebase(self, model: Predicting) -> None:
        """The model as it is now is mark and anchor: a person, or a stated time, says that the world is different; or
        it went back further than the mark. Rows met since the mark stay candidates for reference rows."""
        self._join()
        self._since, self._looked = 0, False
        if self._newest is not None:
            self._set_mark(model)
            self._drop_anchor()

    def _join(self) -> None:
        """What was met since the mark is promoted."""
        for part in self._met.parts:
            self._ring.add(part)
        self._met.clear()

    def _set_mark(self, model: Predicting) -> None:
        """The state is the mark, by the newest rows that are promoted, where there are enough."""
        if self._ring.count >= self.rows // 4:
            cat, num = (np.concatenate(parts)[-self.rows :] for parts in zip(*self._ring.parts, strict=True))
            self._newest = cat, num
            self._mark = logits_of(model, self._newest)

    def _drop_anchor(self) -> None:
        """The mark is the anchor too."""
        self._reference, self._anchor, self._anchor_ms = self._newest, self._mark, self.clock.now_ms

    def snapshot(self) -> dict[str, Array]:
        """The state, as long as there is any: a few hundred rows. Shares no memory with this."""
        state: dict[str, Array] = {f"past/{name}": np.array(past) for name, past in self._past.items()}
        times = [self._anchor_ms, self._began_ms, self._taken_ms, self._first_ms]
        state["clock"] = np.array([*times, self._since, self._drifted, self._turn], np.int64)
        state["mark"], state["anchor"] = self._mark.copy(), self._anchor.copy()
        kept = {
            "newest": [self._newest] if self._newest else [],
            "reference": [self._reference] if self._reference else [],
            "ring": self._ring.parts,
            "met": self._met.parts,
        }
        for name, rows in kept.items():
            if rows:
                state[f"{name}/cat"], state[f"{name}/num"] = (
                    np.concatenate(parts) for parts in zip(*rows, strict=True)
                )
        return state

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on a fresh one, beside the model of the same moment. An empty state, or one
        of a larger R, leaves it fresh.

        Raises:
            KeyError, ValueError: it is not of this form.
        """
        if not state or len(state["mark"]) > self.rows:
            return
        *times, since, drifted, turn = (int(v) for v in state["clock"])
        past = {name: deque((float(v) for v in state[f"past/{name}"]), WARM_LOOKS) for name in FIGURES}
        self._anchor_ms, self._began_ms, self._taken_ms, self._first_ms = times
        self._past, self._since, self._drifted, self._turn = past, since, drifted, turn
        self._mark, self._anchor = (np.array(state[name], np.float64) for name in ("mark", "anchor"))
        found = {
            name: (np.array(state[f"{name}/cat"]), np.array(state[f"{name}/num"]))
            for name in ("newest", "reference", "ring", "met")
            if f"{name}/cat" in state
        }
        self._newest, self._reference = found.get("newest"), found.get("reference")
        for name, newest in (("ring", self._ring), ("met", self._met)):
            if name in found:
                newest.add(found[name])


def _median_at_most(looks: int) -> int:
    """Which one of some figures in order, from 0, is as large as their median but for one case in a hundred; the last,
    where none is.

    >>> _median_at_most(16), _median_at_most(7)
    (12, 6)
    """
    for i in range(looks - 1):
        if sum(comb(looks, k) for k in range(i + 1, looks + 1)) / 2**looks <= _BELOW_MEDIAN:
            return i
    return looks - 1


_Rows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""cat (n, F) and num (n, N)."""


class _Newest:
    """The newest ``rows`` rows, and those that came with the oldest of them."""

    def __init__(self, rows: int) -> None:
        self._most, self.count = rows, 0
        self.parts: deque[_Rows] = deque()

    def add(self, part: _Rows) -> None:
        self.parts.append(part)
        self.count += len(part[0])
        while self.count - len(self.parts[0][0]) >= self._most:
            self.count -= len(self.parts.popleft()[0])

    def clear(self) -> None:
        self.parts.clear()
        self.count = 0


def logits_of(model: Predicting, rows: _Rows) -> Logits:
    """Logits of rows, from probabilities clipped to [1e-7, 1 - 1e-7]. (n,)"""
    p = np.clip(model.score(*rows).astype(np.float64), _CLIP, 1 - _CLIP)
    logits: Logits = np.log(p) - np.log1p(-p)
    return logits
