# core
"""The intake's description at ``/openapi.json``: its routes, for :mod:`millrace.basics.openapi`."""

from __future__ import annotations

from typing import Any

from millrace.basics import openapi
from millrace.basics.openapi import Alive, Described, Ready, Schema
from millrace.contracts.events import Event, Item, ItemChange, User
from stream.intake.intake_wire import LINES_TYPES, MAX_LINES, Taken
from stream.intake.vendor_events import TABLES

_POST = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503)
_DELETE = (401, 403, 422, 429, 500, 503)
ROUTES = (
    Described("POST", "/events", "Exposures, clicks and what follows", Event, Taken, _POST),
    *(Described("POST", f"/events/{name}", f"Events of {name}", dict[str, Any], Taken, _POST) for name in TABLES),
    Described("POST", "/users", "Users with their attributes", User, Taken, _POST),
    Described("POST", "/items", "Items of the catalogue, or changes of some", (Item, ItemChange), Taken, _POST),
    Described("DELETE", "/users/{id}", "Forget a user", None, Taken, _DELETE),
    Described("DELETE", "/items/{id}", "Take an item out of the catalogue", None, Taken, _DELETE),
    Described("GET", "/healthz", "Whether the process lives", None, Alive, (), open=True),
    Described("GET", "/readyz", "Whether the broker takes messages", None, Ready, (503,), open=True),
    Described("GET", "/openapi.json", "This description", None, None, (401, 403)),
)
_WHY = {
    400: "The body as a whole cannot be read",
    401: "No token, or one that is not known",
    403: "No token is set, and the request is of a web page of elsewhere, or for another host",
    408: "The body did not come in time",
    413: "The body is too large, or holds too many messages",
    415: "The body is compressed",
    422: "Every line is refused; the verdicts say why",
    429: "Too many messages wait: send the same again after Retry-After seconds",
    500: "A bug; the intake's log has the details",
    503: "The broker does not take messages: send the same again after Retry-After seconds",
}


def described() -> str:
    """The routes as text, for the answer to an unknown path."""
    return openapi.described(ROUTES)


def description() -> dict[str, Any]:
    made = openapi.description(
        "Millrace intake",
        "Takes a shop's events, users and items. In words: docs/how-to/send-events.md.",
        ROUTES,
        _WHY,
        instead={422: Taken},
        names={"id": {"type": "string", "minLength": 1, "maxLength": 200}},
        bodies=_bodies,
        again=(429, 503),
    )
    for schema in made["components"]["schemas"].values():
        if "ts_ms" in schema.get("required", ()):  # of an event: without it, when the intake got it
            schema["required"].remove("ts_ms")
    return made


def _bodies(one: Schema) -> Schema:
    many = {"type": "array", "items": one, "maxItems": MAX_LINES}
    lines = {"schema": {"type": "string", "description": f"One object a line, at most {MAX_LINES}"}}
    return {"application/json": {"schema": {"anyOf": [one, many]}}, LINES_TYPES[0]: lines}
