# core
"""Reasons for an item's score: each input is removed in turn, and the item is scored again.

::

    item        category  price  item_id's windows  user_id*category's windows ...      G inputs
    as served   x         x      x                  x             ──► logit z
    without 1   missing   x      x                  x             ──► logit z_1        effect_1 = z - z_1
    without 2   x         mean   x                  x             ──► logit z_2        effect_2 = z - z_2

An *input* is a field with all its slots, a window key with all its counts, rates and means, or both under one name,
with what is compared of it among candidates. A removed categorical field reads as missing. A removed number becomes the
mean over the page's items, so an effect shows what sets the item apart from its page; or the caller's mean, where rows
are no page. This is occlusion (Zeiler and Fergus, ECCV 2014, section 4.2), by input. Inputs interact, so effects do not
add up to the score.

Symbols: m items, G inputs, F columns of ``cat``, N of ``num``, as in the schema's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.schema import Layout, Schema
from millrace.windows.pagewide import late_columns
from scorer.catalog.pageform import block_size
from scorer.page.rank import RankingModel
from scorer.page.reranking import BOOST, LIKENESS, WORTH

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

MOST_ITEMS = 20
"""Only the first items of a page get reasons: each costs as much as scoring G items."""
MOST_REASONS = 3
ROWS_AT_ONCE = 1024
LEAST_EFFECT = 1e-5
"""Smaller effects are float32 rounding."""
_LEAST, _MOST = np.float32(1e-7), np.float32(1 - 1e-7)


class Input(NamedTuple):
    """A field or window key, or both by the same name, and its columns in the arrays."""

    name: str
    cat: tuple[int, ...]
    num: tuple[int, ...]


def inputs_of(schema: Schema) -> tuple[Input, ...]:
    """The inputs known during ranking, in the layout's order, without those that depend on the finished page."""
    layout: Layout = schema.layout
    late = late_columns(schema)
    fields = [
        Input(f.name, tuple(range(start, start + f.slots)), ())
        for f, start in zip(layout.cat_fields, layout.cat_starts, strict=True)
        if f.name not in late
    ]
    names = [f.name if f.kind == "numeric" else f.name.rpartition(".")[0] for f in layout.plain_fields]
    numbers = [Input(name, (), (i,)) for i, name in enumerate(names)]
    size = block_size(schema.windows)
    blocks = [
        Input(name, (), tuple(range(layout.window_start + k * size, layout.window_start + (k + 1) * size)))
        for k, name in enumerate(layout.key_names)
    ]
    owner = {c: one.name for one in (*numbers, *blocks) for c in one.num}
    among, at = [], layout.among_start
    for compared in schema.among:  # belongs to what is compared
        columns = tuple(range(at, at + len(compared.forms)))
        among.append(Input(owner[layout.num_names.index(compared.number)], (), columns))
        at += len(columns)
    merged: dict[str, Input] = {}
    for one in (*fields, *numbers, *blocks, *among):
        before = merged.get(one.name, Input(one.name, (), ()))
        merged[one.name] = Input(one.name, before.cat + one.cat, before.num + one.num)
    return tuple(merged.values())


def effects(model: RankingModel, cat: Ids, num: Floats, inputs: Sequence[Input], usual: Floats | None = None) -> Floats:
    """By how much each input raised the logit of each item, (m, G). ``cat`` (m, F) as ranked, ``num`` (m, N).
    ``usual`` (N,): what removed numbers become, if not the items' mean."""
    m, width = len(cat), len(inputs)
    if not m or not width:
        return np.zeros((m, width), np.float32)
    served = _logit(model.score(cat, num))
    if usual is None:
        usual = num.mean(axis=0, dtype=np.float64).astype(np.float32)
    out = np.empty((m, width), np.float32)
    at_once = max(1, ROWS_AT_ONCE // m)
    for first in range(0, width, at_once):
        some = inputs[first : first + at_once]
        less_cat, less_num = np.tile(cat, (len(some), 1)), np.tile(num, (len(some), 1))
        for g, taken in enumerate(some):
            rows = slice(g * m, (g + 1) * m)
            less_cat[rows, list(taken.cat)] = 0
            less_num[rows, list(taken.num)] = usual[list(taken.num)]
        without = _logit(model.score(less_cat, less_num)).reshape(len(some), m)
        out[:, first : first + len(some)] = served[:, None] - without.T
    return out


def strongest(found: Floats, inputs: Sequence[Input], most: int = MOST_REASONS) -> list[list[tuple[str, float]]]:
    """Of each item, the inputs with the greatest effect either way, the greatest first; none without an effect.

    >>> inputs = [Input("price", (), (0,)), Input("brand", (0,), ()), Input("age", (), (1,))]
    >>> strongest(np.array([[0.25, -0.5, 0.0]], np.float32), inputs)
    [[('brand', -0.5), ('price', 0.25)]]
    """
    order = np.argsort(-np.abs(found), axis=1, kind="stable")[:, :most]
    return [
        [(inputs[g].name, float(effect[g])) for g in first if np.isfinite(effect[g]) and abs(effect[g]) >= LEAST_EFFECT]
        for first, effect in zip(order.tolist(), found, strict=True)
    ]


def moved(m: int, ranking: Floats | None) -> list[list[tuple[str, float]]]:
    """Of the first m items, what re-ranking added to their logits. ``ranking``: as :mod:`scorer.page.reranking` has
    it."""
    by = np.zeros((m, 3)) if ranking is None else ranking[:m, [BOOST, LIKENESS, WORTH]]
    return [[(name, x) for name, x in zip(("boost", "diversity", "worth"), of, strict=True) if x] for of in by.tolist()]


def _logit(p: Floats) -> Floats:
    """log(p / (1 - p)), with 0 and 1 replaced by their nearest float32 neighbours."""
    p = np.clip(p, _LEAST, _MOST)
    out: Floats = np.log(p / (1 - p)).astype(np.float32)
    return out
