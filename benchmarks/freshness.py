# shell
"""What the models of ``millrace log freshness`` cost together, over what one of them costs alone.

A day of the simulated shop after a day of training, features made before. One model alone learns every micro-batch and
scores with every version. The six learn once and score six times. The two are run in turns in one process, on a thin
log, whose minutes have a batch of a few exposures each, and on the same exposures with whole batches, as a log of heavy
traffic has them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.tools.bench_figures import Figure, Say, figure
from commands.offline.dataset import Dataset, plain_schema, prepare
from commands.offline.epochs import learn
from commands.offline.follow import BATCH, SYNCS, follow, plan_of
from learner.role.model_factory import model_of
from millrace.contracts.schema import shop_schema
from simulator.daylog import write_days

WAYS = {"batches cut every minute": SYNCS, "whole batches": ("daily",)}


class Size(NamedTuple):
    """How much is measured."""

    users: int = 150
    turns: int = 3


SHORT = Size(20, 1)


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures; what the log needs is written below ``out``."""
    users, turns = size or Size()
    schema = shop_schema()
    write_days(out / "log", days=2, seed=7, users=users)
    data = prepare(out / "log", plain_schema(schema), out / "data")
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for way, cut in WAYS.items():
        ratios, six = [], []
        for turn in range(turns + 1):
            one, all_six = (_seconds(data, syncs, cut) for syncs in ((BATCH,), SYNCS))
            if turn:  # the first warms up
                ratios.append(all_six / one)
                six.append(all_six)
                say(f"{way}: one model {one:.2f} s, six {all_six:.2f} s, ratio {all_six / one:.2f}")
        rows = data.rows((1,))
        rate = (rows.stop - rows.start) / median(six)
        figures.append(figure(f"six models, {way}", rate, "exposures/s", "the time of one model", median(ratios)))
    return figures


def _seconds(data: Dataset, syncs: Sequence[str], cut: Sequence[str]) -> float:
    """Of learning and scoring the last day. The training before it, the same for one model and for six, is left out."""
    model = model_of(data.schema, {}, 0)
    learn(model, data, data.rows((0,)), data.num)
    plan = plan_of([data.rows((1,))], data.ts_ms, syncs, cut, data.schema.utc_offset_ms)
    began = time.perf_counter()
    follow(model, data, data.num, plan)
    return time.perf_counter() - began
