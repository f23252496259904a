"""A user is deleted: what the stream had of it goes and stays gone, and every exposure still has its label."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from millrace.basics.hashing import kafka_partition
from millrace.contracts.events import key_of
from millrace.contracts.schema import Schema, parse_schema
from millrace.contracts.settings import Settings
from stream.join.join import InputMessage
from stream.partition import journal
from stream.partition.counters import Changes
from stream.partition.journal import Journal
from stream.partition.partition import Partition
from stream.worker import stream_output
from tests.scenes.stream_world import (
    HOUR,
    MINUTE,
    POLICY,
    SCHEMA,
    T0,
    Sum,
    action,
    exposure,
    keys_of,
    page_log,
    resumed,
)

AGED = parse_schema(
    """
    name = "aged"
    fields = [{ name = "user_id", of = "user" }, { name = "age", of = "user" }, { name = "item_id", of = "item" }]
    [windows]
    days = [1]
    actions = ["exposure", "click"]
    keys = [{ columns = ["age"] }, { columns = ["user_id"] }]
    """
)
"""A key of many users, and one of one user."""


class Story:
    """Messages to a partition, with offsets; a page an hour. The clock is that of the newest message."""

    def __init__(self, schema: Schema = SCHEMA, number: int = 0, partitions: int | None = None) -> None:
        self.partition = Partition(number, schema, POLICY, partitions)
        self.out, self.messages = Sum(), list[InputMessage]()
        self.now_ms = T0
        self._offsets: Counter[str] = Counter()

    def take(self, topic: str, raw: bytes, key: bytes | None = None) -> Story:
        self.messages.append(InputMessage(topic, self._offsets[topic], raw, self.now_ms, key))
        self._offsets[topic] += 1
        self.out += self.partition.take(self.messages[-1:], self.now_ms)
        return self

    def page(self, name: str, user: int = 7, after_ms: int = MINUTE, **values: Any) -> Story:
        self.now_ms += after_ms
        self.take("page_logs", page_log(name, self.now_ms, [11, 12], user=user, **values))
        return self.take("events", exposure(name, self.now_ms, [11, 12], user_id=user))

    def click(self, name: str, position: int = 0, user: int = 7) -> Story:
        self.now_ms += 1000
        return self.take("events", action("click", name, self.now_ms, position, 11 + position, user_id=user))

    def profile(self, user: int = 7, **attributes: Any) -> Story:
        return self.take("users", msgspec.json.encode({"user_id": user, "attributes": attributes}))

    def forget(self, user: int | str = 7) -> Story:
        self.now_ms += 1000
        return self.take("users", b"", str(user).encode())

    def end(self) -> Sum:
        self.now_ms += 10 * HOUR
        self.out += self.partition.advance(self.now_ms)
        return self.out

    def counts(self, user: int = 7) -> Any:
        """Of the item, and of user and item: exposures and clicks of the item 11 in the last week."""
        keys = keys_of(user, [11])[0]
        return self.partition.windows.counts(keys, self.now_ms + HOUR)[:, 1, :2].tolist()

    def whole(self) -> tuple[dict[str, int], dict[str, bytes]]:
        """What a Redis that lost its data would be filled with: how many tile lists, and last clicks, by user."""
        tiles: dict[str, int] = {}
        recents: dict[str, bytes] = {}
        for some in self.partition.whole():
            tiles |= {str(user): len(lists) for user, lists in some.users}
            recents |= {str(user): value for user, value in some.recents}
        return tiles, recents


def redis_of(reported: list[Changes]) -> dict[str, dict[Any, Any]]:
    """The hashes that publications leave, written as the outlet writes them."""
    there: dict[str, dict[Any, Any]] = {}
    for changes in reported:
        for gone in changes.forgotten:
            there.pop(gone, None)
        for user, lists in changes.users:
            there.setdefault(str(user), {}).update(lists)
        for user, value in changes.recents:
            there.setdefault(str(user), {})["recent"] = value
        for profile in changes.profiles:
            there.setdefault(str(profile.user_id), {})["profile"] = profile.attributes
    return {user: kept for user, held in there.items() if (kept := {k: v for k, v in held.items() if v})}


def balanced(story: Story) -> None:
    """Every exposure has one label or a dead letter."""
    out = story.end()
    labels = out.counts["samples.negative"] + out.counts["samples.positive"]
    assert out.counts["exposures"] == labels + out.lost
    assert story.partition.pending == 0


def test_what_is_the_users_goes_and_what_is_the_items_stays() -> None:
    story = Story().page("a").click("a").page("b", 8).click("b", user=8).profile(country="de")
    reported = [story.partition.changes()]
    assert set(redis_of(reported)) == {"7", "8"}
    story.forget()
    assert (story.counts(7), story.counts(8)) == ([[2, 2], [0, 0]], [[2, 2], [1, 1]])
    reported.append(story.partition.changes())
    assert reported[-1].forgotten == {"7": []}
    assert set(redis_of(reported)) == {"8"}
    tiles, recents = story.whole()
    assert (set(tiles), set(recents)) == ({"8"}, {"8"})
    assert story.partition.changes().forgotten == {}
    balanced(story)


def test_a_profile_that_nobody_reported_is_not_published() -> None:
    story = Story().profile(country="de").forget()
    changes = story.partition.changes()
    assert (changes.forgotten, changes.profiles) == ({"7": []}, [])
    assert story.profile(country="fr").partition.changes().profiles[0].attributes == {"country": "fr"}


def test_guests_that_only_an_unreported_profile_names_are_told_with_the_deletion() -> None:
    """Redis does not know them, so nobody else could delete them."""
    story = Story().take("users", msgspec.json.encode({"user_id": 7, "attributes": {}, "sessions": ["g1", 8]})).forget()
    story.take("users", msgspec.json.encode({"user_id": 7, "attributes": {}, "sessions": ["g2"]})).forget()
    assert story.partition.changes().forgotten == {"7": ["g1", 8, "g2"]}
    assert story.forget().partition.changes().forgotten == {"7": []}


def test_pages_of_before_get_their_labels_and_count_for_nobody() -> None:
    """Also those whose exposure, or page log, comes only then."""
    story = Story().page("a")
    story.now_ms += 1
    seen_later, made_later = story.now_ms, story.now_ms + 1
    story.take("page_logs", page_log("b", seen_later, [11, 12]))
    story.take("events", exposure("c", made_later, [11, 12]))
    story.forget()
    story.take("events", exposure("b", seen_later, [11, 12]))
    story.take("page_logs", page_log("c", made_later, [11, 12]))
    for name in ("a", "b", "c"):
        story.click(name)
    assert story.counts() == [[3, 3], [0, 0]]
    assert redis_of([story.partition.changes()]) == {}
    assert story.whole() == ({}, {})
    assert story.out.counts["samples.positive"] == 3
    balanced(story)


def test_who_comes_again_begins_with_nothing() -> None:
    story = Story().page("a").click("a").forget().page("b").click("b").click("a", 1)
    assert story.counts() == [[2, 2], [1, 1]]
    assert set(redis_of([story.partition.changes()])["7"]) == {int(keys_of(7, [i])[0, 1]) for i in (11, 12)} | {
        "recent"
    }
    balanced(story)


def test_the_memory_of_a_deletion_ends_when_no_page_of_before_is_left() -> None:
    story = Story().page("a").forget()
    assert len(story.partition.counters._forgotten) == 1
    story.page("b", 8, after_ms=2 * POLICY.life_ms + HOUR)
    assert story.partition.counters._forgotten == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_what_came_before_the_tombstone_goes_whatever_its_own_time(at_once: bool) -> None:
    """A page may be some minutes ahead of the clock."""
    ahead_ms = T0 + 10 * MINUTE
    messages = [
        InputMessage("page_logs", 0, page_log("a", ahead_ms, [11, 12]), T0),
        InputMessage("events", 0, exposure("a", ahead_ms, [11, 12]), T0),
        InputMessage("events", 1, action("click", "a", ahead_ms + 1, 0, 11), T0),
        InputMessage("users", 0, b"", T0, b"7"),
    ]
    partition = Partition(0, SCHEMA, POLICY)
    for part in [messages] if at_once else [[m] for m in messages]:
        partition.take(part, T0)
    assert redis_of([partition.changes()]) == {}
    assert [*partition.whole()] == []


def plain(partition: Partition) -> Any:
    """A partition's state, whatever the order of its tables."""
    head = msgspec.msgpack.decode(partition.snapshot().to_bytes())
    tiles = head.pop("tiles")
    keys = np.sort(np.frombuffer(tiles["keys"], "<u8"))
    return head, keys.tolist(), partition.windows.export(keys)


