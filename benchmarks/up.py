# shell
"""A shop of one's own, from an empty folder, at real speed: does the page follow its visitors' taste?

::

    millrace up --schema (12 lines)  ──► 5,000 items, 1,000 users by the client ──► visitors click for five minutes
        every 30 s: pages of 50 visitors, judged by their taste                       (experiments/tasteshop.py)
    SIGKILL of all ──► millrace up again ──► the same pages judged once more, before anybody clicks

- ``first`` and ``auc``: how far pages follow the taste at the end of the five minutes; against the catalogue's order.
- ``again_first`` and ``again_auc``: after the kill; against what they were before it.
- ``follows_s``: seconds of visitors until the first items of a page had twice the catalogue's share of liked ones.
- ``restart_s``: from the start to the first page of the model, after the kill.

Needs the package ``millrace-client`` (the folder ``client``).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.tools.bench_figures import Figure, figure
from commands.up.started import Started
from experiments.runs import BenchError
from experiments.tasteshop import FIRST, SCHEMA, Followed, Taste, catalogue, followed
from experiments.tastevisits import Crowd, Looked, Visitors, check_client, opened, ready, user

if TYPE_CHECKING:
    from millrace_client import AsyncMillrace, Page

ITEMS, VISITORS = 5000, 1000
SECONDS = 300.0
PAGES_PER_S = 10.0
PROBE_SECONDS, PROBED = 30.0, 50
PAGE_SIZE = 600
SEED = 7

Say = Callable[[str], None]


class Probe(NamedTuple):
    """Pages judged at one moment."""

    second: float  # of visitors
    page: Followed
    catalogue: Followed  # the same items, and the catalogue's first ones, in the catalogue's order


def run(out_dir: Path, progress: Say = print, seconds: float = SECONDS, seed: int = SEED) -> list[Figure]:
    """The figures of one run.

    Raises:
        BenchError: the client is not installed, or no page of the model came in time.
    """
    check_client()
    taste = Taste(catalogue(ITEMS, seed), VISITORS, seed)
    with TemporaryDirectory(prefix="millrace-bench-up-") as folder:
        schema = Path(folder) / "schema.toml"
        schema.write_text(SCHEMA, encoding="utf-8")
        loop = Started(Path(folder) / "data", "--schema", str(schema))
        with loop:
            probes, clicks = asyncio.run(_first_life(loop, taste, seconds, seed, progress))
            progress("SIGKILL of everything")
            loop.kill()
            began = time.monotonic()
            loop.start()
            again, restart_s = asyncio.run(_second_life(loop, taste, began))
            progress(_said("after the restart", again))
    last = probes[-1]
    follows = next((p.second for p in probes if p.page.first >= 2 * p.catalogue.first), math.nan)
    return [
        figure("first", last.page.first, "share", "catalogue", last.page.first / last.catalogue.first),
        figure("auc", last.page.auc, "AUC", "catalogue", last.page.auc / last.catalogue.auc),
        figure("catalogue_first", last.catalogue.first, "share"),
        figure("catalogue_auc", last.catalogue.auc, "AUC"),
        figure("again_first", again.page.first, "share", "first", again.page.first / last.page.first),
        figure("again_auc", again.page.auc, "AUC", "auc", again.page.auc / last.page.auc),
        figure("follows_s", follows, "s"),
        figure("restart_s", restart_s, "s"),
        figure("clicks", clicks, "clicks"),
    ]


async def _first_life(loop: Started, taste: Taste, seconds: float, seed: int, progress: Say) -> tuple[list[Probe], int]:
    from millrace_client import AsyncMillrace

    where = await asyncio.to_thread(loop.where)
    clicks = 0

    def seen(page: Looked) -> None:
        nonlocal clicks
        clicks += int(page.clicked.sum())

    async with AsyncMillrace(where["intake"], where["scorer"]) as shop:
        await opened(shop, taste, VISITORS)
        progress(f"{ITEMS:,} items and {VISITORS:,} users are there; visitors come for {seconds:g} s")
        began, probes, ending = time.monotonic(), [], asyncio.Event()
        visitors = Visitors(shop, taste, Crowd(VISITORS, PAGES_PER_S), seed, seen)
        visiting = asyncio.create_task(visitors.come(ending))
        try:
            while True:
                second = time.monotonic() - began
                probes.append(await _probe(shop, taste, second))
                progress(_said(f"{second:4.0f} s", probes[-1]))
                left = seconds - (time.monotonic() - began)
                if left <= 0:
                    break
                done, _ = await asyncio.wait({visiting}, timeout=min(PROBE_SECONDS, left))
                if done:
                    raise BenchError("the visitors ended early", "see the error above") from visiting.exception()
        finally:
            ending.set()
        await visiting
        if visitors.unanswered:
            raise BenchError(f"{visitors.unanswered} pages did not come", "see the scorer's log")
        return probes, clicks


async def _second_life(loop: Started, taste: Taste, began: float) -> tuple[Probe, float]:
    from millrace_client import AsyncMillrace

    where = await asyncio.to_thread(loop.where)
    async with AsyncMillrace(where["intake"], where["scorer"]) as shop:
        await ready(shop)
        restart_s = time.monotonic() - began
        return await _probe(shop, taste, math.nan), restart_s


async def _probe(shop: AsyncMillrace, taste: Taste, second: float) -> Probe:
    """Judges pages of the model. Nobody sees them, so nothing is learnt from them."""
    pages = []
    for visitor in range(PROBED):
        page = await _model_page(shop, user(visitor))
        pages.append((visitor, [str(item.item_id) for item in page.items]))
    known = [(v, [taste.goods.ids[n] for n in sorted(taste.places(items).tolist())]) for v, items in pages]
    front = followed(taste, [(v, taste.goods.ids[:FIRST]) for v, _ in pages]).first
    return Probe(second, followed(taste, pages), followed(taste, known)._replace(first=front))


async def _model_page(shop: AsyncMillrace, user: str) -> Page:
    """A page that is no random one, of which there is one in ten."""
    for _ in range(50):
        page = await shop.recommend(user, PAGE_SIZE)
        if page.arm == "model":
            return page
    raise BenchError(f"50 pages of {user} in turn were not of the model", "see the scorer's log")


def _said(when: str, probe: Probe) -> str:
    page, order = probe.page, probe.catalogue
    return f"{when}: liked among the first {FIRST} {page.first:.2f} (catalogue {order.first:.2f}), AUC {page.auc:.3f}"
