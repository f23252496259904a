"""The first exposure that windows know: its definition, and no dependence on how the tiles came about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.basics.durations import lengths_in_minutes, unit_minutes
from millrace.basics.errors import SchemaError
from millrace.contracts.schema import parse_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from tests.scenes.exploring import examples
from tests.scenes.parity_shop import EXPOSURE_AGE, FIELDS
from tests.scenes.tile_streams import DAY, DAYS, HOUR, T0, A, Event, columns, first_exposed, resumed, streams

lengths_ = st.sampled_from([DAYS, (1,), (2, 5), (1, 30), ("15min", "1h", "6h", "1d", "7d")])
lives_ = st.sampled_from([(), (0.25,)])


@examples(100)
@given(streams(), lengths_, lives_)
@example([(1, T0, 1), (1, T0 + HOUR, 0), (1, T0 + 8 * DAY, 0), (1, T0 + 40 * DAY, 1), (1, T0 + 41 * DAY, 0)], DAYS, ())
def test_the_first_exposure_is_where_its_tile_begins(
    events: list[Event], lengths: tuple[int | str, ...], lives: tuple[float, ...]
) -> None:
    keys, ts, action = columns(events)
    minutes = lengths_in_minutes(lengths)
    whole = TileStore(lengths, A, lives)
    got = whole.run(keys[:, None], ts, action, first=True)[:, 0]
    assert got[:, -1, 0].tolist() == [first_exposed(events, k, t, minutes) for k, t, _ in events]
    plain = TileStore(lengths, A, lives).run(keys[:, None], ts, action)[:, 0]
    assert got[:, :-1].tolist() == plain.tolist(), "the other rows stay as they are"
    asked = np.arange(6, dtype=np.uint64)
    merged, packed = resumed(whole), TileStore(lengths, A, lives)
    packed.put(asked, merged.export(asked))
    for later in (1, HOUR, 5 * HOUR + 1, 3 * DAY, 29 * DAY, 60 * DAY):
        now = int(ts[-1]) + later
        merged.expire(now)
        expected = [first_exposed(events, key, now, minutes) for key in range(6)]
        for store in (whole, merged, packed):
            counts = store.counts(asked, now, first=True)
            assert counts[:, -1, 0].tolist() == expected
            assert not counts[:, -1, 1:].any()
            assert counts[:, :-1].tolist() == store.counts(asked, now).tolist()


def test_more_exposures_than_a_word_holds_are_exposures() -> None:
    """256 of them are a word without a digit at its lowest level."""
    store, key = TileStore((1,), 2), np.array([7], np.uint64)
    store.add(np.repeat(key, 256), np.full(256, T0), np.zeros(256, np.int64))
    assert store.counts(key, T0 + HOUR, first=True)[0].tolist() == [[256, 0], [T0 // HOUR, 0]]


def test_a_number_says_how_many_days_ago_it_was() -> None:
    schema = parse_schema(FIELDS + EXPOSURE_AGE)
    builder = FeatureBuilder(schema)
    store, layout = TileStore.of(schema.windows), schema.layout
    keys = np.array([[5, 6], [7, 8]], np.uint64)
    store.add(keys[:1], np.array([T0 + 1]), np.array([0]))
    store.add(keys[1:], np.array([T0 + 1]), np.array([1]))  # a click alone
    counts = store.counts(keys.ravel(), T0 + 36 * HOUR, first=True).reshape(2, 2, -1, store.columns)
    num = builder.num({"exposure_age_days": np.array([9.0, 9.0])}, counts, 2, T0 + 36 * HOUR)
    assert num[:, layout.num_names.index("exposure_age_days")].tolist() == [1.5, 0.0]
    assert unit_minutes(schema.windows.minutes) == 60


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "exposure_age_days"\nof = "item"', 'name = "exposure_age_days"\nof = "user"', "is derived"),
        ('kind = "numeric"\n[windows]', "[windows]", "is derived"),
        ('kind = "numeric"\n[windows]', 'kind = "numeric"\nbias = true\n[windows]', "is derived"),
        ('columns = ["item_id"]\n[[', 'columns = ["user_id"]\n[[', "which there is not"),
        ('name = "item_id"', 'name = "item_id"\nbias = true', "which is a bias"),
        ('of = "price"\nstep', 'of = "exposure_age_days"\nstep', "which follows from counts"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(old: str, new: str, problem: str) -> None:
    text = FIELDS.replace("[windows]", EXPOSURE_AGE.strip() + "\n[windows]", 1).replace('parent = ["item_id"]', "")
    assert parse_schema(text).layout.num_names[1] == "exposure_age_days"
    assert old in text
    with pytest.raises(SchemaError, match=problem):
        parse_schema(text.replace(old, new, 1))
