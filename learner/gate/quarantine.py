# core
"""Samples that were refused: where they lie on ``samples``, and why, until they are learnt or discarded.

::

    refused rows ──► entry 00000042-labels      spans of the topic, check, figure, bound
                        ├── released, then learnt ──► gone       the rows are read again from the topic
                        ├── discarded ──────────────► gone
                        └── the topic is about to lose its rows ──► a copy in the store, 00000042-labels.rows

An entry is named after the decision that made it. All of it follows from what was decided
(:mod:`millrace.versions.decisions`), so a learner that does the same once more has the same entries. It lies in the
learner's snapshots. The file ``entries.list`` in the store shows it to people, and nobody goes on from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Literal

import msgspec
import numpy as np
import structlog
import zstandard
from msgspec import Struct

from learner.gate.verdicts import GateRefusal
from learner.training.decisionlog import among, places_of, rows_in, spans_of
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import UNFIT, SchemaError, SnapshotError, one_line
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Span

log = structlog.get_logger("quarantine")

PLACE = "quarantine"
"""Name of the store, as :meth:`Settings.place` takes it."""
ENTRY_ROWS = 4096
"""Rows of an entry: behind so many another one begins."""
ENTRY_MS = 10 * MINUTE_MS
"""Event time behind which another one begins: who reads an entry's rows reads all that lies between them, too."""
MOST_BYTES = 64 << 20
"""Of all entries, a day's of some thousand rows a second. Beyond it the oldest go, which is said."""

_ENTRY_BYTES = 512  # of one, beside its spans: there may be many of a row each
_LIST = "entries.list"
_ROWS = ".rows"  # ends the name of a copy
_MOST = float(np.finfo(np.float64).max)


class QuarantineEntry(Struct, frozen=True):
    """What people see of an entry. Its ``name`` is how commands call it."""

    name: str
    check: str
    value: float
    bound: float
    what: str
    rows: int
    from_ms: int  # oldest and newest event time
    to_ms: int
    made_ms: int  # event time of the refusal
    schema_id: str
    log: str  # id of the topic that the rows lie on

    @property
    def refusal(self) -> GateRefusal:
        """Why they were refused; a figure that is not finite is NaN."""
        value, bound = (nan if x == _MOST else x for x in (self.value, self.bound))
        return GateRefusal(self.check, value, bound, self.what)


@dataclass(slots=True)
class _Kept:
    entry: QuarantineEntry
    packed: list[bytes] = field(default_factory=list)  # spans, as they came

    @property
    def bytes(self) -> int:
        return _ENTRY_BYTES + sum(map(len, self.packed))


class _Listed(Struct, frozen=True):
    entries: list[QuarantineEntry]


class _CopyHead(Struct, frozen=True):
    """The head of a copy: the spans that its rows are of."""

    spans: list[Span]


_Saved = tuple[int, str, list[tuple[QuarantineEntry, list[bytes]]]]

_decode_spans = msgspec.msgpack.Decoder(list[Span]).decode
_decode_list = msgspec.json.Decoder(_Listed).decode
_decode_copy = msgspec.json.Decoder(_CopyHead).decode


