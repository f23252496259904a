"""The command line: ``millrace SUBCOMMAND``. Each subcommand imports what it needs when it runs, and no sooner."""

from __future__ import annotations

import sys
from pathlib import Path

import cyclopts

from millrace import __version__
from millrace.errors import MillraceError

app = cyclopts.App(
    name="millrace",
    help="A streaming recommender that learns online. Settings: flags, MILLRACE_* variables, the file MILLRACE_CONFIG.",
    version=__version__,
)


@app.command
def verify(folder: Path) -> None:
    """Prove that each model snapshot in FOLDER plus the deltas after it equals the next snapshot, bit for bit."""
    from millrace.modelstore import verify as prove

    proofs = prove(folder)
    for proof in proofs:
        print(
            f"snapshot {proof.base} + {proof.deltas} deltas = snapshot {proof.target}: {proof.rows} rows, bit for bit"
        )
    if not proofs:
        print(f"nothing to prove in {folder}: fewer than two snapshots of one chain")


@app.command
def topics(*, kafka: str | None = None, partitions: int | None = None) -> None:
    """Create the topics that are missing, and check the partition counts of those that are there."""
    from millrace.kafka import create_topics, wait_for_broker
    from millrace.settings import load_settings

    settings = load_settings({"kafka": kafka, "partitions": partitions})
    wait_for_broker(settings)
    create_topics(settings)


def main() -> None:
    """Runs the command line; an expected failure is one line on standard error and status 1."""
    try:
        app()
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
