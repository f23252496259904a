# shell
"""``millrace judge``: reads an archive, and says which arm earns more and since when that is sure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from commands.judge.arms import ArmUsers, Exposures, decided_ms, estimate, looks, users_wanted
from millrace.basics.errors import LogError, SettingError, one_line
from millrace.basics.hashing import combine, salt
from millrace.contracts.events import CONTROL, LOGGED, MODEL
from millrace.contracts.schema import load_schema
from millrace.evidence.sequences import LEAST, Estimate, error_each
from millrace.logs.later_events import LaterEvents
from millrace.logs.values import hashes
from millrace.reports import MAIN, Plot, canvas, make_folder, say, show, write_all
from millrace.reports.spans import span_name
from stream.archive.archive_columns import ArchiveColumns
from stream.archive.archive_folder import makers_of

Outcome = Literal["click", "collect", "cart", "purchase"]
PART_ROWS = 1 << 18
"""Rows in memory at a time, and those of one file more."""
_PAGE = salt("judge", "page")
_NOBODY = pa.array([], pa.string())


def judge(
    archive: Path,
    out: Path,
    *,
    outcome: Outcome = "click",
    value: str | None = None,
    by: Literal["user", "page"] = "user",
    horizon_ms: int,
    every_ms: int,
    baseline: str = CONTROL,
    since_ms: int = 0,
) -> dict[str, Any]:
    """Writes report.json, run.json, report.html and a plot to ``out``, prints table and verdict, returns the report.

    Args:
        archive: the folder ``archive`` of a loop's data.
        outcome: what is counted.
        value: a numeric item attribute that an outcome counts; None: 1 each.
        by: outcomes of a user within the horizon, or of a page of his.
        horizon_ms: how long a user's pages and outcomes count, from his first page on.
        every_ms: from look to look.
        baseline: the arm that others are compared with.
        since_ms: pages before this event time count for nothing, as those before the arms were changed.

    Raises:
        LogError: there is no archive, or no user in it whose horizon is over.
        SettingError: no such attribute, or no such arm, or a span that is not above 0.
        SchemaError: the archive's schema file cannot be read.
        StoreError: its note of who makes the pages cannot be read.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    if horizon_ms < 1 or every_ms < 1:
        raise SettingError(f"a horizon of {horizon_ms} ms, looks every {every_ms} ms", "give spans above 0")
    make_folder(out, "report.json")
    taken = ArmUsers(horizon_ms)
    beyond, logged = users_beyond(archive, since_ms), 0
    for _, part in exposure_parts(archive, outcome, value, without=beyond):
        rows = _exposures(part, since_ms)
        logged += int(np.count_nonzero(rows.arm == LOGGED))
        taken.take(rows)
    users = taken.found()
    if not len(users.until_ms):
        raise LogError(
            f"of {users.waiting:,} users in '{archive}' none was seen for {span_name(horizon_ms)}",
            "give a shorter --horizon, or wait." + left_out(len(beyond), logged),
        )
    arms = sorted(set(users.arm.tolist()))
    if baseline not in arms:
        raise SettingError(f"no user is in the arm '{baseline}'", f"choose from {', '.join(arms)}")
    by_page = by == "page"
    seen = looks(users, every_ms, by_page, baseline)
    last = [row for row in seen if row["at_ms"] == seen[-1]["at_ms"]]
    unit = f"{value or outcome + 's'} a {by}"
    found = {name: estimate(users, len(users.until_ms), name, by_page) for name in arms}
    verdict = verdict_of(found, seen, baseline, unit)
    made_by, said = _makers(archive, taken.first_ms, since_ms)
    verdict += said + left_out(len(beyond), logged)
    if taken.halvings:
        verdict += f" Of so many users one in {1 << taken.halvings} was counted, by a hash."
    arm_rows = [
        {name: cell for name, cell in row.items() if name != "at_ms"}
        | {"decided_since": _when(decided_ms(seen, row["arm"]))}
        for row in last
    ]
    report: dict[str, Any] = {
        "verdict": verdict,
        "unit": unit,
        "horizon": span_name(horizon_ms),
        "users_waiting": users.waiting,
        "users_left_out": len(beyond),
        "exposures_logged": logged,
        "arms": arm_rows,
        "made_by": made_by,
        "curves": seen,
    }
    run = {"started": started.isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - clock, 1)}
    write_all(out, report, run, [band_plot(seen, arms, baseline, unit)], "Which arm earns more?")
    show(unit, arm_rows, list(arm_rows[0]))
    say(verdict)
    return report


