# core
"""The files of hours whose outcomes come late (:mod:`stream.join.outcome_book`), beside the checkpoints.

::

    p00003-click-001785283200000.rows    features of the clicks of one hour of partition 3, in the order of their users

The number is the time at which the hour ends, in milliseconds.

A file is a sealed message of samples, compressed by zstd. It is written and read before the checkpoint that covers
this, and removed after it, so each of it may happen again. All workers share the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace

import msgspec
import numpy as np
import structlog
import zstandard

from millrace.basics.errors import UNFIT, StoreError
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.carry import Carry
from millrace.contracts.events import DeadLetter
from millrace.contracts.pagepack import Rates
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS
from stream.join.hour_rows import Hour
from stream.join.outcome_book import Erased, SealedHour, ToFiles, Told

log = structlog.get_logger("outcomes")

_LEVEL = 9  # of zstd: a file is written once an hour


class OutcomeFiles:
    """Any thread, one at a time a partition.

    Args:
        store: of the checkpoints.
        schema: the present one.
        former: those whose files may be left, by id.
    """

    def __init__(self, store: Store, schema: Schema, former: Mapping[str, Schema]) -> None:
        self._store, self._schema_id = store, schema.id
        self._carries = {id: Carry(old, schema) for id, old in former.items()}
        self._rates = Rates.of(schema)
        self.written_bytes = self.written_rows = 0

    def do(self, number: int, what: ToFiles) -> Iterator[SampleBatch | DeadLetter]:
        """Writes files of a partition; gives samples of what is told, and dead letters where its file is gone.
        Raises StoreError when the store cannot be used."""
        for sealed in what.sealed:
            self._write(number, sealed)
        for erased in what.erased:
            self._erase(number, erased)
        for told in what.told:
            yield from self._tell(number, told)

    def remove(self, number: int, hours: Iterable[Hour]) -> None:
        """Removes the files of these hours and of earlier ones. Call it after the checkpoint that covers their telling:
        until then, it may be repeated. Raises StoreError."""
        for on, hour in hours:
            last = _name(number, (on, hour))
            self._store.remove(n for n in self._store.names(f"p{number:05d}-{on}-") if n <= last)

    def _write(self, number: int, sealed: SealedHour) -> None:
        packed = zstandard.ZstdCompressor(_LEVEL).compress(sealed.rows.to_bytes(self._rates))
        file = self._store.put(_name(number, sealed.hour), {"schema": self._schema_id}, packed)
        self.written_bytes += file.size
        self.written_rows += len(sealed.rows)

    def _read(self, number: int, hour: Hour) -> SampleBatch | None:
        """None: the file is gone or damaged."""
        name = _name(number, hour)
        try:
            head, body, _ = self._store.get(name)
            schema_id = msgspec.json.decode(head)["schema"]
            batch = SampleBatch.from_bytes(zstandard.ZstdDecompressor().decompress(body))
            return batch if schema_id == self._schema_id else self._carries[schema_id].samples(batch)
        except (AbsentError, DamagedError, StoreError, zstandard.ZstdError, *UNFIT) as error:
            if isinstance(error, StoreError) and not isinstance(error, AbsentError | DamagedError):
                raise
            log.error("rows that wait for an outcome are gone", file=name, error=str(error))
            return None

    def _erase(self, number: int, erased: Erased) -> None:
        rows = self._read(number, erased.hour)
        if rows is None:
            return
        gone = rows.user == erased.who
        request = np.array(rows.request, object)
        request[rows.page[gone]] = ""
        kept = ("page", "kind", "ts_ms")  # bounds are checked when it is read
        columns = {f.name: getattr(rows, f.name).copy() for f in fields(rows)[1:]}
        for name, column in columns.items():
            if name not in kept:
                column[gone] = 0
        self._write(number, SealedHour(erased.hour, replace(rows, request=tuple(request.tolist()), **columns)))

    def _tell(self, number: int, told: Told) -> Iterator[SampleBatch | DeadLetter]:
        rows = self._read(number, told.hour)
        if rows is not None and len(rows) == len(told.outcomes):
            known = np.array([bool(request) for request in rows.request], np.bool_)[rows.page]  # else erased since
            some = np.flatnonzero(np.isfinite(told.outcomes).any(axis=1) & known)
            made = replace(rows.take(some), outcomes=told.outcomes[some])
            if told.telling:
                policy, telling = (np.full(len(some), code, np.uint8) for code in (told.policy, told.telling))
                made = replace(made, policy=policy, telling=telling)
            yield made
            return
        detail = f"the features of its click, in the file '{_name(number, told.hour)}', are gone"
        for offset in told.offsets:
            yield DeadLetter.of("rows-gone", detail, EVENTS, number, offset, b"")


def _name(number: int, hour: Hour) -> str:
    return f"p{number:05d}-{hour[0]}-{hour[1]:015d}.rows"
