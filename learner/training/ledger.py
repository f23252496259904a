# core
"""What was done to a model since a snapshot, act by act, so that a repair can repeat all of it, or leave a part out.

Wall time and the order of polling decide where micro-batches end, so the acts record it. A snapshot and the acts since
it, in order, give the model to the bit: learning depends on nothing else (:func:`learn_again`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.ranker.verbs import Learning
from millrace.basics.errors import SnapshotError
from millrace.contracts.samples import SampleBatch

Places = NDArray[np.int64]
"""Where rows lie on ``samples``: partition, offset and row within the message, (n, 3)."""


class Span(NamedTuple):
    """Rows ``first`` to ``stop`` (not included) of one message of ``samples``."""

    partition: int
    offset: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Learnt:
    spans: tuple[Span, ...]
    rows: int = field(default=-1, compare=False)
    """How many the model learnt, where known: 0 of a refused batch. Not in the store."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """The retrieval head learnt the clicks that it had kept waiting."""


Act = Learnt | Flushed


def spans_of(places: Places) -> tuple[Span, ...]:
    """The same rows as runs.

    >>> [tuple(span) for span in spans_of(np.array([[0, 7, 0], [0, 7, 1], [0, 7, 3], [1, 2, 0]]))]
    [(0, 7, 0, 2), (0, 7, 3, 4), (1, 2, 0, 1)]
    """
    if not len(places):
        return ()
    step = np.diff(places, axis=0)
    begins = np.flatnonzero(np.concatenate([[True], (step != (0, 0, 1)).any(axis=1)]))
    ends = np.append(begins[1:], len(places)) - 1
    heads = places[begins].tolist()
    lasts = (places[ends, 2] + 1).tolist()
    return tuple(Span(p, o, first, stop) for (p, o, first), stop in zip(heads, lasts, strict=True))


def places_of(spans: Iterable[Span]) -> Places:
    """The inverse of :func:`spans_of`. (n, 3)"""
    runs = [
        np.column_stack([np.full(s.stop - s.first, s.partition), np.full(s.stop - s.first, s.offset), rows])
        for s in spans
        for rows in (np.arange(s.first, s.stop),)
    ]
    return np.concatenate(runs).astype(np.int64) if runs else np.empty((0, 3), np.int64)


def encode_acts(acts: Sequence[Act]) -> bytes:
    """Acts as they lie in the store. A span takes some ten bytes."""
    return msgspec.msgpack.encode([[list(span) for span in a.spans] if isinstance(a, Learnt) else None for a in acts])


def decode_acts(raw: bytes | memoryview) -> list[Act]:
    """The inverse of :func:`encode_acts`. Raises SnapshotError where they cannot be read."""
    try:
        found = _decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"a log of micro-batches cannot be read ({error})", "it is passed over") from None
    return [Flushed() if spans is None else Learnt(tuple(spans)) for spans in found]


_decoder: msgspec.msgpack.Decoder[list[list[Span] | None]] = msgspec.msgpack.Decoder(list[list[Span] | None])


def learn_again(model: Learning, acts: Iterable[Act], rows_of: Callable[[Learnt], SampleBatch | None]) -> int:
    """Repeats the acts on ``model``. Returns the rows learnt. ``rows_of``: what to keep of an act; None: nothing."""
    learnt = 0
    for act in acts:
        if isinstance(act, Flushed):
            if model.head is not None:
                model.head.flush()
            continue
        batch = rows_of(act)
        if batch is not None and len(batch):
            learnt += model.learn(batch).rows
    return learnt