def _makers(archive: Path, first_ms: int, since_ms: int) -> tuple[dict[str, str], str]:
    """Whose models made the pages of the arms, and a sentence of it; empty where all were the first learner's."""
    notes = makers_of(archive)
    later = [note for note in notes if note.since_ms > max(first_ms, since_ms)]
    made_by = notes[-1].made_by if notes else {}
    said = "".join(f" Pages of '{arm}' are by {maker}." for arm, maker in made_by.items())
    if later:
        said += f" Who makes the pages was changed on {_when(later[-1].since_ms)}: ask with --since for those after it."
    return made_by, said


def _exposures(table: pa.Table, since_ms: int) -> Exposures:
    """The exposures of a part whose page log came, from a time on."""
    table = table.filter(pc.and_(pc.is_valid(table["arm"]), pc.greater_equal(table["ts_ms"], since_ms)))
    arms = pc.dictionary_encode(table["arm"]).combine_chunks()
    names = np.asarray(arms.dictionary.to_pylist(), str)
    return Exposures(
        table["ts_ms"].to_numpy(),
        hashes(table["user"]).view(np.int64),
        page_numbers(table),
        names[arms.indices.to_numpy()] if len(names) else np.empty(0, str),
        table["came_ms"].fill_null(-1).to_numpy(),
        table["value"].fill_null(0.0).to_numpy(),
    )


def exposure_parts(
    archive: Path,
    outcome: Outcome,
    value: str | None,
    more: Mapping[str, pa.DataType] = MappingProxyType({}),
    without: pa.Array = _NOBODY,
) -> Iterator[tuple[list[Path], pa.Table]]:
    """ts_ms, user, item, request, arm, came_ms and value of an archive's exposures, and ``more`` of its own columns,
    null in files without them: of the next files that have :data:`PART_ROWS` together, but for users ``without``.
    ``came_ms`` of all but clicks is by the archive's events, however late they came. Raises what :func:`judge` raises.
    """
    files, columns = _files_of(archive)
    if value is not None:
        columns.number(value)
    later = None if outcome == "click" else LaterEvents(archive / "events", [outcome])
    read: list[Path] = []
    tables: list[pa.Table] = []
    for file in files:
        read.append(file)
        table = _of_file(file, columns, outcome, value, more)
        table = table.filter(pc.invert(pc.is_in(table["user"], value_set=without)))
        if later is not None:
            came_ms = later.times(outcome, *(table[name] for name in ("came_ms", "user", "request", "item")))
            table = table.set_column(table.column_names.index("came_ms"), "came_ms", pa.chunked_array([came_ms]))
        tables.append(table)
        if file is files[-1] or sum(map(len, tables)) >= PART_ROWS:
            yield read, pa.concat_tables(tables)
            read, tables = [], []


def users_beyond(archive: Path, since_ms: int) -> pa.Array:
    """Users with an exposure beyond the training limit of an hour, from a time on: bots, or an account of many people.
    A user is the unit that is judged, so all of theirs counts for nothing. Raises as :func:`exposure_parts`."""
    files, columns = _files_of(archive)
    mark, at = columns.own["over_limit"], columns.own["time_ms"]
    found = _NOBODY
    for file in files:
        try:
            if mark in pq.read_schema(file).names:
                table = pq.read_table(file, columns=[columns.user, mark, at])
                of = table.filter(pc.and_(table[mark], pc.greater_equal(table[at], since_ms)))[columns.user]
                found = pc.unique(pa.concat_arrays([found, *of.cast(pa.string()).chunks]))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise _unreadable(file, error) from None
    return found


def left_out(users: int, logged: int) -> str:
    """Sentences of what counts in no arm."""
    said = f" Users beyond the training limit of an hour count in no arm: {users:,}." if users else ""
    if logged:
        said += (
            f" {logged:,} exposures of pages that were only scored here, of no arm by name ('{LOGGED}'), count in none:"
            " name it as `arm` in POST /score."
        )
    return said


def _files_of(archive: Path) -> tuple[list[Path], ArchiveColumns]:
    files = sorted((archive / "exposures").glob("*.parquet"))
    if not (archive / "schema.toml").exists() or not files:
        raise LogError(
            f"'{archive}' holds no archived exposures", "name the folder 'archive' of a loop that ran with --archive"
        )
    return files, ArchiveColumns(load_schema(archive / "schema.toml"))


def _unreadable(file: Path, error: Exception) -> LogError:
    return LogError(f"'{file}' cannot be read ({one_line(error)})", "move it away, or restore it")


