"""A partition whose schema has outcomes that come late, with its files: what is told, in comparable form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from millrace.basics.store import Store
from millrace.contracts.events import DeadLetter
from millrace.contracts.samples import OUTCOME, POLICIES
from millrace.contracts.schema import parse_schema
from stream.join.join import InputMessage
from stream.partition.partition import Partition, StepOutput
from stream.worker.outcome_files import OutcomeFiles
from tests.scenes.schemas import outcome
from tests.scenes.stream_world import DAY, POLICY, T0, TEXT, Log, action, exposure, page_log

_PURCHASE = outcome("purchase", "purchase", "30d", policy="wait")
OUTCOMES = parse_schema(TEXT + _PURCHASE + outcome("soon", "purchase", "1d"))
BY_AGE = parse_schema(
    TEXT
    + _PURCHASE
    + outcome("early", "purchase", "30d", policy="es-dfm")
    + outcome("soon", "purchase", "1d", policy="fake-negative-weighted")
)
NOW = T0 + 200 * DAY


class LateStream:
    """One partition and its store. ``told``: (request, position, outcome) and 0 or 1, of each telling; ``by_age``: the
    same with its number, of those by age."""

    def __init__(self, url: str, schema: Any = OUTCOMES) -> None:
        self.schema, self.log, self.url = schema, Log(), url
        self.files = OutcomeFiles(Store(url), schema, {})
        self.partition = Partition(0, schema, POLICY)
        self.told: list[tuple[str, int, str, int]] = []
        self.by_age: list[tuple[str, int, str, int, int]] = []
        self.rows: dict[tuple[str, int], bytes] = {}  # features of what was told
        self.dead: list[DeadLetter] = []
        self.counts: Counter[str] = Counter()
        self.removed: list[tuple[str, int]] = []
        self.messages: list[InputMessage] = []

    def take(self, *messages: InputMessage) -> StepOutput:
        self.messages += messages
        return self.did(self.partition.take(messages, NOW))

    def did(self, output: StepOutput) -> StepOutput:
        self.counts.update(output.counts)
        self.dead += output.dead
        self.removed += output.files.removed
        for one in self.files.do(0, output.files):
            if isinstance(one, DeadLetter):
                self.dead.append(one)
                continue
            assert set(one.kind.tolist()) == {OUTCOME}
            for row, (request, position) in enumerate(one.ids()):
                self.rows[request, position] = one.cat[row].tobytes() + one.num[row].tobytes()
                for k in np.flatnonzero(np.isfinite(one.outcomes[row])).tolist():
                    told, telling, rule = int(one.outcomes[row, k]), int(one.telling[row]), self.schema.outcome[k]
                    if telling:
                        assert int(one.policy[row]) == POLICIES.index(rule.told)
                        self.by_age.append((request, position, rule.name, telling, told))
                    else:
                        self.told.append((request, position, rule.name, told))
        return output

    def page(self, request: str, at: int, items: Iterable[int] = (1, 2, 3), user: int = 7) -> None:
        items = list(items)
        log = page_log(request, at, items, user, schema_id=self.schema.id)
        self.take(*self.log.page_logs(log), *self.log.events(exposure(request, at, items, user_id=user)))

    def act(
        self, kind: str, request: str, at: int, position: int = 0, item: int = 1, user: int = 7, **values: Any
    ) -> None:
        self.take(*self.log.events(action(kind, request, at, position, item, user_id=user, **values)))

    def order(self, at: int, item: int = 1, user: int = 7, kind: str = "order", id: str = "") -> None:
        """Without an ``id``, what is the same has the same."""
        body = {"type": kind, "event_id": id or f"{kind}-{item}-{at}", "ts_ms": at, "user_id": user, "item_id": item}
        self.take(*self.log.events(msgspec.json.encode(body)))

    def forget(self, user: int) -> None:
        at = self.log("users", b"")
        self.take(at._replace(key=str(user).encode()))

    def until(self, at: int) -> None:
        """Another user's page moves the time."""
        self.page(f"tick-{at}", at, [99], user=8)

    def checkpoint(self) -> bytes:
        self.files.remove(0, self.removed)
        self.removed = []
        return self.partition.snapshot().to_bytes()

    def crash(self, checkpoint: bytes) -> None:
        """Goes on from it."""
        self.partition, self.removed = Partition(0, self.schema, POLICY), []
        self.partition.resume(checkpoint)

    def of(self, name: str) -> dict[tuple[str, int], int]:
        """What was told of one outcome; nothing is told twice."""
        found = [((request, position), told) for request, position, of, told in self.told if of == name]
        assert len(found) == len({key for key, _ in found}), "told twice"
        return dict(found)

    def tellings(self, name: str) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """(number, value) of all that was told of one outcome by age; nothing is told twice."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for request, position, of, telling, told in self.by_age:
            if of == name:
                found.setdefault((request, position), []).append((telling, told))
        assert all(len(dict(told)) == len(told) for told in found.values()), "told twice"
        return found

    @property
    def book(self) -> Any:
        assert self.partition.join.book is not None
        return self.partition.join.book.snapshot()

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(one.reason for one in self.dead))
