# shell
"""``millrace judge``: reads an archive, and says which arm earns more and since when that is sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.basics.durations import span_name
from millrace.basics.errors import LogError, SettingError
from millrace.commands.judge.archive_reader import ArchiveReader, Outcome, page_numbers
from millrace.commands.judge.arms import ArmUsers, Exposures, decided_ms, estimate, looks, units_wanted
from millrace.contracts.events import CONTROL, MODEL
from millrace.evidence.sequences import LEAST, Estimate, error_each, gap
from millrace.logs.values import hashes
from millrace.reports import MAIN, Plot, canvas, make_folder, say, show
from millrace.reports.progress import Took
from millrace.reports.result import Result
from stream.archive.archive_folder import makers_of


def judge(
    archive: Path,
    out: Path | str | None = None,
    *,
    outcome: Outcome = "click",
    value: str | None = None,
    by: Literal["user", "page"] = "user",
    horizon_ms: int,
    every_ms: int,
    baseline: str = CONTROL,
    since_ms: int = 0,
) -> Result:
    """Says which arm earns more, and since when that is sure; writes that to the folder ``out``, if it is given.

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
    took = Took()
    if horizon_ms < 1 or every_ms < 1:
        raise SettingError(f"a horizon of {horizon_ms} ms, looks every {every_ms} ms", "give spans above 0")
    if out is not None:
        make_folder(Path(out), "report.json")
    taken, reader = ArmUsers(horizon_ms), ArchiveReader(archive, outcome, value, since_ms)
    for _, part in reader.parts():
        taken.take(_exposures(part))
    users = taken.found()
    if not len(users.until_ms):
        raise LogError(
            f"of {users.waiting:,} users in '{archive}' none was seen for {span_name(horizon_ms)}",
            "give a shorter --horizon, or wait." + reader.left_out,
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
    verdict += said + reader.left_out
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
        "users_left_out": reader.beyond,
        "exposures_logged": reader.logged,
        "arms": arm_rows,
        "made_by": made_by,
        "curves": seen,
    }

    def print_it() -> None:
        show(unit, arm_rows)
        say(verdict)

    plots = partial(band_plots, seen, arms, baseline, unit)
    return Result(report, took.run, "Which arm earns more?", plots, print_it).written(out)


def _makers(archive: Path, first_ms: int, since_ms: int) -> tuple[dict[str, str], str]:
    """Whose models made the pages of the arms, and a sentence of it; empty where all were the first learner's."""
    notes = makers_of(archive)
    later = [note for note in notes if note.since_ms > max(first_ms, since_ms)]
    made_by = notes[-1].made_by if notes else {}
    said = "".join(f" Pages of '{arm}' are by {maker}." for arm, maker in made_by.items())
    if later:
        said += f" Who makes the pages was changed on {_when(later[-1].since_ms)}: ask with --since for those after it."
    return made_by, said


def _exposures(table: pa.Table) -> Exposures:
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
            wanted = units_wanted(gap(one, other), error_each(len(found)))
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


def band_plots(seen: Sequence[Mapping[str, Any]], arms: Sequence[str], baseline: str, unit: str) -> list[Plot]:
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
    return [Plot("bands", caption, figure)]
