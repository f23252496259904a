"""A schema is changed while the loop runs: counts, pages in flight and samples go on by the names of their columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from learner.samples.formersamples import FormerSamples
from learner.samples.viewpoint import Viewpoint
from millrace.basics.errors import SchemaError, StoreError
from millrace.basics.store import Store
from millrace.contracts.carry import Carry, former, same_tiles
from millrace.contracts.events import to_msgpack
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.pagepack import Rates
from millrace.contracts.samples import POLICIES, SCHEMA_HEADER, SampleBatch
from millrace.contracts.schema import Among, Field, Schema, WindowKey
from millrace.contracts.schemabook import SchemaBook
from millrace.labels import policy_named
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import counts_of
from stream.join.join import InputMessage
from stream.partition.journal import Journal
from stream.partition.partition import Partition, Policy, StepOutput
from stream.partition.partition_checkpoint import CheckpointLine, CheckpointStore
from tests.scenes.arrivals import NOW, SETTLED, arrivals
from tests.scenes.exploring import examples
from tests.scenes.stream_world import (
    DAY,
    HOUR,
    MINUTE,
    SCHEMA,
    T0,
    Log,
    action,
    dead_of,
    exposure,
    keys_of,
    page_log,
    rows,
)

COLOUR, STOCK = Field("colour", "item"), Field("stock", "item", "numeric")


def changed(schema: Schema = SCHEMA, **windows: Any) -> Schema:
    return msgspec.structs.replace(schema, windows=msgspec.structs.replace(schema.windows, **windows))


NEW = msgspec.structs.replace(
    changed(keys=(WindowKey(("colour",)), *SCHEMA.windows.keys)), fields=(COLOUR, STOCK, *SCHEMA.fields)
)
"""Two fields and a window key more, in other places than at the end."""
HISTORY = (SCHEMA, NEW)


def fresh(schema: Schema = NEW, history: tuple[Schema, ...] = HISTORY, policy: Policy = SETTLED) -> Partition:
    return Partition(0, schema, policy, settles=True, history=history)


class Life:
    """A partition, its topic of page logs, and the samples that came out."""

    def __init__(self, partition: Partition) -> None:
        self.partition, self.topic = partition, dict[int, bytes]()
        self.samples: list[SampleBatch] = []
        self.dead: list[Any] = []

    def take(self, messages: list[Any]) -> None:
        self.topic |= {m.offset: m.raw for m in messages if m.topic == "page_logs"}
        self.add(self.partition.take(messages, NOW))
        found = {request: self.topic.get(at) for request, at in self.partition.wanted.items()}
        self.add(self.partition.returned(found))

    def add(self, output: StepOutput) -> None:
        if output.samples is not None and len(output.samples):
            self.samples.append(output.samples)
        self.dead += output.dead

    def whole(self) -> SampleBatch:
        return SampleBatch.concat(self.samples)


def same(a: SampleBatch, b: SampleBatch) -> bool:
    return list(a.ids()) == list(b.ids()) and all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("cat", "num", "label", "kind", "score")
    )


def counted(partition: Partition, schema: Schema) -> Any:
    lists = partition.windows.export(KEYS)
    return counts_of(lists, partition.newest_ms + 1, schema.windows.durations, schema.windows.columns).tolist()


KEYS = np.concatenate([keys_of(user, range(1, 13)) for user in range(3)]).ravel()
_stores = count()


@examples(40, phases=tuple(Phase)[:-2])  # a failure is not made small: it takes minutes
@given(arrivals(wild=True), st.sampled_from(POLICIES), st.floats(0, 1), st.sampled_from([1, 3, 1000]))
def test_a_partition_goes_on_under_another_schema(
    messages: list[InputMessage], label: str, changes: float, base_every: int
) -> None:
    """Against one that never changes: the same samples, but for the columns; the same counts and dead letters."""
    policy = replace(SETTLED, label=policy_named(label))
    steady = Life(fresh(SCHEMA, (), policy))
    store = CheckpointStore(f"memory://evolve-{next(_stores)}")
    life, line = taken_over(store, fresh(SCHEMA, (SCHEMA,), policy))
    parts = [messages[at : at + 5] for at in range(0, len(messages), 5)]
    for n, part in enumerate(parts):
        if n == int(changes * len(parts)):
            with pytest.raises(StoreError, match="MILLRACE_EVOLVE"):
                store.load(fresh(policy=policy))
            went, line = taken_over(store, fresh(policy=policy), evolve=True)
            assert counted(went.partition, NEW) == counted(life.partition, SCHEMA)
            life.partition = went.partition
        steady.take(part)
        life.take(part)
        save(life.partition, line, base=n % base_every == 0)
        if life.partition.schema.id == NEW.id and n % 3 == 0:  # by now a state of the new schema, whoever asks
            life.partition, line = (taken := taken_over(store, fresh(policy=policy)))[0].partition, taken[1]
    assert counted(life.partition, NEW) == counted(steady.partition, SCHEMA)
    for one in (steady, life):
        one.add(one.partition.advance(NOW + 2 * DAY))
    carry = Carry(SCHEMA, NEW)
    mine = [carry.samples(batch) if batch.cat.shape[1] == SCHEMA.layout.F else batch for batch in life.samples]
    assert Counter(r for b in mine for r in rows(b)) == Counter(
        r for b in steady.samples for r in rows(carry.samples(b))
    )
    assert dead_of(life.dead) == dead_of(steady.dead)
    assert life.partition.pending == steady.partition.pending == 0


def taken_over(store: CheckpointStore, partition: Partition, evolve: bool = False) -> tuple[Life, CheckpointLine]:
    loaded = store.load(partition, evolve)
    loaded.partition.journal = Journal()
    return Life(loaded.partition), loaded.line


def save(partition: Partition, line: CheckpointLine, base: bool) -> None:
    journal = partition.journal
    assert journal is not None
    state = partition.snapshot() if base else None
    line.write(journal.cut().entries, state, dict(partition.offsets))


def served_under(schema: Schema, request: str, ts_ms: int, items: list[int]) -> bytes:
    """A page that the scorer logged under the new schema: the old one's, with columns of which one is told by name."""
    logged = decode_page_log(page_log(request, ts_ms, items))
    n, layout = len(items), schema.layout
    keys = np.full((n, layout.K), 99, "<u8")
    keys[:, [layout.key_names.index(name) for name in SCHEMA.layout.key_names]] = keys_of(7, items)
    values = {
        "schema_id": schema.id,
        "keys": keys.tobytes(),
        "cat": np.full((n, layout.F), 5, "<i8").tobytes(),
        "num": np.full((n, layout.N), 2, "<f4").tobytes(),
    }
    return to_msgpack(msgspec.structs.replace(logged, **values))


