"""Numbers that cross Kafka once: what is read is what was written, to the bit, and nothing that is read takes much."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch as AioBatch
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from numpy.typing import NDArray

from millrace.basics.errors import SchemaError
from millrace.contracts.events import NOT_READ, PROFILE_MISSING, BadEventError, PageLog, to_msgpack
from millrace.contracts.page_logs import decode_page_log, decode_served, page_log_bytes
from millrace.contracts.pagepack import (
    MOST_BYTES,
    Ids,
    Numbers,
    Rates,
    pack_ids,
    pack_numbers,
    read_rates,
    unpack_ids,
    unpack_numbers,
)
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.processes import kafka as clients
from millrace.windows.features import FeatureBuilder
from stream.partition.partition import InputMessage, Partition, Policy
from tests.scenes.checkpointed import pool
from tests.scenes.exploring import examples
from tests.scenes.page_sources import source_names
from tests.scenes.schemas import named, of_item, of_user, table, windows_of
from tests.scenes.scorer_shop import SCHEMA_TOML

SHOP = shop_schema()
IDS = of_user("user_id") + of_item("item_id")
KEYS = table("[[windows.keys]]", columns=["user_id"]) + table(
    "[[windows.keys]]", columns=["item_id"], parent=["user_id"]
)
FADING = parse_schema(
    (named("fading") + IDS + of_item("seconds:numeric"))
    + windows_of(
        actions=("exposure", "click", "purchase"),
        means=({"of": "seconds", "action": "click", "step": 0.5},),
        days=[1, 7],
        half_lives=[2.0],
    )
    + KEYS
)
BARE = named("bare") + IDS + windows_of(days=[1, 3], prior_weight=0.0) + KEYS
SCHEMAS = {"shop": SHOP, "scorer": load_schema(SCHEMA_TOML), "fading": FADING}


def numbers(schema: Schema, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows as the feature builder makes them: of one user, of some categories. (n, N)"""
    builder, windows, layout = FeatureBuilder(schema), schema.windows, schema.layout
    columns = len(windows.actions) + len(windows.means)
    counts = rng.integers(0, 300, (n, layout.K, len(windows.spans), columns)).cumsum(axis=2)
    counts[:, 0] = counts[:1, 0]
    counts[:, -1] *= rng.integers(0, 2, (n, 1, 1))
    plain = {f.name: rng.normal(size=n).astype(np.float32) for f in layout.plain_fields}
    num = builder.num(plain, counts, n, 1_700_000_123_456)
    builder.compare(num, np.arange(n) // 10)
    return num


def bits(array: NDArray[Any]) -> bytes:
    return array.tobytes()


def page_of(schema: Schema, n: int, seed: int = 0, **changed: Any) -> PageLog:
    rng, layout = np.random.default_rng(seed), schema.layout
    ids = rng.integers(0, 1 << 63, (n, layout.F), dtype=np.uint64)
    ids[:, ::2] = ids[:1, ::2]
    keys = rng.integers(1, 1 << 63, (n, layout.K), dtype=np.uint64)
    keys[:, 0] = keys[:1, 0]
    made = PageLog(
        request_id=f"page-{seed}",
        ts_ms=1_700_000_000_000 + seed,
        user_id=7,
        arm="model",
        model_version=3,
        schema_id=schema.id,
        items=list(range(n)),
        scores=rng.random(n, np.float32).tobytes(),
        keys=keys.tobytes(),
        cat=ids.tobytes(),
        num=numbers(schema, n, rng).tobytes(),
        served_ms=5,
    )
    return msgspec.structs.replace(made, **changed)


def batch_of(schema: Schema, sizes: list[int], seed: int = 0, arms: bool = False) -> SampleBatch:
    """Pages one after another, rows in any order; with names of arms and odds, if they are asked for."""
    rng, n = np.random.default_rng(seed), sum(sizes)
    page = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    ids = rng.integers(-(1 << 62), 1 << 62, (n, schema.layout.F))
    ids[:, 1] = page
    made = SampleBatch.of_rows(
        rng.integers(0, 3, n).astype(np.uint8),
        1_700_000_000_000 + page.astype(np.int64),
        ids,
        np.concatenate([numbers(schema, size, rng) for size in sizes]),
        request=tuple(f"page-{seed}-{p}" for p in range(len(sizes))),
        page=page,
        position=np.concatenate([np.arange(size) for size in sizes]).astype(np.int32),
        user_missing=(page % 8).astype(np.uint8),
        label=rng.integers(0, 2, n).astype(np.float32),
        policy=rng.integers(0, 5, n).astype(np.uint8),
    )
    if arms:
        made = replace(made, arm_name=rng.integers(0, 3, n).astype(np.uint64), odds=rng.random(n, np.float32))
    return made.take(rng.permutation(n))


# -- round trips -----------------------------------------------------------------------------------------------------

ODD = np.array([0, -0.0, 1, 2**24 - 1, 2**24, -1, 0.5, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], np.float32)
ODD_BITS = np.append(ODD.view(np.uint32), np.array([0x7F800123, 0xFFC00007], np.uint32))  # NaN that carry something


@examples(150)
@given(st.data())
def test_any_arrays_are_read_as_they_were_written(data: st.DataObject) -> None:
    schema = SCHEMAS[data.draw(st.sampled_from(sorted(SCHEMAS)))]
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    rows, pages = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 4))
    used, first, page = np.unique(rng.integers(0, pages, rows), return_index=True, return_inverse=True)
    num = numbers(schema, max(rows, 1), rng)[:rows].copy()
    if data.draw(st.booleans()):  # some bits are others, anywhere
        raw = num.view(np.uint32)
        for _ in range(data.draw(st.integers(0, 5)) if rows else 0):
            raw[rng.integers(rows), rng.integers(num.shape[1])] = rng.choice(ODD_BITS)
    if data.draw(st.booleans()):
        num[:, ::3] = num[first][page][:, ::3]
    rates = data.draw(st.sampled_from([None, Rates.of(schema), Rates.of(SHOP)]))
    packed = pack_numbers(num, first, page, rates)
    assert bits(unpack_numbers(sent(packed), len(used), page)) == bits(num)
    ids = rng.integers(0, 1 << 63, (rows, 9), dtype=np.uint64)
    ids[:, data.draw(st.integers(0, 8)) :] = 5
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(pack_ids(ids, first, page)), type=Ids)
    assert bits(unpack_ids(again, len(used), page)) == bits(ids)


