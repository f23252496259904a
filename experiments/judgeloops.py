# shell
"""Closed loops of ``millrace dev experiment judge``: what exploration costs and gives, and which learner is better.

- ``twins``: a world lives a week once for each twin, with the same visits and luck. A twin draws a share of its pages
  by chance until the last two days. Its price is what its pages have fewer clicks than the same pages as ranked; its
  gain is what it has more than the twin that never explored on the last two days, when nobody explores. Clicks are
  those that the world expects.
- ``values``: pages of a world with orders, ranked by clicks in one twin, by what an order brings (weight of the order
  x margin), or a click and an order, in others. Margins are a power of the price: with the power 0 all are equal. Each
  twin goes on from one history with settled labels. An order counts within four days of the click, not within 30, so
  that two weeks of history have some; within less a business buyer's weekend has none. Revenue is what the world
  expects of the pages shown, returns taken off. A click is worth what clicks of the history brought.
- ``learners``: half of the users, by a hash of the id, get pages of a rival. Each learner learns from its own pages
  alone. Their users are judged each hour as ``millrace judge`` does, by clicks a page within a day of a user's first.
  The arm is named at the first look whose band excludes 0. ``stopped`` learns nothing after its first day: the twin of
  this name, who has all pages, says by how much that is worse. ``equal`` differs by the seed of its model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import structs

from experiments.recall.recallloop import FIRST_DAY, WIDTH, ClosedLoop, Pupil, learn_days, start_shop
from experiments.runs import Row
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.commands.judge.arms import Exposures, estimate, users_of
from millrace.commands.offline.intervals import interval, rounded
from millrace.contracts.events import MODEL, Item
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import Rerank
from millrace.evidence.sequences import difference
from millrace.evidence.user_arms import Arm
from scorer.page.page_arms import PageArms
from simulator.catalogue import Catalogue, Inventory
from simulator.daylog import day_table
from simulator.params import WORLDS
from simulator.world import World, start_of

SHARES = "0", "0.01", "0.05", "0.1"  # as of the setting `explore`; the first is what others are compared with
DAYS, EXPLORING, JUDGED = 7, 5, 4  # of a twin, of them with exploration, of two learners
STOPPED, EQUAL, RIVAL = "stopped", "equal", "rival"
STEP_MS = 1_800_000
HISTORY, SOLD = 14, 2  # days before twins that rank by value, and of them
CLICKS, ORDERS, BOTH = "clicks", "orders", "clicks and orders"
MARGINS: Mapping[float, str] = {0.0: "", 0.5: 'value = "root_price"', 1.0: 'value = "price"'}
"""By the power of the price: where an order's margin stands. Fixed before anything was run."""
_ROOT = '[[fields]]\nname = "root_price"\nof = "item"\nkind = "numeric"\ntransform = "log"\n'
_ORDER = '[[outcome]]\nname = "order"\non = "click"\nevent = "purchase"\nwithin = "4d"\n'


class Stopped(Pupil):
    """A learner that is known to be worse."""

    def learn(self, batch: SampleBatch) -> None:
        pass


def begun(seed: int, users: int, settings: Settings, learners: Mapping[str, tuple[bool, int]]) -> ClosedLoop:
    """A loop after a day of the previous recommender. ``learners``: by arm, whether it stops there, and its seed."""
    world, schema = World(seed, users), shop_schema()
    table, pupils = day_table(world, FIRST_DAY), dict[str, Pupil]()
    for arm, (stops, own) in learners.items():
        model = OnlineModel(schema, {"retrieval_width": WIDTH}, own)
        pupils[arm] = (Stopped if stops else Pupil)(learn_days(model, [table]), BATCH_ROWS)
    return ClosedLoop(start_shop(world, settings, FIRST_DAY + 1, [table]), pupils, STEP_MS)


def twins(seed: int, users: int, candidates: int, twin: str, days: int = DAYS) -> list[Row]:
    """A row for each day of a twin: a share of pages that are drawn, or ``stopped``."""
    settings = Settings(control_share=0, candidates=candidates, explore="0" if twin == STOPPED else twin)
    out = list[Row]()
    with threads(1):
        loop = begun(seed, users, settings, {MODEL: (twin == STOPPED, seed)})
        for day in range(1, days + 1):
            if day > EXPLORING:
                loop.shop.arms = PageArms(structs.replace(settings, explore="0"), loop.shop.ranker)
            shown = loop.play(FIRST_DAY + day)
            pages = int(shown["page"].max()) + 1
            clicks, as_ranked = (float(shown[name].sum()) / pages for name in ("chance", "as_ranked"))
            row: Row = {"of": "twins", "seed": seed, "twin": twin, "day": day, "pages": pages}
            out.append(row | {"clicks": clicks, "price": as_ranked - clicks})
    return out


