# core
"""The API's description at ``/openapi.json``, by :mod:`millrace.basics.openapi`. A test compares :data:`ROUTES` with
the application's routes and answers."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from millrace.basics import openapi
from millrace.basics.openapi import Alive, Described, Ready
from scorer.page import page_wire
from scorer.worker import infer


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


class PageArithmetic(Struct, frozen=True):
    """What pages are computed in, and why: see docs/internals/serving.md."""

    arithmetic: str
    ms: dict[str, float]
    error: dict[str, float]
    bound: float
    measured: bool
    of: str


class LearnerVersion(Struct, frozen=True):
    """The version of a learner beside the first, whose model makes the pages of an arm; -1: there is none yet."""

    version: int
    hash: str
    spec: dict[str, Any]
    retrieval: RetrievalVersion | None


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
    arithmetic: PageArithmetic | None = None  # None: no model yet, or one whose passes are not written out
    learners: dict[str, LearnerVersion] = {}  # by name, where arms name any


_POST = (400, 401, 403, 408, 413, 500, 503)
_PAGE = (400, 401, 403, 408, 410, 413, 500, 503)
ROUTES = (
    Described(
        "POST", "/recommend", "The best items for a user", page_wire.RecommendRequest, page_wire.RecommendAnswer, _PAGE
    ),
    Described(
        "POST", "/score", "Click probabilities of given items", page_wire.ScoreRequest, page_wire.ScoreAnswer, _POST
    ),
    Described("POST", "/similar", "Items like one", page_wire.SimilarRequest, page_wire.RecommendAnswer, _POST),
    Described(
        "POST", "/popular", "The items with most clicks", page_wire.ListRequest, page_wire.RecommendAnswer, _POST
    ),
    Described("GET", "/items/{id}", "What pages know of an item", None, page_wire.ItemAnswer, (401, 403, 404)),
    Described("GET", "/model", "The model that serves, and how fresh it is", None, ModelAnswer, (401, 403, 503)),
    Described("GET", "/healthz", "Whether the process lives", None, Alive, (), open=True),
    Described("GET", "/readyz", "Whether pages can be ranked", None, Ready, (503,), open=True),
    Described("GET", "/metrics", "Figures for Prometheus", None, None, (401, 503)),
    Described("GET", "/openapi.json", "This description", None, None, (401, 403)),
    Described("GET", "/v2", "Open Inference Protocol: the server", None, infer.ServerMetadata, (401, 403)),
    Described("GET", "/v2/health/live", "Open Inference Protocol", None, infer.Live, (), open=True),
    Described("GET", "/v2/health/ready", "Open Inference Protocol", None, Ready, (503,), open=True),
    Described(
        "GET", "/v2/models/{name}", "Open Inference Protocol: the model", None, infer.ModelMetadata, (401, 403, 404)
    ),
    Described("GET", "/v2/models/{name}/ready", "Open Inference Protocol", None, Ready, (401, 403, 404, 503)),
    Described(
        "POST",
        "/v2/models/{name}/infer",
        "Open Inference Protocol: scores of items for a user",
        infer.InferRequest,
        infer.InferAnswer,
        (400, 401, 403, 404, 408, 413, 500, 503),
    ),
)
_WHY = {
    400: "No JSON, a wrong type, an unknown field, a value out of its range",
    401: "No token, or one that is not known",
    403: "No token is set, and the request is of a web page of elsewhere, or for another host",
    404: "There is no such model, or item",
    408: "The body did not come in time",
    410: "The list that the cursor names had filters and is no longer kept",
    413: "The body is too large",
    500: "A bug; the scorer's log has the details",
    503: "Not ready, or too many requests in work: ask again",
}


def described() -> str:
    """The routes in words, for the answer to an unknown path."""
    return openapi.described(ROUTES)


def description() -> dict[str, Any]:
    return openapi.description(
        "Millrace scorer",
        "Ranks and scores the items of a shop for its users. In words: docs/reference/http-api.md.",
        ROUTES,
        _WHY,
        names={
            "name": {"type": "string", "const": infer.MODEL},
            "id": {"type": "string", "minLength": 1, "maxLength": 200},
        },
    )
