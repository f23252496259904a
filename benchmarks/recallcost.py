# core
"""What the retrieval head costs the learner: two models learn the same batches in turns, one with the head.

::

    turn     1              2               3          ...
    without  batches 1-48   batches 49-96   ...              each turn ends with changes(), as a publication does
    with     batches 1-48   batches 49-96   ...              the head's tables among them

``cost = 1 - seconds without / seconds with``: the share of its rows a second that the learner gives for the head, the
median over turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learner.ranker.model import OnlineModel
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema

HEAD = {"retrieval_width": 32}


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows a second over all turns, and the share that the head costs: in the middle turn, and in each (t,)."""

    with_head: float
    without: float
    cost: float
    turns: list[float]


def learner_cost(
    schema: Schema,
    batches: Sequence[SampleBatch],
    clock: Callable[[], float],
    turn: int = 48,
    warm: int = 2,
    seed: int = 0,
) -> Cost:
    """Learns ``batches`` with and without the head, ``turn`` of them at a time; which goes first alternates.

    Args:
        clock: seconds, of this process's CPU or by the wall.
        warm: turns at the beginning that do not count: memory grows, code is compiled.
    """
    models = {True: OnlineModel(schema, HEAD, seed), False: OnlineModel(schema, {}, seed)}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    rows = []
    for t, start in enumerate(range(0, len(batches), turn)):
        part = batches[start : start + turn]
        rows.append(sum(map(len, part)))
        for head in (t % 2 == 0, t % 2 == 1):
            began = clock()
            for batch in part:
                models[head].learn(batch)
            models[head].changes()
            seconds[head].append(clock() - began)
    counted = slice(min(warm, len(rows) - 1), None)
    total = {head: float(np.sum(s[counted])) for head, s in seconds.items()}
    n = sum(rows[counted])
    turns = [1 - a / b for a, b in zip(seconds[False][counted], seconds[True][counted], strict=True)]
    return Cost(n / total[True], n / total[False], float(np.median(turns)), turns)
