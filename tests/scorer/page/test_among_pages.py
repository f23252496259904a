"""Numbers among candidates on served pages: one column means the same on a model's page, a random page, a later part of
a list, a page refilled under caps, and what is sent to be scored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.contracts.events import Click, Exposure, PageLog, to_json
from millrace.contracts.page_logs import decode_page_log, page_log_bytes
from millrace.windows.features import FeatureBuilder
from scorer.page import pagemaker
from scorer.page.pagemaker import keeps_set
from scorer.page.ranked import RankedList
from stream.partition.partition import InputMessage, Partition
from tests.scenes.filter_world import SCHEMA, Shop
from tests.scenes.scorer_shop import ITEMS, NOW_MS, OneWorker, arrays, item, stock
from tests.scenes.scorer_shop import SCHEMA as CORNER
from tests.scenes.stream_world import POLICY

N = 60
LAYOUT = SCHEMA.layout
PRICE, RANK = LAYOUT.num_names.index("price"), LAYOUT.num_names.index("price.rank")
GOODS = [item(i, f"c{i % 3}", attributes={"price": float(i * i + 1)}) for i in range(N)]
AMONG_ALL = np.arange(N, dtype=np.float64) / (N - 1)
"""Prices ascend with the item's number, so this is each item's rank among all."""


@pytest.fixture(autouse=True)
def every_set_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemaker, "keeps_set", lambda request_id: True)


def ranks(page_log: PageLog) -> NDArray[np.float32]:
    return np.frombuffer(page_log.num, "<f4").reshape(len(page_log.items), LAYOUT.N)[:, RANK]


def expected(page_log: PageLog) -> NDArray[np.float32]:
    return AMONG_ALL[[int(i) for i in page_log.items]].astype(np.float32)


def prices_of_the_set(page_log: PageLog) -> list[float]:
    place = [one.number for one in SCHEMA.among].index("price")
    kept: list[float] = np.frombuffer(page_log.among, "<f4").reshape(len(SCHEMA.among), -1)[place].tolist()
    return kept


def measured(page_log: PageLog) -> NDArray[np.float32]:
    """The numbers of the page, measured again against the set in its log."""
    num = np.frombuffer(page_log.num, "<f4").reshape(len(page_log.items), LAYOUT.N)
    return FeatureBuilder(SCHEMA).measured(num, np.frombuffer(page_log.among, "<f4").reshape(len(SCHEMA.among), -1))


@pytest.mark.parametrize("control_share", [0, 1])
def test_a_page_is_measured_against_all_that_recall_found(control_share: float) -> None:
    shop = Shop(GOODS, control_share=control_share)
    shop.ask(size=10)
    (page_log,) = shop.sent
    assert page_log.arm == ("control" if control_share else "model")
    assert len(page_log.items) == 10
    assert ranks(page_log).tolist() == expected(page_log).tolist()
    assert prices_of_the_set(page_log) == [i * i + 1.0 for i in range(N)]


def test_random_pages_and_pinned_items_are_measured_against_the_recall_of_the_models_page() -> None:
    logs = []
    for control_share, pins in ((0, {}), (1, {}), (0, {f"{5 * i}": i for i in range(10)})):
        shop = Shop(GOODS, control_share=control_share, candidates=20)
        shop.ask(size=15, request_id="the same", rerank={"pins": pins})
        logs += shop.sent
    model, control, pinned = logs
    assert (model.arm, control.arm) == ("model", "control")
    assert model.among == control.among == pinned.among != b""
    assert len(prices_of_the_set(control)) == 20
    for log in (control, pinned):
        assert {float(int(i) ** 2 + 1) for i in log.items} - set(prices_of_the_set(log)), "some were not recalled"
    for page_log in logs:
        assert measured(page_log).tobytes() == page_log.num


def test_later_parts_of_a_list_are_measured_against_the_set_of_the_first() -> None:
    shop = Shop(GOODS)
    answer = shop.ask(size=10, list=30)
    while answer["cursor"]:
        answer = shop.ask(size=10, cursor=answer["cursor"])
    assert [page_log.offset for page_log in shop.sent] == [0, 10, 20]
    for page_log in shop.sent:
        assert ranks(page_log).tolist() == expected(page_log).tolist()
        assert page_log.among == shop.sent[0].among


def test_a_part_of_a_list_of_an_older_version_is_a_set_of_its_own() -> None:
    shop = Shop(GOODS)
    cursor = shop.ask(size=10, list=30)["cursor"]
    lists = shop.scorer.ranked
    name = next(iter(lists._here))
    kept = asyncio.run(lists.get(name))
    assert isinstance(kept, RankedList)
    lists._drop(name)
    asyncio.run(lists.put(name, replace(kept, among=b"")))
    shop.ask(size=10, cursor=cursor)
    assert sorted(ranks(shop.sent[1]).tolist()) == (np.arange(10) / 9).astype(np.float32).tolist()


def test_a_page_that_is_refilled_under_caps_keeps_the_set_of_its_recall() -> None:
    goods = [item(i, f"c{max(0, i - 40)}", attributes={"price": float(i * i + 1)}) for i in range(N)]
    shop = Shop(goods, candidates=12)
    answer = shop.ask(size=12, caps={"category": 1})
    (page_log,) = shop.sent
    kept = prices_of_the_set(page_log)
    assert len(kept) == 12
    assert {i["item_id"] for i in answer["items"]} == set(page_log.items)
    assert any(float(int(i) ** 2 + 1) not in kept for i in page_log.items), "the page was refilled"
    assert measured(page_log).tobytes() == page_log.num


def test_items_that_are_sent_to_be_scored_are_a_set() -> None:
    shop = Shop(GOODS)
    shop.ask(path="/score", items=[30, 3, 12], log=True, request_id="sent")
    (page_log,) = shop.sent
    assert ranks(page_log).tolist() == [1, 0, 0.5]
    shop.ask(path="/score", items=[7], log=True, request_id="one")
    assert ranks(shop.sent[1]).tolist() == [0.5]


def test_the_order_of_candidates_changes_no_number_and_no_score() -> None:
    shop = Shop(GOODS)
    order = np.random.default_rng(3).permutation(N)
    first, second = (
        shop.ask(path="/score", items=list(range(N)), log=True),
        shop.ask(path="/score", items=order.tolist(), log=True),
    )
    assert np.array(first["scores"])[order].tolist() == second["scores"]
    num = [np.frombuffer(page_log.num, "<f4").reshape(N, LAYOUT.N) for page_log in shop.sent]
    assert num[0][order].tobytes() == num[1].tobytes()
    assert shop.sent[0].among == shop.sent[1].among


def test_the_set_travels_with_the_page_log() -> None:
    shop = Shop(GOODS)
    shop.ask(size=5)
    (page_log,) = shop.sent
    assert decode_page_log(page_log_bytes(page_log)) == page_log
    assert page_log.ts_ms == NOW_MS


def test_one_page_in_a_hundred_keeps_its_set() -> None:
    kept = sum(keeps_set(f"page {i}") for i in range(20_000))
    assert 140 < kept < 260


def test_numbers_among_candidates_are_served_logged_and_learnt(tmp_path: Path) -> None:
    """A loop in small: a page of a trained model, its log, the label join, a step of learning, the next page."""
    worker = OneWorker(tmp_path)
    stock(worker.scorer, ITEMS)
    scores = []
    for _ in range(2):
        model = worker.follow()
        worker.ask(size=10, ts_ms=NOW_MS - 1000)
        page_log, first = worker.sent[-1], CORNER.layout.among_start
        features, logged = arrays(page_log)
        ids = features.cat.copy()
        ids[:, CORNER.layout.bias_columns] = 0
        np.testing.assert_allclose(model.score(ids, features.num), logged, rtol=1e-5)
        assert (features.num[:, first:] != 0).any(axis=0).all()
        assert not np.allclose(model.score(ids, np.where(np.arange(CORNER.layout.N) < first, features.num, 0)), logged)
        scores.append(logged)

        partition = Partition(0, CORNER, POLICY)
        items, name = page_log.items, page_log.request_id
        events = [Exposure("e", name, NOW_MS - 500, "ann", items), Click("c", name, NOW_MS - 400, "ann", items[3], 3)]
        raws = [("page_logs", page_log_bytes(page_log)), *(("events", to_json(event)) for event in events)]
        out = partition.take([InputMessage(topic, n, raw) for n, (topic, raw) in enumerate(raws)], NOW_MS)
        late = partition.advance(NOW_MS + POLICY.life_ms + POLICY.disorder_ms)
        samples = [found.samples for found in (out, late) if found.samples is not None and len(found.samples)]
        learnt = np.concatenate([batch.num[np.argsort(batch.position)] for batch in samples])
        assert {row.tobytes() for row in learnt} == {row.tobytes() for row in features.num}
        for batch in samples:
            assert worker.learner.model.learn(batch).rows == len(batch)
        worker.learner.delta()
        worker.learner.snapshot()
    assert not np.array_equal(*scores)
