# core
"""Samples that were refused: kept in the store, counted, and later learnt or discarded.

::

    refused rows ── keep ──► memory ── some thousands, or flush ──► 00000042-labels.rows    the rows, compressed, and
                                                                                            where on samples they lie
                                                                    00000042-labels.entry   what they are, and the
                                                                                            digest of the rows
    learnt, or discarded ── remove ──► gone

The entry is written last: rows without one are nothing. Files are numbered in the order in which rows were refused.

Who keeps and who releases counts: a learner that was killed reads samples behind its snapshot again, and must know
those by their ids that are here already (:meth:`~learner.gate.promotion.Promotion.begin`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Literal

import msgspec
import numpy as np
import structlog
import zstandard
from msgspec import Struct

from learner.gate.verdicts import GateRefusal
from learner.training.ledger import Places, Span, places_of, spans_of
from millrace.basics.errors import SchemaError, StoreError, one_line
from millrace.basics.store import AbsentError, DamagedError, Sealed, Store
from millrace.contracts.samples import SampleBatch

log = structlog.get_logger("quarantine")

PLACE = "quarantine"
"""Name of the store, as :meth:`Settings.place` takes it."""
FILE_ROWS = 4096
"""Rows of a file at most."""
MOST_BYTES = 4 << 30
"""Of all files. Beyond it the oldest go, which is said: a shop that is refused for days must not fill the disk."""

_FILE_BYTES = 4 << 20  # of a file's widest array at most: a message of samples has a bound
_NUMBERED = re.compile(r"(?:damaged-)?(\d{8})-.*")
_MOST = float(np.finfo(np.float64).max)


class QuarantineFile(Struct, frozen=True):
    """One file of refused samples. Its ``name`` is how commands call it."""

    name: str
    check: str
    value: float
    bound: float
    what: str
    rows: int
    from_ms: int  # oldest and newest exposure
    to_ms: int
    made_ms: int  # event time of the refusal
    schema_id: str = ""

    @property
    def refusal(self) -> GateRefusal:
        """Why they were refused; a figure that is not finite is NaN."""
        value, bound = (nan if x == _MOST else x for x in (self.value, self.bound))
        return GateRefusal(self.check, value, bound, self.what)


class _Where(Struct, frozen=True):
    """The head of the rows' file: the runs that they are of, see :class:`~learner.training.ledger.Span`."""

    spans: list[Span] = []


class _Kept(Struct, frozen=True):
    """The head of an entry's file."""

    entry: QuarantineFile
    file: Sealed


@dataclass(slots=True)
class _Waiting:
    """Rows that are not written yet, of one refusal or of several alike."""

    refusal: GateRefusal
    made_ms: int
    batches: list[SampleBatch] = field(default_factory=list)
    places: list[Places] = field(default_factory=list)  # of each batch

    @property
    def rows(self) -> int:
        return sum(len(batch) for batch in self.batches)


_decode = msgspec.json.Decoder(_Kept).decode
_decode_where = msgspec.json.Decoder(_Where).decode


