# core
"""Who asks: the user's record in the online store, as ranking reads it, and what is said of a user of whom little is
known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from millrace.contracts.events import Id
from millrace.windows.features import FeatureBuilder
from scorer.page import ranked
from scorer.page.rank import User
from scorer.users.userrecord import Record


class Store(ranked.Store, Protocol):
    """Where users and the shop's lists are looked up; see :class:`scorer.users.store.OnlineReader`. None: it is
    away."""

    async def record(self, user_id: Id) -> Record: ...

    async def list_keys(self) -> list[str] | None: ...

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None: ...


class Meters(Protocol):
    """Where it is counted; see :class:`scorer.ipc.meters.ScorerMeters`."""

    def error(self, what: str) -> None: ...

    def user_read(self, found: str) -> None: ...

    def list_page(self) -> None: ...

    def part(self, kind: str) -> None: ...

    def items(self, sources: bytes) -> None: ...

    def filtered(self, filled: str) -> None: ...


async def look_up(store: Store, builder: FeatureBuilder, meters: Meters, user_id: Id) -> tuple[User, list[str]]:
    """The user, and what was missing, in words for the answer. An unknown user is served as a new one."""
    record = await store.record(user_id)
    meters.user_read(record.found)
    user = User.of(builder, user_id, record.fields, record.lacking)
    said = record.note(user_id)
    notes = [said] if said else []
    if user.damaged:
        meters.error("profile")
        notes.append(f"the stored profile of user {user_id!r} is damaged: served without it")
    if user.forgotten:
        meters.error("recent")
        notes.append(f"the stored last clicks of user {user_id!r} are damaged: served without them")
    return user, notes
