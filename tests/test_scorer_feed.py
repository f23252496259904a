"""Feeds: what they read changes index and model between two requests, in order, and gaps are mended from the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.model import ServingModel
from millrace.contracts.events import ItemTiles, to_json, to_msgpack
from millrace.contracts.itemtiles import pack
from millrace.contracts.modelstore import Announcement
from millrace.contracts.settings import Settings
from scorer.app import make_app, refresh_lists
from scorer.door import Door, Stopped
from scorer.feed import Feed, ItemFeed, TileFeed
from scorer.meters import ScorerMeters
from scorer.modelfeed import ModelFeed
from scorer.serving import Serving
from tests.scorer_shop import ITEM, ITEMS, LAYOUT, NOW_MS, SCHEMA, Learner, arrays, call, item, serving, stock, tiles
from tests.scorer_shop import window_keys as keys_of

POSITION = LAYOUT.cat_names.index("position")


class Here(Door):
    """A door for tests without a loop: the change is made at once, in the thread that asks."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        return function(*args)


def feed(kind: type[Feed], folder: Path, door: Door | None = None) -> tuple[Any, Serving, ScorerMeters, list[Any]]:
    settings = Settings(data=str(folder), control_share=0, candidates=50, page_limit=20)
    scorer, sent, meters = serving(settings=settings)
    return kind(settings, scorer, meters, door or Here(), threading.Event()), scorer, meters, sent


def learner_in(folder: Path, **more: Any) -> Learner:
    return Learner(folder / "models", **more)


def messages(*notes: Announcement) -> list[tuple[bytes | None, bytes | None]]:
    return [(None, to_json(note)) for note in notes]


def same_model(scorer: Serving, learner: Learner) -> bool:
    """Whether the model served is, bit for bit, the learner's newest."""
    assert isinstance(scorer.model, ServingModel)
    image, _ = learner.model.snapshot()
    return scorer.model.snapshot().same_bits(image) == ""


# -- items and tiles ----------------------------------------------------------------------------------------------


def test_items_come_in_and_what_is_no_item_is_counted_and_passed_over(tmp_path: Path) -> None:
    reader, scorer, meters, _ = feed(ItemFeed, tmp_path)
    good = [(str(i.item_id).encode(), to_json(i)) for i in ITEMS]
    reader.take([*good[:70], (b"x", b"{"), (b"x", b'{"item_id": 1.5}'), *good[70:], (b"3", None), (b"unseen", None)])
    assert len(scorer.index) == 200
    assert meters.errors == {"item": 2}
    assert scorer.index.alive.sum() == 199
    assert not scorer.index.alive[scorer.index.rows_of([3])[0]], "a tombstone takes an item out"


def test_changes_come_through_the_door_in_small_slices(tmp_path: Path) -> None:
    door = Here()
    reader, _, _, _ = feed(ItemFeed, tmp_path, door)
    reader.take([(b"", to_json(i)) for i in ITEMS])
    assert door.calls >= 3


def tile_message(partition: int, keys: Any, blobs: list[bytes], seq: int = 0) -> tuple[None, bytes]:
    (message,) = pack(partition, seq, NOW_MS, keys, blobs)
    return None, to_msgpack(message)


def test_tiles_reach_the_index_and_damaged_messages_are_counted(tmp_path: Path) -> None:
    reader, scorer, meters, _ = feed(TileFeed, tmp_path)
    shoe = item(1)
    keys = keys_of("u", [shoe, item(2)])[:, ITEM]
    good = tiles(keys, 10, 2).export(keys)
    reader.take(
        [
            tile_message(0, keys, good),
            (None, b"\xc1"),
            (None, to_msgpack(ItemTiles(0, 1, NOW_MS, keys.tobytes(), b"", b""))),
            tile_message(0, keys, [b"\x01\x63bad", b""]),
            tile_message(1, keys[:1], good[:1]),
        ]
    )
    assert scorer.index.counts(keys, NOW_MS)[:, 0, 0].tolist() == [20, 10]
    assert meters.errors == {"item-tiles": 3}


# -- versions -----------------------------------------------------------------------------------------------------


