# shell
"""How long a dead item is still on pages: a part of ``millrace bench recall``.

::

    this process                                        millrace serve
      a tenth of the catalogue changes each minute ──►    items ► index ► shelf, vectors
      deltas, some with the retrieval head ───────────►   retrieval versions come and go
      "gone": an item of the last pages ──────────────►   ...
      pages of 600, one after another ◄────────────────   the last one that still has it

A time runs from when the broker has acknowledged the message to when the last answer with the item has come.
"""

from __future__ import annotations

import contextlib
import http.client
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.modelwire import ModelWire
from benchmarks.pagewire import ShopWire, Steadily, fill_users, item_attributes
from benchmarks.runner import BenchError, Figure, Say, figure
from benchmarks.serveunder import RunningScorer
from millrace.contracts.events import Item, key_of, to_json
from millrace.contracts.settings import load_settings
from millrace.contracts.topics import ITEMS, MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.wall import wall_ms

ITEMS_ON_SALE, USERS, ROWS, DELTA_ROWS_A_SECOND = 20_000, 1000, 200_000, 5000
CHANGED_A_MINUTE = 0.1
ROUNDS, PAGE, ASKERS = 20, 600, 2
AFTER_S = 2.0
"""How long pages are looked at after each death."""
CLEAN, PATIENCE_S = 10, 60.0
"""So many pages of each asker in a row have to be without an item; how long that may take before the run fails."""
DAY_MS = 86_400_000


class _Pages:
    """Asks for pages, one after another, and keeps when each answer came and what was on it."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._rng = port, np.random.default_rng(seed)
        self.seen: list[tuple[float, frozenset[int], int]] = []  # when, items, retrieval version
        self.failed = 0

    def run(self, end: threading.Event) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            while not end.is_set():
                body = msgspec.json.encode(
                    {"user_id": int(self._rng.integers(1, USERS + 1)), "size": PAGE, "explain": True}
                )
                connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = msgspec.json.decode(response.read())
                if response.status != 200:
                    self.failed += 1
                    continue
                items = frozenset(placed["item_id"] for placed in answer["items"])
                self.seen.append((time.monotonic(), items, int(answer["retrieval_version"])))


def dead_item_seconds(say: Say, out: Path | None = None, rounds: int = ROUNDS) -> list[Figure]:
    """The longest and the median time from an item's death to the last page with it, over ``rounds`` deaths.

    Args:
        out: folder for logs; None: one that is removed.

    Raises:
        ServiceError: broker, Redis or scorer did not start.
        BenchError: pages failed, or none was made of vectors.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dead-", dir=out)))
        broker = stack.enter_context(EmbeddedBroker(folder / "broker", free_port()))
        at_redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        settings = msgspec.structs.replace(
            load_settings(),
            kafka=broker.address,
            redis=at_redis.address,
            data=str(folder / "data"),
            store=str(folder / "store"),
            port=free_port(),
            metrics_port=0,
            control_share=0.0,
            page_limit=PAGE,
            recall_clicks=0,
        )
        create_topics(settings)
        producer = stack.enter_context(contextlib.closing(make_producer(settings)))
        fill_users(settings, USERS, ITEMS_ON_SALE)
        shop = ShopWire(settings, producer, ITEMS_ON_SALE)
        shop.publish()
        log_id = topic_ids(settings)[MODEL_DELTAS]
        model = ModelWire(settings, producer, ROWS, ITEMS_ON_SALE, DELTA_ROWS_A_SECOND, log_id)
        model.new_root()
        stack.enter_context(RunningScorer(settings, folder))
        say(f"{rounds} items die, one after another, while {CHANGED_A_MINUTE:.0%} of {ITEMS_ON_SALE:,} change a minute")
        changes = _Changes(producer, ITEMS_ON_SALE)
        stack.enter_context(Steadily(model.delta, settings.delta_seconds))
        stack.enter_context(Steadily(shop.publish_changes, 1.0))
        stack.enter_context(Steadily(changes.some, 1.0))
        return _deaths(_asking(stack, settings.port), producer, changes, rounds, say)


class _Changes:
    """Changes the catalogue steadily, but for the items that are dead."""

    def __init__(self, producer: Any, items: int) -> None:
        self._producer, self._items, self._rng = producer, items, np.random.default_rng(0)
        self.dead: set[int] = set()

    def some(self) -> None:
        for i in self._rng.integers(0, self._items, round(self._items * CHANGED_A_MINUTE / 60)).tolist():
            if i not in self.dead:
                attributes = item_attributes(i) | {"price": float(self._rng.integers(1, 500))}
                self._producer.send(ITEMS, key=key_of(i), value=to_json(Item(i, attributes, wall_ms() - DAY_MS)))

    def die(self, i: int) -> None:
        """Sends the death of an item, and waits until the broker has it."""
        self.dead.add(i)
        gone = Item(i, item_attributes(i), wall_ms() - DAY_MS, gone=True)
        self._producer.send(ITEMS, key=key_of(i), value=to_json(gone)).get(timeout=30)


def _asking(stack: contextlib.ExitStack, port: int) -> list[_Pages]:
    end = threading.Event()
    pages = [_Pages(port, seed) for seed in range(ASKERS)]
    threads = [threading.Thread(target=each.run, args=(end,), daemon=True) for each in pages]

    def finish() -> None:
        end.set()
        for thread in threads:
            thread.join(30)

    for thread in threads:
        thread.start()
    stack.callback(finish)
    return pages


def _await_without(pages: list[_Pages], item: int) -> None:
    """Waits until the newest pages are without the item.

    Raises:
        BenchError: they are not.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not all(len(each.seen) >= CLEAN and all(item not in on for _, on, _ in each.seen[-CLEAN:]) for each in pages):
        if time.monotonic() > deadline:
            raise BenchError(f"item {item} is still on pages {PATIENCE_S:g} s after its death", "see the scorer's log")
        time.sleep(0.05)


def _deaths(pages: list[_Pages], producer: Any, changes: _Changes, rounds: int, say: Say) -> list[Figure]:
    took: list[float] = []
    looked = 0
    versions: set[int] = set()
    time.sleep(AFTER_S)
    for _ in range(rounds):
        before = Counter(i for each in pages for _, items, _ in each.seen[-20:] for i in items)
        chosen = next((i for i, _ in before.most_common() if i not in changes.dead), None)
        if chosen is None:
            raise BenchError("no page was answered", "see the scorer's log")
        for each in pages:
            each.seen.clear()
        changes.die(chosen)
        died = time.monotonic()
        time.sleep(AFTER_S)
        _await_without(pages, chosen)
        seen = [one for each in pages for one in each.seen.copy()]
        looked += len(seen)
        versions |= {version for *_, version in seen}
        took.append(max((at - died for at, items, _ in seen if chosen in items), default=0.0))
    failed = sum(each.failed for each in pages)
    if failed or not looked or versions <= {-1}:
        raise BenchError(f"{failed} of {looked + failed} pages failed, versions {sorted(versions)}", "see the log")
    say(f"{looked} pages by {len(versions - {-1})} retrieval versions; the longest time {max(took):.2f} s")
    return [
        figure("dead_item_seconds", max(took), "s"),
        figure("dead_item_median_seconds", float(np.median(took)), "s"),
    ]
