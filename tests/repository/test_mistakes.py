"""The table of mistakes in docs/reference/messages.md, row by row, by HTTP and by Kafka: what the page says happens.

::

    row ──► messages ──┬──► intake: Reader, Keeper ──────────────────────────────► kept, duplicate, refused REASON
                       └──► Partitions (events, users) │ list keeper, scorer ──► taken, duplicate, warning, dead letter
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import structlog

from millrace.basics.hashing import kafka_partition, value_hash
from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import BadEventError, DeadLetter, change_key, key_of
from millrace.contracts.profile_reader import Intake
from millrace.contracts.profile_warnings import ProfileChecks, ProfileWarning
from millrace.contracts.topics import EVENTS, ITEMS, PAGE_LOGS, USERS
from scorer.feeder.kafka_feed import FeedRecord, ItemFeed
from scorer.ipc.meters import ScorerMeters
from stream.intake.intake_queue import Keeper, Parcel
from stream.intake.intake_wire import LineReader, Verdict, What
from stream.intake.intake_wire import OutMessage as Line
from stream.intake.recent_ids import IdMemory
from stream.partition.partition import InputMessage, Partition, Policy, StepOutput
from stream.worker import stream_metrics
from stream.worker.listkeeper import take
from stream.worker.problemlog import ProblemLog
from stream.worker.shop_lists import ShopLists
from tests.architecture import ROOT
from tests.scenes.bad_messages import deep
from tests.scenes.feed_scene import feed
from tests.scenes.own_metrics import figure
from tests.scenes.scorer_shop import NOW_MS, SCHEMA

PAGE = ROOT / "docs" / "reference" / "messages.md"
MINUTE, DAY = 60_000, 86_400_000
POLICY = Policy(attribution_ms=5 * MINUTE, disorder_ms=MINUTE, lateness_ms=120 * MINUTE, ahead_ms=60 * MINUTE)
PARTITIONS = 4
ANN = "ann"
HOME = kafka_partition(key_of(ANN), PARTITIONS)
NEIGHBOUR = next(f"u{n}" for n in range(99) if kafka_partition(f"u{n}".encode(), PARTITIONS) == HOME)
STRANGER = next(f"u{n}" for n in range(99) if kafka_partition(f"u{n}".encode(), PARTITIONS) != HOME)
SEEN_MS = NOW_MS - MINUTE
SHOWN = ["vase", "lamp", 7]


class Case(NamedTuple):
    """Messages of one topic. ``keys``: None stands for the right key; a message without one has b"". ``http``: whether
    the intake can be sent it."""

    topic: str
    values: tuple[bytes | None, ...]
    keys: tuple[bytes | None, ...] | None = None
    http: bool = True


def item(attributes: dict[str, Any] | None = None, *, key: bytes | None = None, **fields: Any) -> Case:
    body = {"item_id": "vase", "attributes": {"category": "home"} if attributes is None else attributes, **fields}
    return Case(ITEMS, (msgspec.json.encode(body),), None if key is None else (key,), http=key is None)


def change(changes: dict[str, Any], item_id: str = "vase", key: bytes | None = None) -> Case:
    keys = tuple(change_key(item_id, name) for name in changes) if key is None else (key,)
    return Case(ITEMS, (msgspec.json.encode({"item_id": item_id, "changes": changes}),), keys, http=key is None)


def user(attributes: dict[str, Any], key: bytes | None = None) -> Case:
    body = msgspec.json.encode({"user_id": ANN, "attributes": attributes})
    return Case(USERS, (body,), None if key is None else (key,), http=key is None)


def event(kind: str = "click", **fields: Any) -> dict[str, Any]:
    body = {"type": kind, "event_id": f"{kind}-1", "request_id": "page", "ts_ms": SEEN_MS + 1000, "user_id": ANN}
    own = {"items": SHOWN} if kind == "exposure" else {"item_id": "vase", "position": 0}
    return {**body, **own, **fields}


def events(*bodies: dict[str, Any], keys: tuple[bytes | None, ...] | None = None, http: bool = True) -> Case:
    return Case(EVENTS, tuple(map(msgspec.json.encode, bodies)), keys, http)


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {n: v for n, v in body.items() if n != name}


def raw_item(attribute: bytes) -> Case:
    return Case(ITEMS, (b'{"item_id": "vase", "attributes": {"price": %s}}' % attribute,))


def day_late(kind: str) -> Case:
    late = event(kind, request_id="page-before", ts_ms=SEEN_MS - DAY)
    return events(late)


CASES: dict[str, Case] = {
    'Text that is no number (`"12,50"`) in a numeric attribute': item({"price": "12,50"}),
    'A number as text (`"12.50"`) in a numeric attribute': item({"price": "12.50"}),
    "A number that no float32 holds (`1e39`)": item({"price": 1e39}),
    "A list where one value is needed": item({"category": ["home", "garden"]}),
    "An object as an attribute": item({"category": {"name": "home"}}),
    "More values in a list than the field has slots": item({"tags": ["red", "new", "cheap"]}),
    "A number or a truth value in a categorical attribute (`7`, `true`)": item({"category": 7, "tags": True}),
    "A number with a fraction in a categorical attribute (`12.5`)": item({"category": 12.5}),
    "An attribute of an item that the schema does not name": item({"colour": "red"}),
    "An attribute of a user that the schema does not name": user({"shoe_size": 44}),
    "An attribute that is null, empty, or left out": item({"price": None, "category": ""}),
    "NaN, as Python's `json.dumps` writes it": raw_item(b"NaN"),
    "A list in an attribute of a user that has one value": user({"kind": ["business"]}),
    "`born_ms` in seconds": item(born_ms=NOW_MS // 1000),
    "An item under another key than its id": item(key=b"lamp"),
    "An item whose message is no JSON": Case(ITEMS, (b"{item_id: vase}",)),
    "A change of an attribute that the schema does not name": change({"colour": "red"}),
    "A change of an item that is not there": change({"price": 5}, "lost"),
    "A change under the item's own key": change({"price": 5}, key=b"vase"),
    "A tombstone of an item": Case(ITEMS, (None,), (b"vase",)),
    "A tombstone of an item under a key that is no text": Case(ITEMS, (None,), (b"\xff\xfe",), http=False),
    "A tombstone of a user": Case(USERS, (None,), (ANN.encode(),)),
    "A user under another user's key": user({"kind": "business"}, key=STRANGER.encode()),
    'Ids `7` and `"7"`': events(event(item_id="7", position=2)),
    "An id that is empty, or a fraction": events(event(user_id=""), event(item_id=7.5)),
    "An event whose message is no JSON": Case(EVENTS, (b"{type: click}",)),
    "A `type` that is none of the seven": events(event(type="view")),
    "A field of an event left out": events(without(event(), "position"), without(event(), "request_id")),
    "A field of an event that is null": events(event(item_id=None), event(user_id=None)),
    "`ts_ms` left out": events(without(event(), "ts_ms")),
    "A field that events do not have": events(event(colour={"of": ["the button"]})),
    "A time in seconds": events(event(ts_ms=NOW_MS // 1000), event("exposure", ts_ms=NOW_MS // 1000)),
    "A time in microseconds": events(event(ts_ms=NOW_MS * 1000)),
    "A time in the future": events(event(ts_ms=NOW_MS + 61 * MINUTE)),
    "An exposure that comes a day late": day_late("exposure"),
    "A click that comes a day late, with its own time": day_late("click"),
    "A click that comes a day late, with the time at which it comes": events(event(request_id="page-before")),
    "The same event twice": events(event("exposure", event_id="seen"), event(), event()),
    "The same click under another `event_id`": events(event(), event(event_id="click-2")),
    "An event of more than 256 KiB": events(event(padding="x" * 256 * 1024)),
    "More than 32 levels of nesting": Case(EVENTS, (msgspec.json.encode(event())[:-1] + b',"x":' + deep(32) + b"}",)),
    "`slots` that name a position twice, or not one for each item": events(
        event("exposure", slots=[0, 0, 1]), event("exposure", slots=[0])
    ),
    "An exposure of a request that no page had": events(event("exposure", request_id="no-page")),
    "A click on a request that no page had": events(event(request_id="no-page")),
    "A click at a position without an exposure": events(event(item_id="hat", position=3)),
    "A click that names another item than the page had there": events(event(item_id="lamp", position=0)),
    "An exposure that names another item than the page had there": events(
        event("exposure", request_id="second", items=["lamp", "lamp", 7])
    ),
    "A position beyond the page": events(event("exposure", request_id="second", items=["hat"], offset=9)),
    "A click of another user": events(event(user_id=NEIGHBOUR)),
    "A click of another user, whose partition is another": events(event(user_id=STRANGER)),
    "An exposure of another user": events(event("exposure", request_id="second", user_id=NEIGHBOUR)),
    "A purchase without a click": events(event("purchase")),
    "An event under another user's key": events(event(), keys=(STRANGER.encode(),), http=False),
    "An event without a key": events(event(), keys=(b"",), http=False),
    "An event without a value": Case(EVENTS, (None,), (ANN.encode(),), http=False),
}


def served(request: str) -> bytes:
    """A page of four items for ann."""
    layout, items = SCHEMA.layout, [*SHOWN, "hat"]
    n = len(items)
    return msgspec.msgpack.encode(
        {
            "request_id": request, "ts_ms": SEEN_MS, "user_id": ANN, "arm": "model", "model_version": 3,
            "schema_id": SCHEMA.id, "items": items, "scores": bytes(4 * n), "cat": bytes(8 * n * layout.F),
            "num": bytes(4 * n * layout.N), "keys": np.arange(1, n * layout.K + 1, dtype="<u8").tobytes(),
        }
    )  # fmt: skip


SEEN = msgspec.json.encode(event("exposure", event_id="seen", ts_ms=SEEN_MS))


def rows() -> dict[str, tuple[str, str]]:
    """The page's table: HTTP's and Kafka's column by mistake."""
    text = PAGE.read_text().partition("## Mistakes")[2]
    found = {}
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE):
        mistake, http, kafka, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", f"{line} "))
        if mistake != "mistake" and not mistake.startswith("---"):
            found[mistake] = (http.replace("`", ""), kafka.replace("`", ""))
    return found


