# core
"""Heads: the probabilities of a schema's outcomes, beside that of the click.

Each outcome has tables and a network of its own, as the click has, and is told what the click's model thinks::

    z_b = base + lift t_b + f(pooled v of b, x_b) + sum_{u of b} w_u        q_b = sigmoid(z_b)
    slope_b = w_b (q_b - y_b)                     where y_b is known, else 0
    slope_b = w_b ((ones_b + zeros_b) q_b - ones_b)   where it is told by age (millrace/labels/tellings.py)

with the click's logit t_b, which no gradient of an outcome reaches: the click is learnt as if there were no outcomes,
and a rare outcome begins with the order that many clicks have taught. ``base`` follows the share of ones so far. An
outcome on clicks learns from clicked rows, and q_b is the probability given a click; ``p_b q_b`` is that of both.

Symbols: as in learner/ranker/model.py; K outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.network.models import Head, Network
from learner.network.models.delays import SIZE, Delays
from learner.ranker.inputs import Inputs
from learner.ranker.step import Gradient, Inference, dense_step, wide_part
from learner.tables.table import BatchIds, SparseTable
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import PAGE, SampleBatch
from millrace.labels import asks
from millrace.labels.tellings import kinds, told_weights
from millrace.versions.image import HEAD, below

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadStep:
    """What a step of learning writes to the tables whose names begin with ``head``; of n rows."""

    head: str
    blocks: list[BatchIds]
    grads: list[Gradient]
    slope: Floats  # (n,)
    timed: SampleBatch | None = None  # tellings that the model of the outcome's delays learns, as clicks


class HeadInference:
    """Logits of one outcome in evaluation mode. Reads only."""

    def __init__(self, inputs: Inputs, name: str, head: Head) -> None:
        self._inputs, self._name, self._head = inputs, name, head
        self._inference = Inference(inputs, head.body)

    def logits(self, tables: Mapping[str, Any], cat: Ids, num: Floats, given: Floats) -> Floats:
        """z (B,) of cat (B, F + buckets), num (B, N - buckets), and the click's logits ``given`` (B,)."""
        inputs, head = self._inputs, self._head
        blocks = [tables[self._name + g.name].read(inputs.ids(g, cat)) for g in inputs.groups]
        own = self._inference.logits(blocks, num) + wide_part(inputs, blocks, len(cat), head.base)
        z: Floats = own + np.float32(head.lift.item()) * given
        return z


def heads_of(inputs: Inputs, network: Network) -> list[HeadInference]:
    return [HeadInference(inputs, name, head) for name, head in zip(inputs.heads, network.heads.values(), strict=True)]


class OutcomeHeads:
    """The learning of all outcomes. Gradients go where ``p.grad`` points, statistics into buffers of ``network``.

    ``delays``: by outcome, the model of how many come before their first telling. Only training needs it.
    """

    def __init__(
        self,
        inputs: Inputs,
        network: Network,
        tables: Mapping[str, SparseTable],
        half: bool,
        outcomes: Sequence[OutcomeRule],
    ) -> None:
        self._inputs, self._tables = inputs, tables
        self._heads = list(network.heads.values())
        self._steps = [dense_step(inputs, head.body, half) for head in self._heads]
        self._weights = {one.name: torch.zeros(SIZE) for one in outcomes}
        self.delays = {one.name: Delays(self._weights[one.name], one.within_ms) for one in outcomes}

    def steps(self, batch: SampleBatch, cat: Ids, num: Floats, given: Floats, keep: float) -> list[HeadStep]:
        """One step for each outcome that some rows tell, without the tables' part. The others get gradients of zero.

        Args:
            cat, num: (B, F + buckets), (B, N - buckets) of the batch's rows.
            given: (B,) the click's logits.
            keep: the share of negatives that the batch has; the rows of the others weigh for them.
        """
        found = []
        told = batch.outcomes if batch.outcomes.shape[1] else np.full((len(batch), len(self._heads)), np.nan)
        for k, (head, step) in enumerate(zip(self._heads, self._steps, strict=True)):
            y = told[:, k].astype(np.float32)  # (B,)
            known = (np.abs(y) <= 2) & (batch.telling > 0) | (y >= 0) & (y <= 1)
            if not known.any():
                for parameter in head.parameters():
                    if parameter.grad is not None:
                        parameter.grad.zero_()
                continue
            rows = slice(None) if known.all() else np.flatnonzero(known)  # n of them
            y, t, n = y[rows], given[rows], int(known.sum())
            weight = batch.weight[rows]
            if keep < 1:
                weight = np.where((batch.label[rows] > 0) | (batch.kind[rows] >= PAGE), weight, weight / keep)
            telling = batch.telling[rows]
            first = (y >= 0) & (y <= 1)
            head.seen += torch.tensor([float(first.sum()), float(np.clip(y, -1, 1).sum())])
            head.seen.clamp_(min=1)
            ids, name = cat[rows], self._inputs.heads[k]
            blocks = [self._tables[name + g.name].read(self._inputs.ids(g, ids), True) for g in self._inputs.groups]
            own = step.forward(blocks, np.ascontiguousarray(num[rows]))
            own += wide_part(self._inputs, blocks, n, head.base)
            q = torch.sigmoid(torch.from_numpy(own + np.float32(head.lift.item()) * t)).numpy()
            slope, timed = (weight * (q - y)).astype(np.float32), None  # (n,)
            if telling.any():
                policy, delays = batch.policy[rows], self.delays[self._inputs.outcomes[k]]
                asking = asks(policy) & (telling > 0)
                early = np.full(n, 0.5, np.float32)
                if asking.any():
                    timed = replace(batch.take(rows), kind=kinds(y))
                    early, timed = delays.early(timed.position, timed.cat), timed.take(asking)
                a, b = told_weights(policy, telling, y, q, early)
                slope = (weight * ((a + b) * q - a)).astype(np.float32)
            grads = step.backward(slope / np.float32(len(batch)))
            assert head.lift.grad is not None
            head.lift.grad.fill_(float(slope @ t) / len(batch))
            found.append(HeadStep(name, blocks, grads, slope, timed))
        return found

    def learn_delays(self, step: HeadStep) -> None:
        """Call it when a step is written."""
        if step.timed is not None:
            self.delays[step.head.removesuffix(HEAD)].learn(step.timed)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """By outcome, the weights and the state of the model of its delays."""
        found: dict[str, NDArray[Any]] = {}
        for name, delays in self.delays.items():
            found |= {f"{name}/{n}": a for n, a in delays.snapshot().items()}
            found[f"{name}/weights"] = self._weights[name].numpy().copy()
        return found

    def resume(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`snapshot`. Outcomes that are not in it begin anew."""
        for name, delays in self.delays.items():
            if own := below(f"{name}/", state):
                delays.resume(own)
                self._weights[name].copy_(torch.from_numpy(np.array(own["weights"], np.float32)))
