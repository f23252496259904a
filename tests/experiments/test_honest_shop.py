"""The shop in which nothing is wrong: who visits it, what is made of its minutes, and a short life of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.shop import Plan, experiment_shop, make_report
from experiments.tasteshop import FIRST, Taste, catalogue
from experiments.tastevisits import HEAVY, Crowd, Looked, Visitors, user
from millrace.basics.errors import SettingError
from tests.scenes.waiting import LONG

client = pytest.importorskip("millrace_client", reason="millrace-client, a distribution of its own, is not installed")

ROW: dict[str, Any] = {
    "minute": 0,
    "deleted": False,
    "pages": 180,
    "guests": 5,
    "unanswered": 0,
    "impressions": 3600,
    "clicks": 360,
    "click_rate": 0.1,
    "control_click_rate": None,
    "auc": 0.6,
    "page_auc": None,
    "oracle_auc": 0.8,
    "versions": 40,
    "requests": 200,
    "without_user": 1,
    "unknown": 6,
    "trained": 3500,
    "quarantined": 0,
    "ways_back": 0,
    "passed": {"screen": 40},
    "refused": {},
    "unjudged": {},
    "observed": {},
}


class Shop:
    """A client that writes down who asked for a page, and never answers every tenth time."""

    def __init__(self, items: list[str]) -> None:
        self.items, self.asked, self.clicks = items, list[str](), 0

    async def recommend(self, who: str, size: int) -> Any:
        self.asked.append(who)
        if len(self.asked) % 10 == 0:
            raise client.Unavailable("no answer", "none")
        items = tuple(client.messages.PlacedItem(item, n, 0.5) for n, item in enumerate(self.items[:size]))
        return client.Page("r", who, items, 1, "model")

    async def exposure(self, page: Any) -> None: ...

    async def click(self, page: Any, item: Any) -> None:
        self.clicks += 1

    async def flush(self) -> None: ...


def test_guests_and_the_heavy_reader_come_as_often_as_asked_for() -> None:
    goods = catalogue(100, 1)
    shop, ending, looked = Shop(goods.ids), asyncio.Event(), list[Looked]()

    def seen(page: Looked) -> None:
        looked.append(page)
        if len(looked) == 3000:
            ending.set()

    crowd = Crowd(20, 1e6, guests=0.1, heavy=0.2)
    visitors = Visitors(shop, Taste(goods, 20, 1), crowd, 1, seen)  # type: ignore[arg-type]
    asyncio.run(visitors.come(ending))
    who = Counter("guest" if name.startswith("guest-") else name for name in shop.asked)
    known = {user(v) for v in range(20)}
    assert set(who) == known | {"guest"}
    assert who["guest"] / len(shop.asked) == pytest.approx(0.1, abs=0.03)
    assert who[user(HEAVY)] / len(shop.asked) == pytest.approx(0.2 + 0.7 / 20, abs=0.03)
    assert sum(page.guest for page in looked) == pytest.approx(who["guest"] * 0.9, rel=0.2)
    assert visitors.unanswered == len(shop.asked) // 10
    assert shop.clicks == sum(int(page.clicked.sum()) for page in looked) > 0
    assert {len(page.chance) for page in looked} == {FIRST}


def test_the_report_counts_refusals_and_minutes_in_which_nothing_was_published() -> None:
    rows = [ROW | {"minute": m, "click_rate": 0.1 + m / 100} for m in range(6)]
    rows[0] = rows[0] | {"versions": 0}  # before the first version there is nothing to publish
    rows[3] = rows[3] | {"versions": 0, "refused": {"share": 2, "shift": 1}, "quarantined": 512, "unanswered": 1}
    rows[4] = rows[4] | {"unanswered": 1}
    rows[5] = rows[5] | {"unanswered": 1, "refused": {"share": 1}}
    report = make_report(rows)
    assert (report["refused"], report["quarantined"]) == (4, 512)
    assert (report["minutes"], report["minutes_without_version"]) == (6, 1)
    assert report["without_user_share"] == 6 / 1200
    assert "3.00% for people who are unknown" in report["verdict"]
    assert report["unanswered"] == 1
    assert {check["check"]: check["refused"] for check in report["checks"]} == {"screen": 0, "share": 3, "shift": 1}
    assert [third["click_rate"] for third in report["thirds"]] == [0.105, 0.125, 0.145]
    assert [third["control_click_rate"] for third in report["thirds"]] == [None] * 3
    assert "refused 4 candidates (share 3, shift 1)" in report["verdict"]
    assert "stopped before" in make_report([])["verdict"]


def test_a_plan_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="above 0"):
        experiment_shop(tmp_path / "out", Plan(hours=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_a_short_life_of_it_leaves_each_minute_as_it_is_measured(tmp_path: Path) -> None:
    plan = Plan(hours=9 / 3600, items=100, users=20, pages_per_s=10.0, row_s=3.0)
    seen: list[int] = []

    def say(line: str) -> None:
        seen.append(len((tmp_path / "runs.jsonl").read_text().splitlines()))

    report = experiment_shop(tmp_path, plan, say=say)
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [row["minute"] for row in rows] == [0, 1, 2]
    assert [row["deleted"] for row in rows] == [False, True, False]
    assert seen == [0, 1, 1, 2, 3], "opened, a row, deleted, a row, a row"
    assert report["rows"] == rows
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == report["verdict"]
    assert (tmp_path / "shop.png").stat().st_size > 0
    assert "gate refused" in (tmp_path / "report.html").read_text()
