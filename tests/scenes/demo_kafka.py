"""Apache Kafka and a Redis of one's own, for tests: started from MILLRACE_TEST_KAFKA_HOME's jars, stopped by pid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from millrace.processes.services import EmbeddedRedis
from tests.scenes import apachekafka


class ApacheKafka(apachekafka.ApacheKafka):
    """Such a broker in a folder of its own; without Kafka or Java the test is skipped."""

    def __init__(self, folder: Path, **options: Any) -> None:
        home = os.environ.get("MILLRACE_TEST_KAFKA_HOME", "")
        if not home:
            pytest.skip("MILLRACE_TEST_KAFKA_HOME does not name a folder with Kafka's libs/")
        if shutil.which("java") is None:
            pytest.skip("no Java runtime (Debian: default-jre-headless)")
        super().__init__(Path(home), folder, **options)


@contextmanager
def apache_kafka(folder: Path) -> Iterator[str]:
    """Such a broker; its address."""
    with ApacheKafka(folder) as broker:
        yield broker.address


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """A redis-server; its address."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server (Debian: redis-server)")
    with EmbeddedRedis(folder) as server:
        yield server.address


def command_lines(pids: Iterable[int]) -> list[str]:
    """What the processes are, those that are gone left out. Between fork and exec a process is its parent still."""
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
