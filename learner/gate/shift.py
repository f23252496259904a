# core
"""How far a model's logits on reference rows moved: no label is needed.

::

    learning   ── stretch ──┬── stretch ──┬── stretch ──┬─ ...           of 2,048 rows, or of 5 minutes
                          mark          mark          mark               look, promoted: the next mark, of newer rows

A stretch ends by rows or by time, whichever comes first: with a row a second 2,048 rows are half an hour. But it has
256 rows at least. At night that is longer than five minutes, and tells of nobody: nothing else is learnt meanwhile.

With d_r the difference of the logits of row r, now and at the mark, over R rows, and n the rows learnt since the mark,
and at least 2,048::

    shift   mean_r |d_r|    at most .20 sqrt(n / 2048)

Labels that are flipped or all of one kind move the mean by .3 in 2,048 rows. At ten rows a second a sale moves it by
.07, and a new catalogue by .09. At a hundred it moves by .14 when the clock strikes four hours behind a new catalogue:
what the model has learnt of the hour is of yesterday's goods. A bound of .10 refused that, and then each stretch of the
hour, for a model that goes back has learnt nothing. No poison of ``dev bench safety`` that is claimed cost less with
.10 than with .20, to the fifth digit.

The rows of a mark are the newest promoted ones. Older ones tell less and less: in a young shop window counts grow by
the hour, and what a model says of a row as there are none any more moves though nothing is wrong. Rows of an item that
the screen does not know yet are none: of a new item a model says something else from stretch to stretch, and a shop
may have a new catalogue from one hour to the next. Until then rows of before are looked at. A model that learns new
items says something else of those, too. So a stretch is not judged in which less than half as many rows as usual are of
known ones: a shop of many goods shows some each hour that nobody has met lately.

A young model moves more, and so does one that few visitors teach. So the bound is never below three times what is
usual: the median of figures that passed, each over the root of its n, as large as the newest 16 of them allow. (Their
13th is below the median once in a hundred times, and so is the largest of seven.) Nothing is refused before there are
16: with the rows until the first mark, some 35,000 rows. Or before there are seven, over half an hour: an hour at a row
a second, with the time until the first mark.

Two more figures were there: mean_r |d_r - mean d| to the mark, and to an anchor each hour. Without them no poison of
``dev bench safety`` cost more, to the fourth digit. They refused what was clean: new goods, an hour in which no user
was read, twice the rows. Of ten other poisons they told one, for an hour: rows with the user side of others (.0085 of
AUC, .0118 without them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from math import comb

import numpy as np
from numpy.typing import NDArray

from learner.gate.heldout import logits_of
from learner.gate.median_clock import MedianClock
from learner.gate.verdicts import GateRefusal
from learner.ranker.interfaces import Predicting
from millrace.contracts.samples import SampleBatch
from millrace.versions.image import Array, resume_state, state_of

Logits = NDArray[np.float64]

WARM_LOOKS = 16
"""Figures that must have passed before one is refused; what is usual is told by so many, too."""
FEWEST_LOOKS, WARM_MS = 7, 1_800_000
"""Or so many, where they are of so long."""

_USUAL = 3.0  # times the median of what passed is still usual
_BELOW_MEDIAN = 0.011  # chance that what is taken for the median, or more, is less
_EVERY, _EVERY_MS = 32, 10_000  # of so many rows met, or of so long, one becomes a reference row: one of a page or less
_GONE_MS = 1_200_000  # less than the half hour for which items are new
_SAVED = ("_began_ms", "_taken_ms", "_first_ms", "_since", "_turn", "_known", "_new", "_new_ms", "_mark")


class Shift:
    """See the module's text. One thread at a time.

    A look costs the prediction of ``rows`` rows, and so does a mark; each comes once a stretch.

    Args:
        rows: R.
        stretch, stretch_ms, least: rows learnt that make one; or the time, where there are as many as ``least``.
        most: bound of the figure.
        clock: the gate's.
        knows: whether each item is known, as the screen says.
        usually_known: the share of visits to such items that is usual.

    Attributes:
        figure: of the newest look; NaN before the first.
    """

    def __init__(
        self,
        rows: int = 128,
        stretch: int = 2048,
        most: float = 0.2,
        clock: MedianClock | None = None,
        stretch_ms: int = 300_000,
        least: int = 256,
        knows: Callable[[NDArray[np.uint64]], NDArray[np.bool_]] = lambda item: np.ones(len(item), np.bool_),
        usually_known: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.stretch_ms, self.least, self.knows, self.usually_known = stretch_ms, least, knows, usually_known
        self.rows, self.stretch, self.most, self.clock = rows, stretch, most, clock or MedianClock()
        self.figure = float("nan")
        self._past: deque[float] = deque(maxlen=WARM_LOOKS)
        self._met = _Newest(rows)  # since the mark
        self._ring = _Newest(rows)  # before it
        self._turn = 0  # rows met, of which every so many-th is taken
        self._newest: _Rows | None = None  # of the mark
        self._mark: Logits = np.empty(0)
        self._since = 0
        self._began_ms = self._taken_ms = self._first_ms = 0  # of the stretch, the newest reference row, the first look
        self._looked = False  # whether the state was looked at
        self._new_ms = 0  # when stretches of new items began; 0: the newest promoted one is not
        self._known = self._new = 0  # rows since the mark, by their item

    def meet(self, batch: SampleBatch) -> None:
        """Rows that passed the screen: some of them become reference rows, once they are promoted."""
        if self.clock.now_ms - self._taken_ms >= _EVERY_MS:
            self._turn = 0
        taken = np.arange(-self._turn % _EVERY, len(batch), _EVERY)
        self._turn += len(batch)
        known = self.knows(batch.item)
        count = int(np.count_nonzero(known))
        self._known += count
        self._new += len(batch) - count
        if not len(taken):
            return
        self._taken_ms = self.clock.now_ms
        rows = taken[known[taken]]
        if len(rows):
            self._met.add((batch.cat[rows], batch.num[rows]))

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
        looks = len(self._past)
        return looks == WARM_LOOKS or (looks >= FEWEST_LOOKS and self.clock.now_ms - self._first_ms >= WARM_MS)

    def look(self, model: Predicting) -> GateRefusal | None:
        """Compares with the mark, the state at the last :meth:`promoted`. None too while unarmed, but for logits that
        are not finite. Changes nothing that is judged by."""
        if self._newest is None:
            return None
        now = logits_of(model.score(*self._newest))
        self._looked, self.figure = True, float(np.abs(now - self._mark).mean())
        if not np.isfinite(now).all():
            return GateRefusal("finite", float("nan"), 0.0, "logits of reference rows")
        if self._mostly_new:
            return None
        return GateRefusal("shift", self.figure, self.bound) if self.figure > self.bound else None

    @property
    def bound(self) -> float:
        """What the figure may be, now; infinite while there is no past to judge by."""
        if not self.armed:
            return float("inf")
        usual = _USUAL * sorted(self._past)[_median_at_most(len(self._past))]
        return max(self.most * max(1.0, self._scale), usual * self._scale)

    @property
    def of_new_items(self) -> bool:
        """Whether the newest promoted stretch was of new items."""
        return self._new_ms > 0

    @property
    def goods_gone(self) -> bool:
        """Whether stretches were of new items for so long that somebody's minutes with rare goods are not meant."""
        return self.of_new_items and self.clock.now_ms - self._new_ms >= _GONE_MS

    @property
    def _mostly_new(self) -> bool:
        """Whether of rows since the mark less than half as many as usual are of known items: what learning them does is
        not judged."""
        return self._known < 0.5 * self.usually_known() * (self._known + self._new)

    @property
    def _scale(self) -> float:
        """How far a stretch of as many rows moves, over one of :attr:`stretch`."""
        return float((max(self._since, self.least) / self.stretch) ** 0.5)

    def promoted(self, model: Predicting) -> None:
        """The state just looked at is the mark from now on."""
        if self._looked and not self._mostly_new:
            self._first_ms = self._first_ms if self._past else self.clock.now_ms
            self._past.append(self.figure / self._scale)
        self._join()
        self._set_mark(model)

    def went_back(self) -> None:
        """The model is at the mark again: what it met since never was."""
        self._begin()

    def rebase(self, model: Predicting) -> None:
        """The model as it is now is the mark: a person, or a stated time, says that the world is different; or it went
        back further than the mark. Rows met since the mark stay candidates for reference rows."""
        self._join()
        if self._newest is not None:
            self._set_mark(model)

    def _join(self) -> None:
        """What was met since the mark is promoted."""
        self._new_ms = (self._new_ms or self._began_ms) if self._mostly_new else 0
        for part in self._met.parts:
            self._ring.add(part)
        self._begin()

    def _begin(self) -> None:
        """Nothing was met since the mark."""
        self._met.clear()
        self._since = self._known = self._new = 0
        self._looked = False

    def _set_mark(self, model: Predicting) -> None:
        """The state is the mark, by the newest rows that are promoted, where there are enough."""
        if self._ring.count >= self.rows // 2:
            cat, num = (np.concatenate(parts)[-self.rows :] for parts in zip(*self._ring.parts, strict=True))
            self._newest = cat, num
            self._mark = logits_of(model.score(*self._newest))

    def snapshot(self) -> dict[str, Array]:
        """The state, as long as there is any: a few hundred rows. Shares no memory with this."""
        state = state_of(self, _SAVED) | {"past": np.array(self._past)}
        kept = {"newest": [self._newest] if self._newest else [], "ring": self._ring.parts, "met": self._met.parts}
        for name, rows in kept.items():
            if rows:
                cat, num = zip(*rows, strict=True)
                state[f"{name}/cat"], state[f"{name}/num"] = np.concatenate(cat), np.concatenate(num)
        return state

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on a fresh one, beside the model of the same moment. An empty state, or one
        of a larger R, leaves it fresh.

        Raises:
            KeyError, ValueError: it is not of this form.
        """
        if not state or len(state["mark"]) > self.rows:
            return
        resume_state(self, _SAVED, state)
        self._past = deque(state["past"].tolist(), WARM_LOOKS)
        found = {
            name: (np.array(state[f"{name}/cat"]), np.array(state[f"{name}/num"]))
            for name in ("newest", "ring", "met")
            if f"{name}/cat" in state
        }
        self._newest = found.get("newest")
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
