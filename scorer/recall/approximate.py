# core
"""An approximate index over a retrieval version's vectors, by usearch (HNSW: Malkov and Yashunin, arXiv 1603.09320).

::

    feeder    Builder ── add(slice), add(slice), ... ──► bytes (N,) uint8, in shared memory      threads: one
    worker    Approximate(bytes) ── find(query, k) ──► places                                    reads in place

A graph needs distances, but the largest products are not the nearest vectors: an index over plain products found half
of the right items. One more column gives all vectors the same length; then the nearest have the largest products
(Bachrach et al., RecSys 2014)::

    v -> [v / L, sqrt(1 - |v / L|^2)]      L: the longest vector      |q - v|^2 = |q|^2 + 1 - 2 <q, v> / L
    q -> [q, 0]

It serves more than a million items, where exact products are too slow for a page. usearch is optional (the extra
``ann``); only the setting imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from scorer.recall.nearest import Floats, Places

LINKS, BUILD_BREADTH = 16, 64
"""Edges of a node; candidates examined for each added vector."""
SEARCH_BREADTH = 2.0
"""Candidates that a search examines, for each item wanted."""


def check_usearch() -> None:
    """Raises SettingError when usearch is not installed."""
    _module()


def _module() -> Any:
    try:
        from usearch import index
    except ImportError as error:
        raise SettingError(
            f"recall_index = 'usearch' needs the package usearch, which cannot be imported ({error})",
            "pip install '.[ann]' in a checkout of Millrace, or set MILLRACE_RECALL_INDEX=exact",
        ) from None
    return index


def _empty(width: int) -> Any:
    return _module().Index(
        ndim=width + 1,
        metric="l2sq",
        dtype="f16",  # bfloat16 cannot tell the distances of neighbours apart
        connectivity=LINKS,
        expansion_add=BUILD_BREADTH,
        enable_key_lookups=False,
    )


class Builder:
    """Builds an index of vectors with W = ``width`` columns, none longer than ``longest``, slice by slice."""

    def __init__(self, width: int, longest: float) -> None:
        self._index, self._scale = _empty(width), np.float32(1 / longest if longest > 0 else 1)

    def add(self, first: int, vectors: Floats) -> None:
        """Adds the vectors (m, W) of the places ``first``, ``first + 1``, ..."""
        places = np.arange(first, first + len(vectors), dtype=np.uint64)
        scaled = vectors * self._scale
        rest = np.sqrt(np.maximum(np.float32(0), 1 - np.einsum("nc,nc->n", scaled, scaled)))
        self._index.add(places, np.column_stack([scaled, rest]), threads=1)

    def saved(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._index.save(), np.uint8)


class Approximate:
    """An index of :class:`Builder`, read in place. Raises SettingError (no usearch) or RuntimeError (not an index)."""

    def __init__(self, width: int, saved: NDArray[np.uint8]) -> None:
        self._index = _empty(width)
        self._saved = saved  # it reads from there
        self._index.view(memoryview(saved))  # type: ignore[arg-type]

    def find(self, query: Floats, k: int) -> Places:
        """Places of k vectors with large products, most of them the largest. (<= k,)"""
        if k < 1:
            return np.empty(0, np.int64)
        self._index.expansion_search = round(SEARCH_BREADTH * k)
        found = self._index.search(np.append(query, np.float32(0)), k, threads=1)
        places: Places = np.asarray(found.keys).astype(np.int64)
        return places