def sent(numbers: Numbers) -> Numbers:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(numbers), type=Numbers)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_rates_of_the_feature_builder_follow_from_its_counts(name: str) -> None:
    schema = SCHEMAS[name]
    num, rng = numbers(schema, 40, np.random.default_rng(1)), np.random.default_rng(2)
    first, page = np.array([0, 20]), np.repeat([0, 1], 20)
    packed = pack_numbers(num, first, page, Rates.of(schema))
    assert packed.follow
    rate = [c for c, column in enumerate(schema.layout.num_names) if "_rate." in column]
    changed = num.copy()
    changed.view(np.uint32)[rng.integers(40), rng.choice(rate)] ^= 1  # the last bit of one rate of one row
    other = pack_numbers(changed, first, page, Rates.of(schema))
    assert not other.follow
    assert bits(unpack_numbers(sent(other), 2, page)) == bits(changed)
    assert len(packed.body) < len(other.body)


def test_without_a_prior_weight_the_rates_follow_too() -> None:
    schema = parse_schema(BARE)
    num = numbers(schema, 30, np.random.default_rng(3))
    num_names = schema.layout.num_names
    assert (num[:, [c for c, name in enumerate(num_names) if ".exposure." in name]] == 0).any()  # the case with a guard
    packed = pack_numbers(num, np.array([0]), np.zeros(30, np.int64), Rates.of(schema))
    assert packed.follow
    assert bits(unpack_numbers(sent(packed), 1, np.zeros(30, np.int64))) == bits(num)


