# core
"""Committed offsets of groups: a file of JSON lines, one appended for each commit, and a table in memory.

The newest line of a partition holds. The file is rewritten with one line each when it has grown to several times that.
A torn last line (the broker was killed while it wrote) is left out: that commit was not acknowledged.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from millrace.basics.atomic_files import write_whole

Key = tuple[str, str, int]  # group, topic, partition
Committed = tuple[int, str]  # next offset to read, and the client's text beside it

_Line = tuple[str, str, int, int, str]
_REWRITE_AT = 1000  # lines beyond four times the entries at which the file is rewritten


class Offsets:
    """The committed offsets in the file ``path``, made if missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: dict[Key, Committed] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                group, topic, partition, offset, text = msgspec.json.decode(line, type=_Line)
            except msgspec.MsgspecError:
                continue  # the end of the file, or a damaged line
            if offset < 0:
                self._table.pop((group, topic, partition), None)
            else:
                self._table[group, topic, partition] = (offset, text)
        self._rewrite()

    def _rewrite(self) -> None:
        write_whole(self._path, b"".join(_line(key, value) for key, value in self._table.items()), durable=False)
        self._lines = len(self._table)
        self._file = self._path.open("ab", buffering=0)

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        size = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):  # a full disk writes a part, then raises
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(size)  # a torn line would swallow the next one
            raise
        self._lines += len(lines)

    def _shorten(self) -> None:
        """Rewrites the file if it has grown. The table must be complete."""
        if self._lines > 4 * len(self._table) + _REWRITE_AT:
            before = self._file
            try:
                self._rewrite()
            except OSError:  # a full disk: the file at hand goes on
                return
            before.close()

    def commit(self, group: str, entries: dict[tuple[str, int], Committed]) -> None:
        """Keeps the committed offsets of a group by (topic, partition). Raises OSError when the file cannot be
        written."""
        keyed = {(group, topic, partition): value for (topic, partition), value in entries.items()}
        self._write([_line(key, value) for key, value in keyed.items()])
        self._table.update(keyed)
        self._shorten()

    def get(self, group: str, topic: str, partition: int) -> Committed | None:
        return self._table.get((group, topic, partition))

    def of(self, group: str) -> dict[tuple[str, int], Committed]:
        """All committed offsets of a group, by (topic, partition)."""
        return {(topic, number): value for (g, topic, number), value in self._table.items() if g == group}

    def groups(self) -> set[str]:
        return {group for group, _, _ in self._table}

    def forget(self, *, group: str | None = None, topic: str | None = None) -> None:
        """Drops the offsets of a group, or of a topic in all groups."""
        gone = [key for key in self._table if key[0] == group or key[1] == topic]
        for key in gone:
            del self._table[key]
        self._write([_line(key, (-1, "")) for key in gone])
        self._shorten()

    def close(self) -> None:
        self._file.close()


def _line(key: Key, value: Committed) -> bytes:
    return msgspec.json.encode((*key, *value)) + b"\n"
