"""Layers against numpy written from the formula, term by term."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from learner.network.models.norm import BatchNorm, BatchRenorm, InputNorm
from learner.network.models.products import GroupProducts, InnerProducts, factorisation, outer_product
from learner.network.models.wide_resnet import Residual

B, F, D = 7, 5, 3


def embeddings(fields: int = F, width: int = D, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(B, fields, width)).astype(np.float32)


def close(a: torch.Tensor, b: object) -> None:
    np.testing.assert_allclose(a.detach().numpy(), np.asarray(b), rtol=1e-5, atol=1e-5)


def test_factorisation_machine_is_the_sum_over_pairs() -> None:
    v = embeddings()
    expected = [sum(v[b, i] @ v[b, j] for i, j in combinations(range(F), 2)) for b in range(B)]
    close(factorisation(torch.from_numpy(v)), expected)


def test_inner_products_are_all_pairs_in_order() -> None:
    v = embeddings()
    expected = [[v[b, i] @ v[b, j] for i, j in combinations(range(F), 2)] for b in range(B)]
    close(InnerProducts(F)(torch.from_numpy(v)), expected)


def test_outer_product_is_that_of_the_superposition() -> None:
    v = embeddings()
    expected = [np.outer(v[b].sum(0), v[b].sum(0)).ravel() for b in range(B)]
    close(outer_product(torch.from_numpy(v)), expected)


def test_group_products_within_and_between_widths() -> None:
    u, v, w = embeddings(2, 4, 1), embeddings(3, 2, 2), embeddings(1, 5, 3)
    layer = GroupProducts([(2, 4), (3, 2), (1, 5)])
    uv, uw, vw = (p.detach().numpy() for p in layer.between)
    expected = []
    for b in range(B):
        row = [u[b, i] @ u[b, j] for i, j in combinations(range(2), 2)]
        row += [v[b, i] @ v[b, j] for i, j in combinations(range(3), 2)]
        row += [u[b, i] @ uv @ v[b, j] for i in range(2) for j in range(3)]
        row += [u[b, i] @ uw @ w[b, 0] for i in range(2)]
        row += [v[b, i] @ vw @ w[b, 0] for i in range(3)]
        expected.append(row)
    out = layer([torch.from_numpy(x) for x in (u, v, w)])
    assert out.shape == (B, 6 * 5 // 2)
    close(out, expected)


def test_group_products_of_one_width_are_inner_products() -> None:
    v = torch.from_numpy(embeddings())
    close(GroupProducts([(F, D)])([v]), InnerProducts(F)(v).numpy())


@pytest.mark.parametrize("placement", ["post", "pre", "inner"])
def test_residual_unit(placement: str) -> None:
    x = np.random.default_rng(4).normal(size=(32, 6)).astype(np.float32)
    unit = Residual(6, 4, "batch", placement, 0.1)
    w1, b1, w2, b2 = (t.detach().numpy() for t in (unit.w1.weight, unit.w1.bias, unit.w2.weight, unit.w2.bias))

    def norm(a: Any) -> Any:
        return (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)

    def inner(a: Any) -> Any:
        return np.maximum(a @ w1.T + b1, 0) @ w2.T + b2

    expected = {
        "post": np.maximum(norm(x + inner(x)), 0),
        "pre": x + inner(norm(x)),
        "inner": np.maximum(x + np.maximum(norm(x @ w1.T + b1), 0) @ w2.T + b2, 0),
    }[placement]
    close(unit.train()(torch.from_numpy(x)), expected)


@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm])
def test_running_statistics_start_as_an_average_and_end_as_a_moving_one(kind: type) -> None:
    layer = kind(2, 0.1).train()
    batches = np.random.default_rng(5).normal(3.0, 2.0, (40, 256, 2)).astype(np.float32)
    mean = np.zeros(2)
    for t, batch in enumerate(batches, 1):
        layer(torch.from_numpy(batch))
        mean += max(1 / t, 0.1) * (batch.mean(0) - mean)
        close(layer.mean, mean)
    assert np.abs(layer.var.numpy() - 4).max() < 0.5


def test_first_batch_alone_makes_serving_agree_with_training() -> None:
    """Without the averaged start, serving after one batch would divide by a variance that is 90% made up."""
    x = torch.from_numpy(np.random.default_rng(6).normal(1000.0, 300.0, (512, 2)).astype(np.float32))
    layer = BatchNorm(2, 0.01)
    trained = layer.train()(x)
    served = layer.eval()(x)
    assert (trained - served).abs().max() < 0.02


def test_renorm_is_batch_norm_while_young_and_running_norm_within_its_bounds() -> None:
    x = torch.from_numpy(np.random.default_rng(7).normal(size=(64, 2)).astype(np.float32))
    young = BatchRenorm(2, 0.01)
    close(young.train()(x), ((x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + 1e-5)).numpy())
    old = BatchRenorm(2, 0.01)
    old.seen.fill_(1000.0)
    old.mean.copy_(torch.tensor([0.3, -0.2]))
    old.var.copy_(torch.tensor([1.5, 0.7]))
    served = (x - old.mean) / torch.sqrt(old.var + 1e-5)
    close(old.train()(x), served.numpy())


@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm, InputNorm])
def test_one_row_can_be_learnt_from(kind: type) -> None:
    layer = kind(3, 0.01).train()
    out = layer(torch.tensor([[1.0, -2.0, 1e6]]))
    assert torch.isfinite(out).all()
    assert torch.isfinite(layer.var).all()


def test_input_norm_is_the_same_when_learning_and_serving_and_bounded() -> None:
    layer = InputNorm(2, 0.01)
    x = torch.from_numpy(np.random.default_rng(8).normal(50.0, 9.0, (256, 2)).astype(np.float32))
    learning = layer.train()(x)
    assert torch.equal(learning, layer.eval()(x))
    close(learning.mean(0), [0, 0])
    assert layer(torch.full((1, 2), 1e30)).max() == 10


def test_evaluation_writes_nothing() -> None:
    for layer in (BatchNorm(2, 0.1), BatchRenorm(2, 0.1), InputNorm(2, 0.1)):
        layer.train()(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        before = [b.clone() for b in layer.buffers()]
        layer.eval()(torch.full((64, 2), 9.0))
        assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))
