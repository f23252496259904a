# shell
"""What the gate costs a learner: a part of ``millrace bench safety``.

*gate_cost_rows*
    Share of the learner's rows a second that the gate takes. Two learners, one of them with a gate, take turns on the
    same messages at full speed, with deltas and micro-batches as often as a live one has them at that speed. CPU time
    of one thread; the median over turns of ``1 - rate with / rate without``, and what snapshots cost beside it: judging
    rows of all tables and held-out pages, over the seconds between two snapshots.
*gate_click_to_served_ms*
    By how much the gate lengthens the way from a message of samples, of one page, to the body of the delta that has
    them: the median over messages of the difference, by the wall clock. No other stage has anything to do with a gate.
*heldout_cost_auc*
    AUC on all shown rows of the second day, of a model that learns all of them, less that of one that learns none of
    the held-out pages, whose share follows the (little) traffic up to five times what it is set to; the mean over
    worlds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.runner import BenchError, Figure, Say, figure
from experiments.safetyrun import Life
from experiments.safetyworld import Moment, Shop, traffic, write_shop
from learner.gate.heldout import MOST_ROWS, Heldout
from learner.gate.promotion import Published
from learner.gate.soundness import unsound_part
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.merit import auc
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import read_log

WARM_ROWS, TURN_ROWS, MESSAGE_ROWS, TURNS = 49_152, 6144, 128, 9
"""A turn is as many rows as come between two deltas of a learner at full speed."""
PAGE_ROWS, PAGES = 8, 300
WORLDS = 2
_NO_GATE = "no gate"


def cost(folder: Path, say: Say = print) -> list[Figure]:
    """The figures; some minutes.

    Args:
        folder: for what is written on the way.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="cost-") as name, threads(1):
        place, schema = Path(name), shop_schema()
        moments = list(_moments(schema, Shop(0, 1), place / "one"))
        rows = SampleBatch.concat([moment.batch for moment in moments if moment.batch is not None])
        say(f"what the gate costs: {len(rows):,} rows of one day")
        found = [*speed(schema, rows, place, say)]
        say(f"what held-out pages cost: {WORLDS} worlds of two days")
        costs = []
        for seed in range(WORLDS):
            world = _moments(schema, Shop(seed, 2), place / f"world-{seed}")
            costs.append(heldout_cost(schema, world, Settings().heldout_share))
            say(f"  world {seed}: {costs[-1]:.5f} AUC")
        return [*found, figure("heldout_cost_auc", statistics.mean(costs), "AUC")]


def _moments(schema: Schema, shop: Shop, folder: Path) -> Iterable[Moment]:
    return traffic(read_log(write_shop(shop, folder), schema), schema)


class _Learner:
    """A learner as the role has it, but for Kafka. Its share of held-out pages stays what it is set to: a row that is
    not learnt would make the gate look cheap."""

    def __init__(self, schema: Schema, folder: Path, gate: bool) -> None:
        self.settings = Settings()
        self.life = Life(schema, {}, folder, gate=gate, settings=self.settings)
        self.promotion = self.life.promotion
        self.life.trainer.batch_rows = self.settings.batch_rows
        if self.promotion.checks is not None:
            self.promotion.checks.heldout.follows = False
        self._messages = 0
        self._published: Published | None = None

    def learn(self, message: SampleBatch) -> None:
        """Learns a message, as far as it fills a micro-batch."""
        self._messages += 1
        self.life.trainer.take(message, 0, 0, self._messages)
        while self.promotion.step() is not None:
            pass

    def delta(self, dense: bool) -> None:
        """Learns the rest, and makes a delta, which :meth:`follow` takes."""
        while self.promotion.step(drain=True) is not None:
            pass
        self._published = self.promotion.delta(self.life.model.newest_ms, dense, dense)

    def follow(self) -> bool:
        """The scorer takes the delta; False: there was none."""
        if self._published is None:
            return False
        self.life.scorer.take(self._published)
        return True

    @property
    def refused(self) -> int:
        return sum(n for (_, verdict), n in self.promotion.verdicts.items() if verdict == "refused")


