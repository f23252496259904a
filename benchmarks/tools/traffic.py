# core
"""Made traffic of the simulated shop's schema: pages of 20, a tenth of the exposures clicked, some of those bought.

Users and items are drawn by popularity: 4,000 users a day out of 5,000 items of 60 categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from millrace.basics.hashing import column_hash, combine
from millrace.contracts.events import Click, Exposure, Id, PageLog, Purchase, to_json
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from stream.join.join import InputMessage

PAGE = 20
CORE_HOURS = 21.0
USERS, ITEMS, PER_CATEGORY = 4_000, 5_000, 84
HISTORY_DAYS = 7
T0 = 20_000 * 86_400_000
HOUR = 3_600_000

Columns = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]


@dataclass
class Stream:
    """Messages in order of arrival, and the same exposures and actions as columns for :meth:`TileStore.run`."""

    messages: list[InputMessage]
    message_ms: list[int]  # event time of each message
    users: list[Id]  # of whom each message is
    exposures: int
    keys: NDArray[np.uint64]  # (n, K)
    ts_ms: NDArray[np.int64]
    action: NDArray[np.uint8]


def make(
    schema: Schema,
    pages: int,
    users: int,
    items: int,
    hours: float,
    seed: int,
    start_ms: int = T0,
    first: int = 0,
    drawn_from: Sequence[PageLog] = (),
) -> Stream:
    """A stream over ``hours`` of event time, whose first request has the number ``first``. Pages are drawn from
    ``drawn_from``, each with its user; where there are none, users and items are drawn by popularity."""
    rng = np.random.default_rng(seed)
    layout, rates = schema.layout, Rates.of(schema) if drawn_from else None
    of_user = column_hash(np.arange(users))
    categories = -(-items // PER_CATEGORY)
    of_item, of_category = column_hash(np.arange(items)), column_hash(np.arange(categories))
    salts = [layout.key_salt(name) for name in layout.key_names]
    starts = np.sort(start_ms + (rng.random(pages) * hours * HOUR).astype(np.int64))
    events: list[tuple[int, int, str, bytes, Id]] = []
    rows: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]] = []

    def add(ts_ms: int, topic: str, raw: bytes, who: Id) -> None:
        events.append((ts_ms, len(events), topic, raw, who))

    for i, t in enumerate(starts.tolist(), first):
        request = f"request-{i:09d}"
        if drawn_from:
            page = drawn_from[int(rng.integers(len(drawn_from)))]
            served = structs.replace(page, request_id=request, ts_ms=t - 200)
        else:
            user, shown = int(users * rng.random() ** 2), (items * rng.random(PAGE) ** 2).astype(np.int64)
            u, it, cat = of_user[user : user + 1], of_item[shown], of_category[shown % categories]
            same = np.broadcast_to(combine(salts[0], u), PAGE)
            keys = [same, combine(salts[1], cat), combine(salts[2], it), combine(salts[3], u, cat)]
            served = PageLog(
                request, t - 200, user, "model", 1, schema.id, shown.tolist(),
                rng.random(PAGE).astype("<f4").tobytes(), np.column_stack(keys).astype("<u8").tobytes(),
                rng.integers(1, 1 << 62, (PAGE, layout.F)).astype("<i8").tobytes(),
                rng.random((PAGE, layout.N)).astype("<f4").tobytes(),
            )  # fmt: skip
        who, shown_ids, n = served.user_id, served.items, len(served.items)
        own = np.frombuffer(served.keys, "<u8").reshape(n, layout.K)
        add(t - 200, PAGE_LOGS, page_log_bytes(served, rates), who)
        add(t, EVENTS, to_json(Exposure(f"e{i}", request, t, who, shown_ids, 0, t)), who)
        rows.append((own, np.full(n, t), np.zeros(n, np.uint8)))
        for p in np.flatnonzero(rng.random(n) < 0.1).tolist():
            at = t + int(rng.lognormal(10, 1))
            add(at, EVENTS, to_json(Click(f"c{i}-{p}", request, at, who, shown_ids[p], p, at)), who)
            rows.append((own[p : p + 1], np.array([at]), np.ones(1, np.uint8)))
            if rng.random() < 0.1:
                at += 60_000
                add(at, EVENTS, to_json(Purchase(f"p{i}-{p}", request, at, who, shown_ids[p], p, at)), who)
                rows.append((own[p : p + 1], np.array([at]), np.full(1, 4, np.uint8)))
    events.sort(key=lambda e: e[:2])
    offsets, messages = {PAGE_LOGS: 0, EVENTS: 0}, []
    for _, _, topic, raw, _ in events:
        messages.append(InputMessage(topic, offsets[topic], raw))
        offsets[topic] += 1
    k, ts, a = (np.concatenate(c) for c in zip(*rows, strict=True))
    by_time = np.argsort(ts, kind="stable")
    exposures = int((a == 0).sum())
    return Stream(
        messages, [e[0] for e in events], [e[4] for e in events], exposures, k[by_time], ts[by_time], a[by_time]
    )


def history(
    schema: Schema, exposures: int, users: int, items: int, seed: int, days: int = HISTORY_DAYS, end_ms: int = T0
) -> Columns:
    """``days`` before ``end_ms`` as columns, keys drawn as :func:`make` draws them: keys (n, K), times, actions."""
    rng = np.random.default_rng(seed)
    salts = [schema.layout.key_salt(name) for name in schema.layout.key_names]
    user = np.repeat(column_hash((users * rng.random(exposures // PAGE) ** 2).astype(np.int64)), PAGE)
    shown = (items * rng.random(len(user)) ** 2).astype(np.int64)
    category = column_hash(shown % -(-items // PER_CATEGORY))
    alone = [combine(salts[k], of) for k, of in enumerate((user, category, column_hash(shown)))]
    keys = np.column_stack([*alone, combine(salts[3], user, category)])
    start = end_ms - days * 24 * HOUR
    ts_ms = np.repeat(np.sort(rng.integers(start, end_ms, len(user) // PAGE)), PAGE)
    clicked = np.flatnonzero(rng.random(len(user)) < 0.1)
    rows = np.concatenate([np.arange(len(user)), clicked])
    action = np.repeat(np.array([0, 1], np.uint8), [len(user), len(clicked)])
    order = np.argsort(ts_ms[rows], kind="stable")
    return keys[rows][order], ts_ms[rows][order], action[order]
