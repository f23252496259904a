# shell
"""A broker, a Redis, a made shop and a model, as a scorer finds them when it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.tools.bench_figures import Say
from benchmarks.tools.modelwire import ModelWire
from benchmarks.tools.pagewire import ShopWire
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port


class MadeLoop(NamedTuple):
    """What the scorer's benchmarks share."""

    settings: Settings
    producer: Any
    shop: ShopWire
    model: ModelWire


@contextmanager
def made_loop(out: Path, items: int, users: int, rows: int, rows_a_second: int, say: Say) -> Iterator[MadeLoop]:
    """Services, topics, catalogue, users and a root of the model; files in a folder in ``out`` that is removed. The
    settings MILLRACE_KAFKA and MILLRACE_REDIS name others than the embedded ones; their topics must be new."""
    given = load_settings()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=out.resolve())))
        settings = msgspec.structs.replace(
            given,
            kafka=given.kafka or stack.enter_context(EmbeddedBroker(folder / "broker")).address,
            redis=given.redis or stack.enter_context(EmbeddedRedis(folder / "redis")).address,
            data=str(folder / "data"),
            port=free_port(),
            metrics_port=0,
            control_share=0.0,
        )
        create_topics(settings)
        producer = stack.enter_context(closing(make_producer(settings)))
        say(f"writing {items:,} items, users, and a snapshot of {rows:,} rows")
        shop = ShopWire(settings, producer, items, users)
        shop.publish()
        shop.fill_users()
        log_id = topic_ids(settings)[MODEL_DELTAS]
        model = ModelWire(settings, producer, shop.log, rows, rows_a_second, log_id)
        model.new_root()
        yield MadeLoop(settings, producer, shop, model)
