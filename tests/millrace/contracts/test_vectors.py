"""The numbers of vectors: the same from everywhere, of what was served, and no vector that is none."""

from __future__ import annotations

import hashlib
import math
from base64 import b64encode
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import millrace as mr
from millrace.basics.errors import LogError, SchemaError
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import BadEventError, Item, to_json
from millrace.contracts.field_values import numbers_of
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import VECTOR_NUMBERS, Field, parse_schema
from millrace.logs import read_log
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import ItemIndex
from scorer.page.score_reasons import inputs_of
from tests.scenes.exploring import examples
from tests.scenes.schemas import named, of_item, of_user, table
from tests.scenes.stream_world import T0

SIZE = 384
MEANING = Field("meaning", "item", "vector", SIZE)
SHORT = Field("place", "item", "vector", 2)
FIELDS = named("vectors") + of_user("user_id") + of_item("item_id")
LOG = table("[log]", time="at", user="user_id", item="item_id", label="click")


def of_vector(name: str = "meaning", size: int = SIZE, of: str = "item") -> str:
    return table("[[fields]]", name=name, of=of, kind="vector", size=size)


SCHEMA = parse_schema(FIELDS + of_vector() + of_vector("place", 2) + LOG)
RNG = np.random.default_rng(7)
VECTORS = RNG.normal(size=(50, SIZE)).astype(np.float16)


def as_text(vector: np.ndarray) -> str:
    return b64encode(vector.astype("<f2").tobytes()).decode()


def test_a_list_and_its_texts_are_one_vector_and_what_was_made_stays() -> None:
    for vector in VECTORS:
        made = numbers_of(MEANING, vector.astype(float).tolist())
        assert made.shape == (VECTOR_NUMBERS,)
        assert numbers_of(MEANING, as_text(vector)).tobytes() == made.tobytes()
        assert numbers_of(MEANING, str(vector.astype(float).tolist())).tobytes() == made.tobytes()
        assert numbers_of(MEANING, made.tolist()).tobytes() == made.tobytes()
        assert numbers_of(MEANING, 7 * vector.astype(float)).tobytes() == made.tobytes()  # its direction alone
    assert numbers_of(SHORT, [3, -0.125]).tolist() == [3, -0.125]
    for missing in (None, "", [0.0] * SIZE):
        assert not numbers_of(MEANING, missing).any()


def test_the_bits_are_the_same_on_every_machine() -> None:
    made = numbers_of(MEANING, [n * n * 7919 % 1001 - 500 for n in range(SIZE)])
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == "77a46ae7a5d9d185"


