# core
"""What a model would have scored under each attribution window and label policy, on one set of features.

A trial is one replay (:func:`millrace.commands.replay.replayrun.run_log`) with labels as a live loop would have them.
Features do not depend on window or policy, so they are made once and mapped into each run's memory.

*Lost*: a click later than attribution window and lateness together; it never reaches the learner. *Final labels*:
clicked within the longest window; they judge all trials. *Immediate*: every final label at its exposure, an oracle
that no live loop can have.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from millrace.basics.durations import span_name
from millrace.commands.replay.logfeatures import Labels
from millrace.commands.replay.logsamples import KnownSamples
from millrace.contracts.schema import Schema
from millrace.labels import policy_named

IMMEDIATE = "immediate"


@dataclass(frozen=True, slots=True)
class Setting:
    """When labels are learnt: a policy (or :data:`IMMEDIATE`) and an attribution window."""

    policy: str
    window_ms: int

    @property
    def name(self) -> str:
        return IMMEDIATE if self.policy == IMMEDIATE else f"{self.policy}, {span_name(self.window_ms)}"


def with_window(schema: Schema, window_ms: int) -> Schema:
    assert schema.log is not None
    return structs.replace(schema, log=structs.replace(schema.log, attribution_minutes=window_ms / 60_000))


def final_labels(labels: Labels, ts_ms: NDArray[np.int64], longest_ms: int) -> NDArray[np.bool_]:
    """Which exposures were clicked within the longest window, (n,)."""
    found: NDArray[np.bool_] = labels.clicked & (labels.acted_ms - ts_ms <= longest_ms)
    return found


def samples_of(
    setting: Setting, labels: Labels, ts_ms: NDArray[np.int64], longest_ms: int, lateness_ms: int, observation_ms: int
) -> tuple[KnownSamples, int]:
    """(samples in the order in which they become known, clicks that never come). ``labels`` may be of any window."""
    final = final_labels(labels, ts_ms, longest_ms)
    own = copy.copy(labels)
    own.wait_ms, own.corrects = setting.window_ms, np.zeros(len(ts_ms), np.bool_)  # times alone say what is late
    if setting.policy == IMMEDIATE:
        own.clicked = final
        return KnownSamples.of(ts_ms, own, None), 0
    own.clicked = final & (labels.acted_ms - ts_ms < setting.window_ms + lateness_ms)
    lost = int(final.sum()) - int(own.clicked.sum())
    return KnownSamples.of(ts_ms, own, policy_named(setting.policy), observation_ms), lost


def digest(samples: KnownSamples) -> str:
    """Equal for samples that come in the same order, so that each distinct order runs one time only."""
    found = hashlib.sha256()
    for column in (samples.row, samples.known_ms, samples.kind, samples.policy):
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


def open_features(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cat, num) that :func:`~millrace.commands.replay.stretches.write_features` wrote, mapped read-only."""
    return np.load(folder / "cat.npy", mmap_mode="r"), np.load(folder / "num.npy", mmap_mode="r")
