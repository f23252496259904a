# core
"""The dense side of a step of learning: pooled embeddings and numbers through the network, and gradients back.

Two implementations have the same result (to rounding): :class:`WrittenStep`, where learner/network/backward.py writes
out the network's passes, and :class:`AutogradStep`, for every network.

Symbols: B samples; F fields of a group and D their embedding width; E the embedding columns of all groups side by side
(the sum of their F D); N numbers; I = E + N input columns of the network; U distinct ids of a batch in one table.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.network.backward import Workspace, WrittenPass, scale_numbers, written_pass
from learner.network.models import Network
from learner.ranker import attended
from learner.ranker.attended import Slopes
from learner.ranker.inputs import Inputs
from learner.tables import table_kernels
from learner.tables.table import BatchIds

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gradient:
    """d loss / d embeddings of one group: columns ``at`` to ``end`` of ``array`` (B, >= E), until the next batch."""

    array: Floats
    at: int
    end: int
    attended: tuple[Slopes, ...] = ()  # of its fields that are pooled by attention

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(torch.from_numpy(self.array)[:, self.at : self.end]))


def gradient(
    inputs: Inputs, network: Network, blocks: Sequence[BatchIds], group: int, array: Floats, at: int, end: int
) -> Gradient:
    """The gradient of a group, with that of its fields that are pooled by attention."""
    for one in (c for c in inputs.contents if c.group == group):
        text, item = (at + column - inputs.spans[group][0] for column in (one.text, one.item))
        array[:, text : text + one.width] += array[:, item : item + one.width]
    return Gradient(array, at, end, attended.backward(inputs, network, blocks, group, array, at))


class Forward(Protocol):
    def infer(self, x: Tensor, room: Workspace) -> Floats:
        """Logits (n,) of x (n, I), the network's input. Writes to ``room`` alone."""
        ...


class DenseStep(Protocol):
    """The network's half of a step of learning. A model has one and calls it one time a batch. :meth:`backward` follows
    its :meth:`forward` at once or not at all (a refused batch). The caller has set the network to training mode. Likely
    mistake: to keep what :meth:`backward` returned beyond the next batch."""

    def forward(self, blocks: Sequence[BatchIds], num: Floats) -> Floats:
        """The network's logits (B,) of each group's ``blocks`` and num (B, N). Running statistics advance."""
        ...

    def backward(self, slope: Floats) -> list[Gradient]:
        """Writes the network's gradients for ``slope`` = d loss / d logit (B,), where ``p.grad`` points. Returns d loss
        / d embeddings of each group that has embeddings, in the groups' order."""
        ...


def dense_step(inputs: Inputs, network: Network, half: bool = False) -> DenseStep:
    """The faster of the two for this network. ``half``: matrix products in bfloat16, in a written-out pass."""
    written = written_pass(network, half)
    return AutogradStep(inputs, network) if written is None else WrittenStep(inputs, network, written)


def pool(inputs: Inputs, network: Network, blocks: Sequence[BatchIds], out: Floats) -> None:
    """Embeddings of all groups side by side in the first columns of ``out`` (B, >= E)."""
    for (at, _), group, block in zip(inputs.spans, inputs.groups, blocks, strict=True):
        if group.width:
            table_kernels.pool(block.embedding, block.inverse, group.meant, group.texts, out, at)
    for one in inputs.contents:
        out[:, one.item : one.item + one.width] += out[:, one.text : one.text + one.width]
    attended.pool(inputs, network, blocks, out)


def embeddings(inputs: Inputs, network: Network, blocks: Sequence[BatchIds], size: int) -> list[Tensor]:
    """The same as a network's ``forward`` takes them: (B, F, D) of each group with embeddings. ``size`` is B."""
    out = np.empty((size, inputs.deep_columns), np.float32)  # (B, E)
    pool(inputs, network, blocks, out)
    flat = torch.from_numpy(out)
    return [
        flat[:, at:end].view(size, len(group.fields), group.width)  # (B, F, D)
        for (at, end), group in zip(inputs.spans, inputs.groups, strict=True)
        if group.width
    ]


