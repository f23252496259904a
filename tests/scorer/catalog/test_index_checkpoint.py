"""The item index in the store: a scorer that starts from it is what one would be that reads its topics whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from millrace.basics.errors import StoreError
from millrace.basics.store import DamagedError, Store
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from scorer.catalog import index_checkpoint
from scorer.catalog.item_index import ItemIndex
from scorer.feeder.state import FeederState
from scorer.ipc.meters import ScorerMeters
from tests.scenes.feed_scene import flip
from tests.scenes.index_shop import Shop, keeper_of, primary
from tests.scenes.scorer_log import caught_up
from tests.scenes.scorer_shop import BUILDER, NOW_MS, SCHEMA, item
from tests.scorer.page.plain_page import plain_of

HOUR_MS = 3_600_000


def seen(index: ItemIndex) -> dict[Any, Any]:
    """All that a reader of the index sees, by item."""
    rows = np.arange(len(index))
    columns, plain = index.columns(rows), plain_of(index, rows, NOW_MS)
    counts = index.counts_at(rows, NOW_MS)
    index.refresh_hot(NOW_MS, 10**6)
    return {
        str(index.ids[row]): (
            {name: column[row].tolist() for name, column in columns.items()},
            {name: numbers[row].tolist() for name, numbers in plain.items()},
            counts[row].tolist(),
            bool(index.alive[row]),
            int(index.born_ms[row]),
            float(index.heat.clicks[row]),
        )
        for row in rows.tolist()
    }


def read_whole(shop: Shop) -> dict[Any, Any]:
    """What the index of a scorer is that reads everything from its beginning."""
    scorer, meters = primary(shop), ScorerMeters()
    for feed in keeper_of(shop, scorer, meters)[1]:
        caught_up(feed)
    return seen(scorer.index)


CATALOG = [item(i if i % 3 else f"i{i}", f"c{i % 4}", attributes={"price": float(i)}) for i in range(30)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.items(*CATALOG)
    shop.clicks(CATALOG[:20], 3)
    shop.clicks(CATALOG[10:], 5, partition=2)
    shop.gone(CATALOG[7].item_id)
    shop.read()
    return shop


def test_a_scorer_that_starts_reads_on_from_the_checkpoint(shop: Shop) -> None:
    before = seen(shop.scorer.index)
    manifest = shop.keep()
    assert manifest is not None
    assert (manifest.items, manifest.keys) == (
        30,
        len(shop.scorer.index.counts.tiles[0]) + len(shop.scorer.index.counts.tiles[2]),
    )
    for topic in (ITEMS, FEATURES_ITEMS):
        shop.broker.log(topic).cut(shop.broker.log(topic).end)  # nothing of it can be read again
    shop.start()
    assert seen(shop.scorer.index) == before
    assert shop.scorer.newest_counted_ms == NOW_MS
    shop.items(item("new"), item(CATALOG[3].item_id, "hats"))
    shop.clicks(CATALOG[:3], 9)
    shop.gone(CATALOG[8].item_id)
    shop.read()
    after = seen(shop.scorer.index)
    assert len(after) == 31
    assert after[str(CATALOG[0].item_id)][2] != before[str(CATALOG[0].item_id)][2]
    assert not after[str(CATALOG[8].item_id)][3]
    assert sum(shop.meters.errors.values()) == 0


def test_messages_that_come_twice_change_nothing(shop: Shop) -> None:
    shop.keep()
    before = seen(shop.scorer.index)
    shop.start()
    for feed in shop.feeds:
        feed.seek(index_checkpoint.Bookmark("", {}))
    shop.read()
    assert seen(shop.scorer.index) == before


class Busy(FeederState):
    """Before each change something else happens."""

    def __init__(self, state: FeederState, before: Callable[[], None]) -> None:
        super().__init__(state.primary, state.meters, state.stop)
        self.before = before

    def alone(self, function: Callable[..., Any], *args: Any) -> Any:
        self.before()
        return super().alone(function, *args)


def _rest(shop: Shop, n: int) -> None:
    """Nothing comes."""


def _item(shop: Shop, n: int) -> None:
    shop.items(item(CATALOG[n % 30].item_id, f"c{n % 7}", attributes={"price": n / 2}))


def _new_item(shop: Shop, n: int) -> None:
    shop.items(item(f"new{n}"))


def _gone(shop: Shop, n: int) -> None:
    shop.gone(CATALOG[n % 30].item_id)


def _clicks(shop: Shop, n: int) -> None:
    shop.clicks(CATALOG[n % 30 : n % 30 + 5], n % 11, partition=n % 3)


CHANGES = st.lists(
    st.tuples(st.sampled_from([_item, _new_item, _gone, _clicks]), st.integers(0, 40), st.integers(0, 12)), max_size=8
)
ROUNDS = st.lists(st.tuples(CHANGES, st.sampled_from(["copy", "restart", "read"]), CHANGES), min_size=1, max_size=3)


@pytest.mark.slow
@given(rounds=ROUNDS, slices=st.integers(1, 7))
def test_whatever_changes_while_it_is_copied_the_index_is_that_of_all_messages(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[Any], slices: int
) -> None:
    """Before any slice of a copy messages come and are taken, as they do beside the keeper's thread."""
    folder = tmp_path_factory.mktemp("index")
    shop = Shop(folder)
    shop.items(*CATALOG)
    shop.clicks(CATALOG, 2)
    shop.read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scorer.feeder.index_keeper.ROW_SLICE", slices)
        patch.setattr("scorer.feeder.index_keeper.KEY_SLICE", slices)
        patch.setattr("scorer.catalog.index_checkpoint.PART_BYTES", 1000)
        for before, what, during in rounds:
            for change, n, _ in before:
                change(shop, n)
            shop.read()
            if what == "restart":
                shop.start()
            queue = [step for change, n, rest in reversed(during) for step in [(change, n), *rest * [(_rest, 0)]]]
            shop.keeper.state = Busy(shop.keeper.state, partial(shop.next_of, queue))
            if what == "copy":
                assert shop.keep() is not None
            while queue:
                shop.next_of(queue)
    shop.start()
    assert seen(shop.scorer.index) == read_whole(shop)
    assert sum(shop.meters.errors.values()) == 0
    shutil.rmtree(folder)


