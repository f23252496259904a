# core
"""The model that learns. Scorers hold learner/serving/serving_model.py.

One step of learning::

    ids ──read──► values of the distinct ids ──pool──► embeddings (B, F, D) ──► network ──► logit + wide ──► loss
    tables ◄─write─ gradient of the distinct ids ◄─spread─ gradients (B, F, D) ◄─────────── (p - y)
              row-wise Adagrad, FTRL                              Adam on the network's flat vector

with, for sample b of weight w_b and label y_b (w_u: the wide weight of id u; v_u: its embedding)::

    t_b = f(pooled v of b, x_b) + sum_{u of b} w_u + prior     p_b = sigmoid(t_b)
    loss = sum_b w_b (-y_b log p_b - (1 - y_b) log(1 - p_b)) / sum_b w_b
    slope_b = w_b (p_b - y_b)                                  the gradient of w_b's term by t_b

Where pages are drawn by chance, t_b has the effect of the slot, too (learner/ranker/slot_effect.py).

A spec's ``page_weight`` adds a loss within pages and its slopes (learner/ranker/within_page.py). Rows of the kind PAGE
have been learnt before: they weigh 0 in log loss, and nothing else learns from them.

Symbols: B samples of a batch; F categorical columns of ``cat`` and N numbers of ``num`` (the schema's); C id columns
and D embedding width of one table; U distinct ids of a batch in it; E embedding columns of all tables side by side.

Nothing is written before loss and gradients are known to be finite and in bounds.

Beside the ranker a retrieval head may learn from the same samples (learner/retrieval/retrieval.py), unless the batch
is refused. Snapshots and expiry treat its tables as the others. Some versions leave them out; no scorer ranks by them.

A shop of two fields. The stream hashes ids per field; here they are made by hand::

    >>> import numpy as np
    >>> from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
    >>> from millrace.contracts.schema import parse_schema
    >>> schema = parse_schema('''
    ... name = "tiny"
    ... [[fields]]
    ... name = "item_id"
    ... of = "item"
    ... [[fields]]
    ... name = "price"
    ... of = "item"
    ... kind = "numeric"
    ... [windows]
    ... days = [1]
    ... actions = ["exposure", "click"]
    ... ''')
    >>> schema.layout.cat_names, schema.layout.num_names
    (('item_id',), ('price',))
    >>> model = OnlineModel(schema, {"model": "wide_deep", "hidden": [16]}, seed=0)

Item 11 is clicked whenever it is shown, item 22 never::

    >>> B = 64
    >>> clicked = np.arange(B) % 2 == 0
    >>> batch = SampleBatch.of_rows(
    ...     np.where(clicked, POSITIVE, NEGATIVE).astype(np.uint8), np.full(B, 1_700_000_000_000),
    ...     np.where(clicked, 11, 22)[:, None], np.full((B, 1), 9.5, np.float32), position=np.arange(B, dtype=np.int32))
    >>> reports = [model.learn(batch) for _ in range(20)]
    >>> reports[0].rows, reports[0].skipped, reports[-1].loss < reports[0].loss
    (64, None, True)

Scoring writes nothing, so an item that was never seen (33) gets an answer and no row::

    >>> p = model.score(np.array([[11], [22], [33]]), np.full((3, 1), 9.5, np.float32))
    >>> bool(p[0] > p[2] > p[1]), model.rows
    (True, 2)

A snapshot holds the whole state: another model goes on from it as if it were this one::

    >>> twin = OnlineModel(schema, model.spec, seed=1)
    >>> twin.resume(*model.snapshot())
    >>> twin.learn(batch) == model.learn(batch)
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.network import elementwise
from learner.network.backward import Aside
from learner.network.dense import DenseState
from learner.network.models import Columns, Head, Network, network_of
from learner.network.models.delays import Delays
from learner.network.models.norm import InputNorm
from learner.network.models.spec import Spec, read_spec
from learner.ranker import attended
from learner.ranker.buckets import Reservoir
from learner.ranker.guard import LossGuard
from learner.ranker.inputs import Inputs, TableColumns, finite
from learner.ranker.outcome_heads import HeadInference, HeadStep, OutcomeHeads, heads_of
from learner.ranker.sampling import chosen, usable
from learner.ranker.slot_effect import SlotEffect
from learner.ranker.snapshot_slices import Part, Slices
from learner.ranker.step import Gradient, Inference, WrittenStep, dense_step, set_mode, wide_part
from learner.ranker.within_page import page_rows, teach_pages
from learner.retrieval.retrieval import RetrievalHead
from learner.tables import table_kernels
from learner.tables.table import BatchIds, SparseTable, StepSizes
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import UNFIT, SnapshotError
from millrace.basics.hashing import salt
from millrace.basics.probing import EMPTY
from millrace.contracts.samples import OUTCOME, PAGE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.labels import asks, weigh, weighs
from millrace.versions.image import RETRIEVAL_TABLES, Array, Image, below, split

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

DAMPING = 0.05
"""Adagrad's epsilon, of embeddings. Gradients are far below it at first, so a row's steps are in proportion to them.
With next to nothing each row's first step has the length of the rate, and the length of an id's vector tells whether
clicks of its visit have been learnt yet. Negatives are learnt before clicks. So the network learns to read that, and
expects none of newcomers and everything of those who clicked (tests/learner/ranker/test_late_clicks.py)."""

_EXPIRE_MIN = 60  # rows are looked over for their age no oftener than this, in minutes of event time


@dataclass(frozen=True, slots=True)
class LearnReport:
    """The outcome of a batch: mean ``loss`` before the step, ``rows`` learnt, or why the batch was ``skipped``.
    ``refused`` counts rows with a label outside [0, 1] or an unusable weight. ``bad_numbers`` counts features that were
    not finite (they are read as 0). ``left_out`` counts the negatives that down-sampling skipped."""

    loss: float
    rows: int
    skipped: str | None = None
    refused: int = 0
    bad_numbers: int = 0
    left_out: int = 0


def build_network(columns: Columns, spec: Spec, seed: int) -> Network:
    kind = network_of(spec.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(columns.shape, spec)
        # Heads come last: the click's weights are drawn, and lie, as they do without them.
        heads = {name: Head(kind(replace(columns.shape, buckets=0), spec)) for name in columns.outcomes}
        if heads:
            network.outcomes = nn.ModuleDict(heads)
    return network


def build(schema: Schema, spec: Spec, seed: int) -> tuple[Inputs, Network]:
    kind = network_of(spec.model)
    width = spec.width if kind.deep else 0
    squash = spec.numerics == "squash"
    inputs = Inputs(schema, width, kind.own_widths, squash, spec.buckets, spec.bucket_width)
    network = build_network(inputs.columns, spec, seed)
    if isinstance(network.scale, InputNorm):
        network.scale.one_event = torch.from_numpy(inputs.one_event)
    return inputs, network


def head_columns(schema: Schema) -> Array:
    """The columns of users and items in order, to which the small state of a retrieval head is bound. (1,)"""
    sides = [f"{f.of} {f.kind} {f.name} {f.slots}" for f in schema.fields if f.of in ("user", "item")]
    return np.array([salt("retrieval columns", *sides)], np.uint64)


def _bucketed(inputs: Inputs, network: Network, cat: Ids, num: Floats) -> Ids:
    """``cat`` (B, F) with the ids of quantile buckets of ``num`` (B, N), by the network's edges. (B, F + buckets)"""
    return inputs.bucketed(cat, num, network.edges.numpy()) if len(inputs.bucket_columns) else cat


