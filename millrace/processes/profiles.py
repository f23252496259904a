# shell
"""Users and items that a history left in the store: published when its loop starts for the first time.

::

    history/profiles     users and items of a log, until they are published    ──► topics users, items
    history/partitions   number of partitions of its counts                        a loop of another number is refused
    history/unfinished   a replay is at work, or was killed                    no role of a loop starts on that
    history/writing      ... and it has begun to write

``history/profiles`` is removed after the publication. A copy of our own would survive a user's deletion, and bring the
user back after the topic lost the tombstone.

A user or item with a message in the topic is left out. The shop may send a message between our check of the topic and
our own message, and several workers may publish at the same time. So our messages have a header, and we check again
after them: where ours follows the shop's own, the shop's is sent again, until no such case remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
import zstandard

from millrace.basics.errors import BrokerError, SettingError, StoreError
from millrace.basics.store import AbsentError, Store
from millrace.contracts.events import Item, User, key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, ITEMS, USERS
from millrace.processes.kafka import REMEDY, make_producer, make_reader, read_all

log = structlog.get_logger("history")

PLACE, _PROFILES, _PARTITIONS = "history", "profiles", "partitions"
UNFINISHED, WRITING = MARKS = "unfinished", "writing"
"""The marks of an unfinished history (:mod:`millrace.commands.history.attempt`)."""
STATE = ("checkpoints", "models", "index", PLACE)
"""Folders of the store with the state of a loop, or of a history left for one."""
HEADER = ("millrace-history", b"1")  # marks our messages: the shop's own have no such header
_FLUSH_SECONDS = 60.0


class _Profiles(msgspec.Struct):
    users: list[User]
    items: list[Item]


class _Partitions(msgspec.Struct):
    number: int


def leave_partitions(store: Store, number: int) -> None:
    """Stores the history's number of partitions, which decides the users that a partition has counted. Raises
    StoreError."""
    store.put(_PARTITIONS, _Partitions(number))


def leave_profiles(store: Store, users: Sequence[User], items: Sequence[Item]) -> None:
    """Puts users and items into the store, for the loop's first start. Raises StoreError."""
    body = msgspec.msgpack.encode(_Profiles(list(users), list(items)))
    head = {"users": len(users), "items": len(items), "bytes": len(body)}
    store.put(_PROFILES, head, zstandard.ZstdCompressor().compress(body))


def lived(settings: Settings) -> str:
    """The name of a file of a loop's state; empty: there is none. Raises StoreError."""
    for place in STATE:
        for name in Store(settings.place(place), writes=False).names(aside=True):
            if place != PLACE or name not in MARKS:
                return f"{place}/{name}"
    return ""


def check_whole(settings: Settings) -> None:
    """Refuses a store of an unfinished replay. The replay would find a role's first file there, and fail. Every role
    with state in the store calls this before anything else. Raises StoreError."""
    if not (settings.store or settings.data):
        return
    names = Store(settings.place(PLACE), writes=False).names()
    # Before ``writing`` a replay has written nothing: the files there are a loop's own, and no replay will add to them.
    if UNFINISHED in names and (WRITING in names or not lived(settings)):
        raise StoreError(
            f"the history in '{settings.store or settings.data}' is not whole",
            "wait for 'millrace log bootstrap' to end; if it was killed, run it again, or name an empty folder",
        )


def publish_profiles(settings: Settings) -> int:
    """Publishes the files of :func:`leave_profiles`, and removes them; returns the number of messages.

    Each start of the stream calls it. Another worker may do the same at the same time.

    Raises:
        BrokerError: the broker does not answer.
        DamagedError, StoreError: the store cannot be read or written, or the history in it is not whole.
        SettingError: the history is for another number of partitions.
    """
    if not (settings.store or settings.data):
        return 0
    check_whole(settings)  # again: the role has warmed up since its first check
    store = Store(settings.place(PLACE), writes=False)
    names = store.names()
    if _PARTITIONS in names:
        _check_partitions(settings, msgspec.json.decode(store.get(_PARTITIONS)[0], type=_Partitions).number)
    try:
        head, body, _ = store.get(_PROFILES)
    except AbsentError:
        return 0
    size = msgspec.json.decode(head)["bytes"]
    found = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(body, max_output_size=size), type=_Profiles)
    sent = 0
    producer = make_producer(settings)
    try:
        for topic, messages in (
            (USERS, {key_of(user.user_id): to_json(user) for user in found.users}),
            (ITEMS, {key_of(item.item_id): to_json(item) for item in found.items}),
        ):
            while lacking := _lacking(settings, topic, messages):
                _send(settings, producer, topic, lacking)
                sent += len(lacking)
    finally:
        producer.close(timeout=5)
    Store(settings.place(PLACE)).remove([_PROFILES])
    log.info("users and items of the history are published", users=len(found.users), items=len(found.items), sent=sent)
    return sent


def _check_partitions(settings: Settings, left: int) -> None:
    consumer = make_reader(settings, EVENTS)
    found = len(consumer.assignment())
    consumer.close()
    if found != left:
        raise SettingError(
            f"the history in '{settings.store or settings.data}' was left for {left} partitions, topic"
            f" '{settings.topic(EVENTS)}' at '{settings.kafka}' has {found}",
            f"use topics of {left} partitions (MILLRACE_PARTITIONS creates them, MILLRACE_PREFIX names others), or"
            " replay the log once more into an empty folder with MILLRACE_PARTITIONS set to what it is now",
        )


def _lacking(settings: Settings, topic: str, messages: Mapping[bytes, bytes]) -> dict[bytes, bytes | None]:
    """The messages to send, by key: ours where there is none, the shop's own where ours came after it."""
    newest: dict[bytes, bytes | None] = {}
    shops: dict[bytes, bytes | None] = {}

    def note(record: Any) -> None:
        if record.key in messages:
            newest[record.key] = record.value
            if HEADER not in record.headers:
                shops[record.key] = record.value

    read_all(settings, topic, note)
    overtaken = {key: value for key, value in shops.items() if newest[key] != value}
    return {**{key: value for key, value in messages.items() if key not in newest}, **overtaken}


def _send(settings: Settings, producer: Any, topic: str, messages: Mapping[bytes, bytes | None]) -> None:
    try:
        sent = [producer.send(topic, value, key=key, headers=[HEADER]) for key, value in messages.items()]
        producer.flush(timeout=_FLUSH_SECONDS)
        for message in sent:
            message.get(timeout=_FLUSH_SECONDS)  # raises for one that the broker refused
    except Exception as error:  # the client has several of its own
        raise BrokerError(f"broker '{settings.kafka}' took not all users and items of the history", REMEDY) from error
