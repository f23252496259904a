"""The retrieval head: a step against the plain one, what it learns, what it refuses, that it goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import learner.retrieval.retrieval
from learner.retrieval.retrieval import _FADING, MICRO, WAIT_MS, RetrievalHead
from learner.retrieval.tower import GAIN, ITEM, USER, Sides, Tower, UserTower, map_ids
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE, SampleBatch
from millrace.versions.image import Image
from tests.learner.retrieval_scene import (
    CAT,
    SCHEMA,
    START_MS,
    WIDTH,
    PlainHead,
    image_of,
    item_features,
    plain_loss,
    samples,
    spec_of,
    user_features,
)

SIDES = Sides(SCHEMA)
DRAWS = 40
D = WIDTH - 1


def made(seed: int = 0, **spec: Any) -> RetrievalHead:
    return RetrievalHead(SCHEMA, spec_of(retrieval_negatives=DRAWS, **spec), seed)


def bits(head: RetrievalHead) -> dict[str, bytes]:
    """All of a head's state."""
    found = {name: array.tobytes() for name, array in head.small_state().items()}
    for name, table in head.tables.items():
        serving, training = table.snapshot()
        found |= {f"{name}/{n}": a.tobytes() for n, a in {"ids": serving.ids, **serving.columns, **training}.items()}
    return found


def resumed(head: RetrievalHead, seed: int = 9) -> RetrievalHead:
    twin = made(seed)
    twin.reseed(0)
    for name, table in head.tables.items():
        twin.tables[name].resume(*table.snapshot())
    twin.resume_small(head.small_state())
    return twin


# -- a step -----------------------------------------------------------------------------------------------------------


class PlainTable:
    """Rows by id with their optimisers: row-wise Adagrad on factors, FTRL on biases, in float64."""

    def __init__(self, head: RetrievalHead, name: str) -> None:
        self.table = head.tables[name]
        serving, training = self.table.snapshot()
        columns = (
            serving.columns["embedding"],
            training["square"],
            training["z"],
            training["n"],
            serving.columns["wide"],
        )
        self.rows: dict[int, list[Any]] = {
            key: [values[0].astype(np.float64), *map(float, values[1:])]
            for key, *values in zip(serving.ids.tolist(), *columns, strict=True)
        }

    def get(self, key: int) -> list[Any]:
        """A row; a new one with its first values."""
        if key not in self.rows:
            first = self.table.read(np.array([[key]]), learning=True).embedding[0].astype(np.float64)
            self.rows[key] = [first, 0.0, 0.0, 0.0, 0.0]
        return self.rows[key]

    def step(self, key: int, grad: NDArray[np.float64], grad_wide: float) -> None:
        rates, row = self.table.rates, self.rows[key]
        row[1] += float((grad**2).mean())
        row[0] = row[0] - rates.embedding * grad / (row[1] ** 0.5 + rates.epsilon)
        sigma = ((row[3] + grad_wide**2) ** 0.5 - row[3] ** 0.5) / rates.alpha
        row[2], row[3] = row[2] + grad_wide - sigma * row[4], row[3] + grad_wide**2
        row[4] = -row[2] / ((rates.beta + row[3] ** 0.5) / rates.alpha)


