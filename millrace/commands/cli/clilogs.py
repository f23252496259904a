# shell
"""``millrace log``: the commands that read or write exposure logs.

Each command imports what it needs itself, so that ``--help`` and short commands start fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from millrace.basics.errors import SettingError
from millrace.commands.cli.cliflags import Json, Labels, Log, Model, SchemaFile, Seed, SkipBad, absolute, emit, report
from millrace.contracts.settings import load_settings

app = cyclopts.App(
    name="log", help="Logs of exposures: guess a schema, import, replay, audit, freshness, delays, bootstrap."
)


for _name, _help in {
    "replay": "Run a log through windows, learner and progressive evaluation; print the AUC of each day.",
    "freshness": "Say what freshness is worth on a log: models that learn every minute, hour, day or never, and live"
    " features.",
    "delays": "Say how late a log's labels come, and what each attribution window and label policy would cost or gain.",
    "audit": "Look for leaks in a replay: alter all that comes after random times, and name what differs before them.",
}.items():
    app.command(f"millrace.commands.cli.clifunctions:{_name}", name=_name, help=_help)


@app.command
def bootstrap(
    log: Log,
    *,
    schema: SchemaFile,
    data: Annotated[Path, Parameter(help="Folder of the loop that continues from the log. It must be empty.")],
    people: bool = True,
    seed: Seed = 0,
    model: Model = None,
    label_policy: Labels = None,
    skip_bad: SkipBad = False,
    json: Json = False,
) -> None:
    """Replay a log into the folder of a loop: windows, join, model, items, users that 'millrace up' goes on from.

    Model, waits and partitions are those of the settings that the loop will have (docs/how-to/start-from-history.md).

    Args:
        people: Leave users and items too, to be published at the first start.
    """
    from millrace.commands.history.command import replay_into

    if label_policy == "immediate":
        raise SettingError("--label-policy immediate for a live loop", "name one that a live loop can have")
    given = {"data": str(data), "schema": absolute(schema), "model": model, "label_policy": label_policy}
    settings = load_settings(given | ({"seed": seed} if seed else {}))
    report(json, replay_into, log, settings, people=people, skip_bad=skip_bad)


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
def guess(log: Path, *, out: Path | None = None, json: Json = False) -> None:
    """Write a commented schema from a sample of LOG: roles of columns, time, lists, fields, windows, likely outcomes.

    Fails, once it is written, when time, user, item or label cannot be found: the schema then has a line to fill in.

    Args:
        log: Exposure log: Parquet, CSV, TSV or JSON lines, or a folder of such files.
        out: TOML file to write (default: print it). A file that is there already is not overwritten.
    """
    from millrace.basics.atomic_files import write_whole
    from millrace.commands.guess import guess_schema

    if out is not None and out.exists():
        raise SettingError(f"--out '{out}' is there already", "name another file, or remove it")
    found = guess_schema(log)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, found.text.encode(), durable=False)
    summary = found.summary()
    lines = [found.text.removesuffix("\n")] if out is None else [*summary, f"schema in {out}"]
    emit({"schema": found.text, "out": out, "summary": summary, "open": found.open}, lines, json)
    found.schema(str(log))


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
