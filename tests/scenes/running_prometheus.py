"""The real Prometheus (Debian: ``prometheus``) as a process of its own, asked by its HTTP API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from millrace.processes.services import free_port
from millrace.processes.spawn import spawn, stop
from tests.scenes.waiting import PATIENCE, until

PROGRAM = shutil.which("prometheus")


class Prometheus:
    """One that runs at ``url``."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def get(self, path: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}", timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def up(self) -> dict[str, str]:
        """By role, whether the newest scrape of it succeeded."""
        return {target["labels"]["role"]: target["health"] for target in self.get("targets")["activeTargets"]}

    def values(self, expr: str) -> list[float]:
        """What an expression yields now: one value a series."""
        found = self.get(f"query?query={quote(expr)}")
        assert found["resultType"] == "vector", expr
        return [float(series["value"][1]) for series in found["result"]]


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """Runs one with a configuration; its data and its log lie in ``folder``."""
    assert PROGRAM is not None
    port, log = free_port(), folder / "prometheus.log"
    storage = f"--storage.tsdb.path={folder / 'prometheus'}"
    flags = (f"--config.file={config}", storage, f"--web.listen-address=127.0.0.1:{port}")
    child = spawn([PROGRAM, *flags], None, log)
    running = Prometheus(f"http://127.0.0.1:{port}", log)
    try:

        def ready() -> bool:
            assert child.poll() is None, log.read_text()
            try:
                with urlopen(f"{running.url}/-/ready", timeout=PATIENCE):
                    return True
            except OSError:
                return False

        until(ready, "Prometheus is ready", more=lambda: log.read_text())
        yield running
    finally:
        stop(child)