def test_what_is_new_is_counted_from_the_change_on_and_what_is_left_out_goes() -> None:
    log, life = Log(), Life(fresh())
    life.take(log.page_logs(page_log("old", T0, [1, 2]), served_under(NEW, "new", T0, [1, 2])))
    life.take(log.events(exposure("old", T0, [1, 2]), exposure("new", T0, [1, 2])))
    life.take(log.events(action("click", "old", T0 + MINUTE, 0, 1), action("click", "new", T0 + MINUTE, 0, 1)))
    lists = life.partition.windows.export(np.array([99, 0, keys_of(7, [1])[0, 0]], np.uint64))
    counts = counts_of(lists, T0 + HOUR, NEW.windows.durations, NEW.windows.columns)
    assert counts[0, 0].tolist() == [2, 1, 0]  # the new key: two rows of the new page, and its click
    assert counts[1].sum() == 0  # a missing key is counted nowhere
    assert counts[2, 0].tolist() == [2, 2, 0]  # an item's own: of both pages
    whole = life.whole()
    old, new = (whole.take(np.array([r == name for r, _ in whole.ids()])) for name in ("old", "new"))
    names = [(f.name, old.cat[0, c]) for f, c in zip(NEW.layout.cat_fields, NEW.layout.cat_starts, strict=True)]
    assert [name for name, value in names if value == 0] == ["colour"]
    assert old.num[:, NEW.layout.num_names.index("stock")].tolist() == [0.0]
    assert (new.cat == 5).all()
    other = msgspec.structs.replace(NEW, utc_offset="+08:00")
    life.take(log.page_logs(served_under(other, "unknown", T0, [1])))
    assert [(d.reason, other.id in d.detail) for d in life.dead] == [("bad-page-log", True)]


