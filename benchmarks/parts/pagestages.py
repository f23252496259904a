# shell
"""Where the processor time of a page of 20 out of 1,000 candidates goes, beside the same network in ONNX Runtime.

One process and one thread run what a worker runs for a page, but for HTTP, Redis and the ring. ONNX Runtime (float32,
1,000 rows) computes behind each page: both meet the same machine and caches that hold something else.
"""

from __future__ import annotations

import io
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from torch import nn

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import cpu_s
from experiments.recall.recallloop import Pupil
from experiments.recall.recallshop import RecallShop
from learner.network.dense import threads
from learner.network.forward import PageForward
from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from learner.training.evolve import evolve
from millrace.contracts.events import MODEL
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.schema import Among
from millrace.evidence.rerank import Rerank
from millrace.versions.image import HEAD, split
from millrace.windows.features import FeatureBuilder
from scorer.catalog import pagekernels
from scorer.feeder.arithmetic import ArithmeticChoice
from scorer.page.candidates import Recaller
from scorer.page.rank import Ranker
from scorer.page.reranking import PageDraw, Pins, Reranker
from scorer.page.worth import log_worth, terms
from scorer.users.userrecord import KnownUser

ONNX = "ONNX Runtime float32"
CANDIDATES, SIZE, WARM = 1000, 20, 20
AMONG = tuple(Among(f"item_id.{n}.{span}") for n in ("click_rate", "exposure") for span in ("1d", "7d"))
"""What a schema may declare beside the shop's: twelve numbers among candidates."""
DIVERSE = Rerank(1.0, {"category": {"1": 2.0}}, {"1": 0})
"""Re-ranking of three kinds."""
ORDER = OutcomeRule("order", on="click", event="purchase", within="30d", value="price")
WORTH = Rerank(weights={"click": 0.1, "order": 1.0})
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("user", KnownUser, "of"),
    ("recall", Recaller, "page"),
    ("features", pagekernels, "make"),
    ("numbers", pagekernels, "feed"),
    ("embeddings", ServingModel, "score_page"),
    ("network", PageForward, "page"),
    ("logged_rows", Ranker, "placed"),
)


