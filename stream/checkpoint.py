# core
"""Checkpoints, by which a partition's state survives a crash: the newest two of each partition, in a folder or store.

::

    <root>/p00003-00000000000000000042.ckpt     partition 3, its 42nd checkpoint
    bytes 0-7     "MLRCKPT1"
    bytes 8-39    SHA-256 of all that follows
    bytes 40-43   length of the offsets' JSON, uint32 little-endian
    then          the offsets' JSON, the body

A local file is written whole and durably (:mod:`millrace.contracts.files`). An object store itself puts an object whole
or not at all. If a file is damaged nevertheless, its digest shows it. The one before it is used, and the log says so.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import structlog

from millrace.contracts.errors import StoreError
from millrace.contracts.files import clear_leftovers, write_whole

_MAGIC = b"MLRCKPT1"
_NAME = re.compile(r"p(\d{5})-(\d{20})\.ckpt$")
KEPT = 2

log = structlog.get_logger("checkpoint")


class CheckpointStore:
    """Checkpoints of any number of partitions. One writer a partition at a time; partitions are independent.

    Args:
        url: a folder, or any URL that fsspec knows (``s3://bucket/prefix``, ``memory://name``).

    Raises:
        StoreError: the place cannot be used.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise self._failed("opened", error) from None
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        if self._local:
            clear_leftovers(Path(self._root))

    def write(self, partition: int, body: bytes, offsets: dict[str, int]) -> None:
        """Adds a checkpoint. It is durable when this returns. All but the newest two are deleted.

        Raises:
            StoreError: it could not be written; earlier ones are untouched.
        """
        header = msgspec.json.encode(offsets)
        digest = hashlib.sha256(struct.pack("<I", len(header)))
        digest.update(header)
        digest.update(body)
        head = _MAGIC + digest.digest() + struct.pack("<I", len(header)) + header
        try:
            names = self._names(partition)
            number = (int(_NAME.search(names[-1])[2]) if names else 0) + 1  # type: ignore[index]
            path = f"{self._root}/p{partition:05d}-{number:020d}.ckpt"
            if self._local:
                write_whole(Path(path), head, body, durable=True)
            else:
                self._fs.pipe_file(path, head + body)
            for name in names[: len(names) + 1 - KEPT]:
                self._fs.rm_file(name)
        except OSError as error:
            raise self._failed("written to", error) from None

    def newest(self, partition: int) -> bytes | None:
        """The body of the newest whole checkpoint, None when there is none."""
        found = self.newest_with_offsets(partition)
        return None if found is None else found[0]

    def newest_with_offsets(self, partition: int) -> tuple[bytes, dict[str, int]] | None:
        """The newest whole checkpoint's body and the offsets it was written with.

        Raises:
            StoreError: the place cannot be read, or there are checkpoints but all of them are damaged. (A start from
                nothing would count the same events again.)
        """
        try:
            names = self._names(partition)
            for name in reversed(names):
                found = _open(self._fs.cat_file(name))
                if found is not None:
                    return found
                log.warning("checkpoint is damaged, trying the one before", file=name.rsplit("/", 1)[-1])
        except OSError as error:
            raise self._failed("read", error) from None
        if names:
            raise StoreError(
                f"all {len(names)} checkpoints of partition {partition} in '{self.url}' are damaged",
                "move them away to read its topics from their beginning",
            )
        return None

    def _names(self, partition: int) -> list[str]:
        """Full paths of a partition's checkpoints, oldest first."""
        self._fs.invalidate_cache()
        names = [str(n) for n in self._fs.ls(self._root, detail=False)]
        return sorted(n for n in names if (m := _NAME.search(n)) and int(m[1]) == partition)

    def _failed(self, what: str, error: Any) -> StoreError:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return StoreError(
            f"checkpoints at '{self.url}' cannot be {what} ({text})", "give a folder or object store you can write to"
        )


def _open(raw: bytes) -> tuple[bytes, dict[str, int]] | None:
    """Body and offsets, None when the file is not whole."""
    if len(raw) < 44 or raw[:8] != _MAGIC or hashlib.sha256(memoryview(raw)[40:]).digest() != raw[8:40]:
        return None
    (length,) = struct.unpack("<I", raw[40:44])
    offsets: dict[str, int] = msgspec.json.decode(raw[44 : 44 + length], type=dict[str, int])
    return raw[44 + length :], offsets
