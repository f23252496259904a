# core
"""The dense network's parameters and buffers as flat vectors, its optimiser, and the average of it that serves.

Parameters are views of one vector, gradients of another, buffers (running statistics) of a third. So a step is one
fused kernel, the check of the gradient is one norm, and one copy undoes a refused batch.

Traffic sets the size of micro-batches: a page when it is slow, or a lone click. A step follows the mean over its batch,
so a step for each would weigh a lone click like a whole page of exposures. Therefore gradients are summed over
``step_rows`` rows before a step. Sparse rows learn at once, from sums.

An exponential average of the trained weights predicts and is published (Polyak and Juditsky 1992; in the form of Kingma
and Ba 2015, section 7.2): it keeps out the noise of the newest steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8


@contextmanager
def threads(n: int) -> Iterator[None]:
    """PyTorch computes in ``n`` threads within. Sums, and so all results, depend on how threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def role_threads() -> int:
    """The threads of the learner's role. The other half of the machine belongs to the roles beside it."""
    return max(1, (os.cpu_count() or 2) // 2)


class DenseState:
    """Flat views over ``network`` and ``serving``, two equal networks that must not be moved or re-made afterwards.
    ``serving`` has the average of about the last ``1 / (1 - averaging)`` steps, and the same buffers. With an
    ``averaging`` of 0 the newest weights serve, and ``serving`` may be the network itself."""

    def __init__(
        self, network: nn.Module, serving: nn.Module, method: str, rate: float, averaging: float, step_rows: int
    ) -> None:
        self.averaging, self.step_rows = averaging, step_rows
        parameters = list(network.parameters())
        self.weights = _flatten(parameters)
        self.gradient = torch.zeros_like(self.weights)
        at = 0
        for p in parameters:
            p.grad = self.gradient[at : at + p.numel()].view_as(p)
            at += p.numel()
        self.buffers = _flatten(list(network.buffers()))
        self.average = self.weights
        if averaging:
            self.average = _flatten(list(serving.parameters()))
            self.average.copy_(self.weights)
            for mine, theirs in zip(network.buffers(), serving.buffers(), strict=True):
                theirs.data = mine.data
        self.names = tensors_of(serving if averaging else network)
        self.method, self.rate = method, rate
        self.first = torch.zeros_like(self.weights) if method == "adam" else torch.zeros(0)
        self.second = torch.zeros_like(self.weights)
        self.steps = torch.zeros(())
        self.total = torch.zeros_like(self.weights)  # sum of the gradients of the rows that no step has used
        self.rows = 0

    def learn(self, rows: int, again: int = 0) -> None:
        """Adds :attr:`gradient`, the mean over ``rows`` rows. Steps after ``step_rows`` of them, without the ``again``
        that teach no click: a step is of as many clicks and exposures as without outcomes."""
        if not self.rows and not again and rows >= self.step_rows:
            self._step()
            return
        self.total.add_(self.gradient, alpha=rows)
        self.rows += max(1, rows - again)
        if self.rows >= self.step_rows:
            torch.div(self.total, self.rows, out=self.gradient)
            self.total.zero_()
            self.rows = 0
            self._step()

    def _step(self) -> None:
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
        if self.averaging:
            # A short memory at first (of a tenth of the steps so far), so that neither the arbitrary start nor the
            # first, fast learning lingers.
            self.average.lerp_(self.weights, max(1 - self.averaging, 10 / (9 + float(self.steps))))

    def changes(self) -> dict[str, NDArray[Any]]:
        """Every serving parameter and buffer by name, copied: a step moves all of them."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.names.items()}

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """What serves, by name, and what only training needs: the weights in training and the optimiser's state."""
        training = {
            "weights": self.weights.numpy().copy(),
            "first": self.first.numpy().copy(),
            "second": self.second.numpy().copy(),
            "steps": self.steps.numpy().reshape(1).copy(),
            "total": self.total.numpy().copy(),
            "rows": np.array([self.rows], np.int64),
        }
        return self.changes(), training

    def resume(self, serving: dict[str, NDArray[Any]], training: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`snapshot`. Raises KeyError where an array is missing, or the network has no tensor of
        that name, and RuntimeError where an array has another shape than its tensor."""
        load_dense(self.names, serving)
        self.weights.copy_(torch.from_numpy(training["weights"].copy()))
        self.first.copy_(torch.from_numpy(training["first"].copy()))
        self.second.copy_(torch.from_numpy(training["second"].copy()))
        self.steps.fill_(float(np.asarray(training["steps"]).reshape(-1)[0]))
        self.total.copy_(torch.from_numpy(training["total"].copy()))
        self.rows = int(training["rows"][0])


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def load_dense(names: dict[str, Tensor], serving: dict[str, NDArray[Any]]) -> None:
    with torch.no_grad():
        for name, array in serving.items():
            names[name].copy_(torch.from_numpy(np.array(array)))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    vector = torch.cat([t.detach().reshape(-1) for t in tensors]) if tensors else torch.zeros(0)
    at = 0
    for tensor in tensors:
        tensor.data = vector[at : at + tensor.numel()].view_as(tensor)
        at += tensor.numel()
    return vector
