# core
"""Small bodies for deltas: an image as bytes, bit for bit, much smaller than its arrays.

::

    "MRI1" | length of the list, uint32 | list (JSON) | one zstd frame:
                                                        each array's bytes in planes: all first bytes, all second, ...

Numbers of one array have similar exponents, so byte planes compress better than whole numbers (the "shuffle" filter of
HDF5 and Blosc; Alted, "Why modern CPUs are starving", 2010). A dense tensor travels as its difference (XOR of the bits)
against the follower's: where a weight moved little, sign, exponent and first digits cancel to zeros.

The list carries a checksum of the resulting dense tensors. So a follower refuses a difference against other tensors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zstandard
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics.arrays import ArraySpec, flat_bytes, specs_of
from millrace.basics.compiled import compiled
from millrace.basics.errors import SnapshotError
from millrace.versions.image import Array, Image

_MAGIC = b"MRI1"
_HEAD = struct.Struct("<4sI")
_LEVEL = 1  # higher ones make nothing smaller here
MAX_IMAGE_BYTES = 1 << 30
"""The largest unpacked body. A second of learning changes some megabytes."""


class _List(Struct, frozen=True):
    arrays: list[ArraySpec]
    against: list[str]  # dense tensors that are differences
    dense_crc: int  # CRC-32 of all dense tensors, whole, in the order of the list


_decode = msgspec.json.Decoder(_List).decode
_REMEDY = "the next snapshot mends it"


def pack(image: Image, parent_dense: Mapping[str, Array] | None = None) -> bytes:
    """The body of an image. ``parent_dense``: dense tensors that the reader holds; None: they are packed whole. Raises
    SnapshotError where it is larger than can be unpacked."""
    arrays = image.tensors()
    against, crc, planes, size = [], 0, [], 0
    for name, array in arrays.items():
        raw = flat_bytes(array)
        if name.startswith("dense/"):
            crc = zlib.crc32(raw.data, crc)
            before = _before(name, array.dtype, array.shape, parent_dense)
            if before is not None:
                against.append(name)
                raw = raw ^ before
        planes.append(_planes(raw, array.dtype.itemsize))
        size += raw.size
    if size > MAX_IMAGE_BYTES:
        raise SnapshotError(f"a delta of {size} bytes is beyond {MAX_IMAGE_BYTES}", "publish oftener")
    said = msgspec.json.encode(_List(specs_of(arrays), against, crc))
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join(p.data for p in planes))
    return _HEAD.pack(_MAGIC, len(said)) + said + body


def unpack(body: bytes | memoryview, parent_dense: Mapping[str, Array] | None = None) -> Image:
    """The image of a body. Its arrays are its own and writable. ``parent_dense``: the dense tensors that it may be a
    difference against. Raises SnapshotError where the body is not one, or its differences are against other tensors."""
    said, plain = _open(memoryview(body))
    against, arrays, at, crc = set(said.against), dict[str, Array](), 0, 0
    for one in said.arrays:
        dtype, n = np.dtype(one.dtype), one.nbytes
        raw = _whole(plain[at : at + n], dtype.itemsize)
        at += n
        if one.name in against:
            before = _before(one.name, dtype, tuple(one.shape), parent_dense)
            if before is None:
                raise SnapshotError(f"delta has a difference of '{one.name[:80]}', which is not there", _REMEDY)
            raw = raw ^ before
        if one.name.startswith("dense/"):
            crc = zlib.crc32(raw.data, crc)
        arrays[one.name] = raw.view(dtype).reshape(one.shape)
    if crc != said.dense_crc:
        raise SnapshotError("delta's dense tensors are differences against others than are here", _REMEDY)
    return Image.of_tensors(arrays)


def _open(view: memoryview) -> tuple[_List, NDArray[np.uint8]]:
    """The list, and the planes of all arrays one after another."""
    try:
        magic, length = _HEAD.unpack(view[: _HEAD.size])
        if magic != _MAGIC:
            raise SnapshotError(f"a delta begins with {magic!r}", _REMEDY)
        said = _decode(view[_HEAD.size : _HEAD.size + length])
        size = sum(one.nbytes for one in said.arrays)
        frame = view[_HEAD.size + length :]
        # zstd makes room for what a frame says of its size: that is looked at first.
        if size > MAX_IMAGE_BYTES or zstandard.frame_content_size(frame) != size:
            raise SnapshotError(f"a delta is not of the {size} bytes that it says", _REMEDY)
        plain = zstandard.ZstdDecompressor().decompress(frame) if size else b""
    except (struct.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, zstandard.ZstdError) as error:
        raise SnapshotError(f"a delta cannot be read ({error})", _REMEDY) from None
    if len(plain) != size:
        raise SnapshotError(f"a delta has {len(plain)} of {size} bytes", _REMEDY)
    return said, np.frombuffer(plain, np.uint8)


def _before(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parent_dense: Mapping[str, Array] | None
) -> NDArray[np.uint8] | None:
    """The bytes of the tensor that a difference is against; None when no tensor has this name and form."""
    found = (parent_dense or {}).get(name.removeprefix("dense/")) if name.startswith("dense/") else None
    return None if found is None or found.dtype != dtype or found.shape != shape else flat_bytes(found)


def _planes(raw: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Bytes (n width,) of numbers as ``width`` planes of n."""
    return np.ascontiguousarray(raw.reshape(-1, width).T).reshape(-1)


def _whole(planes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The inverse of :func:`_planes`."""
    out = np.empty((len(planes) // width, width), np.uint8)
    _woven(planes.reshape(width, -1), out)
    return out.reshape(-1)


@compiled
def _woven(planes: Any, out: Any) -> None:
    """``out[i, b] = planes[b, i]``; planes (width, n), out (n, width). Five times as fast as numpy."""
    if len(planes) == 4:  # float32, as nearly all: written out, the compiler does many numbers at a time
        first, second, third, fourth = planes[0], planes[1], planes[2], planes[3]
        for i in range(len(out)):
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = first[i], second[i], third[i], fourth[i]
        return
    for i in range(len(out)):
        for b in range(len(planes)):
            out[i, b] = planes[b, i]
