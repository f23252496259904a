# shell
"""``millrace log bootstrap``: progress, and what was left."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import SettingError
from millrace.commands.history.attempt import attempt
from millrace.commands.history.into import check_schema, leave
from millrace.commands.replay.reading import name_of_log, reading
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import load_settings
from millrace.logs.frames import Log, log_parts
from millrace.processes.wall import event_now_ms
from millrace.reports.progress import Took, bars
from millrace.reports.result import Result


def bootstrap(
    log: Log,
    schema: Schema | Path | str,
    data: Path | str,
    *,
    people: bool = True,
    seed: int = 0,
    model: str | None = None,
    label_policy: str | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> Result:
    """Replays a log into the folder of a loop: windows, join, model, items, users that ``mr.up`` goes on from.

    Args:
        log, schema, skip_bad, progress: as of :func:`~millrace.commands.replay.replayrun.replay`.
        data: folder of the loop that continues from the log. It must be empty.
        people: users and items too, to be published at the first start.
        seed: of the model (0: the setting's), which like waits and partitions is that of the loop's settings.
        model: its name, or module:Class.
        label_policy: when labels are learnt (default: the setting's), as a live loop can.

    Raises:
        MillraceError: as :func:`millrace.commands.history.attempt.attempt`,
            :func:`millrace.commands.history.into.leave` and :func:`millrace.logs.read_log`.
    """
    took = Took()
    if label_policy == "immediate":
        raise SettingError("label policy immediate for a live loop", "name one that a live loop can have")
    given = {"data": str(Path(data).absolute()), "model": model, "label_policy": label_policy}
    settings, parts = load_settings(given | ({"seed": seed} if seed else {})), log_parts(log)
    plan = load_schema(schema)
    check_schema(plan)

    def say(line: str) -> None:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)

    with (
        attempt(settings, say if progress else lambda line: None) as check,
        reading(parts, plan, Path(settings.data), skip_bad, progress) as table,
    ):
        read_s = took.seconds
        with bars(progress) as tick:
            left = leave(check, table, plan, settings, people=people, tick=tick)
    steps = {"read": round(read_s, 2), **left.seconds}
    run, seconds = took.run | {"steps_seconds": steps}, took.seconds
    verdict = (
        f"left in {settings.store or settings.data}: {left.window_keys:,} window keys, {left.users:,} users,"
        f" {left.items:,} items, a model that has learnt {left.learnt:,} samples"
    )

    def print_it() -> None:
        end = datetime.fromtimestamp(left.end_ms / 1000, UTC)
        parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in steps.items())
        say(
            f"{left.exposures:,} exposures up to {end:%Y-%m-%d %H:%M} UTC replayed in {seconds:.0f} s ({parts});"
            f" progressive AUC {left.auc:.4f}"
        )
        if left.early:
            say(
                f"{left.early:,} of them were younger than {settings.attribution_minutes:g} min when the log ended:"
                " without a click until then they were learnt as negatives, and a later click corrects that"
            )
        if past := past_windows(plan, left.end_ms, event_now_ms(settings.event_clock())):
            say(past)
        say(verdict)

    figures = {name: value for name, value in asdict(left).items() if name != "seconds"}
    return Result({"verdict": verdict} | figures, run, f"History of {name_of_log(parts)}", list, print_it)


def past_windows(schema: Schema, end_ms: int, now_ms: int) -> str:
    """A line about windows shorter than the log's age, which begin empty for the loop; empty: there are none."""
    days = (now_ms - end_ms) / DAY_MS
    over = [window for window in schema.windows.days if window <= days]
    if not over:
        return ""
    one = "every window had counts for the model, and begins"
    some = f"windows up to {max(over)} d had counts for the model, and begin"
    which = one if len(over) == len(schema.windows.days) else some
    return f"the log ended {days:.1f} days ago: {which} empty for the loop"
