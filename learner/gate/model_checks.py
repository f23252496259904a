# core
"""Whether everything that a model consists of is finite and within bounds.

::

    what                                    must be
    weights and their average, embeddings   |w| <= 10,000, and so the wide weights that follow from z and n
    Adam's m and v                          v >= 0, v <= max_gradient^2, m^2 <= 53 v (below)
    gradients that wait                     |total| <= max_gradient times their rows
    Adagrad's G, FTRL's n and z             G, n >= 0, all <= 10^15 in size
    running variances, counts, minutes      >= 0; no row was seen after the newest sample
    admission's counters                    their sum follows from how often they are halved
    all else that has fractions             finite

The bounds are what learning can reach, not what is usual: a model within them may be a bad one, and
:mod:`learner.gate.shift` and :mod:`learner.gate.heldout` say so. They follow from what the model refuses by itself:

- No gradient beyond the spec's ``max_gradient`` is learnt, so m, an average of gradients, and v, one of their squares,
  cannot be beyond it either. By Cauchy and Schwarz, with Adam's betas b and c::

      m^2 = ((1 - b) sum_i b^i g_i)^2 <= v (1 - b)^2 / ((1 - c) (1 - b^2 / c)) = 52.9 v

- A sum in float32 stands still once it is 2^24 times its terms, and a row's gradient in a batch of 512 is below 22,700.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from learner.custom.own import OwnModel
from learner.gate.verdicts import GateRefusal
from learner.network.models.delays import SIZE
from learner.ranker.interfaces import Learning
from learner.ranker.model import OnlineModel
from learner.tables.admission import MOST_COUNTED
from learner.tables.table import SparseTable
from millrace.basics.durations import MINUTE_MS
from millrace.contracts.events import LAST_MS
from millrace.versions.image import Array, Image

LARGEST = 1e4
"""A weight, an embedding's part or a usual loss beyond it is no one's that learns: a logit of 20 is a certainty."""
MOST_SUM = 1e15
"""Of squares of gradients, and of gradients."""

_ANY = float(np.finfo(np.float64).max)  # and so no infinity
_COUNT = float(np.iinfo(np.int64).max)
_ADAM = 53.5  # m^2 / v at most, and what rounding adds
_ROUNDING = 1e-20  # squares of gradients below it are nothing in float32
_AT_ONCE = 100_000  # rows of a table
_OF_ROWS = {
    "embedding": (-LARGEST, LARGEST),
    "square": (0.0, MOST_SUM),
    "z": (-MOST_SUM, MOST_SUM),
    "n": (0.0, MOST_SUM),
    "wide": (-LARGEST, LARGEST),
    "seen_min": (0.0, LAST_MS / MINUTE_MS),
    "counters": (0.0, _COUNT),
}
_TRAINING = {
    "dense/weights": (-LARGEST, LARGEST),
    "dense/second": (0.0, MOST_SUM),
    "dense/steps": (0.0, _ANY),
    "dense/total": (-MOST_SUM, MOST_SUM),
    "dense/rows": (0.0, _COUNT),
    "guard": (0.0, LARGEST),  # usual losses, and at most 10,000 rows behind each
    "newest_ms": (0.0, LAST_MS),
    "delays/weights": (-LARGEST, LARGEST),
    "delays/clock": (0.0, _COUNT),
    "delays/squares": (0.0, MOST_SUM),
    "delays/sizes": (0.0, _COUNT),
    "delays/places": (0.0, SIZE - 1.0),
    "slots/weights": (-LARGEST, LARGEST),
    "slots/squares": (0.0, MOST_SUM),
    "slots/rows": (0.0, _COUNT),
    "sample/counts": (0.0, _COUNT),
    "retrieval/clock": (0.0, _COUNT),
    "retrieval/loss": (0.0, _ANY),
    "retrieval/recent_items/counts": (0.0, _COUNT),
    "retrieval/recent_items/ring": (0.0, _COUNT),
    "retrieval/pending/weight": (0.0, _ANY),
    "retrieval/pending/entry": (0.0, _COUNT),
}
"""Bounds of what only training needs. An array that is not here, nor of rows, is looked at for being finite alone."""


def unsound(model: Learning, whole: bool = False) -> GateRefusal | None:
    """Looks at the dense tensors with their optimiser's slots, the small state, and the rows touched since the last
    ``changes()`` with theirs, or all rows of the ``whole`` model. Before each delta.

    The whole state of a model of one's own was looked at when it was taken (learner/custom/own.py), so there is only
    what is around it. Admission's counters and the clicks that wait are many, and spoil no delta: each snapshot
    looks at them.

    Returns:
        The first fault. What is not finite is "finite", else "bounds".
    """
    if isinstance(model, OwnModel):
        return unsound_part(Image({}, {}), model.around())
    assert isinstance(model, OnlineModel)
    dense, most, newest_ms = model.dense, float(model.spec["max_gradient"]), model.newest_ms
    own = {
        "dense/weights": dense.weights.numpy(),
        "dense/first": dense.first.numpy(),
        "dense/second": dense.second.numpy(),
        "dense/steps": dense.steps.numpy().reshape(1),
        "sample/values": model.reservoir.values,
        "guard": model.guard.snapshot(),
    } | {f"slots/{name}": array for name, array in model.slots.snapshot().items()}
    found = unsound_part(Image({name: tensor.detach().numpy() for name, tensor in dense.names.items()}, {}), own)
    found = found or _bounded("dense/rows", np.array([dense.rows]), 0, dense.step_rows)
    bound = most * max(1, dense.rows) * 1.001
    found = found or _bounded("dense/total", dense.total.numpy(), -bound, bound)
    if dense.method == "adam":
        found = found or _bounded("dense/second", own["dense/second"], 0, most**2 * 1.001)
    found = found or _bounded("clock", np.array([newest_ms]), 0, LAST_MS)
    if head := model.head:
        newest_ms = max(newest_ms, head.newest_ms)
        size = len(head.recent_items)
        found = found or _bounded("retrieval/clock", np.array([head.clicks, head.refused, head.newest_ms]), 0, LAST_MS)
        found = found or _training("retrieval/loss", np.array([head.loss]))
        found = found or _training("retrieval/recent_items/plain", head.recent_items.plain[:size])
        found = found or _bounded("retrieval/recent_items/ring", head.recent_items.ring, 0, max(0, size - 1))
    tables = ((name, table) for name, table in model.tables.items() if isinstance(table, SparseTable))
    return found or _first(_rows(name, table, newest_ms // MINUTE_MS, whole) for name, table in tables)


def unsound_part(image: Image, training: Mapping[str, Array]) -> GateRefusal | None:
    """Looks at all of a part of a snapshot, of a registered model or of one's own.

    Returns:
        As :func:`unsound`.
    """
    own = "known/newer" in training  # a model of one's own: nothing of it but this is ours to bound
    found = _first(
        _bounded(name, a, -_ANY, _ANY, fraction=True) if own else _tensor(name, a) for name, a in image.dense.items()
    )
    for name, rows in image.tables.items():
        found = found or _first(_bounded(f"{name}/{n}", a, *_OF_ROWS[n]) for n, a in rows.columns.items())
    found = found or _first(_training(name, array) for name, array in training.items())
    if found is None and len(first := training.get("dense/first", np.empty(0))):
        found = _moments(first, training["dense/second"])
    return found


def _first(looks: Iterable[GateRefusal | None]) -> GateRefusal | None:
    return next((found for found in looks if found is not None), None)


def _rows(name: str, table: SparseTable, newest_min: int, whole: bool) -> GateRefusal | None:
    """The rows of a table that the next version will have, or all of them."""
    rows = table.index.rows() if whole else table.touched
    rows = rows[table.index.ids_of(rows) != 0]  # a touched one may be free again
    for start in range(0, len(rows), _AT_ONCE):
        serving, training = table.part(rows[start : start + _AT_ONCE])
        for column, array in {**training, **serving.columns}.items():  # wide weights follow from z and n
            low, high = _OF_ROWS[column]
            high = newest_min if column == "seen_min" else high
            found = _bounded(f"{name}/{column}", array, low, high, ids=serving.ids)
            if found is not None:
                return found
    return None


def _tensor(name: str, array: Array) -> GateRefusal | None:
    """A tensor of the network that serves, by its name there."""
    match name.rsplit(".", 1)[-1]:
        case "edges":  # infinite until they are known
            known = array[np.isfinite(array)]
            if np.isnan(array).any():
                return GateRefusal("finite", float("nan"), 0.0, name)
            rise = float(np.diff(array, axis=-1).min(initial=0)) if known.size == array.size else 0.0
            return GateRefusal("bounds", rise, 0.0, f"steps of {name}") if rise < 0 else None
        case "var" | "seen":
            return _bounded(name, array, 0, _ANY)
        case "mean":
            return _bounded(name, array, -_ANY, _ANY)
        case _:
            return _bounded(name, array, -LARGEST, LARGEST)


def _training(name: str, array: Array) -> GateRefusal | None:
    """An array that only training needs, by its name in a snapshot."""
    if name.startswith("table/"):
        _, table, column = name.split("/")
        if column == "admission":
            counted = int(array.sum(axis=1, dtype=np.int64).max(initial=0))
            return (
                GateRefusal("bounds", counted, MOST_COUNTED, f"{table}/admission") if counted > MOST_COUNTED else None
            )
        low, high = _OF_ROWS[column]
        return _bounded(f"{table}/{column}", array, low, high)
    if name in _TRAINING:
        return _bounded(name, array, *_TRAINING[name])
    return _bounded(name, array, -_ANY, _ANY, fraction=True)


def _moments(first: Array, second: Array) -> GateRefusal | None:
    """Adam's, against each other."""
    with np.errstate(over="ignore", under="ignore"):
        held = first * first <= np.float32(_ADAM) * second + np.float32(_ROUNDING)
    if held.all():
        return None
    i = int(held.argmin())
    ratio = abs(float(first[i])) / max(float(second[i]) ** 0.5, _ROUNDING)
    return GateRefusal("bounds", ratio, _ADAM**0.5, f"dense/first over the root of dense/second [{i}]")


def _bounded(
    name: str, array: Array, low: float, high: float, *, fraction: bool = False, ids: Array | None = None
) -> GateRefusal | None:
    """Whether all of an array lies from ``low`` to ``high``.

    Args:
        fraction: integers and bools are passed over.
        ids: of its rows.
    """
    if not array.size or (fraction and array.dtype.kind != "f"):
        return None
    least, most = float(array.min()), float(array.max())  # NaN where one of them is
    if least >= low and most <= high:
        return None
    flat = array.reshape(-1) if array.dtype.kind != "f" else array.reshape(-1).astype(np.float64)
    i = int(np.argmin((flat >= low) & (flat <= high)))
    value = float(flat[i])
    where = name if array.size == 1 else f"{name}[{i}]"
    if ids is not None:
        where = f"{name} of id {ids[i * len(ids) // array.size]}"
    if not np.isfinite(value):
        return GateRefusal("finite", value, 0.0, where)
    return GateRefusal("bounds", value, low if value < low else high, where)
