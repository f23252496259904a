# shell
"""Scoring as scorers do it: how fast and how exact the network's pass is, and whether any answer mixes versions.

*forward_1000_ms* is the network of the demo's model on 1,000 rows of inputs, in one thread, by CPU time: ours with
bfloat16 products where the processor has matrix units, else in float32, and ONNX Runtime's in float32. They take turns,
:data:`_CALLS` calls each.

*kuairand_auc_bfloat16* replays the log that MILLRACE_TEST_LOG names as ``millrace replay`` does. Each exposure of
the last two days is scored twice, by the learner in float32 and by a model that serves, patched after each batch, in
bfloat16.

*torn_pages* is that of benchmarks/torn.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.runner import BenchError, Figure, Say
from benchmarks.torn import torn_pages
from commands.replay.known import LabelSettings
from commands.replay.run import BATCH_ROWS, run_log
from learner.network.backward import Workspace
from learner.network.dense import threads
from learner.network.forward import Forward, forward_of, matrix_units, prepared
from learner.network.models.wide_resnet import Residual, WideResNet
from learner.ranker.model import OnlineModel
from learner.serving.serving import ServingModel
from millrace.basics.merit import auc
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import local_days, read_log

ROWS = 1000
PAGES = 100_000
LOG = "log_2022-04-24_to_04-30.parquet"

_ROUNDS, _CALLS = 40, 8
_SCHEMA = Path(__file__).parents[1] / "examples" / "kuairand" / "schema.toml"


def run_forward(say: Say) -> list[Figure]:
    """All three figures; that of KuaiRand only where its log is."""
    figures = [forward(say)]
    folder = os.environ.get("MILLRACE_TEST_LOG")
    if folder:
        figures.append(exactness(Path(folder) / LOG, _SCHEMA, say))
    else:
        say("kuairand_auc_bfloat16 is left out: MILLRACE_TEST_LOG names no folder with the KuaiRand log")
    torn = torn_pages(PAGES, matrix_units())
    say(f"{torn['pages']:,} pages under {torn['versions']:,} versions: {torn['torn']} torn")
    return [*figures, _figure("torn_pages", torn["torn"], f"of {torn['pages']}")]


def _figure(name: str, value: float, unit: str, against: str | None = None, other: float | None = None) -> Figure:
    ratio = None if other is None else value / other
    return {"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio}


# -- speed -------------------------------------------------------------------------------------------------------------


def forward(say: Say) -> Figure:
    """Milliseconds of the pass over 1,000 rows, against ONNX Runtime.

    Raises:
        BenchError: onnx or onnxruntime is not installed.
    """
    network = trained(shop_schema())
    x = np.random.default_rng(0).standard_normal((ROWS, network.shape.flat), np.float32)
    halves = forward_of(network, prepared(network))
    ways = {"bfloat16": _ours(halves, x), "float32": _ours(forward_of(network, {}), x), "onnxruntime": peer(network, x)}
    with threads(1):
        exact = ways["onnxruntime"]()
        found = {name: (_median(times), np.abs(way() - exact).max()) for (name, way), times in _alternate(ways)}
    for name, (ms, error) in found.items():
        say(f"forward of {ROWS} rows, {name}: {ms:.2f} ms, at most {error:.1e} from float32's logit")
    own = "bfloat16" if matrix_units() else "float32"
    against = "onnxruntime float32, the same network"
    say(f"the scorer uses {own} here; float32 is {found['float32'][0] / found['onnxruntime'][0]:.2f} of onnxruntime")
    return _figure("forward_1000_ms", found[own][0], "ms", against, found["onnxruntime"][0])


def trained(schema: Schema, spec: Mapping[str, Any] | None = None) -> WideResNet:
    """The demo's network, with other values than it begins with in all of its tensors."""
    network = OnlineModel(schema, spec or {}, 0).serving.eval()
    assert isinstance(network, WideResNet)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def _ours(way: Forward, x: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    room, rows = Workspace(), torch.from_numpy(x)
    return lambda: way.infer(rows, room)


def peer(network: WideResNet, x: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """The same network in ONNX Runtime, one thread: its units without a norm, and the logit.

    Raises:
        BenchError: onnx or onnxruntime is not installed.
    """
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise BenchError(f"{error.name} is not installed", "pip install 'millrace[bench]'") from None
    nodes: list[Any] = []
    values: list[Any] = []

    def gemm(layer: torch.nn.Linear, source: str, into: str) -> None:
        for part, tensor in layer.named_parameters():
            values.append(numpy_helper.from_array(tensor.detach().numpy().copy(), f"{into}.{part}"))
        inputs = [source, f"{into}.weight", f"{into}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [into], transB=1))

    name = "x"
    for k, unit in enumerate(network.units):
        assert isinstance(unit, Residual)
        gemm(unit.w1, name, f"a{k}")
        nodes.append(helper.make_node("Relu", [f"a{k}"], [f"h{k}"]))
        gemm(unit.w2, f"h{k}", f"z{k}")
        nodes.append(helper.make_node("Add", [f"z{k}", name], [f"s{k}"]))
        nodes.append(helper.make_node("Relu", [f"s{k}"], [f"y{k}"]))
        name = f"y{k}"
    gemm(network.out, name, "logit")
    begin = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", x.shape[1]])
    end = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes, "network", [begin], [end], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {"x": x})[0][:, 0]
        return logits

    return run


def _alternate(
    ways: Mapping[str, Callable[[], Any]],
) -> list[tuple[tuple[str, Callable[[], Any]], list[float]]]:
    """CPU seconds of calls that take turns in blocks; the first block of each is left out."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_ROUNDS + 1):
        for name, way in ways.items():
            for _ in range(_CALLS):
                began = time.thread_time()
                way()
                if turn:
                    times[name].append(time.thread_time() - began)
    return [((name, way), times[name]) for name, way in ways.items()]


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds)) * 1e3


# -- exactness ---------------------------------------------------------------------------------------------------------


class Twin:
    """A learner, and beside it, from its exposure ``first`` on, the same model as a scorer with bfloat16 products has
    it. What it answers is the learner's; ``half`` keeps the scorer's answers, of the same exposures in their order."""

    def __init__(self, model: OnlineModel, first: int) -> None:
        self.model, self._left = model, first
        self.serving: ServingModel | None = None
        self.half: list[NDArray[np.float32]] = []

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        exact = self.model.score(cat, num)
        early, self._left = min(self._left, len(cat)), max(0, self._left - len(cat))
        if early < len(cat):
            if self.serving is None:
                self.model.changes()  # what the snapshot has
                image = self.model.snapshot()[0]
                self.serving = ServingModel.of(self.model.schema, self.model.spec, image, half=True)
            self.half.append(self.serving.score(cat, num)[early:])
        return exact

    def learn(self, batch: SampleBatch) -> object:
        report = self.model.learn(batch)
        if self.serving is not None:
            self.serving.patch(self.model.changes())
        return report


def exactness(log: Path, schema: Path, say: Say, seed: int = 0) -> Figure:
    """The AUC of the log's last two days with bfloat16 products, against float32.

    Raises:
        LogError, SchemaError: as :func:`~millrace.logs.read_log`.
    """
    plan = load_schema(schema)
    with threads(1):
        exposures = read_log(log, plan)
        days = np.array(local_days(exposures, plan))
        first = int(np.searchsorted(days, np.unique(days)[-2]))  # a log is in order of time
        twin = Twin(OnlineModel(plan, {}, seed), first)
        exact = run_log(exposures, plan, twin, BATCH_ROWS, lambda _: None, None, LabelSettings.of(Settings()))
    y = exposures.table[exposures.label].to_numpy()
    ours, other = auc(np.concatenate(twin.half), y[first:]), auc(exact[first:], y[first:])
    say(f"AUC of KuaiRand's last two days: {ours:.6f} in bfloat16, {other:.6f} in float32 ({ours - other:+.6f})")
    return _figure("kuairand_auc_bfloat16", ours, "AUC", "float32", other)
