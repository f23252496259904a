# shell
"""The data folder of `millrace up`: one run at a time has it, and the next run goes on from it.

::

    DATA/up.lock        held while a run has the folder, however it ends (flock)
    DATA/up.json        where things are, while all is there; a run that was killed leaves it
    DATA/admin.token    who has it may command the learner (docs/concepts/trust.md); only its owner can read it
    DATA/schema.toml    the schema that the state in this folder is of
    DATA/form           the number of the folder's form, written before schema.toml; 0.2.0 wrote none
    DATA/logs           a file a role          DATA/broker, models, checkpoints, index, spool, archive: the state
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from millrace.basics.atomic_files import lock_of, write_whole
from millrace.basics.errors import SchemaError, ServiceError, SettingError
from millrace.contracts.schema import Schema, parse_schema
from millrace.contracts.schemabook import PLACE, SchemaBook
from millrace.contracts.settings import DATA, Settings

ADDRESSES = "up.json"
SCHEMA = "schema.toml"
_MARK = "form"
FORM = "1"
"""The form of the folder: of all that `up` and its roles keep there."""
RELEASE_SECONDS = 15.0
"""How long a killed run's processes may take to be gone. They die with it, but not all within the same moment."""


def on_folder(settings: Settings) -> Settings:
    """Settings of a command on the loop of a data folder. Makes nothing.

    The folder is the setting's, or :data:`~millrace.contracts.settings.DATA` in the present one. Without a named
    schema, the schema of the folder's state is used; without state, the setting stays empty. Raises SettingError for a
    folder of another version's form.
    """
    folder = Path(settings.data or DATA).absolute()
    kept = folder / SCHEMA
    if kept.is_file():
        _check_form(folder)
    schema = settings.schema or (str(kept) if kept.is_file() else "")
    return msgspec.structs.replace(settings, data=str(folder), schema=schema)


def _check_form(folder: Path) -> None:
    try:
        form = (folder / _MARK).read_text().strip()
    except FileNotFoundError:
        raise SettingError(
            f"folder '{folder}' is of version 0.2.0 or earlier, which this version does not read",
            f"name an empty folder with --data, and fill it from this one's archive: `millrace log bootstrap "
            f"{folder}/archive/exposures --schema {folder}/archive/schema.toml --data EMPTY` "
            "(docs/how-to/start-from-history.md)",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"'{folder / _MARK}' cannot be read ({error})", "name another folder with --data") from None
    if form != FORM:
        raise SettingError(
            f"folder '{folder}' is of form {form[:20]!r}, this version reads {FORM}",
            "use the version that wrote it, or name an empty folder with --data",
        )


def of_loop(settings: Settings) -> Settings:
    """As :func:`on_folder`, of a loop that has left models there, or has a store elsewhere. Makes nothing. Raises
    SettingError if there is no such loop."""
    found = on_folder(settings)
    if not found.store and not (Path(found.data) / "models").is_dir():
        raise SettingError(
            f"no loop has its models in folder '{found.data}'", "name its data folder with --data or MILLRACE_DATA"
        )
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder alone, until the end or until this process ends, however it ends.

    Raises:
        ServiceError: another run has it.
        SettingError: it cannot be written to.
    """
    path = folder / "up.lock"
    try:
        lock = lock_of(path)
    except OSError as error:
        raise SettingError(
            f"folder '{folder}' cannot be written to ({error.strerror})", "name another with --data"
        ) from None
    if lock is None:
        holder = path.read_text().strip()
        raise ServiceError(
            f"another 'millrace up' runs on folder '{folder}'{f' (process {holder})' if holder else ''}",
            "end it, or give --data another folder",
        )
    try:
        path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        os.close(lock)


def in_use(folder: Path) -> bool:
    path = folder / "up.lock"
    with suppress(OSError):
        if path.exists():
            lock = lock_of(path)
            if lock is None:
                return True
            os.close(lock)
    return False


def await_release(folder: Path) -> None:
    """Waits until the broker of a killed run has released its files."""
    deadline = time.monotonic() + RELEASE_SECONDS
    with suppress(OSError):  # there was no broker
        while (lock := lock_of(folder / "broker" / "topics" / "lock")) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if lock is not None:
            os.close(lock)


def addresses(folder: Path) -> dict[str, Any]:
    """Addresses of the run on this folder; empty: there is none, or not yet."""
    try:
        found = msgspec.json.decode((folder / ADDRESSES).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return found if isinstance(found, dict) else {}


def broker_of(folder: Path) -> str:
    """The broker of the run that has the folder now; empty: none has. A run that was killed leaves its addresses."""
    return str(addresses(folder).get("kafka", "")) if in_use(folder) else ""


def say_where(folder: Path, found: Mapping[str, Any]) -> None:
    write_whole(folder / ADDRESSES, msgspec.json.format(msgspec.json.encode(found)), durable=False)


def kept_schema(folder: Path) -> Schema | None:
    """The schema of the folder's state; None: it has none yet, or an unreadable one."""
    try:
        return parse_schema((folder / SCHEMA).read_text(encoding="utf-8"), SCHEMA)
    except (OSError, UnicodeDecodeError, SchemaError):
        return None


