"""A scorer as a process of its own, and how to talk to it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from millrace.contracts.events import key_of, to_json
from millrace.contracts.settings import Settings
from millrace.processes.kafka import topic_ids
from millrace.processes.tokens import bearer
from tests.scenes.scorer_shop import ITEMS, Learner
from tests.scenes.waiting import PATIENCE, until

COMMAND = [sys.executable, "-m", "millrace", "run", "serve"]


def opened(settings: Settings, producer: Any) -> Learner:
    """A shop's items on their topic, and a learner whose first snapshot is announced."""
    for one in ITEMS:
        producer.send("items", key=key_of(one.item_id), value=to_json(one))

    def send(message: bytes) -> int:
        return int(producer.send("model.deltas", value=message).get(PATIENCE).offset)

    learner = Learner(settings.place("models"), send, topic_ids(settings)["model.deltas"])
    learner.snapshot()
    return learner


class Scorer:
    """The process, and how to talk to it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.log = folder / "scorer.log"
        self.environment = self.environment_of(settings)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(COMMAND, env=self.environment, stderr=log, stdout=log)

    @staticmethod
    def environment_of(settings: Settings) -> dict[str, str]:
        return {**os.environ, **settings.environment()}

    def ask(self, path: str, body: Any = None, token: bool = True) -> tuple[int, Any]:
        data = None if body is None else msgspec.json.encode(body)
        request = self._request(path, data, bearer(self.settings) if token else {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, msgspec.json.decode(error.read())

    def model(self) -> dict[str, Any]:
        """What GET /model says. It is asked again while the main process does not come to answer (503)."""
        found: list[dict[str, Any]] = []

        def answered() -> bool:
            status, facts = self.ask("/model")
            assert status in (200, 503), (status, facts)
            found[:] = [facts] * (status == 200)
            return bool(found)

        self.until(answered, "GET /model is answered")
        return found[0]

    def metrics(self) -> str:
        """What GET /metrics says, asked again as :meth:`model` is."""
        found: list[str] = []

        def answered() -> bool:
            request = self._request("/metrics", None, bearer(self.settings))
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # 503 is an OSError
                found[:] = [answer.read().decode()]
            return True

        self.until(answered, "GET /metrics is answered")
        return found[0]

    def _request(self, path: str, data: bytes | None, headers: dict[str, str]) -> urllib.request.Request:
        return urllib.request.Request(f"http://127.0.0.1:{self.settings.port}{path}", data, headers)

    def until(self, met: Callable[[], bool], what: str) -> None:
        """Waits for a condition; fails at once when the scorer ends before it holds."""

        def looked() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return met()
            except OSError:
                return False  # not listening yet

        until(looked, what)