ROWS = rows()


def test_the_page_has_a_row_for_each_case_and_no_other() -> None:
    assert list(ROWS) == list(CASES)


# -- by HTTP ------------------------------------------------------------------------------------------------------


class IntakeDouble:
    """The intake without sockets and Kafka: whatever is taken is kept at once."""

    def __init__(self) -> None:
        self.reader = LineReader(SCHEMA, POLICY.ahead_ms)
        self.keeper = Keeper(
            lambda topic, key: (topic, 0 if topic == ITEMS else kafka_partition(key, PARTITIONS)),
            value_hash,
            1000,
            POLICY.life_ms,
            POLICY.disorder_ms,
            IdMemory(100),
        )

    def send(self, read: Callable[[], Line]) -> str:
        try:
            line: Line | Verdict = read()
        except BadEventError as error:
            return f"refused {error.reason}"
        parcel = Parcel(lambda: None)
        for lane in self.keeper.admit(parcel, [line]):
            self.keeper.kept(lane, self.keeper.take(lane, 1 << 20))
        (verdict,) = parcel.verdicts
        assert verdict is not None
        return f"{verdict.status} {verdict.reason}" if isinstance(verdict.reason, str) else verdict.status


@pytest.mark.parametrize("mistake", CASES)
def test_by_http(mistake: str) -> None:
    case, intake = CASES[mistake], IntakeDouble()
    if not case.http:
        assert ROWS[mistake][0] == "", "the intake cannot be sent this"
        return
    what: What = {EVENTS: "events", USERS: "users", ITEMS: "items"}[case.topic]  # type: ignore[assignment]
    intake.send(partial(intake.reader.read, "events", SEEN, NOW_MS, NOW_MS))
    said = []
    for n, value in enumerate(case.values):
        key = (case.keys or (b"",))[n] if value is None else b""
        if value is None:
            said.append(intake.send(partial(intake.reader.removal, what, (key or b"").decode())))
        else:
            said.append(intake.send(partial(intake.reader.read, what, value, NOW_MS, NOW_MS)))
    assert said[-1] == ROWS[mistake][0]
    if said[-1].startswith("refused"):
        assert set(said) == {said[-1]}, "each of the row's messages"


