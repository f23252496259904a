# core
"""What an item is worth to the shop: clicks and outcomes, each with a weight and its chance::

    S = w_0 p + sum_k w_k P_k v_k        P_k = p q_k of an outcome on clicks, q_k of one on pages

p and q_k: probabilities of the click and, by the model's heads, of outcome k; v_k: the item's number that the schema
says outcome k is worth, else 1. n items, K outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from scorer.page.rank import Ranked

CLICK = "click"
Floats = NDArray[np.float64]
_LEAST = 1e-12
MOST_EFFECT = 20.0
"""The effect of what alone is worth something."""


def unknown_weights(schema: Schema, weights: Mapping[str, float]) -> tuple[str, str] | None:
    """What is wrong with the names of weights, and the remedy; None: nothing."""
    known = [CLICK, *(one.name for one in schema.outcome)]
    name = next((name for name in weights if name not in known), None)
    return None if name is None else (f"name '{name[:40]}'", f"the schema has {', '.join(known)}")


def terms(
    schema: Schema, found: Ranked, weights: Mapping[str, float], some: NDArray[np.intp] | slice = slice(None)
) -> dict[str, Floats] | None:
    """The part of each weight in the worth of the items, or of ``some``, (n,) each. None: the model predicts no
    outcomes."""
    if found.outcomes is None:
        return None
    p, values = found.scores[some].astype(np.float64), iter(found.values[some].T)
    parts = {CLICK: weights.get(CLICK, 0.0) * p}
    for one, q in zip(schema.outcome, found.outcomes[some].T, strict=True):
        chance = q * p if one.on == CLICK else q.astype(np.float64)
        value = np.maximum(next(values), np.float32(0)) if one.value is not None else 1.0
        parts[one.name] = weights.get(one.name, 0.0) * chance * value
    return {name: np.where(np.isnan(part), 0.0, part) for name, part in parts.items() if weights.get(name)}


def log_worth(parts: Mapping[str, Floats]) -> Floats:
    """log S, (n,)."""
    whole: Floats = np.log(np.maximum(sum(parts.values(), np.zeros(1)), _LEAST))
    return whole


def effects(parts: Mapping[str, Floats]) -> list[list[tuple[str, float]]]:
    """Of each item, by how much each weight raised log S."""
    whole, raised = log_worth(parts), {}
    for name in parts:
        others = {other: part for other, part in parts.items() if other != name}
        raised[f"worth {name}"] = np.minimum(whole - log_worth(others), MOST_EFFECT)
    return [[(name, float(x[i])) for name, x in raised.items()] for i in range(len(whole))]
