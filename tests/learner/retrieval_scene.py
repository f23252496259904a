"""The retrieval head in plain words: features, towers, sampling and one step, with dictionaries and float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.network.models.spec import Spec, read_spec
from learner.retrieval.retrieval import RING_PART, RetrievalHead
from learner.retrieval.tower import GAIN, OWN_ITEM, OWN_USER, RECENT
from millrace.basics.hashing import combine, salt
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.versions.image import Image
from tests.scenes.schemas import named, of_context, of_item, of_user

SCHEMA = parse_schema(
    named("recall")
    + of_user("user_id", "kind")
    + of_user("hobbies", slots=2)
    + of_item("item_id", "category")
    + of_item("tags", slots=3)
    + of_item("shelf_place", bias=True)
    + of_item("price:numeric", "gain:numeric")
    + of_context("position", bias=True)
)
START_MS = 1_700_000_000_000
WIDTH = 8  # with the bias
NUMBERS = ("price", "gain")
CAT = {name: SCHEMA.layout.cat_names.index(name) for name in SCHEMA.layout.cat_names}
"""The first column of each field."""


def spec_of(**values: Any) -> Spec:
    return read_spec({"retrieval_width": WIDTH, "retrieval_negatives": 40, "max_rows": 5000, **values})


def ids_of(name: str, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Feature ids of values; 0 stays 0."""
    return np.asarray(combine(salt("field", name), values.astype(np.uint64))).view(np.int64)


def samples(rows: int, seed: int, start_ms: int = START_MS, users: int = 30, items: int = 60) -> SampleBatch:
    """Pages of four. Users of an even number click items of an even category, the others those of an odd one. Some
    values are missing, some numbers are not finite."""
    rng = np.random.default_rng(seed)
    page = np.arange(rows) // 4
    user = rng.integers(1, users + 1, page[-1] + 1)[page]
    item = rng.integers(1, items + 1, rows)
    category = item % 6 + 1
    layout = SCHEMA.layout
    cat = np.zeros((rows, layout.F), np.int64)
    cat[:, CAT["user_id"]] = ids_of("user_id", user)
    cat[:, CAT["kind"]] = ids_of("kind", 1 + user % 2)
    hobby = CAT["hobbies"]
    cat[:, hobby] = ids_of("hobbies", user % 4)
    cat[:, hobby + 1] = ids_of("hobbies", user % 3)
    cat[:, CAT["item_id"]] = ids_of("item_id", item)
    cat[:, CAT["category"]] = ids_of("category", category)
    tags = CAT["tags"]
    for slot in range(3):
        cat[:, tags + slot] = ids_of("tags", np.where(item % (slot + 2) == 0, item % 7, 0))
    cat[:, CAT["shelf_place"]] = ids_of("shelf_place", 1 + item % 3)
    num = np.zeros((rows, layout.N), np.float32)
    num[:, 0] = np.where(item % 11 == 0, np.nan, item * 3.7)
    num[:, 1] = np.where(item % 13 == 0, -np.inf, 20.0 - item)
    likes = (user + category) % 2 == 0
    kind = np.where(likes & (rng.random(rows) < 0.6), POSITIVE, NEGATIVE).astype(np.uint8)
    return SampleBatch.of_rows(
        kind,
        start_ms + page * 1000,
        cat,
        num,
        user=user.astype(np.uint64),
        item=item.astype(np.uint64),
        weight=rng.uniform(0.5, 2.0, rows).astype(np.float32),
    )


# -- features ---------------------------------------------------------------------------------------------------------

Features = dict[int, float]
"""Weights by id."""


def columns(schema: Schema, side: str) -> list[tuple[str, list[int], bool]]:
    """Name, columns of ``cat`` and whether it is a bias, of the categorical fields of one side."""
    layout = schema.layout
    return [
        (f.name, list(range(first, first + f.slots)), f.bias)
        for f, first in zip(layout.cat_fields, layout.cat_starts, strict=True)
        if f.of == side
    ]


def own_features(side: str, cat: NDArray[np.int64], own: float) -> Features:
    """Of one row of ``cat``."""
    found: Features = {}
    name_of_id = f"{side}_id"
    for name, places, bias in columns(SCHEMA, side):
        there = [int(cat[c]) for c in places if cat[c]]
        for key in there:
            if not bias:
                found[key] = found.get(key, 0.0) + (own if name == name_of_id else 1.0) / len(there)
    return found


def user_features(cat: NDArray[np.int64]) -> Features:
    return own_features("user", cat, OWN_USER)


def item_features(cat: NDArray[np.int64], num: NDArray[np.float32], own: float = OWN_ITEM) -> Features:
    """``own``: weight of the item's own id; 0 leaves it out."""
    found = {key: weight for key, weight in own_features("item", cat, own).items() if weight}
    for name, x in zip(NUMBERS, num.tolist(), strict=False):
        if not math.isfinite(x):
            continue
        t = min(max(math.copysign(math.log1p(abs(x)), x) / 0.5 + 32, 0.0), 64.0)
        k = min(int(t), 63)
        knots = combine(salt("retrieval number", name), np.arange(k + 1, k + 3, dtype=np.uint64)).view(np.int64)
        found[int(knots[0])], found[int(knots[1])] = 1 - (t - k), t - k
    return found


