"""The written-out training passes against the networks' own ``forward`` and autograd."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from learner.network import elementwise
from learner.network.backward import Workspace, scale_numbers, written_pass
from learner.network.models import Shape, network_of
from learner.network.models.base import Network
from learner.network.models.spec import read_spec
from learner.network.models.wide_resnet import Residual
from learner.ranker.model import OnlineModel
from learner.ranker.step import AutogradStep, Gradient, WrittenStep
from learner.serving.serving_model import ServingModel
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.networks import NUMBERS, SPECS, WIDTH, network

Floats = NDArray[np.float32]


def by_autograd(net: Network, x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    embeddings = (x[:, :12].view(-1, 3, 4), x[:, 12:18].view(-1, 2, 3))
    logits = net(embeddings, x[:, 18:])
    net.zero_grad()
    logits.backward(slope)
    assert x.grad is not None
    return logits.detach(), x.grad


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 15, 16, 200])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_pass_equals_autograd(name: str, rows: int) -> None:
    """Logits, every gradient and the running statistics, over several batches: early ones have special rules."""
    oracle, own = network(SPECS[name]), network(SPECS[name])
    written = written_pass(own)
    assert written is not None
    oracle.train()
    generator = torch.Generator().manual_seed(rows)
    for step in range(4):
        x = 2 * torch.randn(rows, WIDTH, generator=generator) + 1
        slope = torch.randn(rows, generator=generator)
        logits, grad_x = by_autograd(oracle, x, slope)
        columns = (WIDTH, WIDTH - NUMBERS, 5, WIDTH)[step]
        np.testing.assert_allclose(written.forward(x), logits.numpy(), rtol=2e-4, atol=2e-5)
        got = written.backward(slope.numpy(), columns)
        scale = float(grad_x.abs().max())
        np.testing.assert_allclose(got[:, :columns].numpy(), grad_x[:, :columns].numpy(), rtol=2e-3, atol=1e-4 * scale)
        for (what, p), q in zip(oracle.named_parameters(), own.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            largest = max(1.0, float(p.grad.abs().max()))
            np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=2e-3, atol=1e-4 * largest, err_msg=what)
        for (what, old), new in zip(oracle.named_buffers(), own.buffers(), strict=True):
            np.testing.assert_allclose(new.numpy(), old.numpy(), rtol=1e-4, atol=1e-6, err_msg=what)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_answers_are_those_of_the_network(name: str) -> None:
    """In evaluation mode, with running statistics that are not those of the start; nothing of the network changes."""
    net = network(SPECS[name])
    net.train()
    x = 2 * torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0)) + 1
    by_autograd(net, x, torch.ones(60))
    net.eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    written, room = written_pass(net), Workspace()
    assert written is not None
    for rows in (60, 3, 1):
        embeddings = (x[:rows, :12].view(-1, 3, 4), x[:rows, 12:18].view(-1, 2, 3))
        with torch.no_grad():
            want = net(embeddings, x[:rows, 18:])
        np.testing.assert_allclose(written.infer(x[:rows], room), want, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize("numerics", ["squash", "none"])
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("training", [True, False])
def test_numbers_are_scaled_as_by_the_network(numerics: str, rows: int, training: bool) -> None:
    oracle, own = (network({"model": "wide_deep", "numerics": numerics}) for _ in range(2))
    for net in (oracle, own):
        net.train()
        net.scale(2 + 3 * torch.randn(50, NUMBERS, generator=torch.Generator().manual_seed(0)))
    oracle.train(training)
    rng = np.random.default_rng(0)
    for _ in range(3):
        numbers = rng.lognormal(2, 3, (rows, NUMBERS)).astype(np.float32)
        out = np.full((rows, WIDTH), 7, np.float32)
        scale_numbers(own, numbers, out, WIDTH - NUMBERS, training)
        np.testing.assert_allclose(out[:, -NUMBERS:], oracle.scale(torch.from_numpy(numbers)), rtol=1e-3, atol=1e-5)
        assert (out[:, :-NUMBERS] == 7).all()
        for (what, old), new in zip(oracle.named_buffers(), own.buffers(), strict=True):
            np.testing.assert_allclose(new.numpy(), old.numpy(), rtol=1e-4, err_msg=what)


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ({"model": "wide_resnet_bn", "norm": "layer"}, False),
        ({"model": "deepfm", "hidden": [8]}, False),
        (SPECS["renorm-inner"], True),
    ],
)
def test_other_networks_have_no_written_pass(spec: dict[str, Any], written: bool) -> None:
    full = read_spec(spec)
    shape = Shape(((3, 4),), 2)
    assert (written_pass(network_of(full.model)(shape, full)) is not None) is written


class NoNoise(AutogradStep):
    """The gradient of a bias before a norm is 0; autograd leaves rounding noise there, of which Adam makes steps."""

    def backward(self, slope: Floats) -> list[Gradient]:
        found = super().backward(slope)
        for unit in self.network.modules():
            if isinstance(unit, Residual) and unit.w1.bias.grad is not None:
                unit.w1.bias.grad.zero_()
        return found


@pytest.mark.parametrize("model", ["wide_deep", "wide_resnet_bn"])
def test_a_model_learns_the_same_either_way(model: str) -> None:
    models = [OnlineModel(SCHEMA, {"hidden": [32, 16], "width": 8, "model": model}, 0) for _ in range(2)]
    assert isinstance(models[0]._step, WrittenStep)
    models[1]._step = NoNoise(models[1]._inputs, models[1].network)
    for i in range(40):
        a, b = (m.learn(make_samples(64, i)) for m in models)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.rows == b.rows == 64
    probe = make_samples(300, 99)
    one, two = (m.score(probe.cat, probe.num) for m in models)
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert np.ptp(one) > 0.05  # something was learnt


def test_what_is_not_finite_comes_through() -> None:
    """The guard looks at loss and gradients: a pass must not turn a NaN into a number."""
    own = network(SPECS["batch-post"])
    written = written_pass(own)
    assert written is not None
    x = torch.randn(32, WIDTH)
    x[3, 4] = float("nan")
    assert np.isnan(written.forward(x)[3])
    deep = network(SPECS["wide_deep"])
    written = written_pass(deep)
    assert written is not None
    logits = written.forward(x)
    assert np.isnan(logits[3])
    assert np.isfinite(np.delete(logits, 3)).all()


def test_loss_and_slope_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    logit = np.concatenate([rng.normal(0, 8, 500), [0, 60, -60, 200, -200]]).astype(np.float32)
    wide = rng.normal(0, 1, len(logit)).astype(np.float32)
    label = (rng.random(len(logit)) < 0.5).astype(np.float32)
    weight = rng.random(len(logit)).astype(np.float32)
    loss, slope = np.empty_like(logit), np.empty_like(logit)
    total = elementwise.logistic(logit, wide, label, weight, loss, slope)
    t, y = torch.from_numpy(logit.astype(np.float64) + wide), torch.from_numpy(label).double()
    want = torch.nn.functional.binary_cross_entropy_with_logits(t, y, reduction="none").numpy()
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slope, (torch.sigmoid(t).numpy() - label) * weight, rtol=1e-4, atol=1e-7)
    assert total == pytest.approx(float(want @ weight), rel=1e-5)
    logit[0] = np.nan
    assert np.isnan(elementwise.logistic(logit, wide, label, weight, loss, slope))


def test_sums_of_many_rows_keep_their_digits() -> None:
    x = np.full((60_000, 3), 0.1, np.float32)
    total = np.empty(3, np.float32)
    elementwise.sums(x, total)
    np.testing.assert_allclose(total, float(np.float32(0.1)) * 60_000, rtol=1e-6)


def test_workspace_hands_out_the_same_memory() -> None:
    room = Workspace()
    first = room.take("a", 10, 4)
    assert room.take("a", 5, 8).data_ptr() == first.data_ptr()
    assert room.take("b", 10, 4).data_ptr() != first.data_ptr()
    assert room.take("a", 11, 4).shape == (11, 4)


@pytest.mark.parametrize("model", ["wide_deep", "wide_resnet_bn"])
def test_products_in_bfloat16_round_and_no_more(model: str) -> None:
    """Losses stay within what eight bits leave, weights are not the same, and equal runs have equal bits."""
    spec = {"hidden": [32, 16], "width": 8, "model": model}
    exact, half, again = (OnlineModel(SCHEMA, {**spec, "products": p}, 0) for p in ("float32", "bfloat16", "bfloat16"))
    for i in range(20):
        batch = make_samples(64, i)
        loss = exact.learn(batch).loss
        assert half.learn(batch).loss == pytest.approx(loss, rel=0.02)
        again.learn(batch)
    assert not torch.equal(exact.dense.weights, half.dense.weights)
    assert torch.equal(again.dense.weights, half.dense.weights)
    probe = make_samples(300, 99)
    np.testing.assert_allclose(exact.score(probe.cat, probe.num), half.score(probe.cat, probe.num), atol=0.03)


def test_threads_may_score_at_once() -> None:
    """Each has memory of its own: answers are those given alone."""
    model = OnlineModel(SCHEMA, {"model": "wide_resnet_bn"}, 0)
    model.learn(make_samples(200, 0))
    serving = ServingModel.of(SCHEMA, model.spec, model.snapshot()[0])
    probes = [make_samples(400, i) for i in range(2)]
    alone = [serving.score(p.cat, p.num) for p in probes]
    together = threading.Barrier(2)

    def ask(k: int) -> bool:
        together.wait()
        return all(np.array_equal(serving.score(probes[k].cat, probes[k].num), alone[k]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, range(2)))
