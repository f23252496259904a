# core
"""Committed offsets of groups: a table in memory, and a file of JSON lines that each commit replaces whole."""

from __future__ import annotations

from pathlib import Path

import msgspec

from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import UNFIT

Key = tuple[str, str, int]  # group, topic, partition
Committed = tuple[int, str]  # next offset to read, and the client's text beside it

_Line = tuple[str, str, int, int, str]


class Offsets:
    """The committed offsets in the file ``path``; without it there are none. ``durable``: a commit is on the disk when
    it is acknowledged."""

    def __init__(self, path: Path, durable: bool = False) -> None:
        self._path, self._durable = path, durable
        self._table: dict[Key, Committed] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                group, topic, partition, offset, text = msgspec.json.decode(line, type=_Line)
            except UNFIT:
                continue  # the end of the file, or a damaged line
            self._table[group, topic, partition] = (offset, text)

    def commit(self, group: str, entries: dict[tuple[str, int], Committed]) -> None:
        """Keeps the committed offsets of a group by (topic, partition). Raises OSError when the file cannot be written;
        the offsets before it stay."""
        self._keep(self._table | {(group, *place): value for place, value in entries.items()})

    def get(self, group: str, topic: str, partition: int) -> Committed | None:
        return self._table.get((group, topic, partition))

    def of(self, group: str) -> dict[tuple[str, int], Committed]:
        """All committed offsets of a group, by (topic, partition)."""
        return {(topic, number): value for (g, topic, number), value in self._table.items() if g == group}

    def groups(self) -> set[str]:
        return {group for group, _, _ in self._table}

    def forget(self, *, group: str | None = None, topic: str | None = None) -> None:
        """Drops the offsets of a group, or of a topic in all groups. Raises OSError as :meth:`commit`."""
        self._keep({key: value for key, value in self._table.items() if key[0] != group and key[1] != topic})

    def _keep(self, table: dict[Key, Committed]) -> None:
        lines = (msgspec.json.encode((*key, *value)) + b"\n" for key, value in table.items())
        write_whole(self._path, *lines, durable=self._durable)
        self._table = table
