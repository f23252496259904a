# core
"""The archive of a live loop as arrays: n exposures as replay reads them, m of them with features as logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.errors import LogError
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.schema import Schema, load_schema
from millrace.logs import LogTable, read_log
from millrace.logs.values import flat
from stream.archive.logged import arrays

REMEDY = "run the loop with MILLRACE_ARCHIVE_FEATURES=true, or `millrace demo --archive --data DATA`"


@dataclass(frozen=True, slots=True)
class LoggedFeatures:
    """Exposures with the features that the scorer logged: m of the log's n rows, in the log's order."""

    row: NDArray[np.intp]  # (m,) row of the log, ascending
    cat: NDArray[np.int64]  # (m, F)
    num: NDArray[np.float32]  # (m, N)
    sets: dict[int, NDArray[np.float32]]
    """By a page's number in the log, (G, m) its candidates' numbers that are compared; of one page in 100."""

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Archived:
    schema: Schema
    log: LogTable
    rows: LogRows
    logged: LoggedFeatures
    without: int
    """Exposures without logged features: they were not kept then, or are of another schema."""

    def name(self, row: int) -> tuple[str, int]:
        assert self.schema.log is not None
        request, position = self.schema.log.identity[:2]
        return str(self.log.table[request][row]), int(self.log.table[position][row].as_py())


def read_archive(folder: Path) -> Archived:
    """Reads the archive in ``folder``. A loop may write to it meanwhile: its files appear whole.

    Raises:
        LogError: there is no archive, or none with features.
        SchemaError: its schema file cannot be read.
    """
    exposures, features = folder / "exposures", sorted((folder / "features").glob("*.parquet"))
    if not (folder / "schema.toml").exists() or not any(exposures.glob("*.parquet")):
        raise LogError(f"'{folder}' holds no archived exposures", f"name the data folder of a loop; {REMEDY}")
    if not features:
        raise LogError(f"the archive '{folder}' has no logged features to compare with", REMEDY)
    schema = load_schema(folder / "schema.toml")
    log = read_log(exposures, schema)
    rows = LogRows(log, schema)
    logged = _logged([pq.ParquetFile(file).read() for file in features], log, rows)
    if not len(logged):
        raise LogError(f"no exposure of the archive '{folder}' has logged features of its schema {schema.id}", REMEDY)
    return Archived(schema, log, rows, logged, rows.n - len(logged))


def named(request: pa.Array, position: pa.Array, user: pa.Array) -> pa.Array:
    """The name of each exposure. Two users' clients may give their pages one name, so the user is part of it."""
    texts = [pc.cast(column, pa.string()) for column in (position, user, request)]
    return flat(pc.binary_join_element_wise(*texts, " "))


def matched(features: pa.Table, names: pa.Array, schema: Schema) -> tuple[NDArray[np.intp], pa.Table]:
    """Of logged features those of the schema whose exposures have one of the ``names``: which one, (m,), and the
    features, m rows."""
    own = features.filter(pc.equal(features["schema_id"], schema.id))
    at = pc.index_in(named(own["request_id"], own["position"], own["user_id"]), value_set=names)
    return pc.drop_null(at).to_numpy().astype(np.intp), own.filter(pc.is_valid(at))


def _logged(tables: Sequence[pa.Table], log: LogTable, rows: LogRows) -> LoggedFeatures:
    schema = rows.builder.schema
    assert schema.log is not None
    request, position = schema.log.identity[:2]
    names = named(log.table[request], log.table[position], log.table[log.user])
    found = [(at, own) for at, own in (matched(table, names, schema) for table in tables) if len(at)]
    found = found or [(np.empty(0, np.intp), tables[0].slice(0, 0))]
    row, first = np.unique(np.concatenate([at for at, _ in found]), return_index=True)
    taken = pa.concat_tables([own.cast(found[-1][1].schema) for _, own in found]).take(pa.array(first))
    cat, num = arrays(taken, schema)
    raws = taken["among"].to_pylist() if schema.among else []
    sets = {
        int(page): np.frombuffer(raw, "<f4").reshape(len(schema.among), -1)
        for page, raw in zip(rows.page[row].tolist(), raws, strict=bool(raws))
        if raw
    }
    return LoggedFeatures(row, cat, num, sets)
