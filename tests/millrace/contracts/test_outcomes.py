"""Outcomes in a schema and in a batch of samples: what is read, refused and sent; and no trace where there are none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import SchemaError
from millrace.contracts.carry import Carry
from millrace.contracts.logforms import MOST_OUTCOMES, OutcomeRule
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from tests.scenes.learning import make_samples
from tests.scenes.schemas import mistake, named, of_item, of_user

PLAIN = named("s") + of_user("user_id") + of_item("item_id", "price:numeric")
BUY = '[[outcome]]\nname = "buy"\non = "click"\nevent = "purchase"\nwithin = "30d"\nvalue = "price"\n'
VIEW = '[[outcome]]\nname = "long_view"\ncolumn = "long_view"\n'


def test_what_is_written_is_read() -> None:
    buy, view = parse_schema(PLAIN + BUY + VIEW).outcome
    assert buy == OutcomeRule("buy", on="click", event="purchase", within="30d", value="price")
    assert (buy.told, view.told) == ("es-dfm", "wait")
    assert OutcomeRule("soon", event="cart", within="6d").told == "wait"
    assert (buy.within_ms, view.within_ms, view.on) == (30 * 86_400_000, 0, "page")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (VIEW + VIEW, "'long_view' stands twice"),
        (VIEW.replace('"long_view"', '"click"', 1), "'click' stands twice"),
        ('[[outcome]]\nname = "a"\n', "'a' has no event and column"),
        (BUY + 'column = "x"\n', "'buy' has an event and column"),
        (BUY.replace("purchase", "click"), "of the event 'click'"),
        (BUY.replace("purchase", "refund"), "of the event 'refund'"),
        (BUY.replace('within = "30d"\n', ""), "waits for ever"),
        (BUY.replace("30d", "soon"), "within: 'soon' is no duration"),
        (BUY.replace("30d", "0d"), "within: '0d' is no duration"),
        (BUY.replace('"price"', '"item_id"'), "worth 'item_id', which is no numeric field"),
        (BUY.replace('"click"', '"user"'), "on"),
        (BUY.replace('"buy"', '"Buy it"'), "name"),
        (VIEW + 'weight = 2\n', "weight"),
        (BUY + 'policy = "prompt"\n', "policy"),
        (VIEW + 'policy = "es-dfm"\n', "of a column has the policy 'es-dfm'"),
        (BUY + 'at_least = 30\n', "'buy' has at_least without a column"),
        (VIEW + VIEW.replace('"long_view"', '"w"', 1) + 'at_least = 30\n', "reads 'long_view' otherwise"),
        ("".join(VIEW.replace('"long_view"', f'"o{i}"', 1) for i in range(40)), "40 outcomes"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_one_line(text: str, problem: str) -> None:
    said = mistake(PLAIN + text)
    assert problem in said
    assert "; " in said, "with a remedy"


_WORDS = st.sampled_from(["buy", "a", "click", "purchase", "cart", "30d", "1h", "soon", "", "price", "page", "é", "A"])


@given(
    st.lists(st.dictionaries(st.sampled_from([*OutcomeRule.__struct_fields__, "x"]), _WORDS, max_size=6), max_size=10)
)
def test_any_entries_are_a_schema_or_an_error(entries: list[dict[str, str]]) -> None:
    """A schema that is accepted has outcomes that everything after it may take as given."""
    text = PLAIN + "".join(
        "[[outcome]]\n" + "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in entry.items())
        for entry in entries
    )
    try:
        found = parse_schema(text).outcome
    except SchemaError:
        return
    assert len(found) == len(entries) <= MOST_OUTCOMES
    assert len({one.name for one in found} | {"click"}) == len(found) + 1
    assert all((one.event is None) is not (one.column is None) for one in found)
    assert all(one.within_ms > 0 for one in found if one.event is not None)


def test_outcomes_are_part_of_what_a_schema_means_and_nothing_where_there_are_none() -> None:
    plain, both = parse_schema(PLAIN), parse_schema(PLAIN + BUY + VIEW)
    assert len({plain.id, both.id, parse_schema(PLAIN + VIEW + BUY).id, parse_schema(PLAIN + VIEW).id}) == 4
    assert both.id == parse_schema(PLAIN + BUY.replace('value = "price"\n', "") + VIEW).id
    assert both.id == parse_schema(PLAIN + BUY + 'policy = "es-dfm"\n' + VIEW).id
    windows = {
        n: v for n, v in msgspec.to_builtins(plain.windows).items() if n not in ("half_lives", "means", "lengths")
    }
    fields = [
        {n: v for n, v in msgspec.to_builtins(f).items() if n not in ("pool", "bigrams", "size")} for f in plain.fields
    ]
    meaning = msgspec.json.encode((fields, windows, plain.crosses, plain.utc_offset))  # as it was before outcomes
    assert plain.id == hashlib.sha256(meaning).hexdigest()[:16]


# -- samples -----------------------------------------------------------------------------------------------------

OUTCOMES = st.integers(0, 3).flatmap(
    lambda k: st.lists(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=k, max_size=k), max_size=6)
)


@given(OUTCOMES, st.sampled_from([0, 1, 7, 255]))
def test_outcomes_survive_the_wire(told: list[list[float]], telling: int) -> None:
    k = len(told[0]) if told else 0
    batch = replace(make_samples(len(told), 0), outcomes=np.array(told, np.float32).reshape(len(told), k))
    plain = batch.to_bytes()
    batch = replace(batch, telling=np.arange(len(told), dtype=np.uint8) % 2 * np.uint8(telling))
    assert telling or batch.to_bytes() == plain, "nothing is said of it where there is none"
    assert SampleBatch.from_bytes(batch.to_bytes()).telling.tobytes() == batch.telling.tobytes()
    back = SampleBatch.from_bytes(batch.to_bytes())
    assert back.outcomes.tobytes() == batch.outcomes.tobytes()
    assert back.told.tolist() == [sum(1 << k for k, v in enumerate(row) if v == v) for row in told]


def test_a_batch_that_tells_none_has_the_bytes_that_it_always_had() -> None:
    """The six parts of a message of form 4, and no seventh."""
    batch = make_samples(5, 0)
    assert len(msgspec.msgpack.decode(batch.to_bytes())) == 6
    assert len(msgspec.msgpack.decode(batch.telling_none(2).to_bytes())) == 7


def test_batches_that_tell_and_that_do_not_are_joined() -> None:
    both = SampleBatch.concat([make_samples(2, 0), replace(make_samples(3, 0), outcomes=np.ones((3, 2), np.float32))])
    assert both.outcomes.tolist()[2:] == [[1, 1]] * 3
    assert np.isnan(both.outcomes[:2]).all()


@pytest.mark.parametrize("extra", [b"\0", b"\0\0\0\0"])
def test_outcomes_that_fit_no_row_are_refused(extra: bytes) -> None:
    parts = msgspec.msgpack.decode(replace(make_samples(3, 0), outcomes=np.ones((3, 2), np.float32)).to_bytes())
    with pytest.raises(SchemaError):
        SampleBatch.from_bytes(msgspec.msgpack.encode([*parts[:-1], parts[-1] + extra]))


def test_another_schema_takes_the_outcomes_that_it_has_too() -> None:
    old, new = parse_schema(PLAIN + BUY + VIEW), parse_schema(PLAIN + VIEW + VIEW.replace('"long_view"', '"new"', 1))
    batch = _of(old, np.array([[1, 0], [np.nan, 1]], np.float32))
    carried = Carry(old, new).samples(batch).outcomes
    assert carried[:, 0].tolist() == [0, 1]
    assert np.isnan(carried[:, 1]).all()
    assert Carry(old, new).samples(_of(old, np.empty((2, 0), np.float32))).outcomes.shape == (2, 0)


def _of(schema: Schema, outcomes: np.ndarray) -> SampleBatch:
    n, layout = len(outcomes), schema.layout
    return SampleBatch.of_rows(
        np.zeros(n, np.uint8),
        np.ones(n, np.int64),
        np.ones((n, layout.F), np.int64),
        np.ones((n, layout.N), np.float32),
        outcomes=outcomes,
    )
