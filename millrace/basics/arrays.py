# core
"""Named arrays as bytes: a list of names, types and shapes (:class:`ArraySpec`), and a body.

The body has one array after another, each padded to start at a multiple of 64. Reading copies nothing and is safe with
any list: the arrays lie within the bytes, or there is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics.errors import SnapshotError

Array = NDArray[Any]

_ALIGN = 64
_REMEDY = "another file or message is used"
_DTYPE = re.compile(r"[<|][fiub][1248]")


class ArraySpec(Struct, frozen=True, array_like=True):
    name: str
    dtype: str  # numpy's, little-endian: "<f4"
    shape: list[int]

    @property
    def nbytes(self) -> int:
        """Size of the array. Raises SnapshotError when its type or shape is not one that we write."""
        try:
            if _DTYPE.fullmatch(self.dtype) and len(self.shape) <= 8 and all(0 <= n < 2**48 for n in self.shape):
                return math.prod(self.shape) * np.dtype(self.dtype).itemsize
        except TypeError:  # such as a float of one byte
            pass
        raise SnapshotError(f"array '{self.name[:80]}' of {self.dtype[:8]} {self.shape[:8]} is none", _REMEDY)


def specs_of(arrays: Mapping[str, Array]) -> list[ArraySpec]:
    return [ArraySpec(name, a.dtype.newbyteorder("<").str, list(a.shape)) for name, a in arrays.items()]


def flat_bytes(array: Array) -> NDArray[np.uint8]:
    """An array's bytes in its own order, as (n,); no copy where it lies in one piece."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def lay(arrays: Mapping[str, Array]) -> list[memoryview | bytes]:
    """The body for :func:`specs_of`, in chunks; arrays are not copied."""
    chunks: list[memoryview | bytes] = []
    for array in arrays.values():
        body = flat_bytes(array)
        chunks.append(body.data)
        if gap := -body.size % _ALIGN:
            chunks.append(bytes(gap))
    return chunks


def view(specs: Sequence[ArraySpec], body: bytes | memoryview) -> dict[str, Array]:
    """The arrays in ``body``, as read-only views. Raises SnapshotError when the list does not fit the body."""
    arrays: dict[str, Array] = {}
    at, size = 0, memoryview(body).nbytes
    for one in specs:
        n = one.nbytes
        if at + n > size or one.name in arrays:
            raise SnapshotError(f"array '{one.name[:80]}' of {n} bytes is not in {size}", _REMEDY)
        dtype = np.dtype(one.dtype)
        arrays[one.name] = np.frombuffer(body, dtype, n // dtype.itemsize, at).reshape(one.shape)
        at += n + -n % _ALIGN
    if at != size:
        raise SnapshotError(f"{size - at} bytes belong to no array", _REMEDY)
    return arrays
