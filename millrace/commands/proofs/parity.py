# shell
"""``millrace data parity --data DATA``: replays the archive of a loop and compares it with what the loop logged.

The features by replay must equal, to the bit, those that the scorer logged. One model learns from each, and their AUCs
are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec.structs import replace as replaced
from numpy.typing import NDArray

from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.basics.clustered import Gap, auc_parts, gap, user_numbers
from millrace.basics.errors import ParityError
from millrace.basics.store import Store
from millrace.commands.proofs.archived import Archived, read_archive
from millrace.commands.proofs.parityreport import MOST_GAP, make_report, print_parity, write_parity
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, learn_through
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.settings import Settings
from millrace.reports import make_folder
from millrace.reports.progress import bars
from scorer.feeder.arithmetic import choices

_BATCH_ROWS = 256
_STEPS = 4


def verify_parity(data: Path, settings: Settings, out: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Compares, prints, and writes report.json, run.json, report.html and plots to ``out`` if given; the report.

    Args:
        data: the data folder of a loop whose archive has features; the loop may be running.
        settings: model, spec and label policy for the two AUCs.

    Raises:
        LogError, SchemaError: there is no archive to compare.
        StoreError: the store cannot be read.
        ParityError: the AUCs differ by more than :data:`MOST_GAP`, and the interval confirms it.
    """
    if out is not None:
        make_folder(out, "report.json")
    with bars(progress) as tick:
        tick("parity", 0, _STEPS)
        archived = read_archive(data / "archive")
        tick("parity", 1, _STEPS)
        cat, num = replayed(archived)
        tick("parity", 2, _STEPS)
        logged_auc, found = _gap(archived, cat, num, settings)
        tick("parity", _STEPS, _STEPS)
    served = choices(Store(replaced(settings, data=str(data)).place("models"), writes=False))
    report = make_report(archived, cat, num, logged_auc, found, served)
    if out is not None:
        run = {"data": str(data), "seed": settings.seed, "spec": dict(settings.spec())}
        write_parity(out, report, run | {"label_policy": settings.label_policy})
    if progress:
        print_parity(report)
    if abs(found.value) - found.half > MOST_GAP:  # False where there is no AUC or no interval
        raise ParityError(
            f"progressive AUC of replayed features {logged_auc + found.value:.4f}, of logged ones {logged_auc:.4f}: "
            f"{abs(found.value):.4f} +- {found.half:.4f} apart, more than {MOST_GAP:g}",
            "see which features differ",
        )
    return report


def replayed(archived: Archived) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """cat (m, F) and num (m, N) of the exposures with logged features, by replay's own code.

    Live, numbers among candidates are measured against all that recall found, and a log has only what was shown. So
    they are made again where the archive has a page's candidates, and are as logged elsewhere.
    """
    cat, num = Stretches(archived.log, archived.schema).of(archived.logged.row)
    logged, builder = archived.logged, archived.rows.builder
    num[:, builder.layout.among_start :] = logged.num[:, builder.layout.among_start :]
    page = archived.rows.page[logged.row]
    for number, kept in logged.sets.items():
        own = np.flatnonzero(page == number)
        num[own] = builder.measured(num[own], kept)
    return cat, num


def _gap(archived: Archived, cat: NDArray[np.int64], num: NDArray[np.float32], settings: Settings) -> tuple[float, Gap]:
    """(progressive AUC on the features as logged, that on the features as replayed less it)."""
    logged, how = archived.logged, LabelSettings.of(settings)
    user = user_numbers(archived.log.table[archived.log.user].take(pa.array(logged.row)))
    label = archived.rows.label[logged.row]
    on_logged, on_replayed = (
        auc_parts(progressive(archived, *features, settings.spec(), settings.seed, how), label)
        for features in ((logged.cat, logged.num), (cat, num))
    )
    return on_logged[0], gap(on_replayed, on_logged, label, user)


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
    log = replace(log, table=log.table.take(pa.array(archived.logged.row)))
    rows = LogRows(log, schema)
    samples = KnownSamples.of(rows.ts_ms, Labels(log, schema, rows), how.named, how.observation_ms)
    with threads(1):
        return learn_through(model_of(schema, spec, seed), rows, cat, num, samples, _BATCH_ROWS)
