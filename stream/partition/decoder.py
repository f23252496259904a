# core
"""Reads the page logs of one partition by a schema, and checks whether a user belongs to it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.basics.hashing import kafka_partition, value_hash
from millrace.contracts.carry import Carry, former
from millrace.contracts.events import Id, key_of
from millrace.contracts.page_logs import PageView, decode_served
from millrace.contracts.schema import Schema
from stream.join.page_rows import LoggedPage

_KNOWN = 1_000_000  # ids remembered of each kind


class Decoder:
    """What it remembers makes it quicker and changes no result.

    Args:
        number: the partition's.
        partitions: how many there are; None: every user belongs here.
        history: the schemas that were used one after another. Pages that were logged under one before ``schema`` are
            carried over.
    """

    def __init__(self, schema: Schema, number: int, partitions: int | None, history: tuple[Schema, ...]) -> None:
        layout = schema.layout
        self.number, self.partitions, self.schema_id = number, partitions, schema.id
        self.shape = (layout.F, layout.N, layout.K)
        self.former = {id: Carry(old, schema) for id, old in former(history, schema).items()}
        self.own: set[Id] = set()  # users known to belong to this partition
        self._item_hashes: dict[Id, bytes] = {}
        self._user_hashes: dict[Id, int] = {}

    def page(self, raw: bytes) -> tuple[str, LoggedPage]:
        """The request of a page log, and its page.

        Raises:
            ValueError: the message cannot be read, or is of neither the schema nor an earlier one.
        """
        served = self.served(raw)
        users, items = self._user_hashes, self.hashes(served.items)
        user = users.get(served.user_id)
        if user is None:
            if len(users) > _KNOWN:
                users.clear()
            user = users[served.user_id] = value_hash(served.user_id)
        return served.request_id, LoggedPage(served, raw, user, items, self.shape)

    def served(self, raw: bytes) -> PageView:
        """A page log under the present schema. Raises ValueError as :meth:`page` does, but for arrays of another
        shape."""
        served = decode_served(raw)
        if served.schema_id == self.schema_id:
            return served
        carry = self.former.get(served.schema_id)
        if carry is None:
            raise ValueError(f"schema {served.schema_id}, not {self.schema_id}")
        return carry.page(served)

    def hashes(self, items: Sequence[Id]) -> bytes:
        """Value hashes of items, as samples carry them."""
        known = self._item_hashes
        try:
            return b"".join(map(known.__getitem__, items))
        except KeyError:
            if len(known) > _KNOWN:
                known.clear()
            for item in items:
                if item not in known:
                    known[item] = value_hash(item).to_bytes(8, "little")
            return b"".join(map(known.__getitem__, items))

    def astray(self, user: Id) -> str:
        """Why a message about the user is in the wrong partition; empty when it is in the right one."""
        if self.partitions is None or user in self.own:
            return ""
        key = key_of(user)
        home = kafka_partition(key, self.partitions)
        if home == self.number:
            if len(self.own) > _KNOWN:
                self.own.clear()
            self.own.add(user)
            return ""
        return (
            f"user {user!r} came in partition {self.number}, but belongs to partition {home} of {self.partitions}; "
            f"send with the key {key.decode()!r} and Kafka's default partitioner (murmur2)"
        )