def test_what_is_the_same_on_a_page_stands_there_once() -> None:
    page = page_of(SHOP, 20)
    raw = page_log_bytes(page, Rates.of(SHOP))
    twice = msgspec.structs.replace(
        page, items=page.items * 2, **{a: getattr(page, a) * 2 for a in ("scores", "keys", "cat", "num")}
    )
    once, rows = len(raw), len(page_log_bytes(twice, Rates.of(SHOP))) - len(raw)
    assert rows < once  # 20 more rows repeat nothing that holds for all
    assert once < 0.4 * len(to_msgpack(page))


@pytest.mark.parametrize("n", [1, 2, 20, 1000])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_page_log_of_either_form_is_read_alike(name: str, n: int) -> None:
    page = page_of(SCHEMAS[name], n)
    for rates in (None, Rates.of(SCHEMAS[name])):
        raw = page_log_bytes(page, rates)
        assert decode_page_log(raw) == page == decode_page_log(to_msgpack(page))
        assert n == 1 or isinstance(msgspec.msgpack.decode(raw), list)  # the new form. One row repeats nothing.
        with pytest.raises(TypeError):
            decode_served(raw).num[0] = 1


def test_where_items_were_found_is_read_as_it_was_written_and_older_messages_do_not_say() -> None:
    page = page_of(SHOP, 4, sources=bytes([1, 4, 6, 250]))
    assert source_names(page) == ["vectors", "hot", "random", "none"]
    maps, arrays = to_msgpack(page), page_log_bytes(page, Rates.of(SHOP))
    assert isinstance(msgspec.msgpack.decode(arrays), list)
    for raw in (maps, arrays):
        assert decode_page_log(raw) == page
        assert decode_served(raw).sources == page.sources

    parts = msgspec.msgpack.decode(arrays)
    assert parts[14:16] == [page.offset, page.sources], "from the 16th on a message's first byte is another one"
    older = msgspec.msgpack.encode(parts[:15])
    fields = {name: value for name, value in msgspec.msgpack.decode(maps).items() if name != "sources"}
    for raw in (older, msgspec.msgpack.encode(fields)):
        assert decode_page_log(raw) == msgspec.structs.replace(page, sources=b"")
    assert source_names(decode_page_log(older)) == ["none"] * 4
    longer = msgspec.msgpack.encode([*parts, b"", "of a later version"])
    assert decode_page_log(longer) == page, "and so does a reader that knows fewer fields than there are"


def test_what_a_page_lacks_of_its_user_is_read_as_it_was_written_and_older_messages_say_nothing() -> None:
    page = page_of(SHOP, 4, user_missing=PROFILE_MISSING | NOT_READ)
    maps, arrays = to_msgpack(page), page_log_bytes(page, Rates.of(SHOP))
    for raw in (maps, arrays):
        assert decode_page_log(raw) == page
        assert decode_served(raw).user_missing == page.user_missing
    *older, missing, among, odds, arm_name = msgspec.msgpack.decode(arrays)
    assert (missing, among, odds, arm_name) == (page.user_missing, b"", b"", "")
    fields = {name: value for name, value in msgspec.msgpack.decode(maps).items() if name != "user_missing"}
    for raw in map(msgspec.msgpack.encode, (older, fields)):
        assert decode_page_log(raw) == msgspec.structs.replace(page, user_missing=0)
    for wrong in (-1, 256, "7", None):
        with pytest.raises(BadEventError):
            decode_served(msgspec.msgpack.encode([*older, wrong]))