@dataclass(frozen=True, slots=True)
class SchemaNote:
    """The schema of a run, to be noted in its folder. ``changed``: a line about it; empty: it is as before."""

    text: str
    changed: str

    def write(self, folder: Path) -> None:
        write_whole(folder / _MARK, f"{FORM}\n".encode(), durable=True)
        write_whole(folder / SCHEMA, self.text.encode(), durable=True)


def _begun(folder: Path, settings: Settings) -> Schema | None:
    """The schema that the stream was started with last; None: there is none, or it is unreadable. The stream's state
    is of it, though the run may have ended before all roles took it up, and so before it was noted."""
    if not settings.store and not (folder / PLACE).is_dir():
        return None  # nothing is made where the command may be given in a wrong folder
    known = SchemaBook(f"{settings.store.rstrip('/')}/{PLACE}" if settings.store else folder / PLACE, writes=False)
    return next(iter(known.history()[-1:]), None)


def schema_note(folder: Path, settings: Settings) -> SchemaNote:
    """The schema that the settings name, if the folder's state may go on with it.

    Raises:
        SchemaError: it is no schema.
        SettingError: none is named; or it is another one than the state's, and ``evolve`` is not set; or its windows
            cannot go on with the counts that are there. This check comes before a role starts: the learner would carry
            the model over and the stream refuse its part, so neither schema could go on.
    """
    if not settings.schema:
        raise SettingError(
            f"no schema is named, and '{folder / SCHEMA}' is not there",
            "give --schema FILE ('millrace log guess' drafts one), or --data the folder of a loop that has one",
        )
    try:
        text = Path(settings.schema).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"schema file '{settings.schema}' cannot be read ({error})", "give the path of a TOML schema"
        ) from None
    schema, noted = parse_schema(text, settings.schema), kept_schema(folder)
    others = [one for one in (_begun(folder, settings), noted) if one is not None and one.id != schema.id]
    if not others:
        return SchemaNote(text, "")
    before = others[0]
    if not settings.evolve:
        there = f" ({folder / SCHEMA})" if before is noted else ""
        raise SettingError(
            f"the state in '{folder}' is of schema '{before.name}' ({before.id[:8]}), the settings name"
            f" '{schema.name}' ({schema.id[:8]})",
            f"give --evolve to keep what both have (docs/how-to/run-your-shop.md), name that one{there}, or give --data"
            " an empty folder",
        )
    from millrace.contracts.carry import same_tiles  # only here: the compiler is 50 MB in each role's process

    if not same_tiles(before, schema):
        raise SettingError(
            f"'{schema.name}' ({schema.id[:8]}) counts other actions, means or windows than '{before.name}'"
            f" ({before.id[:8]}), which the state in '{folder}' is of: its counts cannot go on",
            "keep the actions, the means and every window of the former schema, with no window that needs finer tiles"
            f" (keys, windows and half-lives may be added; {folder / SCHEMA} has it), or give --data an empty folder",
        )
    return SchemaNote(text, f"the schema has changed: what both have is carried over ('{schema.name}')")