class Inference:
    """The network's logits in evaluation mode. Reads only; several threads may call it at once.

    Args:
        own: in ``own.room``, the working memory of each thread, where it is shared.
        forward: computes the logits; None: as in learning.
    """

    def __init__(
        self, inputs: Inputs, network: Network, own: threading.local | None = None, forward: Forward | None = None
    ) -> None:
        self.inputs, self.network = inputs, network
        self._written = forward or written_pass(network)
        self._own = own or threading.local()

    def logits(self, blocks: Sequence[BatchIds], num: Floats) -> Floats:
        """Logits (B,) of each group's ``blocks`` and num (B, N)."""
        if self._written is None:
            set_mode(self.network, training=False)
            with torch.inference_mode():
                out: Floats = self.network(
                    embeddings(self.inputs, self.network, blocks, len(num)), torch.from_numpy(num)
                ).numpy()
            return out
        room: Workspace | None = getattr(self._own, "room", None)
        if room is None:
            room = self._own.room = Workspace()
        x = room.take("x", len(num), self.network.shape.flat)  # (B, I)
        pool(self.inputs, self.network, blocks, x.numpy())
        if self.network.shape.numbers:
            scale_numbers(self.network, num, x.numpy(), self.inputs.deep_columns, False)
        return self._written.infer(x, room)


def wide_part(inputs: Inputs, blocks: Sequence[BatchIds], size: int, base: float) -> Floats:
    """The wide part, ``base + sum_u w_u`` over the ids u of each sample. (B,)"""
    wide = np.full(size, base, np.float32)  # (B,)
    for group, block in zip(inputs.groups, blocks, strict=True):
        table_kernels.wide_sum(block.wide, block.inverse, group.lent, wide)  # (U,) at (B, C) into (B,)
    return wide


def set_mode(network: Network, training: bool) -> None:
    """Sets training or evaluation mode, if the network is in the other: setting it visits every module."""
    if network.training is not training:
        network.train(training)


class WrittenStep:
    def __init__(self, inputs: Inputs, network: Network, written: WrittenPass) -> None:
        self.inputs, self.network, self.written = inputs, network, written
        self._room = Workspace()
        self._blocks: Sequence[BatchIds] = ()

    def forward(self, blocks: Sequence[BatchIds], num: Floats) -> Floats:
        self._blocks = blocks
        x = self._room.take("x", len(num), self.network.shape.flat)  # (B, I)
        pool(self.inputs, self.network, blocks, x.numpy())
        if self.network.shape.numbers:
            scale_numbers(self.network, num, x.numpy(), self.inputs.deep_columns, True)
        return self.written.forward(x)

    def backward(self, slope: Floats) -> list[Gradient]:
        array = self.written.backward(slope, self.inputs.deep_columns).numpy()  # (B, >= E)
        spans = enumerate(self.inputs.spans)
        return [
            gradient(self.inputs, self.network, self._blocks, k, array, at, end) for k, (at, end) in spans if end > at
        ]


class AutogradStep:
    def __init__(self, inputs: Inputs, network: Network) -> None:
        self.inputs, self.network = inputs, network
        self._leaves: list[Tensor] = []
        self._logits = torch.empty(0)
        self._blocks: Sequence[BatchIds] = ()

    def forward(self, blocks: Sequence[BatchIds], num: Floats) -> Floats:
        self._blocks = blocks
        parts = embeddings(self.inputs, self.network, blocks, len(num))  # (B, F, D) each
        self._leaves = [part.contiguous().requires_grad_(True) for part in parts]
        self._logits = self.network(self._leaves, torch.from_numpy(num))  # (B,)
        logits: Floats = self._logits.detach().numpy()
        return logits

    def backward(self, slope: Floats) -> list[Gradient]:
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        self._logits.backward(torch.from_numpy(slope))  # type: ignore[no-untyped-call]
        found = []
        wide = [k for k, (at, end) in enumerate(self.inputs.spans) if end > at]
        for k, leaf in zip(wide, self._leaves, strict=True):
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            array = grad.flatten(1).contiguous().numpy()  # (B, F D)
            found.append(gradient(self.inputs, self.network, self._blocks, k, array, 0, array.shape[1]))
        self._leaves, self._logits = [], torch.empty(0)
        return found
