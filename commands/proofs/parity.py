# core
"""``millrace data parity --data DATA``: do live and replay agree? The archive of a loop is replayed and compared.

::

    archive ─► exposures, as replay reads them ─► features by replay ─┐
            └► features, as the scorer logged them ───────────────────┴─► equal to the bit? if not, why?
                                                                      └─► one model on each: AUC, cause by cause
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from commands.proofs.archived import Archived, read_archive
from commands.proofs.causes import Cause, Compared, compare
from commands.proofs.parityreport import MOST_GAP, make_report, present, print_parity, write_parity
from commands.replay.known import LabelSettings, Samples
from commands.replay.logfeatures import Labels, LogRows
from learner.network.dense import threads
from learner.role.making import model_of
from millrace.basics.clustered import Gap, Parts, auc_parts, user_numbers
from millrace.basics.clustered import gap as gap_of
from millrace.basics.errors import ParityError
from millrace.contracts.settings import Settings
from millrace.reports import make_folder, surroundings

_BATCH_ROWS = 256
_THREADS = 1


def verify_parity(data: Path, settings: Settings, out: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Compares, prints, writes report.json, run.json, report.html and plots to ``out`` if it is given; the report.

    Args:
        data: the data folder of a loop whose archive has features; the loop may still run.
        settings: model, spec and label policy for the two AUCs.

    Raises:
        LogError, SchemaError: there is no archive to compare.
        ParityError: the AUCs differ by more than :data:`MOST_GAP`, and the interval says so too.
    """
    if out is not None:
        make_folder(out, "report.json")
    with _steps(progress) as tick:
        tick("reading the archive")
        archived = read_archive(data / "archive")
        found = compare(archived, tick)
        auc, gaps = _merits(archived, found, settings, tick)
    report = make_report(archived, found, gaps, auc)
    if out is not None:
        run = {"data": str(data), "seed": settings.seed, "spec": dict(settings.spec())}
        write_parity(out, report, archived, found, run | {"label_policy": settings.label_policy} | surroundings())
    if progress:
        print_parity(report)
    gap, half = gaps[Cause.REPLAY].value, gaps[Cause.REPLAY].half
    if abs(gap) - half > MOST_GAP:  # False where there is no AUC or no interval
        raise ParityError(
            f"progressive AUC of replayed features {auc[1]:.4f}, of logged ones {auc[0]:.4f}: {abs(gap):.4f} +- "
            f"{half:.4f} apart, more than {MOST_GAP:g}",
            "see with which cause the gap goes",
        )
    return report


def _merits(
    archived: Archived, found: Compared, settings: Settings, tick: Callable[[str], None]
) -> tuple[tuple[float, float], dict[Cause, Gap]]:
    """Progressive AUC on the features as logged and as replayed, and the gaps that are left when the values of all
    causes up to each are as logged."""
    pages, labels = archived.pages, LabelSettings.of(settings)
    user = user_numbers(archived.log.table[archived.log.user].take(pa.array(pages.row)))
    label = archived.rows.label[pages.row]

    def parts(cat: NDArray[np.int64], num: NDArray[np.float32]) -> Parts:
        return auc_parts(progressive(archived, cat, num, settings.spec(), settings.seed, labels), label)

    tick("a model on the features as logged")
    logged = parts(pages.cat, pages.num)
    *causes, last = Cause.REPLAY, *present(found)
    gaps = {last: gap_of(logged, logged, label, user)}  # with all causes every value is as logged
    for cause in causes:
        tick(f"a model on those as replayed, but for causes up to: {cause.name.lower().replace('_', ' ')}")
        cat = np.where(found.cat_cause <= cause, pages.cat, found.cat)
        replayed = parts(cat, np.where(found.num_cause <= cause, pages.num, found.num))
        gaps[cause] = gap_of(replayed, logged, label, user)
    return (logged[0], logged[0] + gaps[Cause.REPLAY].value), gaps


def progressive(
    archived: Archived,
    cat: NDArray[np.int64],
    num: NDArray[np.float32],
    spec: Mapping[str, Any],
    seed: int,
    how: LabelSettings,
) -> NDArray[np.float32]:
    """Scores (m,) of a model that learns as in replay, from features cat (m, F) and num (m, N)."""
    log, schema = archived.log, archived.schema
    log = replace(log, table=log.table.take(pa.array(archived.pages.row)))
    rows = LogRows(log, schema)
    samples = Samples.of(rows.ts_ms, Labels(log, schema, rows), how.named, how.observation_ms)
    bias = schema.layout.bias_columns
    p, scored = np.empty(rows.n, np.float32), 0
    with threads(_THREADS):
        model = model_of(schema, spec, seed)
        for start in range(0, len(samples.row), _BATCH_ROWS):
            part = slice(start, min(start + _BATCH_ROWS, len(samples.row)))
            end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
            for first in range(scored, end, _BATCH_ROWS):
                shown = slice(first, min(first + _BATCH_ROWS, end))
                ids = cat[shown].copy()
                ids[:, bias] = 0
                p[shown] = model.score(ids, num[shown])
            scored = max(scored, end)
            row = samples.row[part]
            model.learn(samples.batch(part, rows, cat[row], num[row]))
    return p


@contextmanager
def _steps(wanted: bool) -> Iterator[Callable[[str], None]]:
    """What is done now, on a terminal."""
    if not wanted:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("parity")
        yield lambda what: bar.update(task, description=what)
