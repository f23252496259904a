# core
"""What the archive of a live loop holds, as arrays: exposures as replay reads them, events, features as logged.

::

    exposures ─► read_log ─► LogRows         n rows, in order of time
    features ──► Pages                       m of these rows: cat, num as logged; when the page was asked for and made
    events ────► Happened                    e events that the loop counted: exposures, then each first action

Two clocks are in an archive. Event time is what windows count in. Wall time says what could be known when: an event was
sent (``sent_ms``), a page was made (``served_ms``). Where the event clock is the wall's, an event without ``sent_ms``
counts as sent at its event time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from commands.replay.logfeatures import LogRows
from millrace.basics.errors import LogError
from millrace.contracts.schema import Schema, load_schema
from millrace.logs import LogTable, read_log
from stream.archive.logged import arrays

_REMEDY = "run the loop with MILLRACE_ARCHIVE_FEATURES=true, or `millrace demo --archive --data DATA`"


@dataclass(frozen=True, slots=True)
class Pages:
    """Exposures with the features that the scorer logged: m of the log's n rows, in the log's order."""

    row: NDArray[np.intp]  # (m,) row of the log, ascending
    page: NDArray[np.intp]  # (m,) rows of one page have one number
    cat: NDArray[np.int64]  # (m, F)
    num: NDArray[np.float32]  # (m, N)
    slot: NDArray[np.int32]  # (m,) as answered
    page_ms: NDArray[np.int64]  # (m,) event time that the page was asked for
    served_ms: NDArray[np.int64]  # (m,) wall time at which it was made

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Happened:
    """Events that a loop counts in its windows, (e,) each, in the order in which they can have been counted: by wall
    time, and those of one partition and time as they stand in the topic."""

    row: NDArray[np.intp]  # of the log: the exposure
    action: NDArray[np.uint8]  # which of the schema's window actions
    ts_ms: NDArray[np.int64]
    known_ms: NDArray[np.int64]  # wall time before which nobody can have counted it, ascending
    partition: NDArray[np.int64]
    message: NDArray[np.intp]  # ascending; items of one exposure message have one number: they are counted at once


@dataclass(frozen=True, slots=True)
class Archived:
    """See the module's text."""

    schema: Schema
    log: LogTable
    rows: LogRows
    pages: Pages
    happened: Happened
    without: int
    """Exposures without logged features: their page's log did not come, or features were not kept then."""
    unsent: int
    """Events without ``sent_ms``."""


def read_archive(folder: Path) -> Archived:
    """Reads the archive in ``folder``, while a loop writes to it too: files are whole from the moment they are there.

    Raises:
        LogError: there is no archive, or none with features.
        SchemaError: its schema file cannot be read.
    """
    exposures, features = folder / "exposures", sorted((folder / "features").glob("*.parquet"))
    if not (folder / "schema.toml").exists() or not any(exposures.glob("*.parquet")):
        raise LogError(f"'{folder}' holds no archived exposures", f"name the data folder of a loop; {_REMEDY}")
    if not features:
        raise LogError(f"the archive '{folder}' has no logged features to compare with", _REMEDY)
    schema = load_schema(folder / "schema.toml")
    log = read_log(exposures, schema)
    rows = LogRows(log, schema)
    name = _names(log, schema)
    pages = _pages([pq.ParquetFile(file).read() for file in features], schema, name, rows)
    if not len(pages):
        raise LogError(f"no exposure of the archive '{folder}' has logged features of its schema {schema.id}", _REMEDY)
    events = pa.concat_tables([pq.ParquetFile(f).read() for f in sorted((folder / "events").glob("*.parquet"))])
    happened, unsent = _happened(events, log, schema, name, rows, pages)
    return Archived(schema, log, rows, pages, happened, rows.n - len(pages), unsent)


def _names(log: LogTable, schema: Schema) -> pa.Array:
    """What each exposure is called: position, user and request. Two users' clients may give their pages one name."""
    assert schema.log is not None
    request, position = schema.log.identity[:2]
    return _named(log.table[request], log.table[position], log.table[log.user])


def _named(request: pa.Array, position: pa.Array, user: pa.Array) -> pa.Array:
    texts = [pc.cast(column, pa.string()) for column in (position, user, request)]
    joined = pc.binary_join_element_wise(*texts, " ")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _found(names: pa.Array, among: pa.Array) -> NDArray[np.intp]:
    """The place of each name among others; -1: it is not there."""
    places = pc.fill_null(pc.index_in(names, value_set=among), -1)
    return np.asarray(places.to_numpy(zero_copy_only=False), np.intp)


