# shell
"""``millrace dev``: for those who work on Millrace, or look after its topics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from millrace.commands.cli import checkout
from millrace.commands.cli.cliflags import Json, emit, report
from millrace.contracts.settings import load_settings

app = cyclopts.App(name="dev", help="Benchmarks and experiments (from a checkout), topics, generated pages.")


@app.command
def bench(name: str, *, out: Path, short: Annotated[bool, Parameter(negative=())] = False, json: Json = False) -> None:
    """Run benchmark NAME and write its figures to OUT/report.json. From a checkout only.

    Args:
        short: A small run, which shows that the benchmark works. Its figures say nothing.
    """
    runner = checkout.module("benchmarks.runner")
    figures = runner.bench(name, out, short)
    emit(figures, [runner.table(figures)], json)


@app.command(help_flags=[])
def experiment(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run an experiment: 'millrace dev experiment --help' names them. From a checkout only."""
    checkout.module("experiments.commands").app(arguments)


@app.command
def topics(*, kafka: str | None = None, partitions: int | None = None, json: Json = False) -> None:
    """Create the topics that are missing, and check the partition counts of those that are there.

    Args:
        kafka: The broker (default: the setting).
        partitions: Of the topics that have many (default: the setting).
    """
    from millrace.processes.kafka import create_topics, wait_for_broker

    settings = load_settings({"kafka": kafka, "partitions": partitions})

    def run() -> dict[str, Any]:
        wait_for_broker(settings)
        return {"created": create_topics(settings), "partitions": settings.partitions}

    report(json, run)
