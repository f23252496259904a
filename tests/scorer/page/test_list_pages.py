"""Ranked lists handed out in parts: through the application, with workers that share a store, down to the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from learner.serving.serving_model import ServingModel
from millrace.contracts.events import Click, Exposure, PageLog, to_json
from millrace.contracts.online_layout import window_fields
from millrace.contracts.page_logs import page_log_bytes
from scorer.page import ranked
from stream.partition.partition import InputMessage, Partition
from tests.scenes.page_sources import source_names
from tests.scenes.scorer_shop import (
    BUILDER,
    ITEMS,
    LAYOUT,
    NOW_MS,
    SCHEMA,
    Learner,
    OneWorker,
    Users,
    arrays,
    item,
    record,
    stock,
    tiles,
    window_keys,
)
from tests.scenes.stream_world import POLICY

POSITION = LAYOUT.cat_names.index("position")


class Worker(OneWorker):
    """One of several workers on one store."""

    def __init__(self, users: Users, learner: Learner, **settings: Any) -> None:
        super().__init__(learner, users, **{"candidates": 100, **settings})
        self.index = stock(self.scorer, ITEMS)
        self.follow()
        self.now_ms = NOW_MS
        self.scorer.maker.wall = self.scorer.ranked._wall = lambda: self.now_ms
        self.scorer._new_id = lambda: uuid4().hex  # no two workers make the same id


@pytest.fixture
def shop(tmp_path: Path) -> Worker:
    users = Users()
    keys = np.unique(window_keys("ann", ITEMS)[:, [0, 3]])
    users.records["ann"] = record(keys, tiles(keys, 10, 4))
    return Worker(users, Learner(tmp_path))


def another(shop: Worker) -> Worker:
    return Worker(shop.users, shop.learner)


def ids(*answers: Any) -> list[Any]:
    return [i["item_id"] for answer in answers for i in answer["items"]]


def slots_logged(page_log: PageLog) -> list[int]:
    """The slots that a page log's feature ``position`` says."""
    known = BUILDER.cat({"position": BUILDER.position(np.arange(200))}, 200)[:, POSITION].tolist()
    return [known.index(cat) for cat in arrays(page_log)[0].cat[:, POSITION].tolist()]


def test_the_parts_of_a_list_are_the_page_that_would_have_been_answered_whole(shop: Worker) -> None:
    whole = shop.ask(size=50, request_id="r")
    assert (whole["cursor"], whole["offset"]) == (None, 0)
    shop.sent.clear()
    parts = [shop.ask(size=20, list=50, request_id="r")]
    assert len(shop.sent) == 1
    assert len(shop.sent[0].items) == 20, "what was not handed out is not logged"
    for _ in range(2):
        parts.append(shop.ask(size=20, cursor=parts[-1]["cursor"]))
    assert ids(*parts) == ids(whole)
    assert [len(p["items"]) for p in parts] == [20, 20, 10]
    assert [p["offset"] for p in parts] == [0, 20, 40]
    assert [[i["position"] for i in p["items"]] for p in parts] == [list(range(20)), list(range(20)), list(range(10))]
    assert parts[0]["request_id"] == "r"
    assert parts[1]["request_id"].startswith("r.20.")
    assert parts[2]["request_id"].startswith("r.40.")
    scores = [i["score"] for p in parts for i in p["items"]]
    np.testing.assert_allclose(scores, [i["score"] for i in whole["items"]], rtol=1e-5)
    assert [p["notes"] for p in parts] == [[], [], []]

    assert [i.request_id for i in shop.sent] == [p["request_id"] for p in parts]
    assert [i.items for i in shop.sent] == [ids(p) for p in parts]
    assert [i.offset for i in shop.sent] == [0, 20, 40]
    assert [slots_logged(i) for i in shop.sent] == [list(range(20)), list(range(20, 40)), list(range(40, 50))]


def test_a_part_handed_out_again_is_a_page_of_its_own(shop: Worker) -> None:
    cursor = shop.ask(size=5, list=50)["cursor"]
    one, two = shop.ask(size=5, cursor=cursor), shop.ask(size=5, cursor=cursor)
    assert ids(one) == ids(two)
    assert one["request_id"] != two["request_id"]
    assert len({i.request_id for i in shop.sent}) == 3


def test_any_worker_hands_out_the_next_part(shop: Worker) -> None:
    whole = ids(shop.ask(size=50, request_id="r"))
    first = shop.ask(size=10, list=50, request_id="r")
    other = another(shop)
    second = other.ask(size=10, cursor=first["cursor"])
    third = shop.ask(size=10, cursor=second["cursor"])
    assert ids(first, second, third) == whole[:30]
    assert second["notes"] == third["notes"] == []