def test_a_page_that_was_re_ranked_says_so_and_others_have_not_a_byte_more() -> None:
    plain, ranked = page_of(SHOP, 4), np.array([0.5, np.nan, 0.25, 0.125], np.float32).tobytes()
    page = msgspec.structs.replace(plain, ranked=ranked)
    for write in (to_msgpack, lambda p: page_log_bytes(p, Rates.of(SHOP))):
        assert decode_page_log(write(page)) == page
        assert decode_served(write(page)).ranked == ranked
        assert decode_page_log(write(plain)) == plain
        assert decode_served(write(plain)).ranked == b""
    assert "ranked" not in msgspec.msgpack.decode(to_msgpack(plain))
    assert len(msgspec.msgpack.decode(page_log_bytes(page))) == len(msgspec.msgpack.decode(page_log_bytes(plain))) + 1


def test_pages_that_hardly_get_smaller_stay_as_they_are() -> None:
    rng, layout = np.random.default_rng(0), SHOP.layout
    page = page_of(
        SHOP,
        20,
        num=rng.random((20, layout.N), np.float32).tobytes(),
        cat=rng.bytes(160 * layout.F),
        keys=rng.bytes(160 * layout.K),
    )
    assert page_log_bytes(page, Rates.of(SHOP)) == to_msgpack(page)


@pytest.mark.parametrize("changed", [{"items": []}, {"num": b"\0" * 4}, {"keys": b""}, {"cat": b"\1" * 7}])
def test_what_is_no_page_is_written_as_it_is(changed: dict[str, Any]) -> None:
    page = page_of(SHOP, 3, **changed)
    assert decode_page_log(page_log_bytes(page, Rates.of(SHOP))) == page


@pytest.mark.parametrize(("sizes", "arms"), [([1], False), ([3, 1, 20], True), ([20] * 30, False)])
@pytest.mark.parametrize("name", SCHEMAS)
def test_samples_are_read_as_they_were_written(name: str, sizes: list[int], arms: bool) -> None:
    batch = batch_of(SCHEMAS[name], sizes, arms=arms)
    for rates in (None, Rates.of(SCHEMAS[name])):
        back = SampleBatch.from_bytes(batch.to_bytes(rates))
        same(back, batch)
        nobody = batch.take(slice(0, 0))
        same(SampleBatch.from_bytes(nobody.to_bytes(rates)), nobody)
        with pytest.raises(ValueError, match="read-only"):
            back.num[0, 0] = 1
    assert len(batch.to_bytes(Rates.of(SCHEMAS[name]))) < len(old_samples(batch))


def test_concat_and_take_keep_the_ids() -> None:
    a, b = batch_of(SHOP, [3, 2], 1), batch_of(SHOP, [4], 2)
    both = SampleBatch.concat([a, b])
    assert list(both.ids()) == [*a.ids(), *b.ids()]
    odd = both.take(np.arange(1, 9, 2))
    assert list(odd.ids()) == list(both.ids())[1::2]
    assert list(SampleBatch.from_bytes(odd.to_bytes()).ids()) == list(odd.ids())


def old_samples(batch: SampleBatch) -> bytes:
    """A batch in form 2, in which every column stood as it is."""
    used, page = np.unique(batch.page, return_inverse=True)
    columns = {name: np.ascontiguousarray(getattr(batch, name)).tobytes() for name in batch.__slots__[1:]}
    columns["page"] = page.astype("<i4").tobytes()
    request = [batch.request[i] for i in used.tolist()]
    return msgspec.msgpack.encode((2, request, batch.cat.shape[1], batch.num.shape[1], columns))


def test_samples_of_another_form_are_refused() -> None:
    form, request, once, columns, *features = msgspec.msgpack.decode(batch_of(SHOP, [3, 5]).to_bytes())
    assert (form, len(columns)) == (5, 16)
    wrong: tuple[int, list[bytes], str]
    for wrong in (
        (4, columns, r"\(form 4\); run one version"),
        (6, columns, "form 6"),
        (5, columns[:-1], ""),
        (5, [], ""),
    ):
        with pytest.raises(SchemaError, match=f"not a sample batch.*{wrong[2]}"):
            SampleBatch.from_bytes(msgspec.msgpack.encode((wrong[0], request, once, wrong[1], *features)))