class Quarantine:
    """The refused samples of one learner. One process writes; any number reads :func:`listed`.

    Args:
        store: of the list and the copies.
        schema_id: of the schema that rows have here.

    Attributes:
        lost_rows: that went because there was too much.
        samples_log: id of the topic that is read now; empty: it has none.
    """

    def __init__(self, store: Store, schema_id: str, most_bytes: int = MOST_BYTES) -> None:
        self.store, self.schema_id, self.most_bytes = store, schema_id, most_bytes
        self.lost_rows, self.samples_log = 0, ""
        self._kept: dict[str, _Kept] = {}  # oldest first
        self._open: dict[str, str] = {}  # by check the entry that its rows may still join
        self._bytes = 0
        self._changed = True  # since the list was written

    # -- what is decided -------------------------------------------------------------------------------------

    def keep(
        self, n: int, refusal: GateRefusal, spans: Sequence[Span], event_ms: tuple[int, int], made_ms: int
    ) -> None:
        """Rows were refused by decision ``n``.

        Args:
            event_ms: of the oldest and of the newest row.
            made_ms: event time of the refusal.
        """
        if not spans:
            return
        last = self._kept.get(self._open.get(refusal.check, ""))
        alike = last is not None and (last.entry.what, last.entry.log) == (refusal.what, self.samples_log)
        full = last is not None and (last.entry.rows >= ENTRY_ROWS or made_ms - last.entry.made_ms >= ENTRY_MS)
        if last is None or not alike or full:
            name, value, bound = f"{n:08d}-{refusal.check}", _finite(refusal.value), _finite(refusal.bound)
            entry = QuarantineEntry(
                *(name, refusal.check, value, bound, refusal.what, 0, *event_ms, made_ms),
                *(self.schema_id, self.samples_log),
            )
            self._open[refusal.check] = name
            last = _Kept(entry)
            self._kept[name] = last
            self._bytes += _ENTRY_BYTES
        entry = last.entry
        last.entry = msgspec.structs.replace(
            entry,
            rows=entry.rows + rows_in(spans),
            from_ms=min(entry.from_ms, event_ms[0]),
            to_ms=max(entry.to_ms, event_ms[1]),
        )
        last.packed.append(msgspec.msgpack.encode(list(spans)))
        self._bytes += len(last.packed[-1])
        self._changed = True
        self._keep_within()

    def close(self, but: Collection[str] = ()) -> None:
        """What is refused from now on goes to other entries, ``but`` what these checks refuse."""
        self._open = {check: name for check, name in self._open.items() if check in but}

    def remove(self, names: Iterable[str]) -> int:
        """Entries were learnt, or are not wanted any more: how many rows."""
        gone = [self._kept.pop(name) for name in names if name in self._kept]
        self._open = {check: name for check, name in self._open.items() if name in self._kept}
        self._bytes -= sum(kept.bytes for kept in gone)
        self._changed |= bool(gone)
        return sum(kept.entry.rows for kept in gone)

    def only(self, name: str, spans: Sequence[Span]) -> None:
        """No other rows of an entry stay; without any, it goes."""
        kept = self._kept[name]
        if not spans:
            self.remove([name])
            return
        self._bytes -= kept.bytes
        kept.entry = msgspec.structs.replace(kept.entry, rows=rows_in(spans))
        kept.packed = [msgspec.msgpack.encode(list(spans))]
        self._bytes, self._changed = self._bytes + kept.bytes, True

    def forget_behind(self, offset: int) -> int:
        """Messages of ``samples`` from this offset on are read again, and judged again: their rows are not kept here.
        Returns how many rows."""
        before = self.rows
        for name in list(self._kept):
            self.only(name, [span for span in self.spans(name) if span.offset < offset])
        self.close()
        return before - self.rows

    def _keep_within(self) -> None:
        while self._bytes > self.most_bytes and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            rows = self.remove([oldest])
            self.lost_rows += rows
            log.error("the quarantine is full: its oldest samples are given up", name=oldest, rows=rows)

    # -- what is there ---------------------------------------------------------------------------------------

    def entries(self) -> list[QuarantineEntry]:
        """In the order in which they were refused."""
        return [kept.entry for kept in self._kept.values()]

    def grows(self, name: str, now_ms: int) -> bool:
        """Whether rows may still join an entry. ``now_ms``: event time."""
        return name in self._open.values() and now_ms - self._kept[name].entry.made_ms < ENTRY_MS

    def entry(self, name: str) -> QuarantineEntry:
        """Raises AbsentError if there is none."""
        return self._one(name).entry

    def has(self, name: str, span: Span) -> bool:
        """Whether there is such an entry, with the first row of ``span``."""
        mine = self.spans(name) if name in self._kept else ()
        return any(one.offset == span.offset and one.first <= span.first < one.stop for one in mine)

    @property
    def rows(self) -> int:
        return sum(kept.entry.rows for kept in self._kept.values())

    def spans(self, name: str) -> list[Span]:
        """Where the rows of an entry lie on ``samples``, as they were refused. Raises AbsentError if there is none."""
        return [span for packed in self._one(name).packed for span in _decode_spans(packed)]

    def _one(self, name: str) -> _Kept:
        try:
            return self._kept[name]
        except KeyError:
            raise AbsentError(
                f"quarantine has no '{name}'", "take a name of 'millrace data quarantine list', or 'all'"
            ) from None

    def chosen(self, names: Sequence[str] | Literal["all"]) -> list[str]:
        """The names that a person gave, each once, in the order in which their rows were refused.

        Raises:
            AbsentError: there is none of a name. Then none is chosen.
        """
        if names == "all":
            return list(self._kept)
        for name in names:
            self._one(name)
        wanted = set(names)
        return [name for name in self._kept if name in wanted]

    # -- in snapshots ----------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """All of it, for a snapshot."""
        kept = [(msgspec.to_builtins(one.entry), one.packed) for one in self._kept.values()]
        return msgspec.msgpack.encode((self.lost_rows, " ".join(sorted(self._open.values())), kept))

    def resume(self, raw: bytes) -> None:
        """The inverse of :meth:`snapshot`. Raises SnapshotError where it cannot be read."""
        self.lost_rows, opened, kept = _saved(raw)
        still_open = opened.split()
        self._open = {entry.check: entry.name for entry, _ in kept if entry.name in still_open}
        self._kept = {entry.name: _Kept(entry, packed) for entry, packed in kept}
        self._bytes, self._changed = sum(one.bytes for one in self._kept.values()), True

    def take_over(self, raw: bytes, source: str) -> int:
        """Adds the entries of another learner of the same samples, as its :meth:`snapshot` has them. Its name goes
        before theirs, which might be given here, too. How many rows. Raises SnapshotError where it cannot be read."""
        before, (_, _, kept) = self.rows + self.lost_rows, _saved(raw)
        for entry, packed in kept:
            mine = msgspec.structs.replace(entry, name=f"{source}-{entry.name}")
            self._kept[mine.name] = _Kept(mine, packed)
            self._bytes += self._kept[mine.name].bytes
        self._changed = True
        self._keep_within()
        return self.rows + self.lost_rows - before

    # -- in the store ----------------------------------------------------------------------------------------

    def write_list(self) -> None:
        """Shows people what there is, if that has changed. Raises StoreError where it cannot be written."""
        if self._changed:
            self.store.put(_LIST, _Listed(self.entries()))
            self._changed = False

    def copies(self) -> set[str]:
        """Names of the entries whose rows lie in the store. Raises StoreError where it cannot be read."""
        return {file.removesuffix(_ROWS) for file in self.store.names() if file.endswith(_ROWS)}

    def copy(self, name: str, batch: SampleBatch) -> None:
        """Keeps the rows of an entry, which the topic is about to lose. Raises StoreError if they cannot be written."""
        self.store.put(name + _ROWS, _CopyHead(self.spans(name)), _packed(batch))

    def read_copy(self, name: str) -> tuple[SampleBatch, list[Span]]:
        """The rows of an entry, as they were copied; without those that have left it since.

        Raises:
            AbsentError: there is no copy.
            DamagedError: it is not the one that was written.
            SchemaError: it is of another schema than this learner's.
            StoreError: the store cannot be read.
        """
        entry = self.entry(name)
        head, body, _ = self.store.get(name + _ROWS)
        if entry.schema_id != self.schema_id:
            raise SchemaError(
                f"samples '{name}' in quarantine are of schema {entry.schema_id[:8]}, the learner's is "
                f"{self.schema_id[:8]}",
                f"discard them: millrace data quarantine discard {name}",
            )
        batch, spans = _unpacked(name, head, body)
        places = places_of(spans)
        stay = among(places, self.spans(name))
        return batch.take(stay), list(spans_of(places[stay]))

    def take_copies(self, store: Store, source: str) -> None:
        """Copies another learner's copies, under the names that :meth:`take_over` gives. Raises StoreError."""
        for file in store.names():
            if file.endswith(_ROWS):
                with contextlib.suppress(AbsentError, DamagedError):  # its rows may still be on the topic
                    head, body, _ = store.get(file)
                    self.store.put(f"{source}-{file}", _decode_copy(head), body)

    def remove_copies(self, but: Collection[str] = ()) -> None:
        """Removes copies of what is in no entry, now and in the newest snapshot, ``but``. Raises StoreError."""
        self.store.remove(name + _ROWS for name in self.copies().difference(self._kept, but))


