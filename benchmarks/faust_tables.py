# shell
"""Through Kafka: one Millrace stream worker against one Faust agent that keeps its counts in Faust Tables.

Both read the same pages of 20 exposures with one click a page, preloaded into a broker of their own, in a process of
their own, taking turns (:mod:`benchmarks.contest`). The peer is what the Faust guide leads to, and does less: it
counts exposures and clicks a day of the user, the item and the category in tumbling windows (hopping ones would write
each event into every overlapping window), keeps no other windows, joins no labels, needs no impressions, emits nothing
but its changelogs. Millrace reads the impressions too, keeps six windows of four keys, joins, emits samples, publishes
to Redis and writes checkpoints.

The rate is taken between 10% and 90% of the exposures, so that neither start nor end counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from millrace.basics.hashing import kafka_partition
from millrace.contracts.events import Click, Exposure, Impression, key_of, to_json, to_msgpack
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import EVENTS

PAGE = 20
USERS, ITEMS, CATEGORIES = 2000, 20_000, 200
START_MS = 1_700_000_000_000
STEP_MS = 2000  # event time between pages
PARTITIONS = 4
DAY_S = 86_400


def pages(count: int) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """For each page: its partition, impression, exposure, and the click on the page of a minute before."""
    schema = shop_schema()
    rng = np.random.default_rng(0)
    layout = schema.layout
    at_home: list[list[int]] = [[] for _ in range(PARTITIONS)]  # users by partition, as a keyed producer places them
    for user in range(USERS):
        at_home[kafka_partition(key_of(user), PARTITIONS)].append(user)
    clicks: list[bytes] = []
    for number in range(count):
        home = at_home[number % PARTITIONS]
        user = home[int(rng.integers(len(home)))]
        items = np.minimum(ITEMS * rng.random(PAGE) ** 2, ITEMS - 1).astype(np.int64)
        ts, request = START_MS + number * STEP_MS, f"r{number}"
        category = items % CATEGORIES
        keys = np.column_stack(
            [np.full(PAGE, 1 + user), 10_000 + category, 100_000 + items, 1_000_000 + user * CATEGORIES + category]
        )
        impression = Impression(
            request_id=request,
            ts_ms=ts - 1,
            user_id=user,
            arm="model",
            model_version=1,
            schema_id=schema.id,
            items=items.tolist(),
            scores=np.full(PAGE, 0.1, "<f4").tobytes(),
            keys=keys.astype("<u8").tobytes(),
            cat=rng.integers(1, 1 << 62, (PAGE, layout.F)).astype("<i8").tobytes(),
            num=rng.random((PAGE, layout.N), np.float32).astype("<f4").tobytes(),
        )
        seen = Exposure(f"e{number}", request, ts, user, items.tolist())
        clicks.append(to_json(Click(f"c{number}", request, ts + 60_000, user, int(items[0]), 0)))
        # The click of 28 pages ago belongs to the same partition, because 28 is a multiple of their number.
        yield number % PARTITIONS, to_msgpack(impression), to_json(seen), clicks[number - 28] if number >= 28 else b""


def peer(settings: Settings) -> None:
    """The agent with Tables, as a process of its own."""
    import faust
    from prometheus_client import Counter as Metric

    from millrace.processes.metrics import serve_metrics

    app = faust.App(
        "faust-tables",
        broker=f"kafka://{settings.kafka}",
        store="memory://",
        datadir=str(settings.folder("faust")),
        topic_partitions=PARTITIONS,
        topic_disable_leader=True,
        topic_replication_factor=1,
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=1.0,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
    )
    tables = {
        name: app.Table(name, default=int, partitions=PARTITIONS).tumbling(DAY_S, expires=30 * DAY_S)
        for name in ("user_shown", "item_shown", "category_shown", "user_clicks", "item_clicks", "category_clicks")
    }
    shown = Metric("millrace_events", "Events taken, by type.", ["type"])
    decode = msgspec.json.Decoder(Click | Exposure).decode

    @app.agent(app.topic(settings.topic(EVENTS), value_type=bytes, value_serializer="raw"))
    async def count(stream: Any) -> None:
        async for raw in stream:
            event = decode(raw)
            if isinstance(event, Exposure):
                tables["user_shown"][event.user_id] += len(event.items)
                for item in event.items:
                    tables["item_shown"][item] += 1
                    tables["category_shown"][int(item) % CATEGORIES] += 1
            else:
                tables["user_clicks"][event.user_id] += 1
                tables["item_clicks"][event.item_id] += 1
                tables["category_clicks"][int(event.item_id) % CATEGORIES] += 1
            shown.labels(type(event).__name__.lower()).inc()

    serve_metrics("peer", settings.metrics_port)
    faust.Worker(app, loglevel="ERROR").execute_from_commandline()


if __name__ == "__main__":
    peer(load_settings())
