"""Small streams for the join's tests: a schema, messages, and what a partition made of them, in comparable form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from millrace.basics.hashing import combine, value_hash
from millrace.contracts.events import DeadLetter, PageLog, to_msgpack
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from stream.join.join import InputMessage, Policy
from stream.partition.partition import Partition, StepOutput
from tests.scenes.reference_partition import Row
from tests.scenes.schemas import named, of_item, of_user, windows_of

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
T0 = 20_000 * DAY

TEXT = (
    named("small")
    + of_user("user_id")
    + of_item("item_id", "price:numeric")
    + windows_of("item_id", "user_id item_id", days=[1, 7], actions=("exposure", "click", "purchase"))
)
SCHEMA = parse_schema(TEXT)
POLICY = Policy(attribution_ms=30 * MINUTE, disorder_ms=MINUTE, lateness_ms=20 * MINUTE, ahead_ms=HOUR)
KINDS = ("exposure", "click", "collect", "cart", "purchase")


def event(kind: str, request: str, ts_ms: int, **values: Any) -> bytes:
    body = {"type": kind, "event_id": f"{kind}-{request}-{ts_ms}", "request_id": request, "ts_ms": ts_ms, "user_id": 7}
    return msgspec.json.encode(body | values)


def exposure(request: str, ts_ms: int, items: Sequence[int], offset: int = 0, **values: Any) -> bytes:
    return event("exposure", request, ts_ms, items=list(items), offset=offset, **values)


def action(kind: str, request: str, ts_ms: int, position: int, item: int, **values: Any) -> bytes:
    own = {"event_id": f"{kind}-{request}-{position}-{ts_ms}", "sent_ms": ts_ms + 5}
    return event(kind, request, ts_ms, position=position, item_id=item, **own | values)


def keys_of(user: int, items: Sequence[int], schema: Schema = SCHEMA) -> Any:
    """(n, 2) window keys: of the item, of user and item."""
    hashed = np.array([value_hash(i) for i in items], np.uint64)
    own = np.array([value_hash(user)], np.uint64)
    layout = schema.layout
    return np.stack(
        [combine(layout.key_salt("item_id"), hashed), combine(layout.key_salt("user_id*item_id"), own, hashed)], axis=1
    )


def page_log(request: str, ts_ms: int, items: Sequence[int], user: int = 7, **values: Any) -> bytes:
    """Features that differ from row to row, so that a sample with another row's is noticed."""
    n, layout = len(items), SCHEMA.layout
    row = np.arange(n)[:, None] + value_hash(request) % 1000 * 100
    body = {
        "request_id": request,
        "ts_ms": ts_ms,
        "user_id": user,
        "arm": "model",
        "model_version": 3,
        "schema_id": SCHEMA.id,
        "items": list(items),
        "scores": np.linspace(0.1, 0.9, n).astype("<f4").tobytes(),
        "keys": keys_of(user, items).astype("<u8").tobytes(),
        "cat": (row * 10 + np.arange(layout.F)).astype("<i8").tobytes(),
        "num": (row * 20 + np.arange(layout.N)).astype("<f4").tobytes(),
    }
    return to_msgpack(PageLog(**(body | values)))


def resumed(raw: bytes, schema: Schema = SCHEMA, policy: Policy = POLICY, number: int = 0) -> Partition:
    """A partition that goes on from a checkpoint."""
    partition = Partition(number, schema, policy)
    partition.resume(raw)
    return partition


class Log:
    """Messages with their offsets, topic by topic."""

    def __init__(self) -> None:
        self._next: Counter[str] = Counter()

    def __call__(self, topic: str, raw: bytes) -> InputMessage:
        self._next[topic] += 1
        return InputMessage(topic, self._next[topic] - 1, raw)

    def events(self, *raws: bytes) -> list[InputMessage]:
        return [self("events", raw) for raw in raws]

    def page_logs(self, *raws: bytes) -> list[InputMessage]:
        return [self("page_logs", raw) for raw in raws]