def test_near_vectors_have_near_numbers() -> None:
    """The mean error of a cosine is about 1 / sqrt(32)."""
    made = np.array([numbers_of(MEANING, v) for v in VECTORS], np.float64) / math.sqrt(VECTOR_NUMBERS)
    mixed = VECTORS.astype(float) + VECTORS[0].astype(float) * np.linspace(0, 3, len(VECTORS))[:, None]
    true = mixed @ mixed[0] / np.linalg.norm(mixed, axis=1) / np.linalg.norm(mixed[0])
    found = np.array([numbers_of(MEANING, v) for v in mixed], np.float64) / math.sqrt(VECTOR_NUMBERS)
    error = found @ found[0] - true
    assert np.sqrt((error**2).mean()) < 0.3
    assert np.corrcoef(found @ found[0], true)[0, 1] > 0.85
    assert np.abs(np.square(made).sum(1) - 1).max() < 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([1.0] * (SIZE - 1), "has 383 numbers, not 384"),
        ([], "has 0 numbers, not 384"),
        ([[1.0] * SIZE], "has 384 numbers, not 384"),
        ([math.nan] + [1.0] * (SIZE - 1), "has a number beyond 65,504, or none"),
        ([65_520] + [1] * (SIZE - 1), "has a number beyond 65,504, or none"),
        (["a"] * SIZE, "is no vector of 384 numbers"),
        ("Tariff talks stall", "is no vector of 384 numbers"),
        ("[1, 2", "is no vector of 384 numbers"),
        ("[" * 100_000, "is no vector of 384 numbers"),
        ("\ud800", "is no vector of 384 numbers"),
        (as_text(np.full(SIZE, np.inf)), "has a number beyond 65,504, or none"),
        (3, "has 1 numbers, not 384"),
        (True, "has 1 numbers, not 384"),
    ],
)
def test_what_is_no_vector_is_refused_with_its_reason(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        numbers_of(MEANING, value)
    try:
        raw = to_json(Item("i", {"meaning": value}, 1))
    except UnicodeEncodeError:
        return
    with pytest.raises(BadEventError) as caught:
        Intake(SCHEMA).item(raw.replace(b"null,", b"1e999,", 1) if why.endswith("none") else raw)
    assert caught.value.reason in ("bad-value", "wrong-type", "malformed")


@given(
    st.one_of(
        st.text(),
        st.lists(st.floats(), min_size=2, max_size=2),
        st.lists(st.one_of(st.integers(), st.floats(), st.text())),
        st.binary().map(lambda raw: b64encode(raw).decode()),
    )
)
@examples(1000)
def test_whatever_comes_is_finite_numbers_or_a_refusal(value: Any) -> None:
    try:
        made = numbers_of(SHORT, value)
    except ValueError:
        return
    assert made.shape == (2,)
    assert np.isfinite(made).all()


def test_a_list_with_fractions_is_of_no_other_field() -> None:
    tags = parse_schema(FIELDS + table("[[fields]]", name="tags", of="item", slots=4))
    with pytest.raises(BadEventError, match="fraction"):
        Intake(tags).item(to_json(Item("i", {"tags": [0.5]}, 1)))


def test_a_log_has_the_numbers_that_an_item_has_live() -> None:
    given_ = [VECTORS[0].astype(float).tolist(), None, VECTORS[1].astype(float).tolist()]
    frame = pd.DataFrame(
        {
            "at": [T0, T0 + 1, T0 + 2],
            "user_id": 1,
            "item_id": ["a", "b", "c"],
            "click": 0,
            "meaning": given_,
            "place": ["[1, 2]"] * 3,
        }
    )
    log = read_log(frame, SCHEMA)
    rows = LogRows(log, SCHEMA, None)
    _, plain = rows.columns(slice(0, 3))
    index = ItemIndex(FeatureBuilder(SCHEMA))
    for n, value in enumerate(given_):
        attributes = {"meaning": value, "place": [1, 2]}
        image = index.prepare(Intake(SCHEMA).item(to_json(Item("abc"[n], attributes, 1))))  # type: ignore[arg-type]
        for name in (*MEANING.numbers, *SHORT.numbers):
            assert image.arrays[f"plain/{name}"][0] == plain[name][n]
    assert plain["place.1"].tolist() == [2, 2, 2]


def test_a_log_names_the_row_of_what_is_no_vector() -> None:
    frame = pd.DataFrame({"at": [T0, T0 + 1], "user_id": 1, "item_id": "a", "click": 0, "meaning": [None, [1.0, 2.0]]})
    with pytest.raises(LogError, match=r"row 2 has the vector 'meaning' \[1.0, 2.0\], which has 2 numbers, not 384"):
        read_log(frame, parse_schema(FIELDS + of_vector() + LOG))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (of_vector(size=0), "is a vector of size 0"),
        (of_vector(of="context"), "is a vector of the context"),
        (of_vector() + of_item("meaning.3:numeric"), "is a field and a number of the vector"),
        (table("[[fields]]", name="tags", of="item", size=3), "is a categorical of size 3"),
        (of_vector() + "[windows]\nkeys = [{columns = ['meaning']}]\n", "a text or vector"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(fields: str, why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        parse_schema(FIELDS + fields)


def test_a_page_is_explained_by_the_vector_not_by_its_numbers() -> None:
    (one,) = [one for one in inputs_of(SCHEMA) if one.name == "meaning"]
    assert len(one.num) == VECTOR_NUMBERS


def test_guess_proposes_lists_of_one_length_as_a_vector_of_the_item() -> None:
    n = 2000
    item = RNG.integers(0, 20, n)
    frame = pd.DataFrame({"time_ms": T0 + np.arange(n) * 1000, "user_id": RNG.integers(0, 50, n), "item_id": item})
    frame["is_click"] = (RNG.random(n) < 0.2).astype(int)
    frame["meaning"] = [VECTORS[i, :40].astype(float).tolist() for i in item]
    frame["each"] = [[float(i), 0.5] for i in range(n)]
    frame["uneven"] = [[0.5] * (1 + i) for i in item]
    guessed = mr.guess(frame)
    vector = [
        'name = "meaning"  # lists of numbers with a fraction, all of one length',
        'of = "item"',
        'kind = "vector"',
        "size = 40",
    ]
    assert "\n".join(vector) in guessed.text
    assert "each: a vector that differs from row to row" in guessed.text
    assert "uneven: lists of numbers with a fraction, of 20 lengths" in guessed.text
