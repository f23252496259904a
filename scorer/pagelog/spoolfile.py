# core
"""The files of a spool (:mod:`scorer.pagelog.spool`): records in segments, and the acknowledgement mark.

::

    record    magic │ bytes of key, of value │ exposures │ CRC of key and value │ CRC of these │ key │ value
    mark      segment │ byte │ CRC of these
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Position = tuple[int, int]
"""Segment, and byte in it."""

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_MAGIC = b"\xf1MLg"
_HEAD = struct.Struct("<4sIIII")
_CRC = struct.Struct("<I")
_MARK = struct.Struct("<QQ")
HEAD_BYTES = _HEAD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """A record's place in a segment, damaged or not."""

    at: Position
    end: int
    """Where the next one begins."""
    exposures: int
    key: bytes | None
    """None: the record is damaged. Its exposures are known if its head is whole; else they are 0."""
    value: bytes


def head_of(key: bytes, value: bytes, exposures: int) -> bytes:
    head = _HEAD.pack(_MAGIC, len(key), len(value), exposures, zlib.crc32(value, zlib.crc32(key)))
    return head + _CRC.pack(zlib.crc32(head))


def segment(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}.log"


def segments(folder: Path) -> dict[int, int]:
    """Length in bytes of each segment, by number."""
    return {int(p.stem): p.stat().st_size for p in sorted(folder.glob("*.log")) if p.stem.isdecimal()}


def read_on(folder: Path, lengths: Mapping[int, int], at: Position) -> RecordPlace | None:
    """The entry at ``at``, or the first one of later segments. None: nothing."""
    number, start = at
    for later in sorted(lengths):
        if later > number and start >= lengths.get(number, 0):
            number, start = later, 0
    length = lengths.get(number, 0)
    return None if start >= length else read_at(folder, (number, start), length)


def read_at(folder: Path, at: Position, length: int) -> RecordPlace:
    """The record at ``at`` in a segment of ``length`` bytes. Raises OSError: the process has no file or memory left;
    the record may be whole."""
    number, start = at
    exposures = 0
    try:
        with segment(folder, number).open("rb") as file:
            file.seek(start)
            head = _read_head(file.read(HEAD_BYTES))
            if head is None:
                return RecordPlace(at, _next_head(file.name, start + 1, length), 0, None, b"")
            of_key, of_value, exposures, crc = head
            end = start + HEAD_BYTES + of_key + of_value
            body = file.read(of_key + of_value) if end <= length else b""
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return RecordPlace(at, length, exposures, None, b"")
    if len(body) == of_key + of_value and zlib.crc32(body) == crc:
        return RecordPlace(at, end, exposures, body[:of_key], body[of_key:])
    return RecordPlace(at, min(end, length), exposures, None, b"")


def _read_head(raw: bytes) -> tuple[int, int, int, int] | None:
    if len(raw) < HEAD_BYTES or _CRC.unpack_from(raw, _HEAD.size)[0] != zlib.crc32(raw[: _HEAD.size]):
        return None
    magic, of_key, of_value, exposures, crc = _HEAD.unpack_from(raw)
    return (of_key, of_value, exposures, crc) if magic == _MAGIC else None


def _next_head(name: str, start: int, length: int) -> int:
    """Where the next whole head stands; ``length`` if nowhere."""
    raw = Path(name).read_bytes()[:length]
    at = raw.find(_MAGIC, start)
    while at >= 0 and _read_head(raw[at : at + HEAD_BYTES]) is None:
        at = raw.find(_MAGIC, at + 1)
    return at if at >= 0 else length


def read_mark(file: int) -> Position | None:
    """The inverse of :func:`write_mark`. None: no mark, or a damaged one."""
    raw = os.pread(file, _MARK.size + _CRC.size, 0)
    if len(raw) < _MARK.size + _CRC.size or _CRC.unpack_from(raw, _MARK.size)[0] != zlib.crc32(raw[: _MARK.size]):
        return None
    number, start = _MARK.unpack_from(raw)
    return number, start


def write_mark(file: int, at: Position) -> None:
    """Marks all before ``at`` as acknowledged."""
    raw = _MARK.pack(*at)
    os.pwrite(file, raw + _CRC.pack(zlib.crc32(raw)), 0)
