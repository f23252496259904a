"""The dense network's parameters and buffers as flat vectors, and its optimiser.

Parameters are views of one vector, gradients of another, buffers (running statistics) of a third. So a step is one
fused kernel, soundness is one norm, and a refused batch is undone by one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8


class DenseState:
    """Flat views over ``network``, which must not be moved or re-made afterwards."""

    def __init__(self, network: nn.Module, method: str, rate: float) -> None:
        self.names = tensors_of(network)
        parameters = list(network.parameters())
        self.weights = _flatten(parameters)
        self.gradient = torch.zeros_like(self.weights)
        at = 0
        for p in parameters:
            p.grad = self.gradient[at : at + p.numel()].view_as(p)
            at += p.numel()
        self.buffers = _flatten(list(network.buffers()))
        self.method, self.rate = method, rate
        self.first = torch.zeros_like(self.weights) if method == "adam" else torch.zeros(0)
        self.second = torch.zeros_like(self.weights)
        self.steps = torch.zeros(())

    def clear(self) -> None:
        """Zeroes the gradient, before a backward pass."""
        self.gradient.zero_()

    def step(self) -> None:
        """Adam (Kingma and Ba 2015) or Adagrad (Duchi et al. 2011) on the whole vector."""
        self.steps += 1
        if self.method == "adam":
            torch._fused_adam_(
                [self.weights],
                [self.gradient],
                [self.first],
                [self.second],
                [],
                [self.steps],
                lr=self.rate,
                beta1=_ADAM_BETAS[0],
                beta2=_ADAM_BETAS[1],
                weight_decay=0.0,
                eps=_ADAM_EPSILON,
                amsgrad=False,
                maximize=False,
            )
        else:
            self.second.addcmul_(self.gradient, self.gradient)
            self.weights.addcdiv_(self.gradient, self.second.sqrt().add_(1e-7), value=-self.rate)

    def published(self) -> dict[str, NDArray[Any]]:
        """Every parameter and buffer by name, copied."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.names.items()}

    def private(self) -> dict[str, NDArray[Any]]:
        """The optimiser's state, copied."""
        return {
            "first": self.first.numpy().copy(),
            "second": self.second.numpy().copy(),
            "steps": self.steps.numpy().reshape(1).copy(),
        }

    def resume(self, published: dict[str, NDArray[Any]], private: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`published` and :meth:`private`."""
        load_dense(self.names, published)
        self.first.copy_(torch.from_numpy(private["first"].copy()))
        self.second.copy_(torch.from_numpy(private["second"].copy()))
        self.steps.fill_(float(np.asarray(private["steps"]).reshape(-1)[0]))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def load_dense(names: dict[str, Tensor], published: dict[str, NDArray[Any]]) -> None:
    """Copies published tensors into a network's parameters and buffers, in place."""
    with torch.no_grad():
        for name, array in published.items():
            names[name].copy_(torch.from_numpy(np.array(array)))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of which the tensors are views from now on."""
    vector = torch.cat([t.detach().reshape(-1) for t in tensors]) if tensors else torch.zeros(0)
    at = 0
    for tensor in tensors:
        tensor.data = vector[at : at + tensor.numel()].view_as(tensor)
        at += tensor.numel()
    return vector
