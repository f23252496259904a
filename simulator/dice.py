# core
"""Counter-based randomness: a draw depends on its seed and keys alone, not on when or in which order draws are made.

A draw is a hash of the seed, a purpose and integer keys (user, day, page, position), as in Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3" (SC 2011). So a restarted simulator has the same shoppers in the same mood.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import combine, salt

F64 = NDArray[np.float64]
_TWO_PI = 2.0 * np.pi
_ONE = np.uint64(1)


def uniform(seed: int, purpose: str, *keys: Any) -> F64:
    """Uniform on [0, 1) for each combination of ``keys`` (non-negative integers, broadcast). 53 bits."""
    # combine() reads 0 as "missing"; keys count from 0, so they are moved up by one.
    columns = [np.asarray(k).astype(np.uint64) + _ONE for k in keys]
    hashed = combine(salt("dice", str(seed), purpose), *columns)
    out: F64 = np.asarray(hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out


def normal(seed: int, purpose: str, *keys: Any) -> F64:
    """Standard normal for each combination of ``keys``, by Box and Muller (1958)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, purpose + ".radius", *keys)))
    out: F64 = radius * np.cos(_TWO_PI * uniform(seed, purpose + ".angle", *keys))
    return out


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A generator for whole arrays (a day's visits, a cohort of items), seeded by seed, purpose and keys."""
    return np.random.Generator(np.random.PCG64([seed, int(salt("stream", purpose)), *keys]))


def even_uniform(rng: np.random.Generator, n: int) -> F64:
    """The ``n`` mid-points of (0, 1) in random order (n,): the seed changes only the order, never the set of values."""
    out: F64 = (rng.permutation(n) + 0.5) / n
    return out


def even_normal(rng: np.random.Generator, n: int) -> F64:
    """Standard normal quantiles of :func:`even_uniform`."""
    out: F64 = normal_quantiles(n)[rng.permutation(n)]
    return out


@lru_cache(maxsize=8)
def normal_quantiles(n: int) -> F64:
    """Standard normal quantiles of the ``n`` mid-points of (0, 1), ascending. Read-only."""
    inverse = NormalDist().inv_cdf
    out = np.fromiter((inverse((i + 0.5) / n) for i in range(n)), np.float64, n)
    out.flags.writeable = False
    return out