class RootCatalogue(Catalogue):
    """Goods that tell the root of their price, too."""

    def item(self, inventory: Inventory, row: int, gone: bool = False) -> Item:
        made = super().item(inventory, row, gone)
        return structs.replace(made, attributes=made.attributes | {"root_price": float(inventory.price[row]) ** 0.5})


def values(seed: int, users: int, candidates: int, history: int = HISTORY, days: int = SOLD) -> list[Row]:
    """A row for each twin of a world: clicks a page, and revenue a page by margins of each power."""
    world, out, first = World(seed, users, WORLDS[ORDERS]), list[Row](), FIRST_DAY + history
    world.catalogue = RootCatalogue(seed, world.params)
    log = [day_table(world, FIRST_DAY + day) for day in range(history)]
    log = [table.append_column("root_price", pa.array(table["price"].to_numpy() ** 0.5)) for table in log]
    shop = files("millrace.contracts").joinpath("shop.toml").read_text(encoding="utf-8")
    schemas = {power: parse_schema(f"{shop}\n{_ROOT}{_ORDER}{value}\n") for power, value in MARGINS.items()}
    spec, whole = {"retrieval_width": WIDTH}, pa.concat_tables(log)
    took_ms = whole["purchase_ms"].fill_null(0).to_numpy() - whole["click_ms"].fill_null(0).to_numpy()
    sold, clicked = whole["price"].to_numpy()[(took_ms > 0) & (took_ms < 4 * DAY_MS)], whole["click"].to_numpy().sum()
    ways: dict[tuple[str, float], dict[str, float]] = {(CLICKS, 0.0): {}}
    for power in MARGINS:
        ways[ORDERS, power] = {"order": 1.0}
        if power:
            ways[BOTH, power] = {"click": float((sold**power).sum() / clicked), "order": 1.0}
    with threads(1):
        learnt = learn_days(OnlineModel(schemas[0.0], spec, seed), log).snapshot()
        for (by, power), weights in ways.items():
            settings = Settings(control_share=0, candidates=candidates, rerank=Rerank(weights=weights or None))
            model = OnlineModel(schemas[power], spec, seed)
            model.resume(*learnt)
            pupil = Pupil(model, BATCH_ROWS)
            loop = ClosedLoop(start_shop(world, settings, first, log, schemas[power]), {MODEL: pupil}, STEP_MS)
            shown = [loop.play(first + day) for day in range(days)]
            pages = sum(int(day["page"].max()) + 1 for day in shown)
            chance, order, price = (np.concatenate([d[name] for d in shown]) for name in ("chance", "order", "price"))
            row: Row = {"of": "values", "seed": seed, "by": by, "power": power, "pages": pages}
            row |= {f"revenue {p:g}": float((chance * order * price**p).sum()) / pages for p in MARGINS}
            out.append(row | {"clicks": float(chance.sum()) / pages})
    return out


