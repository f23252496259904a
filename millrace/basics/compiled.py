# core
"""The one decorator of all compiled loops, and the generator of random numbers that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher

from millrace.basics.hashing import C1, C2, C3

P = ParamSpec("P")
R = TypeVar("R")

GOLDEN = C1
"""2^64 over the golden ratio: the factor of Fibonacci hashing, and the step of SplitMix64 (Steele, Lea, Flood 2014)."""


@overload
def compiled(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def compiled(*, nogil: bool = True, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def compiled(function: Callable[..., Any] | None = None, *, nogil: bool = True, **options: Any) -> Any:
    """Compiles a function on first use and keeps the code on disk; in memory only, where no folder is writable.

    Use it as ``@compiled`` or with numba's options, ``@compiled(error_model="numpy")``. The GIL is released unless
    ``nogil=False`` is given. Functions that are only inlined into others take ``@njit(inline="always")`` instead.
    To the type checker it is the function that was written.

    numba checks only the function's own file before it takes code from disk. The key here also covers the imports of
    its module: constants, and the files of compiled functions.
    """
    if function is None:
        return partial(compiled, nogil=nogil, **options)
    try:
        made = njit(nogil=nogil, cache=True, **options)(function)
    except RuntimeError:  # numba found nowhere to cache
        return njit(nogil=nogil, **options)(function)
    file, imported = made._cache._cache_file, sha256()
    for part in _imported(function.__globals__, {function.__module__}):
        imported.update(part)
    file._source_stamp = (file._source_stamp, imported.hexdigest())
    file._load_index = partial(_index, file._load_index)
    return made


def _index(load: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """What is on disk; nothing, where it is of an earlier source whose classes are gone."""
    try:
        return load()
    except (AttributeError, ImportError):
        return {}


def _imported(module: dict[str, Any], seen: set[str]) -> Iterator[bytes]:
    """The constants of a module, and the files of modules that it has compiled functions from, at any depth."""
    for name, value in sorted(module.items()):
        if isinstance(value, Dispatcher):
            if value.__module__ not in seen:
                seen.add(value.__module__)
                yield _file(value.py_func.__code__.co_filename)
                yield from _imported(value.py_func.__globals__, seen)
        elif _is_constant(value) or (isinstance(value, tuple) and all(map(_is_constant, value))):
            yield f"{name} {value!r}".encode()


def _is_constant(value: object) -> bool:
    return isinstance(value, int | float | np.generic)


@cache
def _file(path: str) -> bytes:
    return Path(path).read_bytes()


@njit(inline="always")
def split_mix(state: Any) -> Any:
    """SplitMix64's output for a state, uint64. The next state is ``state + GOLDEN``."""
    x = (state ^ (state >> np.uint64(30))) * C2
    x = (x ^ (x >> np.uint64(27))) * C3
    return x ^ (x >> np.uint64(31))
