# shell
"""The commands to a running learner: ``millrace rollback``, ``promote``, ``hold``, ``quarantine``.

::

    DATA/learner/admin.json   where the learner's door is     ──► POST, with the token of MILLRACE_ADMIN_TOKEN_FILE,
                                                                  else of DATA/admin.token
    models/, quarantine/ of MILLRACE_STORE, else of DATA      ──► lists: read as they lie there

Docs: docs/trust.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from commands.up.folder import of_loop, on_folder
from millrace.basics.errors import ServiceError, SettingError
from millrace.contracts.settings import Settings, load_settings

ANSWER_SECONDS = 660.0
"""How long an answer is waited for: somewhat longer than the learner's door itself does."""

_Data = Annotated[Path | None, Parameter(help="The data folder (default: MILLRACE_DATA, else ./millrace-data).")]
_Admin = Annotated[
    str | None,
    Parameter(
        help="Where the learner's door is, http://HOST:PORT, if it runs elsewhere (default: as its folder says)."
    ),
]


def rollback(
    version: int | None = None,
    *,
    show: Annotated[bool, Parameter("--list", negative="")] = False,
    data: _Data = None,
    admin: _Admin = None,
) -> None:
    """Go back to an older version. The learner goes on from it; what it has learnt since is set aside.

    Parameters
    ----------
    version
        The version to go back to (default: the promoted one before the newest).
    show
        Only print the versions that are kept.
    """
    if show:
        _show_versions(of_loop(load_settings(), data))
        return
    _tell(_settings(data), admin, "/model/rollback", {"version": version})


def promote(*, shadow: bool = False, repair: bool = False, data: _Data = None, admin: _Admin = None) -> None:
    """Serve what the gate holds back: the newest state is good, whatever the checks say. Ends a hold.

    Parameters
    ----------
    shadow
        Go on with the newest model of the shadow instead (docs/shadow.md).
    repair
        Go on with the model that 'millrace repair' has made instead (docs/repair.md).
    """
    if shadow and repair:
        raise SettingError("--shadow and --repair", "give one of them")
    settings = _settings(data)
    if shadow or repair:
        _tell(settings, admin, "/model/adopt", {"from": "shadow" if shadow else "repair"})
    else:
        _tell(settings, admin, "/model/promote", {})


def hold(*, data: _Data = None, admin: _Admin = None) -> None:
    """Serve no newer version until 'millrace promote'."""
    _tell(_settings(data), admin, "/model/hold", {})


quarantine_commands = cyclopts.App(name="quarantine", help="Samples that were refused: list, release, discard.")


@quarantine_commands.command(name="list")
def list_quarantine(*, data: _Data = None) -> None:
    """Print what is in quarantine: a line for each file of samples, oldest first."""
    from learner.gate.quarantine import PLACE, Quarantine
    from millrace.basics.store import Store

    found = Quarantine(Store(of_loop(load_settings(), data).place(PLACE), writes=False), "", writes=False).entries()
    for entry in found:
        when = f"{_when(entry.from_ms)} to {_when(entry.to_ms)}"
        print(f"{entry.name}  {entry.rows:,} rows of {when}  {entry.refusal}")
    print(f"{sum(entry.rows for entry in found):,} rows in {len(found):,} files")


@quarantine_commands.command
def release(*names: str, data: _Data = None, admin: _Admin = None) -> None:
    """Learn from samples that were refused: the world is different, and they are right.

    Parameters
    ----------
    names
        As 'millrace quarantine list' shows them, or: all.
    """
    _tell(_settings(data), admin, "/quarantine/release", {"names": _names(names)})


@quarantine_commands.command
def discard(*names: str, data: _Data = None, admin: _Admin = None) -> None:
    """Throw samples away that were refused: they are wrong.

    Parameters
    ----------
    names
        As 'millrace quarantine list' shows them, or: all.
    """
    _tell(_settings(data), admin, "/quarantine/discard", {"names": _names(names)})


def _names(names: tuple[str, ...]) -> list[str] | Literal["all"]:
    if not names:
        raise SettingError("no name is given", "name entries of 'millrace quarantine list', or say: all")
    return "all" if names == ("all",) else list(names)


def _settings(data: Path | None) -> Settings:
    """The settings, with the data folder that is meant."""
    if data is not None and not data.is_dir():
        raise SettingError(f"--data '{data}' is no folder", "name the data folder of a learner")
    return on_folder(load_settings(), data)


def _show_versions(settings: Settings) -> None:
    from millrace.versions.modelstore import ModelStore

    for note in ModelStore(settings.place("models"), writes=False).snapshots():
        when = f"of {_when(note.event_ms)}  {note.trained:,} samples learnt" if note.trained else "nothing learnt yet"
        print(f"{note.version}  {when}")


def _tell(settings: Settings, admin: str | None, path: str, body: Mapping[str, Any]) -> None:
    """Gives a command to the learner, and prints what it did.

    Raises:
        ServiceError: no learner answers, or it did not do it.
        SettingError: there is no token, or the address is none.
    """
    for line in told(ask(_address(settings, admin), path, body, _token(settings))):
        print(line)


def _address(settings: Settings, admin: str | None) -> str:
    from learner.gate.admin import address

    found = admin or address(Path(settings.data))
    if found is None:
        raise ServiceError(
            f"no learner is at work on folder '{settings.data}'",
            "name its folder with --data, or where its door is with --admin http://HOST:8750",
        )
    return found


def _token(settings: Settings) -> str:
    from millrace.processes.tokens import OWN, tokens_of

    own = Path(settings.data) / OWN
    if settings.admin_token_file:
        return tokens_of(Path(settings.admin_token_file))[0]
    if not own.exists():
        raise SettingError(
            f"no token is known: MILLRACE_ADMIN_TOKEN_FILE is not set, and '{own}' is not there",
            "set it to the file that the learner was started with",
        )
    return tokens_of(own)[0]


def ask(address: str, path: str, body: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The learner's answer to a command.

    Args:
        address: of its door, ``http://host:port``.
        path: of :data:`learner.gate.admin.COMMANDS`.

    Raises:
        ServiceError: nobody answers there, or the command was not done.
        SettingError: the address is none.
    """
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    import msgspec

    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or 80
        if parts.scheme != "http" or not host:
            raise ValueError
    except ValueError:
        raise SettingError(f"address '{address}' of the learner", "give http://HOST:PORT") from None
    connection = HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, msgspec.json.encode(body), {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        said = msgspec.json.decode(answer.read(), type=dict[str, Any])
    except (OSError, HTTPException, msgspec.MsgspecError) as error:
        raise ServiceError(
            f"the learner at {address} does not answer ({type(error).__name__}: {error})",
            "look whether it runs; GET /model there says what it did",
        ) from None
    finally:
        connection.close()
    if answer.status != 200:
        problem, _, remedy = str(said.get("error", f"status {answer.status}")).partition("; ")
        raise ServiceError(problem, remedy or "see the learner's log")
    return said


def told(answer: Mapping[str, Any]) -> list[str]:
    """An answer as lines.

    >>> told({"said": "back at version 40", "version": 43, "from": None})
    ['back at version 40', 'version  43']
    """
    first = [str(answer["said"])] if "said" in answer else []
    return [*first, *(f"{name}  {value}" for name, value in answer.items() if name != "said" and value is not None)]


def _when(ms: int) -> str:
    """A time of the event clock.

    >>> _when(1_772_452_800_000)
    '2026-03-02 12:00'
    """
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