def test_only_one_of_several_scorers_writes_and_two_checkpoints_are_kept(shop: Shop) -> None:
    assert shop.keep() is not None
    first = shop.keeper
    second = shop.start()
    assert second.keep() is None, "the newest is young"
    assert first.keep() is None
    for _ in range(4):
        assert shop.keep() is not None
    manifests = [name for name in shop.files() if name.count("-") == 2]
    assert [index_checkpoint._number(name) for name in manifests] == [4, 5]
    assert {name.rsplit("-", 2)[0] for name in shop.files()} >= set(manifests)


def test_an_index_that_has_not_caught_up_is_not_written(shop: Shop) -> None:
    shop.keeper.feeds[ITEMS].caught_up = False
    assert shop.keep() is None
    assert shop.files() == []


def test_a_checkpoint_from_the_future_does_not_keep_anybody_from_writing(shop: Shop) -> None:
    assert shop.keep() is not None
    shop.now_ms -= 5 * HOUR_MS
    assert shop.keeper.keep() is not None
    shop.start()
    assert len(shop.scorer.index) == 30


@pytest.mark.parametrize("what", ["flipped", "truncated", "empty", "gone", "swapped"])
@pytest.mark.parametrize("which", ["manifest", "items", "tiles"])
def test_of_a_damaged_checkpoint_one_file_is_renamed_and_the_one_before_is_used(
    shop: Shop, what: str, which: str
) -> None:
    shop.keep()
    shop.clicks(CATALOG, 8)
    shop.items(item("late"))
    shop.read()
    expected = seen(shop.scorer.index)
    assert shop.keep() is not None
    newest = [name for name in shop.files() if index_checkpoint._number(name) == 2]
    name = next(n for n in newest if (n.count("-") == 2 if which == "manifest" else which in n))
    path = shop.path(name)
    if what == "flipped":
        flip(path)
    elif what == "gone":
        path.unlink()
    elif what == "swapped":  # a whole file, but another one
        other = (
            next(n for n in shop.files() if index_checkpoint._number(n) == 1 and which in n)
            if which != "manifest"
            else None
        )
        path.write_bytes(shop.path(other).read_bytes() if other else shop.path(newest[-1]).read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 50 if what == "truncated" else 0])
    shop.start()
    assert seen(shop.scorer.index) == expected, "the older checkpoint and the messages since then"
    aside = sorted(p.name for p in (shop.folder / "index").glob("damaged-*"))
    assert aside == ([] if what == "gone" else [f"damaged-{name}"])
    assert shop.meters.errors.get("index", 0) == (0 if (what, which) == ("gone", "manifest") else 1)
    assert shop.keep() is not None
    shop.start()
    assert seen(shop.scorer.index) == expected


def test_without_any_checkpoint_everything_is_read(shop: Shop) -> None:
    expected = seen(shop.scorer.index)
    shop.start()
    assert seen(shop.scorer.index) == expected