# -- by Kafka -----------------------------------------------------------------------------------------------------


class Loop:
    """What reads events, users and items, without Kafka."""

    def __init__(self, folder: Path) -> None:
        self.partitions = [Partition(n, SCHEMA, POLICY, PARTITIONS, settles=True) for n in range(PARTITIONS)]
        self.lists, self.intake = ShopLists(SCHEMA), Intake(SCHEMA)
        self.folder = folder
        self.offsets: dict[tuple[str, int], int] = {}
        self.outputs: list[StepOutput] = []
        self.dead_letters: list[DeadLetter] = []
        self.warnings: list[ProfileWarning] = []

    def send(self, topic: str, key: bytes | None, value: bytes | None) -> tuple[str, int, int]:
        """Takes a message as Kafka's default partitioner places it; returns its place."""
        number = 0 if topic == ITEMS or not key else kafka_partition(key, PARTITIONS)
        if topic != ITEMS and not key:
            number = (HOME + 1) % PARTITIONS  # anywhere
        offset = self.offsets.get((topic, number), 0)
        self.offsets[topic, number] = offset + 1
        if topic == ITEMS:
            self._item(key, value, offset)
        else:
            self._done(self.partitions[number].take([message_of(topic, offset, key, value)], NOW_MS))
        return topic, number, offset

    def end(self) -> None:
        for partition in self.partitions:
            self._done(partition.advance(NOW_MS + DAY))

    def _done(self, output: StepOutput) -> None:
        self.outputs.append(output)
        self.dead_letters += output.dead
        self.warnings += output.warnings

    @cached_property
    def scorer(self) -> tuple[ItemFeed, ScorerMeters]:
        items, _, meters, _ = feed(ItemFeed, self.folder)
        return items, meters

    def _item(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        record = SimpleNamespace(topic=ITEMS, partition=0, offset=offset, key=key, value=value)
        dead_letter = take(self.lists, self.intake, record, ProfileChecks(SCHEMA), self.warnings)
        items, meters = self.scorer
        before = meters.errors["item"]
        items.take_all([FeedRecord(key, value, offset)])
        assert (meters.errors["item"] > before) == (dead_letter is not None), "usable for lists and scorer, or for none"
        self.dead_letters += [] if dead_letter is None else [dead_letter]


def message_of(topic: str, offset: int, key: bytes | None, value: bytes | None) -> InputMessage:
    return InputMessage(topic, offset, value or b"", key=key if value is None and topic == USERS else None)


@pytest.mark.parametrize("mistake", CASES)
def test_by_kafka(mistake: str, tmp_path: Path) -> None:
    case, loop = CASES[mistake], Loop(tmp_path)
    for request in ("page", "second"):
        loop.send(PAGE_LOGS, key_of(ANN), served(request))
    loop.send(EVENTS, key_of(ANN), SEEN)
    if case.topic == ITEMS:
        loop.send(ITEMS, b"vase", msgspec.json.encode({"item_id": "vase", "attributes": {"category": "shoes"}}))
    before = len(loop.outputs)
    places = set()
    for n, value in enumerate(case.values):
        key = None if case.keys is None else case.keys[n]
        places.add(loop.send(case.topic, key_for(case.topic, value) if key is None else key, value))
    duplicates = sum(output.counts.get("duplicates", 0) for output in loop.outputs[before:])
    loop.end()
    dead_letters = [
        dead_letter
        for dead_letter in loop.dead_letters
        if (dead_letter.topic, dead_letter.partition, dead_letter.offset) in places
    ]
    assert len(dead_letters) == len(loop.dead_letters), "nothing else is harmed"
    said = sorted({f"dead letter {dead_letter.reason}" for dead_letter in dead_letters})
    if dead_letters:
        assert len(dead_letters) == len(case.values), "each of the row's messages"
    else:
        warnings = sorted({f"warning {warning.kind}" for warning in loop.warnings})
        said = ["duplicate" if duplicates else "taken", *warnings]
    assert ", ".join(said) == ROWS[mistake][1]
    reported_and_counted(
        loop,
        {dead_letter.reason for dead_letter in dead_letters},
        {warning.kind for warning in loop.warnings},
        duplicates,
    )


def key_for(topic: str, value: bytes | None) -> bytes:
    """The right key of a message, as far as that can be told."""
    try:
        body = msgspec.json.decode(value or b"")
        return str(body["item_id" if topic == ITEMS else "user_id"]).encode() or ANN.encode()
    except (msgspec.DecodeError, KeyError):
        return ANN.encode()


def reported_and_counted(loop: Loop, reasons: set[str], warnings: set[str], duplicates: int) -> None:
    """None of it ends in silence: a figure rises, and the log has a line with the remedy."""
    # The outlet counts those of items.
    names = [("millrace_dead_letters_total", "reason", r) for r in reasons if r != "bad-item"]
    names += [("millrace_profile_warnings_total", "kind", kind) for kind in warnings if kind in of_users(loop)]
    before = [figure(name, **{label: value}) for name, label, value in names]
    dropped = figure("millrace_duplicates_dropped_total")
    for output in loop.outputs:
        stream_metrics.count(output)
    for (name, label, value), was in zip(names, before, strict=True):
        assert figure(name, **{label: value}) > was
    assert figure("millrace_duplicates_dropped_total") == dropped + duplicates
    problems = ProblemLog()
    with structlog.testing.capture_logs() as lines:
        problems.note(loop.dead_letters, loop.warnings)
        problems.write(0.0)
    assert {line["reason"] for line in lines if "reason" in line} == reasons
    assert {line["kind"] for line in lines if "kind" in line} == warnings
    for line in lines:
        assert line["example"]
        assert line["remedy"] == (REASONS.get(line.get("reason", "")) or WARNINGS[line["kind"]]).mend


def of_users(loop: Loop) -> Iterator[str]:
    return (warning.kind for output in loop.outputs for warning in output.warnings)
