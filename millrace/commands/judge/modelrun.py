# shell
"""``millrace judge ARCHIVE --model STORE``: reads exposures with features, says what a model's order would have earned.

Rows that the model has learnt from are never judged: a snapshot names the newest exposure it has seen, and what is
judged is later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learner.role.model_factory import resumed
from millrace.basics.errors import LogError, SettingError, SnapshotError
from millrace.commands.judge.archive_reader import ArchiveReader, Outcome, page_numbers
from millrace.commands.judge.judgerun import band_plots, worded
from millrace.commands.judge.orders import SLOTS, ArmPages, Places, Shown, drawn
from millrace.commands.proofs.archived import REMEDY
from millrace.commands.repair.lineage import end_of
from millrace.commands.repair.without import time_of
from millrace.contracts.events import CONTROL
from millrace.logs.values import hashes
from millrace.reports import make_folder, say, show
from millrace.reports.progress import Took
from millrace.reports.result import Result
from millrace.versions.modelstore import ModelStore
from millrace.windows.pagewide import late_columns

_MORE = {
    "position": pa.int32(),
    "slot": pa.int32(),
    "source": pa.string(),
    "score": pa.float32(),
    "odds": pa.float32(),
    "ranked": pa.float32(),
}


def judge_model(
    archive: Path,
    out: Path | str | None = None,
    *,
    model: str,
    of: int | None = None,
    own_class: str = "",
    outcome: Outcome = "click",
    value: str | None = None,
    since_ms: int = 0,
    every_ms: int,
) -> Result:
    """Says what a model's order would have earned; writes that to the folder ``out``, if it is given.

    Args:
        archive: the folder ``archive`` of a loop's data, with features.
        model: the store of the model that is judged, as ``DATA/models`` or ``DATA/learners/NAME/models``.
        of: its version; None: the newest.
        own_class: a model of one's own is imported only where it is this one.
        outcome, value: see :func:`~millrace.commands.judge.judgerun.judge`. Outcomes are those that the archive counts.
        since_ms: pages from then on.
        every_ms: from look to look.

    Raises:
        LogError: there is no such archive, or it has no exposures that the model has not learnt from.
        SettingError: no such attribute, or a span that is not above 0.
        SnapshotError: there is no such model, or it is of another schema.
        SchemaError, StoreError: the archive's schema file, or the store, cannot be read.
    """
    took = Took()
    if every_ms < 1:
        raise SettingError(f"looks every {every_ms} ms", "give a span above 0")
    if out is not None:
        make_folder(Path(out), "report.json")
    reader = ArchiveReader(archive, outcome, value, since_ms)
    schema = reader.schema
    store = ModelStore(model, writes=False)
    notes = store.snapshots()
    note = end_of(store, notes, of)
    if note.schema_id != schema.id:
        raise SnapshotError(
            f"version {note.version} is of schema {note.schema_id}, the archive of {schema.id}",
            "name a model and an archive of one schema",
        )
    learner = resumed(schema, note, store.read_whole(note), own_class)
    taken: defaultdict[str, ArmPages] = defaultdict(ArmPages)
    earlier = without = 0
    for files, table in reader.parts(_MORE):
        later = table.filter(pc.greater(table["ts_ms"], note.event_ms))
        earlier += table.num_rows - later.num_rows
        if not later.num_rows:
            continue
        later, shown = _by_page(later)
        drawn_rows = drawn(shown)
        where, cat, num = _features(reader, files, later, drawn_rows)
        without += len(drawn_rows) - len(where)
        scores = learner.score(cat, num).astype(np.float64).reshape(where.shape)
        arms = np.asarray(later["arm"].to_pylist(), str)
        for arm in np.unique(arms):
            mine = arms == arm
            own = mine[where[:, 0]]
            at = np.cumsum(mine) - 1  # where its exposures are among its own
            taken[str(arm)].take(Shown(*(column[mine] for column in shown)), at[where[own]], scores[own])
    if not taken:
        raise LogError(
            f"version {note.version} was trained until {time_of(note.event_ms)}, and '{archive}' has no later page",
            f"wait, or name an older version with --of, of {', '.join(str(one.version) for one in notes[::-1])}",
        )
    if without and not any(one.rows for one in taken.values()):
        raise LogError(f"the archive '{archive}' has no logged features of the pages to judge", REMEDY)
    unit, said = f"{value or outcome + 's'} a row", f"Version {note.version}, on later pages than it has learnt from."
    arm_rows, estimates, curves = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for arm, one in sorted(taken.items()):
        found = one.judged()
        row = {"arm": arm, "pages": one.pages, "drawn_rows": one.rows, "effective_rows": round(found.effective())}
        support = round(SLOTS * one.rows / one.exposures, 4)
        arm_rows.append(row | {"slots_with_support": support, "pinned_slots": one.pinned})
        estimates += found.table(arm)
        curves += found.looks(arm, every_ms)
        said += f" {found.verdict(worded(arm), unit, one.pages)}"
    said += reader.left_out
    report: dict[str, Any] = {
        "verdict": said,
        "unit": unit,
        "slots_of_a_row": SLOTS,
        "exposures_before": earlier,
        "users_left_out": reader.beyond,
        "exposures_logged": reader.logged,
        "arms": arm_rows,
        "estimates": estimates,
        "curves": curves,
    }

    def print_it() -> None:
        show("", arm_rows)
        show(unit, estimates)
        say(said)

    plots = partial(band_plots, curves, [row["arm"] for row in arm_rows], "served", unit)
    return Result(report, took.run, "Which order earns more?", plots, print_it).written(out)


def _by_page(table: pa.Table) -> tuple[pa.Table, Shown]:
    """Exposures by page, then position."""
    page, position = page_numbers(table), table["position"].to_numpy()
    order = np.lexsort((position, page))
    table, page = table.take(pa.array(order)), page[order]
    guest = pc.is_null(table["user"]).to_numpy()
    came = pc.is_valid(table["came_ms"]).to_numpy()
    return table, Shown(
        ts_ms=table["ts_ms"].to_numpy(),
        user=np.where(guest, -1 - page, hashes(table["user"]).view(np.int64)),
        page=page,
        control=pc.equal(table["source"].fill_null(""), CONTROL).to_numpy(),
        position=table["position"].to_numpy().astype(np.int64),
        slot=table["slot"].to_numpy().astype(np.int64),
        item=hashes(table["item"]).view(np.int64),
        odds=table["odds"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        score=table["score"].to_numpy(),
        ranked=pc.coalesce(table["ranked"], table["score"]).to_numpy(),
        reward=np.where(came, table["value"].fill_null(0.0).to_numpy(), 0.0),
    )


def _features(
    reader: ArchiveReader, files: Sequence[Path], table: pa.Table, where: Places
) -> tuple[Places, NDArray[np.int64], NDArray[np.float32]]:
    """The rows of which each item has logged features in ``files``, and these as while the page was ranked: cat
    (R m, F) and num (R m, N)."""
    cat, num, there = reader.features(
        files, table.select(["request", "position", "user"]).take(pa.array(where.ravel()))
    )
    whole = there.reshape(where.shape).all(1)
    slots, late = np.repeat(whole, where.shape[1]), late_columns(reader.schema)
    cat[:, [column for column, name in enumerate(reader.schema.layout.cat_names) if name in late]] = 0
    return where[whole], cat[slots], num[slots]