def _of_file(
    file: Path, columns: ArchiveColumns, outcome: Outcome, value: str | None, more: Mapping[str, pa.DataType]
) -> pa.Table:
    """A file's rows; a number that it has not is unknown. An older file may have the archive's own columns under other
    names, since a field of the present schema took one. Raises LogError for a file that cannot be read."""
    try:
        reader = pq.ParquetFile(file)
        there, names = set(reader.schema_arrow.names), columns.own

        def own(name: str) -> str:
            return names[name] if names[name] in there else name

        kinds = {
            "ts_ms": (own("time_ms"), pa.int64()),
            "user": (columns.user, pa.string()),
            "item": (columns.item, pa.string()),
            "request": (own("request_id"), pa.string()),
            "arm": (own("arm"), pa.string()),
            "came_ms": (own(f"{outcome}_ms"), pa.int64()),
        }
        kinds |= {name: (own(name), kind) for name, kind in more.items() if own(name) in there}
        if value is not None and value in there:
            kinds["value"] = value, pa.float64()
        table = reader.read(columns=[column for column, _ in kinds.values()])
        made = {name: table[column].cast(kind) for name, (column, kind) in kinds.items()}
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _unreadable(file, error) from None
    if "value" not in made:
        made["value"] = pa.array(np.full(table.num_rows, 1.0 if value is None else 0.0))
    lacking = {name: pa.nulls(table.num_rows, kind) for name, kind in more.items() if name not in made}
    return pa.table(made | lacking).select(["ts_ms", "user", "item", "request", "arm", "came_ms", "value", *more])


def page_numbers(table: pa.Table) -> NDArray[np.int64]:
    """Of each exposure's page. Two users' pages may have one name, so a page is of its user."""
    user, request = (hashes(table[name]) for name in ("user", "request"))
    return combine(_PAGE, request, user | np.uint64(1)).view(np.int64)  # a guest's hash is 0


def verdict_of(found: Mapping[str, Estimate], seen: Sequence[Mapping[str, Any]], baseline: str, unit: str) -> str:
    """What the last look says of each arm's figure, in plain sentences."""
    sentences, other, there = [], found[baseline], sum(one.n for one in found.values())
    for name, one in found.items():
        if name == baseline:
            continue
        since, last = decided_ms(seen, name), next(row for row in reversed(seen) if row["arm"] == name)
        if since is not None:
            more = "more" if last["difference"] > 0 else "less"
            sentences.append(
                f"{worded(name)} earn {abs(last['difference']):.4g} {unit} {more} than {worded(baseline).lower()} "
                f"({last['difference_low']:.4g} to {last['difference_high']:.4g}), decided since {_when(since)}."
            )
        elif not (one.said and other.said):
            sentences.append(
                f"{worded(name)} and {worded(baseline).lower()}: not enough yet. Each arm needs {LEAST} effective "
                f"users: the {one.n:,} and {other.n:,} users tell as much as {one.effective:,.0f} and "
                f"{other.effective:,.0f} with equal outcomes."
            )
        else:
            wanted = users_wanted(one, other, error_each(len(found)))
            later = f" A difference like today's would be decided with some {wanted:,} users." if wanted else ""
            sentences.append(
                f"{worded(name)} and {worded(baseline).lower()}: not decided with {there:,} users "
                f"({last['difference_low']:.4g} to {last['difference_high']:.4g} {unit}).{later}"
            )
    return " ".join(sentences) or f"All users are in one arm, '{baseline}': there is nothing to compare."


def worded(arm: str) -> str:
    return {MODEL: "The model's pages", CONTROL: "Random pages"}.get(arm, f"Pages of '{arm}'")


def _when(ms: int | None) -> str | None:
    return None if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"


def band_plot(seen: Sequence[Mapping[str, Any]], arms: Sequence[str], baseline: str, unit: str) -> Plot:
    """Each arm's difference to the baseline and its band, over the looks; a mark where it was decided."""
    figure, axes = canvas()
    axes.axhline(0, color=MAIN, lw=0.8)
    for number, name in enumerate(arm for arm in arms if arm != baseline):
        rows = [row for row in seen if row["arm"] == name and row["difference_low"] is not None]
        at = np.array([row["at_ms"] for row in rows], "datetime64[ms]")
        axes.plot(at, [row["difference"] for row in rows], color=f"C{number}", lw=1.3, label=name)
        low, high = ([row[key] for row in rows] for key in ("difference_low", "difference_high"))
        axes.fill_between(at, low, high, color=f"C{number}", alpha=0.2, lw=0)
        since = decided_ms(seen, name)
        if since is not None:
            axes.axvline(np.datetime64(since, "ms"), color=f"C{number}", lw=1, ls=":")
    axes.set_ylabel(f"{unit}, more than '{baseline}'")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.autofmt_xdate()
    caption = (
        f"{unit} of each arm less that of '{baseline}'. The band holds the truth at all looks together with 95%. "
        "Dotted: decided from here on."
    )
    return Plot("bands", caption, figure)
