# shell
"""``millrace data page REQUEST_ID``: what a page of the past was, what became of it, and why its items stood where they
did.

::

    page log, while the topic has it  ─┐   items, scores, sources, propensities, features
    archive, for ever                 ─┴─► the same, and what was clicked
    the kept snapshot nearest to the page's version, with these features ──► reasons (scorer/page/score_reasons.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from learner.role.model_factory import reader_of, writer_of
from millrace.basics.durations import span_name, utc
from millrace.basics.errors import LogError, SnapshotError
from millrace.contracts.events import SOURCES, BadEventError
from millrace.contracts.page_logs import PageView, decode_served
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.labels import Waits
from millrace.processes.kafka import read_all
from millrace.reports import say, show
from millrace.versions.image import split
from millrace.versions.modelstore import ModelStore
from scorer.page import score_reasons
from stream.archive.archive_columns import ArchiveColumns
from stream.archive.logged import LoggedTable, arrays

_ROWS = {
    "time_ms": "ts_ms",
    "position": "position",
    "score": "score",
    "ranked": "ranked",
    "odds": "propensity",
    "source": "source",
    "label": "clicked",
    "arm": "arm",
    "model_version": "model_version",
}
"""The archive's own columns, and what they are called here."""

_ALIKE = 0.75
"""Share of pairs below which a kept model tells another story than the page's own."""

Features = tuple[NDArray[np.int64], NDArray[np.float32]]
"""cat (m, F), num (m, N)."""


def past_page(settings: Settings, request_id: str) -> dict[str, Any]:
    """The page of ``request_id``: request_id, user_id, ts_ms, arm, model_version, ``items`` in order, and ``notes``
    with what is not known. An item has ``position``, ``item_id``, ``score``, ``ranked`` (what it was ordered by, where
    that was not the score), ``propensity``, ``source``, ``clicked`` (null: not archived yet) and, of the first 20,
    ``reasons``: inputs with their effects on the logit, the strongest first.

    Args:
        settings: of the loop. Without ``kafka`` only the archive is read.

    Raises:
        LogError: neither page log nor archive has it.
        MillraceError: broker, archive or model cannot be read.
    """
    schema, archive = settings.load_schema(), Path(settings.data) / "archive"
    served = _logged(settings, request_id) if settings.kafka else None
    settled = _settled(archive, schema, request_id)
    if served is None and not settled:
        raise LogError(
            f"no page '{request_id}' is in the archive below '{settings.data}'"
            + (f", or in the topic {PAGE_LOGS}" if settings.kafka else ", and no broker is known that has page logs"),
            "give the request_id of an answer of /recommend, and the loop's --data or --kafka",
        )
    if served is not None:
        page, items = _of_log(served, settled)
        found = _features_of_log(served, schema)
    else:
        page, items = _of_archive(settled)
        found = _kept_features(archive, schema, request_id, items)
    notes = list[str]()
    if not settled:
        due = utc(page["ts_ms"] + Waits.of(settings).settled_ms)
        notes.append(
            f"not archived yet, so what was clicked is not known: this page of {utc(page['ts_ms'])} will be"
            f" {span_name(1000 * settings.archive_seconds)} after event time {due}, unless the archive is off"
        )
    elif len(settled) < len(items):
        notes.append("items that no exposure named have no row in the archive")
    if found is None:
        notes.append("no reasons: the features that it was ranked by were not kept, or are of another schema")
    else:
        notes.append(_explain(settings, schema, page["model_version"], items, found))
    return {"request_id": request_id, **page, "items": items, "notes": notes}


def print_page(page: dict[str, Any]) -> None:
    """For people: a line an item, and the notes."""
    made = f"{page['arm']}, model version {page['model_version']}"
    say(f"Page '{page['request_id']}' of user '{page['user_id']}': {made}.")
    rows = [
        {name: value for name, value in item.items() if name not in ("reasons", "ranked")}
        | {"reasons": ", ".join(f"{r['input']} {r['effect']:+.2f}" for r in item.get("reasons", ()))}
        for item in page["items"]
    ]
    show("", rows)
    for note in page["notes"]:
        say(f"{note[0].upper()}{note[1:]}.")


def _logged(settings: Settings, request_id: str) -> PageView | None:
    """The first page log of the id, as the join takes it."""
    found, mark = list[PageView](), request_id.encode()

    def visit(record: Any) -> None:
        if record.value and mark in record.value and not found:
            try:
                served = decode_served(record.value)
            except BadEventError:
                return
            if served.request_id == request_id:
                found.append(served)

    read_all(settings, PAGE_LOGS, visit)
    return found[0] if found else None


def _settled(archive: Path, schema: Schema, request_id: str) -> list[dict[str, Any]]:
    """The page's rows in the archive, by position."""
    columns = ArchiveColumns(schema)
    names = {columns.own[own]: name for own, name in _ROWS.items()}
    names |= {columns.user: "user_id", columns.item: "item_id"}
    rows = _read(archive / "exposures", columns.schema, columns.own["request_id"], request_id).select(list(names))
    return sorted(rows.rename_columns(list(names.values())).to_pylist(), key=lambda row: row["position"])


