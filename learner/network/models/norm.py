# core
"""Normalisation under a moving stream: batch norm, batch renormalisation, and the running scaling of inputs.

The statistics of each start as a cumulative average and become an exponential one (momentum ``max(1 / t, m)``). So the
first batches of a stream neither explode nor leave the statistics at their arbitrary start. Serving normalises with the
running statistics; they are buffers, published with the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL_BATCH = 16
"""With fewer rows, a batch's own mean and variance are unreliable, so running statistics replace them."""

EPSILON = 1e-5

BOUND = 10.0
"""Numbers are clipped at this many standard deviations from their mean."""


class Running(nn.Module):
    """Running mean and variance of D columns. ``seen`` counts batches."""

    mean: Tensor
    var: Tensor
    seen: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("seen", torch.zeros(1))

    def advance(self, rows: int) -> float:
        """Counts a batch of ``rows`` rows (fewer than 256 count in part). Returns the weight of its statistics."""
        share = min(rows / 256.0, 1.0)
        self.seen += share
        # The variance of a few rows may be nearly 0. The start values (0, 1) then stay in the average.
        start = SMALL_BATCH / 256.0 if rows < SMALL_BATCH else 0.0
        return max(share / (float(self.seen) + start), self.momentum * share)

    @torch.no_grad()
    def absorb(self, x: Tensor) -> None:
        """Takes a batch (B, D) into the statistics, as the mean and variance of a mixture of old and new."""
        if not len(x):
            return
        mean = x.mean(0)
        self.mix(len(x), mean, ((x - mean) ** 2).mean(0))

    @torch.no_grad()
    def mix(self, rows: int, mean: Tensor, var: Tensor) -> None:
        """:meth:`absorb` with the mean and variance (D,) of a batch of ``rows`` rows."""
        weight = self.advance(rows)
        shift = mean - self.mean
        self.var.mul_(1 - weight).add_(weight * var + weight * (1 - weight) * shift**2)
        self.mean.add_(weight * shift)


class InputNorm(Running):
    """Numbers as the network sees them: ``clip((x - mean) / sqrt(var + eps), -10, 10)`` with running statistics.

    Training uses the running statistics too (inputs have no gradient that could make them explode). So a row looks the
    same in training and in serving.

    Attributes:
        one_event: (D,) by how much one event can move each number, 0 where unknown: its least deviation.
            In a young stream nearly all counts are 0, and so is their deviation. Without this, the first click would
            put its item ten deviations from all else, and a network that never saw the like would score it at random.
    """

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, momentum)
        self.one_event = torch.zeros(width)  # of the schema, not of what was seen: it is not published

    @torch.no_grad()
    def mix(self, rows: int, mean: Tensor, var: Tensor) -> None:
        super().mix(rows, mean, torch.maximum(var, self.one_event**2))

    def forward(self, x: Tensor) -> Tensor:  # (B, N) -> (B, N)
        if self.training:
            self.absorb(x)
        return ((x - self.mean) * torch.rsqrt(self.var + EPSILON)).clamp_(-BOUND, BOUND)


class BatchNorm(Running):
    """``y = gamma (x - mean_B) / sqrt(var_B + eps) + beta`` (Ioffe and Szegedy 2015), per batch when training."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, momentum)
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, D)
        own = self.training and len(x) >= SMALL_BATCH
        weight = self.advance(len(x)) if own else 0.0
        if self.training and not own:
            self.absorb(x.detach())
        return functional.batch_norm(x, self.mean, self.var, self.gamma, self.beta, own, weight, EPSILON)


class BatchRenorm(BatchNorm):
    """Batch renormalisation (Ioffe 2017, arXiv 1702.03275): training agrees with serving::

        y = gamma ((x - mean_B) / sd_B * r + d) + beta
        r = clip(sd_B / sd, 1 / r_max, r_max),  d = clip((mean_B - mean) / sd, -d_max, d_max)   (no gradient)

    ``r_max`` goes from 1 to 3 and ``d_max`` from 0 to 5 as batches are seen: plain batch norm at first.
    """

    def bounds(self) -> tuple[float, float]:
        age = min(float(self.seen) / 500.0, 1.0)
        return 1 + 2 * age, 5 * age

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, D)
        if not self.training or len(x) < SMALL_BATCH:
            if self.training:
                self.absorb(x.detach())
            return functional.batch_norm(x, self.mean, self.var, self.gamma, self.beta, False, 0.0, EPSILON)
        with torch.no_grad():
            r_max, d_max = self.bounds()
            sd = torch.sqrt(self.var + EPSILON)
            var_batch, mean_batch = torch.var_mean(x, 0, correction=0)
            r = (torch.sqrt(var_batch + EPSILON) / sd).clamp_(1 / r_max, r_max)
            d = ((mean_batch - self.mean) / sd).clamp_(-d_max, d_max)
        plain = functional.batch_norm(x, None, None, None, None, True, 0.0, EPSILON)
        self.absorb(x.detach())
        return (plain * r + d) * self.gamma + self.beta


def make_norm(kind: str, width: int, momentum: float) -> nn.Module:
    """The normalisation that ``kind`` names: "batch", "renorm", "layer" or "none"."""
    match kind:
        case "batch":
            return BatchNorm(width, momentum)
        case "renorm":
            return BatchRenorm(width, momentum)
        case "layer":
            return nn.LayerNorm(width)
        case _:
            return nn.Identity()
