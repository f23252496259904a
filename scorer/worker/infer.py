# core
"""An API for clients that only want scores: the Open Inference Protocol (version 2, as KServe, Triton and others speak
it), over :meth:`scorer.page.page_service.Serving.score_items`.

Input tensors: ``user_id`` (1,), ``item_id`` (n,), optionally ``ts_ms`` (1,) and the schema's context fields (1,) each.
Output: ``score`` (n,), and ``known`` (n,): false for an item that is not in the catalogue, whose score is 0. Data is
JSON, without the protocol's binary extension. Nothing is logged or learnt.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from millrace import __version__
from millrace.basics.openapi import Ready
from millrace.contracts.events import MAX_DEPTH
from millrace.contracts.schema import DERIVED, Schema
from scorer.page import page_wire
from scorer.page.page_service import Serving
from scorer.page.page_wire import MAX_SCORED, RequestError

MODEL = "millrace"
"""The name of the only model: the serving one."""

Datatype = Literal["BOOL", "INT32", "INT64", "FP32", "FP64", "BYTES"]
_IDS: tuple[Datatype, ...] = ("INT64", "BYTES")
_KINDS: dict[Datatype, tuple[type, ...]] = {
    "BYTES": (str,),
    "BOOL": (bool,),
    "FP32": (int, float),
    "FP64": (int, float),
    "INT32": (int,),
    "INT64": (int,),
}


class InferInput(Struct, frozen=True):
    """A tensor of a request. ``BYTES`` are texts here."""

    name: str
    shape: list[int]
    datatype: Datatype
    data: Annotated[list[Any], Meta(description="The values, flat or nested as `shape` says")]
    parameters: dict[str, Any] = {}


class WantedOutput(Struct, frozen=True):
    """An output that a client asks for."""

    name: Annotated[str, Meta(extra_json_schema={"enum": ["score", "known"]})]
    parameters: dict[str, Any] = {}


class InferRequest(Struct, frozen=True):
    """POST /v2/models/millrace/infer."""

    inputs: list[InferInput]
    id: str | None = None
    outputs: Annotated[list[WantedOutput], Meta(description="Default: all")] = []
    parameters: dict[str, Any] = {}


class InferOutput(Struct, frozen=True):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: Datatype
    data: list[Any]


class InferAnswer(Struct, frozen=True, omit_defaults=True):
    """Answer of /infer. ``parameters.notes`` says in words what was missing."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str | None = None
    parameters: dict[str, str] = {}


class Tensor(Struct, frozen=True):
    """What a tensor may be; -1 in its shape is any length."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """Answer of GET /v2/models/millrace."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ServerMetadata(Struct, frozen=True):
    """Answer of GET /v2."""

    name: str
    version: str
    extensions: list[str]


class Live(Struct, frozen=True):
    """Answer of GET /v2/health/live."""

    live: bool


OUTPUTS = [Tensor("score", "FP32", [-1]), Tensor("known", "BOOL", [-1])]


def inputs_of(schema: Schema) -> list[Tensor]:
    """The tensors of a request; the first two are required. Ids may be INT64 as well."""
    given = [f for f in schema.fields if f.of == "context" and f.name not in DERIVED]
    kinds: dict[str, Datatype] = {"numeric": "FP64", "categorical": "BYTES", "text": "BYTES"}
    context = [Tensor(f.name, kinds[f.kind], [1 if f.slots == 1 or f.kind == "text" else -1]) for f in given]
    return [Tensor("user_id", "BYTES", [1]), Tensor("item_id", "BYTES", [-1]), Tensor("ts_ms", "INT64", [1]), *context]


