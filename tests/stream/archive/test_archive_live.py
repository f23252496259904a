"""The archive as a process, on the embedded broker: it is killed once, and loses and doubles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.contracts.events import Item, User, to_json
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker
from millrace.processes.wall import wall_ms
from stream.archive.archive_main import MOST_WAITING
from tests.scenes.stream_world import TEXT, action, exposure, page_log
from tests.scenes.waiting import LONG, until

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(LONG),
    # The client leaves a socket to the garbage collector when a connection breaks beneath it.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def start(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "millrace", "run", "archive"],
            env={**os.environ, **settings.environment(), "MILLRACE_METRICS_PORT": "0"},
            stderr=out,
            stdout=out,
        )


def column(folder: Path, kind: str, *names: str) -> list[Any]:
    files = sorted((folder / "archive" / kind).glob("*.parquet"))
    if not files:
        return []
    found: list[Any] = pa.concat_tables([pq.read_table(f, columns=list(names)) for f in files]).to_pylist()
    return found


@pytest.mark.slow
def test_a_killed_archive_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The second half comes while nobody reads. The last labels are given by silence. A catalogue larger than what may
    wait in memory is there before."""
    log, data, schema = tmp_path / "log", tmp_path / "data", tmp_path / "schema.toml"
    schema.write_text(TEXT)
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = Settings(
            kafka=broker.address,
            data=str(data),
            schema=str(schema),
            partitions=2,
            prefix="mine.",
            archive_seconds=0.2,
            attribution_minutes=0.05,
            lateness_minutes=0.0,
            disorder_seconds=0.0,
            idle_seconds=0.2,
        )
        create_topics(settings)
        producer = make_producer(settings)

        def send(first: int, last: int) -> None:
            for n in range(first, last):
                name, now_ms, key = f"p{n}", wall_ms(), str(n % 5).encode()
                producer.send("page_logs", page_log(name, now_ms, [11, 12], user=n % 5), key)
                producer.send("events", exposure(name, now_ms, [11, 12], user_id=n % 5), key)
                producer.send("events", action("click", name, now_ms, 1, 12, user_id=n % 5), key)
            producer.flush()

        def rows(kind: str) -> int:
            return len(column(data, kind, "request_id"))

        def shown() -> str:
            return log.read_text()

        for n in range(3 * MOST_WAITING):
            key = str(n).encode()
            producer.send("items", to_json(Item(n, {"price": 1.0})), key)
            producer.send("users", to_json(User(n, {})), key)
        producer.flush()
        first = start(settings, log)
        send(0, 100)
        until(lambda: rows("events") > 0, "something is written", more=shown)
        first.kill()
        first.wait()
        send(100, 200)
        second = start(settings, log)
        try:
            until(lambda: rows("exposures") >= 400, "every exposure is a row", more=shown)
            second.terminate()
            assert second.wait(60) == 0, shown()
        finally:
            second.kill()
            second.wait()
            producer.close()
    events = [
        (row["log_partition"], row["log_offset"]) for row in column(data, "events", "log_partition", "log_offset")
    ]
    assert len(events) == len(set(events)) == 400, shown()
    found = column(data, "exposures", "request_id", "position", "label", "model_version")
    assert sorted((r["request_id"], r["position"], r["label"], r["model_version"]) for r in found) == sorted(
        (f"p{n}", position, position, 3) for n in range(200) for position in (0, 1)
    ), shown()
