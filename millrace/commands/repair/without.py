# core
"""What a repair leaves out: rows of some users, items or arms, or of exposures of some time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from millrace.basics.hashing import value_hash
from millrace.contracts.events import ARMS
from millrace.contracts.samples import SampleBatch
from millrace.reports.spans import span_ms

Hashes = NDArray[np.uint64]

_HASH = re.compile(r"#([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Without:
    """Rows to be left out: those of the named users, items, arms or interval. Without names, every row stays.

    A match depends on the row's own fields. So an exposure's correction goes where its negative goes, and a sample
    that came twice goes twice, as if neither had ever been on the topic.
    """

    users: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))  # value hashes of the ids
    items: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    arms: tuple[int, ...] = ()  # codes, see events.ARMS
    interval: tuple[int, int] | None = None  # exposures from then (ms, included) to then (ms, not included)

    def rows(self, batch: SampleBatch, counts: Counter[str] | None = None) -> NDArray[np.bool_]:
        """The rows to be left out, (B,). ``counts``: takes how many rows each of "users", "items", "arms" and
        "interval" meets."""
        out = np.zeros(len(batch), np.bool_)
        for name, met in self._met(batch):
            if counts is not None:
                counts[name] += int(met.sum())
            out |= met
        return out

    def _met(self, batch: SampleBatch) -> Iterable[tuple[str, NDArray[np.bool_]]]:
        if len(self.users):
            yield "users", np.isin(batch.user, self.users)
        if len(self.items):
            yield "items", np.isin(batch.item, self.items)
        if self.arms:
            yield "arms", np.isin(batch.arm, self.arms)
        if self.interval is not None:
            yield "interval", (batch.ts_ms >= self.interval[0]) & (batch.ts_ms < self.interval[1])

    def __bool__(self) -> bool:
        return bool(len(self.users) or len(self.items) or self.arms or self.interval)

    def told(self) -> dict[str, Any]:
        """The same for a manifest, JSON-able. Long lists are given by their length."""
        found: dict[str, Any] = {}
        for name, hashes in (("users", self.users), ("items", self.items)):
            if len(hashes):
                found[name] = [shown(h) for h in hashes.tolist()] if len(hashes) <= 20 else len(hashes)
        if self.arms:
            found["arms"] = [ARMS[code] for code in self.arms]
        if self.interval is not None:
            found["interval_ms"] = list(self.interval)
        return found


def ids_of(texts: Iterable[str]) -> Hashes:
    """Value hashes of ids. An id known only by its hash is written as :func:`shown` does.

    >>> ids_of(["7", " #00000000000000ff"]).tolist() == [value_hash(7), 255]
    True
    """
    parts = dict.fromkeys(text.strip() for text in texts)
    return np.array([_hash_of(part) for part in parts if part], np.uint64)


def _hash_of(text: str) -> int:
    found = _HASH.fullmatch(text)
    return int(found[1], 16) if found else value_hash(text)


def shown(hashed: int) -> str:
    """A value hash as :func:`ids_of` reads it.

    >>> shown(255)
    '#00000000000000ff'
    """
    return f"#{hashed:016x}"


def arms_of(text: str) -> tuple[int, ...]:
    """Codes of arms, by names with commas.

    Raises:
        SettingError: there is no such arm.

    >>> arms_of("control")
    (1,)
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise SettingError(f"there is no arm '{name}'", f"choose from {', '.join(ARMS)}")
    return tuple(ARMS.index(name) for name in dict.fromkeys(names))


def moment(text: str, newest_ms: int) -> int:
    """A time of the event clock in ms: ``2026-03-01T14:30`` (UTC by default), or a duration before ``newest_ms``, as
    ``90min`` or ``2h``.

    Raises:
        SettingError: it is neither.

    >>> moment("1970-01-01T00:01", 0), moment("1min", 100_000)
    (60000, 40000)
    """
    try:
        return newest_ms - span_ms(text)
    except SettingError:
        pass
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SettingError(
            f"'{text}' is no time", "write it as 2026-03-01T14:30 (UTC), or as 2h for so long ago"
        ) from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def interval_of(text: str, newest_ms: int) -> tuple[int, int]:
    """The interval ``FROM..TO``, both as :func:`moment` reads them.

    Raises:
        SettingError: it is none, or ends before it begins.

    >>> interval_of("3min..1min", 200_000)
    (20000, 140000)
    """
    begin, dots, end = text.partition("..")
    if not dots:
        raise SettingError(f"'{text}' is no interval", "write it as FROM..TO, as 2026-03-01T14:00..2026-03-01T15:00")
    found = moment(begin, newest_ms), moment(end, newest_ms)
    if found[0] >= found[1]:
        raise SettingError(f"the interval '{text}' ends before it begins", "write the earlier time first")
    return found


def time_of(ms: int) -> str:
    """A time as people read it, and :func:`moment` too.

    >>> time_of(60_000), time_of(61_500)
    ('1970-01-01T00:01:00', '1970-01-01T00:01:01.500')
    """
    found = datetime.fromtimestamp(ms / 1000, UTC)
    return found.strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms % 1000:03d}" if ms % 1000 else "")
