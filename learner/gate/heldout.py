# core
"""Pages that are never learnt, to judge snapshots by.

::

    pages ──► hash of the request < share? ──► kept; a click that comes later mends the label
                                                   │
                                                   ▼
    exposed   ... a day ago ── 90 min ago ──────────── 30 min ago ──────── now
        [ too old ][ judged by: labels are in                     ][ not yet ]     the newest 12,000 rows
                                                   ▲
    a snapshot: log loss of its scores there, less that of the anchors: evidence that it is worse
    an hour of event time after the last anchor: all rows get the scores of what was promoted

Labels of the last minutes say nothing of a model that learnt wrong ones: they are as wrong, and it has the lower loss
there. So rows are judged by when they are 30 minutes old, and until they are a day old. A day has each hour's visitors
once. What is older tells of another shop: of items that are gone, and of people who have another errand. A model that
has followed them since is worse there for good reasons.

The share follows traffic, so that some 8,000 rows come in an hour: then those that are judged by are 30 to 90 minutes
old. It goes up to five times what it is set to (a tenth at most) where there is little traffic, and below where there
is much. Each change is for pages that are exposed after it, so all rows of a page, its late click too, are treated
alike.

What a click is worth changes for all rows alike when a shop's click rate does (a sale). That is no fault of a model, so
a constant is added to its logits t_r, such that its mean probability is that of the anchors q_r. No label is asked::

    x_r = loss(sigmoid(t_r + c), y_r) - loss(q_r, y_r)        mean_r sigmoid(t_r + c) = mean_r q_r
    x_u = mean of the x_r of a user's hour, or of a page whose user is not known
    null: E[x_u | those before] <= m

A model that learns a new catalogue forgets the one that is gone, and goes on to for hours. While what is learnt is of
new items, as :mod:`learner.gate.shift` says, nothing is judged. Behind twenty minutes of them no row is kept: later
ones are of goods that are here.

What a young shop shows changes by the hour: its first pages are chosen by a model that knows nothing, among counts that
have hardly begun. A model that follows its own pages gets worse on those, and serves as well as before. So no row is
judged by that is from the first half of the time since the first page of all.

Rows that came since the last anchor have none before the next: what they would be compared with is itself to be judged,
and where a mistake has just begun, their labels are a part of it.

Each snapshot is a look of :mod:`millrace.evidence.edetector` at the same rows, with the event time since the last look
as its stake. It is refused where the evidence reaches T, which false refusals do once in that time at most, on average,
at any traffic. No row count has to be waited for: few rows are little evidence by themselves, and so is a young model
that goes up and down. Behind an hour without a look, twelve visits that it serves worse are the
least that refuses.

A day's pages at each look show labels that are flipped for an hour within 50 minutes. They do not show labels flipped
for ten minutes, nor a tenth of them flipped for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.gate.median_clock import MedianClock
from learner.gate.verdicts import GateRefusal
from learner.ranker.interfaces import Predicting, Scoring
from learner.ranker.repeats import exposure_ids, page_hashes
from millrace.basics.compiled import compiled, split_mix
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.basics.hashing import C1, combine, salt
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, SampleBatch
from millrace.evidence.clusters import Clusters, clusters
from millrace.evidence.edetector import evidence
from millrace.versions.image import Array, resume_state, state_of

MOST_ROWS = 12_000
"""Rows that are kept: 1.1 KB each with the shop's 219 numbers and 15 ids."""
PER_HOUR = 8000
"""Rows of held-out pages that are aimed at."""
GROWS = 5
"""The share is never more than so many times what it is set to, nor more than :data:`MOST_SHARE`."""
MOST_SHARE = 0.1

DIFFERENCE, BOUND = 0.001, 0.05
"""m, and b of an ordinary visit, of log loss."""
MEAN_DAYS = 60.0
"""T: event time between false refusals, on average, at least."""

_LEAST_STAKE_MS = 1000  # of a look right behind another one
_MOST_LOG_DAYS = 300.0  # what is said of more is this: JSON has no infinity
_LOOK_MS = 600_000  # of traffic, before the share follows it
_AHEAD_MS = 60_000  # a new share is for pages exposed so much later than any: none of them has come yet
_STEPS = 64  # changes of the share that are remembered
_AT_ONCE = 2048  # rows scored at once
_SALT, _VISIT = salt("heldout"), salt("visit")
_SAVED = (
    *("_first_ms", "_newest_ms", "_anchor_ms", "_counted", "_counted_from_ms", "_rate", "_looked_ms"),
    *("_from_ms", "_shares"),
)
_COLUMNS = {"id": "u8", "page": "u8", "user": "u8", "ts_ms": "i8", "label": "f4", "anchor": "f4"}