def speed(schema: Schema, rows: SampleBatch, folder: Path, say: Say) -> list[Figure]:
    """gate_cost_rows and gate_click_to_served_ms."""
    pair = {gate: _Learner(schema, folder / f"gate-{gate}", gate) for gate in (True, False)}
    settings = pair[True].settings
    dense_every = round(settings.dense_seconds / settings.delta_seconds)
    spent: dict[bool, list[float]] = {True: [], False: []}  # CPU seconds of each turn
    ends = range(TURN_ROWS, WARM_ROWS + TURNS * TURN_ROWS + 1, TURN_ROWS)
    for number, end in enumerate(ends):
        used, dense = {True: 0.0, False: 0.0}, number % dense_every == 0
        for order, message in enumerate(_parts(rows, end - TURN_ROWS, end, MESSAGE_ROWS)):
            for gate in (order % 2 == 0, order % 2 == 1):  # message by message: the machine's moods meet both alike
                used[gate] += _cpu_s(partial(pair[gate].learn, message))
        for gate, learner in pair.items():
            used[gate] += _cpu_s(partial(learner.delta, dense))
            learner.follow()
            if end > WARM_ROWS:
                spent[gate].append(used[gate])
        for learner in pair.values():
            learner.life.snapshot()
    lost = statistics.median(1 - b / a for a, b in zip(spent[True], spent[False], strict=True))
    without = TURN_ROWS / statistics.median(spent[False])
    judging_s = _judging_s(pair[True], rows)
    judging = judging_s / settings.snapshot_seconds
    say(f"  {lost:.1%} of {without:,.0f} rows/s; a snapshot is judged in {judging_s:.2f} s: {judging:.1%}")
    if pair[True].refused:
        say(f"  {pair[True].refused} refusals on the way, and what follows them is in the figures")
    added = _added_ms(pair, _parts(rows, ends[-1], ends[-1] + PAGES * PAGE_ROWS, PAGE_ROWS))
    return [
        figure("gate_cost_rows", lost + judging, "share of rows/s", _NO_GATE, 1 - lost - judging),
        figure("gate_click_to_served_ms", added, "ms", _NO_GATE),
    ]


def _cpu_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _parts(rows: SampleBatch, begin: int, end: int, size: int) -> list[SampleBatch]:
    """Rows as messages: each with its own pages alone, and arrays that cannot be written to."""
    own = (rows.take(slice(at, min(at + size, end))) for at in range(begin, end, size))
    return [SampleBatch.from_bytes(part.to_bytes()) for part in own]


def _judging_s(learner: _Learner, rows: SampleBatch) -> float:
    """CPU seconds that judging a snapshot takes, with as many held-out rows as there ever are."""
    model, heldout = learner.life.model, Heldout(1.0, age_ms=0, follows=False)
    for batch in _parts(rows, 0, MOST_ROWS, MESSAGE_ROWS):
        heldout.take(replace(batch, ts_ms=np.minimum(batch.ts_ms, model.newest_ms)), model)
    slices = model.slices()
    parts = [*iter(slices.next, None)]
    slices.abandon()
    began = time.process_time()
    for part in parts:
        unsound_part(*part)
    heldout.judge(model)
    return time.process_time() - began


def _added_ms(pair: Mapping[bool, _Learner], pages: Sequence[SampleBatch]) -> float:
    """How much longer a page's samples take to be in a delta: the median over pages that came out of both learners.

    Raises:
        BenchError: none did.
    """
    added: list[float] = []
    for number, page in enumerate(pages):
        took: dict[bool, float] = {}
        for gate in (number % 2 == 0, number % 2 == 1):
            learner = pair[gate]
            began = time.perf_counter()
            learner.learn(page)
            learner.delta(dense=False)
            s = time.perf_counter() - began
            if learner.follow():
                took[gate] = s
        if len(took) == 2:
            added.append(took[True] - took[False])
    if not added:
        raise BenchError("no page's samples came out of both learners", "report this")
    return 1000 * statistics.median(added)


def heldout_cost(schema: Schema, moments: Iterable[Moment], share: float) -> float:
    """AUC lost by held-out pages, on what is shown in the last half of the moments' time."""
    every, fewer, heldout = OnlineModel(schema, {}, 0), OnlineModel(schema, {}, 0), Heldout(share)
    scores, clicked, shown_ms = [], [], []
    for moment in moments:
        if len(moment.cat):
            scores.append(np.column_stack([model.score(moment.cat, moment.num) for model in (every, fewer)]))
            clicked.append(moment.clicked)
            shown_ms.append(moment.shown_ms)
        if moment.batch is not None:
            held = heldout.held(moment.batch)
            every.learn(moment.batch)
            fewer.learn(moment.batch.take(~held))
            heldout.promoted(fewer, fewer.newest_ms)  # so that its share follows
    ms = np.concatenate(shown_ms)
    last = ms > (int(ms.min()) + int(ms.max())) // 2
    p, y = np.concatenate(scores)[last], np.concatenate(clicked)[last]
    return auc(p[:, 0], y) - auc(p[:, 1], y)
