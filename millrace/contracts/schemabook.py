# core
"""The schemas that a loop has used one after another, in its store.

::

    schemas/000001-5f0c6b...schema     the first one, as JSON
    schemas/000002-91aa27...schema     what it was changed to

State and messages name a schema by its id alone. A reader of an old id finds its columns here and carries them over
(:mod:`millrace.contracts.carry`). The stream enters its schema before it reads, so every schema that it used is
here.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import structlog

from millrace.basics.errors import UNFIT
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.schema import Schema

log = structlog.get_logger("schemas")

PLACE = "schemas"
"""Its folder in the store (:meth:`millrace.contracts.settings.Settings.place`)."""
_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.schema$")


class SchemaBook:
    """The schemas in one place, oldest first.

    Args:
        url: a folder, or any URL that fsspec knows.

    Raises:
        StoreError: the place cannot be used.
    """

    def __init__(self, url: str | Path, writes: bool = True) -> None:
        self._store = Store(url, writes)

    def enter(self, schema: Schema) -> None:
        """Records that the loop runs with ``schema`` from now on, if that is a change. Raises StoreError."""
        names = self._names()
        if names and names[-1][1] == schema.id:
            return
        number = names[-1][0] + 1 if names else 1
        self._store.put(f"{number:06d}-{schema.id}.schema", {"name": schema.name}, msgspec.json.encode(schema))

    def history(self) -> tuple[Schema, ...]:
        """All schemas in order, without those that this version cannot read (with a line in the log; nothing of theirs
        is carried over). Raises StoreError when the place cannot be read."""
        found = []
        for number, id in self._names():
            name = f"{number:06d}-{id}.schema"
            try:
                schema = msgspec.json.decode(self._store.get(name)[1], type=Schema)
            except (AbsentError, DamagedError, *UNFIT) as error:
                log.warning("a former schema cannot be read", file=name, error=str(error))
                continue
            if schema.id == id:
                found.append(schema)
            else:
                log.warning("a former schema is not what its name says", file=name)
        return tuple(found)

    def _names(self) -> list[tuple[int, str]]:
        found = (_NAME.match(name) for name in self._store.names())
        return sorted((int(m[1]), m[2]) for m in found if m)
