# core
"""Whether samples look like the stream that they came from: judged before they are learnt from, by its own clean past.

::

    batch ──► finite predictions? ──► windows: the batch alone, and with what came just before it ──► Refusal | None
                                      128, 256, ... rows, up to 4,096 rows and a minute of event time
                     refused or not, it is in the windows of the batches after it

    learnt ──► stretch ──promoted──► clean past (a running mean of up to 65,000 rows) ──► bounds
                  └────went back──► forgotten

Over the rows of a window, with y labels, p predictions and m_k the clean past's figure k::

    labels     sum y / (m sum p)       from .55 to 1.6; from .3 to 3 while the ranking holds (see below)
    auc        AUC of p for y          above .5 + .4 (m - .5)
    numbers    share that is not 0     above .6 m, for each window key and for the plain numbers of each side
    fields     share that is there     above .6 m, for each side, and each field that is nearly always there

Shares are of visits: rows of a page, and pages of a visit, are of one user and tell of him no more than one does. So
each visitor is counted once in any window, with one row. What comes of the user is counted where the page had it: a
page that was made without his profile or his windows (:mod:`millrace.contracts.samples` says which) tells nothing of
them, for guests are normal, and so are deleted users and a Redis that is slow or was emptied.

A shop may have a new catalogue from one hour to the next. So an item that was not met half an hour to an hour ago tells
nothing by its windows, which are empty, and nothing by its labels: the model cannot know yet who clicks on it. Where
most rows are of such items no labels are judged: late clicks on what was shown before still come. Before
any item is known the labels of all rows tell, and where most visits are usually to items that are not: in a shop of so
many goods that few were shown in the last two days.

No bound is broken by a window that is too short to tell. Labels and AUC must be 4.5 standard errors from the clean
past, a share so far off that chance does it less than once in half a million times
(:func:`learner.gate.screenkernels.unlikely`). The error of labels is that of independent rows, the error of AUC that of
independent visits, each times a dispersion which the clean past tells: rows of a page are alike, and a label policy
brings negatives in lumps. Nor is the error of labels less than if each visit were off by all the clicks expected of
it: its clicks come at once, the rest of its rows later. Corrections bring clicks of exposures that were predicted as
negatives before, so their labels count and their predictions do not. That holds under every label policy. Behind a
pause of five minutes, as an outage, the first rows have no clicks yet that come late: for as long too few are no fault
of a window, of which they are half or more. Where pages are always as rare, they are less of a window.

A click rate that doubles from one minute to the next is a sale, and no fault: who clicks on what stays as predictable
as it was. Flipped or constant labels are not. So between the narrow and the wide bounds of labels, it decides how the
clicks rank: their AUC among the rows that were not clicked, of the window or of the clean past.

Where clicks are quick, they come before the rows beside them, which wait to be clicked. Behind a stop of the whole
shop, rows from before it come alone, and then clicks alone for ten seconds; a rush begins like this, too. So too few
clicks, and too many that rank as ever, are a fault of windows of half a minute alone, in which a stop counts little.
Until then they are in doubt, and are not of the clean past.

*Warm-up*: until :data:`WARM_ROWS` rows with :data:`WARM_CLICKS` clicks were promoted, or for half an hour an eighth of
them with a fifth of the clicks, at first and after a :meth:`Screen.rebase`, only what is not finite or absurd is
refused. A short past is known less well. So its own error is part of each bound, and the dispersions that it tells are
taken for two at least.

After a poisoned hour the windows hold refused rows. They end where rows come that break no bound by themselves and are
unlike the refused ones, by three standard errors of the figure that these broke: what is behind is judged alone. Until
then what comes first is refused too: pages of a few visitors, mostly. Behind a :meth:`Screen.rebase` labels are
expected to be as those that were refused, if it was for them.

In a warm-up one more thing is refused: no click at all, where 60 or more would be, of 24 visits. That is a broken
tracker and never the world, however quiet it is around it. What would be is known from before a :meth:`Screen.rebase`,
or from the clicks since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.gate.median_clock import MedianClock
from learner.gate.screenkernels import (
    AUC,
    AUC_OFF,
    BINS,
    CLICKS,
    DOUBT,
    FINE,
    HEAD,
    KINDS,
    KNOWN,
    LABELLED,
    LABELS,
    MET,
    MS,
    OFF,
    PREDICTED,
    ROWS,
    SHARE,
    VARIANCE,
    VISITS,
    Groups,
    Memory,
    Sums,
    Usual,
    ValueVisits,
    absurd,
    apart,
    auc,
    judge,
    knows,
    silent,
    spread,
    tally,
)
from learner.gate.screenwindows import BLOCK_ROWS, LONGEST_MS, LONGEST_ROWS, WINDOW_ROWS, ScreenWindows
from learner.gate.verdicts import GateRefusal
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.basics.hashing import salt
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import SIDES, Schema, Side
from millrace.versions.image import Array, below, resume_state, state_of

Bools = NDArray[np.bool_]

WARM_ROWS, WARM_CLICKS = 16_384, 500
"""Promoted rows, and clicks among them, before bounds are made of them."""
SLOW_ROWS, SLOW_CLICKS, SLOW_MS = 2048, 100, 1_800_000
"""Or as many, where they are of so long: at a row a second :data:`WARM_ROWS` would be four and a half hours."""

_LEAST_SHARE, _ALWAYS = 0.05, 0.95  # shares of the clean past that are judged: of groups and sides, of single fields
_MOST_DISPERSION, _YOUNG_DISPERSION = 25.0, 2.0

_LEAST_MEMORY_ROWS, MEMORY_ROWS = 2048, 65_536
_PIECE_ROWS = 2048  # promoted rows that one figure of the AUC's dispersion is of: as long as the longest windows, about

_KNOWN_CLICKS = 20  # of a warm-up, before it tells what is expected
_VISITORS = 4096  # who are remembered as counted
_ALSO = {FINE: "", DOUBT: "", LABELS: " (labels too)", AUC: " (AUC too)"}  # what else is broken where a share is
_ANY, _PROFILE, _WINDOWS = range(KNOWN)  # kinds of visits: rows that tell of it
_ITEM_BYTES = 1 << 16  # in which items are remembered: of 50,000 a day, 3 new ones in 100 seem known
_MOST_PERIODS = 16  # half hours that the usual share of visits to known items is a mean of
_PAUSE_MS = 5 * MINUTE_MS  # without rows; and until clicks on those behind it are there, most of which come late
_KNOWN_MS = 30 * MINUTE_MS  # until an item is known, at least: longer than its first samples wait for their labels
_SAVED = (
    *("_piece", "_stretch", "_past", "_auc_piece", "_promoted", "_first_ms", "_warm", "_factor_before"),
    *("_refused", "_broken", "_visitors", "_items", "_met", "_items_ms", "_day_ms", "_here", "usually_known"),
    *("_periods", "_newest_ms", "_resumed_ms", "_fresh"),
)
_SAVED_WINDOWS = ("block", "block_ms", "upto", "began_ms")


@cache
def warm_up() -> None:
    """Compiles what a screen will call, once a process: for arrays of messages, which cannot be written to, too."""
    cat, num, label = np.ones((2, 1), np.int64), np.ones((2, 1), np.float32), np.zeros(2, np.float32)
    kind, sums = np.zeros(2, np.uint8), np.zeros(HEAD + 1 + 2 * BINS)
    user, ts_ms = np.ones(2, np.uint64), np.ones(2, np.int64)
    needs, flags = np.zeros(1, np.intp), np.zeros(1, np.bool_)
    groups = Groups(np.array([0, 1], np.intp), np.zeros((0, 1)), np.ones(1), needs, flags)
    for writeable in (True, False):
        for array in (cat, num, label, kind, user, ts_ms):
            array.flags.writeable = writeable
        absurd(label, label, kind, ts_ms, num, 0)
        rows, p = ValueVisits(user, user, ts_ms, kind, label, kind), np.ones(2, np.float32)
        tally(rows, cat, num, p, Memory(np.ones(4, np.int64), *_nobody()), False, 0, groups, sums)
        knows(_nobody()[1], user)
    auc(sums)
    usual = Usual(np.zeros(BINS), np.zeros(1), np.ones(KINDS), 1.0, 0.5, 1.0, 1.0, 1.0, 0.0, 0.0)
    judge(sums[None], groups, np.zeros(1), 0.0, usual)
    apart(sums, sums, LABELS, 0, groups, usual)
    silent(sums[None], 1.0)
    spread(sums)


class _Shares(NamedTuple):
    """What is counted of numbers and ids: columns that belong together, under a name."""

    check: str  # of verdicts.CHECKS
    what: str
    least: float  # it is judged where the clean past's share is as large
    needs: int  # kind of visits that it is counted of
    of_items: bool = False  # whether it tells of items alone


class Screen:
    """Checks samples before they are learnt from. One thread; :meth:`look` once for each micro-batch, then
    :meth:`learnt` if it was.

    Args:
        schema: says which columns belong together.
        ahead_ms: exposures so far ahead of event time are absurd; less than a day counts as a day, for after a quiet
            night nobody can tell them from the first ones of the morning.
        clock: the gate's, which has met the rows that are asked about. Before it has met any, no date is absurd.

    Attributes:
        usually_known: share of visits to items that are known, over some eight hours.

    What it cannot see: labels that are wrong for some rows only, such as a tenth of all flipped, or half of all clicks
    lost; and a slow poison that moves the clean past with it.
    """

    def __init__(self, schema: Schema, ahead_ms: int, clock: MedianClock | None = None) -> None:
        warm_up()
        self.schema, self.ahead_ms, self.clock = schema, ahead_ms, clock or MedianClock()
        self._shares, starts, cat_of, divisor = _groups(schema)
        self._size = HEAD + len(self._shares) + 2 * BINS
        self._least = np.array([s.least for s in self._shares])
        needs = np.array([s.needs for s in self._shares], np.intp)
        of_items = np.array([s.of_items for s in self._shares], np.bool_)
        self._groups = Groups(starts, cat_of, divisor, needs, of_items)
        self._begin()

    def _begin(self) -> None:
        self._visitors, self._items = _nobody()
        self._met = np.array([0, LONGEST_ROWS, LONGEST_MS, 0])  # as screenkernels.tally has its clock
        self._items_ms = self._day_ms = 0  # when items that were met became known; when this day of them began
        self._here, self.usually_known = np.zeros(2), 1.0  # visits to known items, and all, since then
        self._periods = 1  # half hours that the latter is of
        self._newest_ms = self._resumed_ms = 0  # when rows came last; when they came again behind a pause
        self._fresh = 0.0  # rows since then, for five minutes
        self._all_tell = True  # whether rows of items that are not known tell, too
        self._looked: tuple[SampleBatch, Sums] | None = None
        self._windows = ScreenWindows(self._size)
        self._piece = np.zeros(4)  # of rows learnt: rows, clicks, expected clicks, their variance
        self._stretch, self._past = self._nothing(), self._nothing()
        self._auc_piece = self._nothing()  # promoted rows of which the AUC is not yet told apart from the past's
        self._promoted = np.zeros(2)  # rows and clicks, since the last rebase
        self._first_ms, self._warm = 0, False  # when the first of them were promoted; whether they are enough
        self._factor_before = 0.0  # labels over predictions before the last rebase; 0: unknown
        self._refused, self._broken = self._nothing(), (FINE, 0)  # rows refused one after another; by which figure
        self._usual = self._known()

    @property
    def warm(self) -> bool:
        """Whether bounds are known."""
        return self._warm

    def absurd(self, batch: SampleBatch) -> Bools:
        """Rows that cannot be, whatever the world is like. (B,) Never learnt; kept in quarantine one by one.

        These are rows shown more than ``ahead_ms`` after the clock, which has met them, with a label outside [0, 1], a
        weight that is not in (0, 1e6], or a finite number beyond 1e30. (What is not finite is read as 0.) The first
        page of all is met without anything to compare it with. After a stop of the stream of more than ``ahead_ms``,
        and of more than a day, eight pages at most are taken for absurd, where they are of several users.
        """
        now_ms = self.clock.now_ms
        latest_ms = now_ms + max(self.ahead_ms, DAY_MS) if now_ms else np.iinfo(np.int64).max
        return absurd(batch.label, batch.weight, batch.kind, batch.ts_ms, batch.num, latest_ms)

    def knows(self, item: NDArray[np.uint64]) -> Bools:
        """Whether each item is known: it was met half an hour ago; all are where all rows tell. (B,)"""
        return np.ones(len(item), np.bool_) if self._all_tell else knows(self._items, item)

    def look(self, batch: SampleBatch, p: NDArray[np.float32]) -> GateRefusal | None:
        """Judges a micro-batch, alone and with the rows that came before it, before it is learnt from.

        Args:
            p: the model's predictions of it, (B,).
        """
        if not len(batch):
            return None
        wrong, sums = self._tally(batch, p)
        self._find_pause(min(int(batch.ts_ms.max()), self.clock.now_ms), sums[MET])
        if wrong:
            return GateRefusal("finite", float(wrong), 0.0, "predictions")
        self._looked = (batch, sums)
        if not sums[MET]:
            return None
        windows = self._windows.with_batch(sums)
        what, g, refusal = self._judge(windows)
        if refusal is not None and self._refused[MET] and self._over(windows):
            refusal = None
        if refusal is None:
            self._refused[:] = 0
        else:
            self._refused += sums
            self._broken = what, g
        if what == DOUBT:
            self._looked = (batch, self._nothing())  # what may be a fault is no clean past
        self._windows.enter(sums, self.clock.now_ms)
        return refusal

    def learnt(self, batch: SampleBatch, p: NDArray[np.float32]) -> None:
        """The batch was learnt: it joins the open stretch."""
        known = self._looked is not None and self._looked[0] is batch
        sums = self._looked[1] if known and self._looked is not None else self._tally(batch, p)[1]
        self._looked = None
        self._stretch += sums
        rows, clicks, predicted, variance = sums[ROWS : VARIANCE + 1].tolist()
        factor = self._factor(own=True)
        self._piece += (rows, clicks, factor * predicted, factor * variance)
        rows, clicks, expected, variance = self._piece.tolist()
        if rows >= BLOCK_ROWS:
            self._stretch[OFF] += (clicks - expected) ** 2 / max(variance, 1.0) * rows
            self._piece[:] = 0

    def promoted(self) -> None:
        """What was learnt so far is promoted: the open stretch joins the clean past, from which bounds come."""
        self._auc_piece += self._stretch
        if self._auc_piece[ROWS] >= _PIECE_ROWS:
            self._stretch[AUC_OFF] = self._auc_piece[ROWS] * self._auc_off()
            self._auc_piece[:] = 0
        memory = min(max(_LEAST_MEMORY_ROWS, self._promoted[0]), MEMORY_ROWS)  # a young model's first rows fade soon
        self._past *= np.exp(-self._stretch[ROWS] / memory)
        self._past += self._stretch
        self._first_ms = self._first_ms or self.clock.now_ms
        self._promoted += self._stretch[[ROWS, CLICKS]]
        least = (SLOW_ROWS, SLOW_CLICKS) if self.clock.now_ms - self._first_ms >= SLOW_MS else (WARM_ROWS, WARM_CLICKS)
        self._warm |= bool((self._promoted >= least).all())
        self._stretch[:] = 0
        self._usual = self._known()

    def went_back(self) -> None:
        """What was learnt since :meth:`promoted` never happened: the open stretch is forgotten."""
        self._stretch[:] = 0
        self._piece[:] = 0

    def rebase(self) -> None:
        """The world has changed: bounds come from what is learnt from now on, after a warm-up."""
        refused = self._refused
        of_labels = refused[PREDICTED] and self._broken[0] == LABELS
        self._factor_before = float(refused[CLICKS] / refused[PREDICTED]) if of_labels else self._factor()
        self.went_back()
        self._past[:] = self._auc_piece[:] = 0
        self._promoted[:] = self._first_ms = 0
        self._warm = False
        self._usual = self._known()
        self._windows.forget_behind(0)

    def tells_after(self, flipped: float, clicked: float, rows_an_hour: float) -> int | None:
        """Rows of traffic like the clean past's that must come until a bound is broken, on average, where some shares
        of them, drawn by chance, have the other label or are clicked whatever they are. None: it never is."""
        if not self.warm:
            return None
        kept, past = 1 - flipped - clicked, self._past
        bins = self._size - 2 * BINS
        others, clicks = past[bins : bins + BINS], past[bins + BINS :]
        spoilt = past.copy()
        spoilt[MET] = past[ROWS]
        spoilt[bins : bins + BINS] = kept * others + flipped * clicks
        spoilt[bins + BINS :] = kept * clicks + flipped * others + clicked * (others + clicks)
        spoilt[MS] = past[ROWS] * HOUR_MS / rows_an_hour
        spoilt[CLICKS] = kept * past[CLICKS] + flipped * (past[ROWS] - past[CLICKS]) + clicked * past[ROWS]
        rows = BLOCK_ROWS
        while rows <= WINDOW_ROWS:
            if self._judge(spoilt[None] * (rows / past[ROWS]))[2] is not None:
                return rows
            rows *= 2
        return None

    def snapshot(self) -> dict[str, Array]:
        """All of it: some 600 kB."""
        own = {"columns": self._columns(), **state_of(self, _SAVED)}
        return own | {f"windows/{name}": a for name, a in state_of(self._windows, _SAVED_WINDOWS).items()}

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`. An empty state is a fresh screen, and so is one of other columns.

        Raises:
            KeyError: an array is missing.
        """
        self._begin()
        if not state or (state["columns"] != self._columns()).any():
            return
        resume_state(self, _SAVED, state)
        self._say_who_tells()
        resume_state(self._windows, _SAVED_WINDOWS, below("windows/", state))
        self._windows.look_back()
        self._usual = self._known()

    # -- sums of rows ----------------------------------------------------------------------------------------

    def _nothing(self) -> Sums:
        return np.zeros(self._size)

    def _columns(self) -> Array:
        """What a state is bound to. (1,)"""
        return np.array([salt("screen in step", self.schema.id, str(BINS), *(s.what for s in self._shares))], np.uint64)

    def _tally(self, batch: SampleBatch, p: NDArray[np.float32]) -> tuple[int, Sums]:
        """Predictions that are not finite; and what is known of rows, so that it can be added: counts, sums, and clicks
        and others by logit, (K,)."""
        sums = self._nothing()
        if self.clock.now_ms >= self._items_ms + _KNOWN_MS:
            if self.clock.now_ms >= self._day_ms + DAY_MS:
                self._items[0] = self._items[1]
                self._items[1], self._day_ms = 0, self.clock.now_ms
            if self._here[1] and self._items[:2].any():
                self._periods = min(self._periods + 1, _MOST_PERIODS)
                self.usually_known += (self._here[0] / self._here[1] - self.usually_known) / self._periods
            self._items[1] |= self._items[2]
            self._items[2] = self._items[3]
            self._items[3], self._items_ms = 0, self.clock.now_ms
            self._here[:] = 0
            self._say_who_tells()
        rows = ValueVisits(batch.user, batch.item, batch.ts_ms, batch.kind, batch.label, batch.user_missing)
        memory, now_ms = Memory(self._met, self._visitors, self._items), self.clock.now_ms
        wrong = tally(rows, batch.cat, batch.num, p, memory, self._all_tell, now_ms, self._groups, sums)
        self._here[0] += sums[VISITS + KNOWN]
        self._here[1] += sums[VISITS]
        return wrong, sums

    def _find_pause(self, ts_ms: int, rows: float) -> None:
        """So many rows came, up to that time. Where many are read at once the clock is ahead of them, so it only bounds
        their own times."""
        if ts_ms - self._newest_ms > _PAUSE_MS:
            self._resumed_ms, self._fresh = ts_ms, 0.0
        self._newest_ms = max(self._newest_ms, ts_ms)
        self._fresh = self._fresh + rows if 0 <= ts_ms - self._resumed_ms < _PAUSE_MS else 0.0

    def _say_who_tells(self) -> None:
        self._all_tell = self.usually_known < 0.5 or not self._items[:2].any()

    def _over(self, windows: Sums) -> bool:
        """Whether what was refused is over: the newest rows, as many as one of the windows has, break no bound and are
        unlike it. What is behind them is forgotten."""
        for w in range(len(windows)):
            if self._judge(windows[w : w + 1])[2] is not None:
                return False
            if apart(windows[w], self._refused, *self._broken, self._groups, self._usual):
                self._windows.forget_behind(w)
                return True
        return False

    # -- bounds ----------------------------------------------------------------------------------------------

    def _known(self) -> Usual:
        past, shares = self._past, slice(HEAD, HEAD + len(self._shares))
        visits, others = past[VISITS : VISITS + KINDS].copy(), past[-2 * BINS : -BINS].copy()
        if not self.warm:
            return Usual(others, np.zeros(len(self._shares)), visits, 1.0, 0.5, 1.0, 1.0, _YOUNG_DISPERSION, 0.0, 0.0)
        value, error = auc(past)
        least = 1.0 if self._promoted[0] >= WARM_ROWS else _YOUNG_DISPERSION
        dispersion = min(max(least, past[OFF] / past[ROWS]), _MOST_DISPERSION)
        auc_dispersion = min(max(least, past[AUC_OFF] / past[ROWS]), _MOST_DISPERSION)
        return Usual(
            others,
            past[shares] / (self._groups.divisor * np.maximum(visits, 1.0)[self._groups.needs]),
            visits,
            spread(past),
            value,
            past[CLICKS] / past[PREDICTED],
            dispersion,
            auc_dispersion,
            max(dispersion / past[CLICKS], 1 / max(past[VISITS + LABELLED], 1.0)),
            error * error,
        )

    def _auc_off(self) -> float:
        """The squared distance of the newest piece's AUC to the clean past's, in that of independent visits."""
        value, deviation = auc(self._auc_piece)
        off = ((value - self._usual.auc) / deviation) ** 2
        return float(off) if self.warm and np.isfinite(off) else _YOUNG_DISPERSION

    def _factor(self, own: bool = False) -> float:
        """Labels over predictions, as far as is known; 0: it is not. ``own``: of what was met since a rebase alone."""
        if self.warm:
            return self._usual.factor
        clicks, predicted = (self._stretch + self._past)[[CLICKS, PREDICTED]]
        if own or clicks >= _KNOWN_CLICKS:
            return float((clicks + 1) / (predicted + 1))
        return self._factor_before

    def _judge(self, windows: Sums) -> tuple[int, int, GateRefusal | None]:
        """The first bound that one of the windows (W, K) breaks: which figure, of shares the group, and the refusal."""
        if not self.warm:
            found = GateRefusal("labels", 0.0, 0.0, "no click at all") if silent(windows, self._factor()) else None
            return (FINE if found is None else LABELS), 0, found
        what, g, value, bound = self._first_broken(windows, self._least)
        if what == SHARE:
            also = self._first_broken(windows, np.full_like(self._least, np.inf))[0]
            name = self._shares[g].what + _ALSO[also]
            return what, g, GateRefusal(self._shares[g].check, value, bound, name)
        if what in (FINE, DOUBT):
            return what, g, None
        return what, g, GateRefusal("labels" if what == LABELS else "auc", value, bound)

    def _first_broken(self, windows: Sums, least: Sums) -> tuple[int, int, float, float]:
        """As :func:`judge` says; shares are judged from ``least`` of the clean past's on, (G,)."""
        return judge(windows, self._groups, least, self._fresh, self._usual)