def rows(batch: SampleBatch | None) -> list[Row]:
    """A batch as the reference writes samples."""
    if batch is None:
        return []
    return [
        Row(
            request,
            position,
            int(batch.kind[i]),
            int(batch.actions[i]),
            int(batch.ts_ms[i]),
            int(batch.origin_ms[i]),
            str(int(batch.user[i])),
            str(int(batch.item[i])),
            int(batch.version[i]),
            batch.cat[i].tobytes() + batch.num[i].tobytes() + batch.score[i].tobytes(),
        )
        for i, (request, position) in enumerate(batch.ids())
    ]


def hashed(samples: Iterable[Row]) -> list[Row]:
    """The reference's samples with ids hashed as batches have them, sorted."""
    return sorted(r._replace(user=str(value_hash(r.user)), item=str(value_hash(r.item))) for r in samples)


def dead_of(dead_letters: Iterable[DeadLetter] | Iterable[tuple[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """By reason: exposures lost, and messages lost without one."""
    lost: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for dead_letter in dead_letters:
        reason, n = (dead_letter.reason, dead_letter.exposures) if isinstance(dead_letter, DeadLetter) else dead_letter
        if n:
            lost[reason] += n
        else:
            others[reason] += 1
    return dict(lost), dict(others)


class Sum:
    """Several outputs as one."""

    def __init__(self) -> None:
        self.samples: list[Row] = []
        self.dead: list[DeadLetter] = []
        self.counts: Counter[str] = Counter()

    def __iadd__(self, output: StepOutput) -> Sum:
        self.samples += rows(output.samples)
        self.dead += output.dead
        self.counts.update(output.counts)
        return self

    @property
    def lost(self) -> int:
        return sum(dead_letter.exposures for dead_letter in self.dead)


class World:
    """A partition with its topics, and everything that it has put out. ``now_ms`` is its clock."""

    def __init__(
        self, policy: Policy = POLICY, *, number: int = 0, settles: bool = False, now_ms: int = T0 + 1000 * DAY
    ) -> None:
        self.partition = Partition(number, SCHEMA, policy, settles=settles)
        self.log, self.total, self.now_ms = Log(), Sum(), now_ms

    def take(self, *messages: InputMessage) -> StepOutput:
        output = self.partition.take(list(messages), self.now_ms)
        self.total += output
        return output

    def events(self, *raws: bytes) -> World:
        self.take(*self.log.events(*raws))
        return self

    def page_logs(self, *raws: bytes) -> World:
        self.take(*self.log.page_logs(*raws))
        return self

    def page(self, request: str, ts_ms: int, items: Sequence[Any], user: Any = 7, **values: Any) -> World:
        """A page that is served and seen."""
        self.page_logs(page_log(request, ts_ms, items, user, **values))
        return self.events(exposure(request, ts_ms, items, user_id=user))

    def act(self, kind: str, request: str, ts_ms: int, position: int, item: Any, user: Any = 7) -> StepOutput:
        return self.take(*self.log.events(action(kind, request, ts_ms, position, item, user_id=user)))

    def until(self, ts_ms: int) -> World:
        """Time goes by without a message."""
        self.total += self.partition.advance(ts_ms)
        return self

    def crash(self) -> World:
        """It goes on from a checkpoint of now."""
        one = self.partition
        self.partition = Partition(one.number, SCHEMA, one.policy, settles=one.settles)
        self.partition.resume(one.snapshot().to_bytes())
        return self

    @property
    def dead(self) -> list[tuple[str, int]]:
        """Reasons of dead letters, and how many exposures each lost."""
        return [(one.reason, one.exposures) for one in self.total.dead]

    @property
    def samples(self) -> list[tuple[int, int]]:
        """(position, kind) of each sample."""
        return [(row.position, row.kind) for row in self.total.samples]
