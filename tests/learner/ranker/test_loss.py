"""The loss within pages: its slopes against autograd, what its minimum is, and what it leaves alone. Negatives that are
left out, and the guard on the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from learner.ranker import model as ranker
from learner.ranker.guard import WARM_ROWS, LossGuard
from learner.ranker.model import OnlineModel
from learner.ranker.sampling import chosen
from learner.ranker.within_page import page_end, page_rows, teach_pages
from millrace.basics.ranking_metrics import calibration
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, PAGE, POLICIES, POSITIVE, SampleBatch
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.model_contract import equal
from tests.scenes.same_state import differs

SMALL: dict[str, Any] = {"hidden": [16, 16], "width": 4, "step_rows": 1}
FINAL = POLICIES.index("equal-wait")


def of_one_pass(rows: int, seed: int) -> SampleBatch:
    """Samples whose labels come with their page, in pages of ten."""
    batch = make_samples(rows, seed)
    return replace(batch, policy=np.full(rows, FINAL, np.uint8))


def again(batch: SampleBatch) -> SampleBatch:
    """The same exposures as they are sent again."""
    return replace(batch, kind=np.full(len(batch), PAGE, np.uint8), origin_ms=np.zeros(len(batch), np.int64))


def slopes(t: np.ndarray, label: np.ndarray, page: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
    """The loss and its gradient by autograd, pair by pair."""
    logits = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for one in np.unique(page):
        clicked, others = np.flatnonzero((page == one) & (label > 0.5)), np.flatnonzero((page == one) & (label <= 0.5))
        for i, j in product(clicked.tolist(), others.tolist()):
            loss = loss + weight / len(others) * torch.nn.functional.softplus(logits[j] - logits[i])
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), np.zeros(len(t)) if logits.grad is None else logits.grad.numpy()


def taught(t: np.ndarray, label: np.ndarray, page: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
    n = len(t)
    batch = SampleBatch.of_rows(
        np.full(n, PAGE, np.uint8), np.full(n, 1), np.zeros((n, 1), np.int64), np.zeros((n, 0), np.float32),
        tuple(map(str, range(int(page.max()) + 1))), page=page.astype(np.int32), label=label.astype(np.float32),
    )  # fmt: skip
    pages, slope = page_rows(batch), np.zeros(n, np.float32)
    assert pages is not None
    return teach_pages(t.astype(np.float32), batch.label, *pages, np.float32(weight), slope), slope


@pytest.mark.parametrize("in_order", [True, False])
def test_loss_and_slopes_are_those_of_autograd(in_order: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 60))
        page = rng.integers(0, 6, n)
        page = np.sort(page) if in_order else page
        t, label = rng.normal(0, 3, n), rng.random(n) < 0.3
        loss, slope = taught(t, label, page, 0.7)
        expected, gradient = slopes(t, label, page, 0.7)
        assert loss == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(slope, gradient, atol=1e-5)


def test_large_logits_are_finite_and_what_is_not_a_number_stays_visible() -> None:
    label, page = np.array([1, 0]), np.zeros(2, np.int64)
    loss, slope = taught(np.array([-500.0, 500.0]), label, page, 1.0)
    assert loss == pytest.approx(1000.0)
    np.testing.assert_array_equal(slope, [-1, 1])
    assert np.isnan(taught(np.array([np.nan, 0.0]), label, page, 1.0)[0])


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], [1]])
def test_a_page_of_one_kind_teaches_nothing(label: Sequence[int]) -> None:
    n = len(label)
    loss, slope = taught(np.arange(n, dtype=np.float64), np.array(label), np.zeros(n, np.int64), 1.0)
    assert loss == 0
    assert not slope.any()


def test_at_the_true_chances_the_expected_slope_is_nothing() -> None:
    """So what log loss has at its minimum stays: clicks of a page are independent, and all outcomes are counted."""
    p = np.array([0.03, 0.5, 0.2, 0.85])
    t, expected = np.log(p / (1 - p)), np.zeros(4)
    for label in product([0, 1], repeat=4):
        y = np.array(label)
        chance = float(np.prod(np.where(y, p, 1 - p)))
        expected += chance * taught(t, y, np.zeros(4, np.int64), 1.0)[1]
    np.testing.assert_allclose(expected, 0, atol=1e-7)
    moved = sum(
        float(np.prod(np.where(y, p, 1 - p))) * taught(t + np.eye(4)[0], np.array(y), np.zeros(4, np.int64), 1.0)[1]
        for y in product([0, 1], repeat=4)
    )
    assert float(np.abs(moved).max()) > 1e-3


# -- in the model ------------------------------------------------------------------------------------------------------


def slope_of(model: OnlineModel, batch: SampleBatch, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """(the model's logits before it learns a batch, d loss / d logit that it learns it with), (B,) each."""
    seen: dict[str, np.ndarray] = {}

    def watch(owner: Any, name: str, given: bool) -> None:
        """Notes a copy of what a function is given first, or else of what it returns."""
        function = getattr(owner, name)

        def watched(*args: Any) -> Any:
            if given:
                seen[name] = args[0].copy()
            found = function(*args)
            if not given:
                seen[name] = found.copy()
            return found

        monkeypatch.setattr(owner, name, watched)

    watch(model._step, "forward", given=False)
    watch(model._step, "backward", given=True)
    watch(ranker, "wide_part", given=False)
    assert model.learn(batch).skipped is None
    return seen["forward"] + seen["wide_part"], seen["backward"] * len(batch)


@pytest.mark.parametrize("name", ["logistic", "wide_deep", "wide_resnet", "wide_resnet_bn"])
def test_a_step_follows_both_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits have the bias fields in them: what the position explains need not be explained by the item."""
    model = OnlineModel(SCHEMA, {**SMALL, "model": name, "page_weight": 0.5}, 0)
    for i in range(5):
        model.learn(of_one_pass(100, i))
    sent = make_samples(40, 8)
    batch = SampleBatch.concat([of_one_pass(60, 9), sent, again(sent)])
    t, slope = slope_of(model, batch, monkeypatch)
    logits = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    first = torch.tensor(batch.kind != PAGE)
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(batch.label, dtype=torch.float64), reduction="none"
    )
    (each * first).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    page = np.where(batch.policy == FINAL, batch.page, np.where(batch.kind == PAGE, batch.page, -1 - np.arange(140)))
    _, within = slopes(t, batch.label, page, 0.5)
    np.testing.assert_allclose(slope, logits.grad.numpy() + within, atol=2e-5)


SPECS = [{}, {"model": "wide_resnet_bn"}, {"retrieval_width": 8}, {"negative_keep": 0.5}]


@pytest.mark.parametrize("more", SPECS, ids=str)
def test_without_a_weight_nothing_differs(more: dict[str, Any]) -> None:
    """Neither where labels are final, nor where exposures are sent again."""
    model, twin = (OnlineModel(SCHEMA, {**SMALL, **more}, 0) for _ in range(2))
    assert model.spec["page_weight"] == 0
    for i in range(6):
        plain = make_samples(64, i)
        twin.learn(plain)
        model.learn(SampleBatch.concat([of_one_pass(64, i), again(plain)]))
    assert equal(model, twin) == ""


def test_exposures_that_are_sent_again_move_nothing_but_the_weights() -> None:
    """No loss, no guard, no delays, no retrieval, no sample of numbers: those have learnt of the exposures before."""
    schema_spec = {**SMALL, "retrieval_width": 8, "page_weight": 1.0}
    model, twin = (OnlineModel(SCHEMA, schema_spec, 0) for _ in range(2))
    asking = np.full(64, POLICIES.index("prompt"), np.uint8)
    for i in range(3):
        plain = replace(make_samples(64, i), policy=asking)
        one, other = model.learn(SampleBatch.concat([plain, again(plain)])), twin.learn(plain)
        assert (one.rows, other.rows, one.refused) == (128, 64, 0)
        if not i:
            assert one.loss == other.loss
    assert model.head is not None
    mine, theirs = model.small_state(), twin.small_state()
    same = {n for n in mine if mine[n].tobytes() == theirs[n].tobytes()}
    assert {n for n in mine if n not in same} <= {"guard"}, "only means of losses, which are of other weights by now"
    assert model.guard.rows.tolist() == twin.guard.rows.tolist()
    before = model.snapshot()
    model.learn(again(make_samples(64, 9)))
    assert differs(model.snapshot(), before), "a batch of nothing else is learnt, too"


def test_a_batch_of_pages_alone_is_refused_like_another() -> None:
    model = OnlineModel(SCHEMA, {**SMALL, "page_weight": 1.0, "max_gradient": 1e-9}, 0)
    before = model.snapshot()
    assert model.learn(again(make_samples(64, 0))).skipped == "gradient_exploded"
    assert differs(model.snapshot(), before) == ""


def test_unusable_labels_are_refused_and_follow_ups_passed_over() -> None:
    model = OnlineModel(SCHEMA, {**SMALL, "page_weight": 1.0}, 0)
    sent = again(make_samples(20, 0))
    label = sent.label.copy()
    label[3] = np.nan
    follow = replace(sent, kind=np.full(20, FOLLOW_UP, np.uint8))
    report = model.learn(SampleBatch.concat([replace(sent, label=label), follow]))
    assert (report.rows, report.refused) == (19, 1)


def test_a_model_learns_the_order_of_pages() -> None:
    """Where items that are clicked often lie on pages of which little is clicked, log loss alone learns the wrong sign.
    The weight decides how much of the right one is learnt."""

    def pages(seed: int) -> SampleBatch:
        """Long pages with many items of category 1 and few clicks; short ones of category 2. Within a page, 1 is
        clicked more often."""
        rng = np.random.default_rng(seed)
        parts = []
        for k, (size, share, base) in enumerate([(40, 0.8, -4.0), (5, 0.2, 0.0)] * 8):
            first = rng.random(size) < share
            y = rng.random(size) < 1 / (1 + np.exp(-(base + 0.8 * first)))
            batch = make_samples(size, 0)
            cat = np.zeros_like(batch.cat)
            cat[:, SCHEMA.layout.cat_names.index("category")] = np.where(first, 1, 2)
            kind = np.where(y, POSITIVE, NEGATIVE).astype(np.uint8)
            columns = {"cat": cat, "num": np.zeros_like(batch.num), "kind": kind, "label": y.astype(np.float32)}
            one = replace(batch, request=(f"{seed}-{k}",), page=np.zeros(size, np.int32), **columns)
            parts.append(replace(one, policy=np.full(size, FINAL, np.uint8)))
        return SampleBatch.concat(parts)

    gaps = []
    for weight in (0.0, 1.0, 16.0):
        model = OnlineModel(SCHEMA, {**SMALL, "model": "logistic", "ftrl_alpha": 0.1, "page_weight": weight}, 0)
        for i in range(60):
            model.learn(pages(i))
        probe = np.zeros((2, SCHEMA.layout.F), np.int64)
        probe[:, SCHEMA.layout.cat_names.index("category")] = 1, 2
        p = model.score(probe, np.zeros((2, SCHEMA.layout.N), np.float32)).astype(np.float64)
        gaps.append(float(np.log(p[0] / (1 - p[0])) - np.log(p[1] / (1 - p[1]))))
    assert gaps[0] < -0.5
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[2] > 0


# -- where batches end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "size", "end"),
    [
        ([0, 0, 1, 1, 1, 2], 2, 2),  # between two pages
        ([0, 0, 1, 1, 1, 2], 3, 5),
        ([0, 0, 1, 1, 1, 2], 5, 5),
        ([0, 0, 0, 0, 0, 0], 1, 6),  # longer than a batch
        ([0, 0, 1, 1, 1, 2], 6, 6),
        ([0, 1, 0, 1, 0, 1], 2, 2),  # rows of a page that do not lie together
    ],
)
def test_a_batch_ends_where_a_page_does(page: list[int], size: int, end: int) -> None:
    n, policy = len(page), np.zeros(len(page), np.uint8)
    assert page_end(np.array(page), np.full(n, PAGE, np.uint8), policy, size) == end
    assert page_end(np.array(page), np.full(n, POSITIVE, np.uint8), policy + FINAL, size) == end
    for kind in (NEGATIVE, POSITIVE, CORRECTION):
        assert page_end(np.array(page), np.full(n, kind, np.uint8), policy, size) == size
    assert page_end(np.array(page), np.full(n, CORRECTION, np.uint8), policy + FINAL, size) == size


# -- Down-sampled negatives and the guard on the loss: each against its formula and on a known rate --------------------


def rare(rows: int, seed: int) -> SampleBatch:
    """Samples of which about one in eight is clicked, by taste."""
    batch = make_samples(rows, seed)
    label = batch.label * (np.random.default_rng(seed).random(rows) < 0.25)
    return replace(batch, label=label.astype(np.float32), kind=np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8))


# -- negatives left out ----------------------------------------------------------------------------------------


def test_the_choice_is_of_negatives_only_of_the_share_and_the_same_again() -> None:
    batch = rare(20_000, 0)
    kept = chosen(batch, 0.25)
    negative = batch.label == 0
    assert kept[~negative].all()
    assert kept[negative].mean() == pytest.approx(0.25, abs=0.015)
    half = np.arange(0, 20_000, 2)
    np.testing.assert_array_equal(chosen(batch.take(half), 0.25), kept[half])
    assert not (kept & ~chosen(batch, 0.5)).any()  # a greater share keeps what a smaller one does
    assert chosen(batch, 1.0).all()


@pytest.mark.parametrize("name", ["logistic", "wide_deep", "wide_resnet_bn"])
def test_calibration_holds_with_a_quarter_of_the_negatives(name: str) -> None:
    model = OnlineModel(SCHEMA, {**SMALL, "model": name, "negative_keep": 0.25, "ftrl_alpha": 0.1}, 0)
    learnt = left_out = 0
    for i in range(120):
        report = model.learn(rare(256, i))
        learnt, left_out = learnt + report.rows, left_out + report.left_out
    assert learnt + left_out == 120 * 256
    assert 0.55 < left_out / (120 * 256) < 0.75
    test = rare(8000, 1000)
    q = model.score(test.cat, test.num).astype(np.float64)
    assert calibration(q, test.label) == pytest.approx(1.0, abs=0.12)
    p = q / (q + (1 - q) * 0.25)  # what a model of the thinned stream would say: q = p / (p + (1 - p) / w), inverted
    np.testing.assert_allclose(p / (p + (1 - p) / 0.25), q, rtol=1e-9)
    assert calibration(p, test.label) > 2


def test_served_answers_are_the_corrected_ones_of_the_model_of_the_thinned_stream() -> None:
    """The same weights with and without correction differ by q = p / (p + (1 - p) / w)."""
    w = 0.25
    thinned = OnlineModel(SCHEMA, {**SMALL, "model": "logistic", "negative_keep": w}, 0)
    for i in range(20):
        thinned.learn(rare(256, i))
    probe = rare(500, 99)
    q = thinned.score(probe.cat, probe.num).astype(np.float64)
    inputs = thinned._inputs
    inputs.prior_logit -= np.log(w)  # the logit that was trained
    p = thinned.score(probe.cat, probe.num).astype(np.float64)
    np.testing.assert_allclose(q, p / (p + (1 - p) / w), rtol=1e-5)


def test_a_batch_of_negatives_left_out_changes_nothing() -> None:
    model, twin = (OnlineModel(SCHEMA, {**SMALL, "negative_keep": 1e-9}, 0) for _ in range(2))
    report = model.learn(replace(make_samples(50, 0), label=np.zeros(50, np.float32)))
    assert (report.rows, report.left_out, report.skipped) == (0, 50, None)
    assert model.snapshot()[0].same_bits(twin.snapshot()[0]) == ""


# -- the loss against the recent past --------------------------------------------------------------------------


def fed(ratio: float = 10.0) -> LossGuard:
    guard = LossGuard(ratio)
    rng = np.random.default_rng(0)
    for _ in range(100):
        click = rng.random(512) < 0.1
        assert not guard.exploded(np.where(click, 2.5, 0.1), np.ones(512), click)
    return guard


def test_the_guard_is_about_the_mix_and_the_past() -> None:
    guard = fed()
    np.testing.assert_allclose(guard.means, [0.1, 2.5])
    clicks, none = np.ones(512, np.bool_), np.zeros(512, np.bool_)
    assert not guard.exploded(np.full(512, 2.5), np.ones(512), clicks)  # seven times the usual loss, but of clicks
    assert not guard.exploded(np.full(512, 0.9), np.ones(512), none)
    assert guard.exploded(np.full(512, 1.5), np.ones(512), none)  # no more than an absolute bound would let pass
    assert not guard.exploded(np.full(1, 1.5), np.ones(1), none[:1])  # a single row may be that far off
    young = LossGuard(10.0)
    assert not young.exploded(np.full(WARM_ROWS - 1, 0.1), np.ones(WARM_ROWS - 1), np.zeros(WARM_ROWS - 1, np.bool_))
    assert not young.exploded(np.full(512, 9.0), np.ones(512), none)
    assert not any(LossGuard(0.0).exploded(np.full(512, 99.0), np.ones(512), none) for _ in range(20))


def test_the_guard_gives_way_to_a_world_that_has_changed() -> None:
    guard = fed()
    none = np.zeros(512, np.bool_)
    refused = 0
    while guard.exploded(np.full(512, 8.0), np.ones(512), none):
        refused += 1
    assert 2 <= refused <= 20


def test_a_jump_of_the_loss_leaves_weights_and_tables_alone() -> None:
    spec = {**SMALL, "model": "wide_deep", "max_loss": 1e9, "max_gradient": 1e9, "loss_ratio": 3.0}
    model = OnlineModel(SCHEMA, spec, 0)
    for i in range(40):
        assert model.learn(make_samples(256, i)).skipped is None
    image, training = model.snapshot()
    twin = OnlineModel(SCHEMA, spec, 0)
    twin.resume(image, training)
    np.testing.assert_array_equal(twin.guard.snapshot(), model.guard.snapshot())
    with torch.no_grad():
        model.dense.weights.mul_(40)  # whatever blew it up
    batch = make_samples(256, 99, users=5000)
    report = model.learn(batch)
    assert report.skipped == "loss_jumped"
    with torch.no_grad():
        model.dense.weights.copy_(twin.dense.weights)
    after, rest = model.snapshot()
    assert after.same_bits(image) == ""
    assert {n for n in rest if rest[n].tobytes() != training[n].tobytes()} == {"guard"}
    assert model.learn(make_samples(256, 41)).skipped is None


def test_a_loss_on_items_that_were_never_learnt_is_no_jump() -> None:
    spec = {**SMALL, "model": "wide_deep", "max_loss": 1e9, "max_gradient": 1e9, "loss_ratio": 3.0}
    model = OnlineModel(SCHEMA, spec, 0)
    for i in range(40):
        model.learn(make_samples(256, i))
    known = make_samples(256, 99)
    column = SCHEMA.layout.cat_names.index("item_id")
    new = replace(known, cat=known.cat.copy())
    new.cat[:, column] += 1  # no id that was ever drawn
    assert not model.knows("item_id", new.cat).any()
    with torch.no_grad():
        model.dense.weights.mul_(40)  # a network that knows nothing of what it sees
    means = model.guard.means.copy()
    assert model.learn(new).skipped is None
    np.testing.assert_array_equal(model.guard.means, means)
    with torch.no_grad():
        model.dense.weights.mul_(40)
    mixed = replace(known, cat=np.where(np.arange(256)[:, None] % 2, known.cat, make_samples(256, 7).cat + 7))
    assert model.learn(mixed).skipped == "loss_jumped"