class Quarantine:
    """The refused samples of one learner. One process writes; any number reads.

    Args:
        schema_id: of the schema that rows have here.
        writes: whether this process is the one that writes. It lists the store once and knows it from then on; a
            reader looks each time.

    Attributes:
        lost_rows: that went because the files were beyond ``most_bytes``.
    """

    def __init__(self, store: Store, schema_id: str, writes: bool = True, most_bytes: int = MOST_BYTES) -> None:
        self.store, self.schema_id, self.writes, self.most_bytes = store, schema_id, writes, most_bytes
        self.lost_rows = 0
        self._waiting: list[_Waiting] = []
        self._known: dict[str, _Kept] = {}
        self._next: int | None = None  # None: the store was not listed yet
        self._orphans: list[str] = []  # rows whose entry was never written

    # -- going on --------------------------------------------------------------------------------------------

    def begin(self, done: Iterable[str] | None = None) -> None:
        """Lists the store. Called by the learner that has it alone, before it takes samples.

        Args:
            done: entries whose rows the snapshot has learnt that it goes on from. They are removed.

        Raises:
            StoreError: the store cannot be read or written.
        """
        self._list()
        self.store.remove(self._orphans)  # of one that was killed between rows and entry
        done = list(done or ())
        self.remove([name for name in done if name in self._known])
        self._next = max([self._next or 1, *(_number(name) + 1 for name in done)])

    # -- writing ---------------------------------------------------------------------------------------------

    def keep(self, refusal: GateRefusal, batch: SampleBatch, places: Places, made_ms: int) -> None:
        """Keeps refused rows, in memory until :meth:`flush` or until there are some thousands.

        Args:
            places: where the rows lie on ``samples``, (n, 3).
            made_ms: event time of the refusal.
        """
        if not len(batch):
            return
        last = self._waiting[-1] if self._waiting else None
        if last is None or (last.refusal.check, last.refusal.what) != (refusal.check, refusal.what):
            last = _Waiting(refusal, made_ms)
            self._waiting.append(last)
        last.batches.append(batch)
        last.places.append(places)
        if self.waiting_rows >= FILE_ROWS:
            try:
                self.flush()
            except StoreError as error:
                log.warning("refused samples stay in memory; tried again", error=one_line(error))

    @property
    def waiting_rows(self) -> int:
        """Rows in memory that are not written yet."""
        return sum(one.rows for one in self._waiting)

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            StoreError: it cannot be written. Nothing is lost by that: it is tried again.
        """
        while self._waiting:
            first = self._waiting[0]
            whole, places = SampleBatch.concat(first.batches), np.concatenate(first.places)
            first.batches, first.places = [whole], [places]
            while len(whole):
                rows = _file_rows(whole)
                self._write(first, whole.take(slice(0, rows)), places[:rows])
                whole, places = whole.take(slice(rows, None)), places[rows:]
                first.batches, first.places = [whole], [places]  # what is written is not written again
            self._waiting.pop(0)
        self._keep_within()

    def _write(self, waiting: _Waiting, batch: SampleBatch, places: Places) -> None:
        if self._next is None:
            self._list()
        number, refusal = self._next or 1, waiting.refusal
        name = f"{number:08d}-{refusal.check}"
        body = zstandard.ZstdCompressor(level=3).compress(batch.to_bytes())
        file = self.store.put(f"{name}.rows", _Where(list(spans_of(places))), body)
        entry = QuarantineFile(
            name=name,
            check=refusal.check,
            value=_finite(refusal.value),
            bound=_finite(refusal.bound),
            what=refusal.what,
            rows=len(batch),
            from_ms=int(batch.ts_ms.min()),
            to_ms=int(batch.ts_ms.max()),
            made_ms=waiting.made_ms,
            schema_id=self.schema_id,
        )
        kept = _Kept(entry, file)
        self.store.put(f"{name}.entry", kept)
        self._known[name], self._next = kept, number + 1

    def _keep_within(self) -> None:
        """Removes the oldest where there is more than may be."""
        size = sum(kept.file.size for kept in self._known.values())
        gone = []
        for name in sorted(self._known):
            if size <= self.most_bytes:
                break
            size -= self._known[name].file.size
            self.lost_rows += self._known[name].entry.rows
            gone.append(name)
        if gone:
            log.error("the quarantine is full: its oldest samples are removed", files=len(gone), lost=self.lost_rows)
            self.remove(gone)

    def remove(self, names: Sequence[str]) -> None:
        """Removes entries with their rows.

        Called when they were discarded, or when a snapshot has what was learnt of them: one that dies before it must
        find them here, since its model never saw them.

        Raises:
            StoreError: one cannot be removed.
        """
        self.store.remove(f"{name}.entry" for name in names)  # without it the rows are nothing
        self.store.remove(f"{name}.rows" for name in names)
        for name in names:
            self._known.pop(name, None)

    # -- reading ---------------------------------------------------------------------------------------------

    def entries(self) -> list[QuarantineFile]:
        """What is kept in files, in the order in which it was refused.

        Raises:
            StoreError: the store cannot be read.
        """
        if not self.writes or self._next is None:
            self._list()
        return [self._known[name].entry for name in sorted(self._known)]

    @property
    def rows(self) -> int:
        """Rows that are kept, those in memory with them. For the writer: it reads no file once it has listed them."""
        if self._next is None:
            self._list()
        return sum(kept.entry.rows for kept in self._known.values()) + self.waiting_rows

    def chosen(self, names: Sequence[str] | Literal["all"]) -> list[str]:
        """The names that a person gave, each once, in the order in which their rows were refused.

        Raises:
            AbsentError: there is none of a name. Then none is chosen.
            StoreError: the store cannot be read.
        """
        there = [entry.name for entry in self.entries()]
        if names == "all":
            return there
        for name in names:
            if name not in there:
                raise AbsentError(
                    f"quarantine has no '{name}'", "take a name of 'millrace data quarantine list', or 'all'"
                )
        return [name for name in there if name in names]

    def read(self, name: str) -> tuple[SampleBatch, Places]:
        """The rows of an entry, as they were refused, and where they lie on ``samples``. The batch's arrays cannot be
        written to.

        Raises:
            AbsentError: there is none of this name.
            DamagedError: its file is not the one that was written.
            SchemaError: it is of another schema than this learner's.
            StoreError: the store cannot be read.
        """
        self.chosen([name])
        kept = self._known[name]
        if kept.entry.schema_id != self.schema_id:
            raise SchemaError(
                f"samples '{name}' in quarantine are of schema {kept.entry.schema_id[:8]}, the learner's is "
                f"{self.schema_id[:8]}",
                f"discard them: millrace data quarantine discard {name}",
            )
        head, body = self.store.expect(kept.file)
        try:
            batch = SampleBatch.from_bytes(zstandard.ZstdDecompressor().decompress(body))
            return batch, places_of(_decode_where(head).spans)
        except (zstandard.ZstdError, msgspec.MsgspecError, SchemaError) as error:
            raise DamagedError(f"samples '{name}' in quarantine cannot be read ({error})", "discard them") from None

    def _list(self) -> None:
        names = self.store.names(aside=True)
        known: dict[str, _Kept] = {}
        for file in names:
            name = file.removesuffix(".entry")
            if name == file or not _NUMBERED.fullmatch(name) or file.startswith("damaged-"):
                continue
            try:
                found = self._known.get(name) or _decode(self.store.get(file)[0])
            except AbsentError:  # removed while we looked
                continue
            except (DamagedError, msgspec.MsgspecError) as error:
                if self.writes:
                    self.store.rename_damaged(file, one_line(error))
                continue
            if f"{name}.rows" in names:
                known[name] = found
        self._known = known
        self._orphans = [file for file in names if file.endswith(".rows") and file.removesuffix(".rows") not in known]
        if self.writes:
            self._next = max([self._next or 1, *(_number(name) + 1 for name in names)])


def _number(name: str) -> int:
    """The number of a file or entry; 0: it is none of ours."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else 0


def _file_rows(batch: SampleBatch) -> int:
    """Rows of a file, by how wide they are."""
    widest: int = max(8 * batch.cat.shape[1], 4 * batch.num.shape[1], 1)
    return max(1, min(FILE_ROWS, _FILE_BYTES // widest))


def _finite(value: float) -> float:
    """A figure as JSON can have it: in place of one that is not finite stands the largest there is."""
    return float(np.nan_to_num(np.float64(value), nan=_MOST))
