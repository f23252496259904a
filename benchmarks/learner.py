# shell
"""Training and memory: Wide&Deep against torch-rechub, Wide&ResNet+BN against its own dense part, table sizes.

One data set for all: 30 categorical fields, 100,000 rows, ids drawn by popularity, networks of 3 x 256, dim 16,
batch 4,096. A step is all that learning takes: forward, guards, backward, optimisers, tables; Millrace also averages
its weights, marks the rows touched, and gives out its changes once a pass, as for a publication.

Contestants take turns, each with the same batches in the same order; a first turn warms up. Rates are medians,
ratios are medians of the ratios within a turn. All figures are of *one thread, by CPU time*: what one core does,
whatever else the machine is doing (the learner's service takes half of the cores). Two commits are compared by the
rates of ``wide_deep`` and ``wide_resnet_bn`` in turns.

The peer has its own training (torch-rechub's trainer without its data loader, with tensors made beforehand) and more
than its defaults: no regularisation, the fused Adam. Millrace's matrix products in training are bfloat16 where the
processor has it, by the setting ``products``; "wide_deep float32" is without it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.parts.bench_fields import BATCH, DIM, FIELDS, ROWS, Data, as_samples, schema
from benchmarks.tools.bench_figures import Figure, Say, figure
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.ranking_metrics import auc
from millrace.processes.resident_memory import measured_bytes

HIDDEN, BLOCKS = 256, 3
TURNS = 5
PEER = "torch-rechub"
SIZES = (100_000, 20_000_000)
FILL = 50_000


# -- contestants: each gives (one pass over the data, probabilities of test rows) -------------------------------------


class Ours:
    def __init__(self, data: Data, model: str, **options: Any) -> None:
        spec = {"model": model, "width": DIM, "hidden": [HIDDEN] * 3, "blocks": BLOCKS, **options}
        self.model = OnlineModel(schema(), spec, 0)
        self.samples = [as_samples(data.cat[b], data.y[b]) for b in data.batches()]

    def run(self) -> None:
        for batch in self.samples:
            self.model.learn(batch)
        self.model.changes()

    def score(self, data: Data) -> NDArray[np.float32]:
        return self.model.score(data.cat, np.zeros((len(data.y), 0), np.float32))


class DensePart:
    """Wide&ResNet+BN's network alone in plain torch: in 480, residual units of 2 x 256; forward, backward, Adam."""

    def __init__(self, data: Data) -> None:
        width = FIELDS * DIM

        class Unit(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w1, self.w2, self.bn = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, width), nn.BatchNorm1d(width)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(self.bn(x + self.w2(torch.relu(self.w1(x)))))

        self.net = nn.Sequential(*(Unit() for _ in range(BLOCKS)), nn.Linear(width, 1))
        self.adam = torch.optim.Adam(self.net.parameters(), 1e-3, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.pairs = [
            (torch.randn(b.stop - b.start, width, generator=generator)[: len(data.y[b])], torch.from_numpy(data.y[b]))
            for b in data.batches()
        ]

    def run(self) -> None:
        loss_of = nn.functional.binary_cross_entropy_with_logits
        for x, y in self.pairs:
            self.adam.zero_grad()
            loss_of(self.net(x).squeeze(1), y).backward()  # type: ignore[no-untyped-call]
            self.adam.step()


class Rechub:
    def __init__(self, data: Data) -> None:
        from torch_rechub.basic.features import SparseFeature
        from torch_rechub.models.ranking import WideDeep

        features = [SparseFeature(f"f{i}", int(n), embed_dim=DIM) for i, n in enumerate(data.sizes)]
        self.model = WideDeep(features, features, {"dims": [HIDDEN] * 3, "dropout": 0, "activation": "relu"})
        self.adam = torch.optim.Adam(self.model.parameters(), 1e-3, fused=True)
        self.inputs = [
            ({f"f{i}": torch.from_numpy(data.codes[b, i]) for i in range(FIELDS)}, torch.from_numpy(data.y[b]))
            for b in data.batches()
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


@dataclass(frozen=True)
class Result:
    """Of a race: rows/s of each contestant in each turn, and its AUC after one pass over the data."""

    rates: dict[str, list[float]]
    auc: dict[str, float]

    def rate(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def ratio(self, name: str, other: str) -> float:
        pairs = zip(self.rates[name], self.rates[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def race(contestants: dict[str, Any], test: Data, say: Say) -> Result:
    """By the CPU time of one thread. The first turn warms up, and is the pass after which the AUC is taken."""
    quality: dict[str, float] = {}
    for name, contestant in contestants.items():
        contestant.run()
        if hasattr(contestant, "score"):
            quality[name] = auc(contestant.score(test), test.y)
            say(f"AUC after one pass: {name} {quality[name]:.4f}")
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(1, TURNS + 1):
        for name, contestant in contestants.items():
            began = time.process_time()
            contestant.run()
            rates[name].append(ROWS / (time.process_time() - began))
            say(f"turn {turn}: {name} {rates[name][-1]:,.0f} rows/s")
    return Result(rates, quality)


def wide_deep(data: Data, test: Data, products: str, say: Say) -> list[Figure]:
    """Wide&Deep against the peer, where it is installed."""
    own = {"wide_deep": Ours(data, "wide_deep", products=products)}
    if products != "float32":
        own["wide_deep float32"] = Ours(data, "wide_deep")
    others: dict[str, Any] = {}
    try:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            others[PEER] = Rechub(data)
    except ImportError as error:
        say(f"{PEER} is not installed ({error}); install the extra 'bench' to compare with it")
    one = race({**own, **others}, test, say)
    peer = next(iter(others), None)
    figures = [figure(name, one.rate(name), "rows/s", peer, one.ratio(name, peer) if peer else None) for name in own]
    figures += [figure(f"wide_deep {name}", one.rate(name), "rows/s") for name in others]
    return figures + [figure(f"auc {name}", value, "AUC") for name, value in one.auc.items()]


def wide_resnet(data: Data, test: Data, say: Say) -> list[Figure]:
    """Wide&ResNet+BN, all of it, against its dense part alone in plain torch; both in float32. With batch norm after
    the addition, as that part has it; and as it comes, with renormalisation inside the unit."""
    bouts = {
        "wide_resnet_bn": Ours(data, "wide_resnet_bn", norm="batch", placement="post"),
        "wide_resnet_bn renorm": Ours(data, "wide_resnet_bn"),
        "dense_part": DensePart(data),
    }
    one = race(bouts, test, say)
    own = [n for n in bouts if n != "dense_part"]
    return [
        *(figure(n, one.rate(n), "rows/s", "dense_part", one.ratio(n, "dense_part")) for n in own),
        figure("dense_part", one.rate("dense_part"), "rows/s"),
    ]


# -- sizes ------------------------------------------------------------------------------------------------------------


def filled(size: int, say: Say) -> tuple[OnlineModel, NDArray[np.int64], float]:
    """A Wide&ResNet+BN whose table has ``size`` rows with optimiser state, its ids, and bytes a row."""
    spec = {"model": "wide_resnet_bn", "width": DIM, "hidden": [HIDDEN], "blocks": BLOCKS, "max_rows": size + 1000}
    model = OnlineModel(schema(), spec, 0)
    table = model.tables[f"w{DIM}"]
    ids = np.random.default_rng(1).permutation(np.arange(1, size + 1, dtype=np.int64))
    ids *= np.int64(-7046029254386353131)  # spread over all of int64, distinct still
    before = measured_bytes()
    grads, wides = np.full((FILL, DIM), 0.01, np.float32), np.full(FILL, 0.01, np.float32)
    for part in np.array_split(ids, size // FILL):
        table.write(table.read(part.reshape(-1, 1), learning=True), grads, wides, 28_000_000)
        table.changes()  # as a learner publishes: often
    gc.collect()
    per_row = (measured_bytes() - before) / size
    say(f"{size:,} rows: {per_row:.1f} bytes each, {measured_bytes() / 1e9:.2f} GB resident in all")
    return model, ids, per_row


def scaling(say: Say) -> list[Figure]:
    """CPU time per sample at 20 million table rows over that at 100 thousand; ids by the same log-uniform popularity.
    Of learning whole, and of the tables' part alone (distinct ids, reading, both optimisers)."""
    models, samples = [], []
    per_row = 0.0
    for size in SIZES:
        model, ids, per_row = filled(size, say)
        rng = np.random.default_rng(3)
        rank = (float(size) ** rng.random((8, BATCH, FIELDS))).astype(np.int64) - 1
        y = (rng.random((8, BATCH)) < 0.2).astype(np.float32)
        samples.append([as_samples(ids[r], t) for r, t in zip(rank, y, strict=True)])
        models.append(model)
    whole: list[list[float]] = [[] for _ in SIZES]
    tables: list[list[float]] = [[] for _ in SIZES]
    for turn in range(5):
        for i in range(len(samples[0])):  # a batch of each size at a time
            for k, model in enumerate(models):
                began = time.process_time()
                model.learn(samples[k][i])
                learnt = time.process_time()
                table = model.tables[f"w{DIM}"]
                block = table.read(samples[k][i - 4].cat, learning=True)  # not those that are in the cache by now
                zero = np.zeros((len(block.ids), DIM + 1), np.float32)
                table.write(block, np.ascontiguousarray(zero[:, 1:]), zero[:, 0].copy(), 28_000_000)
                if turn:
                    whole[k].append(learnt - began)
                    tables[k].append(time.process_time() - learnt)
    small, large = (statistics.median(t) / BATCH * 1e6 for t in whole)
    small_table, large_table = (statistics.median(t) / BATCH * 1e6 for t in tables)
    say(f"learning a sample: {small:.1f} us at {SIZES[0]:,} rows, {large:.1f} us at {SIZES[1]:,}")
    say(f"of which tables: {small_table:.1f} us and {large_table:.1f} us")
    few = f"{SIZES[0]:,} table rows"
    return [
        figure("row_scaling", large, "us/sample", few, large / small),
        figure("row_scaling, tables alone", large_table, "us/sample", few, large_table / small_table),
        figure("bytes_per_row", per_row, "bytes"),
        figure("table_resident", per_row * SIZES[1] / 1e9, "GB"),
    ]


def fastest_products() -> str:
    """Millrace's setting for this processor: bfloat16 where it computes in it, not only emulates it."""
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def run(out_dir: Path, progress: Say) -> Iterator[Figure]:
    """The figures of ``millrace dev bench learner``, each part's when it is done."""
    with threads(1):
        data, test = Data(ROWS, 0), Data(20_000, 1)
        yield from wide_deep(data, test, fastest_products(), progress)
        yield from wide_resnet(data, test, progress)
        yield from scaling(progress)
