"""Feeds: what they read changes index and model between two requests, in order, and gaps are mended from the store."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from learner.serving.serving_model import ServingModel
from millrace.basics.errors import StoreError
from millrace.contracts.events import ItemTiles, to_json, to_msgpack
from millrace.contracts.itemtiles import pack
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Image
from millrace.versions.modellog import Assembler, Delta, encode_claim, encode_snapshot
from millrace.versions.packing import unpack
from millrace.versions.versioning import Claim
from scorer.catalog.index_checkpoint import Bookmark
from scorer.feeder import feeder_publisher
from scorer.feeder.kafka_feed import FeedRecord, ItemFeed, TileFeed
from scorer.feeder.modelfeed import ModelFeed
from scorer.feeder.state import FeederState, Stopped
from tests.scenes.feed_scene import Scene, feed, flip, records, same_model
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_log import MemoryBroker, caught_up
from tests.scenes.scorer_shop import ITEM, ITEMS, LAYOUT, NOW_MS, SCHEMA, arrays, call, item, own_app, tiles
from tests.scenes.scorer_shop import window_keys as keys_of

POSITION = LAYOUT.cat_names.index("position")


def counted(state: FeederState) -> list[int]:
    """How often something was done alone with the index: a number for each time."""
    calls: list[int] = []
    alone = state.alone

    def counts(function: Callable[..., Any], *args: Any) -> Any:
        calls.append(len(calls) + 1)
        return alone(function, *args)

    state.alone = counts  # type: ignore[method-assign]
    return calls


# -- items and tiles ----------------------------------------------------------------------------------------------


def test_items_come_in_and_what_is_no_item_is_counted_and_passed_over(tmp_path: Path) -> None:
    reader, scorer, meters, _ = feed(ItemFeed, tmp_path)
    good = [(str(i.item_id).encode(), to_json(i)) for i in ITEMS]
    bad = ((b"x", b"{"), (b"x", b'{"item_id": 1.5}'))
    reader.take(records(*good[:70], *bad, *good[70:], (b"3", None), (b"unseen", None)))
    assert len(scorer.index) == 200
    assert meters.errors == {"item": 2}
    assert scorer.index.alive.sum() == 199
    assert not scorer.index.alive[scorer.index.rows_of([3])[0]], "a tombstone takes an item out"


def test_changes_come_in_small_slices(tmp_path: Path) -> None:
    reader, scorer, _, _ = feed(ItemFeed, tmp_path)
    calls = counted(scorer.state)
    reader.take(records(*((b"", to_json(i)) for i in ITEMS)))
    assert len(calls) >= 3


def test_a_feed_has_caught_up_when_it_has_read_what_there_was_when_it_began(tmp_path: Path) -> None:
    broker = MemoryBroker()
    for one in ITEMS:
        broker.log("items").append(to_json(one))
    reader, scorer, _, _ = feed(ItemFeed, tmp_path, broker=broker)
    assert "items (unknown)" in scorer.not_ready()
    reader._reader = reader._open()
    reader.turn()
    assert not reader.caught_up
    assert "items (150)" in scorer.not_ready()
    broker.log("items").append(to_json(item("later")))
    for _ in range(3):
        assert reader.turn()
    assert reader.caught_up, "what came later does not count: there may always be more"
    assert scorer.primary.index_complete
    assert "no model" in scorer.not_ready()


def test_a_topic_that_loses_its_end_does_not_keep_a_scorer_from_being_ready(tmp_path: Path) -> None:
    broker = MemoryBroker()
    for one in ITEMS:
        broker.log("items").append(to_json(one))
    reader, scorer, _, _ = feed(ItemFeed, tmp_path, broker=broker)
    reader._reader = reader._open()
    reader.turn()
    lost = broker.log("items")
    lost.messages, lost.end = lost.messages[:60], 60
    caught_up(reader)
    assert reader.caught_up
    assert len(scorer.index) == 60


def test_a_feed_whose_broker_went_away_goes_on_where_it_was(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    scene.broker.fails = OSError("away")
    with pytest.raises(OSError, match="away"):
        scene.read()
    scene.feed._reader = None  # as the thread would
    scene.learner.delta()
    assert scene.read() == 2
    assert scene.meters.loads == 1


def tile_message(partition: int, keys: Any, blobs: list[bytes], seq: int = 0) -> tuple[None, bytes]:
    (message,) = pack(partition, seq, NOW_MS, keys, blobs)
    return None, to_msgpack(message)


def test_tiles_reach_the_index_and_damaged_messages_are_counted(tmp_path: Path) -> None:
    reader, scorer, meters, _ = feed(TileFeed, tmp_path)
    shoe = item(1)
    keys = keys_of("u", [shoe, item(2)])[:, ITEM]
    good = tiles(keys, 10, 2).export(keys)
    reader.take(
        records(
            tile_message(0, keys, good),
            (None, b"\xc1"),
            (None, to_msgpack(ItemTiles(0, 1, NOW_MS, keys.tobytes(), b"", b""))),
            tile_message(0, keys, [b"\x01\x63bad", b""]),
            tile_message(1, keys[:1], good[:1]),
        )
    )
    assert scorer.index.counts.at(keys, NOW_MS)[:, 0, 0].tolist() == [20, 10]
    assert meters.errors == {"item-tiles": 3}


# -- versions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_scorer_starts_from_the_newest_snapshot_and_the_deltas_after_it(scene: Scene) -> None:
    learner = scene.learner
    learner.snapshot()
    for _ in range(3):
        learner.delta()
    learner.snapshot()
    learner.delta(dense=False)
    assert scene.read() == 4
    assert same_model(scene.scorer, learner, dense=False)
    assert scene.meters.loads == 1
    assert scene.meters.click_to_served()["count"] == 0, "clicks of long ago were not served late by this scorer"
    scene.feed.seek(Bookmark("", {}))
    scene.read()
    assert (scene.meters.loads, scene.meters.versions_served, scene.meters.gaps) == (1, 2, 0), "again changes nothing"


def test_learner_and_scorer_may_share_an_object_store_and_no_folder(tmp_path: Path) -> None:
    scene = Scene(tmp_path, f"memory://{uuid4().hex}")
    for _ in range(2):
        scene.learner.snapshot()
        scene.learner.delta()
        scene.learner.delta(dense=False)
        scene.read()
        assert same_model(scene.scorer, scene.learner, dense=False)
    assert scene.meters.loads == 1
    scene.start()
    assert scene.read() == 5
    assert same_model(scene.scorer, scene.learner, dense=False)
    assert not scene.folder.exists()


def test_deltas_are_patched_in_order_and_their_clicks_timed(scene: Scene) -> None:
    assert scene.read() is None
    assert not scene.scorer.to_read, "an empty topic is read to its end"
    scene.learner.snapshot()
    assert scene.read() == 0
    writer = scene.scorer.host.writer
    for version in (1, 2, 3):
        scene.learner.delta()
        assert scene.read() == version
        assert same_model(scene.scorer, scene.learner)
        scene.scorer.fold()
        assert scene.scorer.host.unfolded == 0
        assert same_model(scene.scorer, scene.learner), "rows have moved, and nothing has changed"
    assert scene.scorer.host.writer is writer, "patched in place"
    assert scene.meters.click_to_served()["count"] == 6
    assert (scene.meters.gaps, scene.meters.versions_served, sum(scene.meters.errors.values())) == (0, 4, 0)
    assert scene.scorer.note is not None
    assert scene.scorer.note.spec["width"] == 4, "a delta does not say it, and yet it is known"


def test_a_snapshot_of_what_is_served_is_no_news(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    scene.read()
    model = scene.scorer.model
    scene.learner.snapshot()
    scene.read()
    assert scene.scorer.model is model
    assert scene.meters.loads == 1


def test_a_lost_delta_costs_one_load_however_many_follow(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    scene.learner.delta(lost=True)
    for _ in range(5):
        scene.learner.delta()
        assert scene.read() == 1, "serving goes on"
        scene.now += 100
    assert (scene.meters.gaps, scene.meters.loads) == (1, 1)
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 8
    assert same_model(scene.scorer, scene.learner)
    assert (scene.meters.gaps, scene.meters.loads) == (1, 2)
    clicks = scene.meters.click_to_served()["count"]
    assert clicks == 2 * (5 + 1), "those of the five that waited are served late, but served"


@pytest.mark.parametrize("damage", ["flip", "drop", "cut"])
def test_a_damaged_message_is_never_served_and_waits_for_the_next_snapshot(scene: Scene, damage: str) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    scene.learner.delta()
    messages = scene.broker.log(MODEL_DELTAS).messages
    last = messages[-1]
    assert last.value is not None
    if damage == "drop":
        messages.remove(last)
    else:
        last.value = (
            last.value[:200] if damage == "cut" else bytes([*last.value[:500], last.value[500] ^ 4, *last.value[501:]])
        )
    scene.learner.delta()
    assert scene.read() == 1
    assert scene.meters.gaps == 1
    scene.learner.snapshot()
    assert scene.read() == 3
    assert same_model(scene.scorer, scene.learner)


def test_an_old_delta_flipped_and_one_announcement_lost_never_take_serving_back(scene: Scene) -> None:
    """Serving once went from version 5 to 2 so."""
    scene.learner.snapshot()
    for _ in range(2):
        scene.learner.delta()
    old = scene.broker.log(MODEL_DELTAS).messages[-1]
    for _ in range(3):
        scene.learner.delta()
    assert scene.read() == 5
    assert old.value is not None
    old.value = old.value[:-1] + bytes([old.value[-1] ^ 1])
    scene.learner.delta(lost=True)
    scene.learner.delta()
    assert scene.read() == 5
    scene.now += 100
    assert scene.read() == 5
    assert scene.meters.loads == 1, "the only snapshot is older than what is served"


def test_a_delta_that_lacks_a_column_is_refused_whole(scene: Scene) -> None:
    """Its digest is right, and yet new dense weights with old rows would be served."""
    scene.learner.snapshot()
    scene.read()
    served = scene.scorer.model.snapshot()  # type: ignore[union-attr]
    changes = scene.learner.model.changes

    def lacking(dense: bool = True, retrieval: bool = True) -> Image:
        image = changes(dense, retrieval)
        rows = next(iter(image.tables.values()))
        rows.columns.pop(next(iter(rows.columns)))
        return image

    scene.learner.model.changes = lacking  # type: ignore[method-assign]
    scene.learner.delta()
    scene.learner.model.changes = changes  # type: ignore[method-assign]
    assert scene.read() == 0
    assert scene.scorer.model.snapshot().same_bits(served) == ""  # type: ignore[union-attr]
    assert scene.meters.errors == {"delta": 1}
    scene.learner.snapshot()
    assert scene.read() == 1
    assert same_model(scene.scorer, scene.learner)


def test_a_damaged_snapshot_falls_back_to_the_one_before_it_and_is_not_tried_again(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    newest = scene.learner.snapshot()
    scene.learner.delta()
    flip(scene.file(newest.parts[0].name))
    reads = _count_reads(scene, newest.parts[0].name)
    assert scene.read() == 2, "the older snapshot and its deltas reach the same version"
    assert same_model(scene.scorer, scene.learner)
    assert scene.meters.errors == {"snapshot": 1}
    for _ in range(5):
        scene.now += 100
        scene.learner.delta()
        scene.read()
    assert reads == [newest.parts[0].name]


def _count_reads(scene: Scene, name: str) -> list[str]:
    reads: list[str] = []
    expect = scene.feed.store.store.expect

    def counted(file: Any) -> Any:
        if file.name == name:
            reads.append(file.name)
        return expect(file)

    scene.feed.store.store.expect = counted
    return reads


def test_unreadable_manifests_block_nothing(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    scene.learner.snapshot()
    for path in sorted((scene.folder / "models").glob("*.manifest")):
        path.write_bytes(b"rubbish")
        break
    assert scene.read() == 1
    assert same_model(scene.scorer, scene.learner)
    scene.learner.delta(lost=True)
    scene.learner.delta()
    assert scene.read() == 1
    scene.learner.snapshot()
    assert scene.read() == 3


def test_a_snapshot_whose_announcement_was_lost_is_found_in_the_store(scene: Scene) -> None:
    scene.learner.snapshot()
    assert scene.read() == 0
    scene.learner.delta(lost=True)
    scene.learner.delta()
    scene.read()
    scene.learner.snapshot(announce=False)
    assert scene.read() == 0
    scene.now += 100
    assert scene.read() == 2
    assert same_model(scene.scorer, scene.learner)


def test_a_learner_of_a_higher_epoch_is_followed_and_the_one_before_it_no_more(scene: Scene) -> None:
    first = scene.learner
    first.snapshot()
    first.delta()
    first.delta()
    assert scene.read() == 2
    second = scene.another(seed=1, epoch=2, version=2)
    first.delta()
    assert scene.read() == 2, "the first has lost its epoch"
    assert scene.meters.errors == {"fenced": 1}
    second.snapshot()
    second.delta()
    assert scene.read() == 3
    assert same_model(scene.scorer, second)
    first.delta()
    first.snapshot()
    assert scene.read() == 3
    assert same_model(scene.scorer, second)
    assert (scene.meters.gaps, scene.meters.loads) == (0, 2), "a new chain is no gap"
    scene.start()
    assert scene.read() == 3
    assert same_model(scene.scorer, second), "a scorer that starts finds the same"


def test_going_back_to_older_content_in_a_higher_epoch_is_followed(scene: Scene) -> None:
    """Versions have an order of their own; what they hold, and the wall time, do not count."""
    scene.learner.snapshot()
    for _ in range(3):
        scene.learner.delta()
    assert scene.read() == 3
    back = scene.another(epoch=2, version=4)  # as the first was before its first delta
    back.snapshot()
    assert scene.read() == 4
    assert same_model(scene.scorer, back)


def test_two_learners_that_claim_one_epoch_are_one_learner(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.read()
    twin = scene.another(seed=1)
    twin.claimant, twin.hash = "another", "f" * 64
    twin.delta()
    twin.delta()
    assert scene.read() == 0
    scene.learner.delta()
    assert scene.read() == 1
    assert same_model(scene.scorer, scene.learner)
    assert scene.meters.loads == 1


def test_versions_of_another_schema_and_unreadable_messages_are_counted(scene: Scene) -> None:
    log = scene.broker.log(MODEL_DELTAS)
    note = scene.learner.snapshot()
    foreign = encode_snapshot(msgspec.structs.replace(note, schema_id="0" * 16, version=7))
    for value in (foreign, foreign, b"[]", None, b'{"kind": "delta"}'):
        log.append(value)
    assert scene.read() == 0
    assert scene.meters.errors == {"schema": 1, "announcement": 3}
    scene.learner.delta()
    assert scene.read() == 1
    assert same_model(scene.scorer, scene.learner)


def test_a_delta_that_cannot_be_staged_leaves_what_is_served_until_a_whole_one_reaches_as_far(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    broken, served = scene.scorer.host.writer, scene.scorer.model
    assert broken is not None
    assert served is not None
    before = served.snapshot()
    versions = []

    def half(_: Any) -> None:
        raise RuntimeError("after the first table")

    monkeypatch.setattr(broken, "stage", half)
    scene.scorer.began = lambda note: versions.append((note.version, served.snapshot().same_bits(before)))
    scene.learner.delta()
    assert scene.read() == 2
    assert scene.scorer.host.writer is not broken
    assert same_model(scene.scorer, scene.learner)
    assert scene.meters.errors == {"patch": 1}
    assert versions == [(2, "")], "version 0 was loaded and patched, but served only from where serving had been"


def test_a_store_that_is_away_is_asked_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.learner.snapshot()
    away = True
    read = scene.feed.store.store.expect

    def expect(file: Any) -> Any:
        if away:
            raise StoreError("no answer", "wait")
        return read(file)

    monkeypatch.setattr(scene.feed.store.store, "expect", expect)
    assert scene.read() is None
    assert scene.meters.errors["store"] >= 1
    away = False
    scene.now += 100
    assert scene.read() == 0
    assert same_model(scene.scorer, scene.learner)


def test_a_broker_that_was_lost_with_its_topics_is_read_from_the_beginning(scene: Scene) -> None:
    scene.learner.snapshot()
    scene.learner.delta()
    scene.learner.snapshot()
    scene.broker.lose(MODEL_DELTAS)
    log = scene.broker.log(MODEL_DELTAS)
    scene.learner.send, scene.learner.log = log.append, log.id
    scene.learner.send(encode_claim(Claim(1, scene.learner.claimant)))
    scene.learner.delta()
    assert scene.read() == 2, "the state is kept, and what follows it is found"
    assert same_model(scene.scorer, scene.learner)
    assert not scene.scorer.to_read


def test_deltas_before_the_snapshot_may_be_gone(scene: Scene) -> None:
    scene.learner.snapshot()
    for _ in range(3):
        scene.learner.delta()
    kept = scene.learner.snapshot()
    scene.learner.delta()
    scene.broker.log(MODEL_DELTAS).cut(kept.follows)
    assert scene.read() == 4
    assert same_model(scene.scorer, scene.learner)
    assert scene.meters.gaps == 0


# -- with requests under way --------------------------------------------------------------------------------------


async def test_versions_change_between_concurrent_requests_and_none_is_dropped_or_mixed(tmp_path: Path) -> None:
    """Each page's scores must be those of exactly one whole version: the one that the page names."""
    scene = Scene(tmp_path)
    learner, log = scene.learner, scene.broker.log(MODEL_DELTAS)
    notes = [learner.snapshot()]
    ends = [log.end]
    for _ in range(12):
        notes.append(learner.delta())
        ends.append(log.end)
    messages = [FeedRecord(None, m.value, m.offset) for m in log.messages]
    reader, whole, meters, sent = feed(ModelFeed, scene.folder)
    scorer = whole.serving
    whole.stock(ITEMS[:150])
    reader.start_up()
    whole.primary.to_read = {}
    whole.publisher.status()
    app = own_app(scorer, meters)
    answers: list[tuple[int, Any]] = []
    done = asyncio.Event()

    async def shopper(n: int) -> None:
        i = 0
        while not done.is_set() or i == 0:
            body = {"user_id": n, "size": 20, "request_id": f"{n}.{i}"}
            answers.append(await call(app, "POST", "/recommend", body))
            i += 1

    async def news() -> None:
        for start, end in itertools.pairwise(ends):
            before = len(answers)
            reader.take(messages[start:end])  # on the loop, as what the link brings is applied there
            whole.host.fold(3)
            while len(answers) < before + 4:  # some pages of this version
                await asyncio.sleep(0)
        whole.stock(ITEMS[150:])
        done.set()

    await asyncio.gather(news(), *(shopper(n) for n in range(4)))
    assert [status for status, _ in answers] == [200] * len(answers)
    assert len(sent) == len(answers)
    assert sum(meters.errors.values()) == 0
    assert {page["model_version"] for _, page in answers} >= set(range(1, 13))

    model = ServingModel.of(SCHEMA, notes[0].spec, learner.store.read_parts(notes[0]))
    assembler = Assembler()
    deltas = [entry for m in messages for entry in assembler.take(m.value) if isinstance(entry, Delta)]
    for note, delta in zip(notes, [None, *deltas], strict=True):
        if delta is not None:
            model.patch(unpack(delta.body, model.dense()))
        for page_log in (i for i in sent if i.model_version == note.version):
            features, scores = arrays(page_log)
            cat = features.cat.copy()
            cat[:, POSITION] = 0
            np.testing.assert_allclose(model.score(cat, features.num), scores, rtol=1e-5)


