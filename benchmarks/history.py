# shell
"""``millrace bench history``: a loop that starts from seven days of history against a twin that lived them.

::

    the log of a simulated week ─┬─► millrace replay --into ──► state is read back from the store ──► loop A ─┐
                                 └─► a loop in one process, message by message (historytwin) ─► night ─► loop B ─┤
    the next day from 09:00: the same pages, the first 10,000 exposures, both go on learning ◄───────────────────┘

What is held against each other: the served AUC of each (the difference against twice its standard error, by a bootstrap
over users), the features of their pages (equal to the bit), and their calibration. The time to be ready is that of the
command in a process of its own: reading the log, replaying, writing.

The twin is the real cores (stream.partition.partition, learner.training.trainer), fed message by message in the
order of time. It is not a week of processes, which would take 42 minutes at 240 times real time; nothing waits for a
publication in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.historytwin import LiveLoop
from benchmarks.runner import BenchError, Figure, figure
from commands.history.events import LogEvents
from commands.replay.logfeatures import LogRows
from learner.evaluation.progressive import Progressive
from learner.network.dense import threads
from learner.ranker.repeats import Repeats
from learner.role.making import model_of, wanted_spec
from learner.training.trainer import Trainer
from learner.training.versions import newest_sound
from millrace.basics.merit import auc
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable, read_log
from millrace.versions.modelstore import ModelStore
from simulator.daylog import write_days
from stream.partition.checkpoint import CheckpointStore
from stream.partition.partition import Partition, Policy

DAYS, USERS, SEED, SERVED = 7, 4000, 0, 10_000
START = "2026-02-25"
OPENS_HOUR = 9
DRAWS = 400
KEEP_MS = 3 * 3_600_000


@dataclass(slots=True)
class _Pages:
    """What a loop served."""

    rows: list[NDArray[np.intp]] = field(default_factory=list)
    features: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=list)
    p: list[NDArray[np.float32]] = field(default_factory=list)

    def __call__(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32], /
    ) -> None:
        self.rows.append(rows)
        self.features.append((cat, num))
        self.p.append(p)


def run(out: Path, say: Callable[[str], None], users: int = USERS, served: int = SERVED) -> list[Figure]:
    """
    Raises:
        BenchError: the replay of the week failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="millrace-history-"))
    try:
        return _run(folder, say, users, served)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, say: Callable[[str], None], users: int, served: int) -> list[Figure]:
    schema, settings = shop_schema(), Settings(data=str(folder / "data"), seed=SEED)
    paths = write_days(folder / "days", DAYS + 1, SEED, START, users)
    week, day = folder / "week", folder / "day"
    week.mkdir()
    day.mkdir()
    for path in paths:
        path.rename((day if path == paths[-1] else week) / path.name)

    began = time.perf_counter()
    toml = str(resources.files("millrace.contracts").joinpath("shop.toml"))
    command = [sys.executable, "-m", "commands", "log", "bootstrap", str(week), "--schema", toml]
    command += ["--data", settings.data, "--no-people", "--seed", str(SEED)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    if subprocess.run(command, env=ours, check=False).returncode:
        raise BenchError("the replay of the week failed", "see its line above")
    ready_s = time.perf_counter() - began

    log = read_log(week, schema)
    opens = datetime.fromisoformat(START).replace(tzinfo=UTC) + timedelta(days=DAYS, hours=OPENS_HOUR - 8)
    opens_ms = round(opens.timestamp() * 1000)
    say(f"the week, {log.table.num_rows:,} exposures: ready after {ready_s:.1f} s; now the twin lives it")
    with threads(1):
        past = _from_store(settings, schema)
        began = time.perf_counter()
        twin = _untaught(settings, schema)
        _live(twin, log, schema, say=say)
        lived_s = time.perf_counter() - began
        for loop in (past, twin):
            loop.rest(opens_ms)
        today = read_log(day, schema)
        today = _from(today, opens_ms)
        pages = [_Pages(), _Pages()]
        for loop, into in zip((past, twin), pages, strict=True):
            _live(loop, today, schema, into, served)
    return _figures(today, pages, ready_s, lived_s, log.table.num_rows)


def _from(log: LogTable, from_ms: int) -> LogTable:
    first = int(np.searchsorted(log.table["ts_ms"].to_numpy(), from_ms))
    table = log.table.slice(first)
    return LogTable(table, log.user, log.item, log.label, table.num_rows, 0)


def _live(
    loop: LiveLoop,
    log: LogTable,
    schema: Schema,
    pages: _Pages | None = None,
    most: int | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    rows = LogRows(log, schema)
    events = LogEvents(log, schema, rows, loop.partitions[0].policy.life_ms)
    if say is None:
        loop.live(events, rows, pages or (lambda *_: None), most_rows=most)
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("the twin lives", total=events.pages)
        loop.live(events, rows, tick=lambda done: bar.update(task, completed=done))


def _trainer(model: object, settings: Settings) -> Trainer:
    return Trainer(model, Progressive(settings.rolling_rows), Repeats(KEEP_MS), settings.batch_rows)  # type: ignore[arg-type]


def _from_store(settings: Settings, schema: Schema) -> LiveLoop:
    """The loop that goes on from what the replay left, read as the roles read it."""
    checkpoints = CheckpointStore(settings.place("checkpoints"))
    policy = Policy.of(settings)
    partitions = [
        checkpoints.load(Partition(n, schema, policy, settings.partitions)).partition
        for n in range(settings.partitions)
    ]
    wanted = wanted_spec(settings, schema)

    def build(note: object, parts: object) -> object:
        model = model_of(schema, wanted, settings.seed)
        model.resume(parts)  # type: ignore[arg-type]
        return model

    found = newest_sound(ModelStore(settings.place("models")), schema.id, wanted, build)  # type: ignore[arg-type]
    if found is None:
        raise BenchError("the replay left no model", "report this")
    trainer = _trainer(found.model, settings)
    trainer.resume(found.training, found.note.extra.get("counts", {}))
    return LiveLoop(schema, partitions, trainer)


def _untaught(settings: Settings, schema: Schema) -> LiveLoop:
    policy = Policy.of(settings)
    partitions = [Partition(n, schema, policy, settings.partitions) for n in range(settings.partitions)]
    model = model_of(schema, wanted_spec(settings, schema), settings.seed)
    return LiveLoop(schema, partitions, _trainer(model, settings))


def _figures(log: LogTable, pages: list[_Pages], ready_s: float, lived_s: float, rows: int) -> list[Figure]:
    of = np.concatenate(pages[0].rows)
    y = log.table[log.label].take(of).to_numpy()
    user = log.table[log.user].take(of).to_numpy()
    p, q = (np.concatenate(served.p) for served in pages)
    same = sum(
        np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
        for a, b in zip(pages[0].features, pages[1].features, strict=True)
    )
    gap, error = auc(p, y) - auc(q, y), _error(p, q, y, user)
    clicks = max(1, int(y.sum()))
    return [
        figure("ready", ready_s, "s"),
        figure("ready_rows", rows / ready_s, "exposures/s"),
        figure("twin_lived", lived_s, "s"),
        figure("exposures", len(y), "exposures"),
        figure("clicks", clicks, "clicks"),
        figure("auc_from_history", auc(p, y), ""),
        figure("auc_twin", auc(q, y), ""),
        figure("auc_gap", gap, "", "2 standard errors", abs(gap) / (2 * error)),
        figure("pages_equal", same, "pages", "pages served", same / len(pages[0].p)),
        figure("calibration", float(p.sum()) / clicks, "", "twin's", float(p.sum() / q.sum())),
        figure("calibration_twin", float(q.sum()) / clicks, ""),
        figure("p_correlation", float(np.corrcoef(p, q)[0, 1]), ""),
    ]


def _error(p: NDArray[np.float32], q: NDArray[np.float32], y: NDArray[np.int8], user: NDArray[np.int64]) -> float:
    """Standard error of the difference of two AUCs on the same exposures, by a bootstrap over users."""
    _, of = np.unique(user, return_inverse=True)
    rows = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    random = np.random.default_rng(0)
    gaps = []
    for _ in track(range(DRAWS), "bootstrap", console=Console(stderr=True), transient=True):
        drawn = np.concatenate([rows[i] for i in random.integers(0, len(rows), len(rows))])
        gaps.append(auc(p[drawn], y[drawn]) - auc(q[drawn], y[drawn]))
    return float(np.std(gaps, ddof=1))
