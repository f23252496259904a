# core
"""Unusable messages, as faulty clients send them. They are extra messages and replace no real event."""

from __future__ import annotations

import numpy as np

from millrace.contracts.events import MAX_EVENT_BYTES, Click, Id, to_json

KINDS = ("malformed", "unknown-type", "wrong-type", "future", "oversized")
"""The stream's reasons for refusing them."""
SHARES = (0.32, 0.22, 0.22, 0.22, 0.02)
FAR_AHEAD = 24  # an event from the future lies this many times ``MAX_AHEAD_MS`` ahead


def bad_message(rng: np.random.Generator, event_id: str, user: Id, now_ms: int, ahead_ms: int) -> tuple[str, bytes]:
    """A random kind, and a message of it, smaller than a broker's usual limit of 1 MB."""
    kind = KINDS[int(rng.choice(len(KINDS), p=SHARES))]
    return kind, bad_message_of(kind, rng, event_id, user, now_ms, ahead_ms)


def bad_message_of(kind: str, rng: np.random.Generator, event_id: str, user: Id, now_ms: int, ahead_ms: int) -> bytes:
    valid = Click(event_id, f"{event_id}-page", now_ms, user, int(rng.integers(1, 10**6)), int(rng.integers(0, 20)))
    raw = to_json(valid)
    if kind == "malformed":
        return raw[: int(rng.integers(1, len(raw) - 1))]  # the connection broke
    if kind == "unknown-type":
        return raw.replace(b'"click"', b'"hover"', 1)
    if kind == "wrong-type":
        return raw.replace(b'"ts_ms":%d' % now_ms, b'"ts_ms":"yesterday"', 1)
    if kind == "future":
        return to_json(
            Click(valid.event_id, valid.request_id, now_ms + FAR_AHEAD * ahead_ms, user, valid.item_id, valid.position)
        )
    return raw[:-1] + b',"note":"' + b"x" * (MAX_EVENT_BYTES + int(rng.integers(1, 100_000))) + b'"}'