def _pages(tables: Sequence[pa.Table], schema: Schema, name: pa.Array, rows: LogRows) -> Pages:
    fitting = [table.filter(pc.equal(table["schema_id"], schema.id)) for table in tables]
    fitting = [table for table in fitting if table.num_rows] or [tables[0].slice(0, 0)]
    table = pa.concat_tables([t.cast(fitting[-1].schema) for t in fitting])
    where = _found(_named(table["request_id"], table["position"], table["user_id"]), name)
    there = np.flatnonzero(where >= 0)
    row, first = np.unique(where[there], return_index=True)
    kept = table.take(pa.array(there[first]))
    cat, num = arrays(kept, schema)
    numbers = [kept[n].to_numpy() for n in ("slot", "page_ms", "served_ms")]
    served = np.where(numbers[2] > 0, numbers[2], numbers[1])
    return Pages(row, rows.page[row], cat, num, numbers[0], numbers[1], served)


def _happened(
    events: pa.Table, log: LogTable, schema: Schema, name: pa.Array, rows: LogRows, pages: Pages
) -> tuple[Happened, int]:
    """What the loop counted: exposures whose page's log came, and of each kind of action the first on such an exposure
    that names its user and item, however late."""
    order = np.lexsort([events["log_offset"].to_numpy(), events["log_partition"].to_numpy()])
    events = events.take(pa.array(order))
    sent = pc.fill_null(events["sent_ms"], 0).to_numpy()
    ts, partition, offset = (events[name].to_numpy() for name in ("ts_ms", "log_partition", "log_offset"))
    unsent = int(np.count_nonzero(sent == 0))
    sent = np.where(sent > 0, sent, ts)
    kind = pc.fill_null(pc.index_in(events["type"], value_set=pa.array(schema.windows.actions)), -1).to_numpy()
    served = np.full(rows.n, np.iinfo(np.int64).max)
    served[pages.row] = pages.served_ms

    shown = np.flatnonzero(kind == 0)
    at, position = _shown(events.select(["items", "slots", "offset"]).take(pa.array(shown)))
    of = shown[at]
    those = events.select(["request_id", "user_id"]).take(pa.array(of))  # a row an item: no lists of the page's items
    where = _found(_named(those["request_id"], pa.array(position), those["user_id"]), name)
    _, first = np.unique(where, return_index=True)
    first = first[(where[first] >= 0)]
    first = first[served[where[first]] < np.iinfo(np.int64).max]
    seen, event = where[first], of[first]
    known = np.full(rows.n, np.iinfo(np.int64).max)
    known[seen] = np.maximum(sent[event], served[seen])
    parts = [(seen, np.zeros(len(seen), np.uint8), rows.ts_ms[seen], known[seen], event)]

    done = np.flatnonzero(kind > 0)
    acted = events.select(["request_id", "position", "user_id", "item_id"]).take(pa.array(done))
    where = _found(_named(acted["request_id"], acted["position"], acted["user_id"]), name)
    items = pc.cast(log.table[log.item], pa.string()).take(pa.array(np.maximum(where, 0)))
    same = (where >= 0) & pc.fill_null(pc.equal(acted["item_id"], items), False).to_numpy()
    same &= known[np.maximum(where, 0)] < np.iinfo(np.int64).max
    some = np.flatnonzero(same)
    _, first = np.unique(where[some] * 64 + kind[done[some]], return_index=True)
    event, where = done[some[first]], where[some[first]]
    parts.append((where, kind[event].astype(np.uint8), ts[event], np.maximum(sent[event], known[where]), event))
    row, action, ts_ms, known_ms, event = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort([offset[event], partition[event], known_ms])
    place = np.stack([known_ms, partition[event], offset[event]])[:, order]
    message = np.append(0, np.cumsum((place[:, 1:] != place[:, :-1]).any(axis=0)))[: len(order)]
    found = Happened(row[order], action[order], ts_ms[order], known_ms[order], partition[event][order], message)
    return found, unsent


def _shown(exposures: pa.Table) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """(which event, the position as answered) of each item that exposure events name."""
    items, slots = exposures["items"].combine_chunks(), exposures["slots"].combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(items), 0).to_numpy(zero_copy_only=False).astype(np.intp)
    event = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(event)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position += pc.fill_null(exposures["offset"], 0).to_numpy()[event]
    named = slots.is_valid().to_numpy(zero_copy_only=False)
    position[np.repeat(named, sizes)] = slots.flatten().to_numpy()  # null lists have no values
    return event, position
