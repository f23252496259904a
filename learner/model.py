"""The model that learns (:class:`OnlineModel`) and the same model as a scorer holds it (:class:`ServingModel`).

One step of learning::

    ids ──read──► values of the distinct ids ──pool──► embeddings (B, F, D) ──► network ──► logit + wide ──► loss
    tables ◄─write─ gradient of the distinct ids ◄─spread─ gradients (B, F, D) ◄─────────── (p - y)
              row-wise Adagrad, FTRL                              Adam on the network's flat vector

Nothing is written before loss and gradients are known to be finite and in bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner import kernels, passes
from learner.buckets import Sample
from learner.dense import DenseState, load_dense, tensors_of
from learner.guard import LossGuard
from learner.inputs import Group, Inputs
from learner.kernels import EMPTY
from learner.models import Columns, Network, network_of
from learner.sampling import chosen, fake_negative_weights
from learner.spec import Spec, read_spec
from learner.step import Answer, Gradient, set_mode, step_of
from learner.table import Block, Rates, ServingTable, SparseTable
from millrace.contracts.errors import SnapshotError
from millrace.contracts.hashing import salt
from millrace.contracts.modelstore import Array, Image
from millrace.contracts.samples import FOLLOW_UP, SampleBatch
from millrace.contracts.schema import Schema

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_MINUTE_MS = 60_000
_EXPIRE_MIN = 60  # rows are looked over for their age no oftener than this, in minutes of event time


@dataclass(frozen=True, slots=True)
class LearnReport:
    """What became of a batch: mean ``loss`` before the step, ``rows`` learnt, or why it was ``skipped``.

    ``refused``: rows with a label outside [0, 1] or an unusable weight; ``bad_numbers``: features that were not
    finite (read as 0); ``left_out``: negatives that down-sampling passed over.
    """

    loss: float
    rows: int
    skipped: str | None = None
    refused: int = 0
    bad_numbers: int = 0
    left_out: int = 0


def build_network(columns: Columns, spec: Spec, seed: int) -> Network:
    """The untrained network of a spec over inputs with these names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_of(spec.model)(columns.shape, spec)


def _build(schema: Schema, spec: Spec, seed: int) -> tuple[Inputs, Network]:
    kind = network_of(spec.model)
    width = spec.width if kind.deep else 0
    squash = spec.numerics == "squash"
    inputs = Inputs(schema, width, kind.own_widths, squash, spec.buckets, spec.bucket_width)
    return inputs, build_network(inputs.columns, spec, seed)


def _bucketed(inputs: Inputs, network: Network, cat: Ids, num: Floats) -> Ids:
    """``cat`` with the ids of quantile buckets, by the edges that the network holds."""
    return inputs.bucketed(cat, num, network.edges.numpy()) if len(inputs.bucket_columns) else cat


def _wide(blocks: Sequence[Block], size: int, base: float) -> Floats:
    """The wide part, ``base`` in it. (B,)"""
    wide = np.full(size, base, np.float32)
    for block in blocks:
        kernels.wide_sum(block.wide, block.inverse, wide)
    return wide


def _score(inputs: Inputs, answer: Answer, tables: Mapping[str, Any], cat: Ids, num: Floats) -> Floats:
    """Probabilities (B,) in evaluation mode. ``tables`` have ``read``."""
    if not len(cat):
        return np.empty(0, np.float32)
    num, _ = inputs.finite(num)
    cat, num = _bucketed(inputs, answer.network, cat, num), inputs.plain(num)
    blocks = [tables[g.name].read(inputs.ids(g, cat)) for g in inputs.groups]
    logit = answer.logits(blocks, num) + _wide(blocks, len(cat), inputs.prior_logit)
    out: Floats = torch.sigmoid(torch.from_numpy(logit)).numpy()
    return out


