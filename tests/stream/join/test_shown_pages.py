"""Pages that their client shows otherwise than they were answered: the samples and counts are those of a page that was
answered as it was shown."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.hashing import column_hash, mix, salt, unmix
from millrace.contracts.events import PageLog, to_msgpack
from millrace.contracts.page_logs import decode_page_log, page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.samples import SampleBatch
from stream.partition.partition import Partition
from tests.scenes.exploring import examples
from tests.scenes.scorer_shop import BUILDER, LAYOUT, SCHEMA
from tests.scenes.stream_world import MINUTE, POLICY, T0, Log, action, dead_of, exposure

NOW = T0 + 1000 * MINUTE
POSITION = LAYOUT.cat_names.index("position")
LIFE = POLICY.life_ms + POLICY.disorder_ms


def page_log(request: str, items: list[int], offset: int = 0, user: int = 7, **values: Any) -> bytes:
    """What a scorer would log of a page that begins at the slot ``offset`` of its list."""
    n = len(items)
    columns = {
        "user_id": column_hash([user]),
        "item_id": column_hash(items),
        "category": column_hash([f"c{i % 3}" for i in items]),
        "tab": column_hash(["home"]),
        "position": BUILDER.position(np.arange(offset, offset + n)),
        **BUILDER.context(np.array([T0], np.int64)),
    }
    num = np.repeat(np.array(items, np.float32)[:, None], LAYOUT.N, 1)
    body = {
        "request_id": request,
        "ts_ms": T0,
        "user_id": user,
        "arm": "model",
        "model_version": 3,
        "schema_id": SCHEMA.id,
        "items": items,
        "scores": (np.array(items) / 100).astype("<f4").tobytes(),
        "keys": BUILDER.keys(columns, n).astype("<u8").tobytes(),
        "cat": BUILDER.cat(columns, n).astype("<i8").tobytes(),
        "num": num.astype("<f4").tobytes(),
        "offset": offset,
    }
    return to_msgpack(PageLog(**{**body, **values}))


class Shop:
    """A partition, and what came out of it."""

    def __init__(self, settles: bool = False) -> None:
        self.log, self.partition, self.topic = Log(), Partition(0, SCHEMA, POLICY, settles=settles), dict[int, bytes]()
        self.samples: list[SampleBatch] = []
        self.dead: list[Any] = []
        self.counts: Counter[str] = Counter()

    def add(self, output: Any) -> None:
        self.samples += [output.samples] if output.samples is not None else []
        self.dead += output.dead
        self.counts.update(output.counts)

    def take(self, topic: str, *raws: bytes) -> None:
        messages = [self.log(topic, raw) for raw in raws]
        if topic == "page_logs":
            self.topic |= {m.offset: m.raw for m in messages}
        self.add(self.partition.take(messages, NOW))
        if self.partition.wanted:
            self.add(self.partition.returned({r: self.topic[at] for r, at in self.partition.wanted.items()}))

    def until(self, ts_ms: int) -> None:
        self.add(self.partition.advance(ts_ms))

    def crash(self) -> None:
        again = Partition(0, SCHEMA, POLICY, settles=self.partition.settles)
        again.resume(self.partition.snapshot().to_bytes())
        self.partition = again

    def rows(self) -> list[tuple[Any, ...]]:
        """Samples without their page and position, which name them and say nothing of them."""
        out = []
        for b in self.samples:
            values = (b.item, b.user, b.kind, b.actions, b.ts_ms, b.score, b.origin_ms)
            features = [(c.tobytes(), n.tobytes()) for c, n in zip(b.cat, b.num, strict=True)]
            out += list(zip(*(v.tolist() for v in values), features, strict=True))
        return sorted(out)

    def windows(self) -> dict[int, list[Any]]:
        keys = np.unique(self.partition.windows.keys())
        counts = self.partition.windows.counts(keys, NOW).tolist()
        return dict(zip(keys.tolist(), counts, strict=True))


layouts = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.permutations(range(n)).flatmap(lambda order: st.integers(1, n).map(lambda k: list(order[:k]))),
        st.sampled_from([0, 0, 3, 40]),  # the page's slot in its list
        st.sampled_from([0, 0, 2, 30]),  # the slot of the page at which the first is shown
    )
)


@examples(100)
@given(layouts, st.sets(st.integers(1, 8)), st.sets(st.integers(0, 8)), st.integers(0, 2**32))
def test_a_page_shown_otherwise_is_learnt_as_one_that_was_answered_so(
    layout: tuple[int, list[int], int, int], cuts: set[int], clicks: set[int], seed: int
) -> None:
    """The other page was answered in the order shown, and shown as answered. Here it is reported in pieces; at last all
    of it comes again, in another order, and what was reported first holds. Messages come in any order, with crashes
    between; some clicks come after the page has settled."""
    n, slots, offset, first = layout
    items = [10 + i for i in range(n)]
    shown = [items[s] for s in slots]
    bounds = [0, *sorted(c for c in cuts if c < len(slots)), len(slots)]
    pieces = [exposure("a", T0, shown[a:b], first + a, slots=slots[a:b]) for a, b in pairwise(bounds)]
    again = exposure("a", T0 + 1, shown[::-1], 50, slots=slots[::-1])
    rng = random.Random(seed)
    acted = [p for p in range(len(slots)) if p in clicks]
    late = {p for p in acted if rng.random() < 0.3}
    here, there = Shop(settles=True), Shop()

    def click(here_or_there: Shop, p: int) -> bytes:
        return action("click", "a", T0 + p, slots[p] if here_or_there is here else p, shown[p])

    ours = [("page_logs", page_log("a", items, offset)), *(("events", raw) for raw in pieces)]
    ours += [("events", click(here, p)) for p in acted if p not in late]
    rng.shuffle(ours)
    for topic, raw in [*ours, ("events", again)]:
        here.take(topic, raw)
        if rng.random() < 0.5:
            here.crash()
    there.take("page_logs", page_log("a", shown, offset + first))
    there.take("events", exposure("a", T0, shown), *(click(there, p) for p in acted if p not in late))
    for shop in (here, there):
        shop.until(T0 + POLICY.attribution_ms + POLICY.disorder_ms)
    here.crash()
    assert len(here.partition.join.settled) == 1
    for shop in (here, there):
        shop.take("events", *(click(shop, p) for p in sorted(late)))
        shop.until(T0 + LIFE)
    assert here.rows() == there.rows()
    assert here.windows() == there.windows()
    assert not here.dead
    assert here.counts["exposures"] == len(slots)
    assert here.partition.pending == 0
    named = {identity for batch in here.samples for identity in batch.ids()}
    assert named == {("a", slot) for slot in slots}, "a sample is named by the position as answered"


def test_a_page_reported_item_by_item_is_copied_once() -> None:
    n, taken = 200, []
    for named in (False, True):
        shop = Shop()
        shop.take("page_logs", page_log("a", [10 + i for i in range(n)]))
        tracemalloc.start()
        for i in range(n):
            at = (i + 1) % n if named else i
            shop.take("events", exposure("a", T0 + i, [10 + at], i, **({"slots": [at]} if named else {})))
        taken.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert shop.partition.pending == n
    one_copy = n * 8 * (LAYOUT.F + LAYOUT.K)
    assert taken[1] < taken[0] + 20 * one_copy, taken


def test_the_position_of_a_sample_is_where_it_was_shown() -> None:
    """Against plain numbers, not against another page."""
    shop = Shop()
    shop.take("page_logs", page_log("a", [11, 12, 13, 14], offset=20))
    shop.take("events", exposure("a", T0, [14, 11], 0, slots=[3, 0]))
    shop.until(T0 + LIFE)
    at = {
        position: int(cat) for b in shop.samples for position, cat in zip(b.position, b.cat[:, POSITION], strict=True)
    }
    wanted = BUILDER.cat({"position": BUILDER.position(np.array([20, 21]))}, 2)[:, POSITION]
    assert at == {3: wanted[0], 0: wanted[1]}
    key = BUILDER.keys({"item_id": column_hash([14, 11]), "position": BUILDER.position(np.array([20, 21]))}, 2)[:, -1]
    assert [c[-1][0] for c in shop.partition.windows.counts(key, NOW).tolist()] == [1, 1]
    assert shop.counts["exposures"] == 2, "what was dropped is no exposure"
    assert not shop.dead


def test_slots_that_say_what_is_so_anyway_change_nothing() -> None:
    plain, named = Shop(), Shop()
    for shop, more in ((plain, {}), (named, {"slots": [1, 2]})):
        shop.take("page_logs", page_log("a", [11, 12, 13]))
        shop.take("events", exposure("a", T0, [12, 13], 1, **more))
        shop.take("events", exposure("a", T0, [11]))
        shop.until(T0 + LIFE)
    assert plain.rows() == named.rows()
    assert plain.windows() == named.windows()


def test_a_page_reported_twice_in_other_orders_counts_once() -> None:
    shop = Shop()
    shop.take("page_logs", page_log("a", [11, 12, 13]))
    shop.take("events", exposure("a", T0, [13, 11], slots=[2, 0]), exposure("a", T0 + 1, [11, 12], slots=[0, 1]))
    shop.take("events", exposure("a", T0 + 2, [11, 12, 13]))
    shop.until(T0 + LIFE)
    assert sorted(i for b in shop.samples for i in b.ids()) == [("a", 0), ("a", 1), ("a", 2)]
    assert shop.counts["exposures"] == 3
    assert shop.counts["duplicates"] == 1


@pytest.mark.parametrize(
    ("slots", "items", "reason", "lost"),
    [
        ([0, 5], [11, 12], "wrong-item", 1),  # beyond the page
        ([1, 0], [11, 12], "wrong-item", 2),  # other items there
        ([1, 1], [12, 12], "wrong-type", 0),  # twice
        ([1], [12, 13], "wrong-type", 0),  # not one for each item
        ([], [12], "wrong-type", 0),
        ([-1], [12], "wrong-type", 0),
    ],
)
def test_slots_that_cannot_be_are_dead_letters(slots: list[int], items: list[int], reason: str, lost: int) -> None:
    shop = Shop()
    shop.take("page_logs", page_log("a", [11, 12, 13]))
    shop.take("events", exposure("a", T0, items, slots=slots))
    assert [(dead_letter.reason, dead_letter.exposures) for dead_letter in shop.dead] == [(reason, lost)]
    good = 1 if reason == "wrong-item" and lost == 1 else 0
    shop.until(T0 + LIFE)
    assert sum(len(b) for b in shop.samples) == good
    assert dead_of(shop.dead)[0].get(reason, 0) + good == shop.counts["exposures"]


def test_a_part_of_a_list_says_where_it_begins_in_every_form() -> None:
    raw = page_log("a", list(range(11, 61)), offset=40)
    packed = page_log_bytes(decode_page_log(raw), Rates.of(SCHEMA))
    assert packed[0] == 0xDC or packed[0] & 0xF0 == 0x90, "form 2"
    assert decode_page_log(packed) == decode_page_log(raw)
    assert decode_page_log(packed).offset == 40


def test_a_page_log_from_before_there_were_parts_begins_at_the_first_slot() -> None:
    raw = page_log("a", list(range(11, 61)))
    form1 = msgspec.msgpack.decode(raw)
    del form1["offset"]
    assert decode_page_log(msgspec.msgpack.encode(form1)).offset == 0
    form2 = msgspec.msgpack.decode(page_log_bytes(decode_page_log(raw)))
    assert decode_page_log(msgspec.msgpack.encode(form2[:-1])) == decode_page_log(raw)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.text(max_size=5))
def test_unmix_gives_back_what_was_mixed(hashed: list[int], name: str) -> None:
    column = np.array(hashed, np.uint64)
    assert unmix(salt(name), mix(salt(name), column)).tolist() == hashed


def test_a_state_with_a_page_shown_otherwise_survives_a_crash() -> None:
    shop = Shop()
    shop.take("events", exposure("a", T0, [13, 11], slots=[2, 0]))
    shop.crash()
    shop.take("page_logs", page_log("a", [11, 12, 13]))
    shop.take("events", action("click", "a", T0 + 5, 2, 13))
    assert [(b.kind.tolist(), b.position.tolist()) for b in shop.samples] == [([1], [2])]
