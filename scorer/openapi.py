# core
"""The API's description at ``/openapi.json`` (OpenAPI 3.1), made from the very types that requests are decoded by and
answers are encoded from. A test holds :data:`ROUTES` against the routes of the application and against its answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from millrace import __version__
from scorer import infer, wire


class Times(Struct, frozen=True):
    """Percentiles in ms; null: no clicks yet."""

    p50: float | None
    p99: float | None
    count: int


class ClickTimes(Times, frozen=True):
    """Over all clicks since the start, and over the ``recent`` 10,000."""

    recent: Times


class RetrievalVersion(Struct, frozen=True):
    """The retrieval head's version whose vectors recall looks in, and how many clicks it has learnt from."""

    epoch: int
    version: int
    clicks: int
    index_recall: float | None = None  # measured, of an approximate index


class ModelAnswer(Struct, frozen=True):
    """Answer of GET /model."""

    version: int
    hash: str
    schema_id: str
    spec: dict[str, Any]
    event_ms: int | None
    trained: int
    age_ms: int | None
    click_to_served_ms: ClickTimes
    versions_served: int
    gaps: int
    loads: int
    errors: int
    errors_by_kind: dict[str, int]
    retrieval: RetrievalVersion | None  # None: recall does without


class Alive(Struct, frozen=True):
    """Answer of GET /healthz."""

    alive: bool


class Described(NamedTuple):
    """A route: what it takes and gives. ``refusals`` are the statuses beside 200 that a caller must expect."""

    method: str
    path: str
    summary: str
    asks: type[Struct] | None
    answers: type[Struct] | None  # None: no JSON
    refusals: tuple[int, ...]


_POST = (400, 408, 413, 500, 503)
ROUTES = (
    Described("POST", "/recommend", "The best items for a user", wire.RecommendRequest, wire.RecommendAnswer, _POST),
    Described("POST", "/score", "Click probabilities of given items", wire.ScoreRequest, wire.ScoreAnswer, _POST),
    Described("GET", "/model", "The model that serves, and how fresh it is", None, ModelAnswer, ()),
    Described("GET", "/healthz", "Whether the process lives", None, Alive, ()),
    Described("GET", "/readyz", "Whether pages can be ranked", None, infer.Ready, (503,)),
    Described("GET", "/metrics", "Figures for Prometheus", None, None, ()),
    Described("GET", "/openapi.json", "This description", None, None, ()),
    Described("GET", "/v2", "Open Inference Protocol: the server", None, infer.ServerMetadata, ()),
    Described("GET", "/v2/health/live", "Open Inference Protocol", None, infer.Live, ()),
    Described("GET", "/v2/health/ready", "Open Inference Protocol", None, infer.Ready, (503,)),
    Described("GET", "/v2/models/{name}", "Open Inference Protocol: the model", None, infer.ModelMetadata, (404,)),
    Described("GET", "/v2/models/{name}/ready", "Open Inference Protocol", None, infer.Ready, (404, 503)),
    Described(
        "POST",
        "/v2/models/{name}/infer",
        "Open Inference Protocol: scores of items for a user",
        infer.InferRequest,
        infer.InferAnswer,
        (400, 404, 408, 413, 500, 503),
    ),
)
_WHY = {
    400: "No JSON, a wrong type, an unknown field, a value out of its range",
    404: "There is no such model",
    408: "The body did not come in time",
    413: "The body is too large",
    500: "A bug; the scorer's log has the details",
    503: "Not ready, or too many requests in work: ask again",
}


def described() -> str:
    """The routes in words, for the answer to a path that is none."""
    return ", ".join(f"{route.method} {route.path}" for route in ROUTES)


def description() -> dict[str, Any]:
    """The whole document."""
    kinds = [wire.Failure, *(k for route in ROUTES for k in (route.asks, route.answers) if k is not None)]
    refs, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    ref = dict(zip(kinds, refs, strict=True))

    def content(kind: type[Struct]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": ref[kind]}}}

    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        ok: dict[str, Any] = {"description": "Done"} | (content(route.answers) if route.answers else {})
        responses: dict[str, Any] = {"200": ok}
        for status in route.refusals:
            is_ready = status == 503 and route.answers is infer.Ready
            kind = infer.Ready if is_ready else wire.Failure
            responses[str(status)] = {"description": _WHY[status], **content(kind)}
        call: dict[str, Any] = {"summary": route.summary, "responses": responses}
        if route.asks:
            call["requestBody"] = {"required": True, **content(route.asks)}
        if "{name}" in route.path:
            name = {"type": "string", "const": infer.MODEL}
            call["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": name}]
        paths.setdefault(route.path, {})[route.method.lower()] = call
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace scorer",
            "version": __version__,
            "description": "Ranks and scores the items of a shop for its users. In words: docs/api.md.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
