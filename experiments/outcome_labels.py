# shell
"""``millrace dev experiment labels --outcome``: label policies of an outcome that comes days after the click.

A world has 40 days; a click becomes an order within 30 days, or none, and some orders are returned
(simulator/late_orders.py). Clicks are learnt at their exposure in all runs, so only the order's labels differ. The
model predicts each click's order at its exposure. Clicks from the eighth day on are judged by whether the order was
kept, whenever that was::

    gap_closed = (f(policy) - f(never)) / (f(bound) - f(never))        f: AUC, log loss

``never``: no correction, all rows are told at the first age and not again. ``bound``: what is true, at the exposure.
Intervals are over worlds, each with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
from msgspec import structs
from numpy.typing import NDArray

from experiments.runs import Row, interval_of, means, quotient
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.clustered import PARTS
from millrace.basics.durations import DAY_MS
from millrace.basics.ranking_metrics import figures_of
from millrace.commands.offline.intervals import rounded
from millrace.commands.replay.logfeatures import NEVER, Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, learn_through
from millrace.commands.replay.replayrun import BATCH_ROWS
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.logforms import OutcomePolicy, OutcomeRule
from millrace.contracts.schema import shop_schema
from millrace.labels import policy_named
from millrace.labels.tellings import ages_ms
from millrace.logs import TS, read_log
from simulator.daylog import write_days

DAYS, FROM_DAY = 40, 7
KEEP, AT_ONCE = 0.1, 4 * BATCH_ROWS
"""Of exposures without a click: they say nothing of orders. So a micro-batch is taken from more rows."""
BOUND, ORACLE, NEVER_TOLD = "bound", "oracle", "never"
POLICIES = get_args(OutcomePolicy)
RULE = OutcomeRule("order", on="click", event="purchase", within="30d")
TARGETS = {"auc_gap_closed": (0.5, np.inf), "log_loss_gap_closed": (0.67, np.inf), "calibration": (0.95, 1.05)}
"""What the default must reach: at least, at most."""


class Orders(OnlineModel):
    """A model whose score is that of the order, given the click."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.predict(cat, num)[:, 1]


def run_world(world: int, users: int, spec: dict[str, Any]) -> list[Row]:
    """The figures of all ways in a world."""
    shop = shop_schema()
    assert shop.log is not None
    times = shop.log.action_times | {"purchase": "order_ms"}
    schema = structs.replace(shop, log=structs.replace(shop.log, action_times=times), outcome=(RULE,))
    with TemporaryDirectory(prefix="millrace-outcomes-") as folder:
        write_days(folder, DAYS, world, users=users, world="orders")
        log = read_log(Path(folder), schema)
        rows = LogRows(log, schema)
        truth = pq.read_table(folder, columns=["ts_ms", "purchase_ms", "refund_ms", "p_purchase"])
        truth = truth.take(np.argsort(truth["ts_ms"].to_numpy(), kind="stable"))
        assert (log.table[TS].to_numpy() == truth["ts_ms"].to_numpy()).all()
        cat, num = Stretches(log, schema).of(np.arange(rows.n))
        labels = Labels(log, schema, rows)
    kept = truth["purchase_ms"].is_valid().to_numpy().astype(np.float32)
    labels.outcomes[:, 0] = np.where(labels.clicked, kept, np.nan)
    (aged,) = labels.of_events
    aged.back_ms = truth["refund_ms"].fill_null(NEVER).to_numpy()
    bound = KnownSamples.of(rows.ts_ms, labels, None)
    clicks = replace(bound, outcomes=np.full_like(bound.outcomes, np.nan))
    judged = labels.clicked & (rows.ts_ms >= rows.ts_ms[0] + FROM_DAY * DAY_MS)

    def samples(name: str) -> KnownSamples:
        if name == BOUND:
            return bound
        aged.policy, aged.within_ms = policy_named("wait" if name == NEVER_TOLD else name), RULE.within_ms
        if name == NEVER_TOLD:
            aged.within_ms = ages_ms(policy_named("es-dfm"), RULE.within_ms)[0]
        return clicks.joined(KnownSamples.by_age(aged, 1))

    def figures(name: str, q: NDArray[np.float32]) -> Row:
        found = figures_of(q[judged], kept[judged])
        return {"world": world, "policy": name} | {figure: rounded(value) for figure, value in found.items()}

    out = [figures(ORACLE, truth["p_purchase"].to_numpy())]
    for name in (BOUND, NEVER_TOLD, *POLICIES):
        with threads(1):
            model = Orders(schema, {"negative_keep": KEEP} | spec, world)
            out.append(figures(name, learn_through(model, rows, cat, num, samples(name), AT_ONCE, only=judged)))
    return out


def make_report(runs: Sequence[Row], default: str) -> dict[str, Any]:
    """The table of all runs, and how many targets the policy ``default`` reaches."""
    worlds = list(dict.fromkeys(r["world"] for r in runs))
    table = []
    for name in dict.fromkeys(r["policy"] for r in runs):
        row: Row = {"policy": name}
        for figure in PARTS:
            row |= interval_of(figure, means(runs, name, figure, worlds))
        for figure, sign in (("auc", 1), ("log_loss", -1)):
            f, low, high = (sign * means(runs, one, figure, worlds) for one in (name, NEVER_TOLD, BOUND))
            row |= quotient(f"{figure}_gap_closed", f - low, high - low)
            row[f"{figure}_gap_closed_least"] = rounded(float(np.min((f - low) / (high - low))))
        row["calibration_worst"] = max(
            (r["calibration"] for r in runs if r["policy"] == name), key=lambda c: abs(c - 1)
        )
        table.append(row)
    own = next(row for row in table if row["policy"] == default)
    verdicts = [
        {"figure": name, "value": own[name], "at_least": least, "at_most": most if most < np.inf else None}
        | {"reached": own[name] is not None and least <= own[name] <= most}
        for name, (least, most) in TARGETS.items()
    ]
    said = "; ".join(f"{v['figure']} {v['value']} ({'reached' if v['reached'] else 'missed'})" for v in verdicts)
    return {"verdict": f"The default policy of outcomes '{default}': {said}.", "verdicts": verdicts, "policies": table}
