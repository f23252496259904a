# shell
"""Training: Wide&Deep against torch-rechub, Wide&ResNet+BN, and the cost of large tables.

One data set for all: 30 categorical fields, 100,000 rows, ids drawn by popularity, networks of 3 x 256, dim 16, batch
4,096. Contestants take turns; a first turn warms up. Rates are medians, ratios are medians of the ratios within a turn.
All figures are of *one thread, by CPU time*. Matrix products of "wide_deep" are bfloat16 where the processor has it.
The peer has its own training, no regularisation and the fused Adam.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.parts import bench_tables
from benchmarks.parts.bench_tables import DIM, FIELDS, as_samples, schema
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.hashing import column_hash, mix
from millrace.basics.ranking_metrics import auc

HIDDEN, BLOCKS, BATCH = 256, 3, 4096
PEER = "torch-rechub"


class Size(NamedTuple):
    """How much is measured."""

    rows: int = 100_000
    turns: int = 5
    few: int = 100_000  # table rows
    many: int = 20_000_000


SHORT = Size(5000, 1, 5000, 20_000)


class Data:
    """Codes (n, 30) for the peers, hashed ids for Millrace, labels with a learnable non-linear taste."""

    def __init__(self, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = np.geomspace(4, 50_000, FIELDS).astype(int)
        u = rng.random((rows, FIELDS))
        self.codes = np.minimum((self.sizes**u - 1).astype(np.int64), self.sizes - 1)  # log-uniform popularity
        taste = np.random.default_rng(7)
        vectors = [taste.normal(size=(n, 4)) for n in self.sizes]
        bias = [taste.normal(size=n) * 0.25 for n in self.sizes]
        pairs = [(int(a), int(b)) for a, b in taste.integers(0, FIELDS, (8, 2))]
        logit = sum(b[self.codes[:, i]] for i, b in enumerate(bias)) - 1.5
        for a, b in pairs:
            logit = logit + 0.4 * (vectors[a][self.codes[:, a]] * vectors[b][self.codes[:, b]]).sum(1)
        self.y = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        layout = schema().layout
        salts = [layout.field_salt(f) for f in layout.cat_fields]
        hashed = [mix(salt, column_hash(self.codes[:, i] + 1)) for i, salt in enumerate(salts)]
        self.cat = np.column_stack(hashed).view(np.int64)
        self.batches = [slice(start, start + BATCH) for start in range(0, rows, BATCH)]


class Ours:
    def __init__(self, data: Data, model: str, **options: Any) -> None:
        spec = {"model": model, "width": DIM, "hidden": [HIDDEN] * 3, "blocks": BLOCKS, **options}
        self.model = OnlineModel(schema(), spec, 0)
        self.samples = [as_samples(data.cat[b], data.y[b]) for b in data.batches]

    def run(self) -> None:
        for batch in self.samples:
            self.model.learn(batch)
        self.model.changes()

    def score(self, data: Data) -> NDArray[np.float32]:
        return self.model.score(data.cat, np.zeros((len(data.y), 0), np.float32))


class Rechub:
    def __init__(self, data: Data) -> None:
        from torch_rechub.basic.features import SparseFeature
        from torch_rechub.models.ranking import WideDeep

        features = [SparseFeature(f"f{i}", int(n), embed_dim=DIM) for i, n in enumerate(data.sizes)]
        self.model = WideDeep(features, features, {"dims": [HIDDEN] * 3, "dropout": 0, "activation": "relu"})
        self.adam = torch.optim.Adam(self.model.parameters(), 1e-3, fused=True)
        self.inputs = [
            ({f"f{i}": torch.from_numpy(data.codes[b, i]) for i in range(FIELDS)}, torch.from_numpy(data.y[b]))
            for b in data.batches
        ]

    def run(self) -> None:
        loss_of = nn.functional.binary_cross_entropy
        self.model.train()
        for x, y in self.inputs:
            self.adam.zero_grad()
            loss_of(self.model(x), y).backward()  # type: ignore[no-untyped-call]
            self.adam.step()

    def score(self, data: Data) -> NDArray[np.float32]:
        self.model.eval()
        with torch.inference_mode():
            x = {f"f{i}": torch.from_numpy(data.codes[:, i]) for i in range(FIELDS)}
            out: NDArray[np.float32] = self.model(x).numpy()
        return out


def race(data: Data, test: Data, turns: int, say: Say) -> Iterator[Figure]:
    """Rates by the CPU time of one thread. The first turn warms up, and is the pass after which the AUC is taken."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    contestants: dict[str, Any] = {
        "wide_deep": Ours(data, "wide_deep", products="bfloat16" if fast else "float32"),
        "wide_deep float32": Ours(data, "wide_deep"),
        "wide_resnet_bn": Ours(data, "wide_resnet_bn", norm="batch", placement="post"),
    }
    try:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            contestants[PEER] = Rechub(data)
    except ImportError as error:
        say(f"{PEER} is not installed ({error}); install the extra 'bench' to compare with it")
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, contestant in contestants.items():
            took_s = cpu_s(contestant.run, time.process_time)
            if turn:
                rates[name].append(len(data.y) / took_s)
                say(f"turn {turn}: {name} {rates[name][-1]:,.0f} rows/s")
            else:
                yield figure(f"auc {name}", auc(contestant.score(test), test.y), "AUC")
    for name, own in rates.items():
        peer = PEER if PEER in rates and name.split()[0] == "wide_deep" else None
        ratio = None if peer is None else statistics.median(a / b for a, b in zip(own, rates[peer], strict=True))
        yield figure(name, statistics.median(own), "rows/s", peer, ratio)


def scaling(few: int, many: int, turns: int) -> Figure:
    """CPU time of learning a sample at ``many`` table rows over that at ``few``: they take turns, a batch at a time."""
    models, batches = [], []
    for rows in (few, many):
        model, state = bench_tables.blank(rows)
        model.resume(bench_tables.made_up(rows, state))
        models.append(model)
        batches.append(bench_tables.batches(rows))
    spent: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        for pair in zip(*batches, strict=True):
            for model, batch, own in zip(models, pair, spent, strict=True):
                took_s = cpu_s(partial(model.learn, batch), time.process_time)
                if turn:  # the first warms up
                    own.append(took_s)
    small, large = (statistics.median(own) / bench_tables.BATCH * 1e6 for own in spent)
    return figure("row_scaling", large, "us/sample", f"{few:,} table rows", large / small)


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text."""
    with threads(1):
        yield from race(Data(size.rows, 0), Data(20_000, 1), size.turns, say)
        yield scaling(size.few, size.many, size.turns)
