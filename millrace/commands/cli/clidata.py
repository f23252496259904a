# shell
"""``millrace data``: messages that could not be used, samples that were refused, the archive."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import cyclopts

from millrace.basics.durations import utc
from millrace.basics.errors import SettingError
from millrace.commands.cli.cliadmin import Admin, Yes, send_command, sure
from millrace.commands.cli.cliflags import Data, Json, Kafka, Learner, emit, report, settings_of, with_broker
from millrace.commands.up.data_folder import of_loop

app = cyclopts.App(name="data", help="Dead letters, quarantine, the archive.")
quarantine = cyclopts.App(name="quarantine", help="Samples that were refused: list, release, discard.")
app.command(quarantine)


@app.command
def dead_letters(
    *, reason: str = "", last: int = 10, kafka: Kafka = None, data: Data = None, json: Json = False
) -> None:
    """Print dead letters: how many there are of each reason, and the newest with what was sent and what to mend.

    Args:
        reason: Only dead letters with this reason (docs/reference/dead-letters.md has them all).
        last: How many dead letters to print.
    """
    from millrace.commands.reference.dead_letters import DeadLetterReport
    from millrace.commands.up.running import running, waiting_lines
    from millrace.contracts.topics import DEAD_LETTERS
    from millrace.processes.kafka import read_all

    found, settings = DeadLetterReport(reason, last), settings_of(data, kafka=kafka)
    read_all(with_broker(settings), DEAD_LETTERS, lambda record: found.add(record.value))
    emit(found.plain(), [found.text(), *waiting_lines({} if kafka else running(settings))], json)


@quarantine.command(name="list")
def list_quarantine(*, data: Data = None, learner: Learner = None, json: Json = False) -> None:
    """Print what is in quarantine: a line for each entry, oldest first."""
    from learner.gate.quarantine import PLACE, listed
    from millrace.basics.store import Store

    store = Store(of_loop(settings_of(data, learner=learner)).place(PLACE), writes=False)
    found = listed(store)
    lines = [f"{e.name}  {e.rows:,} rows of {utc(e.from_ms)} to {utc(e.to_ms)}  {e.refusal}" for e in found]
    emit(found, [*lines, f"{sum(entry.rows for entry in found):,} rows in {len(found):,} entries"], json)


@quarantine.command
def release(*names: str, data: Data = None, learner: Learner = None, admin: Admin = None, json: Json = False) -> None:
    """Learn samples that were refused: they are right.

    Args:
        names: As 'millrace data quarantine list' shows them, or: all.
    """
    send_command(data, admin, json, learner, "/quarantine/release", names=_names(names))


@quarantine.command
def discard(
    *names: str,
    data: Data = None,
    learner: Learner = None,
    admin: Admin = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Throw samples away that were refused: they are wrong.

    Args:
        names: As 'millrace data quarantine list' shows them, or: all.
    """
    if (named := _names(names)) == "all":
        sure("all that is in quarantine would be thrown away", yes)
    send_command(data, admin, json, learner, "/quarantine/discard", names=named)


@app.command
def forget(user: str, *, data: Data = None, yes: Yes = False, json: Json = False) -> None:
    """Rewrite the archive's files, and copies in quarantine, without a user. Delete the user first
    (docs/how-to/delete-a-user.md).

    Args:
        user: The user's id.
    """
    from learner.gate.quarantine import PLACE, forget_user
    from millrace.basics.hashing import value_hash
    from millrace.basics.store import Store
    from stream.archive.forget import forget as run

    settings = settings_of(data)
    sure(f"all rows of user '{user}' in '{settings.data}' would be removed from archive and quarantine", yes)
    found = run(Path(settings.data) / "archive", user)
    places = [settings.of_learner(name).place(PLACE) for name in ("", *settings.learners)]
    refused = sum(forget_user(Store(place, writes=False), value_hash(user)) for place in places)
    line = f"{found.rows:,} rows of user '{user}' removed from {found.files:,} of {found.looked_at:,} files"
    said = {"rows": found.rows, "files": found.files, "looked_at": found.looked_at, "refused_rows": refused}
    emit(said, [line, f"{refused:,} rows removed from quarantine"], json)


@app.command
def page(
    request_id: str, *, kafka: Kafka = None, data: Data = None, learner: Learner = None, json: Json = False
) -> None:
    """Print why a page of the past was ranked so: its items with scores, sources, reasons, and what was clicked.

    From the page log while the topic has it, else from the archive. Name the learner whose model made it.

    Args:
        request_id: As the answer of /recommend had it.
    """
    from millrace.commands.proofs.past_page import past_page, print_page

    settings = settings_of(data, kafka=kafka, learner=learner)
    with suppress(SettingError):  # no loop runs: the archive may have it
        settings = with_broker(settings)
    found = past_page(settings, request_id)
    if json:
        emit(found, [], json)
    else:
        print_page(found)


@app.command
def parity(*, data: Data = None, out: Path | None = None, json: Json = False) -> None:
    """Compare the features that replay makes of the loop's archive with those that the loop logged.

    It needs the setting archive_features, or 'millrace demo --archive'.

    Args:
        out: Folder for report.json, run.json, report.html and plots.
    """
    from millrace.commands.proofs.parity import verify_parity

    settings = settings_of(data)
    report(json, verify_parity, Path(settings.data), settings, out)


def _names(names: tuple[str, ...]) -> list[str] | Literal["all"]:
    if not names:
        raise SettingError("no name is given", "name entries of 'millrace data quarantine list', or say: all")
    return "all" if names == ("all",) else list(names)
