"""The dense side of a step of learning: pooled embeddings and numbers through the network, and gradients back.

Two ways with the same result (to rounding): :class:`WrittenStep` where learner/byhand.py has the network's passes, and
:class:`AutogradStep` for every network.
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

from learner import kernels
from learner.byhand import Pass, Workspace, pass_of, scale_numbers
from learner.inputs import Inputs
from learner.models import Network
from learner.table import Block

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gradient:
    """d loss / d embeddings of one group: columns ``at`` to ``end`` of ``array`` (B, W). Of this batch only: the
    array is used again by the next."""

    array: Floats
    at: int
    end: int

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(torch.from_numpy(self.array)[:, self.at : self.end]))


class Step(Protocol):
    """One for each model: ``ahead``, and ``back`` at once after it or not at all. The network is in training mode."""

    def ahead(self, blocks: Sequence[Block], num: Floats) -> Floats:
        """The network's logits (B,); running statistics advance."""
        ...

    def back(self, slope: Floats) -> list[Gradient]:
        """Writes the network's gradients for d loss / d logit (B,); gives those of each group with embeddings."""
        ...


def step_of(inputs: Inputs, network: Network, half: bool = False) -> Step:
    """The faster of the two for this network. ``half``: products in bfloat16, where its passes are written out."""
    written = pass_of(network, half)
    return AutogradStep(inputs, network) if written is None else WrittenStep(inputs, network, written)


def pool(inputs: Inputs, blocks: Sequence[Block], out: Floats) -> None:
    """Embeddings of all groups side by side in the first columns of ``out`` (B, >= E)."""
    for (at, _), group, block in zip(inputs.spans, inputs.groups, blocks, strict=True):
        if group.width:
            kernels.pool(block.embedding, block.inverse, group.starts, out, at)


def embeddings(inputs: Inputs, blocks: Sequence[Block], size: int) -> list[Tensor]:
    """The same as a network's ``forward`` takes them: (B, F, D) of each group with embeddings."""
    out = np.empty((size, inputs.deep_columns), np.float32)
    pool(inputs, blocks, out)
    flat = torch.from_numpy(out)
    return [
        flat[:, at:end].view(size, len(group.fields), group.width)
        for (at, end), group in zip(inputs.spans, inputs.groups, strict=True)
        if group.width
    ]


class Answer:
    """The network's logits in evaluation mode. Reads only; several threads may ask at once."""

    def __init__(self, inputs: Inputs, network: Network) -> None:
        self.inputs, self.network = inputs, network
        self._written = pass_of(network)
        self._own = threading.local()

    def logits(self, blocks: Sequence[Block], num: Floats) -> Floats:
        """(B,)"""
        if self._written is None:
            set_mode(self.network, training=False)
            with torch.inference_mode():
                out: Floats = self.network(embeddings(self.inputs, blocks, len(num)), torch.from_numpy(num)).numpy()
            return out
        room: Workspace | None = getattr(self._own, "room", None)
        if room is None:
            room = self._own.room = Workspace()
        x = room.take("x", len(num), self.network.shape.flat)
        pool(self.inputs, blocks, x.numpy())
        if self.network.shape.numbers:
            scale_numbers(self.network, num, x.numpy(), self.inputs.deep_columns, False)
        return self._written.answer(x, room)


def set_mode(network: Network, training: bool) -> None:
    """Training or evaluation mode, where it is not the one already: to set it visits every module."""
    if network.training is not training:
        network.train(training)


class WrittenStep:
    def __init__(self, inputs: Inputs, network: Network, written: Pass) -> None:
        self.inputs, self.network, self.written = inputs, network, written
        self._room = Workspace()

    def ahead(self, blocks: Sequence[Block], num: Floats) -> Floats:
        x = self._room.take("x", len(num), self.network.shape.flat)
        pool(self.inputs, blocks, x.numpy())
        if self.network.shape.numbers:
            scale_numbers(self.network, num, x.numpy(), self.inputs.deep_columns, True)
        return self.written.ahead(x)

    def back(self, slope: Floats) -> list[Gradient]:
        array = self.written.back(slope, self.inputs.deep_columns).numpy()
        return [Gradient(array, at, end) for at, end in self.inputs.spans if end > at]


class AutogradStep:
    def __init__(self, inputs: Inputs, network: Network) -> None:
        self.inputs, self.network = inputs, network
        self._leaves: list[Tensor] = []
        self._logits = torch.empty(0)

    def ahead(self, blocks: Sequence[Block], num: Floats) -> Floats:
        parts = embeddings(self.inputs, blocks, len(num))
        self._leaves = [part.contiguous().requires_grad_(True) for part in parts]
        self._logits = self.network(self._leaves, torch.from_numpy(num))
        logits: Floats = self._logits.detach().numpy()
        return logits

    def back(self, slope: Floats) -> list[Gradient]:
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        self._logits.backward(torch.from_numpy(slope))  # type: ignore[no-untyped-call]
        found = []
        for leaf in self._leaves:
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            array = grad.flatten(1).contiguous().numpy()
            found.append(Gradient(array, 0, array.shape[1]))
        self._leaves, self._logits = [], torch.empty(0)
        return found
