# core
"""An OpenAPI 3.1 description of an HTTP server, made from its table of routes and the types of requests and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from millrace import __version__

Schema = dict[str, Any]


class Alive(Struct, frozen=True):
    """Answer of GET /healthz."""

    alive: bool


class Ready(Struct, frozen=True, omit_defaults=True):
    """Whether a server can do its work."""

    ready: bool
    error: Annotated[str, Meta(description="Why not")] = ""


class Failure(Struct, frozen=True):
    """Every answer to a refused or failed request."""

    error: Annotated[str, Meta(description="One line that names the value and the remedy")]


class Described(NamedTuple):
    """A route: its inputs and answers. ``refusals`` are the statuses beside 200 that a caller must expect."""

    method: str
    path: str
    summary: str
    asks: Any  # a type, or several; None: no body
    answers: type[Struct] | None  # None: no JSON, or any
    refusals: tuple[int, ...]
    open: bool = False  # never needs a token


def described(routes: Sequence[Described]) -> str:
    """The routes in words, for the answer to an unknown path."""
    return ", ".join(f"{route.method} {route.path}" for route in routes)


def one_body(schema: Schema) -> Schema:
    """The forms of a body that is one JSON value."""
    return {"application/json": {"schema": schema}}


def description(
    title: str,
    about: str,
    routes: Sequence[Described],
    why: Mapping[int, str],
    *,
    instead: Mapping[int, type[Struct]] | None = None,
    names: Mapping[str, Schema] | None = None,
    bodies: Callable[[Schema], Schema] = one_body,
    again: Sequence[int] = (),
) -> dict[str, Any]:
    """The whole document.

    Args:
        why: meaning of each refusal status.
        instead: the answer of a refusal with this status, if it is not :class:`Failure`. A route that answers
            :class:`Ready` does so with 503 too.
        names: a schema for each name in the routes' paths.
        bodies: from the schema of a request, the forms in which it may come.
        again: statuses that come with ``Retry-After``.
    """
    others = instead or {}
    kinds = list(
        dict.fromkeys(
            [Failure, *others.values(), *(k for r in routes for k in (*_each(r.asks), r.answers) if k is not None)]
        )
    )
    refs, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    ref = dict(zip(kinds, refs, strict=True))
    after = {"schema": {"type": "integer"}, "description": "Seconds until the same may be sent again"}

    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        ok: Schema = {"description": "Done"} | ({"content": one_body(ref[route.answers])} if route.answers else {})
        responses: dict[str, Any] = {"200": ok}
        for status in route.refusals:
            kind = route.answers if status == 503 and route.answers is Ready else others.get(status, Failure)
            responses[str(status)] = {"description": why[status], "content": one_body(ref[kind])}
            if status in again and kind is Failure:
                responses[str(status)]["headers"] = {"Retry-After": after}
        call: Schema = {"summary": route.summary, "responses": responses}
        if route.open:
            call["security"] = []
        if route.asks is not None:
            asked = [ref[kind] for kind in _each(route.asks)]
            content = bodies(asked[0] if len(asked) == 1 else {"anyOf": asked})
            call["requestBody"] = {"required": True, "content": content}
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": schema}
            for name, schema in (names or {}).items()
            if f"{{{name}}}" in route.path
        ]
        if parameters:
            call["parameters"] = parameters
        paths.setdefault(route.path, {})[route.method.lower()] = call
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": about},
        "paths": paths,
        "security": [{}, {"bearer": []}],  # none where no token is set
        "components": {"schemas": components, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _each(asks: Any) -> Sequence[Any]:
    return asks if isinstance(asks, tuple) else (asks,)
