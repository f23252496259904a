# shell
"""``millrace log audit LOG --schema S``: reads the log, audits it, prints what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.basics.errors import LeakError
from millrace.commands.proofs.altered import altered_side
from millrace.commands.proofs.auditreport import print_audit, time_text, write_audit
from millrace.commands.proofs.leak_audit import Audit, audit
from millrace.commands.replay.logsamples import LabelSettings, ReplayModel, ReplayObserver
from millrace.commands.replay.reading import name_of_log, reading
from millrace.commands.replay.replayrun import BATCH_ROWS, THREADS, run_log
from millrace.contracts.schema import Schema, load_schema
from millrace.logs import TS, LogTable
from millrace.logs.faults import Faults
from millrace.logs.frames import Frame, Log, log_parts
from millrace.logs.log_joins import SideTable, beside
from millrace.reports import make_folder


def audit_log(
    log: Log,
    schema: Schema | Path | str,
    out: Path | None,
    *,
    spec: Mapping[str, Any],
    seed: int = 0,
    labels: LabelSettings,
    skip_bad: bool = False,
    progress: bool = True,
) -> Audit:
    """Audits a log; writes report.json, run.json, report.html and plots to ``out``, if it is given.

    Raises:
        LeakError: something before a time depends on what comes after it. Its text names what.
        LogError, SchemaError, SettingError: as replay.
    """
    plan, parts = load_schema(schema), log_parts(log)
    console = Console(stderr=True)
    if out is not None:
        make_folder(out, "report.json")

    def tick(what: str) -> None:
        if progress:
            console.print(f"audit: {what}", highlight=False)

    def run(table: LogTable, model: ReplayModel, observer: ReplayObserver) -> object:
        outcomes = getattr(observer, "outcomes", None)
        return run_log(table, plan, model, BATCH_ROWS, lambda _: None, None, labels, observer, outcomes=outcomes)

    with ExitStack() as stack:
        stack.enter_context(threads(THREADS))
        table = stack.enter_context(reading(parts, plan, out, skip_bad, say=progress))
        altered = None
        if any(join.at is not None for join in plan.join):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-audit-")))
            altered = side_tables_altered(parts, plan, folder, out, skip_bad)
        found = audit(table, plan, lambda: model_of(plan, spec, seed), run, seed=seed, another=altered, tick=tick)
        ts_ms = table.table[TS].to_numpy().copy()  # of a mapped file, which goes
    if out is not None:
        said = {
            "log": ", ".join(map(str, parts)),
            "schema": plan.source,
            "seed": seed,
            "spec": dict(spec),
            "label_policy": labels.policy or "immediate",
        }
        write_audit(out, found, ts_ms, said, name_of_log(parts))
    if progress:
        print_audit(found)
        if out is not None:
            console.print(f"report in {out}", highlight=False)
    if found.leaks:
        first = found.leaks[0]
        names = ", ".join(f"'{leak.name}' ({leak.count:,})" for leak in found.leaks[:8])
        raise LeakError(
            f"{len(found.leaks)} names differ before a cut: {names}; '{first.name}' first in row {first.row} at "
            f"{time_text(first.ts_ms)}: {first.value} became {first.altered} when all after {time_text(first.cut_ms)} "
            "changed",
            "they use what is not known yet at that time; docs/how-to/trust-a-replay.md says what each name means",
        )
    return found


def side_tables_altered(
    paths: Sequence[Path | Frame], plan: Schema, folder: Path, out: Path | None, skip_bad: bool
) -> Callable[[int, int], AbstractContextManager[LogTable]]:
    """A function (time, seed) that reads the log again with side tables whose rows after this time are altered. Only
    tables with a time of validity: the rows of others have no known date.

    Args:
        out: see :func:`~millrace.commands.replay.reading.reading`.
    """
    wanted = {f.name for f in plan.fields} | {c for k in plan.windows.keys for c in k.columns}

    @contextmanager
    def another(at_ms: int, seed: int) -> Iterator[LogTable]:
        joins = []
        for n, join in enumerate(plan.join):
            file = beside(paths, join.file).absolute()
            if join.at is None:
                joins.append(msgspec.structs.replace(join, file=str(file)))
                continue
            side, holds_ms = SideTable(file, join, plan, wanted, Faults(str(file), skip_bad), folder).held
            assert holds_ms is not None
            side = side.set_column(side.column_names.index(join.at), join.at, pa.array(holds_ms))
            path = folder / f"side-{n}.parquet"
            pq.write_table(altered_side(side, holds_ms, join.on, join.at, at_ms, seed), path)
            plain = type(join)(file=str(path), on=join.on, at=join.at, time_unit="ms")
            joins.append(plain)
        with reading(paths, msgspec.structs.replace(plan, join=tuple(joins)), out, skip_bad, say=False) as table:
            yield table

    return another
