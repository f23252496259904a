# core
"""The archive's folder: Parquet files, and the manifest that lists which of them count.

::

    archive/  events/0000000012.parquet       the cut 12: written whole, durable
              exposures/0000000012.parquet
              features/0000000012.parquet     where the setting archive_features is on
              manifest                        "12 is the last one", positions, what waits: written whole, after them
              schema.toml                     for millrace log replay
              makers.jsonl                    whose models made the pages of which arms, where several did
              lock                            of the one process that writes here

A cut counts once the manifest names it. Later files are of a process that was killed in between: the next start
removes them and reads the same messages again. So a restart neither loses nor doubles a row.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from millrace.basics.atomic_files import clear_leftovers, lock_of, write_whole
from millrace.basics.errors import UNFIT, StoreError
from millrace.basics.store import DamagedError, seal, unseal

KINDS = ("events", "exposures", "features")
MAKERS = "makers.jsonl"
_REMEDY = "move the folder away: a new archive begins with what the topics still hold"


class ArchiveFolder:
    """One process at a time; it holds the lock until :meth:`close`.

    Raises:
        StoreError: another process writes here, or the folder cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._schema = ""  # waits for the first file that it fits
        self.last = 0
        """The last cut that counts; 0: there was none."""
        try:
            for kind in KINDS[:2]:
                (path / kind).mkdir(parents=True, exist_ok=True)
            lock = lock_of(path / "lock")
        except OSError as error:
            raise StoreError(f"the archive '{path}' cannot be used ({error})", "name a folder to write to") from None
        if lock is None:
            raise StoreError(
                f"another process writes to the archive '{path}'", "end it, or set MILLRACE_DATA to another folder"
            )
        self._lock = lock

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._lock)

    def load(self) -> dict[str, Any] | None:
        """The state in the manifest; later files are removed. None: the archive is new.

        Raises:
            StoreError: the manifest is damaged, or is missing beside files.
        """
        for folder in (self.path, *(self.path / kind for kind in KINDS)):
            clear_leftovers(folder)
        manifest, state = self.path / "manifest", None
        if manifest.exists():
            try:
                head, body, _ = unseal(manifest.read_bytes(), str(manifest))
                self.last = msgspec.json.decode(head, type=dict[str, int])["cut"]
                state = msgspec.msgpack.decode(body, type=dict[str, Any])
            except (OSError, DamagedError, *UNFIT) as error:
                raise StoreError(f"the archive's manifest '{manifest}' cannot be read ({error})", _REMEDY) from None
        elif any(self.files()):
            raise StoreError(f"the archive '{self.path}' has files and no manifest", _REMEDY)
        for path in list(self.files()):
            if int(path.stem) > self.last:
                path.unlink()
        return state

    def files(self) -> Iterator[Path]:
        """All Parquet files, kind by kind, oldest first."""
        for kind in KINDS:
            yield from sorted(p for p in (self.path / kind).glob("*.parquet") if p.stem.isdigit())

    def write(self, tables: Mapping[str, pa.Table], state: Mapping[str, Any]) -> int:
        """Writes a cut durably: a file of each kind that has rows, then the manifest. Returns the number of files.

        Raises:
            StoreError: it could not be written; the earlier state counts.
        """
        cut = self.last + 1
        written = 0
        try:
            for kind, table in tables.items():
                if table.num_rows:
                    (self.path / kind).mkdir(exist_ok=True)
                    write_whole(self.path / kind / f"{cut:010d}.parquet", parquet(table), durable=True)
                    written += 1
            chunks, _ = seal({"cut": cut}, msgspec.msgpack.encode(state))
            write_whole(self.path / "manifest", *chunks, durable=True)
        except OSError as error:
            raise StoreError(f"the archive '{self.path}' cannot be written ({error})", "make room there") from None
        self.last = cut
        if self._schema and "exposures" in tables and tables["exposures"].num_rows:
            self._write_schema(self._schema)
        return written

    def put_schema(self, text: str, columns: Iterable[str] = ()) -> None:
        """Writes ``schema.toml``, if it differs. While the newest file lacks a new column, the earlier schema stays, so
        that the folder can be replayed at any time.

        Args:
            text: of the file.
            columns: of an exposure's row from now on.
        """
        newest = max((p for p in self.files() if p.parent.name == "exposures"), default=None)
        if newest is not None and (self.path / "schema.toml").exists():
            try:
                there = set(pq.read_schema(newest).names)
            except (OSError, pa.ArrowException):
                there = set()
            if not there.issuperset(columns):
                self._schema = text
                return
        self._write_schema(text)

    def put_makers(self, makers: Mapping[str, str], ms: int) -> None:
        """Notes whose models make the pages of the arms from this event time on, where that differs from before."""
        said = makers_of(self.path)
        if makers != (said[-1].made_by if said else {}):
            lines = [msgspec.json.encode(one) + b"\n" for one in (*said, Makers(ms, dict(makers)))]
            write_whole(self.path / MAKERS, *lines, durable=True)

    def _write_schema(self, text: str) -> None:
        self._schema = ""
        path = self.path / "schema.toml"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode(), durable=True)

    def expire(self, before_s: float) -> int:
        """Removes files written before this Unix time. Returns how many."""
        old = [path for path in self.files() if path.stat().st_mtime < before_s]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


class Makers(Struct, frozen=True):
    """Whose models make the pages of each arm, in words, from an event time on; empty: all are the first learner's."""

    since_ms: int
    made_by: dict[str, str]


def makers_of(folder: Path) -> list[Makers]:
    """What an archive notes of this, oldest first. Raises StoreError: its file cannot be read."""
    try:
        return [msgspec.json.decode(line, type=Makers) for line in (folder / MAKERS).read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, *UNFIT) as error:
        raise StoreError(f"'{folder / MAKERS}' cannot be read ({error})", "mend it, or move it away") from None


def parquet(table: pa.Table) -> memoryview:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getbuffer()
