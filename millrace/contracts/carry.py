# core
"""Carries logged features of an earlier schema over to the columns of a new one, by name.

::

    old   cat │ user_id  item_id  hour  │   num │ price  item_id.click.1d │   keys │ item_id            │
                  │        │      (left)         │        │                        │
    new   cat │ user_id  item_id  colour=0 │ num │ price  item_id.click.1d  stock=0 │ keys │ item_id  category=0 │

Values are hashed under their field's name, and window keys under their columns' names. So a column means the same in
each schema that has it. A column that only the new schema has is missing (0). A key of 0 is counted nowhere. Whoever
made an old page compared no candidates by the new numbers among them, so its rows read there as if each were the only
candidate: a 0 would say that it was the last of all.

State that was counted under the old schema is kept only where both schemas count alike (:func:`same_tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.contracts.page_logs import PageView
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema

Columns = NDArray[np.intp]
"""(new width,) the old column of each new one; the old width where there is none."""


class Carry:
    """Takes arrays from the columns of ``old`` to those of ``new``."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self.old, self.new = old, new
        was, now = old.layout, new.layout
        self._cat = _columns(_slots(old), _slots(new))
        self._num = _columns(was.num_names, now.num_names)
        self._keys = _columns(was.key_names, now.key_names)
        alone = {f"{one.number}.{form}": 0.5 if form == "rank" else 1.0 for one in new.among for form in one.forms}
        self._outcomes = _columns([one.name for one in old.outcome], [one.name for one in new.outcome])
        self._missing = np.array([alone.get(name, 0.0) for name in now.num_names], np.float32)

    def page(self, served: PageView) -> PageView:
        """A logged page with the new schema's arrays and id. Raises ValueError for arrays that are not of the old
        schema."""
        n = len(served.items)
        return msgspec.structs.replace(
            served,
            schema_id=self.new.id,
            keys=_carried(served.keys, "<u8", n, self.old.layout.K, self._keys),
            cat=_carried(served.cat, "<i8", n, self.old.layout.F, self._cat),
            num=_carried(served.num, "<f4", n, self.old.layout.N, self._num, self._missing),
        )

    def samples(self, batch: SampleBatch) -> SampleBatch:
        """Samples with the new schema's columns. Raises ValueError for samples that are not of the old
        schema's shape."""
        layout = self.old.layout
        if (batch.cat.shape[1], batch.num.shape[1]) != (layout.F, layout.N):
            raise ValueError(
                f"{batch.cat.shape[1]} + {batch.num.shape[1]} features in the place of {layout.F} + {layout.N}"
            )
        told = batch.outcomes
        if told.shape[1]:
            told = _taken(told, self._outcomes, np.float32(np.nan))
        cat, num = _taken(batch.cat, self._cat), _taken(batch.num, self._num, self._missing)
        return replace(batch, cat=cat, num=num, outcomes=told)


def same_tiles(old: Schema, new: Schema) -> bool:
    """Whether window counts made under ``old`` are valid under ``new``: the same actions and means, tiles as fine, no
    window removed. New keys and windows begin with what has been counted already. Keys that only the old schema has
    expire."""
    was, now = old.windows, new.windows
    counted = (was.actions, was.means, was.unit_ms) == (now.actions, now.means, now.unit_ms)
    return not was.keys or (counted and set(was.minutes) <= set(now.minutes))


def former(history: Sequence[Schema], schema: Schema) -> dict[str, Schema]:
    """The earlier schemas of ``history`` by id, without ``schema``."""
    ids = [one.id for one in history]
    last = len(ids) - 1 - ids[::-1].index(schema.id) if schema.id in ids else len(ids)
    return {one.id: one for one in history[:last] if one.id != schema.id}


def _slots(schema: Schema) -> list[tuple[str, int]]:
    return [(field.name, slot) for field in schema.layout.cat_fields for slot in range(field.slots)]


def _columns(old: Sequence[object], new: Sequence[object]) -> Columns:
    at = {name: i for i, name in enumerate(old)}
    return np.array([at.get(name, len(at)) for name in new], np.intp)


def _taken(array: NDArray[Any], columns: Columns, missing: Any = 0) -> NDArray[Any]:
    """(n, new) of (n, old). ``missing``: what columns read as that there were not, (new,) or one for all."""
    wide = np.zeros((array.shape[0], array.shape[1] + 1), array.dtype)
    wide[:, :-1] = array
    return np.where(columns < array.shape[1], wide[:, columns], missing)


def _carried(raw: memoryview, dtype: str, n: int, width: int, columns: Columns, missing: Any = 0) -> memoryview:
    array = np.frombuffer(raw, dtype)
    if array.size != n * width:
        raise ValueError(f"{array.size} values for {n} rows of {width}")
    return memoryview(_taken(array.reshape(n, width), columns, missing).tobytes())
