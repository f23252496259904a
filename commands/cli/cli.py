# shell
"""The command line: ``millrace SUBCOMMAND``. Each subcommand imports what it needs when it runs, and no sooner."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event
from typing import Any

import cyclopts

from commands.cli import clilogs, clirepair, clitrust
from commands.up.folder import broker_of, on_folder
from millrace import __version__
from millrace.basics.errors import FENCED_STATUS, FencedError, LogError, MillraceError, SettingError
from millrace.contracts.settings import Settings, load_settings

app = cyclopts.App(
    name="millrace",
    help="A streaming recommender that learns online. Settings: flags, MILLRACE_* variables, the file MILLRACE_CONFIG.",
    version=__version__,
)
for command in (clilogs.replay, clilogs.experiment, clilogs.verify):
    app.command(command)
app.command(clilogs.schema_commands)
app.command(clilogs.freshness)
app.command(clilogs.delays)
app.command(clitrust.rollback)
app.command(clitrust.promote)
app.command(clitrust.hold)
app.command(clitrust.quarantine_commands)
app.command(clirepair.repair)
app.command(clirepair.bisect)


@app.command
def demo(
    *,
    seconds: float | None = None,
    report: Path | None = None,
    seed: int = 0,
    users: int | None = None,
    speed: float | None = None,
    page_port: int | None = None,
    data: Path | None = None,
    from_log: Path | None = None,
    schema: Path | None = None,
    twin: bool = False,
    archive: bool = False,
    history_days: int = 0,
) -> None:
    """Run the whole loop on this machine: broker, Redis, every role, a live page. Ctrl-C ends it.

    Parameters
    ----------
    seconds
        End by itself after so many seconds (default: run until Ctrl-C).
    report
        Write what was measured to this JSON file at the end.
    seed
        Seed of the simulated world.
    users
        How many shoppers come on an average day: it sets the traffic (default: the setting's, 4000). Not with
        --from-log.
    speed
        Seconds of event time that pass in a second.
    page_port
        Port of the live page.
    data
        Folder for checkpoints, models and logs, kept at the end (default: a temporary one, removed).
    from_log
        Play this exposure log through the live loop in place of simulated shoppers.
    schema
        Schema file of that log.
    twin
        At the end, train a twin of the model that has every label at the exposure, and report its AUC (key twin_auc).
    archive
        Write events, labelled exposures and their logged features as Parquet below DATA/archive.
    history_days
        Begin with so many simulated days before the opening: they are replayed first, and the loop goes on from them.
        Not with --from-log.
    """
    from commands.demo.run import DemoOptions
    from commands.demo.run import demo as run

    given: dict[str, Any] = {"speed": speed, "page_port": page_port}
    options = DemoOptions(
        seconds=seconds,
        report=report,
        seed=seed,
        data=data,
        twin=twin,
        archive=archive,
        history_days=history_days,
        **{k: v for k, v in given.items() if v is not None},
    )
    played = {"from_log": _absolute(from_log), "schema": _absolute(schema)}
    settings = load_settings({"seed": seed, "shoppers": users} | played)
    _no_users_of_a_log(settings.from_log, users)
    sys.exit(run(settings, options))


@app.command
def up(
    *,
    schema: Path | None = None,
    data: Path | None = None,
    free_ports: bool = False,
    sync: bool = False,
    archive: bool = True,
    evolve: bool | None = None,
) -> None:
    """Run the loop for a shop of your own: broker, Redis, every role, a live page; no shoppers. Ctrl-C ends it.

    Parameters
    ----------
    schema
        Schema file: which attributes of users and items are features (default: that of the data folder).
    data
        Folder of everything that lasts (default: MILLRACE_DATA, else ./millrace-data). The same folder goes on.
    free_ports
        Any free ports in place of the fixed ones; DATA/up.json names them.
    sync
        The embedded broker writes to the disk before it acknowledges: a power cut then loses nothing.
    archive
        Write events and labelled exposures as Parquet.
    evolve
        With a schema that has changed: carry over what both have (default: MILLRACE_EVOLVE).
    """
    from commands.up.run import UpOptions
    from commands.up.run import up as run

    settings = load_settings({"schema": _absolute(schema), "evolve": evolve})
    sys.exit(run(settings, UpOptions(data=data, free_ports=free_ports, sync=sync, archive=archive)))


@app.command
def doctor(*, schema: Path | None = None, data: Path | None = None, json: bool = False) -> None:
    """Check settings, services, topics, clocks, schema, disk and versions; name what to mend. Status 0: nothing.

    Parameters
    ----------
    schema
        Schema file, as `millrace up` gets it.
    data
        Data folder of `millrace up` (default: MILLRACE_DATA, else ./millrace-data).
    json
        One JSON array in place of a line a check.
    """
    from commands.up.doctor import doctor as run

    sys.exit(run({"schema": _absolute(schema), "data": _absolute(data)}, as_json=json))


@app.command
def simulate(
    *,
    from_log: Path | None = None,
    schema: Path | None = None,
    days: int | None = None,
    out: Path | None = None,
    start: str = "2026-03-02",
    open_loop: bool = False,
    seconds: float | None = None,
    seed: int | None = None,
    users: int | None = None,
) -> None:
    """Run shoppers against a running loop; or play a log back through it; or write day logs.

    Parameters
    ----------
    from_log
        Play this exposure log (Parquet, CSV, TSV, JSON lines) through Kafka and the live loop, then end. A supervisor
        names the log in MILLRACE_FROM_LOG instead: then there is no progress bar, and the role stays after the log.
    schema
        Schema file of that log.
    days
        Write this many simulated day logs to OUT instead of running live.
    out
        Folder for the day logs.
    start
        First day of the day logs (YYYY-MM-DD).
    open_loop
        Pages by the shop's own policy instead of the scorer's.
    seconds
        End after so many seconds.
    seed
        Seed of the simulated world.
    users
        How many shoppers come on an average day (default: the setting's, 4000).
    """
    settings = load_settings({"seed": seed, "shoppers": users, "schema": str(schema) if schema else None})
    if days is not None:
        from simulator.daylog import write_days

        if out is None:
            raise LogError("--days without --out", "name the folder for the day logs")
        for path in write_days(out, days=days, seed=settings.seed, start=start, users=settings.shoppers):
            print(path)
        return
    if settings.from_log and from_log is None and (open_loop or seconds is not None):
        raise SettingError(
            f"MILLRACE_FROM_LOG names '{settings.from_log}' to be played, which knows no --open-loop and no --seconds",
            "unset it, or leave the flags out",
        )
    _no_users_of_a_log(from_log or settings.from_log, users)
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from simulator import live, playback

        if from_log is not None:
            playback.play(settings, stop, playback.PlaybackOptions(log=from_log))
        elif settings.from_log:
            playback.play(settings, stop, playback.PlaybackOptions(log=Path(settings.from_log), quiet=True))
            stop.wait()  # a supervisor would start a role that ends, and so play the log, again
        else:
            live.run(settings, stop, live.Options(open_loop=open_loop, seconds=seconds))

    run_role("simulate", settings, run)


@app.command
def stream() -> None:
    """Run a stream worker: windows, label join, online store."""
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from stream.worker import worker

        worker.run(settings, stop)

    run_role("stream", load_settings(), run)


@app.command
def archive() -> None:
    """Write events and labelled exposures down as Parquet, for 'millrace replay'."""
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from stream.archive import main

        main.run(settings, stop)

    run_role("archive", load_settings(), run)


@app.command
def forget(user: str, *, data: Path | None = None) -> None:
    """Rewrite the archive's files without a user. Delete the user first (docs/deletion.md).

    Parameters
    ----------
    user
        The user's id.
    data
        The data folder whose archive is meant (default: MILLRACE_DATA, else ./millrace-data).
    """
    from stream.archive.forget import forget as run

    found = run(Path(on_folder(load_settings(), data).data) / "archive", user)
    print(f"{found.rows:,} rows of user '{user}' removed from {found.files:,} of {found.looked_at:,} files")


@app.command
def learn() -> None:
    """Run the learner."""
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from learner.role import service

        service.run(settings, stop)

    run_role("learn", load_settings(), run)


@app.command
def shadow() -> None:
    """Run a second learner, MILLRACE_SHADOW_MODEL, on the same samples; it is judged beside the first."""
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from learner.role import shadow as role

        role.run(settings, stop)

    run_role("shadow", load_settings(), run)


@app.command
def serve(*, host: str | None = None, port: int | None = None, workers: int | None = None) -> None:
    """Run a scorer: HTTP /recommend, /score, /model, /healthz, /readyz, /metrics.

    Parameters
    ----------
    host
        Address to listen on; loopback unless told otherwise.
    port
        Port to listen on.
    workers
        Processes that answer requests on this port.
    """
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from scorer.feeder import main as scorer

        scorer.run(settings, stop)

    run_role("serve", load_settings({"host": host, "port": port, "workers": workers}), run)


@app.command
def intake(*, host: str | None = None, port: int | None = None) -> None:
    """Run the intake: HTTP POST /events, /users, /items, DELETE /users/ID, /items/ID; answered when Kafka has them.

    Parameters
    ----------
    host
        Address to listen on; loopback unless told otherwise.
    port
        Port to listen on.
    """
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:
        from stream.intake import main as intake

        intake.run(settings, stop)

    run_role("intake", load_settings({"host": host, "intake_port": port}), run)


@app.command
def bench(name: str, *, out: Path) -> None:
    """Run benchmark NAME and write its figures to OUT/report.json."""
    from benchmarks.runner import bench as run
    from benchmarks.runner import table

    print(table(run(name, out)))


@app.command
def topics(*, kafka: str | None = None, partitions: int | None = None) -> None:
    """Create the topics that are missing, and check the partition counts of those that are there."""
    from millrace.processes.kafka import create_topics, wait_for_broker

    settings = load_settings({"kafka": kafka, "partitions": partitions})
    wait_for_broker(settings)
    create_topics(settings)


@app.command
def letters(*, reason: str = "", last: int = 10, kafka: str | None = None, data: Path | None = None) -> None:
    """Print dead letters: how many there are of each reason, and the newest with what was sent and what to mend.

    Parameters
    ----------
    reason
        Only letters with this reason (docs/dead-letters.md has them all).
    last
        How many letters to print.
    kafka
        The broker (default: MILLRACE_KAFKA, else that of the 'millrace up' which runs on the data folder).
    data
        The data folder (default: MILLRACE_DATA, else ./millrace-data).
    """
    from commands.reference.letters import Letters
    from millrace.contracts.topics import DEAD_LETTERS
    from millrace.processes.kafka import read_all

    settings = load_settings({"kafka": kafka})
    if not settings.kafka:
        lies = Path(on_folder(settings, data).data)
        found_at = broker_of(lies)
        if not found_at:
            raise SettingError(
                f"no Kafka address is set, and no 'millrace up' is ready on folder '{lies}'",
                "set MILLRACE_KAFKA to host:port, or name the folder of a run with --data",
            )
        settings = load_settings({"kafka": found_at})
    found = Letters(reason, last)
    read_all(settings, DEAD_LETTERS, lambda record: found.add(record.value))
    print(found.text())


@app.command
def reference(*, out: Path) -> None:
    """Write the pages that are made from the source: settings, AsyncAPI, JSON Schemas.

    Parameters
    ----------
    out
        The folder docs/ of a checkout, or any other.
    """
    from commands.reference.pages import write

    for path in write(out):
        print(path)


def _no_users_of_a_log(log: Path | str, users: int | None) -> None:
    """Shoppers are asked for; nobody plays a log."""
    if log and users is not None:
        raise SettingError(f"--users {users} with the log '{log}'", "leave it out: a log has its own users")


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def main() -> None:
    """Runs the command line. An expected failure is one line on standard error and status 1; status 3 says that whoever
    started it must not start it again."""
    try:
        app()
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(FENCED_STATUS if isinstance(error, FencedError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