class Judgement(NamedTuple):
    """Figures on the held-out rows that are old enough. NaN where there are none, or one class: then it is unjudged."""

    refusal: GateRefusal | None
    rows: int
    auc: float
    anchor_auc: float
    log_loss: float  # with the constant that gives it the anchors' mean probability
    anchor_log_loss: float
    evidence_days: float  # that it is worse: refused from T on

    @property
    def judged(self) -> bool:
        return bool(np.isfinite(self.auc))


class HeldRows(NamedTuple):
    """Held-out rows by which models can be compared, oldest exposures first. n rows."""

    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N)
    label: NDArray[np.float32]  # (n,)
    user: NDArray[np.uint64]  # (n,)
    page: NDArray[np.uint64]  # (n,) hash of the request
    ts_ms: NDArray[np.int64]  # (n,)
    anchor: NDArray[np.float32]  # (n,) probability by the anchor; NaN for rows that came since


class Heldout:
    """See the module's text. One thread at a time.

    Args:
        share: of pages; 0: none is held out, and nothing is judged.
        age_ms: from an exposure until its row is judged by.
        follows: whether the share follows traffic.
        most_age_ms: from an exposure until its row is judged by no more.
        clock: the gate's.

    Attributes:
        rows_a_visit: held-out rows of a cluster, when anchors were made last; 0: not known.
    """

    def __init__(
        self,
        share: float,
        age_ms: int = 1_800_000,
        follows: bool = True,
        most_age_ms: int = DAY_MS,
        clock: MedianClock | None = None,
    ) -> None:
        self.base, self.age_ms, self.follows = share, age_ms, follows
        self.most_age_ms, self.clock = most_age_ms, clock or MedianClock()
        self._from_ms = np.zeros(1, np.int64)  # when each share began, by exposure
        self._shares = np.array([share])
        self._first_ms = self._anchor_ms = self._newest_ms = 0
        self._counted, self._counted_from_ms = 0, 0
        self._rate = self.rows_a_visit = 0.0  # rows an hour, lately
        self._looked_ms = 0  # when a snapshot was judged last
        self._at = 0  # where the next row goes: the oldest one's place
        self._empty(0, 0)
        self.holds(np.zeros(0, np.uint64), np.zeros(0, np.int64))  # compiles it

    @property
    def share(self) -> float:
        """Of pages that are exposed from now on."""
        return float(self._shares[-1])

    @property
    def rows_an_hour(self) -> float:
        """That came lately, held out or not; 0: it is not known yet."""
        return self._rate

    # -- rows ------------------------------------------------------------------------------------------------

    def held(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """Rows of pages that are held out, by the hash of the request. (B,) To be asked once, when the clock has met
        them: it counts traffic."""
        self._count(batch)
        if not self._shares.any():
            return np.zeros(len(batch), np.bool_)
        return self.holds(page_hashes(batch), batch.ts_ms)

    def holds(self, page: NDArray[np.uint64], ts_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pages are held out that have these hashes and were exposed then, as far as is known now. (n,)"""
        held: NDArray[np.bool_] = drawn(page, ts_ms, self._from_ms, self._shares)
        return held

    def take(self, batch: SampleBatch) -> None:
        """Keeps held-out rows; a click that comes later mends its row's label. A row with an unusable label is not
        kept, nor is a click whose exposure is not."""
        with np.errstate(invalid="ignore"):
            usable = (batch.label >= 0) & (batch.label <= 1) & (batch.kind < FOLLOW_UP)
        if not usable.any():
            return
        if self._cat.shape[1:] != batch.cat.shape[1:] or self._num.shape[1:] != batch.num.shape[1:]:
            self._empty(batch.cat.shape[1], batch.num.shape[1])
        shown, late = np.flatnonzero(usable & (batch.kind != CORRECTION)), usable & (batch.kind == CORRECTION)
        if len(shown):
            self._keep(batch.take(shown[-MOST_ROWS:]))
        if not late.any():
            return
        clicks = batch.take(late)
        for number, label in zip(exposure_ids(clicks).tolist(), clicks.label.tolist(), strict=True):
            self._column["label"][self._column["id"] == number] = label

    def _keep(self, batch: SampleBatch) -> None:
        at = (self._at + np.arange(len(batch))) % MOST_ROWS
        self._at = (self._at + len(batch)) % MOST_ROWS
        self._cat[at], self._num[at] = batch.cat, batch.num
        pages = page_hashes(batch)
        own = {"id": exposure_ids(batch, pages), "page": pages, "user": batch.user, "ts_ms": batch.ts_ms}
        for name, values in (own | {"label": batch.label, "anchor": np.full(len(batch), np.nan)}).items():
            self._column[name][at] = values

    def aged(self, from_ms: int = 0, anchored: bool = False) -> HeldRows:
        """Rows that are of an age to be judged by, of exposures at or after ``from_ms``; those with an anchor alone."""
        ts_ms, now_ms = self._column["ts_ms"], self.clock.now_ms
        oldest_ms = max(1, from_ms, now_ms - self.most_age_ms)
        wanted = (ts_ms >= oldest_ms) & (ts_ms <= now_ms - self.age_ms)
        rows = np.flatnonzero(wanted & np.isfinite(self._column["anchor"]) if anchored else wanted)
        rows = rows[np.argsort(ts_ms[rows], kind="stable")]
        own = {name: column[rows] for name, column in self._column.items() if name != "id"}
        return HeldRows(cat=self._cat[rows], num=self._num[rows], **own)

    def spoilt(self, from_ms: int) -> None:
        """Rows of exposures from then on go: they may have wrong labels, or are of goods that are gone."""
        ts_ms = self._column["ts_ms"]
        ts_ms[ts_ms >= from_ms] = 0

    # -- judging ---------------------------------------------------------------------------------------------

    def judge(self, model: Predicting, new_items: bool = False) -> Judgement:
        """Figures of the model and of the anchors, and the evidence that it is worse; costs the prediction of the rows.
        Unjudged where goods are new by now (``new_items``). Changes nothing: :meth:`looked` is for the caller to
        say."""
        nan = float("nan")
        if new_items or not self._fits(model):
            return Judgement(None, 0, nan, nan, nan, nan, nan)
        rows = self.aged(int(self._span_ms(self.clock.now_ms)[0]), anchored=True)
        y, n = rows.label, len(rows.label)
        if not 0 < int((y > 0.5).sum()) < n:
            return Judgement(None, n, nan, nan, nan, nan, nan)
        p = scores(model, rows.cat, rows.num)
        if not np.isfinite(p).all():
            wrong = GateRefusal("finite", nan, 0.0, "predictions of held-out pages")
            return Judgement(wrong, n, 0.0, auc(rows.anchor, y), nan, nan, nan)
        x, bounds = more_loss(p, rows)
        of = _visits(rows.page, rows.user, rows.ts_ms)
        stake = float(np.clip(self.clock.now_ms - self._looked_ms, _LEAST_STAKE_MS, HOUR_MS)) / DAY_MS
        log_days = evidence(of.means(x), of.means(bounds), stake, DIFFERENCE, BOUND).max()
        days = float(np.exp(min(log_days, _MOST_LOG_DAYS)))
        refusal = GateRefusal("heldout", days, MEAN_DAYS) if log_days >= np.log(MEAN_DAYS) else None
        loss = log_loss(rows.anchor, y)
        return Judgement(refusal, n, auc(p, y), auc(rows.anchor, y), loss + float(x.mean()), loss, days)

    def _span_ms(self, now_ms: Any) -> tuple[Any, Any]:
        """The first and the last exposure by which a time judges. Same shape as the time."""
        return np.maximum((self._first_ms + now_ms) // 2, now_ms - self.most_age_ms), now_ms - self.age_ms

    def judges_in_ms(self, visits: float) -> int | None:
        """From now until so many visits can be judged by, if traffic goes on as it is and snapshots are promoted; to a
        minute. 0: they can be now. None: never, as there is too little traffic."""
        now_ms, ts_ms = self.clock.now_ms, self._column["ts_ms"]
        least = visits * max(1.0, self.rows_a_visit)
        at = now_ms + np.arange(0, 2 * self.most_age_ms, MINUTE_MS)  # by then a young shop's day is whole
        low, high = self._span_ms(at)
        anchor_ms = max(now_ms, self._anchor_ms + HOUR_MS)  # the next one
        later = at >= anchor_ms
        kept = [np.sort(ts_ms[some]) for some in ((ts_ms > 0) & np.isfinite(self._column["anchor"]), ts_ms > 0)]
        old, all_ = (np.searchsorted(k, np.minimum(high, now_ms), "right") - np.searchsorted(k, low) for k in kept)
        last_ms = anchor_ms + (at - anchor_ms) // HOUR_MS * HOUR_MS
        coming = np.maximum(np.minimum(high, last_ms) - np.maximum(low, now_ms), 0) * (
            self._rate * self.share / HOUR_MS
        )
        enough = np.maximum(np.where(later, all_, old), 0) + np.where(later, coming, 0) >= least
        return int(at[enough.argmax()]) - now_ms if enough.any() else None

    def looked(self) -> None:
        """A snapshot was judged: the stake of the next one is the time from now on."""
        self._looked_ms = max(self._looked_ms, self.clock.now_ms)  # the clock may go back; no time is staked twice

    def promoted(self, model: Predicting) -> None:
        """A snapshot was promoted: where an hour of event time has passed, all rows get its scores as their anchor."""
        if self.clock.now_ms - self._anchor_ms >= HOUR_MS:
            self.rebase(model)

    def rebase(self, model: Predicting) -> None:
        """The model as it is now is the anchor of all rows."""
        self._anchor_ms = self.clock.now_ms
        rows = np.flatnonzero(self._column["ts_ms"])
        self._count_visits()
        if len(rows) and self._fits(model):
            p = scores(model, self._cat[rows], self._num[rows])
            good = np.isfinite(p)
            self._column["anchor"][rows[good]] = p[good]

    def _count_visits(self) -> None:
        ts_ms, page, user = (self._column[name] for name in ("ts_ms", "page", "user"))
        kept = ts_ms > 0
        rows = _visits(page[kept], user[kept], ts_ms[kept]).rows
        self.rows_a_visit = float(rows.mean()) if len(rows) else 0.0

    def _fits(self, model: Predicting) -> bool:
        """Whether the model is of the schema that the rows are of."""
        layout = model.schema.layout
        return (self._cat.shape[1], self._num.shape[1]) == (layout.F, layout.N)

    # -- the share -------------------------------------------------------------------------------------------

    def _count(self, batch: SampleBatch) -> None:
        """Rows came. The share follows the traffic since the last look at it."""
        now_ms = self.clock.now_ms
        self._first_ms = self._first_ms or now_ms
        self._counted += len(batch)
        newest_ms = int(batch.ts_ms.max(initial=0))
        if newest_ms > now_ms + HOUR_MS:
            newest_ms = int(batch.ts_ms[batch.ts_ms <= now_ms + HOUR_MS].max(initial=0))
        self._newest_ms = max(self._newest_ms, newest_ms)
        passed = now_ms - self._counted_from_ms
        if passed < _LOOK_MS:
            return
        if self._counted_from_ms:
            rate = self._counted * HOUR_MS / passed
            self._rate = (self._rate + rate) / 2 if self._rate else rate
            wanted = PER_HOUR / max(self._rate, 1.0)
            wanted = min(wanted, GROWS * self.base, max(self.base, MOST_SHARE))
            if self.follows and self.base and not 0.8 < wanted / max(self.share, 1e-12) < 1.25:
                self._step_to(wanted)
        self._counted, self._counted_from_ms = 0, now_ms

    def _step_to(self, share: float) -> None:
        begins = self._newest_ms + _AHEAD_MS if self._newest_ms else 0
        kept = self._from_ms < begins
        self._from_ms = np.append(self._from_ms[kept], begins)[-_STEPS:]
        self._shares = np.append(self._shares[kept], share)[-_STEPS:]

    @property
    def told(self) -> dict[str, list[Any]]:
        """Which share is held out since when, as snapshots say it."""
        return {"from_ms": self._from_ms.tolist(), "shares": self._shares.tolist()}

    def follow(self, told: Mapping[str, Any]) -> None:
        """Holds out just the pages that another one does, by what it :attr:`told`, or its :meth:`snapshot`; the share
        does not follow traffic any more.

        Raises:
            KeyError, ValueError, TypeError: it is not of this form.
        """
        begins, shares = np.array(told["from_ms"], np.int64), np.array(told["shares"], np.float64)
        if begins.shape != shares.shape or begins.ndim != 1 or not len(begins):
            raise ValueError(f"{begins.shape} times of {shares.shape} shares")
        self.follows, self._from_ms, self._shares = False, begins, shares

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """What its rows take. The system gives it memory as they come."""
        arrays: list[Array] = [self._cat, self._num, *self._column.values()]
        return sum(array.nbytes for array in arrays)

    @staticmethod
    def most_bytes(f: int, n: int) -> int:
        """What :attr:`nbytes` is with rows of ``f`` ids and ``n`` numbers."""
        return MOST_ROWS * (8 * f + 4 * n + sum(np.dtype(kind).itemsize for kind in _COLUMNS.values()))

    def _empty(self, f: int, n: int) -> None:
        self._cat, self._num = np.zeros((MOST_ROWS, f), np.int64), np.zeros((MOST_ROWS, n), np.float32)
        self._column: dict[str, Array] = {name: np.zeros(MOST_ROWS, kind) for name, kind in _COLUMNS.items()}
        self._at = 0

    def snapshot(self) -> dict[str, Array]:
        """The rows that are kept, with their anchors, and the shares."""
        order = (self._at + np.arange(MOST_ROWS)) % MOST_ROWS  # oldest first
        order = order[self._column["ts_ms"][order] > 0]
        own: dict[str, Array] = {"cat": self._cat[order], "num": self._num[order]}
        return own | {name: column[order] for name, column in self._column.items()} | state_of(self, _SAVED)

    def resume(self, state: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`, on a fresh one; an empty state leaves it fresh. A share that was set
        otherwise since holds from now on.

        Raises:
            KeyError, ValueError: it is not of this form.
        """
        if not state:
            return
        n = len(state["ts_ms"])
        self._empty(state["cat"].shape[1], state["num"].shape[1])
        self._cat[:n], self._num[:n] = state["cat"], state["num"]
        for name, column in self._column.items():
            column[:n] = state[name]
        self._at = n % MOST_ROWS
        self._count_visits()
        resume_state(self, _SAVED, state)
        bound = min(GROWS * self.base, max(self.base, MOST_SHARE))
        if self.share > bound or (self.base and not self.share):
            self._step_to(self.base)


def _visits(page: Array, user: Array, ts_ms: Array) -> Clusters:
    """A user's hours, and pages whose user is not known. (n,) each"""
    return clusters(page, combine(_VISIT, user, (ts_ms // HOUR_MS).astype(np.uint64)))


@compiled
def drawn(page: Array, ts_ms: Array, begins: Array, shares: Array) -> Array:
    """Whether the hash of each page is below the share of its time. (B,) As ``combine(_SALT, page)`` draws it."""
    held = np.empty(len(page), np.bool_)
    for b in range(len(page)):
        draw = max(split_mix(page[b] * C1 + _SALT), np.uint64(1)) if page[b] else page[b]
        step = len(begins) - 1
        while step > 0 and begins[step] > ts_ms[b]:
            step -= 1
        held[b] = np.float64(draw >> np.uint64(11)) < shares[step] * 2.0**53
    return held


def scores(model: Scoring, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (n,) of rows cat (n, F), num (n, N), some at a time; n > 0. They are the caller's own: those of a
    serving model lie in an array that it uses again."""
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(cat), _AT_ONCE)]
    return np.concatenate([model.score(cat[part], num[part]).copy() for part in parts])


def more_loss(p: Array, rows: HeldRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x_r of the module's text for probabilities p, and the largest absolute value that it might have, whatever the
    label. (n,) each."""
    before, after = logits_of(rows.anchor), levelled(logits_of(p), rows.anchor)
    unclicked = np.logaddexp(0, after) - np.logaddexp(0, before)
    clicked = unclicked - (after - before)
    return unclicked + rows.label * (clicked - unclicked), np.maximum(np.abs(unclicked), np.abs(clicked))


def logits_of(p: Array) -> NDArray[np.float64]:
    """Of probabilities, cut to [1e-7, 1 - 1e-7]. (n,)"""
    q = np.clip(np.asarray(p, np.float64), 1e-7, 1 - 1e-7)
    logits: NDArray[np.float64] = np.log(q) - np.log1p(-q)
    return logits


def levelled(logits: NDArray[np.float64], anchor: Array) -> NDArray[np.float64]:
    """Logits and the constant that gives them the mean probability of the anchors. (n,)

    >>> levelled(np.array([0.0, 2.0]), np.array([0.2, 0.8])).round(6)
    array([-1.,  1.])
    """
    level = float(np.mean(anchor, dtype=np.float64))
    low, high = -30.0, 30.0  # the mean of sigmoid(t + c) rises in c
    for _ in range(40):
        c = (low + high) / 2
        if (1 / (1 + np.exp(-(logits + c)))).mean() > level:
            high = c
        else:
            low = c
    return logits + c