def _timed(seconds: defaultdict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        began = time.thread_time()
        found = call(*given, **named)
        seconds[name] += time.thread_time() - began
        return found

    return run


class OnnxForward:
    """The network of a model in ONNX Runtime, one thread; nothing, and no figure, where that is not installed."""

    def __init__(self, model: OnlineModel, say: Say) -> None:
        self._ms: list[float] = []
        try:
            import onnx  # noqa: F401 - the exporter does
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError as error:
            say(f"{ONNX} is not installed ({error}); install the extra 'bench' to compare with it")
            self._session = None
            return
        network: Any = model.network
        self._x = np.random.default_rng(0).standard_normal((CANDIDATES, network.shape.flat), np.float32)
        flat, written = nn.Sequential(network.units, network.out).eval(), io.BytesIO()
        with warnings.catch_warnings(action="ignore"):  # of the exporter, which needs one package less than its heir
            torch.onnx.export(flat, (torch.from_numpy(self._x),), written, dynamo=False, input_names=["x"])  # type: ignore[arg-type]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(written.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(self) -> None:
        if self._session is not None:
            self._ms.append(1000 * cpu_s(partial(self._session.run, None, {"x": self._x})))

    def take_ms(self) -> float:
        """The median of the passes since the last call; NaN of none."""
        ms, self._ms = self._ms, []
        return float(np.median(ms)) if ms else float("nan")


class Pages(NamedTuple):
    """How pages are made."""

    shop: RecallShop
    ranker: Ranker
    serving: ServingModel
    reranker: Reranker
    how: Rerank = Rerank()

    def make(self, user: int, record: dict[bytes, bytes], seed: int) -> None:
        shop, how, alive = self.shop, self.how, self.shop.items.alive
        known, arm = KnownUser.of(shop.builder, user + 1, record), shop.arms.named(MODEL)
        rows = shop.recall(known, shop.now_ms, CANDIDATES, seed)
        ranked = self.ranker.rank(known, rows, shop.now_ms, {}, self.serving, outcomes=bool(how.weights))
        pins, wanted = (
            Pins.of(how, SIZE, shop.items, alive),
            PageDraw(SIZE, SIZE, len(rows), False, (0, seed), shop.now_ms),
        )
        parts = terms(self.ranker.builder.schema, ranked, how.weights) if how.weights else None
        worth, scores = None if parts is None else log_worth(parts), ranked.scores
        placed = self.reranker.place(how, arm, rows, scores, pins, alive[rows], wanted, shop.retrieval, worth)
        order = placed.order[pins.put(rows[placed.order])]
        self.ranker.placed(ranked, order, known, rows, shop.now_ms)


def page_stages(shop: RecallShop, model: OnlineModel, pages: int, say: Say) -> Iterator[Figure]:
    """Milliseconds of each stage, their ratios to ONNX Runtime's pass, ``forward_ratio``, that of the network; what
    :data:`DIVERSE`, :data:`AMONG` and :data:`WORTH` cost, to a plain page. :data:`ORDER` has rows of its own, as many
    as the click."""
    onnx, took = OnnxForward(model, say), defaultdict[str, float](float)
    users = np.random.default_rng(1).integers(0, shop.world.shoppers.n, WARM + pages).tolist()
    ranker, _ = split(model.snapshot()[0])
    with threads(1), ExitStack() as stack:
        writer = ModelWriter.of(shop.schema, model.spec, ranker, choose=ArithmeticChoice(time.thread_time))
        serving = ServingModel.attach(shop.schema, model.spec, writer.base())
        Pupil(model, 1).renew(shop)
        for name, owner, verb in STAGES:
            stack.enter_context(patch.object(owner, verb, _timed(took, name, getattr(owner, verb))))

        plain = Pages(shop, shop.ranker, serving, Reranker(shop.filters, [DIVERSE]))
        whole = _timed(took, "all", plain.make)
        for number, user in enumerate(users):
            if number == WARM:
                took.clear()
                onnx.take_ms()
            whole(user, shop.record(user), number)
            onnx.run()
    pass_ms = onnx.take_ms()
    took["embeddings"] -= took["numbers"] + took["network"]  # which are within
    took["other"] = 2 * took["all"] - sum(took.values())
    for name, seconds in took.items():
        yield figure(
            f"stage_{name}_ms", 1000 * seconds / pages, "ms CPU / page", ONNX, 1000 * seconds / pages / pass_ms
        )
    yield figure("forward_ratio", 1000 * took["network"] / pages / pass_ms, f"x, in {serving.arithmetic}", ONNX)
    yield page_cost("rerank", plain, plain._replace(how=DIVERSE), users)
    for part, more, how in (("among", {"among": AMONG}, Rerank()), ("weights", {"outcome": (ORDER,)}, WORTH)):
        schema = msgspec.structs.replace(shop.schema, **more)
        grown, _ = evolve(model.columns, model.spec, *model.snapshot(), schema, model.spec, 0)
        image = split(grown.snapshot()[0])[0]
        image.tables.update(
            {name: image.tables.get(name.rpartition(HEAD)[2], own) for name, own in image.tables.items()}
        )
        own = ServingModel.of(schema, model.spec, image, arithmetic=serving.arithmetic)
        other = plain._replace(ranker=Ranker(FeatureBuilder(schema), shop.items), serving=own, how=how)
        yield page_cost(part, plain, other, users)


def page_cost(part: str, plain: Pages, other: Pages, users: list[int]) -> Figure:
    """The processor time of another page to that of a plain one, page by page in turn."""
    ms = np.zeros((2, len(users)))
    with threads(1):
        for number, user in enumerate(users):
            record = plain.shop.record(user)
            for way in (0, 1) if number % 2 else (1, 0):
                ms[way, number] = 1000 * cpu_s(partial((plain, other)[way].make, user, record, number))
    base, cost = np.median(ms[:, WARM:], axis=1).tolist()
    return figure(f"{part}_cpu_ratio", cost / base, "x", "a plain page", cost / base)
