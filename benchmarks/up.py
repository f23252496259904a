# shell
"""A shop of one's own, from an empty folder, at real speed: does the page follow its visitors' taste?

::

    millrace up --schema (12 lines)  ──► 5,000 items, 1,000 users by the client ──► visitors click for five minutes
        every 30 s: pages of 50 visitors, judged by their taste                       (benchmarks/parts/tasteshop.py)
    before: a small shop, 2,000 items and 500 users ──► nobody comes ──► two pages a second, five minutes

- ``idle_cpu``, ``small_shop_cpu``: what all processes of the small shop take; ``small_shop_memory`` at its end (PSS).
- ``false_refusals``: what the gate refused of the small shop, whose heavy reader is deleted at half time.
- ``first``, ``auc``: how far pages follow the taste at the end. What a kill costs: ``make crash``.
- ``follows_s``: seconds of visitors until the first items of a page had twice the catalogue's share of liked ones.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.parts.tasteshop import FIRST, HEAVY, SCHEMA, Followed, Taste, Visitors, followed, opened, user
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.taken import processes
from experiments.runs import BenchError
from millrace.commands.loop.monitor import RoleMetrics, fetch
from millrace.commands.up.started import Started
from millrace.processes.role import ROLES

if TYPE_CHECKING:
    from millrace_client import AsyncMillrace

PAGES_PER_S, SMALL_PAGES_PER_S = 10.0, 2.0
PAGE_SIZE = 600
SEED = 7


class Size(NamedTuple):
    """How much is measured."""

    seconds: float = 300.0
    items: int = 5000
    visitors: int = 1000
    probed: int = 50  # visitors
    probe_seconds: float = 30.0
    small: tuple[int, int] = (2000, 500)  # items and visitors
    small_seconds: float = 300.0
    rest_seconds: float = 120.0  # of each look at the small shop


SHORT = Size(8.0, 700, 50, 5, 4.0, (200, 20), 8.0, 2.0)


class Probe(NamedTuple):
    """Pages judged at one moment."""

    second: float  # of visitors
    page: Followed
    catalogue: Followed  # the same items, and the catalogue's first ones, in the catalogue's order


def run(out: Path, say: Say, size: Size) -> list[Figure]:
    """The figures of one run. Raises BenchError where the client, a distribution of its own, is not installed, or no
    page of the model came in time."""
    with TemporaryDirectory(prefix="millrace-bench-up-") as folder:
        with begun(Path(folder) / "small") as small:
            at_rest = asyncio.run(small_shop(small, size, SEED, say))[0]
        with begun(Path(folder) / "data") as loop:
            probes, clicks = asyncio.run(_visited(loop, Taste(size.items, size.visitors, SEED), size, say))
    last = probes[-1]
    follows = [p.second for p in probes if p.page.first >= 2 * p.catalogue.first][:1]  # it may never have
    return [
        *at_rest,
        figure("first", last.page.first, "share", "catalogue", last.page.first / last.catalogue.first),
        figure("auc", last.page.auc, "AUC", "catalogue", last.page.auc / last.catalogue.auc),
        *(figure("follows_s", second, "s") for second in follows),
        figure("clicks", clicks, "clicks"),
    ]


def begun(data: Path) -> Started:
    """A loop that is still to be started. Raises BenchError where the client is not installed."""
    if importlib.util.find_spec("millrace_client") is None:
        raise BenchError("the package 'millrace-client' is not installed", "pip install ./client")
    data.mkdir(parents=True, exist_ok=True)
    (data / "shop.toml").write_text(SCHEMA, encoding="utf-8")
    return Started(data, "--schema", str(data / "shop.toml"))


async def small_shop(loop: Started, size: Size, seed: int, say: Say) -> tuple[list[Figure], int]:
    """What its gate refuses, and its processes take: shares of a core at rest and with visitors, memory in the end.
    And how many exposures were sent."""
    from millrace_client import AsyncMillrace

    taste, where = Taste(*size.small, seed), await asyncio.to_thread(loop.where)

    async def shares() -> dict[str, float]:
        await asyncio.sleep(size.rest_seconds / 12)
        first, began = processes(where["pid"], ROLES, "up").cpu_s, time.monotonic()
        await asyncio.sleep(size.rest_seconds)
        last, took = processes(where["pid"], ROLES, "up").cpu_s, time.monotonic() - began
        return {name: 100 * (used - first.get(name, 0.0)) / took for name, used in last.items()}

    async with AsyncMillrace(where["intake"], where["scorer"]) as shop:
        await opened(shop, taste)
        found = {"idle_cpu": await shares()}
        ending, learner, began, deleted = asyncio.Event(), RoleMetrics(), time.monotonic(), False
        visitors = Visitors(shop, taste, SMALL_PAGES_PER_S, seed)
        visiting = asyncio.create_task(visitors.come(ending))
        found["small_shop_cpu"] = await shares()
        left = size.small_seconds
        while left > 0 and not visiting.done():
            await asyncio.wait({visiting}, timeout=min(60.0, left))
            left = max(0.0, began + size.small_seconds - time.monotonic())
            if not deleted and left < size.small_seconds / 2:
                await shop.delete_user(user(HEAVY))
                deleted = True
            with suppress(OSError):  # a busy moment, or a restart: the next look has it
                learner.update(await asyncio.to_thread(fetch, where["metrics"]["learn"], 5.0))
            refused = learner.total("millrace_gate_verdicts_total", verdict="refused")
            say(f"{visitors.pages} pages, {visitors.clicks} clicks, {refused:.0f} refusals; {left:.0f} s to come")
        found["small_shop_memory"] = {n: b / 2**20 for n, b in processes(where["pid"], ROLES, "up").memory.items()}
        ending.set()
        await visiting
    figures = [figure("false_refusals", refused, "")]
    for what, of in found.items():
        unit = "MiB PSS" if what == "small_shop_memory" else "% of a core"
        figures += [figure(what, sum(of.values()), unit), *(figure(f"{what} {n}", v, unit) for n, v in of.items())]
    return figures, visitors.exposures


async def _visited(loop: Started, taste: Taste, size: Size, say: Say) -> tuple[list[Probe], int]:
    from millrace_client import AsyncMillrace

    where = await asyncio.to_thread(loop.where)
    async with AsyncMillrace(where["intake"], where["scorer"]) as shop:
        await opened(shop, taste)
        say(f"{size.items:,} items and {size.visitors:,} users are there; visitors come for {size.seconds:g} s")
        began, probes, ending = time.monotonic(), list[Probe](), asyncio.Event()
        visitors, left = Visitors(shop, taste, PAGES_PER_S, SEED), size.seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(visitors.come(ending))
            while not probes or left > 0:
                await asyncio.sleep(min(size.probe_seconds, left) if probes else 0)
                second = time.monotonic() - began
                probes.append(await _probe(shop, taste, size.probed, second))
                page, order = probes[-1][1:]
                say(f"{second:4.0f} s: liked first {page.first:.2f} (catalogue {order.first:.2f}), AUC {page.auc:.3f}")
                left = size.seconds - (time.monotonic() - began)
            ending.set()
        if visitors.unanswered:
            raise BenchError(f"{visitors.unanswered} pages did not come", "see the scorer's log")
        return probes, visitors.clicks


async def _probe(shop: AsyncMillrace, taste: Taste, probed: int, second: float) -> Probe:
    """Judges pages of the model. Nobody sees them, so nothing is learnt from them."""
    pages = []
    for visitor in range(50 * probed):
        page = await shop.recommend(user(visitor), PAGE_SIZE)
        if page.arm == "model":  # one visitor in ten always has random pages
            pages.append((visitor, [str(item.item_id) for item in page.items]))
        if len(pages) == probed:
            break
    else:
        raise BenchError(f"{len(pages)} pages of {50 * probed} visitors were of the model", "see the scorer's log")
    in_order = [(v, [taste.ids[n] for n in sorted(taste.places(items).tolist())]) for v, items in pages]
    front = followed(taste, [(v, taste.ids[:FIRST]) for v, _ in pages]).first
    return Probe(second, followed(taste, pages), followed(taste, in_order)._replace(first=front))
