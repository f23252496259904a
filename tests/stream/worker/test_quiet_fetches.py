"""How long the stream's fetches wait at the broker: long where nothing is gained by a quick answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from stream.worker.faustio import FETCH_WAIT_MS, QUIET_ANSWERS, QUIET_WAIT_MS, wait_longer_when_quiet


class Fetcher:
    """aiokafka's, as far as it plans fetches."""

    def __init__(self) -> None:
        self._records: dict[str, Any] = {}
        self._fetch_max_wait_ms = FETCH_WAIT_MS
        self.found = False

    async def _proc_fetch_request(self, *_: Any) -> bool:
        return self.found

    def _get_actions_per_node(self, _: Any) -> int:
        return self._fetch_max_wait_ms


class Scene:
    def __init__(self) -> None:
        self.fetcher, self.quiet, self.paused = Fetcher(), True, False
        wait_longer_when_quiet(self.fetcher, lambda: self.quiet)

    def answers(self, *found: bool) -> None:
        for self.fetcher.found in found:
            asyncio.run(self.fetcher._proc_fetch_request())

    def waits_ms(self) -> int:
        state = SimpleNamespace(paused=self.paused)
        return self.fetcher._get_actions_per_node(SimpleNamespace(tps=[1], state_value=lambda _: state))


def test_a_fetch_waits_longer_after_answers_without_a_message() -> None:
    scene = Scene()
    assert scene.waits_ms() == FETCH_WAIT_MS
    scene.answers(*[False] * QUIET_ANSWERS)
    assert scene.waits_ms() == QUIET_WAIT_MS
    scene.answers(True)
    assert scene.waits_ms() == FETCH_WAIT_MS
    scene.answers(*[False] * (QUIET_ANSWERS - 1))
    assert scene.waits_ms() == FETCH_WAIT_MS, "an event that came is let go by a later answer"


def test_no_fetch_waits_longer_while_something_waits_for_it() -> None:
    scene = Scene()
    scene.answers(*[False] * QUIET_ANSWERS)
    scene.quiet = False
    assert scene.waits_ms() == FETCH_WAIT_MS, "an event waits for page logs"
    scene.quiet, scene.paused = True, True
    assert scene.waits_ms() == FETCH_WAIT_MS, "a paused partition is in no fetch"
    scene.paused = False
    scene.fetcher._records["events-0"] = ["unread"]
    assert scene.waits_ms() == FETCH_WAIT_MS, "a partition with unread messages is in no fetch"
    scene.fetcher._records.clear()
    assert scene.waits_ms() == QUIET_WAIT_MS
