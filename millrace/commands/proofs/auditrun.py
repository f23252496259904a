# shell
"""``millrace log audit``: replays a log with other futures, and says what saw them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.commands.proofs import leak_audit
from millrace.commands.proofs.altered import altered_side
from millrace.commands.proofs.auditreport import error_of, plots_of, print_report, report_of
from millrace.commands.replay.logsamples import ReplayModel, ReplayObserver
from millrace.commands.replay.reading import about, name_of_log, reading, say_decisions
from millrace.commands.replay.replayrun import BATCH_ROWS, THREADS, labels_of, run_log
from millrace.contracts.schema import Schema, load_schema
from millrace.logs import TS, LogTable
from millrace.logs.faults import Faults
from millrace.logs.frames import Frame, Log, log_parts
from millrace.logs.log_joins import SideTable, beside
from millrace.reports import make_folder
from millrace.reports.progress import Took, bars
from millrace.reports.result import Result


def audit(
    log: Log,
    schema: Schema | Path | str,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    model: str | None = None,
    label_policy: str | None = None,
    skip_bad: bool = False,
    spec: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Result:
    """Looks for leaks in a replay: alters all that comes after random times, and names what differs before them.

    A leak is a row of ``result.leaks``; ``result.error`` is then the LeakError that ends the command.

    Args:
        log, schema, model, label_policy, skip_bad, progress: as of :func:`~millrace.commands.replay.replayrun.replay`.
        out: a folder for report.json, run.json, report.html and plots.
        seed: of the model, of the times, and of what is altered.
        spec: values of the model that differ from the setting's.

    Raises:
        LogError, SchemaError, SettingError: as of replay.
    """
    took = Took()
    plan, parts, folder = load_schema(schema), log_parts(log), None if out is None else Path(out)
    labels, settings = labels_of(label_policy)
    wanted = settings.spec() | dict(spec or {}) | ({"model": model} if model else {})
    model_of(plan, wanted, seed)  # an unknown one is an error before anything long begins
    if folder is not None:
        make_folder(folder, "report.json")

    def run_once(table: LogTable, one: ReplayModel, observer: ReplayObserver) -> object:
        outcomes = getattr(observer, "outcomes", None)
        return run_log(table, plan, one, BATCH_ROWS, lambda _: None, None, labels, observer, outcomes=outcomes)

    with threads(THREADS), ExitStack() as stack:
        table = stack.enter_context(reading(parts, plan, folder, skip_bad, say=False))
        altered = None
        if any(join.at is not None for join in plan.join):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-audit-")))
            altered = side_tables_altered(parts, plan, place, folder, skip_bad)
        tick = stack.enter_context(bars(progress))
        found = leak_audit.audit(
            table, plan, lambda: model_of(plan, wanted, seed), run_once, seed=seed, another=altered, tick=tick
        )
    run = about(parts, plan, table) | took.run
    run |= {"seed": seed, "spec": wanted, "label_policy": labels.policy or "immediate"}
    report = report_of(found)

    def say_it() -> None:
        say_decisions(table)
        print_report(report)

    title = f"Leak audit of {name_of_log(parts)}"
    result = Result(report, run, title, lambda: plots_of(found, table.table[TS].to_numpy()), say_it)
    result.error = error_of(found)
    return result.written(folder)


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