def _nobody() -> tuple[Array, Array]:
    """Nobody was counted, nothing was met: visitors and items of :class:`learner.gate.screenkernels.Memory`."""
    return np.zeros((_VISITORS, 1 + 2 * KINDS), np.int64), np.zeros((4, _ITEM_BYTES), np.uint8)


def _groups(schema: Schema) -> tuple[Sequence[_Shares], NDArray[np.intp], Sums, Sums]:
    """What is counted together, G1 groups of num and G2 of cat: their names; the first column of each of G1 and
    the end, (G1 + 1,); which columns count for each of G2, (G2, F); how many columns each has, (G1 + G2,)."""
    layout = schema.layout
    starts: list[int] = []
    shares: list[_Shares] = []
    for side in SIDES:  # in the order of num
        columns = [c for c, field in enumerate(layout.plain_fields) if field.of == side]
        if columns:
            starts.append(columns[0])
            shares.append(
                _Shares("numbers", f"plain numbers of the {side}", _LEAST_SHARE, _needs(side), side == "item")
            )
    keys = schema.windows.keys
    each = (layout.among_start - layout.window_start) // len(keys) if keys else 0
    if each:
        starts += [layout.window_start + k * each for k in range(len(keys))]
        of_user = [schema.key_side(key) == "user" for key in keys]
        shares += [
            _Shares("numbers", f"windows of {key.name}", _LEAST_SHARE, _WINDOWS if users else KNOWN, not users)
            for key, users in zip(keys, of_user, strict=True)
        ]
    starts.append(layout.among_start)  # what is compared among candidates follows from the rest
    widths = np.diff(starts)
    of: list[Sums] = []
    starting = zip(layout.cat_fields, layout.cat_starts, strict=True)
    fields = [(f, c) for f, c in starting if c not in layout.last_columns]  # these fill as users act
    for side in SIDES:
        own = np.zeros(layout.F)
        own[[c for f, c in fields if f.of == side]] = 1
        if own.any():
            shares.append(_Shares("fields", f"{side} side", _LEAST_SHARE, _needs(side), side == "item"))
            of.append(own)
    for field, column in fields:
        own = np.zeros(layout.F)
        own[column] = 1
        shares.append(_Shares("fields", field.name, _ALWAYS, _needs(field.of), field.of == "item"))
        of.append(own)
    matrix = np.array(of) if of else np.empty((0, layout.F))
    return shares, np.array(starts, np.intp), matrix, np.concatenate([widths, matrix.sum(axis=1)])


def _needs(side: Side) -> int:
    """The kind of visits that tell of a field of that side."""
    return _PROFILE if side == "user" else _ANY
