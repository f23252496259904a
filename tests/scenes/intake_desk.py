"""An intake in process, for tests: its routes over a broker that keeps what it is told to keep, when it is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.types import ASGIApp

from millrace.basics.hashing import kafka_partition
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from stream.intake.intake_app import IntakeHandler, make_app
from stream.intake.intake_metrics import Refusals
from stream.intake.intake_queue import Keeper, Lane, WaitingMessage
from stream.intake.intake_wire import LineReader
from stream.intake.recent_ids import IdMemory
from tests.scenes.app_server import asked

AHEAD_MS, LIFE_MS, DISORDER_MS = 3_600_000, 7_500_000, 60_000
PARTITIONS = {"events": 4, "users": 4, "items": 1}


def click(n: object, **more: Any) -> dict[str, Any]:
    """A click whose event id is made of ``n``."""
    own = {"type": "click", "event_id": f"e{n}", "request_id": "page", "user_id": 7, "item_id": 3, "position": 0}
    return own | more


def exposure(n: object, **more: Any) -> dict[str, Any]:
    return {"type": "exposure", "event_id": f"e{n}", "request_id": "page", "user_id": 7, "items": [3, 5]} | more


def keeper(limit: int = 1000, memory: IdMemory | None = None) -> Keeper:
    return Keeper(
        lambda topic, key: (topic, kafka_partition(key, PARTITIONS[topic])), hash, limit, LIFE_MS, DISORDER_MS, memory
    )


class Outlet:
    """In the place of the way to Kafka: ``log`` has what was kept, in order. Without ``at_once`` nothing is kept until
    :meth:`deliver`."""

    def __init__(self, limit: int = 1000, at_once: bool = True) -> None:
        self.keeper, self.at_once, self.away = keeper(limit), at_once, ""
        self.log: list[tuple[Lane, WaitingMessage]] = []
        self.touched: set[Lane] = set()

    def wake(self, lanes: Iterable[Lane]) -> None:
        self.touched |= set(lanes)
        if self.at_once:
            self.deliver()

    def deliver(self) -> None:
        for lane in sorted(self.touched):
            while batch := self.keeper.take(lane, 1000):
                self.log += [(lane, one) for one in batch]
                self.keeper.kept(lane, batch)
        self.touched.clear()

    @property
    def values(self) -> list[Any]:
        """What was kept, decoded."""
        return [None if one.value is None else msgspec.json.decode(one.value) for _, one in self.log]


class Intake:
    """The application, and its outlet. ``logged`` has the lines of its log about refusals."""

    def __init__(self, outlet: Outlet | None = None, schema: Schema | None = None, **settings: Any) -> None:
        self.outlet = outlet or Outlet()
        self.logged: list[dict[str, Any]] = []
        reader = LineReader(schema or shop_schema(), AHEAD_MS)
        refusals = Refusals(lambda: 0.0, lambda line, **values: self.logged.append(values))
        self.desk = IntakeHandler(Settings(**settings), reader, self.outlet, refusals)  # type: ignore[arg-type]
        self.app: ASGIApp = make_app(self.desk, self.outlet)  # type: ignore[arg-type]

    async def ask(self, method: str, path: str, body: Any = b"", kind: str = "") -> tuple[int, Any, dict[str, str]]:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await ask(self.app, method, path, raw, {"content-type": kind} if kind else {})


async def ask(
    app: ASGIApp, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, chunk: int = 1 << 16
) -> tuple[int, Any, dict[str, str]]:
    """Status, decoded body and headers of an answer."""
    status, raw, found = await asked(app, method, path, body, headers, chunk)
    return status, msgspec.json.decode(raw) if raw else None, found
