# core
"""Durable storage: files with checksums in a folder or an object store.

It holds model snapshots, large deltas, checkpoints of the stream, and the scorer's item index. The form of a file::

    body, any bytes ─┬─ head, JSON: the file's own description   ─┬─ trailer, 64 bytes, little-endian
                     │                                            │   SHA-256 of all before it     32
                     │                                            │   length of the body, uint64    8
                     │                                            │   length of the head, uint64    8
                     │                                            │   "MILLRACE SEALED\\1"          16

The trailer stands at the end, so a writer can compute the digest while it writes, and a torn file has no trailer.

A file is whole or absent (:mod:`millrace.basics.atomic_files`; object stores guarantee it themselves). A damaged
file shows by its checksum. :meth:`Store.rename_damaged` renames it for inspection and affects no other file. A set of
several files needs a last file with the digests of the others; without it the set is not valid.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import msgspec
import structlog

from millrace.basics.atomic_files import clear_leftovers, write_whole
from millrace.basics.errors import StoreError

log = structlog.get_logger("store")

_MAGIC = b"MILLRACE SEALED\1"
_TRAILER = struct.Struct("<32sQQ16s")
ASIDE = "damaged-"  # prefix of damaged files that were renamed

T = TypeVar("T")
_REMEDY = "give a folder or object store that can be read and written"


class AbsentError(StoreError):
    """There is no file of this name."""


class DamagedError(StoreError):
    """A file is torn, changed or empty, or another one has its name."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A reference to a file: enough to recognise it."""

    name: str
    digest: str  # SHA-256 in hexadecimal, as in its seal
    size: int  # of the whole file, in bytes


def seal(head: Any, *body: bytes | memoryview) -> tuple[list[bytes | memoryview], str]:
    """The chunks of a sealed file, and its digest in hexadecimal. ``head`` is anything that becomes JSON."""
    said = msgspec.json.encode(head)
    digest, size = hashlib.sha256(), 0
    for chunk in body:
        digest.update(chunk)
        size += memoryview(chunk).nbytes
    digest.update(said)
    return [*body, said, _TRAILER.pack(digest.digest(), size, len(said), _MAGIC)], digest.hexdigest()


def unseal(raw: bytes | memoryview, name: str) -> tuple[bytes, memoryview, str]:
    """Head (JSON), body (a view of ``raw``) and digest of a sealed file. Raises DamagedError when it is not whole."""
    view = memoryview(raw)
    if len(view) >= _TRAILER.size:
        digest, size, said, magic = _TRAILER.unpack(view[-_TRAILER.size :])
        if magic == _MAGIC and size + said + _TRAILER.size == len(view):
            within = view[: -_TRAILER.size]
            if hashlib.sha256(within).digest() == digest:
                return bytes(within[size:]), within[:size], digest.hex()
    raise DamagedError(
        f"file '{name}' of {len(view)} bytes is damaged", "the one before it is used; keep it to look at"
    )


