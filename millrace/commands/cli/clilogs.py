# shell
"""``millrace log``: the commands that read or write exposure logs.

Each command imports what it needs itself, so that ``--help`` and short commands start fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from millrace.commands.cli.cliflags import Json, Log, SchemaFile, SkipBad, emit, report
from millrace.contracts.settings import load_settings

app = cyclopts.App(
    name="log", help="Logs of exposures: guess a schema, import, replay, audit, freshness, delays, bootstrap."
)


for _name, _help in {
    "guess": "Write a commented schema from a sample of LOG: roles of columns, time, lists, fields, windows, likely"
    " outcomes.\n\nFails, once it is written, when time, user, item or label cannot be found: the schema then has a"
    " line to fill in.",
    "replay": "Run a log through windows, learner and progressive evaluation; print the AUC of each day.",
    "freshness": "Say what freshness is worth on a log: models that learn every minute, hour, day or never, and live"
    " features.",
    "delays": "Say how late a log's labels come, and what each attribution window and label policy would cost or gain.",
    "audit": "Look for leaks in a replay: alter all that comes after random times, and name what differs before them.",
    "bootstrap": "Replay a log into the folder of a loop: windows, join, model, items, users that 'millrace up' goes on"
    " from.\n\nModel, waits and partitions are those of the settings that the loop will have"
    " (docs/how-to/start-from-history.md).",
}.items():
    app.command(f"millrace.commands.cli.clifunctions:{_name}", name=_name, help=_help)


@app.command(name="import")
def import_(
    log: Log,
    *,
    schema: SchemaFile,
    out: Annotated[Path, Parameter(help="Folder for the days and manifest.json; a former import in it is replaced.")],
    skip_bad: SkipBad = False,
    json: Json = False,
) -> None:
    """Read a log once: sorted Parquet by day, with all its columns. Every log command takes the folder as its log.

    The schema's [log] and [[join]] are applied. Another schema may differ from it in anything else.
    """
    from millrace.commands.replay.reading import import_into

    report(json, import_into, log, schema, out, skip_bad=skip_bad)


@app.command
def simulate(
    *,
    days: int,
    out: Path,
    start: str = "2026-03-02",
    seed: int | None = None,
    users: int | None = None,
    world: str = "shop",
    json: Json = False,
) -> None:
    """Write logs of simulated days: the shop of 'millrace demo', by its own policy.

    Args:
        days: How many days.
        out: Folder for the logs, one a day.
        start: First day (YYYY-MM-DD).
        seed: Seed of the simulated world.
        users: How many shoppers come on an average day (default: the setting shoppers).
        world: shop, feed, confounded or orders: docs/internals/simulator.md describes them.
    """
    from millrace.reports.progress import bars
    from simulator.daylog import write_days

    settings = load_settings({"seed": seed, "shoppers": users})
    with bars() as tick:
        paths = write_days(out, days, settings.seed, start, settings.shoppers, tick, world=world)
    emit({"logs": paths}, map(str, paths), json)
