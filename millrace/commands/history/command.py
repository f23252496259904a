# shell
"""``millrace log bootstrap LOG --schema S --data DATA`` in the terminal: progress, and a line of what was left."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from millrace.basics.durations import DAY_MS
from millrace.commands.history.attempt import attempt
from millrace.commands.history.into import Left, check_schema, leave
from millrace.commands.replay.reading import reading
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.processes.wall import event_now_ms
from millrace.reports.progress import bars


def replay_into(log: Path | list[Path], settings: Settings, *, people: bool = True, skip_bad: bool = False) -> Left:
    """Reads a log, replays it and leaves its end in the store of ``settings``; prints what was left.

    Raises:
        MillraceError: as :func:`millrace.commands.history.attempt.attempt`,
            :func:`millrace.commands.history.into.leave` and :func:`millrace.logs.read_log`.
    """
    began = time.perf_counter()
    schema = settings.load_schema()
    check_schema(schema)

    def say(line: str) -> None:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)

    with attempt(settings, say) as check, reading(log, schema, Path(settings.data), skip_bad) as table:
        read_s = time.perf_counter() - began
        with bars() as tick:
            left = leave(check, table, schema, settings, people=people, tick=tick)
    took_s = time.perf_counter() - began
    end = datetime.fromtimestamp(left.end_ms / 1000, UTC)
    parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in {"read": read_s, **left.seconds}.items())
    say(
        f"{left.exposures:,} exposures up to {end:%Y-%m-%d %H:%M} UTC replayed in {took_s:.0f} s ({parts}); progressive"
        f" AUC {left.auc:.4f}"
    )
    if left.early:
        say(
            f"{left.early:,} of them were younger than {settings.attribution_minutes:g} min when the log ended: without"
            " a click until then they were learnt as negatives, and a later click corrects that"
        )
    if past := past_windows(schema, left.end_ms, event_now_ms(settings.event_clock())):
        say(past)
    say(
        f"left in {settings.store or settings.data}: {left.window_keys:,} window keys, {left.users:,} users,"
        f" {left.items:,} items, a model that has learnt {left.learnt:,} samples"
    )
    return left


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
