# shell
"""Users and items that a history left in the store: published once, when the loop that goes on from it first starts.

::

    history/profiles     users and items of a log, one message a line     ──► topics users, items
    history/published    the ids of the topics that have them                  what a topic knows already stays

Published again, to topics of other ids (a broker that was emptied), they change nothing that the shop has said
meanwhile: a user or item of which the topic has a message is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
import zstandard

from millrace.contracts.errors import BrokerError
from millrace.contracts.events import Item, User, key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.store import AbsentError, Store
from millrace.contracts.topics import ITEMS, USERS
from millrace.processes.kafka import REMEDY, make_producer, read_all, topic_ids

log = structlog.get_logger("history")

PLACE, _PROFILES, _PUBLISHED = "history", "profiles", "published"
_FLUSH_SECONDS = 60.0


class _Profiles(msgspec.Struct):
    users: list[User]
    items: list[Item]


class _Told(msgspec.Struct):
    topics: dict[str, str]  # ids by name


def leave_profiles(store: Store, users: Sequence[User], items: Sequence[Item]) -> None:
    """Puts users and items into the store, for the loop's first start.

    Raises:
        StoreError: they could not be written.
    """
    body = msgspec.msgpack.encode(_Profiles(list(users), list(items)))
    head = {"users": len(users), "items": len(items), "bytes": len(body)}
    store.put(_PROFILES, head, zstandard.ZstdCompressor().compress(body))


def publish_profiles(settings: Settings) -> int:
    """Publishes what :func:`leave_profiles` left, if the topics do not have it; returns how many messages that took.

    Raises:
        BrokerError: the broker does not answer.
        DamagedError, StoreError: the store cannot be read or written.
    """
    if not (settings.store or settings.data):
        return 0
    store = Store(settings.place(PLACE), writes=False)
    if _PROFILES not in store.names():
        return 0
    ids = topic_ids(settings)
    now = {name: ids.get(name, "") for name in (USERS, ITEMS)}
    try:
        if msgspec.json.decode(store.get(_PUBLISHED)[0], type=_Told).topics == now:
            return 0
    except AbsentError:
        pass
    head, body, _ = store.get(_PROFILES)
    size = msgspec.json.decode(head)["bytes"]
    found = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(body, max_output_size=size), type=_Profiles)
    sent = []
    producer = make_producer(settings)
    try:
        for topic, messages in (
            (USERS, [(key_of(user.user_id), to_json(user)) for user in found.users]),
            (ITEMS, [(key_of(item.item_id), to_json(item)) for item in found.items]),
        ):
            known: set[bytes | None] = set()

            def note(record: Any, known: set[bytes | None] = known) -> None:
                known.add(record.key)

            read_all(settings, topic, note)
            for key, value in messages:
                if key not in known:
                    sent.append(producer.send(topic, value, key=key))
        try:
            producer.flush(timeout=_FLUSH_SECONDS)
            for message in sent:
                message.get(timeout=_FLUSH_SECONDS)  # raises for one that the broker refused
        except Exception as error:  # the client has several of its own
            raise BrokerError(
                f"broker '{settings.kafka}' took not all users and items of the history", REMEDY
            ) from error
    finally:
        producer.close(timeout=5)
    Store(settings.place(PLACE)).put(_PUBLISHED, _Told(now))
    log.info(
        "users and items of the history are published", users=len(found.users), items=len(found.items), sent=len(sent)
    )
    return len(sent)