@pytest.mark.parametrize(
    ("schema", "goes_on"),
    [
        (changed(half_lives=(1.0,)), True),
        (changed(days=(1, 7, 30)), True),
        (changed(days=(7,)), False),
        (changed(actions=("exposure", "click")), False),
        (changed(actions=("exposure", "purchase", "click")), False),
        (changed(days=(), lengths=("15min", "1d", "7d")), False),
    ],
)
def test_counts_go_on_where_both_schemas_count_alike(schema: Schema, goes_on: bool) -> None:
    log, life = Log(), Life(fresh(SCHEMA, ()))
    life.take(log.page_logs(page_log("p", T0, [1, 2])))
    life.take(log.events(exposure("p", T0, [1, 2])))
    after = fresh(schema, (SCHEMA, schema))
    assert same_tiles(SCHEMA, schema) == goes_on
    if goes_on:
        after.resume(life.partition.snapshot().to_bytes())
        assert after.windows.export(keys_of(7, [1]).ravel()) == life.partition.windows.export(keys_of(7, [1]).ravel())
    else:
        with pytest.raises(StoreError, match=r"its counts cannot go on.*every window of the former schema"):
            after.resume(life.partition.snapshot().to_bytes())


def test_a_schema_that_nobody_noted_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.load(fresh(SCHEMA, ()))
    with pytest.raises(StoreError, match=f"of schema {SCHEMA.id}.*start the stream once with the schema"):
        store.load(fresh(NEW, (NEW,)), evolve=True)


# -- the schemas that were used ----------------------------------------------------------------------------------


def test_the_store_keeps_every_schema_that_was_used(tmp_path: Path) -> None:
    book = SchemaBook(tmp_path)
    short = changed(days=(), lengths=("15min", "1d"), half_lives=(0.25,))
    for schema in (SCHEMA, SCHEMA, NEW, NEW, short, SCHEMA):
        book.enter(schema)
    found = SchemaBook(tmp_path, writes=False).history()
    assert [one.id for one in found] == [SCHEMA.id, NEW.id, short.id, SCHEMA.id]
    assert found[:3] == (SCHEMA, NEW, short)
    # What came before: of a schema that one went back to, all others; of the second, the first alone.
    assert former(found, SCHEMA).keys() == {NEW.id, short.id}
    assert former(found, NEW).keys() == {SCHEMA.id}
    assert former(found, msgspec.structs.replace(NEW, utc_offset="+01:00")).keys() == {SCHEMA.id, NEW.id, short.id}


def test_a_schema_file_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    book = SchemaBook(tmp_path)
    book.enter(SCHEMA)
    book.enter(NEW)
    first = tmp_path / Store(tmp_path).names()[0]
    first.write_bytes(first.read_bytes()[:-3])
    Store(tmp_path).put(f"000003-{'0' * 16}.schema", {}, msgspec.json.encode(NEW))
    assert [one.id for one in book.history()] == [NEW.id]
    assert SchemaBook(tmp_path / "nowhere", writes=False).history() == ()


def batch_under(schema: Schema) -> SampleBatch:
    life, log = Life(Partition(0, schema, SETTLED)), Log()
    life.take(log.page_logs(page_log("p", T0, [1, 2, 3])))
    life.take(log.events(exposure("p", T0, [1, 2, 3]), action("click", "p", T0 + MINUTE, 1, 2)))
    return life.whole()


