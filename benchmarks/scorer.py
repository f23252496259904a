# shell
"""``millrace bench scorer``: how long a page takes, whatever arrives meanwhile.

::

    this process                             millrace serve            load generator (a process)
      catalogue, counts, users, snapshot ──►   ready                     Poisson, open loop
      deltas of 50,000 rows/s, counts ─────►   pages of 20 and 600 ◄──── latency from the intended time
      reads impressions after each run ◄────   the log of each page

The shop's schema, 100,000 items, 5,000,000 table rows, an embedded broker and Redis, or those that ``MILLRACE_KAFKA``
and ``MILLRACE_REDIS`` name (their topics must be new). Runs with and without deltas alternate. Every page that was
answered has to be in the topic ``impressions``; of every twentieth, version, items and scores are compared.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.latency import cost_ms, percentile
from benchmarks.modelwire import ModelWire
from benchmarks.pagewire import PageLog, ShopWire, fill_users
from benchmarks.runner import Figure, Say, figure
from benchmarks.serverun import FEW, MANY, Bench, Block, Counted, Size
from benchmarks.serveunder import RunningScorer
from benchmarks.trouble import broker_away, overload
from millrace.contracts.settings import load_settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port

DELTA_ROWS_A_SECOND = 50_000


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures, as in the module's text. What can be used again lies in ``out/work``: the snapshot's parts.

    Raises:
        ServiceError: the scorer, the broker or Redis did not start, or a scorer does not follow the model.
    """
    size = size or Size()
    figures: list[Figure] = []
    with _stage(out, size, say) as bench:
        with RunningScorer(bench.settings, out) as scorer:
            say("scorer ready")
            _warm(bench, scorer)
            blocks = bench.pages(scorer)
            figures += _page_figures(blocks)
            for resync, name in ((False, "snapshot"), (True, "resync")):
                within, outside, took = bench.change(scorer, resync)
                say(f"{name}: served after {', '.join(f'{s:.1f}' for s in took)} s")
                figures += _cost(f"{name}_cost_p99_ms", within, outside, "the same run outside of the loads")
                figures.append(figure(f"{name}_seconds", float(np.median(took)), "s"))
            capacity = bench.capacity(scorer)
            figures.append(figure("capacity_20", capacity, "pages/s"))
            figures += overload(bench, scorer, capacity)
            if size.away_s and bench.broker is not None:
                figures += broker_away(bench, scorer, bench.broker)
        if size.pairs:
            figures += _workers(bench, out)
        figures += _counted_figures(bench.counted, bench.log)
    if size.others:
        from benchmarks.forward import run_forward

        figures += run_forward(say)
    return figures


@contextlib.contextmanager
def _stage(out: Path, size: Size, say: Say) -> Iterator[Bench]:
    """Broker, Redis, shop and model, as a scorer finds them."""
    work = out.resolve() / "work"
    work.mkdir(parents=True, exist_ok=True)
    given = load_settings()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=work)))
        broker = None if given.kafka else stack.enter_context(EmbeddedBroker(folder / "broker", free_port()))
        at_redis = given.redis or stack.enter_context(EmbeddedRedis(folder / "redis")).address
        settings = msgspec.structs.replace(
            given,
            kafka=broker.address if broker else given.kafka,
            redis=at_redis,
            data=str(folder / "data"),
            store=str(work / "store"),
            port=free_port(),
            metrics_port=0,
            control_share=0.0,
        )
        create_topics(settings)
        producer = stack.enter_context(contextlib.closing(make_producer(settings)))
        say(f"writing {size.users:,} users, {size.items:,} items and their counts")
        fill_users(settings, size.users, size.items)
        shop = ShopWire(settings, producer, size.items)
        shop.publish()
        say(f"a snapshot of {size.rows:,} rows, and deltas of {DELTA_ROWS_A_SECOND:,} rows a second")
        log_id = topic_ids(settings)[MODEL_DELTAS]
        model = ModelWire(settings, producer, size.rows, size.items, DELTA_ROWS_A_SECOND, log_id)
        model.new_root()
        yield Bench(settings, size, shop, model, stack.enter_context(PageLog(settings)), say, broker)


def _warm(bench: Bench, scorer: RunningScorer) -> None:
    for size in (FEW, MANY):
        bench.run(scorer, size, seconds=bench.size.warm_s)


def _page_figures(blocks: list[Block]) -> list[Figure]:
    """Pages with deltas, what deltas cost, and the CPU of a page."""
    found = []
    for size, name in ((FEW, "page_20"), (MANY, "page_600")):
        parts = {on: [c for b in blocks if b.size == size and b.deltas == on for c in b.chunks] for on in (True, False)}
        ms = np.concatenate(parts[True])
        found += [figure(f"{name}_p{p}_ms", percentile(ms, p / 100), "ms") for p in (50, 99)]
        cost = "delta_cost_p99_ms" if size == FEW else "delta_cost_600_p99_ms"
        found += _cost(cost, parts[True], parts[False], "without deltas")
        of_size = [b for b in blocks if b.size == size and b.deltas]
        pages = sum(len(b.outcome.whole) for b in of_size)
        for part, used in (("", [sum(b.cpu_s.values()) for b in of_size]), ("_main", [b.main_cpu_s for b in of_size])):
            found.append(figure(f"{name}_cpu{part}_ms", 1000 * sum(used) / pages, "ms CPU / page"))
    return found


def _cost(name: str, with_it: list[Any], without: list[Any], against: str) -> list[Figure]:
    """A difference of the 99th percentiles and its 95% interval; the ratio is that of the percentiles themselves."""
    if not with_it or not without:  # a run so short that nothing was asked meanwhile
        return []
    cost, low, high = cost_ms(with_it, without, 0.99)
    base = percentile(np.concatenate(without), 0.99)
    return [
        figure(name, cost, "ms", against, (base + cost) / base),
        figure(name.replace("_ms", "_low_ms"), low, "ms"),
        figure(name.replace("_ms", "_high_ms"), high, "ms"),
    ]


def _workers(bench: Bench, out: Path) -> list[Figure]:
    """CPU of a page, all of the scorer's processes together, of one worker and of two in turn."""
    used: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(bench.size.pairs):
        for workers in used:
            with RunningScorer(bench.settings, out, workers) as scorer:
                bench.run(scorer, FEW, seconds=bench.size.warm_s)
                block = bench.run(scorer, FEW, rate=2 * bench.size.rate)
            used[workers].append(1000 * sum(block.cpu_s.values()) / len(block.outcome.whole))
            bench.say(f"{workers} worker(s): {used[workers][-1]:.2f} ms of CPU a page")
    one, two = (float(np.mean(used[n])) for n in (1, 2))
    return [
        figure("cpu_one_worker", one, "ms CPU / page"),
        figure("cpu_two_workers", two, "ms CPU / page", "one worker", two / one),
    ]


def _counted_figures(c: Counted, log: PageLog) -> list[Figure]:
    return [
        figure("failed_answers", c.failed, "answers"),
        figure("noted_answers", c.noted, "answers"),
        figure("lost_impressions", c.lost, "pages"),
        figure("unlike_impressions", log.unlike + log.unreadable, "pages"),
        figure("compared_pages", log.compared, "pages"),
        figure("pages_asked", c.asked, "pages"),
        figure("generator_cpu_ms", 1000 * c.generator_s / max(1, c.asked), "ms CPU / page"),
        figure("generator_late_p99_ms", percentile(np.array(c.late_ms), 0.99), "ms"),
    ]
