# core
"""Loss and gradients of one micro-batch of the retrieval head: softmax over sampled negatives, logQ corrected.

::

    u (B, D)       v (A, D), bias (A,)                    rows of users and items, summed up
      │               │ mean of the last clicks m (B, D)
      └──► q ◄────────┤
           │          │ first M of the A items: clicked or drawn; the others stand in histories only
           └── q v' ──┘──► logits (B, M) ──► loss ──► slope (B, M) ──► du, dv, dbias, dM

Symbols: B clicks, M distinct items among clicks and draws, A items with those of the histories, H clicks of a history,
D factors. The plain version is in tests/learner/retrieval/test_retrieval_step.py: torch's own gradients, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from learner.retrieval import retrievalkernels
from learner.retrieval.tower import GAIN

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClickPairs:
    """B clicks, and the candidate items, by their place among A, -1 where there is none."""

    target: NDArray[np.int32]  # (B,) the item clicked, below M
    user: NDArray[np.uint64]  # (B,) 0: unknown
    weight: Floats  # (B,)
    past: NDArray[np.int32]  # (B, H) items that the user has clicked, newest first
    known: NDArray[np.bool_]  # (B, H) which of them the page could have been made with
    times: NDArray[np.int64]  # (M,) how often an item stands among clicks and draws
    expected: NDArray[np.float64]  # (M,) how often on average: E

    @property
    def items(self) -> int:
        return len(self.times)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of ``sum_b w_b loss_b``; ``loss`` is the mean ``sum_b w_b loss_b / sum_b w_b``."""

    loss: float
    u: Floats  # (B, D)
    v: Floats  # (A, D)
    bias: Floats  # (A,)
    matrix: Floats  # (D, D)

    @property
    def norm(self) -> float:
        """The greatest of the gradients' norms; not finite if one of them is not."""
        parts = (self.u, self.v, self.bias, self.matrix)
        norms = [float(torch.linalg.vector_norm(torch.from_numpy(part))) for part in parts]
        return max(norms) if all(np.isfinite(n) for n in norms) else float("nan")


def gradients(u: Floats, v: Floats, bias: Floats, matrix: Floats, clicks: ClickPairs) -> Gradients:
    """Loss and gradients. The arguments stay unchanged.

    Args:
        u: sums of the users' rows, (B, D).
        v, bias: of the items, (A, D) and (A,).
        matrix: M, (D, D).
    """
    size, count = len(u), clicks.items
    mean, number = np.empty_like(u), np.empty(size, np.int32)
    retrievalkernels.means(v, clicks.past, clicks.known, mean, number)
    m, mapping = torch.from_numpy(mean), torch.from_numpy(matrix)
    q = torch.addmm(torch.from_numpy(u), m, mapping).add_(m, alpha=float(GAIN))

    drawn = torch.from_numpy(v[:count])
    slope = torch.mm(q, drawn.T).numpy()  # (B, M), in turn products, logits, probabilities, slopes
    shift = np.log(clicks.times / clicks.expected).astype(np.float32)
    own = -np.log(clicks.expected[clicks.target]).astype(np.float32)
    retrievalkernels.logits(slope, clicks.target, clicks.user, clicks.past, shift, own, bias)
    losses, total = np.empty(size, np.float32), np.empty(size, np.float32)
    retrievalkernels.below_top(slope, clicks.target, losses)  # losses: minus the own logit, from here on
    np.exp(slope, out=slope)
    np.sum(slope, axis=1, out=total)
    losses += np.log(total)
    retrievalkernels.slopes(slope, clicks.target, total, clicks.weight)
    loss = float(np.dot(clicks.weight.astype(np.float64), losses) / clicks.weight.sum(dtype=np.float64))

    slopes = torch.from_numpy(slope)
    dq = torch.mm(slopes, drawn)
    dv, dbias = np.zeros_like(v), np.zeros_like(bias)
    torch.mm(slopes.T, q, out=torch.from_numpy(dv[:count]))
    np.sum(slope, axis=0, out=dbias[:count])
    dmean = torch.mm(dq, mapping.T).add_(dq, alpha=float(GAIN)).numpy()
    retrievalkernels.means_back(dmean, clicks.past, clicks.known, number, dv)
    return Gradients(loss, dq.numpy(), dv, dbias, torch.mm(m.T, dq).numpy())