class Store:
    """Sealed files under one folder or URL. Any number of readers; each file name has one writer, or :meth:`put_first`.

    Names have no folders; those that begin with a dot or with ``damaged-`` are not listed. Raises StoreError when the
    place cannot be used.

    Args:
        url: a folder, or any URL that fsspec knows (``s3://bucket/prefix``, ``memory://name``).
        writes: whether this process writes here. A reader makes no folder and clears nothing.
    """

    def __init__(self, url: str | Path, writes: bool = True) -> None:
        self.url = str(url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
            self._local = "file" in (
                self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
            )
            if writes:
                self._fs.makedirs(self._root, exist_ok=True)
                if self._local:
                    clear_leftovers(Path(self._root))
        except (OSError, ValueError, ImportError) as error:
            raise self._failed("opened", error) from None

    # -- writing ---------------------------------------------------------------------------------------------

    def put(self, name: str, head: Any, *body: bytes | memoryview) -> Sealed:
        """Makes or replaces a file. When this returns, it is whole and durable. Raises StoreError when it could not be
        written; then the old file or the new one is there."""
        chunks, digest = seal(head, *body)
        size = sum(memoryview(chunk).nbytes for chunk in chunks)
        self._write(name, chunks)
        return Sealed(name, digest, size)

    def put_first(self, name: str, head: Any) -> None:
        """Makes a file, unless there is one of this name: of several writers the first one's stays. An object store
        whose client cannot tell may keep the last one's. Raises as :meth:`put`."""
        with contextlib.suppress(FileExistsError):
            self._write(name, seal(head)[0], replaces=False)

    def _write(self, name: str, chunks: list[bytes | memoryview], replaces: bool = True) -> None:
        def write() -> None:
            if self._local:
                write_whole(Path(self._root, name), *chunks, durable=True, replaces=replaces)
            elif replaces:
                self._fs.pipe_file(self._path(name), b"".join(chunks))
            else:
                self._fs.pipe_file(self._path(name), b"".join(chunks), mode="create")

        self._try("written to", write, but=FileExistsError)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; an absent one is no error. Raises StoreError."""
        for name in names:
            self._try("written to", lambda name=name: self._remove(name))  # type: ignore[misc]

    def rename_damaged(self, name: str, why: str) -> None:
        """Renames a damaged file and logs this. Another process may have been faster. Raises StoreError."""
        log.error("file is damaged and renamed", file=name, kept_as=ASIDE + name, store=self.url, why=why)

        def move() -> None:
            with contextlib.suppress(FileNotFoundError):
                if self._local:
                    Path(self._root, name).replace(Path(self._root, ASIDE + name))
                else:
                    self._fs.cp_file(self._path(name), self._path(ASIDE + name))
                    self._fs.rm_file(self._path(name))

        self._try("written to", move)

    # -- reading ---------------------------------------------------------------------------------------------

    def names(self, prefix: str = "", aside: bool = False) -> list[str]:
        """Sorted names of the files that begin with ``prefix``, without hidden ones and, if not ``aside``, without
        damaged ones that were renamed. Raises StoreError when the place cannot be read."""

        def listed() -> list[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:  # nobody has written here yet
                return []
            return sorted(str(path).rsplit("/", 1)[-1] for path in found)

        names = self._try("read", listed)
        hidden = "." if aside else (".", ASIDE)
        return [n for n in names if n.startswith(prefix) and not n.startswith(hidden)]

    def get(self, name: str) -> tuple[bytes, memoryview, Sealed]:
        """Head (JSON), body, and a reference to the file. Raises AbsentError, DamagedError, or StoreError when the
        place cannot be read."""
        try:
            raw: bytes = self._try("read", lambda: self._fs.cat_file(self._path(name)), but=FileNotFoundError)
        except FileNotFoundError:
            raise AbsentError(f"file '{name}' is not in '{self.url}'", "another process may have removed it") from None
        head, body, digest = unseal(raw, name)
        return head, body, Sealed(name, digest, len(raw))

    def expect(self, file: Sealed) -> tuple[bytes, memoryview]:
        """Head and body of ``file``. Another whole file under its name is refused like a damaged one. Raises as
        :meth:`get`."""
        head, body, found = self.get(file.name)
        if found != file:
            raise DamagedError(f"file '{file.name}' is whole, but not the one that was meant", "it is not used")
        return head, body

    # -- within ----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _try(self, what: str, do: Callable[[], T], but: type[OSError] | tuple[()] = ()) -> T:
        """``but``: an error that is the caller's."""
        try:
            return do()
        except but:
            raise
        except OSError as error:
            raise self._failed(what, error) from None
        except Exception as error:  # object stores' clients have errors of their own
            if self._local:
                raise
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: Any) -> StoreError:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return StoreError(f"store '{self.url}' cannot be {what} ({text})", _REMEDY)
