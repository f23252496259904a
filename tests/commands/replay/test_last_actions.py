"""What a user did last, as features: from Redis and from a log alike, of what was known at each page's time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.basics.errors import SchemaError
from millrace.basics.hashing import column_hash, mix, salt, value_hash
from millrace.contracts.online_layout import NOTHING, Past, Recent, unpack_recent
from millrace.contracts.schema import Schema, parse_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.lastactions import BUCKET_HASHES, KEPT_MS, Acted, LastActions
from stream.partition.recents import CLICKS, Recents
from tests.scenes.exploring import examples

BASE = """
name = "last"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[windows]
actions = ["exposure", "click"]
"""
T0 = 100 * DAY_MS


FIELD = '[[fields]]\nname = "last_clicks"\nof = "user"\nslots = SLOTS\n'


def schema(slots: int = 3, more: str = "") -> Schema:
    both = (FIELD + FIELD.replace("clicks", "clicks_age")).replace("SLOTS", str(slots))
    return parse_schema(BASE.replace("[windows]", both + "[windows]") + more)


def test_a_page_knows_the_newest_actions_before_its_time_and_of_the_last_30_days() -> None:
    last = LastActions(schema())
    pasts = [
        Past("ahead", T0 + 1),
        Past("now", T0),
        Past("b", T0 - 2 * MINUTE_MS),
        Past("a", T0 - KEPT_MS),
        Past("gone", T0 - KEPT_MS - 1),
    ]
    found = last.of(Recent(pasts, []), T0)
    assert found["last_clicks"].tolist() == [[value_hash("b"), value_hash("a"), 0]]
    assert found["last_clicks_age"].tolist() == [[int(BUCKET_HASHES[1]), int(BUCKET_HASHES[-1]), 0]]
    assert last.of(NOTHING, T0)["last_clicks"].tolist() == [[0, 0, 0]]
    assert LastActions(parse_schema(BASE)).of(Recent(pasts, []), T0) == {}


def test_an_item_has_one_id_on_the_page_and_among_the_last_clicks() -> None:
    plan = schema()
    last = LastActions(plan).of(Recent([Past(7, T0 - 1)], []), T0)
    cat = FeatureBuilder(plan).cat({"item_id": np.array([value_hash(7)], np.uint64), **last}, 1)[0]
    at = {name: plan.layout.cat_names.index(name) for name in ("item_id", "last_clicks", "last_clicks_age")}
    expected = mix(salt("field", "item_id"), np.array([value_hash(7)], np.uint64)).view(np.int64)
    assert [cat[at["last_clicks"]], cat[at["item_id"]]] == [expected[0], expected[0]]
    assert cat[at["last_clicks_age"]] not in (0, cat[at["item_id"]])
    assert sorted(plan.layout.last_columns) == sorted(
        c for c, name in enumerate(plan.layout.cat_names) if name.startswith("last_")
    )


@examples(60)
@given(st.integers(0, 2**32), st.sampled_from([1, 7, 1000]))
def test_the_log_remembers_what_redis_would_have(seed: int, at_once: int) -> None:
    """What a log's store gives, stretch by stretch, is what the stream's state gives, which takes each action by
    itself. At one time pages come first, since they must not see what happens then."""
    rng = np.random.default_rng(seed)
    n, plan = 300, schema(int(rng.integers(1, 17)))
    last, recents, acted = LastActions(plan), Recents(), Acted()
    ms = T0 + np.cumsum(rng.choice([0, 1, MINUTE_MS, 7 * MINUTE_MS, 3 * DAY_MS], n, p=[0.3, 0.2, 0.3, 0.15, 0.05]))
    user, item, clicked = rng.integers(0, 4, n), rng.integers(0, 40, n), rng.random(n) < 0.6
    order = np.lexsort((clicked, ms))
    ms, clicked = ms[order], clicked[order]
    users, items = column_hash(user), column_hash(item)
    start = compared = 0
    while start < n:
        stop = int(np.searchsorted(ms, ms[min(start + at_once, n) - 1], side="right"))
        own = np.arange(start, stop)
        acts, pages = own[clicked[own]], own[~clicked[own]]
        acted.add(users[acts], items[acts], ms[acts])
        found = last.columns("last_clicks", *acted.before(users[pages], ms[pages]), ms[pages])
        for i in own.tolist():
            if clicked[i]:
                recents.add(int(user[i]), CLICKS, int(item[i]), int(ms[i]))
                continue
            stored = dict(next(recents.whole(), [])).get(str(user[i]))
            expected = last.of(unpack_recent(stored), int(ms[i]))
            row = int(np.searchsorted(pages, i))
            assert {k: v[row].tolist() for k, v in found.items()} == {k: v[0].tolist() for k, v in expected.items()}
            compared += bool(expected["last_clicks"].any())
        start = stop
    assert compared > n // 5


WRONG = [
    ('name = "last_clicks"\nof = "item"', "is derived"),
    ('name = "last_clicks_age"\nof = "user"\nslots = 3', "no 'last_clicks' of 3 slots"),
    ('name = "last_purchases"\nof = "user"\nslots = 3', "of purchases, which are not counted"),
    ('name = "last_clicks"\nof = "user"\nwidth = 4', "has a width"),
]


@pytest.mark.parametrize(("field", "problem"), WRONG)
def test_a_field_that_cannot_be_made_is_refused(field: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=problem):
        parse_schema(BASE.replace("[windows]", f"[[fields]]\n{field}\n[windows]"))


def test_a_window_of_what_changes_with_each_action_is_refused() -> None:
    with pytest.raises(SchemaError, match="changes with each action"):
        schema(3, '[[windows.keys]]\ncolumns = ["last_clicks"]\n')
    with pytest.raises(SchemaError, match="needs the item's id"):
        parse_schema(BASE.replace('"item_id"', '"sku"').replace("[windows]", FIELD.replace("SLOTS", "3") + "[windows]"))
