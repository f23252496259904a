"""Logs of pages, made up by their number, and who counts those that are lost."""

from __future__ import annotations

from collections import Counter

import numpy as np

from millrace.contracts.events import PageLog
from millrace.contracts.schema import shop_schema
from scorer.pagelog.spool import Spool


def page(number: int, n: int, k: int = 3, f: int = 2, width: int = 5) -> PageLog:
    """A page whose every number names it."""
    rng = np.random.default_rng(number)
    return PageLog(
        request_id=f"r{number}",
        ts_ms=number + 1,
        user_id=number if number % 2 else f"u{number}",
        arm="model",
        model_version=number + 1,
        schema_id="s",
        items=list(range(number, number + n)),
        scores=rng.random(n, np.float32).tobytes(),
        keys=rng.integers(0, 1 << 63, (n, k), np.uint64).tobytes(),
        cat=rng.integers(-(1 << 62), 1 << 62, (n, f), np.int64).tobytes(),
        num=rng.random((n, width), np.float32).tobytes(),
        served_ms=number,
        offset=number % 7,
        sources=bytes(range(n)) if number % 3 else b"",
        user_missing=number % 8,
    )


class Losses:
    """What was lost, by reason."""

    def __init__(self) -> None:
        self.pages: Counter[str] = Counter()
        self.exposures: Counter[str] = Counter()

    def __call__(self, reason: str, pages: int, exposures: int) -> None:
        self.pages[reason] += pages
        self.exposures[reason] += exposures


def put(spool: Spool, number: int, size: int = 50) -> str:
    return spool.append(b"k%d" % number, b"%d|" % number * size, number)


SCHEMA = shop_schema()
N = 20


def made(number: int, n: int = N) -> PageLog:
    layout = SCHEMA.layout
    return page(number, n, layout.K, layout.F, layout.N)
