# core
"""Ways of keeping a model up to date through the days after its training, all from the same start.

::

    training days ──► start ─┬─ frozen            scores every day
                             ├─ more epochs       learns the training days twice more, then scores every day
                             ├─ daily rounds      scores a day, then learns it: one incremental round a day
                             ├─ replayed daily    scores a day, then starts empty and learns all to its end, in order
                             ├─ retrained daily   the same, but shuffled: the usual batch job
                             └─ micro-batches     scores some rows, then learns them

"Frozen", "daily rounds" and "micro-batches" follow one learner (:mod:`millrace.commands.offline.synchronising`), as in
``millrace log freshness``: with the same batches the two commands give the same figures.

"Replayed daily" learns what "daily rounds" has learnt, in the same order with other batches, and shows that a round
loses nothing against a new start. "Retrained daily" shows what a batch job may gain by mixing its days. Nothing is
learnt after the last test day, since nothing is scored afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import Learning
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.commands.offline import epochs
from millrace.commands.offline.dataset import Dataset
from millrace.commands.offline.epochs import Scores, learn, learn_shuffled, score
from millrace.commands.offline.intervals import interval, rounded
from millrace.commands.offline.synchronising import BATCH, DAILY, NEVER, run_sync_plan, sync_plan

WAYS = ("frozen", "more epochs", "daily rounds", "replayed daily", "retrained daily", "micro-batches")
FOLLOWING = {"frozen": NEVER, "daily rounds": DAILY, "micro-batches": BATCH}
"""The ways that follow one learner, and how often they synchronise."""
EPOCHS = 3
"""How often "more epochs" learns the training days in all."""

Result = Mapping[str, Any]
"""What :func:`figures` gave for one model, inputs and seed: way -> figures."""


def keep_up(
    model: Learning,
    data: Dataset,
    num: NDArray[np.float32],
    train: slice,
    days: Sequence[slice],
    rng: np.random.Generator,
    cut: Sequence[str] = (),
) -> dict[str, list[Scores]]:
    """Each way's scores of each of ``days`` (rows), by an untrained ``model`` that learns ``train`` (rows) first.

    Every way starts from the same trained model (:meth:`~learner.ranker.model.OnlineModel.resume` is exact to the
    bit). ``rng`` draws the orders of "retrained daily". ``cut``: the synchronisations
    (:data:`millrace.commands.offline.synchronising.SYNCS`) at which the batches of the test days are cut, besides where
    a day begins.
    """
    untrained = model.snapshot()
    # The end of the training's last whole batch: learning on from here in one pass cuts no batch short.
    whole = _whole(train.start, train.stop)
    learn(model, data, slice(train.start, whole), num)
    uncut = model.snapshot()
    learn(model, data, slice(whole, train.stop), num)
    start = model.snapshot()

    plan = sync_plan(days, data.ts_ms, list(FOLLOWING.values()), cut, data.schema.utc_offset_ms)
    followed = run_sync_plan(model, data, num, plan).scores
    at = [day.start - plan.rows.start for day in days[1:]]
    scored: dict[str, list[Scores]] = {way: np.split(followed[sync], at) for way, sync in FOLLOWING.items()}
    first = scored["frozen"][0]

    model.resume(*start)
    for _ in range(EPOCHS - 1):
        learn(model, data, train, num)
    scored["more epochs"] = [score(model, data, day, num) for day in days]

    # Learning from the beginning to the end of a day takes the same steps as learning to the end of an earlier day, up
    # to the earlier day's last, incomplete batch. So one pass with a fork at each day's end replays all of them.
    scored["replayed daily"] = [first]
    for past, day in pairwise(days):
        model.resume(*uncut)
        end = _whole(train.start, past.stop)
        learn(model, data, slice(whole, end), num)
        uncut, whole = model.snapshot(), end
        learn(model, data, slice(end, past.stop), num)
        scored["replayed daily"].append(score(model, data, day, num))

    model.resume(*untrained)
    again = retrained(model, data, num, train, days, rng)
    scored["retrained daily"] = [first, *(score(model, data, day, num) for day in again)]
    return scored


def retrained(
    model: Learning,
    data: Dataset,
    num: NDArray[np.float32],
    train: slice,
    days: Sequence[slice],
    rng: np.random.Generator,
) -> Iterator[slice]:
    """Yields each of ``days`` but the first, when ``model`` is ready to score it: it starts untrained before each day
    and learns all rows before it, shuffled. The cost grows with the square of the days."""
    untrained = model.snapshot()
    for past, day in pairwise(days):
        model.resume(*untrained)
        learn_shuffled(model, data, slice(train.start, past.stop), num, rng)
        yield day


def nightly(
    model: Learning, data: Dataset, num: NDArray[np.float32], days: Sequence[slice], rng: np.random.Generator
) -> Iterator[slice]:
    """Yields each of ``days`` (rows) but the first, when a nightly job has made ``model`` ready to score it: it has
    learnt each day before it at that day's end, shuffled.

    In the order of time the learner would chase the items of the hour: their ids would say what no model can know of
    the items of the next day, and it would lean on them.
    """
    for past, day in pairwise(days):
        learn_shuffled(model, data, past, num, rng)
        yield day


def _whole(start: int, stop: int) -> int:
    return start + (stop - start) // epochs.BATCH_ROWS * epochs.BATCH_ROWS


def figures(scored: Mapping[str, Sequence[Scores]], labels: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """AUC and log loss over all days, and the AUC of each day, of every way. ``labels``: those of each day's rows."""
    y = np.concatenate(labels)
    return {
        way: {
            "auc": auc(np.concatenate(scored[way]), y),
            "log_loss": log_loss(np.concatenate(scored[way]), y),
            "by_day": [auc(p, own) for p, own in zip(scored[way], labels, strict=True)],
        }
        for way in WAYS
    }


