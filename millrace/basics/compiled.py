# core
"""The one decorator of all compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any] | None = None, *, nogil: bool = True, **options: Any) -> Any:
    """Compiles a function on first use and keeps the code on disk. Where no folder can be written to, as in a read-only
    installation, every process compiles for itself.

    Used as ``@compiled`` or with numba's options, ``@compiled(error_model="numpy")``. The GIL is released unless
    ``nogil=False`` is given. Functions that are only inlined into others have no code of their own to keep. They take
    ``@njit(inline="always")``.
    """
    if function is None:
        return partial(compiled, nogil=nogil, **options)
    try:
        return njit(nogil=nogil, cache=True, **options)(function)
    except RuntimeError:  # numba found nowhere to cache
        return njit(nogil=nogil, **options)(function)