def test_nobody_changes_the_index_of_a_scorer_that_ends(tmp_path: Path) -> None:
    state = Whole(Settings(data=str(tmp_path))).state
    assert state.alone(lambda a, b: a + b, 1, 2) == 3
    state.stop.set()
    with pytest.raises(Stopped):
        state.alone(lambda: None)


def test_an_exception_of_a_change_comes_back_and_lets_others_change(tmp_path: Path) -> None:
    state = Whole(Settings(data=str(tmp_path))).state

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        state.alone(fail)
    assert state.alone(lambda: 3) == 3


def test_whoever_changes_the_index_is_alone_with_it(tmp_path: Path) -> None:
    state = Whole(Settings(data=str(tmp_path))).state
    inside, most = 0, 0

    def change() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(1000):
            pass
        inside -= 1

    threads = [threading.Thread(target=lambda: [state.alone(change) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_page_is_the_same_whether_the_model_was_patched_or_loaded(scene: Scene) -> None:
    scene.learner.snapshot()
    for _ in range(2):
        scene.read()
        scene.learner.delta()
    scene.read()
    one, sent = scene.scorer, scene.sent
    scene.learner.snapshot()
    scene.start()
    scene.read()
    other, also_sent = scene.scorer, scene.sent
    assert scene.meters.versions_served == 1
    for scorer in (one, other):
        scorer.stock(ITEMS)
        scorer.primary.to_read = {}
        scorer.publisher.status()
        asyncio.run(scorer.serving.recommend(b'{"user_id": 4, "request_id": "r"}'))
    assert sent[0] == also_sent[0]


# -- Workers' item tables are kept up to date --------------------------------------------------------------------------
# Whenever a worker joins, whatever fails on the way, nothing is missing.


@pytest.fixture
def scorer(tmp_path: Path) -> Whole:
    return Whole(Settings(data=str(tmp_path), control_share=0, candidates=50))


def put(scorer: Whole, items: Any) -> None:
    scorer.index.put([scorer.index.prepare(one) for one in items])


def test_a_worker_that_joins_before_the_whole_index_counts_as_sent_gets_what_the_others_got(scorer: Whole) -> None:
    put(scorer, ITEMS[:100])
    scorer.publisher.changes(all_of_them=True)
    scorer.replace_worker()
    put(scorer, ITEMS[100:])
    scorer.publisher.changes(all_of_them=True)
    assert scorer.serving.items.rows_of([one.item_id for one in ITEMS]).tolist() == list(range(len(ITEMS)))


def test_a_change_that_could_not_be_sent_is_sent_later(scorer: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index tells of each change once. Without it a list names rows that a table does not have, for ever."""
    scorer.stock(ITEMS)
    put(scorer, [item("late")])

    def refused(*_: Any) -> Any:
        raise OSError("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(feeder_publisher, "Packet", refused)
        with pytest.raises(OSError, match="too many"):
            scorer.publisher.changes()
    assert scorer.publisher.changes()
    assert scorer.serving.items.rows_of(["late"]).tolist() == [len(ITEMS)]
