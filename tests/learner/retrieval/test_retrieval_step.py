"""Loss and gradients of a micro-batch against torch's own gradients of the loss written out, in float64; and the
towers as they serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner.retrieval.retrieval import RetrievalHead
from learner.retrieval.retrievalstep import ClickPairs, Gradients, gradients
from learner.retrieval.tower import GAIN, ITEM, OWN_ITEM, RECENT, USER, Sides, Tower, UserTower
from millrace.basics.errors import SettingError
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.versions.image import Image, TableRows
from millrace.windows.features import FeatureBuilder
from scorer.catalog.itemtable import TableForm
from tests.learner.retrieval_scene import (
    CAT,
    SCHEMA,
    WIDTH,
    Rows,
    image_of,
    item_features,
    plain_loss,
    plain_query,
    plain_vector,
    samples,
    spec_of,
)
from tests.scenes.learning import SCHEMA as OTHER

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


# -- The towers as they serve, against plain sums over dictionaries ----------------------------------------------------


SIDES = Sides(SCHEMA)


@pytest.fixture(scope="module")
def learnt() -> Image:
    head = RetrievalHead(SCHEMA, spec_of(), 0)
    for k in range(8):
        head.take(samples(200, k))
    head.flush()
    assert head.clicks > 300
    return image_of(head)


def tower_of(image: Image) -> Tower:
    tower = Tower(SCHEMA, spec_of())
    tower.apply(image)
    return tower


def test_an_items_vector_is_the_weighed_sum_of_its_rows(learnt: Image) -> None:
    """Missing values, several tags, numbers that are not finite, bias fields: all are in the batch."""
    batch = samples(100, 50, items=90)  # some were never clicked
    vectors = tower_of(learnt).item_vectors(batch.cat[:, SIDES.item_columns], batch.num[:, SIDES.plain_columns])
    rows = Rows.of(learnt, ITEM)
    plain = np.stack([plain_vector(rows, cat, num) for cat, num in zip(batch.cat, batch.num, strict=True)])
    assert vectors.shape == (100, WIDTH)
    np.testing.assert_allclose(vectors, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(plain).max() > 0.1


def test_a_query_is_the_users_rows_and_the_mean_of_the_last_clicks(learnt: Image) -> None:
    batch = samples(80, 51, users=60)
    tower = tower_of(learnt)
    users, items = Rows.of(learnt, USER), Rows.of(learnt, ITEM)
    user = UserTower.of_arrays(tower.user_arrays())
    vectors = tower.item_vectors(batch.cat[:, SIDES.item_columns], batch.num[:, SIDES.plain_columns])
    for b in range(40):
        recent = vectors[b : b + b % (RECENT + 6)]  # from none to more than count
        query = user.query(batch.cat[b, SIDES.user_columns], recent, np.zeros(len(recent), np.int64))
        plain = plain_query(users, items, batch.cat[b], list(recent.astype(np.float64)))
        np.testing.assert_allclose(query, plain, rtol=1e-4, atol=1e-5)
        assert query.dtype == np.float32


def test_a_stranger_of_whom_nothing_is_known_has_the_bias_alone(learnt: Image) -> None:
    user = UserTower.of_arrays(tower_of(learnt).user_arrays())
    nobody = np.zeros(len(SIDES.user_columns), np.int64)
    query = user.query(nobody, np.empty((0, WIDTH), np.float32), np.empty(0, np.int64))
    assert query.tolist() == [0.0] * (WIDTH - 1) + [1.0]


def test_before_anything_is_learnt_there_are_vectors_of_zeros() -> None:
    tower, batch = Tower(SCHEMA, spec_of()), samples(5, 0)
    vectors = tower.item_vectors(batch.cat[:, SIDES.item_columns], batch.num[:, SIDES.plain_columns])
    user = UserTower.of_arrays(tower.user_arrays())
    query = user.query(batch.cat[0, SIDES.user_columns], vectors, np.zeros(5, np.int64))
    assert not vectors.any()
    assert query.tolist() == [0.0] * (WIDTH - 1) + [1.0]


def test_the_users_arrays_are_only_read(learnt: Image) -> None:
    batch = samples(3, 1)
    arrays = tower_of(learnt).user_arrays()
    recent = np.ones((3, WIDTH), np.float32)
    free = UserTower.of_arrays(arrays).query(batch.cat[0, SIDES.user_columns], recent, np.zeros(3, np.int64))
    for array in arrays.values():
        array.flags.writeable = False
    bound = UserTower.of_arrays(arrays).query(batch.cat[0, SIDES.user_columns], recent, np.zeros(3, np.int64))
    assert free.tobytes() == bound.tobytes()


def test_deltas_make_the_state_that_a_snapshot_has() -> None:
    head, follower = RetrievalHead(SCHEMA, spec_of(max_rows=150), 0), Tower(SCHEMA, spec_of(max_rows=150))
    for k in range(12):  # so few rows that some make room for others
        head.take(samples(150, k, users=20 + 30 * k))
        head.flush()
        for table in head.tables.values():
            table.expire(0)
        follower.apply(Image({}, {name: table.changes() for name, table in head.tables.items()}))
        whole = tower_of_rows(image_of(head))
        assert {name: [a.tobytes() for a in follower.table(name)] for name in (USER, ITEM)} == whole
    assert head.tables[USER].refused == 0
    assert len(head.tables[USER]) < 350


def tower_of_rows(image: Image) -> dict[str, list[bytes]]:
    found = {}
    for name, rows in image.tables.items():
        ordered = rows.sorted()
        found[name] = [a.tobytes() for a in (ordered.ids, ordered.columns["embedding"], ordered.columns["wide"])]
    return found


def test_other_tables_are_passed_over_and_another_width_is_refused(learnt: Image) -> None:
    tower = tower_of(Image({}, {**learnt.tables, "w16": TableRows(np.array([5]), {"wide": np.zeros(1, np.float32)})}))
    assert len(tower) == sum(len(rows.ids) for rows in learnt.tables.values())
    with pytest.raises(ValueError, match="width"):
        Tower(SCHEMA, spec_of(retrieval_width=WIDTH + 1)).apply(learnt)


def test_items_have_the_columns_that_an_item_table_has() -> None:
    """A scorer makes vectors of what is in its item table."""
    for schema in (SCHEMA, OTHER, shop_schema()):
        form, sides = TableForm(FeatureBuilder(schema)), Sides(schema)
        assert form.cat_columns.tolist() == sides.item_columns.tolist()
        assert form.plain_columns.tolist() == sides.plain_columns.tolist()


def test_a_schema_needs_something_of_users_and_something_of_items() -> None:
    text = 'name = "one"\n[[fields]]\nname = "{}"\nof = "{}"\n'
    for name, of in (("user_id", "user"), ("item_id", "item"), ("hour", "context")):
        schema = parse_schema(text.format(name, of))
        assert not Sides.fits(schema)
        with pytest.raises(SettingError, match="retrieval_width"):
            RetrievalHead(schema, spec_of(), 0)
    assert Sides.fits(SCHEMA)
    with pytest.raises(SettingError, match="retrieval_width 1"):
        Tower(SCHEMA, spec_of(retrieval_width=1))


def test_numbers_make_a_curve_between_knots() -> None:
    """Two numbers that are close have features that are close; each number's weights add up to 1."""
    numbers = np.array([[0.0], [0.3], [1.0], [-1.0], [1e9], [-1e30], [np.nan]], np.float32)
    numbers = np.concatenate([numbers, np.zeros_like(numbers)], axis=1)
    cat = np.zeros((len(numbers), len(SIDES.item_columns)), np.int64)
    ids, weights = SIDES.item_features(cat, numbers)
    at = len(SIDES.item_columns)
    assert weights[:6, at : at + 2].sum(axis=1).tolist() == pytest.approx([1.0] * 6)
    assert (ids[6, at : at + 2].tolist(), weights[6, at : at + 2].tolist()) == ([0, 0], [0.0, 0.0])
    whole = np.zeros(SCHEMA.layout.F, np.int64)
    for row, number in enumerate(numbers[:6]):
        made = {i: w for i, w in zip(ids[row].tolist(), weights[row].tolist(), strict=True) if i}
        assert made == pytest.approx(item_features(whole, number), abs=1e-5)


def test_an_own_id_counts_little_in_factors_and_whole_in_the_bias(learnt: Image) -> None:
    rows = Rows.of(learnt, ITEM)
    own = next(i for i in samples(200, 0).cat[:, CAT["item_id"]].tolist() if i in rows.factors and rows.biases[i])
    cat = np.zeros((1, len(SIDES.item_columns)), np.int64)
    cat[0, SIDES.own_column] = own
    numbers = np.full((1, 2), np.nan, np.float32)
    vector = tower_of(learnt).item_vectors(cat, numbers)[0]
    np.testing.assert_allclose(vector[:-1], OWN_ITEM * rows.factors[own], rtol=1e-6)
    assert vector[-1] == np.float32(rows.biases[own])