def _read(folder: Path, schema: pa.Schema, column: str, request_id: str) -> pa.Table:
    """Rows of the archive's table in ``folder`` whose ``column`` is the id; a column that a file lacks is null."""
    files = [str(file) for file in sorted(folder.glob("*.parquet"))]
    try:
        return ds.dataset(files, schema, format="parquet").to_table(filter=ds.field(column) == request_id)
    except (OSError, pa.ArrowException) as error:
        raise LogError(
            f"the archive '{folder}' cannot be read ({error})", "move the file away, or restore it"
        ) from None


def _of_log(served: PageView, settled: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    n = len(served.items)
    clicked = {row["position"]: row["clicked"] for row in settled if row["user_id"] == str(served.user_id)}

    def numbers(raw: Any) -> list[float | None]:
        return np.frombuffer(raw, "<f4").tolist() if len(raw) == 4 * n else [None] * n

    columns: dict[str, Sequence[Any]] = {
        "position": range(n),
        "item_id": served.items,
        "score": numbers(served.scores),
        "ranked": numbers(served.ranked),
        "propensity": numbers(served.odds),
        "source": [SOURCES[code] for code in served.sources] if len(served.sources) == n else [None] * n,
        "clicked": [clicked.get(position) for position in range(n)],
    }
    items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    about = {"user_id": served.user_id, "ts_ms": served.ts_ms, "arm": served.arm_name or served.arm}
    return about | {"model_version": served.model_version}, items


def _of_archive(settled: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two users' clients may give their pages one name: the first one's."""
    first = settled[0]
    about = {name: first[name] for name in ("user_id", "ts_ms", "arm", "model_version")}
    own = [row for row in settled if row["user_id"] == first["user_id"]]
    names = ("position", "item_id", "score", "ranked", "propensity", "source", "clicked")
    return about, [{name: row[name] for name in names} for row in own]


def _features_of_log(served: PageView, schema: Schema) -> Features | None:
    layout, n = schema.layout, len(served.items)
    if served.schema_id != schema.id or (len(served.cat), len(served.num)) != (8 * n * layout.F, 4 * n * layout.N):
        return None
    cat, num = np.frombuffer(served.cat, "<i8"), np.frombuffer(served.num, "<f4")
    return cat.reshape(n, layout.F), num.reshape(n, layout.N)


def _kept_features(archive: Path, schema: Schema, request_id: str, items: list[dict[str, Any]]) -> Features | None:
    table = _read(archive / "features", LoggedTable(schema).schema, "request_id", request_id)
    table = table.filter(pc.equal(table["schema_id"], schema.id)).sort_by("position")
    known = table["position"].to_pylist() == [item["position"] for item in items]
    return arrays(table, schema) if known and items else None


def _explain(
    settings: Settings, schema: Schema, version: int | None, items: list[dict[str, Any]], found: Features
) -> str:
    """Gives the first items their reasons; which version's they are."""
    store = ModelStore(settings.place("models"), writes=False)
    notes = [note for note in store.snapshots() if note.schema_id == schema.id]
    if not notes or version is None:
        return "no reasons: no model of the page's schema is kept"
    note = min(notes, key=lambda one: abs(one.version - version))
    try:
        parts = (split(part)[0] for part in store.read_parts(note))  # the ranker alone
        writer = writer_of(schema, note.spec, parts, named=settings.model)
        model = reader_of(schema, note.spec, writer.base(), named=settings.model)
    except SnapshotError as error:
        return f"no reasons: {error.problem}"
    inputs, most = score_reasons.inputs_of(schema), score_reasons.MOST_ITEMS
    effects = score_reasons.effects(model, found[0][:most], found[1][:most], inputs)
    for item, of in zip(items, score_reasons.strongest(effects, inputs), strict=False):
        item["reasons"] = [{"input": name, "effect": round(effect, 4)} for name, effect in of]
    text = f"reasons are by version {note.version}, the nearest to the page's that is kept"
    share = _alike([item["score"] for item in items[:most]], model.score(found[0][:most], found[1][:most]).tolist())
    if share >= _ALIKE:
        return text
    return (
        f"{text}: it orders {share:.0%} of the items' pairs as the page's scores do, so they do not explain this page"
    )


def _alike(some: Sequence[float | None], others: Sequence[float]) -> float:
    """The share of pairs that both order alike, of those that the first orders; 1 where it orders none.

    >>> _alike([0.5, 0.4, 0.3], [0.9, 0.1, 0.2])
    0.6666666666666666
    """
    known = np.array(some, np.float64)  # not logged: NaN, which orders nothing
    former, now = (np.sign(np.subtract.outer(of, of)) for of in (known, np.array(others)))
    ordered = np.triu(np.abs(former) == 1)
    return float((former == now)[ordered].mean()) if ordered.any() else 1.0