def score_with(
    inputs: Inputs,
    inference: Inference,
    tables: Mapping[str, Any],
    cat: Ids,
    num: Floats,
    heads: Sequence[HeadInference] | None = None,
) -> Floats:
    """Probabilities (B,) of a click in evaluation mode; with ``heads`` (B, 1 + K): that, and each outcome's. ``tables``
    have ``read``."""
    if not len(cat):
        return np.empty(0 if heads is None else (0, 1 + len(heads)), np.float32)
    num, _ = finite(num)  # (B, N)
    cat, num = _bucketed(inputs, inference.network, cat, num), inputs.plain(num)  # (B, F + buckets), (B, N - buckets)
    blocks = [tables[g.name].read(inputs.ids(g, cat)) for g in inputs.groups]
    t = inference.logits(blocks, num) + wide_part(inputs, blocks, len(cat), inputs.prior_logit)  # (B,)
    p: Floats = torch.sigmoid(torch.from_numpy(t)).numpy()  # (B,)
    if heads is None:
        return p
    others = (torch.from_numpy(head.logits(tables, cat, num, t)) for head in heads)
    # Each by itself: torch rounds a value by its place in the array.
    return np.stack([p, *(torch.sigmoid(z).numpy() for z in others)], axis=1)


@dataclass(slots=True)
class _Step:
    """A step of learning that is planned, on a batch of B rows with a label. Nothing but running statistics is written
    yet."""

    batch: SampleBatch
    numbers: Floats  # (B, N) finite
    bad: int  # how many were not
    cat: Ids  # (B, F + buckets)
    num: Floats  # (B, N - buckets)
    slots: NDArray[np.intp] | None  # (B,) where the effect of slots is learnt
    blocks: list[BatchIds]
    buffers: Tensor  # running statistics as they were before
    first: slice | NDArray[np.bool_]  # rows that were not learnt before
    logits: Floats  # (B,) t, in the stream as it is learnt from: see :attr:`OnlineModel._shift`
    y: Floats  # (B,)
    w: Floats  # (B,)
    losses: Floats  # (B,)
    slope: Floats  # (B,)
    loss: float  # the mean
    rows: list[HeadStep] = field(default_factory=list)  # what is to be written to tables, once it is checked