def same(one: SampleBatch, other: SampleBatch) -> None:
    assert list(one.ids()) == list(other.ids())
    for name in SampleBatch.__slots__:
        if name not in ("request", "page"):
            assert bits(getattr(one, name)) == bits(getattr(other, name)), name


def test_a_partition_makes_the_same_of_both_forms() -> None:
    """Samples and window counts, click and all, whichever form a page's log came in."""
    pages = [page_of(SHOP, n, seed) for seed, n in enumerate([3, 20, 1])]
    made = []
    for form in (to_msgpack, lambda page: page_log_bytes(page, Rates.of(SHOP))):
        partition = Partition(0, SHOP, Policy.of(Settings()))
        partition.take([InputMessage("page_logs", i, form(page)) for i, page in enumerate(pages)], 1 << 60)
        events = []
        for page in pages:
            seen = {"type": "exposure", "event_id": page.request_id, "request_id": page.request_id, "user_id": 7}
            events.append(seen | {"items": page.items, "ts_ms": page.ts_ms})
            events.append(
                {"type": "click", "event_id": f"{page.request_id}/c", "request_id": page.request_id, "user_id": 7,
                 "item_id": page.items[-1], "position": len(page.items) - 1, "ts_ms": page.ts_ms + 10}
            )  # fmt: skip
        raw = [InputMessage("events", i, msgspec.json.encode(event)) for i, event in enumerate(events)]
        samples = [partition.take(raw, 1 << 60).samples, partition.advance(pages[0].ts_ms + 86_400_000).samples]
        changes = partition.changes()
        made.append(([s for s in samples if s is not None], changes.item_keys.tolist(), changes.item_tiles))
    for one, other in zip(made[0][0], made[1][0], strict=True):
        same(one, other)
    assert sum(len(s) for s in made[0][0]) == 24
    assert made[0][1:] == made[1][1:]


# -- hostile ---------------------------------------------------------------------------------------------------------

SMALL = page_of(SCHEMAS["scorer"], 3)
GOOD_PAGE: list[Any] = msgspec.msgpack.decode(page_log_bytes(SMALL, Rates.of(SCHEMAS["scorer"])))
ITEMS, WIDTHS, RATES, FOLLOW, BLOCK = 7, 9, 10, 11, 12
K, F, N = GOOD_PAGE[WIDTHS]


def with_(*changes: tuple[int, Any]) -> bytes:
    message = list(GOOD_PAGE)
    for place, value in changes:
        message[place] = value
    return msgspec.msgpack.encode(message)


BAD_PAGES = {
    "another form": with_((0, 3)),
    "a block cut off": with_((BLOCK, GOOD_PAGE[BLOCK][:-1])),
    "a byte more": with_((BLOCK, GOOD_PAGE[BLOCK] + b"\0")),
    "no block": with_((BLOCK, b"")),
    "masks alone": with_((BLOCK, GOOD_PAGE[BLOCK][:4])),
    "all columns once": with_((BLOCK, b"\xff" * len(GOOD_PAGE[BLOCK]))),
    "no column once": with_((BLOCK, b"\0" * len(GOOD_PAGE[BLOCK]))),
    "an item more": with_((ITEMS, [*GOOD_PAGE[ITEMS], 9])),
    "an item less": with_((ITEMS, GOOD_PAGE[ITEMS][:-1])),
    "no items": with_((ITEMS, [])),
    "wider": with_((WIDTHS, [K, F, N + 1])),
    "narrower": with_((WIDTHS, [K, F - 1, N])),
    "negative": with_((WIDTHS, [K, -1, N])),
    "negative numbers": with_((WIDTHS, [K, F, -N]), (RATES, b"")),
    "absurd numbers": with_((WIDTHS, [K, F, 1 << 40]), (RATES, b"")),
    "absurd ids": with_((WIDTHS, [1 << 40, F, N])),
    "beyond 64 bits": with_((WIDTHS, [1 << 63, F, N])),
    "no recipe": with_((RATES, b"")),
    "a recipe cut off": with_((RATES, GOOD_PAGE[RATES][:-1])),
    "a recipe of nothing": with_((RATES, bytes(len(GOOD_PAGE[RATES])))),
    "a recipe of ones": with_((RATES, b"\xff" * len(GOOD_PAGE[RATES]))),
    "a recipe that is its own parent": with_((RATES, GOOD_PAGE[RATES][:-2] + b"\1\2")),
    "rates do not follow": with_((FOLLOW, False)),
    "a text": with_((BLOCK, "x")),
}