def value_report(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Of each margin and way of ranking: what it brings over ranking by clicks and over ranking by orders of equal
    margins, as shares of their revenue, and its price in clicks a page. Intervals are over worlds."""
    own = {(r["by"], r["power"], r["seed"]): r for r in rows if r["of"] == "values"}
    seeds, table, said = sorted({seed for *_, seed in own}), list[Row](), list[str]()
    for power in MARGINS if own else ():

        def of(by: str, at: float, name: str = f"revenue {power:g}") -> Any:
            return np.array([own[by, at, seed][name] for seed in seeds])

        for by in (ORDERS, BOTH)[: 1 + bool(power)]:
            gain, over = of(by, power) / of(CLICKS, 0.0) - 1, of(by, power) / of(ORDERS, 0.0) - 1
            row: Row = {"margin": f"price^{power:g}", "by": by, "worlds": len(seeds)}
            row |= interval("gain", gain.tolist()) | interval("over_equal", over.tolist())
            clicks = of(CLICKS, 0.0, "clicks")
            row |= interval("price", (clicks - of(by, power, "clicks")).tolist())
            table.append(row)
            said.append(
                f"margins of {row['margin']}, ranked by {by}: {row['gain']:+.1%} ± {row['gain_ci']:.1%} revenue a page "
                f"over ranking by clicks, {row['over_equal']:+.1%} ± {row['over_equal_ci']:.1%} over orders of equal "
                f"margins, for {row['price']:.3f} ± {row['price_ci']:.3f} of {clicks.mean():.3f} clicks a page"
            )
    return table, said


def learners(seed: int, users: int, candidates: int, rival: str, days: int = JUDGED) -> list[Row]:
    """One row: a test of two learners, the shop's and a rival."""
    settings = Settings(control_share=0, candidates=candidates, arms={RIVAL: Arm("model", 0.5)})
    with threads(1):
        both = {MODEL: (False, seed), RIVAL: (rival == STOPPED, seed + 1_000_000)}
        loop, shown = begun(seed, users, settings, both), list[Any]()
        for day in range(1, days + 1):
            shown.append(loop.play(FIRST_DAY + day))
            shown[-1]["page"] += int(shown[-2]["page"].max()) + 1 if day > 1 else 0
    found = {name: np.concatenate([one[name] for one in shown]) for name in shown[0]}
    came_ms, page = np.where(found["click_ms"] > 0, found["click_ms"], -1), found["page"]
    rows = Exposures(found["ts_ms"], found["user"], page, found["arm"], came_ms, np.ones(len(page)))
    told = users_of(rows, DAY_MS)
    row: Row = {"of": "learners", "seed": seed, "rival": rival, "named": "", "pages": None, "users": len(told.arm)}
    for at_ms in range(start_of(FIRST_DAY + 1), start_of(FIRST_DAY + 1 + days) + 1, HOUR_MS):
        k = int(np.searchsorted(told.until_ms, at_ms, side="right"))
        own, other = (estimate(told, k, name, by_page=True) for name in (MODEL, RIVAL))
        band = difference(own, other)
        row |= {"difference": own.value - other.value, "low": band.low, "high": band.high}
        if band.decided:
            pages = len(np.unique(page[found["ts_ms"] <= at_ms]))
            return [row | {"named": MODEL if band.low > 0 else RIVAL, "pages": pages}]
    return [row]


def loop_report(rows: Sequence[Row]) -> tuple[dict[str, Any], list[str]]:
    """What all loops give together, and in words. Of a twin: clicks a page by day, its price and gain over worlds; of a
    rival: how often which learner was named, and the median of pages that this took."""
    days = {(r["twin"], r["seed"], r["day"]): (r["clicks"], r["price"]) for r in rows if r["of"] == "twins"}
    seeds, last = sorted({seed for _, seed, _ in days}), max((day for *_, day in days), default=0)
    table, said = list[Row](), list[str]()
    for twin in dict.fromkeys(twin for twin, *_ in days):
        own, base = (
            np.array([[days[t, seed, d] for d in range(1, last + 1)] for seed in seeds]) for t in (twin, SHARES[0])
        )  # (worlds, days, 2)
        more = own[..., 0] - base[..., 0]
        row: Row = {"twin": twin, "worlds": len(seeds), "clicks_a_page": rounded(float(own[..., 0].mean()))}
        row |= interval("price", own[:, :EXPLORING, 1].mean(1).tolist())
        row |= interval("gain", more[:, EXPLORING:].mean(1).tolist())
        table.append(row | {f"day_{d + 1}": rounded(float(more[:, d].mean())) for d in range(last)})
        if twin != SHARES[0]:
            said.append(
                f"{twin}: a price of {row['price']:.3f} ± {row['price_ci']:.3f} clicks a page, of "
                f"{table[0]['clicks_a_page']:.3f}, on {EXPLORING} days; a gain of {row['gain']:.3f} ± "
                f"{row['gain_ci']:.3f} on the {last - EXPLORING} after them"
            )
    tests, own_rows = list[Row](), [r for r in rows if r["of"] == "learners"]
    for rival in dict.fromkeys(r["rival"] for r in own_rows):
        of = [r for r in own_rows if r["rival"] == rival]
        right, wrong = ([r["pages"] for r in of if r["named"] == arm] for arm in (MODEL, RIVAL))
        pages = median(right) if right else None
        tests.append({"rival": rival, "tests": len(of), "shop_named": len(right), "rival_named": len(wrong)})
        tests[-1]["median_pages"] = pages
        after = f", after {pages:,.0f} pages in the median" if pages else ""
        said.append(
            f"{rival} rival: of {len(of)} tests {len(right)} name the shop's learner{after}, {len(wrong)} the rival"
        )
    return {"twins": table, "learners": tests}, said