def long_story() -> Story:
    story = Story().page("a").page("x", 8).click("a").page("b").click("x", user=8).profile(country="de")
    story.forget().click("b").page("c").click("c").forget(8).page("d", 8).forget(9)
    return story


def test_how_messages_are_cut_into_batches_changes_nothing() -> None:
    story, once = long_story(), Partition(0, SCHEMA, POLICY)
    out = Sum()
    out += once.take(story.messages, story.now_ms)
    assert plain(once)[1:] == plain(story.partition)[1:]
    assert (sorted(out.samples), out.counts) == (sorted(story.out.samples), story.out.counts)
    mine, theirs = once.changes(), story.partition.changes()
    assert redis_of([mine]) == redis_of([theirs])
    assert mine.forgotten == theirs.forgotten
    assert sorted(mine.item_keys.tolist()) == sorted(theirs.item_keys.tolist())


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("at", range(0, 22, 3))
def test_checkpoint_and_journal_know_it_to_the_bit(at: int, reported: bool) -> None:
    story = long_story()
    before, after = Partition(0, SCHEMA, POLICY), story.messages[at:]
    before.take(story.messages[:at], story.now_ms)
    if reported:
        before.changes()
    again = resumed(before.snapshot().to_bytes())
    before.journal = Journal()
    for message in after:
        before.take([message], story.now_ms)
        if reported:
            before.changes()
    again.replay(journal.from_bytes(journal.to_bytes(before.journal.cut().entries)))
    assert plain(again) == plain(before)
    mine, theirs = before.changes(), again.changes()
    assert (mine.forgotten, mine.users, mine.recents) == (theirs.forgotten, theirs.users, theirs.recents)


