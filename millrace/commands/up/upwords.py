# core
"""What `millrace up` says: where everything is, what it waits for, and a first request to copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from millrace.contracts.schema import DERIVED, Schema

CATALOGUE = "no items yet"
"""How the scorer's reason begins when it waits for nothing but a catalogue."""


def welcome(found: Mapping[str, Any], data: str, scrape: str, prefix: str = "") -> list[str]:
    topics = ", ".join(prefix + topic for topic in ("items", "users", "events"))
    metrics = "  ".join(f"{role} {url}" for role, url in found["metrics"].items())
    return [
        f"millrace is up. Its data lasts in {data}: the same command goes on from there. Ctrl-C ends it.",
        f"  scorer   {found['scorer']}   POST /recommend",
        f"  intake   {found['intake']}   POST /items, /users, /events",
        f"  page     {found['page']}",
        f"  learner  {found['admin']}   GET /model: what is promoted, and why nothing newer is",
        f"  Kafka    {found['kafka']}   topics {topics}: the other way in",
        f"  Redis    {found['redis']}",
        f"  metrics  {metrics}",
        f"  Prometheus can scrape by {scrape}",
    ]


def first_item(schema: Schema, intake: str, token: bool) -> str:
    attributes: dict[str, object] = {}
    for field in schema.fields:
        if field.of == "item" and field.name not in {*DERIVED, schema.ids[1]} and field.kind != "vector":
            attributes[field.name] = 1.0 if field.kind == "numeric" else "a"
    body = json.dumps({"item_id": "1", "attributes": attributes})
    return f"curl -s {_bearer(token)}{intake}/items -d '{body}'"


def first_page(scorer: str, token: bool) -> str:
    return f"curl -s {_bearer(token)}{scorer}/recommend -d '" + '{"user_id": "u1", "size": 10}\''


def _bearer(token: bool) -> str:
    return "-H 'Authorization: Bearer TOKEN' " if token else ""


def awaited(reason: str, intake: str) -> str:
    """What the loop waits for, and who can bring it; empty: nothing.

    Args:
        reason: why the scorer is not ready; empty: it is.

    >>> awaited("no items yet; send the catalogue to the topic items", "http://127.0.0.1:8720")
    'waiting for items. Send your catalogue: POST http://127.0.0.1:8720/items'
    """
    if not reason:
        return ""
    if reason.startswith(CATALOGUE):
        return f"waiting for items. Send your catalogue: POST {intake}/items"
    return f"the scorer is not ready: {reason}"
