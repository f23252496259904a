"""Layers against those of DeepCTR-Torch and torch-rechub with the same weights, where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from learner.network.models.base import Deep
from learner.network.models.norm import BatchNorm
from learner.network.models.products import InnerProducts, factorisation, outer_product
from learner.network.models.spec import Spec

B, F, D = 64, 5, 4


class _NoLookUp(threading.Thread):
    """DeepCTR-Torch asks PyPI for its newest version in a thread when imported; that one is never started."""

    def start(self) -> None:
        target = getattr(self, "_target", None)
        if not getattr(target, "__module__", "").startswith("deepctr_torch"):
            super().start()


def peer(package: str, module: str) -> Any:
    """A module of another library, or a skip. It warns of its own Python when imported: no concern of ours."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra 'bench')")
    with warnings.catch_warnings(), mock.patch("threading.Thread", _NoLookUp):
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{package}.{module}")


@pytest.fixture
def v() -> torch.Tensor:
    values = np.random.default_rng(0).normal(size=(B, F, D)).astype(np.float32)
    return torch.from_numpy(values)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def deep(norm: str = "none", hidden: tuple[int, ...] = (16, 8)) -> Deep:
    torch.manual_seed(1)
    return Deep(F * D, Spec(hidden=hidden), norm)


def parts(layer: Deep, kind: type[nn.Module]) -> list[Any]:
    return [m for m in layer.layers if isinstance(m, kind)]


def test_the_look_up_is_not_started() -> None:
    pytest.importorskip("requests", reason="requests, which DeepCTR-Torch imports, is not installed (extra 'bench')")
    with mock.patch("requests.get", side_effect=AssertionError("asked PyPI")) as get:
        peer("deepctr_torch", "layers.interaction")
        assert not [t for t in threading.enumerate() if t.name.endswith("(check)")]
    get.assert_not_called()


@pytest.mark.parametrize(
    ("package", "module"), [("deepctr_torch", "layers.interaction"), ("torch_rechub", "basic.layers")]
)
def test_factorisation_machine(package: str, module: str, v: torch.Tensor) -> None:
    same(factorisation(v), peer(package, module).FM()(v).squeeze(1))


def test_inner_products(v: torch.Tensor) -> None:
    layer = peer("deepctr_torch", "layers.interaction").InnerProductLayer()
    same(InnerProducts(F)(v), layer(list(torch.split(v, 1, 1))).squeeze(2))


def test_outer_product(v: torch.Tensor) -> None:
    """Theirs is ``v_i^T K_ij v_j`` for i < j. With K one at (a, b) and zero elsewhere that is the pairs' part of ours,
    ``s_a s_b = sum_{i<j} (v_ia v_jb + v_ib v_ja) + sum_i v_ia v_ib``."""
    layer = peer("deepctr_torch", "layers.interaction").OutterProductLayer(F, D)
    ours = outer_product(v).view(B, D, D)
    theirs = torch.empty(B, D, D)
    for a in range(D):
        for b in range(D):
            both = torch.zeros(B)
            for p, q in ((a, b), (b, a)):
                with torch.no_grad():  # (D, pairs, D): the axis of v_j, then the pair, then that of v_i
                    layer.kernel.zero_()
                    layer.kernel[q, :, p] = 1
                both += layer(list(torch.split(v, 1, 1))).sum(1).detach()
            theirs[:, a, b] = both + (v[:, :, a] * v[:, :, b]).sum(1)
    same(ours, theirs)


def test_hidden_layers_of_deepctr(v: torch.Tensor) -> None:
    ours, x = deep(), v.flatten(1)
    theirs = peer("deepctr_torch", "layers.core").DNN(F * D, (16, 8))
    for mine, other in zip(parts(ours, nn.Linear), theirs.linears, strict=True):
        other.load_state_dict(mine.state_dict())
    same(ours(x), ours.out(theirs(x)).squeeze(1))


@pytest.mark.parametrize("training", [True, False])
def test_hidden_layers_with_batch_norm(training: bool, v: torch.Tensor) -> None:
    """Both libraries have it; in training with the batch's statistics, else with running ones."""
    ours, x = deep("batch"), v.flatten(1)
    mlp = peer("torch_rechub", "basic.layers").MLP(F * D, dims=[16, 8])
    dnn = peer("deepctr_torch", "layers.core").DNN(F * D, (16, 8), use_bn=True)
    linears = [m for m in mlp.mlp if isinstance(m, nn.Linear)]
    norms = [m for m in mlp.mlp if isinstance(m, nn.BatchNorm1d)]
    for mine, *others in zip(
        [*parts(ours, nn.Linear), ours.out], linears, [*dnn.linears, nn.Linear(8, 1)], strict=True
    ):
        for other in others:
            other.load_state_dict(mine.state_dict())
    rng = torch.Generator().manual_seed(2)
    for own, *others in zip(parts(ours, BatchNorm), norms, dnn.bn, strict=True):
        with torch.no_grad():
            own.gamma.uniform_(0.5, 2, generator=rng)
            own.beta.normal_(generator=rng)
            own.mean.normal_(generator=rng)
            own.var.uniform_(0.5, 2, generator=rng)
        names = {"weight": own.gamma, "bias": own.beta, "running_mean": own.mean, "running_var": own.var}
        for other in others:
            other.load_state_dict({**names, "num_batches_tracked": torch.tensor(1)})
    for module in (ours, mlp, dnn):
        module.train(training)
    expected = ours(x)
    same(expected, mlp(x).squeeze(1))
    same(expected, ours.out(dnn(x)).squeeze(1))