class InferenceApi:
    """The protocol's calls, over one worker."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._inputs = {tensor.name: tensor for tensor in inputs_of(serving.schema)}

    def server(self) -> ServerMetadata:
        """GET /v2"""
        return ServerMetadata(MODEL, __version__, [])

    def metadata(self, name: str) -> ModelMetadata:
        """GET /v2/models/{name}. Raises RequestError, 404: there is no such model."""
        self._check(name)
        note = self._serving.note
        versions = [str(note.version)] if note else []
        return ModelMetadata(MODEL, versions, "millrace", list(self._inputs.values()), OUTPUTS)

    def ready(self, name: str = MODEL) -> Ready:
        """GET /v2/health/ready, and GET /v2/models/{name}/ready. Raises RequestError, 404: there is no such model."""
        self._check(name)
        reason = self._serving.not_ready()
        return Ready(not reason, reason)

    async def infer(self, name: str, body: bytes) -> InferAnswer:
        """POST /v2/models/{name}/infer. Raises RequestError: an invalid request, an unknown model, or one that is not
        ready."""
        self._check(name)
        asked = page_wire.decode(body, InferRequest)
        known = [tensor.name for tensor in OUTPUTS]
        wanted = {output.name for output in asked.outputs} or known
        for output in wanted:
            if output not in known:
                raise RequestError(f"outputs name {output[:40]!r}", "the outputs are score and known")
        answer = await self._serving.score_items(self._request(asked))
        n = len(answer.scores)
        data: dict[str, list[Any]] = {
            "score": [0.0 if s is None else s for s in answer.scores],
            "known": [s is not None for s in answer.scores],
        }
        tensors = [InferOutput(t.name, [n], t.datatype, data[t.name]) for t in OUTPUTS if t.name in wanted]
        parameters = {"notes": "; ".join(answer.notes)} if answer.notes else {}
        return InferAnswer(MODEL, str(answer.model_version), tensors, asked.id, parameters)

    def _request(self, asked: InferRequest) -> page_wire.ScoreRequest:
        """The equivalent request to /score."""
        given: dict[str, list[Any]] = {}
        for tensor in asked.inputs:
            if tensor.name not in self._inputs or tensor.name in given:
                why = "twice" if tensor.name in given else "which is no input"
                raise RequestError(f"inputs name {tensor.name[:40]!r}, {why}", f"the inputs are {_names(self._inputs)}")
            given[tensor.name] = self._values(tensor)
        for name in ("user_id", "item_id"):
            if name not in given:
                raise RequestError(f"inputs do not name '{name}'", f"the inputs are {_names(self._inputs)}")
        context = {}
        for name, values in given.items():
            if name not in ("user_id", "item_id", "ts_ms"):
                context[name] = values[0] if self._inputs[name].shape == [1] else values
        request = {"user_id": given["user_id"][0], "items": given["item_id"], "context": context}
        if "ts_ms" in given:
            request["ts_ms"] = given["ts_ms"][0]
        try:
            return msgspec.convert(request, page_wire.ScoreRequest)
        except msgspec.ValidationError as error:
            raise RequestError(f"bad request: {error}", "docs/reference/http-api.md describes the tensors") from None

    def _values(self, tensor: InferInput) -> list[Any]:
        """The values of a tensor, flat, checked against its shape and type."""
        known = self._inputs[tensor.name]
        ids = tensor.name in ("user_id", "item_id")
        if ids and tensor.datatype not in _IDS:
            raise RequestError(f"input '{tensor.name}' has datatype {tensor.datatype}", "ids are BYTES or INT64")
        if len(tensor.shape) > MAX_DEPTH:
            problem = f"input '{tensor.name}' has a shape of {len(tensor.shape)} lengths"
            raise RequestError(problem, f"give at most {MAX_DEPTH}; its data may be flat")
        values = _flat(tensor.name, tensor.data)
        size = math.prod(max(0, length) for length in tensor.shape)
        if size != len(values) or not values or (known.shape == [1] and size != 1):
            shape = "[1]" if known.shape == [1] else f"[n], n up to {MAX_SCORED}"
            problem = f"input '{tensor.name}' of shape {tensor.shape[:4]} has {len(values)} values"
            raise RequestError(problem, f"give as many as its shape says; it is {shape}")
        kinds = _KINDS[tensor.datatype]
        for value in values:
            if not isinstance(value, kinds) or (isinstance(value, bool) and tensor.datatype != "BOOL"):
                problem = f"input '{tensor.name}' holds {str(value)[:40]!r}, which is no {tensor.datatype}"
                raise RequestError(problem, "name the datatype that the values have")
        return values

    @staticmethod
    def _check(name: str) -> None:
        if name != MODEL:
            raise RequestError(f"there is no model {name[:40]!r}", f"the model is called '{MODEL}'", 404)


def _flat(name: str, data: list[Any], depth: int = 1) -> list[Any]:
    """Flattens nested lists. Raises RequestError for too deep nesting."""
    if depth > MAX_DEPTH:
        raise RequestError(f"input '{name}' is nested deeper than {MAX_DEPTH} levels", "flatten its data")
    return [v for one in data for v in (_flat(name, one, depth + 1) if isinstance(one, list) else [one])]


def _names(inputs: dict[str, Tensor]) -> str:
    return ", ".join(inputs)
