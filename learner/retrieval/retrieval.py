# core
"""The retrieval head: two towers that learn, beside the ranker and from the same samples, who clicks what.

learner/retrieval/click_history.py keeps what it learns from: the item table, the ring of the last clicks, each
user's click history, and pending clicks until a micro-batch is full. Softmax over sampled negatives with the logQ
correction (Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019).
Of B clicks (u_b, i_b) with weights w_b, and draws that make M distinct items j, each ``times_j`` times::

    E_j    = (B + R) clicks_j / |ring| + N / |table|        expected number of item j among the clicks and the draws
    l_bj   = q_b . v_j - log E_j + log times_j              without log times_j for the click's own item
    loss   = sum_b w_b (log sum_j exp l_bj - l_b,i_b)       the sum over the items that user b has not clicked

E is Q, the chance under the *whole* mixture of negatives, but for a factor. At 20 exposures a second a micro-batch has
one click or none, so in-batch negatives alone would teach nothing: R draws come from the ring, N from the item table.
Serving uses s = q . v, without the correction. learner/retrieval/tower.py has the towers' formulas.

Items that the user has clicked are masked. Only clicks on earlier pages are the user's history: a page could not know
its own. A row for an item's own id begins at its first click, not when it is drawn; until then the item is the sum of
its attributes. Nothing is written before loss and gradients are known to be finite and in bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.network.models.spec import Spec
from learner.retrieval import retrievalkernels
from learner.retrieval.click_history import History, Pending, RecentItems
from learner.retrieval.retrievalkernels import SampleRows, SideColumns
from learner.retrieval.retrievalstep import ClickPairs, gradients
from learner.retrieval.tower import ITEM, RECENT, USER, Sides, factors_of, map_ids
from learner.tables.row_index import Ids
from learner.tables.table import SparseTable, StepSizes, as_read
from millrace.basics.durations import MINUTE_MS
from millrace.basics.hashing import salt
from millrace.basics.probing import EMPTY
from millrace.contracts.samples import CORRECTION, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array, below

Floats = NDArray[np.float32]

MICRO = 128
ITEMS = 1 << 17
"""Of the item table."""
RING = 8192
RING_PART = 8
"""One of so many negatives is drawn from the ring."""
USERS = 1 << 16
"""Of the history."""
WAIT_MS = 20_000
"""After so much event time clicks that wait are learnt, however few. A pass over ten costs half as much as over 128."""
STRANGERS = 1 << 13
"""Of 65,536 clicks, those that are learnt from as if the user were new."""
_FADING = 0.99


class RetrievalHead:
    """Learns as the module describes. One thread at a time. Raises SettingError where the head does not fit the schema,
    or the spec has no width for it.

    Args:
        schema: must fit: :meth:`~learner.retrieval.tower.Sides.fits`.
        spec: of the model; its entries ``retrieval_...`` count.
        seed: of first values and draws. Two heads with equal schema, spec, seed and batches are equal to the last bit.

    Attributes:
        tables: the learnt rows, by name.
        clicks: learnt from so far.
        refused: clicks of refused micro-batches, with a number not finite or a gradient out of bounds.
        loss: mean loss of a click, lately; 0 before the first.
        newest_ms: newest exposure taken.
    """

    def __init__(self, schema: Schema, spec: Spec, seed: int) -> None:
        self.sides, self.width = Sides(schema), factors_of(spec)
        self._spec = spec
        rates = StepSizes(spec.retrieval_rate, 1e-6, spec.retrieval_alpha, 1.0, 0.0, 0.0)
        age = round(spec.max_age_days * 1440)
        self.tables = {
            name: SparseTable(self.width, rates, spec.max_rows, age, 1, spec.embedding_scale, 0)
            for name in (USER, ITEM)
        }
        self.recent_items = RecentItems(len(self.sides.item_columns), len(self.sides.plain_columns), ITEMS, RING)
        self.history = History(USERS, RECENT)
        self.clicks, self.refused, self.loss = 0, 0, 0.0
        self.newest_ms = self._waits_ms = 0  # `_waits_ms`: when the first click that waits came
        self._pending = Pending(MICRO, len(self.sides.user_columns), RECENT)
        draws = spec.retrieval_negatives
        self._from_ring, self._from_all = draws // RING_PART, draws - draws // RING_PART
        most = MICRO + draws
        self._places = np.full(ITEMS, EMPTY, np.int32)
        self._entries = np.zeros(most + MICRO * RECENT, np.int64)
        self._times, self._expected = np.zeros(most, np.int64), np.zeros(most)
        self._map = map_ids(self.width)
        self._state = np.zeros(1, np.uint64)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        for name, table in self.tables.items():
            table.salt = np.uint64(int(salt("first values", name, str(seed))))
        self._state[0] = salt("negatives", str(seed))

    @property
    def nbytes(self) -> int:
        return self.recent_items.nbytes + self.history.nbytes + self._places.nbytes

    @property
    def pending(self) -> int:
        return len(self._pending)

    def take(self, batch: SampleBatch) -> None:
        """Takes the items of a batch, shown or clicked, and its clicks. Learns when a micro-batch of clicks is full, or
        when exposures are :data:`WAIT_MS` newer than when the first of them came. Where a batch begins and ends makes
        no difference."""
        clicked = (batch.kind == POSITIVE) | (batch.kind == CORRECTION)
        with np.errstate(invalid="ignore"):
            clicked &= (batch.label == 1) & (batch.weight > 0) & np.isfinite(batch.weight)
        sides, recent_items, pending = self.sides, self.recent_items, self._pending
        arrays = (batch.user, batch.item, batch.ts_ms, batch.weight, batch.cat, batch.num)
        rows = SampleRows(clicked, *(as_read(array) for array in arrays))
        columns = SideColumns(sides.item_columns, sides.plain_columns, sides.user_columns, sides.own_user)
        newest_ms = np.maximum.accumulate(np.maximum(batch.ts_ms, self.newest_ms))  # (B,)
        clicks = np.append(np.flatnonzero(clicked & (batch.item != 0)), len(batch))
        row = 0
        while row < len(batch):  # a pass ends with the batch, or when what waits is learnt
            first, stop = clicks[np.searchsorted(clicks, row)], len(batch)
            if not len(pending) and first < len(batch):
                self._waits_ms = int(newest_ms[first])
            if len(pending) or first < len(batch):
                stop = max(row, int(np.searchsorted(newest_ms, self._waits_ms + WAIT_MS)))
            upto, start = SampleRows(*(array[:stop] for array in rows)), row
            row, pending.count = retrievalkernels.take(
                *(start, upto, columns, recent_items.arrays, recent_items.shift, self.history.arrays),
                *(pending.arrays, pending.count, self._state, STRANGERS),
            )
            self.newest_ms = int(newest_ms[row - 1]) if row else self.newest_ms
            if len(pending) == MICRO or row < len(batch):
                self.flush()

    def flush(self) -> None:
        """Learns from the waiting clicks, however few."""
        size, self._pending.count, self._waits_ms = len(self._pending), 0, 0
        if size:
            self._learn(size)

    def _learn(self, size: int) -> None:
        clicks, items = self._click_pairs(size)
        recent_items, width = self.recent_items, self.width
        # Items and the map are one block: a table that is full makes room for new rows, and never takes a block's own.
        features, weights = self.sides.item_features(recent_items.cat[items], recent_items.plain[items])  # (A, S)
        self._forget_unclicked(features, clicks.target)
        ids = np.concatenate([features.reshape(-1), self._map])
        block = self.tables[ITEM].read(ids.reshape(-1, 1), learning=True)
        inverse = block.inverse[: features.size].reshape(features.shape)
        at = block.inverse[features.size :, 0]  # rows of the map
        wide = self.sides.bias_weights(weights)
        v, bias = np.empty((len(items), width), np.float32), np.empty(len(items), np.float32)
        retrievalkernels.pool(block.embedding, inverse, weights, v)
        retrievalkernels.pool_wide(block.wide, inverse, wide, bias)
        own, own_weights = self.sides.user_features(self._pending.cat[:size])  # (B, C)
        users = self.tables[USER].read(own, learning=True)
        u = np.empty((size, width), np.float32)
        retrievalkernels.pool(users.embedding, users.inverse, own_weights, u)

        found = gradients(u, v, bias, block.embedding[at], clicks)
        norm = found.norm / float(clicks.weight.sum(dtype=np.float64))  # of the mean: the bound is the ranker's, too
        # A young head is far off at times, and only learning brings it back: so no loss is too great, if it is finite.
        if not (np.isfinite(found.loss) and norm <= self._spec.max_gradient):
            self.refused += size
            return
        grad, grad_wide = np.zeros_like(block.embedding), np.zeros_like(block.wide)
        retrievalkernels.spread(found.v, inverse, weights, grad)
        retrievalkernels.spread_wide(found.bias, inverse, wide, grad_wide)
        grad[at] = found.matrix
        grad_user = np.zeros_like(users.embedding)
        retrievalkernels.spread(found.u, users.inverse, own_weights, grad_user)
        now_min = self.newest_ms // MINUTE_MS
        self.tables[ITEM].write(block, grad, grad_wide, now_min)
        self.tables[USER].write(users, grad_user, np.zeros_like(users.wide), now_min)
        self.loss = found.loss if not self.loss else _FADING * self.loss + (1 - _FADING) * found.loss
        self.clicks += size

    def _click_pairs(self, size: int) -> tuple[ClickPairs, NDArray[np.int64]]:
        """The first ``size`` pending clicks with draws, and the entries of the A items that take part."""
        pending, recent_items = self._pending, self.recent_items
        entries, places = self._entries, self._places
        count = retrievalkernels.candidates(
            *(pending.entry[:size], recent_items.arrays, self._state, self._from_ring, self._from_all),
            *(places, entries, self._times, self._expected),
        )  # M
        target = places[pending.entry[:size]]  # (B,)
        past = np.empty((size, RECENT), np.int32)  # (B, H)
        every = retrievalkernels.more(recent_items.entries(pending.past[:size]), places, entries, count, past)
        places[entries[:every]] = EMPTY
        clicks = ClickPairs(
            target,
            pending.user[:size],
            pending.weight[:size],
            past,
            pending.known[:size],
            self._times[:count],
            self._expected[:count],
        )
        return clicks, entries[:every]

    def _forget_unclicked(self, ids: Ids, target: NDArray[np.int32]) -> None:
        """Resets unclicked items without a row of their own to the sum of their attributes."""
        column = self.sides.own_column
        if column < 0:
            return
        own = np.ascontiguousarray(ids[:, column])
        absent = self.tables[ITEM].index.find(own) == EMPTY
        absent[target] = False
        ids[absent, column] = 0

    def small_state(self) -> dict[str, Array]:
        """All that is not in tables. Shares no memory with the head."""
        state = {f"recent_items/{name}": a for name, a in self.recent_items.snapshot().items()}
        state |= {f"history/{name}": a for name, a in self.history.snapshot().items()}
        state |= {f"pending/{name}": a for name, a in self._pending.snapshot().items()}
        state["state"] = self._state.copy()
        state["clock"] = np.array([self.clicks, self.refused, self.newest_ms, self._waits_ms], np.int64)
        state["loss"] = np.array([self.loss])
        return state

    def resume_small(self, state: Mapping[str, Array]) -> None:
        """Goes on from a :meth:`small_state`. A refused one changes nothing. Raises KeyError where an array is missing,
        and ValueError where an array is not of a head of this schema."""
        sides = self.sides
        recent_items = RecentItems(len(sides.item_columns), len(sides.plain_columns), ITEMS, RING)
        history, pending = History(USERS, RECENT), Pending(MICRO, len(sides.user_columns), RECENT)
        recent_items.resume(below("recent_items/", state))
        history.resume(below("history/", state))
        pending.resume(below("pending/", state), len(recent_items))
        clicks, refused, newest_ms, waits_ms = (int(v) for v in state["clock"])
        generator, loss = state["state"].astype(np.uint64), float(state["loss"].item())
        if generator.shape != self._state.shape:
            raise ValueError(f"a generator of {generator.shape}")
        self.recent_items, self.history, self._pending = recent_items, history, pending
        self.clicks, self.refused, self.newest_ms, self._waits_ms = clicks, refused, newest_ms, waits_ms
        self._state, self.loss = generator, loss
