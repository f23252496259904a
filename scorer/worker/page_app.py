# shell
"""The scorer's HTTP routes, as one worker answers them; see ``docs/reference/http-api.md``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.processes.wall import wall_ms
from millrace.versions.versioning import Announcement
from scorer.ipc.meters import REQUEST_SECONDS, REQUESTS, ScorerMeters
from scorer.page.item_pages import ItemPages
from scorer.page.page_service import Serving
from scorer.page.page_wire import MAX_BODY_BYTES, RequestError
from scorer.worker import infer
from scorer.worker.infer import InferenceApi
from scorer.worker.scorer_openapi import ROUTES, described, description

log = structlog.get_logger("scorer")

BODY_SECONDS = 10.0
"""Timeout for a body: one that never comes would occupy a place among the concurrent requests for ever."""

_json = msgspec.json.Encoder()


class FiguresSource(Protocol):
    """Figures of the whole scorer; None: not available."""

    async def model(self) -> dict[str, Any] | None: ...

    async def metrics(self) -> bytes | None: ...


def make_app(serving: Serving, meters: ScorerMeters, figures: FiguresSource) -> Starlette:
    inference, pages, described_api = InferenceApi(serving), ItemPages(serving), _json.encode(description())

    async def recommend(request: Request) -> Response:
        return await _answer("recommend", request, serving.recommend, meters)

    async def score(request: Request) -> Response:
        return await _answer("score", request, serving.score, meters)

    async def similar(request: Request) -> Response:
        return await _answer("similar", request, pages.similar, meters)

    async def popular(request: Request) -> Response:
        return await _answer("popular", request, pages.popular, meters)

    async def item(request: Request) -> Response:
        try:
            return _respond(pages.item(request.path_params["id"]))
        except RequestError as error:
            return _failed(error)

    async def model(_: Request) -> Response:
        found = await figures.model()
        return _no_feeder() if found is None else _respond(found)

    async def healthz(_: Request) -> Response:
        return _respond({"alive": True})

    async def readyz(_: Request) -> Response:
        reason = serving.not_ready()
        return _respond({"ready": False, "error": reason}, 503) if reason else _respond({"ready": True})

    async def metrics(_: Request) -> Response:
        found = await figures.metrics()
        return _no_feeder() if found is None else Response(found, media_type=CONTENT_TYPE_LATEST)

    async def openapi(_: Request) -> Response:
        return Response(described_api, media_type="application/json")

    async def server(_: Request) -> Response:
        return _respond(inference.server())

    async def live(_: Request) -> Response:
        return _respond(infer.Live(True))

    async def ready(request: Request) -> Response:
        try:
            found = inference.ready(request.path_params.get("name", infer.MODEL))
        except RequestError as error:
            return _failed(error)
        return _respond(found, 200 if found.ready else 503)

    async def metadata(request: Request) -> Response:
        try:
            return _respond(inference.metadata(request.path_params["name"]))
        except RequestError as error:
            return _failed(error)

    async def infers(request: Request) -> Response:
        name = request.path_params["name"]
        return await _answer("infer", request, lambda body: inference.infer(name, body), meters)

    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {"error": f"{request.method} {request.url.path} is not served; use {described()}"}
        return _respond(said, error.status_code, error.headers)

    handlers = {
        "/recommend": recommend,
        "/score": score,
        "/similar": similar,
        "/popular": popular,
        "/items/{id}": item,
        "/model": model,
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": metrics,
        "/openapi.json": openapi,
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/v2/models/{name}": metadata,
        "/v2/models/{name}/ready": ready,
        "/v2/models/{name}/infer": infers,
    }
    routes = [
        Route(route.path.replace("{id}", "{id:path}"), handlers[route.path], methods=[route.method]) for route in ROUTES
    ]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


def model_facts(
    note: Announcement | None,
    schema_id: str,
    meters: ScorerMeters,
    errors: dict[str, int],
    retrieval: dict[str, int] | None = None,
) -> dict[str, Any]:
    """The facts of GET /model on the version ``note``. ``retrieval``: the workers' retrieval version; None: they have
    none."""
    return {
        "version": note.version if note else -1,
        "hash": note.hash if note else "",
        "schema_id": schema_id,
        "spec": note.spec if note else {},
        "event_ms": note.event_ms if note and note.event_ms > 0 else None,
        "trained": note.trained if note else 0,
        "age_ms": wall_ms() - note.published_ms if note else None,
        "click_to_served_ms": meters.click_to_served(),
        "versions_served": meters.versions_served,
        "gaps": meters.gaps,
        "loads": meters.loads,
        "errors": sum(errors.values()),
        "errors_by_kind": {kind: count for kind, count in errors.items() if count},
        "retrieval": retrieval,
    }


def retrieval_facts(epoch: int, version: int, clicks: int) -> dict[str, int]:
    return {"epoch": epoch, "version": version, "clicks": clicks}


async def _answer(
    route: str, request: Request, handle: Callable[[bytes], Awaitable[Any]], meters: ScorerMeters
) -> Response:
    started, status = time.perf_counter(), 500
    try:
        response = _respond(await handle(await _body(request)))
        status = 200
    except RequestError as error:
        status = error.status
        response = _failed(error)
    except ClientDisconnect:  # nobody waits for an answer
        status = 499
        response = Response(status_code=status)
    except Exception as error:  # the client gets one line, the log the rest
        meters.error("request")
        log.error("request failed", route=route, error=f"{type(error).__name__}: {error}", exc_info=True)
        response = _respond({"error": f"internal error ({type(error).__name__}); see the scorer's log"}, 500)
    REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
    REQUESTS.labels(route, str(status)).inc()
    return response


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    stream: AsyncIterator[bytes] = request.stream()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in stream:
                size += len(part)
                if size > MAX_BODY_BYTES:
                    problem = f"the body is larger than {MAX_BODY_BYTES} bytes"
                    raise RequestError(problem, "ask in smaller requests", 413)
                parts.append(part)
    except TimeoutError:
        problem = f"{size} bytes of the body came in {BODY_SECONDS:g} seconds, and not its end"
        raise RequestError(problem, "send the whole body at once", 408) from None
    return b"".join(parts)


def _respond(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_json.encode(content), status, headers, media_type="application/json")


def _failed(error: RequestError) -> Response:
    return _respond({"error": " ".join(str(error).split())}, error.status)


def _no_feeder() -> Response:
    return _respond({"error": "the scorer's main process does not answer; ask again in a moment"}, 503)
