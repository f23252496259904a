# core
"""Checkpoints of the form before journals, read once and carried over.

::

    <root>/p00003-00000000000000000042.ckpt     partition 3, its 42nd checkpoint
    bytes 0-7     "MLRCKPT1"
    bytes 8-39    SHA-256 of all that follows
    bytes 40-43   length of the offsets' JSON, uint32 little-endian
    then          the offsets' JSON, the body: a whole state
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
from pathlib import Path

import fsspec

from millrace.basics.errors import StoreError

_MAGIC = b"MLRCKPT1"
_NAME = re.compile(r"p(\d{5})-(\d{20})\.ckpt$")
REMEDY = "move them away to read its topics from their beginning"


class OldCheckpoints:
    """The old form's files in one place. Nobody writes them any more.

    Raises:
        StoreError: the place cannot be used.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (OSError, ValueError, ImportError) as error:
            raise self._failed("opened", error) from None

    def newest(self, partition: int) -> bytes | None:
        """The newest whole state; None: there is no file of the partition.

        Raises:
            StoreError: the place cannot be read, or every file of the partition is damaged.
        """
        try:
            names = self._names(partition)
            for name in reversed(names):
                raw = self._fs.cat_file(name)
                if len(raw) >= 44 and raw[:8] == _MAGIC and hashlib.sha256(raw[40:]).digest() == raw[8:40]:
                    body: bytes = raw[44 + struct.unpack("<I", raw[40:44])[0] :]
                    return body
        except OSError as error:
            raise self._failed("read", error) from None
        if names:
            raise StoreError(
                f"all {len(names)} checkpoints of partition {partition} in '{self.url}' are damaged", REMEDY
            )
        return None

    def remove(self, partition: int) -> None:
        """Removes a partition's files: what they held has been carried over.

        Raises:
            StoreError: one could not be removed.
        """
        try:
            for name in self._names(partition):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(name)
        except OSError as error:
            raise self._failed("written to", error) from None

    def _names(self, partition: int) -> list[str]:
        """Full paths, oldest first."""
        self._fs.invalidate_cache()
        try:
            names = [str(name) for name in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if (m := _NAME.search(name)) and int(m[1]) == partition)

    def _failed(self, what: str, error: Exception) -> StoreError:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return StoreError(
            f"checkpoints at '{self.url}' cannot be {what} ({text})", "give a folder or store to read from"
        )
