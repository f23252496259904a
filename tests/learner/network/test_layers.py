"""Layers against numpy written from the formula, term by term, and against other libraries; training passes
against autograd."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from learner.network import elementwise
from learner.network.backward import Workspace, scale_numbers, written_pass
from learner.network.models import Shape, network_of
from learner.network.models.base import Deep, Network
from learner.network.models.norm import BatchNorm, BatchRenorm, InputNorm
from learner.network.models.products import GroupProducts, InnerProducts, factorisation, outer_product
from learner.network.models.spec import Spec, read_spec
from learner.network.models.wide_resnet import Residual
from learner.ranker.model import OnlineModel
from learner.ranker.step import AutogradStep, Gradient, WrittenStep
from learner.serving.serving_model import ServingModel
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.networks import NUMBERS, SPECS, WIDTH, network

B, F, D = 7, 5, 3


def embeddings(fields: int = F, width: int = D, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(B, fields, width)).astype(np.float32)


def close(a: torch.Tensor, b: object) -> None:
    np.testing.assert_allclose(a.detach().numpy(), np.asarray(b), rtol=1e-5, atol=1e-5)


def test_products_of_fields_are_those_of_the_definitions() -> None:
    """The factorisation machine's sum over pairs, all pairs in order, and the outer product of the superposition."""
    v = embeddings()
    pairs = [[v[b, i] @ v[b, j] for i, j in combinations(range(F), 2)] for b in range(B)]
    close(factorisation(torch.from_numpy(v)), [sum(row) for row in pairs])
    close(InnerProducts(F)(torch.from_numpy(v)), pairs)
    close(outer_product(torch.from_numpy(v)), [np.outer(v[b].sum(0), v[b].sum(0)).ravel() for b in range(B)])


@pytest.mark.parametrize("fields", [2, 40])
def test_the_second_order_of_deepfm_pulls_at_an_embedding_alike_with_few_fields_and_many(fields: int) -> None:
    """Where all embeddings are v, its slope at one of them is the mean of the others: not (F - 1) v."""
    made = network_of("deepfm")(Shape(((fields, D),), 0), read_spec({"model": "deepfm", "hidden": [4]}))
    assert isinstance(made.deep_part, torch.nn.Module)
    for parameter in made.deep_part.parameters():  # only the second order is left
        parameter.data.zero_()
    v = torch.ones(B, fields, D, requires_grad=True)
    made([v], torch.empty(B, 0)).sum().backward()
    assert v.grad is not None
    close(v.grad, np.full((B, fields, D), (fields - 1) / fields))


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


# -- The written-out training passes against the networks' own ``forward`` and autograd --------------------------------


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


# -- Layers against those of DeepCTR-Torch and torch-rechub with the same weights, where they are installed ------------


ROWS, FIELDS, DIM = 64, 5, 4


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
    values = np.random.default_rng(0).normal(size=(ROWS, FIELDS, DIM)).astype(np.float32)
    return torch.from_numpy(values)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def deep(norm: str = "none", hidden: tuple[int, ...] = (16, 8)) -> Deep:
    torch.manual_seed(1)
    return Deep(FIELDS * DIM, Spec(hidden=hidden), norm)


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
    same(InnerProducts(FIELDS)(v), layer(list(torch.split(v, 1, 1))).squeeze(2))


def test_outer_product(v: torch.Tensor) -> None:
    """Theirs is ``v_i^T K_ij v_j`` for i < j. With K one at (a, b) and zero elsewhere that is the pairs' part of ours,
    ``s_a s_b = sum_{i<j} (v_ia v_jb + v_ib v_ja) + sum_i v_ia v_ib``."""
    layer = peer("deepctr_torch", "layers.interaction").OutterProductLayer(FIELDS, DIM)
    ours = outer_product(v).view(ROWS, DIM, DIM)
    theirs = torch.empty(ROWS, DIM, DIM)
    for a in range(DIM):
        for b in range(DIM):
            both = torch.zeros(ROWS)
            for p, q in ((a, b), (b, a)):
                with torch.no_grad():  # (D, pairs, D): the axis of v_j, then the pair, then that of v_i
                    layer.kernel.zero_()
                    layer.kernel[q, :, p] = 1
                both += layer(list(torch.split(v, 1, 1))).sum(1).detach()
            theirs[:, a, b] = both + (v[:, :, a] * v[:, :, b]).sum(1)
    same(ours, theirs)


def test_hidden_layers_of_deepctr(v: torch.Tensor) -> None:
    ours, x = deep(), v.flatten(1)
    theirs = peer("deepctr_torch", "layers.core").DNN(FIELDS * DIM, (16, 8))
    for mine, other in zip(parts(ours, nn.Linear), theirs.linears, strict=True):
        other.load_state_dict(mine.state_dict())
    same(ours(x), ours.out(theirs(x)).squeeze(1))


@pytest.mark.parametrize("training", [True, False])
def test_hidden_layers_with_batch_norm(training: bool, v: torch.Tensor) -> None:
    """Both libraries have it; in training with the batch's statistics, else with running ones."""
    ours, x = deep("batch"), v.flatten(1)
    mlp = peer("torch_rechub", "basic.layers").MLP(FIELDS * DIM, dims=[16, 8])
    dnn = peer("deepctr_torch", "layers.core").DNN(FIELDS * DIM, (16, 8), use_bn=True)
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
