# core
"""The one decorator of all compiled loops, and the hash function that their tables share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from hashlib import sha256
from types import CodeType
from typing import Any

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: the factor of Fibonacci hashing, and the step of SplitMix64 (Steele, Lea, Flood 2014)."""


def compiled(function: Callable[..., Any] | None = None, *, nogil: bool = True, **options: Any) -> Any:
    """Compiles a function on first use and keeps the code on disk. Where no folder can be written to, as in a read-only
    installation, every process compiles for itself.

    Used as ``@compiled`` or with numba's options, ``@compiled(error_model="numpy")``. The GIL is released unless
    ``nogil=False`` is given. Functions that are only inlined into others have no code of their own to keep. They take
    ``@njit(inline="always")``.

    numba takes its code from disk as long as the function's own file is unchanged. What a function takes from other
    modules, functions and constants, is part of the key here, so they may live anywhere.
    """
    if function is None:
        return partial(compiled, nogil=nogil, **options)
    try:
        made = njit(nogil=nogil, cache=True, **options)(function)
    except RuntimeError:  # numba found nowhere to cache
        return njit(nogil=nogil, **options)(function)
    file, used = made._cache._cache_file, "\n".join(_used(function, {function}))
    file._source_stamp = (file._source_stamp, sha256(used.encode()).hexdigest())
    return made


def _used(function: Callable[..., Any], seen: set[Any]) -> Iterator[str]:
    """The constants and the sources of the functions that a function uses, at any depth."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher) and value.py_func not in seen:
            seen.add(value.py_func)
            yield _source(value.py_func)
            yield from _used(value.py_func, seen)
        elif isinstance(value, int | float | np.generic | tuple):
            yield f"{name} {value!r}"


_source = lru_cache(maxsize=None)(inspect.getsource)


def _names(code: CodeType) -> set[str]:
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inner)


@njit(inline="always")
def home_slot(key: Any, shift: Any) -> Any:
    """The slot of a table of 2^(64 - shift) slots at which the search for a key begins: multiplicative (Fibonacci)
    hashing. Keys are hashes already; small ones are spread too."""
    return np.int64((np.uint64(key) * GOLDEN) >> np.uint64(shift))


@njit(inline="always")
def split_mix(state: Any) -> Any:
    """The number that SplitMix64 makes of a state, uint64. The next state is ``state + GOLDEN``."""
    x = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
