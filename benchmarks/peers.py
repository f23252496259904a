# shell
"""``millrace dev bench peers``: Vowpal Wabbit, River, LightGBM retrained every night, torch-rechub and Millrace on one
log, side by side. docs/tutorials/against-others.ipynb runs the same code on a simulated log.

The log is KuaiRand-Pure (the folder ``MILLRACE_TEST_LOG``), else days of the simulated shop. For all contestants:

- exact copies of rows are dropped, and rows come in the order of time;
- each row is scored before its label is learnt, and labels come in micro-batches of 256, each at the same time;
- ids are the schema's fields and crosses, numbers the schema's. *windows* have Millrace's window counts, too, fresh at
  each exposure, which the others would not make by themselves; *fields* have none;
- the rate is the best of five by the log loss of the second half of the first day; nothing else is chosen;
- figures are of the last two days. Where chance has a part, they are means of three seeds.

*auc INPUTS NAME*, *log_loss INPUTS NAME*
    With the standard deviation over seeds.
*rows INPUTS NAME*
    Rows that are scored and learnt in a second of processor time, by one thread. Features are made before.

LightGBM and torch-rechub know all ids of the log beforehand, which favours them. Millrace's defaults, the middle of its
rates, have been chosen on these logs, among others, which favours Millrace.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from river import linear_model, optim
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import WideDeep
from vowpalwabbit import Workspace

from benchmarks.tools.bench_figures import Figure, Say, figure
from learner.network.dense import threads
from learner.network.models.spec import Spec
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS
from millrace.basics.ranking_metrics import auc, log_loss
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, ReplayModel, learn_through
from millrace.commands.replay.reading import read
from millrace.commands.replay.replayrun import BATCH_ROWS
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.labels import policy_named
from millrace.logs import LogTable
from simulator.daylog import write_days

KUAIRAND = Path(__file__).parent.parent / "examples" / "kuairand" / "schema.toml"

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

POLICY = "equal-wait"
"""All labels come when the attribution window is over, and weigh 1: the others know no other weights."""


class LogArrays:
    """A log's rows as arrays, made one time for all: n rows, C columns of ids, N numbers.

    Millrace gets ``cat`` and ``num`` as in a replay, and makes crosses and scales itself. The others get ``ids``,
    crosses included, 0 where missing, and ``numbers``: logarithms, as Millrace makes them, scaled by what the first day
    had.
    """

    def __init__(self, log: LogTable, schema: Schema) -> None:
        self.schema, self.rows = schema, LogRows(log, schema)
        self.cat, self.num = Stretches(log, schema).of(np.arange(self.rows.n))
        self.samples = KnownSamples.of(self.rows.ts_ms, Labels(log, schema, self.rows), policy_named(POLICY))
        inputs = Inputs(schema, 0, own_widths=False, squash=True)
        (wide,) = inputs.groups
        self.ids: Ids = inputs.ids(wide, self.cat)  # (n, C)
        self.fields = len(wide.columns)  # of the C columns, the first ones; the others are crosses
        self.known = np.unique(self.ids)
        self.first_rows = first = int(np.searchsorted(self.rows.ts_ms, self.rows.ts_ms[0] + DAY_MS))
        numbers = inputs.plain(self.num)
        mean, deviation = numbers[:first].mean(0), numbers[:first].std(0)
        self.numbers: Floats = (numbers - mean) / np.where(deviation > 0, deviation, 1)  # (n, N)
        self.night_ms = DAY_MS

    def first_day(self) -> LogArrays:
        """The same, but the labels end after 24 hours, and a night comes every six."""
        first = copy.copy(self)
        first.samples, first.night_ms = self.samples.take(self.samples.row < self.first_rows), DAY_MS // 4
        return first

    def night(self, ts_ms: Any) -> Any:
        """The number of the last night before some times."""
        return (ts_ms + self.schema.utc_offset_ms) // self.night_ms

    def last_days(self, days: int = 2) -> NDArray[np.bool_]:
        """Whether each row is of the last local days. (n,)"""
        night = self.night(self.rows.ts_ms)
        return np.asarray(night > night[-1] - days)


class VowpalWabbit:
    """Its default learner, logistic loss, 2^22 weights."""

    def __init__(self, log: LogArrays, rate: float, seed: int) -> None:
        self.vw = Workspace(f"--loss_function logistic --link logistic -b 22 -l {rate} --quiet")

    def lines(self, ids: Ids, numbers: Floats) -> list[str]:
        names = [f"n{k}" for k in range(numbers.shape[1])]
        return [
            f"|i {' '.join([str(id & 0x3FFFFF) for id in row if id])} |n {' '.join(map('{}:{:.5g}'.format, names, x))}"
            for row, x in zip(ids.tolist(), numbers.tolist(), strict=True)
        ]

    def score(self, ids: Ids, numbers: Floats) -> Floats:
        return np.array([self.vw.predict(line) for line in self.lines(ids, numbers)], np.float32)

    def learn(self, batch: SampleBatch) -> None:
        for y, line in zip(batch.label.tolist(), self.lines(batch.cat, batch.num), strict=True):
            self.vw.learn(f"{'1' if y else '-1'} {line}")


class River:
    """Logistic regression by FTRL-Proximal."""

    def __init__(self, log: LogArrays, rate: float, seed: int) -> None:
        self.model: Any = linear_model.LogisticRegression(optim.FTRLProximal(alpha=rate))

    def dicts(self, ids: Ids, numbers: Floats) -> Iterator[dict[int, float]]:
        for row, x in zip(ids.tolist(), numbers.tolist(), strict=True):
            yield dict.fromkeys(filter(None, row), 1.0) | dict(enumerate(x))

    def score(self, ids: Ids, numbers: Floats) -> Floats:
        return np.array([self.model.predict_proba_one(x)[True] for x in self.dicts(ids, numbers)], np.float32)

    def learn(self, batch: SampleBatch) -> None:
        for x, y in zip(self.dicts(batch.cat, batch.num), batch.label.tolist(), strict=True):
            self.model.learn_one(x, y)


class LightGBM:
    """Boosted trees, made every night from all labels so far. Until the first night it predicts a constant."""

    def __init__(self, log: LogArrays, rate: float, seed: int) -> None:
        self.log, self.night = log, log.night(log.rows.ts_ms[0])
        self.parts: list[tuple[Floats, Floats]] = []
        self.params = {"objective": "binary", "learning_rate": rate, "seed": seed, "feature_fraction": 0.8}
        self.params |= {"num_threads": 1, "verbose": -1, "max_bin": 255}
        self.trees: lightgbm.Booster | None = None

    def inputs(self, ids: Ids, numbers: Floats) -> Floats:
        return np.hstack([np.searchsorted(self.log.known, ids), numbers]).astype(np.float32)

    def score(self, ids: Ids, numbers: Floats) -> Floats:
        if self.trees is None:
            return np.full(len(ids), self.log.schema.windows.prior_rate, np.float32)
        return np.asarray(self.trees.predict(self.inputs(ids, numbers)), np.float32)

    def learn(self, batch: SampleBatch) -> None:
        if (night := self.log.night(batch.ts_ms.max())) > self.night and self.parts:
            self.night = night
            x, y = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
            data = lightgbm.Dataset(x, y, categorical_feature=list(range(self.log.ids.shape[1])))
            self.trees = lightgbm.train(self.params, data, 100)
        self.parts.append((self.inputs(batch.cat, batch.num), batch.label))


class TorchRechub:
    """Its Wide&Deep, with Millrace's sizes, and Adam: a step each micro-batch."""

    def __init__(self, log: LogArrays, rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.known, (_, columns) = log.known, log.ids.shape
        ids = [SparseFeature("i0", len(log.known), 16)]
        ids += [SparseFeature(f"i{k}", len(log.known), 16, shared_with="i0") for k in range(1, columns)]
        numbers = [DenseFeature(f"n{k}") for k in range(log.numbers.shape[1])]
        self.model = WideDeep(ids, ids[: log.fields] + numbers, {"dims": [128, 128], "dropout": 0})
        self.adam = torch.optim.Adam(self.model.parameters(), rate, fused=True)

    def rates(self, ids: Ids, numbers: Floats) -> torch.Tensor:
        x = {f"i{k}": torch.from_numpy(column) for k, column in enumerate(np.searchsorted(self.known, ids).T.copy())}
        x |= {f"n{k}": torch.from_numpy(column) for k, column in enumerate(numbers.T.copy())}
        found: torch.Tensor = self.model(x)
        return found

    def score(self, ids: Ids, numbers: Floats) -> Floats:
        self.model.eval()
        with torch.inference_mode():
            found: Floats = self.rates(ids, numbers).numpy()
        return found

    def learn(self, batch: SampleBatch) -> None:
        self.model.train()
        self.adam.zero_grad()
        p = self.rates(batch.cat, batch.num)
        loss = torch.nn.functional.binary_cross_entropy(p, torch.from_numpy(batch.label))
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()


class Contestant(NamedTuple):
    """What makes a model from a log, a rate and a seed; the rates to choose from; whether chance has a part."""

    make: Callable[[LogArrays, float, int], ReplayModel]
    rates: tuple[float, ...]
    chance: bool = True


FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def millrace_spec(model: str, factor: float) -> dict[str, Any]:
    """A model of Millrace with all its default rates times a factor."""
    rates = {name: factor * getattr(Spec(), name) for name in ("dense_rate", "embedding_rate", "ftrl_alpha")}
    return {"model": model, **rates}


def millrace(model: str, chance: bool = True) -> Contestant:
    def make(log: LogArrays, factor: float, seed: int) -> OnlineModel:
        return OnlineModel(log.schema, millrace_spec(model, factor), seed)

    return Contestant(make, FACTORS, chance)


CONTESTANTS = {
    "vowpalwabbit": Contestant(VowpalWabbit, (0.05, 0.1, 0.2, 0.5, 1.0), chance=False),
    "river": Contestant(River, (0.003, 0.01, 0.03, 0.1, 0.3), chance=False),
    "lightgbm nightly": Contestant(LightGBM, (0.01, 0.02, 0.05, 0.1, 0.2)),
    "torch-rechub": Contestant(TorchRechub, (0.0003, 0.001, 0.003, 0.01, 0.03)),
    "millrace": millrace("wide_resnet"),
    "millrace logistic": millrace("logistic", chance=False),
    "millrace deepfm": millrace("deepfm"),
}
"""By name. All have as many rates."""


class Scores(NamedTuple):
    """The score of each row (n,), before its label was learnt, and processor seconds of scoring and learning."""

    p: Floats
    seconds: float


def run_through(name: str, log: LogArrays, rate: float, seed: int) -> Scores:
    """A contestant's way through the log, as :func:`~millrace.commands.replay.replayrun.run_log` takes a model."""
    model = CONTESTANTS[name].make(log, rate, seed)
    cat, num = (log.cat, log.num) if isinstance(model, OnlineModel) else (log.ids, log.numbers)
    with threads(1):
        began = time.process_time()
        p = learn_through(model, log.rows, cat, num, log.samples, BATCH_ROWS)
        return Scores(p, time.process_time() - began)


def best_rate(name: str, log: LogArrays, rates: int | None = None) -> float:
    """The rate with the lowest log loss in the second half of the first day; ``rates``: of how many."""
    first, judged = log.first_day(), slice(log.first_rows // 2, log.first_rows)

    def loss(rate: float) -> float:
        return log_loss(run_through(name, first, rate, 0).p[judged], log.rows.label[judged])

    return min(CONTESTANTS[name].rates[:rates], key=loss)


class Size(NamedTuple):
    """How much is measured."""

    users: int = 1000  # of a simulated log, where there is no other
    rates: int | None = None
    seeds: int = 3


SHORT = Size(20, 2, 1)


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    with TemporaryDirectory(prefix="millrace-peers-", dir=out) as folder:
        log, schema = _log(Path(folder), size, say)
        for inputs, plan in {"fields": schema.edit(windows={"keys": []}), "windows": schema}.items():
            arrays = LogArrays(log, plan)
            judged = arrays.last_days()
            y = arrays.rows.label[judged]
            columns = f"{arrays.ids.shape[1]} columns of ids, {arrays.numbers.shape[1]} numbers"
            say(f"{inputs}: {columns}, {arrays.rows.n:,} rows, {len(y):,} of them judged")
            for name, who in CONTESTANTS.items():
                rate = best_rate(name, arrays, size.rates)
                runs = [run_through(name, arrays, rate, s) for s in range(size.seeds if who.chance else 1)]
                unit = f"mean of {len(runs)} seeds" if who.chance else "no chance"
                for figure_name, of in {"auc": auc, "log_loss": log_loss}.items():
                    found = [of(one.p[judged], y) for one in runs]
                    yield figure(
                        f"{figure_name} {inputs} {name}",
                        statistics.mean(found),
                        f"± {statistics.pstdev(found):.4f}, {unit}, rate {rate:g}",
                    )
                speed = arrays.rows.n / statistics.median(one.seconds for one in runs)
                yield figure(f"rows {inputs} {name}", speed, "rows/s of CPU")


def _log(folder: Path, size: Size, say: Say) -> tuple[LogTable, Schema]:
    """KuaiRand, or the shop's days where there is none or a short run is asked for."""
    kuairand = os.environ.get("MILLRACE_TEST_LOG")
    if kuairand and size != SHORT:
        schema = load_schema(KUAIRAND)
        return read(kuairand, schema), schema
    say("the days of a simulated shop" + ("" if kuairand else ": MILLRACE_TEST_LOG names no other log"))
    write_days(folder, 3, seed=1, users=size.users)
    shop = shop_schema()
    shop = shop.edit(fields=[field for field in shop.fields if not field.bias])  # the others have no such fields
    return read(folder, shop), shop
