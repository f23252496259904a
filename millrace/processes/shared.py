# shell
"""Memory that several processes map: arrays that one of them writes and the others read.

A :class:`Region` is a memfd, or an unlinked file where the system has none. Its descriptor crosses to another process
(scorer/ipc/link.py), never a copy. A region lives as long as any process maps it: arrays hold their mapping, a
descriptor in transit holds the file. The file has no name, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DONT_NEED, _POPULATE_READ, _HUGE_PAGES = 4, 22, 14  # advice to Linux's madvise
_PIECE = 4 << 20
_HUGE = 32 << 20  # from this size on an array asks for huge pages


class Region:
    """Memory of ``size`` bytes with a file descriptor. ``fd``: of another process's region, and owned by this object
    from now on; None: a new region, all zero. Raises OSError when memory or descriptors run out."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = size
        self.fd = _anonymous_file(size) if fd is None else fd
        self._close = weakref.finalize(self, os.close, self.fd)
        try:
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            self._close()
            raise
        self.address = np.frombuffer(self._map, np.uint8).ctypes.data

    def __del__(self) -> None:
        # In pieces: the system lets no other thread of the process map or unmap memory meanwhile.
        if self.size >= _HUGE and hasattr(self, "address"):
            self._advise(_DONT_NEED, 0, self.size)

    @classmethod
    def of_fd(cls, fd: int) -> Region:
        """The region of another process; owns ``fd`` from now on. Raises OSError when it cannot be mapped, and closes
        ``fd``."""
        try:
            size = os.fstat(fd).st_size
        except OSError:
            os.close(fd)
            raise
        return cls(size, fd)

    def array(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> NDArray[Any]:
        """A writable view of the memory from ``offset`` bytes on; it keeps the region alive. Raises ValueError when the
        region is too small."""
        length = prod(shape) * np.dtype(dtype).itemsize
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"an array of {length} bytes at {offset} is beyond a region of {self.size}")
        raw: NDArray[np.uint8] = np.asarray(_Keeping(self))
        found: NDArray[Any] = raw[offset : offset + length].view(dtype).reshape(shape)
        return found

    def populate(self) -> None:
        """Maps all written pages now, so that no later read waits for one. Other threads run meanwhile. Does nothing
        where the system cannot.

        Other pages stay unmapped: in shared memory even a read takes a page, and a table has room for many more rows
        than it holds.
        """
        for start, stop in self._written():
            self._advise(_POPULATE_READ, start, stop)

    def huge_pages(self) -> None:
        """Asks for huge pages: random reads of a large table then miss the translation buffer less often."""
        self._advise(_HUGE_PAGES, 0, self.size)

    def _written(self) -> Iterator[tuple[int, int]]:
        start = stop = 0
        while stop < self.size:
            try:
                start = os.lseek(self.fd, stop, os.SEEK_DATA)
                stop = os.lseek(self.fd, start, os.SEEK_HOLE)
            except OSError:  # nothing behind it
                return
            yield start, stop

    def _advise(self, advice: int, first: int, last: int) -> None:
        for start in range(first - first % mmap.PAGESIZE, last, _PIECE):
            length = min(_PIECE, last - start)
            if _madvise is None or _madvise(self.address + start, length, advice):
                return


class _Keeping:
    """A region as numpy's array interface: an array made of it holds this object, and so the region."""

    def __init__(self, region: Region) -> None:
        self._region = region
        data = (region.address, False)
        self.__array_interface__ = {"version": 3, "shape": (region.size,), "typestr": "|u1", "data": data}


class Pool:
    """The regions of one process, one for each array. :meth:`allocate` serves the makers of large arrays."""

    def __init__(self) -> None:
        self._regions: dict[int, weakref.ref[Region]] = {}  # by the address at which they begin
        self._lock = threading.Lock()

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Zeroed shared memory of this shape and dtype. Raises OSError when there is no more memory."""
        size = prod(shape) * np.dtype(dtype).itemsize
        region = Region(max(1, size))
        if size >= _HUGE:
            region.huge_pages()
        with self._lock:
            self._regions = {at: held for at, held in self._regions.items() if held() is not None}
            self._regions[region.address] = weakref.ref(region)
        return region.array(shape, dtype)

    def find(self, array: NDArray[Any]) -> tuple[Region, int] | None:
        """The region of a contiguous array, and the offset in it; None: it is not shared."""
        at = array.ctypes.data
        with self._lock:
            held = list(self._regions.items())
        for start, reference in held:
            region = reference()
            if region is not None and start <= at and at + array.nbytes <= start + region.size:
                return region, at - start
        return None


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("millrace", os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(prefix="millrace-")
        os.unlink(path)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _find_madvise() -> Any:
    try:
        found = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


_madvise = _find_madvise()