def test_on_an_empty_broker_the_index_is_kept_and_ready(shop: Shop) -> None:
    expected = seen(shop.scorer.index)
    shop.keep()
    shop.broker.lose(ITEMS)
    shop.broker.lose(FEATURES_ITEMS)
    shop.start()
    assert seen(shop.scorer.index) == expected
    assert all(feed.caught_up for feed in shop.feeds)
    shop.items(item("new"))
    shop.read()
    assert len(shop.scorer.index) == 31, "messages of the new log have low offsets, and yet they are read"


def test_a_log_that_ends_before_our_position_is_read_again(shop: Shop) -> None:
    """A broker that tells no ids of topics lost its end."""
    shop.keep()
    for topic in (ITEMS, FEATURES_ITEMS):
        shop.broker.lose(topic)
        shop.broker.log(topic).id = ""
    shop.items(item("new"))
    shop.start()
    assert len(shop.scorer.index) == 31


def test_a_checkpoint_of_another_schema_is_ignored(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.keep()
    expected = seen(shop.scorer.index)
    name = next(n for n in shop.files() if n.count("-") == 2)
    store = Store(shop.settings.place("index"))
    head, _, _ = store.get(name)
    store.put(name, msgspec.Raw(head.replace(SCHEMA.id.encode(), b"0" * len(SCHEMA.id))))
    shop.start()
    assert seen(shop.scorer.index) == expected
    assert shop.feeds[0].position == {0: 31}
    assert shop.keep() is not None, "and replaced by one of ours"


def test_items_of_an_old_checkpoint_are_read_again(shop: Shop) -> None:
    """Tombstones are compacted away after a day: an old checkpoint does not tell who has gone since."""
    shop.keep()
    log = shop.broker.log(ITEMS)
    log.messages = [m for m in log.messages if m.key != str(CATALOG[0].item_id).encode()]
    shop.now_ms += 20 * HOUR_MS
    shop.start()
    assert len(shop.scorer.index) == 29
    assert shop.scorer.index.counts.tiles.keys() == {0, 2}
    assert seen(shop.scorer.index) == read_whole(shop)


def test_a_checkpoint_from_the_future_brings_its_counts(shop: Shop) -> None:
    """Its writer's clock ran ahead of ours."""
    shop.keep()
    shop.now_ms -= HOUR_MS
    with capture_logs() as lines:
        shop.start()
    assert [line for line in lines if line["log_level"] == "warning"] == []
    assert "item index loaded" in {line["event"] for line in lines}
    assert seen(shop.scorer.index) == read_whole(shop)


def test_a_store_that_cannot_be_used_costs_time_and_nothing_else(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = seen(shop.scorer.index)

    def away(*_: Any) -> Any:
        raise StoreError("no answer", "wait")

    shop.keep()
    monkeypatch.setattr(Store, "names", away)
    shop.start()
    assert seen(shop.scorer.index) == expected
    assert shop.meters.errors == {"index": 1}
    with pytest.raises(StoreError):
        shop.keep()


def test_leftovers_of_a_writer_that_died_are_removed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Store.put
    monkeypatch.setattr("scorer.catalog.index_checkpoint.PART_BYTES", 1)

    def dies(self: Store, name: str, *rest: Any) -> Any:
        if name.count("-") == 2:
            raise StoreError("killed", "start again")
        return put(self, name, *rest)

    with monkeypatch.context() as killed:
        killed.setattr(Store, "put", dies)
        killed.setattr(index_checkpoint.Writer, "give_up", lambda self: None)  # who is killed clears nothing
        with pytest.raises(StoreError):
            shop.keep()
    assert shop.files()
    shop.start()
    for _ in range(3):
        shop.keep()
    assert {index_checkpoint._number(name) for name in shop.files()} == {3, 4}


def test_hostile_parts_are_damaged_and_nothing_worse(shop: Shop) -> None:
    store = Store(shop.settings.place("index"))
    shop.keep()
    names = [n for n in shop.files() if n.count("-") > 2]
    head, body, sealed = store.get(next(n for n in names if "tiles" in n))
    for bad in (b"{}", b"[]", b'{"arrays": [["keys", "<u8", [9999999]]]}', head.replace(b'"ends"', b'"end2"')):
        file = store.put("index-00000009-x-tiles-0", msgspec.Raw(bad), bytes(body))
        with pytest.raises(DamagedError):
            index_checkpoint.read_part(store, file)
    assert index_checkpoint.read_part(store, sealed)


def test_what_image_gives_put_takes() -> None:
    index = ItemIndex(BUILDER)
    index.put([index.prepare(i) for i in CATALOG])
    index.remove(CATALOG[4].item_id)
    other = ItemIndex(BUILDER)
    for start in range(0, 40, 7):
        other.put([index.image(start, start + 7)])
    assert seen(other) == seen(index)
    assert other.ids == index.ids
    for start in (0, 10):
        other.put([index.image(start, start + 15)])
    assert other.ids == index.ids
