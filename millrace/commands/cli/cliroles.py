# shell
"""``millrace run ROLE``: one process of the loop. 'millrace up' and 'millrace demo' start all of them."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from millrace.basics.errors import SettingError
from millrace.commands.cli.cliflags import Data, absolute, settings_of
from millrace.contracts.settings import SHOP, Settings, load_settings, read_settings

app = cyclopts.App(name="run", help="Run one role of the loop in this process, until Ctrl-C.")

_Host = Annotated[str | None, Parameter(help="Address to listen on; loopback unless set otherwise.")]


def _role(name: str, flags: dict[str, Any] | None = None) -> None:
    from millrace.processes.role import run_role

    def run(settings: Settings, stop: Event) -> None:  # the role's code is imported when signals are handled
        schema = read_settings(flags).given.get("schema")
        if schema is None or not schema.value:
            raise SettingError(
                f"no schema is named for the role '{name}'",
                f"set MILLRACE_SCHEMA, or schema in the settings file, to its path; '{SHOP}' is the simulated shop's",
            )
        match name:
            case "stream":
                from stream.worker import stream_worker

                stream_worker.run(settings, stop)
            case "learn":
                from learner.role import service

                service.run(settings, stop)
            case "serve":
                from scorer.feeder import scorer_main as scorer

                scorer.run(settings, stop)
            case "intake":
                from stream.intake import intake_main as intake

                intake.run(settings, stop)
            case "archive":
                from stream.archive import archive_main as archive

                archive.run(settings, stop)

    settings = load_settings(flags)
    run_role(settings.learner_role if name == "learn" else name, settings, run)


@app.command
def stream() -> None:
    """Run a stream worker: windows, label join, online store."""
    _role("stream")


@app.command
def learn(*, name: str | None = None) -> None:
    """Run the learner, or another one beside it.

    Args:
        name: A learner of the setting learners (docs/how-to/try-a-second-model.md).
    """
    _role("learn", {"learner": name})


@app.command
def archive() -> None:
    """Write events and labelled exposures down as Parquet, for 'millrace log replay'."""
    _role("archive")


@app.command
def serve(*, host: _Host = None, port: int | None = None, workers: int | None = None) -> None:
    """Run a scorer: HTTP /recommend, /score, /model, /healthz, /readyz, /metrics.

    Args:
        port: Port to listen on.
        workers: Processes that answer requests on this port.
    """
    _role("serve", {"host": host, "port": port, "workers": workers})


@app.command
def intake(*, host: _Host = None, port: int | None = None) -> None:
    """Run the intake: HTTP POST /events, /users, /items, DELETE /users/ID, /items/ID; answered when Kafka has them.

    Args:
        port: Port to listen on.
    """
    _role("intake", {"host": host, "intake_port": port})


@app.command
def simulate(
    *,
    from_log: Path | None = None,
    schema: Path | None = None,
    open_loop: bool = False,
    world: Literal["shop", "feed", "confounded", "orders"] = "shop",
    seconds: float | None = None,
    seed: int | None = None,
    users: int | None = None,
) -> None:
    """Run shoppers against a running loop; or play a log through it.

    Args:
        from_log: Play this exposure log through Kafka and the live loop, then end. Where MILLRACE_FROM_LOG names it,
            the role stays after the log.
        schema: Schema file of that log.
        open_loop: Pages by the shop's own policy instead of the scorer's.
        world: shop, or orders: goods are ordered days later, and some are returned.
        seconds: End after so many seconds.
        seed: Seed of the simulated world.
        users: How many shoppers come on an average day (default: the setting shoppers).
    """
    from millrace.processes.role import run_role

    settings = load_settings({"seed": seed, "shoppers": users, "schema": absolute(schema)})
    if settings.from_log and from_log is None and (open_loop or seconds is not None):
        raise SettingError(
            f"MILLRACE_FROM_LOG names '{settings.from_log}' to be played, which knows no --open-loop and no --seconds",
            "unset it, or leave the flags out",
        )
    no_users_of_a_log(from_log or settings.from_log, users)

    def run(settings: Settings, stop: Event) -> None:
        from simulator import live, playback

        if from_log is not None:
            playback.play(settings, stop, playback.PlaybackOptions(log=from_log))
        elif settings.from_log:
            playback.play(settings, stop, playback.PlaybackOptions(log=Path(settings.from_log), quiet=True))
            stop.wait()  # a supervisor would start a role that ends, and so play the log, again
        else:
            live.run(settings, stop, live.ShopOptions(open_loop=open_loop, world=world, seconds=seconds))

    run_role("simulate", settings, run)


@app.command
def broker(*, data: Data = None, port: int | None = None, sync: bool = False) -> None:
    """Run the embedded broker alone, on the loopback interface. Its topics are below DATA/broker.

    Args:
        port: Port to listen on (default: the setting broker_port).
        sync: Write to the disk before a message is acknowledged: a power cut then loses nothing.
    """
    from millrace.processes.services import broker_argv

    settings = settings_of(data, broker_port=port)
    argv = broker_argv(settings.broker_gib, sync=sync)
    place = ["--folder", str(Path(settings.data, "broker", "topics")), "--port", str(settings.broker_port)]
    os.execv(argv[0], [*argv, *place])  # noqa: S606 — this process becomes the broker


def no_users_of_a_log(log: Path | str, users: int | None) -> None:
    """Shoppers are asked for; nobody plays a log."""
    if log and users is not None:
        raise SettingError(f"--users {users} with the log '{log}'", "leave it out: a log has its own users")