class OnlineModel:
    """A model that learns batch by batch. One thread at a time.

    Args:
        schema: gives the meaning of the arrays; a model is bound to it.
        spec: some or all values of :class:`~learner.spec.Spec`.
        seed: of the first weights. Two models with equal schema, spec, seed, thread count and batches are equal to
            the last bit.

    Raises:
        SettingError: the spec has an unknown name or value.
    """

    def __init__(self, schema: Schema, spec: Mapping[str, Any], seed: int) -> None:
        self.schema, self.seed = schema, seed
        self._spec = read_spec(spec)
        self._inputs, self.network = _build(schema, self._spec, seed)
        s = self._spec
        rates = Rates(s.embedding_rate, 1e-6, s.ftrl_alpha, s.ftrl_beta, s.ftrl_l1, s.ftrl_l2)
        age = round(s.max_age_days * 1440)
        self.tables = {
            g.name: SparseTable(g.width, rates, s.max_rows, age, s.admit, s.embedding_scale, _table_salt(g, seed))
            for g in self._inputs.groups
        }
        self.serving = _build(schema, self._spec, seed)[1] if s.averaging else self.network
        for parameter in self.serving.parameters():
            parameter.requires_grad_(self.serving is self.network)
        self.dense = DenseState(self.network, self.serving, s.dense, s.dense_rate, s.averaging)
        self.sample = Sample(len(self._inputs.bucket_columns))
        self.guard = LossGuard(s.loss_ratio)
        self._step = step_of(self._inputs, self.network, s.products == "bfloat16")
        self._answer = Answer(self._inputs, self.serving)
        self.newest_ms = 0  # newest exposure learnt from
        self._expired_min = 0

    @property
    def spec(self) -> dict[str, Any]:
        """Everything needed to build this model again, JSON-able."""
        spec: dict[str, Any] = msgspec.to_builtins(self._spec)
        return spec

    @property
    def columns(self) -> Columns:
        """What the inputs are called: to be kept with a snapshot, for a model with other inputs to go on from it."""
        return self._inputs.columns

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(len(t) for t in self.tables.values())

    @property
    def nbytes(self) -> int:
        """Memory of tables and network with their optimisers' state, in bytes."""
        dense = 4 * (5 * self.dense.weights.numel() + self.dense.buffers.numel())
        return dense + sum(t.nbytes for t in self.tables.values())

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (n,) of feature rows cat (n, F), num (n, N). Reads only; unknown ids read as zero."""
        return _score(self._inputs, self._answer, self.tables, cat, num)

    def knows(self, field: str, cat: Ids) -> NDArray[np.bool_]:
        """Whether there is a row for the (first) id that each row of cat (n, F) has in a categorical field. (n,)"""
        column = self.schema.layout.cat_names.index(field)
        group = next(g for g in self._inputs.groups if field in g.fields)
        known: NDArray[np.bool_] = self.tables[group.name].index.find(np.ascontiguousarray(cat[:, column])) != EMPTY
        return known

    def learn(self, batch: SampleBatch) -> LearnReport:
        """One step on ``batch``; follow-ups in it are passed over. A batch with a loss or gradient that is not
        finite, or beyond the spec's bounds, is refused whole: weights, statistics and tables stay as they were."""
        label, weight = batch.label, batch.weight
        with np.errstate(invalid="ignore"):
            usable = (label >= 0) & (label <= 1) & (weight > 0) & np.isfinite(weight)
        usable |= batch.kind == FOLLOW_UP
        refused = int(len(batch) - usable.sum())
        usable &= batch.kind != FOLLOW_UP
        left_out = 0
        if self._spec.negative_keep < 1:
            before_choice = int(usable.sum())
            usable &= chosen(batch, self._spec.negative_keep)
            left_out = before_choice - int(usable.sum())
        if not usable.all():
            batch = batch.take(usable)
            label, weight = batch.label, batch.weight
        size = len(batch)
        if not size:
            return LearnReport(0.0, 0, None, refused, 0, left_out)
        finite, bad = self._inputs.finite(batch.num)
        cat, num = _bucketed(self._inputs, self.network, batch.cat, finite), self._inputs.plain(finite)
        blocks = [self.tables[g.name].read(self._inputs.ids(g, cat), True) for g in self._inputs.groups]

        set_mode(self.network, training=True)
        before = self.dense.buffers.clone()
        # With negatives left out the stream has more clicks: ln w stands in for them while learning, and only then, so
        # the rest of the model (and what is served) is of the whole stream.
        shift = math.log(self._spec.negative_keep)
        wide = _wide(blocks, size, self._inputs.prior_logit - shift)
        logits = self._step.ahead(blocks, num)
        if self._spec.delayed_feedback == "fake_negative_weighted":
            p = torch.sigmoid(torch.from_numpy(logits + wide + np.float32(shift))).numpy()
            weight = weight * fake_negative_weights(batch.kind, label, p)
        y, w = (np.ascontiguousarray(a, np.float32) for a in (label, weight))
        losses, slope = np.empty(size, np.float32), np.empty(size, np.float32)  # slope: d loss / d logit, a sample
        loss = passes.logistic(logits, wide, y, w, losses, slope) / float(w.sum(dtype=np.float64))
        problem = self._unsound(loss)
        guard = self.guard.state()
        if problem is None and self.guard.exploded(losses, w, y > 0.5):
            problem, guard = "loss_jumped", self.guard.state()
        grads: list[Gradient] = []
        if problem is None:
            grads = self._step.back(slope / np.float32(size))
            problem = self._unsound_gradient(grads, size)
        if problem is not None:
            self.dense.buffers.copy_(before)
            self.guard.resume(guard)
            return LearnReport(loss, 0, problem, refused, bad, left_out)

        self.dense.step()
        if self.sample.add(finite[:, self._inputs.bucket_columns]):
            self.network.edges.copy_(torch.from_numpy(self.sample.edges(self._spec.buckets)))
        newest = int(batch.ts_ms.max())
        self.newest_ms = max(self.newest_ms, newest)
        now_min = self.newest_ms // _MINUTE_MS
        self._write(blocks, grads, slope, size, now_min)
        if now_min >= self._expired_min + max(_EXPIRE_MIN, round(self._spec.max_age_days * 60)):  # a 24th of the age
            self._expired_min = now_min
            for table in self.tables.values():
                table.expire(now_min)
        return LearnReport(loss, size, None, refused, bad, left_out)

    def _write(self, blocks: list[Block], grads: list[Gradient], slope: Floats, size: int, now_min: int) -> None:
        """The sparse step. Gradients are sums over samples (not means), so a row's step does not depend on how many
        other samples happened to be in the batch."""
        leaves = iter(grads)
        for group, block in zip(self._inputs.groups, blocks, strict=True):
            grad_wide = np.zeros(len(block.ids), np.float32)
            kernels.wide_spread(slope, block.inverse, grad_wide)
            grad_embedding = np.zeros((len(block.ids), group.width), np.float32)
            if group.width:
                leaf = next(leaves)
                factor = np.float32(size)
                kernels.spread(leaf.array, leaf.at, factor, block.inverse, group.starts, grad_embedding)
            self.tables[group.name].write(block, grad_embedding, grad_wide, now_min)

    def _unsound(self, loss: float) -> str | None:
        if not np.isfinite(loss):
            return "loss_not_finite"
        return "loss_exploded" if loss > self._spec.max_loss else None

    def _unsound_gradient(self, grads: list[Gradient], size: int) -> str | None:
        norms = [float(self.dense.gradient.norm())]
        norms += [g.norm * size**0.5 for g in grads]
        if not all(np.isfinite(n) for n in norms):
            return "gradient_not_finite"
        return "gradient_exploded" if max(norms) > self._spec.max_gradient else None

    # -- versions --------------------------------------------------------------------------------------------

    def changes(self) -> Image:
        """The dense tensors, and the rows touched or removed since the last call of this or :meth:`snapshot`."""
        return Image(self.dense.published(), {name: table.changes() for name, table in self.tables.items()})

    def snapshot(self) -> tuple[Image, dict[str, Array]]:
        """The whole state: what serves, and what only training needs. :meth:`resume` goes on from it bit for bit."""
        tables = {}
        training: dict[str, Array] = {f"dense/{n}": a for n, a in self.dense.private().items()}
        for name, table in self.tables.items():
            tables[name], private = table.state()
            training |= {f"table/{name}/{n}": a for n, a in private.items()}
        if len(self._inputs.bucket_columns):
            training |= {f"sample/{n}": a for n, a in self.sample.state().items()}
        training["guard"] = self.guard.state()
        training["clock"] = np.array([self.newest_ms, self._expired_min, self.seed], np.int64)
        return Image(self.dense.published(), tables), training

    def resume(self, image: Image, training: Mapping[str, Array]) -> None:
        """Takes over a snapshot of a model with this schema and spec; whatever was learnt before is gone.

        Raises:
            SnapshotError: the snapshot is of another model.
        """
        fresh = OnlineModel(self.schema, self.spec, self.seed)
        try:
            if set(image.dense) != set(fresh.dense.names) or set(image.tables) != set(fresh.tables):
                raise KeyError("other tensors")
            fresh.dense.resume(image.dense, _below("dense/", training))
            for name, table in fresh.tables.items():
                table.resume(image.tables[name], _below(f"table/{name}/", training))
            if len(self._inputs.bucket_columns):
                fresh.sample.resume(_below("sample/", training))
            if "guard" in training:  # older snapshots have none
                fresh.guard.resume(training["guard"])
            newest, expired, seed = (int(v) for v in training["clock"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise SnapshotError(
                f"the snapshot is not of a '{self._spec.model}' with this schema and spec ({error})",
                "start with an empty model folder, or with the settings it was made with",
            ) from None
        if seed != self.seed:  # first values of rows depend on it
            fresh = self._reseeded(fresh, seed)
        self.network, self.serving = fresh.network, fresh.serving
        self._step, self._answer = fresh._step, fresh._answer
        self.dense, self.tables, self.sample, self.guard = fresh.dense, fresh.tables, fresh.sample, fresh.guard
        self.seed, self.newest_ms, self._expired_min = seed, newest, expired

    def _reseeded(self, fresh: OnlineModel, seed: int) -> OnlineModel:
        for group in self._inputs.groups:
            fresh.tables[group.name].salt = np.uint64(_table_salt(group, seed))
        return fresh


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _table_salt(group: Group, seed: int) -> int:
    return int(salt("first values", group.name, str(seed)))


class ServingModel:
    """A model as a scorer holds it: no optimiser state, patched in place between two requests.

    Not locked: the caller sees to it that nothing is scored while :meth:`patch` runs.
    """

    def __init__(self, schema: Schema, spec: Mapping[str, Any]) -> None:
        full = read_spec(spec)
        self._inputs, self.network = _build(schema, full, 0)
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self._dense = tensors_of(self.network)
        self._answer = Answer(self._inputs, self.network)
        self.tables = {g.name: ServingTable(g.width, full.max_rows) for g in self._inputs.groups}

    @classmethod
    def of(cls, schema: Schema, spec: Mapping[str, Any], image: Image) -> ServingModel:
        """The model of a snapshot.

        Raises:
            SettingError: the spec is not one.
            SnapshotError: the image is not of a model with this schema and spec.
        """
        model = cls(schema, spec)
        if set(image.dense) != set(model._dense) or set(image.tables) != set(model.tables):
            raise SnapshotError("the image's tensors are not those of its spec", "use the schema it was learnt with")
        model.patch(image)
        return model

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(len(t) for t in self.tables.values())

    def patch(self, delta: Image) -> None:
        """Applies a delta: dense tensors whole, rows new, changed and removed.

        Raises:
            SnapshotError: it has a tensor that this model has not; nothing was changed.
        """
        for name, array in delta.dense.items():
            if name not in self._dense or tuple(self._dense[name].shape) != array.shape:
                raise SnapshotError(f"delta has a tensor '{name}' that the model has not", "resynchronise")
        if not set(delta.tables) <= set(self.tables):
            raise SnapshotError(f"delta has tables {sorted(delta.tables)}", "resynchronise from the newest snapshot")
        load_dense(self._dense, delta.dense)
        for name, rows in delta.tables.items():
            self.tables[name].patch(rows)

    def image(self) -> Image:
        """The state that is being served, for comparison with a snapshot."""
        dense = {n: t.detach().numpy().copy() for n, t in self._dense.items()}
        return Image(dense, {n: t.rows() for n, t in self.tables.items()})

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (n,) of feature rows cat (n, F), num (n, N). Reads only; unknown ids read as zero."""
        return _score(self._inputs, self._answer, self.tables, cat, num)