def test_samples_of_a_former_schema_are_learnt_from_with_the_columns_that_both_have(tmp_path: Path) -> None:
    book = SchemaBook(tmp_path)
    old = batch_under(SCHEMA)
    raw = old.to_bytes(Rates.of(SCHEMA))
    learner = FormerSamples(NEW, SchemaBook(tmp_path, writes=False), Viewpoint())

    def headers(id: str) -> list[tuple[str, bytes]]:
        return [("trace", b"x"), (SCHEMA_HEADER, id.encode())]

    with pytest.raises(SchemaError, match=SCHEMA.id):
        FormerSamples(NEW, book, Viewpoint()).carried(old, headers(SCHEMA.id))
    book.enter(SCHEMA)
    got = learner.carried(SampleBatch.from_bytes(raw), headers(SCHEMA.id))
    assert same(got, Carry(SCHEMA, NEW).samples(old))
    assert got.cat[:, NEW.layout.cat_names.index("item_id")].tolist() == old.cat[:, 1].tolist()
    assert learner.carried(got, headers(NEW.id)) is got
    assert learner.carried(got, None) is got  # of a stream before it named its schema
    assert same(FormerSamples(SCHEMA, book, Viewpoint()).carried(old, []), old)
    assert same(FormerSamples(SCHEMA, book, Viewpoint()).carried(old, [(SCHEMA_HEADER, None)]), old)  # type: ignore[list-item]
    with pytest.raises(SchemaError, match="features in the place of"):
        learner.carried(got, headers(SCHEMA.id))
    narrower = replace(got, num=got.num[:, :-1])
    with pytest.raises(SchemaError, match=f"samples of {got.cat.shape[1]} .* features"):
        learner.carried(narrower, headers(NEW.id))
    book.enter(NEW)  # and back: roles are restarted one after another
    assert same(FormerSamples(SCHEMA, book, Viewpoint()).carried(got, headers(NEW.id)), old)


def test_rows_of_an_earlier_schema_read_as_the_only_candidate_of_their_page() -> None:
    """Against pages of one item, made under the new schema."""
    some = [name for name in NEW.layout.num_names if name == "stock" or name.startswith("item_id.")]
    first = msgspec.structs.replace(NEW, among=(Among(some[1], ("rank", "of_max")),))
    every = Among(some[0], ("count", "of_mean", "of_max", "rank"))
    second = msgspec.structs.replace(first, among=(every, *first.among, Among(some[2])))
    old = batch_under(SCHEMA)
    got = Carry(SCHEMA, second).samples(old)
    alone = got.num.copy()
    FeatureBuilder(second).compare(alone, np.arange(len(old)))
    assert got.num.tobytes() == alone.tobytes()
    assert got.num[0, second.layout.among_start :].tolist() == [1, 1, 1, 0.5, 0.5, 1, 0.5, 1, 1]
    got.num[:, second.layout.among_start :] = np.arange(9)  # what a page was compared by is kept
    again = Carry(second, first).samples(got)
    assert again.num[:, first.layout.among_start :].tolist() == [[4, 5]] * len(old)


def hourly(partition: Partition, hours: range) -> None:
    """A page an hour, each with an item of its own."""
    schema = partition.schema
    for n in hours:
        ts, shape = T0 + n * HOUR, schema.layout
        arrays: dict[str, Any] = {"cat": bytes(8 * shape.F), "num": bytes(4 * shape.N)}
        keys = keys_of(7, [n])[:, : shape.K].astype("<u8").tobytes()
        served = page_log(f"h{n}", ts, [n], schema_id=schema.id, keys=keys, **arrays)
        partition.take(
            [InputMessage("page_logs", n, served), InputMessage("events", n, exposure(f"h{n}", ts, [n], user_id=7))],
            ts + MINUTE,
        )


def test_keys_of_a_carried_state_end_with_their_windows() -> None:
    """A longer window has fewer turns of sweeping, so a turn of the former schema would be years ahead."""
    short, long = changed(days=(1,)), changed(days=(1, 7))
    former = Partition(0, short, SETTLED, history=(short,))
    hourly(former, range(50))
    carried, steady = (Partition(0, long, SETTLED, history=(short, long)) for _ in range(2))
    carried.resume(former.snapshot().to_bytes())
    hourly(carried, range(50, 400))
    hourly(steady, range(50, 400))
    assert len(carried.windows) == len(steady.windows) < 500


def test_a_schema_that_counted_nothing_may_have_had_another_unit_of_time() -> None:
    """Its newest unit, of five minutes, would be the newest hour of the year 2600: nothing would be counted before."""
    none = changed(keys=(), days=(), lengths=("15min",))
    former = Partition(0, none, SETTLED, history=(none,))
    hourly(former, range(20))
    carried = Partition(0, SCHEMA, SETTLED, history=(none, SCHEMA))
    carried.resume(former.snapshot().to_bytes())
    hourly(carried, range(20, 30))
    key = keys_of(7, [29])[0, :1]
    assert carried.windows.counts(key, T0 + 30 * HOUR)[0, 0, 0] == 1
