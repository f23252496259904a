# shell
"""The command line: ``millrace COMMAND``. Each command imports what it needs when it runs, and no sooner."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Any

import cyclopts

from millrace import __version__
from millrace.basics.errors import EXIT_CODES, FENCED_STATUS, USAGE_STATUS, FencedError, MillraceError
from millrace.commands.cli import cliconfig, clidata, clidev, clilogs, climodel, cliroles
from millrace.commands.cli.cliflags import Data, Json, absolute, emit, settings_of
from millrace.contracts.settings import load_settings, unread_variables

app = cyclopts.App(
    name="millrace",
    help="A streaming recommender that learns online.",
    exit_on_error=False,  # main() says what is wrong
    print_error=False,
    version=__version__,
)
app.register_install_completion_command()
app.command(cliconfig.init)
for group in (cliroles, clilogs, climodel, clidata, cliconfig, clidev):
    app.command(group.app)


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
    prometheus: bool = False,
) -> None:
    """Run the whole loop on this machine: broker, Redis, every role, a live page. Ctrl-C ends it.

    Args:
        seconds: End by itself after so many seconds (default: run until Ctrl-C).
        report: Write what was measured to this JSON file at the end.
        seed: Seed of the simulated world.
        users: How many shoppers come on an average day (default: the setting shoppers). Not with --from-log.
        speed: Seconds of event time that pass in a second.
        page_port: Port of the live page.
        data: Folder of the loop, kept at the end (default: the setting data, else a temporary one, removed).
        from_log: Play this exposure log through the live loop in place of simulated shoppers.
        schema: Schema file of that log.
        twin: At the end, train a replica without label delay, and report its AUC (key twin_auc).
        archive: Write events, labelled exposures and their logged features as Parquet below DATA/archive.
        history_days: Replay so many simulated days first, and go on from them. Not with --from-log.
        prometheus: Start the Prometheus that is on the PATH, too, to watch the figures in Grafana.
    """
    from millrace.commands.demo.demorun import DemoOptions
    from millrace.commands.demo.demorun import demo as run

    given: dict[str, Any] = {"speed": speed, "page_port": page_port}
    options = DemoOptions(
        seconds=seconds,
        report=report,
        seed=seed,
        data=data,
        twin=twin,
        archive=archive,
        history_days=history_days,
        prometheus=prometheus,
        **{k: v for k, v in given.items() if v is not None},
    )
    played = {"data": absolute(data), "from_log": absolute(from_log), "schema": absolute(schema)}
    settings = load_settings({"seed": seed, "shoppers": users} | played, explore="0.05")
    cliroles.no_users_of_a_log(settings.from_log, users)
    sys.exit(run(settings, options))


@app.command
def up(
    *,
    schema: Path | None = None,
    data: Data = None,
    free_ports: bool = False,
    sync: bool = False,
    archive: bool = True,
    evolve: bool | None = None,
) -> None:
    """Run the loop for a shop of your own: broker, Redis, every role, a live page; no shoppers. Ctrl-C ends it.

    Args:
        schema: Schema file: which attributes of users and items are features (default: that of the data folder).
        free_ports: Any free ports in place of the fixed ones; DATA/up.json names them.
        sync: The embedded broker writes to the disk before it acknowledges: a power cut then loses nothing.
        archive: Write events and labelled exposures as Parquet.
        evolve: With a schema that has changed: carry over what both have (default: the setting).
    """
    from millrace.commands.up.uprun import UpOptions
    from millrace.commands.up.uprun import up as run

    settings = load_settings({"schema": absolute(schema), "data": absolute(data), "evolve": evolve})
    sys.exit(run(settings, UpOptions(free_ports=free_ports, sync=sync, archive=archive)))


@app.command
def status(*, data: Data = None, json: Json = False) -> None:
    """Say whether a loop runs on the folder: its roles, its model, its gate, its addresses. Status 1: none runs."""
    from millrace.commands.up.running import running, status_lines
    from millrace.versions.modelstore import ModelStore

    settings = settings_of(data)
    found = running(settings)
    has_models = settings.store or Path(settings.data, "models").is_dir()
    newest = ModelStore(settings.place("models"), writes=False).latest() if has_models else None
    found |= {} if newest is None else {"version": newest.version}
    emit(found, status_lines(found), json)
    sys.exit(0 if found["running"] else 1)


@app.command
def doctor(*, schema: Path | None = None, data: Data = None, json: Json = False) -> None:
    """Check settings, services, topics, clocks, schema, disk and versions; name what to mend. Status 0: nothing.

    Args:
        schema: Schema file, as `millrace up` gets it.
    """
    from millrace.commands.up.doctor import doctor as run

    sys.exit(run({"schema": absolute(schema), "data": absolute(data)}, as_json=json))


@clidev.app.command
def reference(*, out: Path) -> None:
    """Write the pages that are made from the source: settings, commands, AsyncAPI, JSON Schemas.

    Args:
        out: The folder docs/ of a checkout, or any other.
    """
    from millrace.commands.reference.made_pages import pages, write

    for path in write(out, pages(app)):
        print(path)


app.help_epilogue = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())
for name in app:
    if not name.startswith("-"):
        app[name].help_epilogue = ""  # else every command would print the list again
# After the loop, which would load it.
app.command(
    "millrace.commands.cli.clifunctions:judge",
    name="judge",
    help="Say which arm of a loop earns more, or what a model's order would have earned, however often you look.",
    help_epilogue="",
)


def main() -> None:
    """Runs the command line. An expected failure is one line on standard error; :data:`EXIT_CODES` has the status."""
    try:
        try:
            _main()
        finally:
            print(end="", flush=True)  # fails here, and not while Python ends
    except BrokenPipeError:
        printed = select.poll()
        printed.register(sys.stdout.fileno(), 0)
        if not printed.poll(0):
            raise  # of a socket: a bug
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its reader has gone: it has seen enough
        sys.exit(1)


def _main() -> None:
    try:
        for line in unread_variables(os.environ):
            print(f"warning: {line}", file=sys.stderr)
        app(sys.argv[1:])
    except cyclopts.CycloptsError as error:
        words = " ".join(("millrace", *(error.command_chain or ())))
        print(f"millrace: {' '.join(str(error).split())}; see: {words} --help", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(FENCED_STATUS if isinstance(error, FencedError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