@pytest.mark.parametrize("name", BAD_PAGES)
def test_a_bad_page_is_a_named_error(name: str) -> None:
    with pytest.raises(BadEventError) as error:
        decode_served(BAD_PAGES[name])
    assert error.value.reason in {"malformed", "wrong-type"}
    assert "\n" not in str(error.value)


GOOD_BATCH: list[Any] = msgspec.msgpack.decode(
    batch_of(SCHEMAS["scorer"], [2, 3]).to_bytes(Rates.of(SCHEMAS["scorer"]))
)


def batch_with(place: tuple[int, ...], value: Any) -> bytes:
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(GOOD_BATCH))
    inner = message
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return msgspec.msgpack.encode(message)


REQUEST, ONCE, COLUMNS, CAT, NUM = 1, 2, 3, 4, 5
RAW_BATCH = msgspec.msgpack.encode(GOOD_BATCH)
BAD_BATCHES = {
    "cut off": RAW_BATCH[:-3],
    "empty": b"",
    "zeros": b"\0" * 40,
    "a byte left out": RAW_BATCH[:40] + RAW_BATCH[41:],
    "no requests": batch_with((REQUEST,), []),
    "a request more": batch_with((REQUEST,), ["a", "b", "c"]),
    "another mask of columns": batch_with((ONCE,), 0),
    "all columns once": batch_with((ONCE,), (1 << 62) - 1),
    "a column less": batch_with((COLUMNS,), GOOD_BATCH[COLUMNS][:-1]),
    "pages beyond": batch_with((COLUMNS, 0), b"\x05\0\0\0" * 5),
    "pages before": batch_with((COLUMNS, 0), b"\xff" * 20),
    "a page less": batch_with((COLUMNS, 0), GOOD_BATCH[COLUMNS][0][:-4]),
    "positions run over": batch_with((COLUMNS, 1), b"\xff\xff\xff\x7f" * 5),
    "ids wider": batch_with((CAT, 0), GOOD_BATCH[CAT][0] + 1),
    "ids absurd": batch_with((CAT, 0), 1 << 40),
    "ids negative": batch_with((CAT, 0), -1),
    "ids cut off": batch_with((CAT, 1), GOOD_BATCH[CAT][1][:-8]),
    "numbers wider": batch_with((NUM, 0), GOOD_BATCH[NUM][0] + 1),
    "numbers absurd": batch_with((NUM, 0), 1 << 50),
    "numbers cut off": batch_with((NUM, 1), GOOD_BATCH[NUM][1][:-1]),
    "numbers without a mask": batch_with((NUM, 2), None),
    "a mask too short": batch_with((NUM, 2), b""),
    "a recipe too short": batch_with((NUM, 4), b"\1"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_samples_are_a_named_error(name: str) -> None:
    with pytest.raises(SchemaError, match="not a sample batch"):
        SampleBatch.from_bytes(BAD_BATCHES[name])


@examples(400)
@given(st.binary(min_size=1, max_size=6), st.integers(0, 1 << 20), st.booleans())
def test_damage_anywhere_ends_in_a_value_or_in_the_named_error(noise: bytes, at: int, samples: bool) -> None:
    good = msgspec.msgpack.encode(GOOD_BATCH if samples else GOOD_PAGE)
    at %= len(good)
    raw = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(BadEventError, SchemaError):
        if samples:
            SampleBatch.from_bytes(raw)
        else:
            decode_served(raw)


def small_recipe() -> bytes:
    """A recipe of a few bytes for the most numbers that its bytes can say."""
    head = Rates.of(SCHEMAS["scorer"])
    assert head is not None
    return b"\xff\xff\xff\xff\xff\xff" + head.raw[6:10] + bytes(4 * 254) + bytes(2 * 255)


@pytest.mark.parametrize(
    "raw",
    [
        with_((ITEMS, [0] * 900), (WIDTHS, [K, F, 60_000]), (RATES, b""), (BLOCK, b"\xff" * 70_000)),
        with_((ITEMS, [0] * 900), (WIDTHS, [60_000, F, N]), (BLOCK, b"\xff" * 70_000)),
        with_((WIDTHS, [K, F, 1 << 62]), (RATES, b"")),
        with_((RATES, small_recipe())),
    ],
    ids=["numbers", "keys", "beyond memory", "recipe"],
)
def test_a_small_message_takes_little_memory(raw: bytes) -> None:
    decode_served(page_log_bytes(SMALL))  # what is compiled and remembered once is not counted
    tracemalloc.start()
    try:
        with pytest.raises(BadEventError):
            decode_served(raw)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES + (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_recipe_is_read_as_it_was_written() -> None:
    for schema in SCHEMAS.values():
        rates = Rates.of(schema)
        assert rates is not None
        assert read_rates(rates.raw, schema.layout.N).columns == rates.columns == schema.layout.N
        with pytest.raises(ValueError, match="where a row has"):
            read_rates(rates.raw, schema.layout.window_start)


# -- the clients -------------------------------------------------------------------------------------------------------


def by_kafka_python(values: list[bytes]) -> bytes:
    batch = MemoryRecordsBuilder(2, 4, clients.BATCH_BYTES)
    for value in values:
        batch.append(1, b"k", value)
    batch.close()
    return bytes(batch.buffer())


def by_aiokafka(values: list[bytes]) -> bytes:
    batch = BatchBuilder(clients.BATCH_BYTES, 4, is_transactional=False)
    for value in values:
        batch.append(timestamp=1, key=b"k", value=value)
    batch.close()
    return bytes(batch._build())


@pytest.mark.parametrize("write", [by_kafka_python, by_aiokafka])
@pytest.mark.parametrize("read", [DefaultRecordBatch, AioBatch])
def test_each_client_reads_what_the_other_compressed(write: Callable[[list[bytes]], bytes], read: Any) -> None:
    values = [page_log_bytes(page_of(SHOP, 20, seed), Rates.of(SHOP)) for seed in range(3)]
    raw = write(values)
    assert len(raw) < sum(map(len, values))
    batch = read(raw)
    assert batch.compression_type == 4
    assert [bytes(record.value) for record in batch] == values


def test_producers_compress_and_send_nothing_that_a_broker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(clients, "_Producer", lambda _, **options: made.append(options))
    clients.make_producer(Settings(kafka="h:1"))
    assert made[0]["compression_type"] == "zstd"
    assert made[0]["batch_size"] < made[0]["max_request_size"]  # a batch that compresses badly is taken too


# -- the figure ------------------------------------------------------------------------------------------------------


def test_a_page_of_the_shop_costs_a_fraction_of_its_arrays() -> None:
    pages, rates = pool(10, pages=40), Rates.of(SHOP)
    packed, plain = (sum(map(len, map(form, pages))) for form in (lambda p: page_log_bytes(p, rates), to_msgpack))
    assert packed < 0.25 * plain