def test_a_part_is_scored_by_the_version_that_then_serves_and_the_order_stays(shop: Worker) -> None:
    whole = ids(shop.ask(size=50, request_id="r"))
    first = shop.ask(size=25, list=50, request_id="r")
    note = shop.learner.delta()
    shop.learner.snapshot(announce=False)
    newest = shop.learner.published[-1]
    model = ServingModel.of(SCHEMA, newest.spec, shop.learner.store.read(newest))
    shop.scorer.install(newest, model)
    second = shop.ask(size=25, cursor=first["cursor"])
    assert (first["model_version"], second["model_version"]) == (0, note.version)
    assert ids(first, second) == whole
    features, logged = arrays(shop.sent[-1])
    assert shop.sent[-1].model_version == note.version
    cat = features.cat.copy()
    cat[:, POSITION] = 0
    np.testing.assert_allclose(model.score(cat, features.num), logged, rtol=1e-5)


def test_items_that_are_gone_are_left_out_of_a_part(shop: Worker) -> None:
    whole = ids(shop.ask(size=50, request_id="r"))
    first = shop.ask(size=10, list=50, request_id="r")
    gone = [whole[12], whole[10], whole[19]]
    stock(shop.scorer, [item(i, gone=True) for i in gone], shop.index)
    second = shop.ask(size=10, cursor=first["cursor"])
    third = shop.ask(size=10, cursor=second["cursor"])
    left = [i for i in whole[10:] if i not in gone]
    assert ids(second, third) == left[:20]
    assert (second["offset"], third["offset"]) == (10, 20), "slots are those of what is shown"
    assert slots_logged(shop.sent[-1]) == list(range(20, 30))


def test_a_list_is_kept_for_a_stated_time_and_then_made_again(shop: Worker) -> None:
    first = shop.ask(size=10, list=50, request_id="r")
    other = another(shop)
    for worker, after_ms, kept in ((shop, 299_999, True), (other, 299_999, True), (shop, 300_000, False)):
        worker.now_ms = NOW_MS + after_ms
        part = worker.ask(size=10, cursor=first["cursor"])
        assert part["offset"] == (10 if kept else 0)
        assert any("no longer kept" in note for note in part["notes"]) is not kept
    again = shop.ask(size=10, cursor=part["cursor"])
    assert (again["offset"], again["notes"]) == (10, []), "the new list has a cursor of its own"
    assert again["request_id"].startswith(f"{part['request_id']}.10.")
    other.now_ms = NOW_MS + 300_000
    assert other.ask(size=10, cursor=first["cursor"])["offset"] == 0


def test_the_last_part_has_no_cursor(shop: Worker) -> None:
    first = shop.ask(size=40, list=50)
    last = shop.ask(size=40, cursor=first["cursor"])
    assert (len(last["items"]), last["cursor"]) == (10, None)
    exact = shop.ask(size=25, list=50)
    assert shop.ask(size=25, cursor=exact["cursor"])["cursor"] is None


def test_a_list_of_a_small_shop_has_one_part(tmp_path: Path) -> None:
    worker = Worker(Users(), Learner(tmp_path))
    gone = [item(i.item_id, gone=True) for i in ITEMS[4:]]
    stock(worker.scorer, gone, worker.index)
    page = worker.ask(size=10, list=50)
    assert (len(page["items"]), page["cursor"]) == (4, None)
    assert len(worker.scorer.ranked) == 0, "there is nothing to keep"


def test_when_nothing_is_left_a_new_list_begins(shop: Worker) -> None:
    whole = ids(shop.ask(size=50, request_id="r"))
    first = shop.ask(size=40, list=50, request_id="r")
    stock(shop.scorer, [item(i, gone=True) for i in whole[40:]], shop.index)
    beyond = f"{first['cursor'].split('.')[0]}.50.50.50"
    for cursor in (first["cursor"], beyond):
        renewed = shop.ask(size=40, cursor=cursor)
        assert (renewed["offset"], len(renewed["items"])) == (0, 40)
        assert renewed["request_id"] != first["request_id"]
        assert any("nothing of the cursor's list is left" in note for note in renewed["notes"])
        assert len(shop.ask(size=40, cursor=renewed["cursor"])["items"]) == 10


def test_a_list_of_another_user_is_refused(shop: Worker) -> None:
    cursor = shop.ask(size=10, list=50)["cursor"]
    answer = shop.ask(400, user_id="bob", size=10, cursor=cursor)
    assert "another user than 'bob'" in answer["error"]
    number = shop.ask(user_id=7, size=10, list=50)["cursor"]
    assert shop.ask(user_id="7", size=10, cursor=number)["offset"] == 10, "7 and '7' are the same user"


def test_the_context_of_a_list_holds_for_its_parts_until_another_is_given(shop: Worker) -> None:
    tab = LAYOUT.cat_names.index("tab")
    first = shop.ask(size=10, list=50, context={"tab": "home"})
    second = shop.ask(size=10, cursor=first["cursor"])
    shop.ask(size=10, cursor=second["cursor"], context={"tab": "sale"})
    one, two, three = (set(arrays(i)[0].cat[:, tab].tolist()) for i in shop.sent)
    assert one == two != three