def plain_step(head: RetrievalHead, plain: PlainHead) -> tuple[PlainTable, PlainTable, float]:
    """What the tables (items, users) are after a step on the pending clicks, and its loss."""
    items, users = PlainTable(head, ITEM), PlainTable(head, USER)
    drawn, times, expected = plain.candidates(DRAWS)
    clicked = {click.item for click in plain.pending}
    every = list(dict.fromkeys([*drawn, *(k for click in plain.pending for k in click.past)]))
    features, biases = {}, {}
    for key in every:
        cat, num = plain.shown[key]
        own = key in clicked or int(cat[CAT["item_id"]]) in items.rows
        features[key] = item_features(cat, num, 0.2 if own else 0.0)
        biases[key] = item_features(cat, num, 1.0 if own else 0.0)
    ids = sorted({f for one in features.values() for f in one} | set(map_ids(D).tolist()))
    of_users = [user_features(click.cat) for click in plain.pending]
    user_ids = sorted({f for one in of_users for f in one})

    leaf: dict[int, torch.Tensor] = {f: torch.tensor(items.get(f)[0], requires_grad=True) for f in ids}
    wide = {f: torch.tensor(items.get(f)[4], dtype=torch.float64, requires_grad=True) for f in ids}
    user_leaf = {f: torch.tensor(users.get(f)[0], requires_grad=True) for f in user_ids}
    zero = torch.zeros(D, dtype=torch.float64)
    v = {key: sum((w * leaf[f] for f, w in features[key].items()), zero) for key in every}
    bias = [sum((w * wide[f] for f, w in biases[key].items()), zero[0]) for key in drawn]
    matrix = torch.stack([leaf[f] for f in map_ids(D).tolist()])
    queries = []
    for click, own_features in zip(plain.pending, of_users, strict=True):
        q = sum((w * user_leaf[f] for f, w in own_features.items()), zero)
        if click.known:
            m = torch.stack([v[k] for k in click.known]).mean(dim=0)
            q = q + float(GAIN) * m + m @ matrix
        queries.append(q)
    at = {key: j for j, key in enumerate(drawn)}
    total = plain_loss(
        torch.stack(queries),
        torch.stack([v[key] for key in drawn]),
        torch.stack(bias),
        [at[c.item] for c in plain.pending],
        [c.user for c in plain.pending],
        [c.weight for c in plain.pending],
        [[at[k] for k in c.past if k in at] for c in plain.pending],
        times,
        expected,
    )
    total.backward()  # type: ignore[no-untyped-call]
    for f in ids:
        grad_wide = wide[f].grad
        grad = leaf[f].grad
        items.step(f, (zero if grad is None else grad).numpy(), 0.0 if grad_wide is None else float(grad_wide))
    for f in user_ids:
        grad = user_leaf[f].grad
        users.step(f, (zero if grad is None else grad).numpy(), 0.0)
    return items, users, float(total.detach()) / sum(c.weight for c in plain.pending)