def ways_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row a way, over the seeds of one model and kind of input. Differences are paired by seed.

    ``last_day_over_start`` is the AUC of the last day less that of the start on the first, in AUC and in per cent of
    the start's: the gain of rounds. Days also differ by themselves; the row of "frozen" shows by how much.
    """
    rows = []
    for way in WAYS:
        own = [r[way] for r in results]
        frozen = [r["frozen"] for r in results]
        pairs = list(zip(own, frozen, strict=True))
        last_and_start = [(a["by_day"][-1], b["by_day"][0]) for a, b in pairs]
        row: dict[str, Any] = {"way": way}
        row |= interval("auc", [r["auc"] for r in own])
        row |= interval("log_loss", [r["log_loss"] for r in own])
        row |= interval("auc_last_day", [r["by_day"][-1] for r in own])
        row |= interval("auc_over_frozen", [a["auc"] - b["auc"] for a, b in pairs])
        row |= interval("last_day_over_frozen", [a["by_day"][-1] - b["by_day"][-1] for a, b in pairs])
        row |= interval("last_day_over_start", [a - b for a, b in last_and_start])
        row |= interval("last_day_over_start_percent", [100 * (a / b - 1) for a, b in last_and_start])
        rows.append(row)
    return rows


def days_of(results: Sequence[Result], days: Sequence[str], oracle: Sequence[float | None]) -> list[dict[str, Any]]:
    """A row for each way and test day, over the seeds of one model and kind of input.

    ``rounds`` counts the whole days after the training that "daily rounds" has learnt by then; ``oracle`` is the AUC
    of the true probabilities on each day, where these are known.
    """
    rows = []
    for way in WAYS:
        for k, (day, best) in enumerate(zip(days, oracle, strict=True)):
            row: dict[str, Any] = {"way": way, "day": day, "rounds": k}
            row |= interval("auc", [r[way]["by_day"][k] for r in results])
            row |= interval("auc_over_frozen", [r[way]["by_day"][k] - r["frozen"]["by_day"][k] for r in results])
            row["oracle_auc"] = None if best is None else rounded(best)
            rows.append(row)
    return rows
