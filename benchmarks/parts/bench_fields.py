# core
"""A data set of 30 categorical fields for learners: ids drawn by popularity, labels with a learnable taste."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import column_hash, mix
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema

FIELDS, ROWS, DIM, BATCH = 30, 100_000, 16, 4096


def schema() -> Schema:
    fields = "".join(f'[[fields]]\nname = "f{i}"\nof = "context"\n' for i in range(FIELDS))
    return parse_schema(f'name = "bench"\n{fields}')


class Data:
    """Codes (n, 30) for the peers, hashed ids for Millrace, labels with a learnable non-linear taste."""

    def __init__(self, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = np.geomspace(4, 50_000, FIELDS).astype(int)
        u = rng.random((rows, FIELDS))
        self.codes = np.minimum((self.sizes**u - 1).astype(np.int64), self.sizes - 1)  # log-uniform popularity
        taste = np.random.default_rng(7)
        vectors = [taste.normal(size=(n, 4)) for n in self.sizes]
        bias = [taste.normal(size=n) * 0.25 for n in self.sizes]
        pairs = [(int(a), int(b)) for a, b in taste.integers(0, FIELDS, (8, 2))]
        logit = sum(b[self.codes[:, i]] for i, b in enumerate(bias)) - 1.5
        for a, b in pairs:
            logit = logit + 0.4 * (vectors[a][self.codes[:, a]] * vectors[b][self.codes[:, b]]).sum(1)
        self.y = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        layout = schema().layout
        self.cat = np.column_stack(
            [
                mix(layout.field_salt(f), column_hash(self.codes[:, i] + 1)).view(np.int64)
                for i, f in enumerate(layout.cat_fields)
            ]
        )

    def batches(self) -> Iterator[slice]:
        for start in range(0, len(self.y), BATCH):
            yield slice(start, start + BATCH)


def as_samples(cat: NDArray[np.int64], y: NDArray[np.float32]) -> SampleBatch:
    kind = np.where(y > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    return SampleBatch.of_rows(kind, np.full(len(y), 1_700_000_000_000), cat, np.zeros((len(y), 0), np.float32))
