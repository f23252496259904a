# core
"""When a log's labels become known under a label policy: the samples of a log, in the order in which they come.

The stream's join does this live, message by message (stream/join.py). A log is in order and complete, so here it is a
few array operations. In a log without action times every label is known at its exposure, whatever the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import CLICK, EXPOSURE
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.labels import LabelPolicy, Promise, Waits, policy_named
from millrace.offline.logfeatures import Labels, LogRows

_EXPOSED = 1 << EXPOSURE  # the actions of a sample, as bits
_CLICKED = _EXPOSED | 1 << CLICK


class Model(Protocol):
    """Whoever scores a log's exposures and learns its samples: an :class:`~learner.model.OnlineModel`, or a stand-in
    for one."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def learn(self, batch: SampleBatch) -> object: ...


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """The settings that say when labels are learnt. The attribution window is the log's own, in its schema."""

    policy: str | None  # None: every label at its exposure
    observation_ms: int

    @classmethod
    def of(cls, settings: Settings) -> LabelSettings:
        return cls(settings.label_policy, round(settings.observation_seconds * 1000))

    @property
    def named(self) -> LabelPolicy | None:
        """The policy.

        Raises:
            SettingError: there is none of that name.
        """
        return None if self.policy is None else policy_named(self.policy)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples, in the order in which they become known. S samples: one an exposure, two if its click was late."""

    row: NDArray[np.intp]  # (S,) row of the log
    known_ms: NDArray[np.int64]  # (S,) ascending
    kind: NDArray[np.uint8]  # (S,)
    policy: NDArray[np.uint8]  # (S,) code

    @classmethod
    def of(
        cls, ts_ms: NDArray[np.int64], labels: Labels, policy: LabelPolicy | None, observation_ms: int = 10_000
    ) -> Samples:
        """The samples that a policy makes of exposures.

        Args:
            ts_ms: times of the exposures, ascending, (n,).
            labels: whether and when they were clicked; whose ``wait_ms`` is the attribution window.
            policy: None: every label is known at its exposure. No policy can do that; others are measured by it.
            observation_ms: the setting that policies read.
        """
        n = len(ts_ms)
        zeros = np.zeros(n, np.int64)
        hold, observe, code = zeros, zeros, zeros
        delay = np.where(labels.clicked, labels.acted_ms - ts_ms, 0)
        if policy is None or not labels.wait_ms:
            delay = zeros
        else:
            promised = _promises(ts_ms, policy, Waits(labels.wait_ms, observation_ms, 0))
            hold, observe, code = promised[:, 1], promised[:, 2], promised[:, 0]
        late = np.flatnonzero(labels.clicked & (delay > observe))
        early = labels.clicked & (delay <= observe)
        known_ms = ts_ms + np.where(early, np.maximum(delay, hold), observe)
        row = np.concatenate([np.arange(n), late])
        known_ms = np.concatenate([known_ms, ts_ms[late] + delay[late]])
        kind = np.concatenate([np.where(early, POSITIVE, NEGATIVE), np.full(len(late), CORRECTION)]).astype(np.uint8)
        order = np.argsort(known_ms, kind="stable")
        row = row[order]
        return cls(row, known_ms[order], kind[order], code[row].astype(np.uint8))

    def oldest(self) -> NDArray[np.intp]:
        """The smallest row among the samples from each one on; after the last, more than any row. (S + 1,)"""
        beyond = np.append(self.row, np.iinfo(np.intp).max)
        return np.minimum.accumulate(beyond[::-1])[::-1]

    def batch(self, part: slice, rows: LogRows, cat: NDArray[np.int64], num: NDArray[np.float32]) -> SampleBatch:
        """The samples ``part``, with features cat (B, F) and num (B, N) of their rows."""
        row, kind = self.row[part], self.kind[part]
        pages, page = np.unique(rows.page[row], return_inverse=True)
        return SampleBatch.of_rows(
            kind,
            rows.ts_ms[row],
            cat,
            num,
            rows.requests(pages),
            page=page.astype(np.int32),
            position=rows.slots(row),
            user=rows.hashes(rows.builder.user_column, row),
            item=rows.hashes(rows.builder.item_column, row),
            actions=np.where(kind != NEGATIVE, _CLICKED, _EXPOSED).astype(np.uint8),
            policy=self.policy[part],
        )


def _promises(ts_ms: NDArray[np.int64], policy: LabelPolicy, waits: Waits) -> NDArray[np.int64]:
    """The promise of each exposure, as columns. Traffic begins anew as it does in the join. (n, 4)"""
    times, back = np.unique(ts_ms, return_inverse=True)
    begins = np.diff(times, prepend=np.iinfo(np.int64).min // 2) > waits.attribution_ms
    flowing = times - np.maximum.accumulate(np.where(begins, times, np.iinfo(np.int64).min))
    made = [policy.promise(waits, age) for age in flowing.tolist()]
    return np.array(made, np.int64).reshape(-1, len(Promise._fields))[back]