def test_a_window_that_many_users_share_stays() -> None:
    """Whoever changes it next is told of it: the deleted user's hash has it no longer."""

    def made(name: str, user: int) -> dict[str, Any]:
        layout = AGED.layout
        keys = np.array([[5, 100 + user]] * 2, "<u8").tobytes()
        return {
            "schema_id": AGED.id,
            "keys": keys,
            "cat": bytes(8 * 2 * layout.F),
            "num": bytes(4 * 2 * layout.N),
        }

    story = Story(AGED).page("a", 7, **made("a", 7)).page("b", 8, **made("b", 8))
    reported = [story.partition.changes()]
    story.page("c", 7, **made("c", 7)).forget()
    counts = story.partition.windows.counts(np.array([5, 107, 108], np.uint64), story.now_ms + HOUR)
    assert counts[:, 0, 0].tolist() == [6, 0, 2]
    reported.append(story.partition.changes())
    assert set(redis_of(reported)) == {"8"}
    story.page("d", 8, **made("d", 8))
    reported.append(story.partition.changes())
    assert set(redis_of(reported)["8"]) == {5, 108}
    assert story.whole()[0] == {"8": 2}


@pytest.mark.parametrize("key", [b"", b"\xff\xfe"])
def test_a_tombstone_without_a_usable_key_is_a_dead_letter(key: bytes) -> None:
    story = Story().page("a").take("users", b"", key)
    assert [(dead_letter.reason, "key" in dead_letter.detail) for dead_letter in story.out.dead] == [("bad-user", True)]
    assert story.out.counts["forgotten"] == 0


def test_a_tombstone_in_another_partition_takes_nothing_back() -> None:
    number = 1 - kafka_partition(key_of(7), 2)
    story = Story(number=number, partitions=2).forget()
    assert [(dead_letter.reason, dead_letter.raw) for dead_letter in story.out.dead] == [("wrong-partition", b"7")]
    assert story.partition.changes().forgotten == {}


def test_an_empty_redis_is_filled_without_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Read(msgspec.Struct):
        key: bytes
        value: bytes | None
        partition: int = 0

    user = [msgspec.json.encode({"user_id": n, "attributes": {"n": n}}) for n in range(3)]
    records = [Read(b"0", user[0]), Read(b"1", user[1]), Read(b"1", None), Read(b"2", None), Read(b"2", user[2])]
    monkeypatch.setattr(stream_output, "read_all", lambda settings, topic, visit: [visit(r) for r in records])
    assert [u.user_id for u in stream_output.profiles_of(Settings(), SCHEMA, 0)] == [0, 2]