def test_a_scorer_starts_from_the_newest_snapshot_and_the_deltas_after_it(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    learner.snapshot()
    for _ in range(3):
        learner.delta()
    learner.snapshot()
    learner.delta()
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.start_up()
    assert scorer.note is not None
    assert scorer.note.hash == learner.published[-1].hash
    assert same_model(scorer, learner)
    assert meters.clicks_served == 0, "clicks of long ago were not served late by this scorer"
    reader.take(messages(*learner.published))
    assert scorer.note.hash == learner.published[-1].hash
    assert meters.versions_served == 1, "the whole topic again changes nothing"
    assert meters.gaps == 0


def test_deltas_are_patched_in_order_and_their_clicks_timed(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.start_up()
    assert scorer.model is None
    reader.take(messages(learner.snapshot()))
    model = scorer.model
    for _ in range(3):
        reader.take(messages(learner.delta()))
        assert same_model(scorer, learner)
    assert scorer.model is model, "patched in place"
    assert scorer.note is not None
    assert scorer.note.version == 3
    assert list(meters.click_to_served_ms) == [500, 1500] * 4
    assert (meters.gaps, meters.versions_served, sum(meters.errors.values())) == (0, 4, 0)


def test_a_snapshot_of_what_is_served_is_no_news(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(learner.snapshot(), learner.delta()))
    model = scorer.model
    reader.take(messages(learner.snapshot()))
    assert scorer.model is model
    assert meters.versions_served == 2


def test_after_a_gap_the_newest_snapshot_and_its_deltas_are_loaded(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(learner.snapshot(), learner.delta()))
    learner.delta()  # lost on the way, but in the store
    reader.take(messages(learner.delta()))
    assert meters.gaps == 1
    assert same_model(scorer, learner)
    assert scorer.note is not None
    assert scorer.note.version == 3
    reader.take(messages(learner.delta()))
    assert same_model(scorer, learner)
    assert (meters.gaps, sum(meters.errors.values())) == (1, 0)


def test_a_gap_that_the_store_cannot_mend_keeps_the_old_model_until_the_next_snapshot(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(learner.snapshot(), learner.delta()))
    lost = learner.delta()
    (tmp_path / "models" / lost.file).unlink()
    (tmp_path / "models" / f"{lost.file}.json").unlink()
    assert scorer.note is not None
    for _ in range(3):
        reader.take(messages(learner.delta()))
        assert scorer.note.version == 1
    assert meters.gaps == 1, "one gap, however many deltas follow it"
    reader.take(messages(learner.snapshot()))
    assert scorer.note.version == 5
    assert same_model(scorer, learner)


def test_a_damaged_delta_file_is_never_served(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(learner.snapshot()))
    bad = learner.delta()
    path = tmp_path / "models" / bad.file
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    reader.take(messages(bad))
    assert scorer.note is not None
    assert scorer.note.version == 0
    assert meters.gaps == 1
    reader.take(messages(learner.delta(), learner.snapshot()))
    assert scorer.note.version == 2
    assert same_model(scorer, learner)


def test_a_damaged_snapshot_falls_back_to_the_one_before_it(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    learner.snapshot()
    learner.delta()
    newest = learner.snapshot()
    (tmp_path / "models" / newest.file).write_bytes(b"rubbish")
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.start_up()
    assert scorer.note is not None
    assert scorer.note.version == 1, "the older snapshot and its delta reach the same version"
    assert same_model(scorer, learner)
    assert meters.errors == {"snapshot": 1}


def test_a_restarted_learner_is_followed_to_its_new_chain(tmp_path: Path) -> None:
    first = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(first.snapshot(), first.delta(), first.delta()))
    second = learner_in(tmp_path, seed=1, version=3, at_ms=first.at_ms)
    reader.take(messages(second.snapshot(), second.delta()))
    assert same_model(scorer, second)
    assert meters.gaps == 0, "a new chain is no gap"
    reader.take(messages(*first.published))
    assert same_model(scorer, second)


def test_versions_of_another_schema_and_unreadable_announcements_are_counted(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    note = learner.snapshot()
    foreign = to_json(note).replace(SCHEMA.id.encode(), b"0" * 16)
    reader.take([(None, foreign), (None, foreign), (None, b"[]"), (None, None), *messages(note)])
    assert meters.errors == {"schema": 1, "announcement": 2}
    assert same_model(scorer, learner)


def test_a_patch_that_fails_halfway_is_replaced_by_the_stores_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_in(tmp_path)
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path)
    reader.take(messages(learner.snapshot()))
    broken = scorer.model
    assert broken is not None

    def half(_: Any) -> None:
        raise RuntimeError("after the first table")

    monkeypatch.setattr(broken, "patch", half)
    reader.take(messages(learner.delta()))
    assert scorer.model is not broken
    assert same_model(scorer, learner)
    assert meters.errors == {"patch": 1}


# -- with requests under way --------------------------------------------------------------------------------------


def test_versions_change_between_concurrent_requests_and_none_is_dropped_or_mixed(tmp_path: Path) -> None:
    """Each page's scores must be those of exactly one whole version: the one that the page names."""
    learner = learner_in(tmp_path)
    notes = [learner.snapshot(), *(learner.delta() for _ in range(12))]

    async def run() -> tuple[list[tuple[int, Any]], list[Any], ScorerMeters]:
        stop = threading.Event()
        door = Door(asyncio.get_running_loop(), stop)
        reader, scorer, meters, sent = feed(ModelFeed, tmp_path, door)
        items, _, _, _ = feed(ItemFeed, tmp_path, door)
        items.serving = scorer
        await asyncio.to_thread(items.take, [(b"", to_json(i)) for i in ITEMS[:150]])
        await refresh_lists(scorer)
        await asyncio.to_thread(reader.take, messages(notes[0]))
        app = make_app(scorer, meters)
        answers: list[tuple[int, Any]] = []
        done = asyncio.Event()

        async def shopper(n: int) -> None:
            i = 0
            while not done.is_set() or i == 0:
                body = {"user_id": n, "size": 20, "request_id": f"{n}.{i}"}
                answers.append(await call(app, "POST", "/recommend", body))
                i += 1

        async def news() -> None:
            for note in notes[1:]:
                before = len(answers)
                await asyncio.to_thread(reader.take, messages(note))
                while len(answers) < before + 4:  # some pages of this version
                    await asyncio.sleep(0)
            await asyncio.to_thread(items.take, [(b"", to_json(i)) for i in ITEMS[150:]])
            done.set()

        await asyncio.gather(news(), *(shopper(n) for n in range(4)))
        return answers, sent, meters

    answers, sent, meters = asyncio.run(run())
    assert [status for status, _ in answers] == [200] * len(answers)
    assert len(sent) == len(answers)
    assert sum(meters.errors.values()) == 0
    assert {page["model_version"] for _, page in answers} >= set(range(1, 13))

    model = ServingModel.of(SCHEMA, notes[0].spec, learner.store.read(notes[0]))
    for note in notes:
        if note.kind == "delta":
            model.patch(learner.store.read(note))
        for impression in (i for i in sent if i.model_version == note.version):
            features, scores = arrays(impression)
            cat = features.cat.copy()
            cat[:, POSITION] = 0
            np.testing.assert_allclose(model.score(cat, features.num), scores, rtol=1e-5)


def test_a_door_to_a_loop_that_ended_lets_its_thread_go() -> None:
    stop = threading.Event()
    loop = asyncio.new_event_loop()
    door = Door(loop, stop)
    stop.set()
    with pytest.raises(Stopped):
        door.call(lambda: None)  # the loop does not run
    loop.close()
    with pytest.raises(Stopped):
        door.call(lambda: None)


def test_an_exception_behind_the_door_comes_back() -> None:
    async def run() -> None:
        door = Door(asyncio.get_running_loop(), threading.Event())
        assert await asyncio.to_thread(door.call, lambda a, b: a + b, 1, 2) == 3
        for error in (ValueError("no"), TimeoutError("slow")):

            def fail(error: Exception = error) -> None:
                raise error

            with pytest.raises(type(error), match=str(error)):
                await asyncio.to_thread(door.call, fail)

    asyncio.run(run())


def test_a_page_is_the_same_whether_the_model_was_patched_or_loaded(tmp_path: Path) -> None:
    learner = learner_in(tmp_path)
    patched, one, _, sent = feed(ModelFeed, tmp_path)
    patched.take(messages(learner.snapshot(), learner.delta(), learner.delta()))
    loaded, other, _, also_sent = feed(ModelFeed, tmp_path)
    loaded.start_up()
    for scorer in (one, other):
        stock(scorer, ITEMS)
        asyncio.run(scorer.recommend(b'{"user_id": 4, "request_id": "r"}'))
    assert sent[0] == also_sent[0]