def assert_equal(head: RetrievalHead, items: PlainTable, users: PlainTable) -> None:
    for name, wanted in ((ITEM, items), (USER, users)):
        now = PlainTable(head, name)
        assert now.rows.keys() == wanted.rows.keys(), name
        for key, row in wanted.rows.items():
            np.testing.assert_allclose(now.rows[key][0], row[0], rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(now.rows[key][1:], row[1:], rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("strangers", [0, 1 << 15])
def test_steps_are_the_plain_ones(strangers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, masks, histories, both towers, logQ, the loss and both optimisers, from the samples to the rows."""
    monkeypatch.setattr(learner.retrieval.retrieval, "STRANGERS", strangers)
    head, plain, faded = made(), PlainHead(0, strangers), 0.0
    for k in range(6):
        batch = samples(60, k, START_MS + k * 9000)
        if k == 4:
            batch.item[5], batch.user[7:12] = 0, 0  # no ids
        head.take(batch)
        plain.take(batch)
        assert head.pending == len(plain.pending) < MICRO
        items, users, loss = plain_step(head, plain)
        head.flush()
        assert_equal(head, items, users)
        faded = _FADING * faded + (1 - _FADING) * loss if k else loss
        assert head.loss == pytest.approx(faded, rel=1e-3)
        plain.pending = []
    assert sum(map(len, plain.history.values())) > 60


# -- what is learnt from ----------------------------------------------------------------------------------------------


def test_a_full_micro_batch_is_learnt_from_at_once_and_the_rest_waits() -> None:
    head, batch = made(), samples(1000, 0)
    batch.ts_ms[:] = START_MS
    clicks = int((batch.kind == POSITIVE).sum())
    assert clicks > 2 * MICRO
    head.take(batch)
    assert (head.clicks, head.pending) == (clicks // MICRO * MICRO, clicks % MICRO)
    head.flush()
    assert (head.clicks, head.pending) == (clicks, 0)
    head.flush()
    assert head.clicks == clicks


def test_clicks_wait_for_others_until_exposures_are_so_much_newer() -> None:
    head = made()
    for at_ms, waits in ((0, True), (WAIT_MS - 1, True), (500, True), (WAIT_MS, False), (WAIT_MS + 1, False)):
        batch = samples(3, 0)
        batch.ts_ms[:], batch.kind[:] = START_MS + at_ms, POSITIVE if at_ms == 0 else NEGATIVE
        batch.label[:] = at_ms == 0
        head.take(batch)
        assert (head.pending, head.clicks) == ((3, 0) if waits else (0, 3)), at_ms


def test_how_samples_are_cut_into_batches_makes_no_difference() -> None:
    """Neither for clicks that fill a micro-batch nor for those that have waited."""
    whole, cut, batch = made(), made(), samples(700, 0)
    batch.ts_ms[350:] += np.arange(350) * 200  # quick clicks, then slow ones
    whole.take(batch)
    for start in range(0, 700, 37):
        cut.take(batch.take(slice(start, start + 37)))
    cut.take(batch.take(slice(0, 0)))
    assert bits(whole) == bits(cut)


def test_messages_are_learnt_from_as_batches_are() -> None:
    """Arrays of a message cannot be written to."""
    own, reported, batch = made(), made(), samples(300, 0)
    own.take(batch)
    reported.take(SampleBatch.from_bytes(batch.to_bytes()))
    assert bits(own) == bits(reported)


def test_clicks_are_positive_samples_and_corrections_of_a_usable_weight() -> None:
    batch = samples(40, 0)
    batch.kind[:] = NEGATIVE
    batch.kind[:4] = [POSITIVE, CORRECTION, FOLLOW_UP, POSITIVE]
    batch.label[:] = batch.kind != NEGATIVE
    batch.label[3] = 0.5
    batch.kind[4:10] = POSITIVE
    batch.label[4:10] = 1
    batch.weight[4:10] = [0, -1, np.nan, np.inf, 1, 1]
    batch.item[9] = 0
    head = made()
    head.take(batch)
    assert head.pending == 3
    assert len(head.recent_items) == len(set(batch.item.tolist()) - {0})


def test_a_weight_counts_as_so_many_clicks() -> None:
    """Adagrad's first step does not see the scale of a gradient; the loss does."""
    light, heavy, batch = made(), made(), samples(120, 0)
    batch.ts_ms[:] = START_MS
    few = batch.kind == POSITIVE
    light.take(replace(batch, weight=np.where(np.cumsum(few) <= 5, 1, 1e-6).astype(np.float32)))
    heavy.take(batch)
    light.flush()
    heavy.flush()
    assert bits(light)[f"{USER}/embedding"] != bits(heavy)[f"{USER}/embedding"]
    same = made()
    same.take(replace(batch, weight=2 * batch.weight))
    same.flush()
    assert same.loss == pytest.approx(heavy.loss, rel=1e-5), "a mean"


def test_an_items_own_row_is_made_at_its_first_click() -> None:
    head, batch = made(), samples(400, 0, items=300)
    head.take(batch)
    head.flush()
    clicked = set(batch.cat[batch.kind == POSITIVE, CAT["item_id"]].tolist())
    shown = set(batch.cat[:, CAT["item_id"]].tolist())
    table = head.tables[ITEM].index
    assert {key for key in shown if table.find(np.array([key]))[0] >= 0} == clicked
    assert len(shown - clicked) > 50
    attributes = np.unique(batch.cat[:, CAT["category"]])
    assert (table.find(attributes) >= 0).all()
    users = set(batch.cat[batch.kind == POSITIVE, CAT["user_id"]].tolist())
    own = head.tables[USER].index.find(np.unique(batch.cat[:, CAT["user_id"]])) >= 0
    assert 0.7 * len(users) <= own.sum() <= len(users), "but for strangers"


def test_bias_fields_and_missing_values_get_no_rows() -> None:
    head, batch = made(), samples(300, 0)
    head.take(batch)
    head.flush()
    table = head.tables[ITEM].index
    assert (table.find(np.unique(batch.cat[:, CAT["shelf_place"]])) < 0).all()
    assert 0 not in head.tables[ITEM].snapshot()[0].ids


# -- what it learns ---------------------------------------------------------------------------------------------------


def share_of_liked(head: RetrievalHead, batch: SampleBatch) -> float:
    """Of the ten items that suit each user best, the share in categories that the user likes."""
    tower = Tower(SCHEMA, spec_of())
    tower.apply(image_of(head))
    user = UserTower.of_arrays(tower.user_arrays())
    vectors = tower.item_vectors(batch.cat[:, SIDES.item_columns], batch.num[:, SIDES.plain_columns])
    category = batch.item.astype(int) % 6 + 1
    good = []
    for b in range(0, len(batch), 5):
        query = user.query(batch.cat[b, SIDES.user_columns], vectors[:0], np.empty(0, np.int64))
        best = np.argsort(-(vectors @ query))[:10]
        good.append(np.mean((category[best] + int(batch.user[b])) % 2 == 0))
    return float(np.mean(good))


def test_new_users_and_new_items_are_matched_by_their_attributes() -> None:
    head = made()
    rng = np.random.default_rng(0)
    new = samples(200, 99, users=2000, items=4000)
    new.user[:] += 5000
    new.cat[:, CAT["user_id"]] = rng.integers(1 << 40, 1 << 50, 200)
    new.cat[:, CAT["item_id"]] = rng.integers(1 << 40, 1 << 50, 200)
    assert share_of_liked(head, new) < 0.75
    for k in range(40):
        head.take(samples(400, k, START_MS + k * 100_000, users=200))
    assert share_of_liked(head, new) > 0.95


def test_the_last_clicks_of_a_stranger_tell_the_taste() -> None:
    """Attributes say nothing here; clicks on earlier pages do."""
    head = made()
    for k in range(60):
        batch = samples(400, k, START_MS + k * 100_000, users=100)
        for name in ("kind", "hobbies"):
            batch.cat[:, [c for c, n in enumerate(SCHEMA.layout.cat_names) if n == name]] = 0
        head.take(batch)
    tower = Tower(SCHEMA, spec_of())
    tower.apply(image_of(head))
    user, batch = UserTower.of_arrays(tower.user_arrays()), samples(200, 99)
    vectors = tower.item_vectors(batch.cat[:, SIDES.item_columns], batch.num[:, SIDES.plain_columns])
    category = batch.item.astype(int) % 6 + 1
    nobody = np.zeros(len(SIDES.user_columns), np.int64)
    for parity in (0, 1):
        liked = np.flatnonzero(category % 2 == parity)
        query = user.query(nobody, vectors[liked[:8]], np.zeros(8, np.int64))
        best = np.argsort(-(vectors @ query))[:20]
        assert np.mean(category[best] % 2 == parity) > 0.9


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["max_gradient", "damaged"])
def test_a_micro_batch_out_of_bounds_is_refused_and_nothing_is_written(how: str) -> None:
    head = made()
    head.take(samples(300, 0))
    head.flush()
    if how == "damaged":
        table = head.tables[USER].index
        table.column("embedding")[table.find(np.array([int(samples(300, 0).cat[0, CAT["kind"]])]))] = np.inf
    else:
        head = resumed_with(head, **{how: 1e-6})
    before, learnt = bits(head), head.clicks
    head.take(samples(100, 1))
    pending = head.pending
    head.flush()
    assert (head.clicks, head.refused) == (learnt, pending)
    after = bits(head)
    assert all(after[name] == array for name, array in before.items() if name.startswith("retrieval_"))
    assert not any(len(t.changes().removed) for t in head.tables.values())


def test_a_head_that_is_far_off_learns_on() -> None:
    """The ranker's bound of a loss is of two classes; that of a thousand items is beyond it in a young shop."""
    head = made(max_loss=1e-6)
    head.take(samples(300, 0))
    head.flush()
    assert head.loss > 1e-6
    assert head.refused == 0 < head.clicks


def test_the_bound_is_of_the_mean_gradient_however_much_clicks_weigh_in_all() -> None:
    head = made(max_gradient=3.0)
    for k in range(3):
        batch = samples(300, k)
        batch.weight[:] = 1000
        head.take(batch)
    head.flush()
    assert head.refused == 0 < head.clicks


def resumed_with(head: RetrievalHead, **spec: Any) -> RetrievalHead:
    twin = made(0, **spec)
    for name, table in head.tables.items():
        twin.tables[name].resume(*table.snapshot())
    twin.resume_small(head.small_state())
    return twin


def test_numbers_that_are_not_finite_hurt_nobody() -> None:
    head, batch = made(), samples(400, 0)
    batch.num[::3] = np.nan
    batch.num[1::3] = np.inf
    head.take(batch)
    head.flush()
    assert head.refused == 0 < head.clicks
    assert all(np.isfinite(rows.columns["embedding"]).all() for rows in image_of(head).tables.values())


# -- versions ---------------------------------------------------------------------------------------------------------


def stream() -> Iterator[SampleBatch]:
    for k in range(14):
        yield samples(90, k, START_MS + k * 8_000, users=20 + 10 * k, items=60 + 20 * k)


@pytest.mark.parametrize("after", [1, 5, 10])
def test_a_head_that_resumes_goes_on_bit_for_bit(after: int) -> None:
    """With clicks that wait."""
    batches, head = list(stream()), made()
    for batch in batches[:after]:
        head.take(batch)
    assert head.pending > 0
    twin = resumed(head)
    assert bits(twin) == bits(head)
    for batch in batches[after:]:
        head.take(batch)
        twin.take(batch)
        assert {n: t.changes().sorted().ids.tolist() for n, t in twin.tables.items()}
    head.flush()
    twin.flush()
    assert bits(twin) == bits(head)
    assert (twin.loss, twin.clicks, twin.newest_ms) == (head.loss, head.clicks, head.newest_ms)


def test_two_seeds_make_two_heads() -> None:
    one, two, again = made(0), made(1), made(0)
    for head in (one, two, again):
        head.take(samples(300, 0))
    assert bits(one) == bits(again)
    assert bits(one) != bits(two)


def test_a_small_state_of_another_head_is_refused_and_changes_nothing() -> None:
    head, other = made(), made()
    head.take(samples(300, 0))
    other.take(samples(250, 1))
    before, state = bits(other), head.small_state()
    with pytest.raises(ValueError, match="pending"):
        other.resume_small({**state, "pending/entry": np.full_like(state["pending/entry"], 1 << 20)})
    with pytest.raises(ValueError, match="cat"):
        other.resume_small({**state, "pending/cat": state["pending/cat"][:, :1]})
    with pytest.raises(ValueError, match="generator"):
        other.resume_small({**state, "state": np.zeros(2, np.uint64)})
    for name in ("state", "clock", "loss", "recent_items/keys", "history/past", "pending/known"):
        with pytest.raises(KeyError):
            other.resume_small({n: a for n, a in state.items() if n != name})
    assert bits(other) == before
    other.resume_small(state)
    assert other.pending == head.pending


def test_a_state_shares_no_memory_with_the_head() -> None:
    head = made()
    head.take(samples(100, 0))
    state = {name: array.copy() for name, array in head.small_state().items()}
    held = head.small_state()
    for k in range(5):
        head.take(samples(200, k + 1))
    assert all(held[name].tobytes() == array.tobytes() for name, array in state.items())


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More items, users and ids than there is room for."""
    for name, value in (("ITEMS", 64), ("RING", 32), ("USERS", 16), ("MICRO", 8)):
        monkeypatch.setattr(learner.retrieval.retrieval, name, value)
    head = made(max_rows=300)
    sizes = []
    for k in range(30):
        head.take(samples(120, k, START_MS + k * 3_600_000, users=5000, items=9000))
        sizes.append(head.nbytes)
        assert len(head.recent_items) <= 64
        assert all(len(table) <= 300 for table in head.tables.values())
    assert len(set(sizes)) == 1
    assert head.clicks > 300
    assert head.refused == 0
    maps = head.tables[ITEM].index.find(map_ids(D))
    assert (maps >= 0).all(), "rows of the map never make room"
    tower = Tower(SCHEMA, spec_of(max_rows=300))
    tower.apply(Image({}, {name: table.changes() for name, table in head.tables.items()}))
    assert len(tower) == sum(map(len, head.tables.values()))