def test_parts_say_where_the_list_had_their_items_from(shop: Worker) -> None:
    whole = shop.ask(size=50, request_id="r")
    sources = dict(zip(ids(whole), shop.sent[-1].sources, strict=True))
    first = shop.ask(size=20, list=50, request_id="r")
    stock(shop.scorer, [item(ids(whole)[20], gone=True)], shop.index)
    part = another(shop)
    stock(part.scorer, [item(ids(whole)[20], gone=True)], part.index)
    answer = part.ask(size=20, cursor=first["cursor"], explain=True)
    assert len(set(part.sent[-1].sources)) > 1
    assert list(part.sent[-1].sources) == [sources[i] for i in ids(answer)]
    assert [i["source"] for i in answer["items"]] == source_names(part.sent[-1])
    assert answer["retrieval_version"] == -1


def test_a_list_of_an_older_scorer_does_not_say_where_its_items_are_from(shop: Worker) -> None:
    first = shop.ask(size=20, list=50)
    users: Any = shop.scorer._store
    (key,) = users.ranked
    fields = msgspec.msgpack.decode(users.ranked[key])
    for kept in (fields[:6], [*fields[:6], b"\xfe" * 50, 3, None, b"", b"", b"", "of a later version"]):
        users.ranked[key] = msgspec.msgpack.encode(kept)
        other = another(shop)
        other.ask(size=20, cursor=first["cursor"])
        assert set(source_names(other.sent[-1])) == {"asked"}


def test_a_list_in_random_order_stays_in_that_order(shop: Worker) -> None:
    control = Worker(shop.scorer._store, shop.learner, control_share=1)  # type: ignore[arg-type]
    first = control.ask(size=10, list=50, request_id="r")
    second = control.ask(size=10, cursor=first["cursor"])
    assert (first["arm"], second["arm"]) == ("control", "control")
    assert ids(first, second) == ids(control.ask(size=50, request_id="r"))[:20]


def test_without_the_store_a_worker_goes_on_with_its_own_lists(shop: Worker) -> None:
    users: Any = shop.scorer._store
    users.away = True
    first = shop.ask(size=10, list=50)
    assert shop.ask(size=10, cursor=first["cursor"])["offset"] == 10
    other = another(shop).ask(size=10, cursor=first["cursor"])
    assert other["offset"] == 0
    assert any("no longer kept" in note for note in other["notes"])


def test_a_damaged_list_is_made_again_and_counted(shop: Worker) -> None:
    first = shop.ask(size=10, list=50)
    users: Any = shop.scorer._store
    (key,) = users.ranked
    other = another(shop)
    for raw in (b"", b"\xc1", b"\x93\x01\x02\x03", users.ranked[key][:-7], window_fields(np.ones(1, np.uint64))[0]):
        users.ranked[key] = raw
        before = other.meters.errors["ranked"]
        assert other.ask(size=10, cursor=first["cursor"])["offset"] == 0
        assert other.meters.errors["ranked"] == before + 1


def test_memory_is_bounded_and_older_lists_are_read_from_the_store(
    shop: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.ask(size=10, list=50)
    one = shop.scorer.ranked.bytes
    monkeypatch.setattr(ranked, "MEMORY_BYTES", 5 * one)
    for _ in range(20):
        shop.ask(size=10, list=50)
    assert len(shop.scorer.ranked) <= 5
    assert shop.scorer.ranked.bytes <= 5 * one
    assert shop.ask(size=10, cursor=first["cursor"])["offset"] == 10


def test_what_is_shown_of_a_part_becomes_samples_with_the_slots_of_the_list(shop: Worker) -> None:
    """From the cursor to the label join: the second part, of which the client drops items and turns two around."""
    first = shop.ask(size=10, list=50, request_id="r", ts_ms=NOW_MS - 1000)
    second = shop.ask(size=10, cursor=first["cursor"], ts_ms=NOW_MS - 1000)
    partition = Partition(0, SCHEMA, POLICY)
    shown = ids(second)
    request = second["request_id"]
    seen = Exposure("e", request, NOW_MS - 500, "ann", [shown[7], shown[2]], slots=[7, 2])
    clicked = Click("c", request, NOW_MS - 400, "ann", shown[2], 2)
    raws = [("page_logs", page_log_bytes(i)) for i in shop.sent]
    raws += [("events", to_json(seen)), ("events", to_json(clicked))]
    messages = [InputMessage(topic, n, raw) for n, (topic, raw) in enumerate(raws)]
    out = partition.take(messages, NOW_MS)
    late = partition.advance(NOW_MS + POLICY.life_ms + POLICY.disorder_ms)
    assert not out.dead
    assert not late.dead
    assert out.counts["exposures"] == 2
    known = BUILDER.cat({"position": BUILDER.position(np.arange(60))}, 60)[:, POSITION].tolist()
    found = {}
    for samples in (out.samples, late.samples):
        assert samples is not None
        for (of, position), label, cat in zip(samples.ids(), samples.label, samples.cat, strict=True):
            found[of, position] = label, known.index(cat[POSITION])
    assert found == {(request, 2): (1, 11), (request, 7): (0, 10)}
