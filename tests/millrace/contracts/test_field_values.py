"""The words of texts: in any language, the same from everywhere, and few whatever comes."""

from __future__ import annotations

import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.basics.errors import LogError, SchemaError
from millrace.basics.hashing import value_hash
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import BadEventError, Item
from millrace.contracts.field_values import MOST_LETTERS, parts_of
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import Field, parse_schema
from millrace.logs import read_log
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import ItemIndex
from tests.scenes.exploring import examples
from tests.scenes.schemas import named, of_item, of_user, table, windows_of

TITLE, PAIRS = Field("title", "item", "text"), Field("title", "item", "text", bigrams=True)
FIELDS = named("texts") + of_user("user_id") + of_item("item_id") + table("[[fields]]", name="title", of="item")
TEXTS = 'kind = "text"\n' + windows_of("item_id", days=[1])
SCHEMA = parse_schema(FIELDS + TEXTS + table("[log]", time="at", user="user_id", item="item_id", label="click"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tariff talks stall: TARIFF up!", ["tariff", "talks", "stall", "up"]),
        ("Straße cafe\u0301 ﬁn ＡＢＣ", ["strasse", "café", "fin", "abc"]),
        ("3.5 km in 2026", ["3", "5", "km", "in", "2026"]),
        ("हिन्दी में समाचार", ["हिन्दी", "में", "समाचार"]),
        ("日本の旅 Tokyo東京", ["日", "本", "の", "旅", "tokyo", "東", "京"]),
        ("\u202bمرحبا\u200f بالعالم\u202c", ["مرحبا", "بالعالم"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("❤️ 😀 … —", []),
        ("\ud800 half \udfff", ["half"]),
        ("", []),
        (None, []),
        (float("nan"), []),
        (["a", "b"], []),
        (7.0, ["7"]),
    ],
)
def test_words_are_letters_and_digits_of_any_script(text: object, words: list[str]) -> None:
    assert list(parts_of(TITLE, text)) == words


def test_pairs_follow_the_words_and_are_of_neighbours() -> None:
    assert list(parts_of(PAIRS, "ab cd 日本")) == ["ab", "cd", "日", "本", "ab cd", "cd 日", "日 本"]
    many = " ".join(map(str, range(100)))
    assert list(parts_of(TITLE, many)) == [str(n) for n in range(16)]
    assert len(parts_of(PAIRS, many)) == PAIRS.slots == 32
    assert list(parts_of(Field("title", "item", "text", slots=2), many)) == ["0", "1"]


@given(st.text(max_size=60))
@example("ﷺ" * 60)
@example("\u0345" * 50)
@examples(200)
def test_words_are_different_usable_and_no_more_than_the_slots(text: str) -> None:
    for field in (TITLE, PAIRS):
        words = list(parts_of(field, text))
        assert len(words) == len(set(words)) <= field.slots
        assert all(value_hash(word) and word.split() and word == word.strip() for word in words)
    assert list(parts_of(PAIRS, text))[: TITLE.slots] != [] or not any(c.isalnum() for c in text)


def test_a_text_without_end_costs_no_more_than_its_beginning() -> None:
    assert list(parts_of(TITLE, "word " * 2_000_000 + "end")) == ["word"]
    assert list(parts_of(TITLE, "x" * 10_000_000)) == ["x" * MOST_LETTERS]


def test_a_word_is_the_same_from_a_message_a_log_and_the_catalogue() -> None:
    texts = ["Tariff talks", "talks TARIFF talks", "日本 café", "", "1984", "\u200fab c\u0327"]
    frame = pd.DataFrame({"at": range(1, 7), "user_id": 1, "item_id": range(6), "click": 0, "title": texts})
    frame["at"] += 1_700_000_000_000
    log = LogRows(read_log(frame, SCHEMA), SCHEMA)
    builder = FeatureBuilder(SCHEMA)
    cat = builder.cat(log.columns(np.arange(6))[0], 6)
    index = ItemIndex(builder)
    for row, text in enumerate(texts):
        raw = json.dumps({"item_id": row, "attributes": {"title": text}}).encode()
        item = Intake(SCHEMA).item(raw)
        assert isinstance(item, Item)
        held = index.prepare(item).arrays["column/title"]
        expected = [value_hash(word) for word in parts_of(TITLE, text)]
        assert held.tolist() == [expected + [0] * (16 - len(expected))]
        live = builder.cat(builder.attributes("item", item.attributes)[0], 1)
        columns = [c for c, name in enumerate(SCHEMA.layout.cat_names) if name == "title"]
        assert np.array_equal(cat[row, columns], live[0, columns])
    index.put([index.prepare(Item(n, {"title": text})) for n, text in enumerate(texts)])
    assert index.columns(np.arange(2))["title"][0, 0] == index.columns(np.arange(2))["title"][1, 1]


def test_a_thousand_hostile_texts_are_one_dead_letter_each_at_most() -> None:
    rng, index, intake = random.Random(5), ItemIndex(FeatureBuilder(SCHEMA)), Intake(SCHEMA)
    odd = ["\\ud800", "\\u0000", "\\u202e", "😀", "\u0301", "ﷺ", "日", "a", " ", "\\n", "١", "\u200d", "İ", "-1e400"]
    whole = ["null", '["a", "b"]', "{}", "7", "true", "1e400"]
    whole += [f'"{"x" * 10_000_000}"', f'"{"w " * 1_000_000}"']
    bodies = ['"' + "".join(rng.choices(odd[n % 2 :], k=rng.randrange(200))) + '"' for n in range(1000 - len(whole))]
    refused, taken = [], 0
    for n, body in enumerate([*whole, *bodies]):
        try:
            item = intake.item(f'{{"item_id": {n}, "attributes": {{"title": {body}}}}}'.encode())
        except BadEventError as error:
            refused.append((body[:20], error.reason))
            continue
        index.put([index.prepare(item)])  # type: ignore[arg-type]
        taken += 1
    assert taken + len(refused) == 1000
    assert taken == len(index) > 100
    reasons = dict(refused)
    assert reasons['["a", "b"]'] == "bad-value"
    assert reasons["{}"] == "wrong-type"
    assert reasons['"' + "x" * 19] == "oversized"
    assert set(reasons.values()) <= {"bad-value", "wrong-type", "malformed", "oversized"}
    assert index.columns(np.arange(taken))["title"].shape == (taken, 16)


def test_a_list_is_no_text_in_a_log() -> None:
    frame = pd.DataFrame({"at": [1_700_000_000_000], "user_id": 1, "item_id": 1, "click": 0, "title": [["a", "b"]]})
    with pytest.raises(LogError, match="text field 'title' holds"):
        read_log(frame, SCHEMA)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (FIELDS + "bigrams = true\n" + windows_of(days=[1]), "'title' has bigrams"),
        (FIELDS + "slots = 17\n" + windows_of(days=[1]), "'title' has 17 slots"),
        (FIELDS + 'kind = "text"\n' + windows_of("title", days=[1]), "names 'title', a text"),
        (FIELDS.replace('"item_id"', '"item_id"\nkind = "text"') + windows_of(days=[1]), "'item_id' is a text"),
        ('filters = ["title"]\n' + FIELDS + TEXTS, "a text field"),
        ('crosses = [["user_id", "title"]]\n' + FIELDS + TEXTS, "no categorical field"),
    ],
)
def test_a_text_is_no_id_no_key_and_no_filter(text: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=problem):
        parse_schema(text)


def test_a_schema_with_a_text_is_the_same_after_it_was_written() -> None:
    plain = parse_schema(FIELDS + windows_of("item_id", days=[1]))
    paired = SCHEMA.edit(
        fields=[{"name": "title", "of": "item", "kind": "text", "bigrams": True}], windows={"keys": []}
    )
    assert len({plain.id, SCHEMA.id, paired.id}) == 3
    assert [parse_schema(one.edit().text).id for one in (SCHEMA, paired)] == [SCHEMA.id, paired.id]
    assert (SCHEMA.layout.F, paired.layout.F) == (2 + 16, 32)
