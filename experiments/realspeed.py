# core
"""A model that lives through traffic at real speed: what it would have scored each exposure with, live.

::

    event time ─────────────────────────────────────────────────────────►
    exposures      e1 e2     e3            e4  e5 e6        scored by the model as it is at their time
    samples          s1 s2 s3 ┆ s4 s5        ┆ s6 ...       in the order in which the label policy makes them known
    learnt                    └ after e3     └ after e4     a micro-batch: at most BATCH_ROWS rows and BATCH_MS

Features do not depend on the model, so they are made once (:func:`prepare`), with the code that serves, and mapped into
the memory of whoever runs a model. Bias fields (the position) read as missing when an exposure is scored, as when a
page is ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.replay.known import KnownSamples, ReplayModel
from commands.replay.logfeatures import Labels, LogRows
from commands.replay.stretches import Stretches, write_features
from learner.training.trainer import BATCH_MS, BATCH_ROWS
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.labels import LabelPolicy
from millrace.logs import LogTable

_ARRAYS = ("cat", "num", "ts_ms", "label", "position", "user")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Exposures in time order: first a history, then the traffic. n rows in all."""

    schema: Schema
    history: int  # rows of it, may be 0
    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N)
    ts_ms: NDArray[np.int64]  # (n,)
    label: NDArray[np.int8]  # (n,)
    position: NDArray[np.int32]  # (n,)
    user: NDArray[np.uint64]  # (n,)

    def batch(self, row: Any, kind: NDArray[np.uint8], policy: NDArray[np.uint8]) -> SampleBatch:
        """Samples of some rows (a slice or indices) with their kinds and codes of policies, (B,)."""
        cat, num = np.array(self.cat[row]), np.array(self.num[row])
        position, user = np.array(self.position[row]), np.array(self.user[row])
        return SampleBatch.of_rows(
            kind, np.array(self.ts_ms[row]), cat, num, position=position, user=user, policy=policy
        )


def prepare(
    log: LogTable,
    history: int,
    schema: Schema,
    folder: Path,
    policies: Mapping[str, LabelPolicy | None],
    observation_ms: int,
) -> None:
    """Writes to ``folder`` what :func:`open_stretch` and :func:`open_samples` read: features, labels, and the samples
    that each policy makes of the traffic.

    Args:
        history: how many of the log's first rows are history.
        policies: by the names under which their samples are kept; None: each label at its exposure.
    """
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_features(Stretches(log, schema), folder)
    np.save(folder / "ts_ms.npy", rows.ts_ms)
    np.save(folder / "label.npy", rows.label)
    np.save(folder / "position.npy", rows.slots(np.arange(rows.n)))
    np.save(folder / "user.npy", rows.hashes(rows.builder.user_column, slice(None)))
    for name, policy in policies.items():
        made = KnownSamples.of(rows.ts_ms, labels, policy, observation_ms)
        mine = made.row >= history
        arrays = {k: getattr(made, k)[mine] for k in ("row", "known_ms", "kind", "policy")}
        np.savez(folder / f"samples-{name}.npz", **arrays)


def open_stretch(folder: Path, schema: Schema, history: int) -> Stretch:
    """What was prepared, mapped read-only."""
    arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Stretch(schema, history, **arrays)


def open_samples(folder: Path, name: str) -> KnownSamples:
    """The samples of the traffic under a policy."""
    with np.load(folder / f"samples-{name}.npz") as file:
        return KnownSamples(**file)


def learn_history(model: ReplayModel, stretch: Stretch) -> None:
    """The history in full batches, in the order of exposure, with settled labels: no policy has a part in it."""
    for start in range(0, stretch.history, BATCH_ROWS):
        part = slice(start, min(start + BATCH_ROWS, stretch.history))
        kind = np.where(stretch.label[part] > 0, POSITIVE, NEGATIVE).astype(np.uint8)
        model.learn(stretch.batch(part, kind, np.zeros(len(kind), np.uint8)))


def live(model: ReplayModel, stretch: Stretch, samples: KnownSamples) -> NDArray[np.float32]:
    """Scores of the traffic, (n - history,), each by the model as it was at the exposure's time."""
    first = stretch.history
    cat = np.array(stretch.cat[first:])
    cat[:, stretch.schema.layout.bias_columns] = 0
    num, ts_ms = stretch.num[first:], np.array(stretch.ts_ms[first:])
    p = np.empty(len(ts_ms), np.float32)
    scored = start = 0

    def score(until: int) -> None:
        nonlocal scored
        while scored < until:
            part = slice(scored, min(scored + BATCH_ROWS, until))
            p[part] = model.score(cat[part], np.array(num[part]))
            scored = part.stop

    known_ms = samples.known_ms
    while start < len(known_ms):
        stop = int(np.searchsorted(known_ms, known_ms[start] + BATCH_MS, side="right"))
        stop = min(stop, start + BATCH_ROWS)
        # What was shown up to the time at which the batch was complete is scored without it.
        score(int(np.searchsorted(ts_ms, known_ms[stop - 1], side="right")))
        part = slice(start, stop)
        model.learn(stretch.batch(samples.row[part], samples.kind[part], samples.policy[part]))
        start = stop
    score(len(p))
    return p
