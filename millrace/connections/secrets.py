# core
"""Secrets that stand elsewhere: ``${NAME}`` in a text is the environment's, ``${file:PATH}`` a file's content."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from millrace.basics.errors import SettingError

PLACE = re.compile(r"\$\{(file:)?([^{}]*)\}")


def filled(text: str, spell: Callable[[str], str] = str) -> str:
    """``text`` with what its places name, as it is now: a file's last line break is left out.

    Args:
        spell: how a secret is written where it stands.

    Raises:
        SettingError: there is no such variable, or the file cannot be read.
    """

    def found(place: re.Match[str]) -> str:
        of_file, name = place.groups()
        if of_file:
            return spell(file_bytes(name).decode("utf-8", "replace").rstrip("\r\n"))
        if name not in os.environ:
            raise SettingError(f"the variable '{name}' is not set, and '{place[0]}' asks for it", f"set {name}")
        return spell(os.environ[name])

    return PLACE.sub(found, text)


def file_bytes(path: str) -> bytes:
    """What a file holds. Raises SettingError when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingError(
            f"file '{path}' cannot be read ({error.strerror})", "name one that this process may read"
        ) from None


def files_in(text: str) -> list[str]:
    """The files that ``text`` asks for.

    >>> files_in("${file:/run/secrets/redis}")
    ['/run/secrets/redis']
    """
    return [name for of_file, name in PLACE.findall(text) if of_file]


def stamp(paths: Iterable[str]) -> tuple[tuple[int, ...] | None, ...]:
    """What changes when one of these files is replaced or written."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
