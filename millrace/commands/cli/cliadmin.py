# shell
"""How a command reaches the running learner.

::

    DATA/learner/admin.json   where the learner's HTTP is  ──► POST, with the token of MILLRACE_ADMIN_TOKEN_FILE,
                                                               else of DATA/admin.token

Docs: docs/concepts/trust.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from millrace.basics.errors import ServiceError, SettingError
from millrace.commands.cli.cliflags import emit, settings_of
from millrace.contracts.settings import Settings

Admin = Annotated[
    str | None,
    Parameter(help="The learner's HTTP, http://HOST:PORT, if it runs elsewhere (default: as its folder says)."),
]
Yes = Annotated[bool, Parameter(help="Do not ask.", negative="")]


def sure(what: str, yes: bool) -> None:
    """Asks a person before what cannot be taken back. Raises SettingError: the answer is no, or nobody is there."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingError(f"{what}, and nobody is there to be asked", "say --yes if that is meant")
    print(f"{what}. Is that meant? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SettingError(f"{what}, and you said no", "nothing was done")


def send_command(data: Path | None, admin: str | None, json: bool, learner: str | None, path: str, **body: Any) -> None:
    """Gives a command to the learner, and prints what it did.

    Args:
        learner: its name; None: the first.
        path: of :data:`learner.gate.admin.COMMANDS`.

    Raises:
        ServiceError: no learner answers, or it did not do it.
        SettingError: there is no token, or the address is none.
    """
    settings = _settings(data, learner)
    answer = ask(_address(settings, admin), path, body, _token(settings))
    emit(answer, answer_lines(answer), json)


def refusal_of(data: Path | None, admin: str | None, learner: str | None) -> str:
    """Why the learner's gate refuses what is new; empty: it does not, or no learner says so."""
    import msgspec

    from millrace.commands.loop.monitor import fetch

    try:
        said = msgspec.json.decode(fetch(f"{_address(_settings(data, learner), admin)}/model", 5.0))
    except (OSError, ValueError):
        return ""  # the command itself says what is wrong there
    return str(said.get("refusal")) if said.get("state") in ("probation", "blocked") else ""


def _settings(data: Path | None, learner: str | None) -> Settings:
    if data is not None and not data.is_dir():
        raise SettingError(f"--data '{data}' is no folder", "name the data folder of a learner")
    return settings_of(data, learner=learner)


def _address(settings: Settings, admin: str | None) -> str:
    from learner.gate.admin import address

    found = admin or address(settings)
    if found is None:
        name = f" '{settings.learner}'" if settings.learner else ""
        raise ServiceError(
            f"no learner{name} is at work on folder '{settings.data}'",
            "name its folder with --data, or where it listens with --admin http://HOST:8750",
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
        address: of its HTTP, ``http://host:port``.
        path: of :data:`learner.gate.admin.COMMANDS`.

    Raises:
        ServiceError: nobody answers there, or the command was not done.
        SettingError: the address is none.
    """
    from http.client import HTTPException

    import msgspec

    from millrace.connections.learner_call import post

    try:
        status, answer = post(address, path, msgspec.json.encode(body), f"Bearer {token}")
        said = msgspec.json.decode(answer, type=dict[str, Any])
    except (OSError, HTTPException, msgspec.MsgspecError) as error:
        raise ServiceError(
            f"the learner at {address} does not answer ({type(error).__name__}: {error})",
            "look whether it runs; GET /model there says what it did",
        ) from None
    except ValueError:
        raise SettingError(f"address '{address}' of the learner", "give http://HOST:PORT") from None
    if status != 200:
        problem, _, remedy = str(said.get("error", f"status {status}")).partition("; ")
        raise ServiceError(problem, remedy or "see the learner's log")
    return said


def answer_lines(answer: Mapping[str, Any]) -> list[str]:
    """An answer as lines.

    >>> answer_lines({"said": "back at version 40", "version": 43, "from": None})
    ['back at version 40', 'version  43']
    """
    first = [str(answer["said"])] if "said" in answer else []
    return [*first, *(f"{name}  {value}" for name, value in answer.items() if name != "said" and value is not None)]