# -- rows and towers --------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Factors and biases by id, as published; ids without a row are zeros."""

    factors: dict[int, NDArray[np.float64]]
    biases: dict[int, float]
    width: int = WIDTH - 1

    @classmethod
    def of(cls, image: Image, name: str) -> Rows:
        rows = image.tables[name]
        factors = dict(zip(rows.ids.tolist(), rows.columns["embedding"].astype(np.float64), strict=True))
        return cls(factors, dict(zip(rows.ids.tolist(), rows.columns["wide"].astype(float).tolist(), strict=True)))

    def pool(self, features: Features) -> NDArray[np.float64]:
        zero = np.zeros(self.width)
        return sum((w * self.factors.get(key, zero) for key, w in features.items()), zero)

    def bias(self, features: Features) -> float:
        return sum(w * self.biases.get(key, 0.0) for key, w in features.items())

    def matrix(self) -> NDArray[np.float64]:
        ids = combine(salt("retrieval map", "recent"), np.arange(1, self.width + 1, dtype=np.uint64)).view(np.int64)
        return np.stack([self.factors.get(int(key), np.zeros(self.width)) for key in ids])


def image_of(head: RetrievalHead) -> Image:
    """What a version would carry, whole."""
    return Image({}, {name: table.snapshot()[0] for name, table in head.tables.items()})


def plain_vector(rows: Rows, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float64]:
    """(W,)"""
    own = item_features(cat, num)
    return np.append(rows.pool(own), rows.bias(item_features(cat, num, 1.0)))


def plain_query(
    users: Rows, items: Rows, cat: NDArray[np.int64], recent: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """(W,)"""
    q = users.pool(user_features(cat))
    if recent:
        mean = np.mean([v[:-1] for v in recent[:RECENT]], axis=0)
        q = q + float(GAIN) * mean + mean @ items.matrix()
    return np.append(q, 1.0)


# -- the loss ---------------------------------------------------------------------------------------------------------


def plain_loss(
    q: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    target: list[int],
    user: list[int],
    weight: list[float],
    past: list[list[int]],
    times: list[int],
    expected: list[float],
) -> torch.Tensor:
    """``sum_b w_b loss_b`` as learner/retrieval/retrieval.py states it, term by term. v, bias: of the M items."""
    total = torch.zeros((), dtype=torch.float64)
    for b, own in enumerate(target):
        clicked = set(past[b]) | {t for t, u in zip(target, user, strict=True) if u == user[b] and u}
        terms = []
        for j in range(len(times)):
            score = q[b] @ v[j] + bias[j] - math.log(expected[j])
            if j == own:
                terms.append(score)
            elif j not in clicked:
                terms.append(score + math.log(times[j]))
        first = q[b] @ v[own] + bias[own] - math.log(expected[own])
        total = total + weight[b] * (torch.logsumexp(torch.stack(terms), 0) - first)
    return total


class Draws:
    """SplitMix64 on a counter, in Python's integers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def below(self, n: int) -> int:
        whole = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & whole
        x = self.state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
        x ^= x >> 31
        return ((x >> 32) * n) >> 32


@dataclass
class Click:
    user: int
    item: int
    weight: float
    cat: NDArray[np.int64]
    past: list[int]  # items clicked before, newest first
    known: list[int]  # of these, those of earlier pages


class PlainHead:
    """What a head keeps besides its tables, as long as nothing makes room: items as they were shown last, in the order
    of their first exposures, the ring, the histories, the pending clicks, the generator."""

    def __init__(self, seed: int, strangers: int) -> None:
        self.shown: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self.ring: list[int] = []
        self.history: dict[int, list[tuple[int, int]]] = {}
        self.pending: list[Click] = []
        self.draws = Draws(int(salt("negatives", str(seed))))
        self.strangers = strangers

    def take(self, batch: SampleBatch) -> None:
        for i in range(len(batch)):
            item, user, ts_ms = int(batch.item[i]), int(batch.user[i]), int(batch.ts_ms[i])
            if not item:
                continue
            self.shown[item] = batch.cat[i], batch.num[i]
            if batch.kind[i] not in (POSITIVE, CORRECTION) or batch.label[i] != 1 or not 0 < batch.weight[i] < math.inf:
                continue
            self.ring.append(item)
            past = self.history.get(user, [])
            known = [old for old, old_ms in past if old_ms < ts_ms]
            cat = batch.cat[i].copy()
            if self.draws.below(1 << 16) < self.strangers:
                known, cat[CAT["user_id"]] = [], 0
            self.pending.append(Click(user, item, float(batch.weight[i]), cat, [old for old, _ in past], known))
            if user:
                self.history[user] = [(item, ts_ms), *past][:RECENT]

    def candidates(self, draws: int) -> tuple[list[int], list[int], list[float]]:
        """Distinct items of the pending clicks and of so many draws, how often each is there, and on average."""
        found = [click.item for click in self.pending]
        found += [self.ring[self.draws.below(len(self.ring))] for _ in range(draws // RING_PART)]
        everything = list(self.shown)
        found += [everything[self.draws.below(len(everything))] for _ in range(draws - draws // RING_PART)]
        items = list(dict.fromkeys(found))
        shared = (len(self.pending) + draws // RING_PART) / len(self.ring)
        expected = [shared * self.ring.count(j) + (draws - draws // RING_PART) / len(everything) for j in items]
        return items, [found.count(j) for j in items], expected
