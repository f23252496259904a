# core
"""A plain ``torch.nn.Module`` as a model of one's own, its optimiser's state included.

::

    MILLRACE_MODEL=learner.custom.adapters.torchmodule:HashedMLP  MILLRACE_MODEL_SPEC='{"hidden": 64, "rate": 0.003}'

For a module of your own, derive from :class:`TorchModel` and write :meth:`~TorchModel.build`, as :class:`HashedMLP`
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.custom.ownclass import unknown_entries
from learner.ranker.model import LearnReport
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array, below


class TorchModel:
    """:class:`~learner.ranker.interfaces.CustomModel` over a module that :meth:`build` makes, trained with Adam on the
    log loss, a step a batch.

    Args:
        spec: ``rate`` of the optimiser, and the other :attr:`entries`.
        seed: of the first weights, and with the number of the step of the module's draws while it learns (dropout).
    """

    entries: ClassVar[dict[str, Any]] = {"rate": 0.002}
    """The spec's entries, and their defaults."""

    def __init__(self, schema: Schema, spec: dict[str, Any], seed: int) -> None:
        unknown_entries(spec, self.entries)
        chosen = {**self.entries, **spec}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = self.build(schema, chosen)
        self.rate: float = chosen["rate"]
        self.seed, self.steps = seed, 0

    def build(self, schema: Schema, spec: Mapping[str, Any]) -> nn.Module:
        """The module: forward(cat (B, F) int64, num (B, N) float32) gives logits (B,). The constructor calls it. In
        evaluation mode its forward must write nothing: batch norm and dropout see to that themselves."""
        raise NotImplementedError

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        self.module.eval()
        with torch.no_grad():
            p: NDArray[np.float32] = torch.sigmoid(self.module(*_tensors(cat, num))).numpy()
        return p

    def learn(self, batch: SampleBatch) -> LearnReport:
        optimiser = self.optimiser  # before the forward: to make it writes to the weights
        self.module.train()
        y, w = torch.tensor(batch.label), torch.tensor(batch.weight)  # (B,), (B,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed + self.steps) % 2**63)
            t = self.module(*_tensors(batch.cat, batch.num))  # (B,)
        losses = nn.functional.binary_cross_entropy_with_logits(t, y, reduction="none")  # (B,)
        optimiser.zero_grad()
        loss: Any = (losses * w).mean()
        loss.backward()
        optimiser.step()
        self.steps += 1
        return LearnReport(float(losses.detach().mean()), len(batch))

    def snapshot(self) -> dict[str, Array]:
        """Copies the tensors, for ``Tensor.numpy()`` alone would share memory."""
        arrays = {f"module/{n}": t.detach().numpy().copy() for n, t in self.module.state_dict().items()}
        arrays["training/steps"] = np.array([self.steps], np.int64)
        for parameter, state in self.optimiser.state_dict()["state"].items():
            arrays |= {f"training/{parameter}/{n}": t.numpy().copy() for n, t in state.items()}
        return arrays

    def resume(self, arrays: Mapping[str, Array]) -> None:
        self.module.load_state_dict({n: torch.from_numpy(a) for n, a in below("module/", arrays).items()})
        own = below("training/", arrays)
        if not own:  # to score only
            return
        state_of_all = self.optimiser.state_dict()
        for parameter, state in state_of_all["state"].items():
            for name in state:
                state[name] = torch.from_numpy(own[f"{parameter}/{name}"])
        self.optimiser.load_state_dict(state_of_all)
        self.steps = int(own["steps"][0])

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Made at its first use: a scorer, which makes an object a version, needs none. It has taken a first step of
        rate 0 without gradients. Most optimisers make their state at the first step, and a snapshot must have the same
        arrays from the beginning."""
        optimiser = torch.optim.Adam(self.module.parameters(), lr=0.0)
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        optimiser.zero_grad()
        for group in optimiser.param_groups:
            group["lr"] = self.rate
        return optimiser


class HashedMLP(TorchModel):
    """Embeddings of hashed ids, squashed numbers, one hidden layer."""

    entries: ClassVar[dict[str, Any]] = {"rate": 0.002, "hidden": 32, "width": 8, "buckets": 1 << 14}

    def build(self, schema: Schema, spec: Mapping[str, Any]) -> nn.Module:
        return _HashedNetwork(schema, spec["hidden"], spec["width"], spec["buckets"])


class _HashedNetwork(nn.Module):
    """Symbols: F columns of cat, N numbers, D embedding width."""

    def __init__(self, schema: Schema, hidden: int, width: int, buckets: int) -> None:
        super().__init__()
        layout = schema.layout
        self.buckets = buckets
        first = 0.05 * torch.randn(buckets + 1, width)
        first[0] = 0
        embedding: Any = nn.Embedding.from_pretrained  # untyped
        self.embedding: nn.Embedding = embedding(first, freeze=False, padding_idx=0)
        self.hidden = nn.Linear(layout.F * width + layout.N, hidden)
        self.out = nn.Linear(hidden, 1)
        rate = min(max(schema.windows.prior_rate, 0.001), 0.999)
        nn.init.zeros_(self.out.weight)  # so a young model predicts the schema's prior rate, not one half
        nn.init.constant_(self.out.bias, float(np.log(rate / (1 - rate))))

    def forward(self, cat: Tensor, num: Tensor) -> Tensor:
        own = torch.where(cat == 0, 0, cat % self.buckets + 1)  # (B, F): row 0 is of missing ids, and stays zero
        v = self.embedding(own).flatten(1)  # (B, F D)
        x = torch.copysign(torch.log1p(num.abs()), num)  # (B, N)
        t: Tensor = self.out(self.hidden(torch.cat([v, x], 1)).relu())  # (B, 1)
        return t.squeeze(1)


def _tensors(cat: NDArray[np.int64], num: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    return torch.tensor(cat), torch.tensor(num)