def _saved(raw: bytes) -> _Saved:
    """Raises SnapshotError where it cannot be read."""
    try:
        saved: _Saved = msgspec.msgpack.decode(raw, type=_Saved)
        for entry, packed in saved[2]:
            if rows_in(span for some in packed for span in _decode_spans(some)) != entry.rows:
                raise ValueError(f"'{entry.name}' has not {entry.rows} rows")
    except UNFIT as error:
        problem = f"what a snapshot has in quarantine cannot be read ({one_line(error)})"
        raise SnapshotError(problem, "move this snapshot away: the one before it is used") from None
    return saved


def listed(store: Store) -> list[QuarantineEntry]:
    """What the learner of a store has in quarantine, as it showed last. Raises StoreError where it cannot be read."""
    try:
        return _decode_list(store.get(_LIST)[0]).entries
    except AbsentError:
        return []
    except UNFIT as error:
        raise DamagedError(f"the list of quarantine cannot be read ({one_line(error)})", "start the learner") from None


def forget_user(store: Store, user: int) -> int:
    """Removes a user's rows, by the hash of the id, from all copies. Returns how many.

    Raises:
        DamagedError: a copy cannot be read; discard it.
        StoreError: the store cannot be read or written.
    """
    removed = 0
    for file in store.names():
        if not file.endswith(_ROWS):
            continue
        head, body, _ = store.get(file)
        batch, spans = _unpacked(file, head, body)
        stays = batch.user != np.uint64(user)
        if stays.all():
            continue
        removed += int((~stays).sum())
        places = places_of(spans)[stays]
        store.put(file, _CopyHead(list(spans_of(places))), _packed(batch.take(stays)))
    return removed


def _packed(batch: SampleBatch) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(batch.to_bytes())


def _unpacked(file: str, head: bytes, body: memoryview) -> tuple[SampleBatch, list[Span]]:
    try:
        batch, spans = SampleBatch.from_bytes(zstandard.ZstdDecompressor().decompress(body)), _decode_copy(head).spans
        if rows_in(spans) != len(batch):
            raise ValueError(f"{rows_in(spans)} places of {len(batch)} rows")
        return batch, spans
    except (zstandard.ZstdError, SchemaError, *UNFIT) as error:
        raise DamagedError(f"samples '{file}' in quarantine cannot be read ({error})", "discard them") from None


def _finite(value: float) -> float:
    """A figure as JSON can have it: in place of one that is not finite stands the largest there is."""
    return float(np.nan_to_num(np.float64(value), nan=_MOST))