class OnlineModel:
    """A model that learns batch by batch. One thread at a time. Raises SettingError where the spec has an unknown name
    or value.

    Args:
        schema: the meaning of the arrays; a model is bound to it.
        spec: some or all values of :class:`~learner.network.models.spec.Spec`.
        seed: of the first weights. Two models with equal schema, spec, seed, thread count and batches are equal to
            the last bit.
    """

    def __init__(self, schema: Schema, spec: Mapping[str, Any], seed: int) -> None:
        self.schema, self.seed = schema, seed
        self._spec = read_spec(spec)
        self._inputs, self.network = build(schema, self._spec, seed)
        s = self._spec
        rates = StepSizes(s.embedding_rate, DAMPING, s.ftrl_alpha, s.ftrl_beta, s.ftrl_l1, s.ftrl_l2)
        age = round(s.max_age_days * 1440)
        groups = {head + g.name: g for head in ("", *self._inputs.heads) for g in self._inputs.groups}
        bounds = rates, s.max_rows, age, s.admit, s.embedding_scale
        self.tables = {
            name: SparseTable(g.table_width, *bounds, _table_salt(name, seed), counted=g.table_width > g.width)
            for name, g in groups.items()
        }
        self.head = RetrievalHead(schema, s, seed) if s.retrieval_width else None
        if self.head is not None:
            self.tables |= self.head.tables
        self.serving = build(schema, self._spec, seed)[1] if s.averaging else self.network
        for parameter in self.serving.parameters():
            parameter.requires_grad_(self.serving is self.network)
        self.dense = DenseState(self.network, self.serving, s.dense, s.dense_rate, s.averaging, s.step_rows)
        self.reservoir = Reservoir(len(self._inputs.bucket_columns))
        self.delays = Delays(self.network.delays, round(s.settled_minutes * MINUTE_MS))
        self.slots = SlotEffect(schema)
        self.guard = LossGuard(s.loss_ratio)
        half = s.products == "bfloat16"
        self._step = dense_step(self._inputs, self.network, half)
        self._inference = Inference(self._inputs, self.serving)
        self._outcomes = OutcomeHeads(self._inputs, self.network, self.tables, half, schema.outcome)
        self._heads = heads_of(self._inputs, self.serving)
        self.newest_ms = 0  # newest exposure learnt from
        self._expired_min = 0

    @property
    def spec(self) -> dict[str, Any]:
        """Everything needed to build this model again, JSON-able."""
        spec: dict[str, Any] = msgspec.to_builtins(self._spec)
        return spec

    @property
    def columns(self) -> Columns:
        """The names of the inputs. A snapshot keeps them, so that a model with other inputs can go on from it."""
        return self._inputs.columns

    @property
    def by_page(self) -> bool:
        """Whether rows of one page are learnt together, so that no micro-batch may cut a page."""
        return self._spec.page_weight > 0

    @property
    def rows(self) -> int:
        """Rows in all tables, the retrieval head's included."""
        return sum(len(t) for t in self.tables.values())

    @property
    def nbytes(self) -> int:
        """Memory of tables and network with their optimisers' state, in bytes."""
        dense = 4 * (5 * self.dense.weights.numel() + self.dense.buffers.numel())
        head = 0 if self.head is None else self.head.nbytes
        return dense + head + sum(t.nbytes for t in self.tables.values())

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (B,) of feature rows cat (B, F), num (B, N). Reads only; unknown ids read as zero."""
        return score_with(self._inputs, self._inference, self.tables, cat, num)

    def predict(self, cat: Ids, num: Floats) -> Floats:
        """:meth:`score`, and the probabilities of the schema's K outcomes: (B, 1 + K). An outcome on clicks is given a
        click. Reads only."""
        return score_with(self._inputs, self._inference, self.tables, cat, num, self._heads)

    def knows(self, field: str, cat: Ids) -> NDArray[np.bool_]:
        """Whether there is a row for the (first) id that each row of cat (n, F) has in a categorical field. (n,)"""
        column = self.schema.layout.cat_names.index(field)
        group = next(g for g in self._inputs.groups if field in g.fields)
        known: NDArray[np.bool_] = self.tables[group.name].index.find(np.ascontiguousarray(cat[:, column])) != EMPTY
        return known

    def _met(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """Rows whose item was learnt before. All, where a schema has no item's id. (B,)"""
        layout = self.schema.layout
        return self.knows(layout.item, batch.cat) if layout.item in layout.cat_names else np.ones(len(batch), np.bool_)

    def learn(
        self, batch: SampleBatch, vouched: bool = False, before_writing: Callable[[], None] | None = None
    ) -> LearnReport:
        """One step on ``batch``; follow-ups in it are skipped. A batch whose loss or gradient is not finite, or beyond
        the spec's bounds, is refused whole: weights, statistics and tables stay as they were, and the retrieval head
        learns nothing of it. ``vouched``: somebody says that the rows are right, so a loss beyond the recent past's
        refuses nothing. ``before_writing``: called one time, before the first write to what a
        :class:`~learner.ranker.frozen_scores.Still` reads; not at all for a batch that writes nothing."""
        shown, refused = usable(batch, self.by_page, bool(self.schema.outcome))
        labelled, keep = shown.labelled, self._spec.negative_keep
        kept = shown.take(chosen(shown, keep)) if keep < 1 else shown
        report = LearnReport(0.0, len(kept), None, refused, 0, len(shown) - len(kept))
        if len(kept):
            step = self._plan(kept, len(labelled) < len(shown))
            report = replace(report, loss=step.loss, bad_numbers=step.bad, skipped=self._check(step, vouched))
            if report.skipped is not None:
                return replace(report, rows=0)
            if before_writing is not None:
                before_writing()
            self._write(step)
        if self.head is not None and len(labelled):
            self.head.take(labelled)  # all of it: its negatives are others
        self._expire()
        return report

    @property
    def _shift(self) -> float:
        """Leaving out negatives raises the share of clicks. The constant ln(negative_keep) makes up for it while
        learning, and only then: so the rest of the model, and what is served, answers for the whole stream."""
        return math.log(self._spec.negative_keep)

    def _plan(self, batch: SampleBatch, again: bool) -> _Step:
        """The step on ``batch`` as far as its loss. Of what serves only running statistics change. ``again``: it has
        rows that were learnt before."""
        size = len(batch)  # B from here on
        numbers, bad = finite(batch.num)  # (B, N)
        cat = _bucketed(self._inputs, self.network, batch.cat, numbers)  # (B, F + buckets)
        num = self._inputs.plain(numbers)  # (B, N - buckets)
        apart, slots = self.slots.of(cat, batch.odds)
        blocks = [self.tables[g.name].read(self._inputs.ids(g, apart), True) for g in self._inputs.groups]
        set_mode(self.network, training=True)
        buffers = self.dense.buffers.clone()
        wide = wide_part(self._inputs, blocks, size, self._inputs.prior_logit - self._shift)  # (B,)
        if slots is not None:
            wide += self.slots.logits(slots)
        logits = self._step.forward(blocks, num)  # (B,)
        weight = batch.weight
        if weighs(batch.policy):  # the label policy's own weights
            p = torch.sigmoid(torch.from_numpy(logits + wide + np.float32(self._shift))).numpy()  # (B,)
            early = self.delays.early(batch.position, batch.cat)  # (B,)
            weight = weight * weigh(batch.policy, batch.kind, p, early)  # (B,)
        y, w = (np.array(a, np.float32) for a in (batch.label, weight))  # (B,), (B,): copies; kernels take one kind
        first: slice | NDArray[np.bool_] = slice(None)
        if again:
            first = batch.kind < PAGE
            w *= first
        losses, slope = np.empty(size, np.float32), np.empty(size, np.float32)  # (B,), (B,): see the module's head
        loss = elementwise.logistic(logits, wide, y, w, losses, slope) / (float(w.sum(dtype=np.float64)) or 1.0)
        return _Step(
            batch, numbers, bad, cat, num, slots, blocks, buffers, first, logits + wide, y, w, losses, slope, loss
        )

    def _check(self, step: _Step, vouched: bool) -> str | None:
        """Computes the gradients of a step, and says why it is refused, if it is: then statistics and guard are as they
        were before it."""
        batch, guard = step.batch, self.guard.snapshot()
        met = self._met(batch) & (batch.kind < PAGE)
        problem = self._problem_of(step.loss)
        if problem is None and self.guard.exploded(step.losses[met], step.w[met], step.y[met] > 0.5, vouched):
            problem, guard = "loss_jumped", self.guard.snapshot()
        if problem is None:
            if self.by_page and (pages := page_rows(batch)) is not None:
                teach_pages(step.logits, step.y, *pages, np.float32(self._spec.page_weight), step.slope)
            grads = self._step.backward(step.slope / np.float32(len(batch)))  # (B, F D) for each table with embeddings
            given = step.logits + np.float32(self._shift)  # (B,) the click's logit
            heads = self._outcomes.steps(batch, step.cat, step.num, given, self._spec.negative_keep)
            step.rows = [HeadStep("", step.blocks, grads, step.slope), *heads]
            problem = self._problem_of_gradients([g for one in step.rows for g in one.grads], len(batch))
        if problem is not None:
            self.dense.buffers.copy_(step.buffers)
            self.guard.resume(guard)
        return problem

    def _write(self, step: _Step) -> None:
        batch, first = step.batch, step.first
        self.dense.learn(len(batch), int((batch.kind == OUTCOME).sum()) if self.schema.outcome else 0)
        if step.slots is not None:
            self.slots.learn(step.slots[first], batch.odds[first], step.slope[first])
        if weighs(batch.policy):
            # Under the other policies "early" means something else.
            asking = asks(batch.policy) & (batch.kind < PAGE)
            if asking.any():
                self.delays.learn(batch if asking.all() else batch.take(asking))
        if self.reservoir.add(step.numbers[first][:, self._inputs.bucket_columns]):
            self.network.edges.copy_(torch.from_numpy(self.reservoir.edges(self._spec.buckets)))
        self.newest_ms = max(self.newest_ms, int(batch.ts_ms.max()))
        for one in step.rows:
            self._write_rows(one, len(batch))
            self._outcomes.learn_delays(one)

    def _expire(self) -> None:
        now_min = self.newest_ms // MINUTE_MS
        if now_min >= self._expired_min + max(_EXPIRE_MIN, round(self._spec.max_age_days * 60)):  # a 24th of the age
            self._expired_min = now_min
            for table in self.tables.values():
                table.expire(now_min)

    def share(self, aside: Aside | None) -> None:
        """Lets another thread do a part of each step's matrix products; the result is the same to the bit."""
        if isinstance(self._step, WrittenStep):
            self._step.written.products.aside = aside

    def _write_rows(self, step: HeadStep, size: int) -> None:
        """The sparse step. Gradients are sums over samples (not means), so a row's step does not depend on how many
        other samples happened to be in the batch."""
        leaves = iter(step.grads)
        for group, block in zip(self._inputs.groups, step.blocks, strict=True):  # before items get their rows
            block.items = self._met_in(group, block, step.blocks) if group.texts.any() else None
        for k, (group, block) in enumerate(zip(self._inputs.groups, step.blocks, strict=True)):
            grad_wide = np.zeros(len(block.ids), np.float32)  # (U,)
            table_kernels.wide_spread(step.slope, block.inverse, group.lent, grad_wide)  # (B,) at (B, C) into (U,)
            grad_embedding = np.zeros((len(block.ids), group.width), np.float32)  # (U, D)
            if group.width:
                leaf = next(leaves)
                factor = np.float32(size)  # the network's gradient is of the mean; this makes it a sum
                ids = block.embedding, block.inverse, group.meant, group.texts
                table_kernels.spread(leaf.array, leaf.at, factor, *ids, grad_embedding)
                attended.spread(self._inputs, k, block, leaf.attended, leaf.array, leaf.at, factor, grad_embedding)
            self.tables[step.head + group.name].write(block, grad_embedding, grad_wide, self.newest_ms // MINUTE_MS)

    def _met_in(self, group: TableColumns, block: BatchIds, blocks: Sequence[BatchIds]) -> NDArray[np.int64]:
        """In how many items that have no row yet each id of a group's ``block`` is a word. (U,)"""
        rows: slice | NDArray[np.intp] = slice(None)  # each is an item, where a schema has no item's id
        if (item := self._inputs.item) is not None:
            of_items = blocks[item[0]]
            places, first = np.unique(of_items.inverse[:, item[1]], return_index=True)
            rows = first[(places != EMPTY) & (of_items.rows[places] == EMPTY)]
        texts = np.flatnonzero(np.repeat(group.texts, np.diff(group.meant)))
        words = block.inverse[rows][:, texts]
        return np.bincount(words[words != EMPTY], minlength=len(block.ids))

    def _problem_of(self, loss: float) -> str | None:
        if not np.isfinite(loss):
            return "loss_not_finite"
        return "loss_exploded" if loss > self._spec.max_loss else None

    def _problem_of_gradients(self, grads: list[Gradient], size: int) -> str | None:
        norms = [float(self.dense.gradient.norm())]
        norms += [g.norm * size**0.5 for g in grads]
        if not all(np.isfinite(n) for n in norms):
            return "gradient_not_finite"
        return "gradient_exploded" if max(norms) > self._spec.max_gradient else None

    # -- versions --------------------------------------------------------------------------------------------

    def changes(self, dense: bool = True, retrieval: bool = True) -> Image:
        """The rows touched or removed since the last call, with all ``dense`` tensors and the ``retrieval`` tables by
        default. Values are whole, not differences. Later calls give what this one leaves out, as it is then."""
        tensors = self.dense.changes() if dense else {}
        tables = {n: t for n, t in self.tables.items() if retrieval or n not in RETRIEVAL_TABLES}
        return Image(tensors, {name: table.changes() for name, table in tables.items()})

    def snapshot(self) -> Part:
        """The whole state: what serves, and what only training needs. :meth:`resume` goes on from it bit for bit. It
        shares no memory with the model, and leaves :meth:`changes` alone. It copies all rows at once; :meth:`slices`
        gives the same while the model goes on learning."""
        dense, own = self.dense.snapshot()
        tables = {}
        training: dict[str, Array] = {f"dense/{n}": a for n, a in own.items()}
        for name, table in self.tables.items():
            tables[name], own = table.snapshot()
            training |= {f"table/{name}/{n}": a for n, a in own.items()}
        return Image(dense, tables), training | self.small_state()

    def slices(self, rows: int = 100_000) -> Slices:
        """Begins a snapshot that is copied ``rows`` rows at a time, between steps; gives up an earlier one."""
        return Slices(self, rows)

    def small_state(self) -> dict[str, Array]:
        """What a snapshot has besides tables and dense tensors."""
        state: dict[str, Array] = {f"delays/{n}": a for n, a in self.delays.snapshot().items()}
        state |= {f"slots/{n}": a for n, a in self.slots.snapshot().items()}
        state |= {f"outcome/{n}": a for n, a in self._outcomes.snapshot().items()}
        if len(self._inputs.bucket_columns):
            state |= {f"sample/{n}": a for n, a in self.reservoir.snapshot().items()}
        if self.head is not None:
            state |= {f"retrieval/{n}": a for n, a in self.head.small_state().items()}
            state["retrieval/columns"] = head_columns(self.schema)
        state["guard"] = self.guard.snapshot()
        state["clock"] = np.array([self.newest_ms, self._expired_min, self.seed], np.int64)
        return state

    def resume(
        self, snapshot: Image | Iterable[tuple[Image, Mapping[str, Array]]], training: Mapping[str, Array] | None = None
    ) -> None:
        """Replaces this model's state by the snapshot of a model with this schema and spec; the seed becomes the
        snapshot's.

        A retrieval head is optional to both. Where the snapshot has none, this model's begins empty; where this model
        has none, the snapshot's is skipped. Raises SnapshotError where the snapshot is of another model, or has no end;
        this one stays as it was. ``snapshot``: a whole image with its ``training``, or without it the parts of a
        snapshot, in order. They are taken one by one: a reader of files need not hold more than one.
        """
        parts = [(snapshot, training or {})] if isinstance(snapshot, Image) else snapshot
        fresh = OnlineModel(self.schema, self.spec, self.seed)
        dense: dict[str, Array] = {}
        state: dict[str, Array] = {}
        heads: set[int] = set()  # how many tables of a head each part has
        try:
            for image, own in parts:
                _, head = split(image)
                known = {name for name in fresh.tables if name not in RETRIEVAL_TABLES}
                heads.add(len(head.tables))
                if (
                    set(image.tables) - set(RETRIEVAL_TABLES) != known
                    or len(heads) > 1
                    or heads - {0, len(RETRIEVAL_TABLES)}
                ):
                    raise KeyError("other tables")
                for name in known if fresh.head is None else image.tables:
                    fresh.tables[name].resume(image.tables[name], below(f"table/{name}/", own))
                dense |= image.dense
                state |= {n: a for n, a in own.items() if not n.startswith("table/")}
            fresh._settle(dense, state)
            if fresh.head is not None:
                fresh.head.reseed(fresh.seed)
                if heads != {0}:
                    fresh.head.resume_small(below("retrieval/", state))
        except UNFIT as error:
            raise SnapshotError(
                f"the snapshot is not of a '{self._spec.model}' with this schema and spec ({error})",
                "start with an empty model folder, or with the settings it was made with",
            ) from None
        if fresh.seed != self.seed:  # first values of rows depend on it
            fresh = self._reseeded(fresh, fresh.seed)
        self.network, self.serving = fresh.network, fresh.serving
        self._step, self._inference = fresh._step, fresh._inference
        self._outcomes, self._heads = fresh._outcomes, fresh._heads
        self.dense, self.tables, self.reservoir, self.guard = fresh.dense, fresh.tables, fresh.reservoir, fresh.guard
        self.delays, self.slots, self.head = fresh.delays, fresh.slots, fresh.head
        self.seed, self.newest_ms, self._expired_min = fresh.seed, fresh.newest_ms, fresh._expired_min

    def _settle(self, dense: dict[str, Array], state: Mapping[str, Array]) -> None:
        if set(dense) != set(self.dense.names):
            raise KeyError("other tensors")
        self.dense.resume(dense, below("dense/", state))
        self.delays.resume(below("delays/", state))
        self.slots.resume(below("slots/", state))
        self._outcomes.resume(below("outcome/", state))
        if len(self._inputs.bucket_columns):
            self.reservoir.resume(below("sample/", state))
        self.guard.resume(state["guard"])
        self.newest_ms, self._expired_min, self.seed = (int(v) for v in state["clock"])

    def _reseeded(self, fresh: OnlineModel, seed: int) -> OnlineModel:
        for name, table in fresh.tables.items():
            if name not in RETRIEVAL_TABLES:
                table.salt = np.uint64(_table_salt(name, seed))
        return fresh


def _table_salt(name: str, seed: int) -> int:
    return int(salt("first values", name, str(seed)))
