"""Loss and gradients of a micro-batch against torch's own gradients of the loss written out, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner.retrieval.retrievalstep import ClickPairs, Gradients, gradients
from learner.retrieval.tower import GAIN
from tests.learner.retrieval_scene import plain_loss

D, HISTORY = 5, 4


def case(seed: int, size: int = 7, drawn: int = 9, more: int = 6) -> dict[str, Any]:
    """Clicks of few users, so that some share one; some users are unknown, some histories empty, some past items are
    among the M, and one is the click's own."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, drawn, size).astype(np.int32)
    past = rng.integers(-1, drawn + more, (size, HISTORY)).astype(np.int32)
    past[0] = -1
    past[1, 0] = target[1]
    return {
        "u": rng.normal(size=(size, D)).astype(np.float32),
        "v": rng.normal(size=(drawn + more, D)).astype(np.float32),
        "bias": rng.normal(size=drawn + more).astype(np.float32),
        "matrix": rng.normal(size=(D, D)).astype(np.float32) * np.float32(0.3),
        "clicks": ClickPairs(
            target,
            rng.integers(0, 4, size).astype(np.uint64),
            rng.uniform(0.1, 3, size).astype(np.float32),
            past,
            rng.random((size, HISTORY)) < 0.7,
            rng.integers(1, 5, drawn),
            rng.uniform(0.01, 6, drawn),
        ),
    }


def found(made: dict[str, Any]) -> Gradients:
    return gradients(**made)


def plain(made: dict[str, Any]) -> tuple[float, list[np.ndarray[Any, Any]]]:
    leaves = [torch.tensor(made[n].astype(np.float64), requires_grad=True) for n in ("u", "v", "bias", "matrix")]
    u, v, bias, matrix = leaves
    clicks: ClickPairs = made["clicks"]
    queries = []
    for b in range(len(u)):
        known = [j for j, k in zip(clicks.past[b].tolist(), clicks.known[b].tolist(), strict=True) if k and j >= 0]
        m = v[known].mean(dim=0) if known else torch.zeros(D, dtype=torch.float64)
        queries.append(u[b] + float(GAIN) * m + m @ matrix)
    total = plain_loss(
        torch.stack(queries),
        v,
        bias,
        clicks.target.tolist(),
        clicks.user.tolist(),
        clicks.weight.tolist(),
        [[j for j in row if j >= 0] for row in clicks.past.tolist()],
        clicks.times.tolist(),
        clicks.expected.tolist(),
    )
    total.backward()  # type: ignore[no-untyped-call]
    loss = float(total.detach()) / float(clicks.weight.sum(dtype=np.float64))
    return loss, [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("seed", range(20))
def test_loss_and_gradients_are_those_of_the_loss_written_out(seed: int) -> None:
    made = case(seed)
    own, (loss, wanted) = found(made), plain(made)
    assert own.loss == pytest.approx(loss, rel=1e-5)
    for name, mine, theirs in zip(
        ("u", "v", "bias", "matrix"), (own.u, own.v, own.bias, own.matrix), wanted, strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5, err_msg=name)


def test_nothing_that_is_passed_in_is_written_to() -> None:
    made = case(3)
    before = {n: a.copy() for n, a in made.items() if n != "clicks"}
    found(made)
    assert all((made[n] == a).all() for n, a in before.items())


def test_what_a_user_clicked_is_no_negative() -> None:
    """Neither what the history has, nor the user's other clicks; an unknown user has neither."""
    made = case(5, size=3, drawn=3, more=0)
    clicks: ClickPairs = made["clicks"]
    clicks.target[:], clicks.past[:], clicks.known[:] = [0, 1, 2], -1, False
    clicks.user[:] = [7, 7, 0]
    clicks.past[0, 2] = 2
    assert not found(made).u[0].any(), "of three items all were clicked by this user: nothing to learn"
    assert found(made).u[1].any()
    clicks.past[0, 2] = -1
    assert found(made).u[0].any()
    clicks.user[:] = 0
    clicks.past[0] = [1, 2, -1, -1]
    assert not found(made).u[0].any()


def test_numbers_that_are_not_finite_show_in_loss_or_norm() -> None:
    for name in ("u", "v", "bias", "matrix"):
        for value in (np.nan, np.inf):
            made = case(1)
            made["clicks"].known[:, :] = True
            made[name][:] = value
            own = found(made)
            assert not (np.isfinite(own.loss) and np.isfinite(own.norm)), (name, value)


def test_the_norm_is_the_greatest_of_the_parts() -> None:
    own = found(case(2))
    parts = (own.u, own.v, own.bias, own.matrix)
    assert own.norm == pytest.approx(max(float(np.linalg.norm(part)) for part in parts), rel=1e-5)
