# core
"""Derives from a schema what the page's kernel needs: :class:`scorer.catalog.pagekernels.Form`."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from millrace.contracts.schema import Side, Windows
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import late_columns, page_wide
from scorer.catalog.itemtable import TableForm
from scorer.catalog.pagekernels import EACH, LOOK, LOOSE, MADE, MISSING, ONCE, OWN, Form

_OTHERS: tuple[Side, ...] = ("user", "context")


def block_size(windows: Windows) -> int:
    """E: how many numbers one window key gives."""
    return len(windows.spans) * (2 * len(windows.actions) - 1 + len(windows.means))


def shared_places(builder: FeatureBuilder) -> dict[str, slice]:
    """Where the value hashes of each non-item column lie in the values that all rows of a page share."""
    slots = {f.name: f.slots for f in builder.schema.fields}
    names = [n for side in _OTHERS for n in builder.needs(side) if not builder.is_numeric(n)]
    ends = list(accumulate(slots.get(name, 1) for name in names))
    return {name: slice(a, b) for name, a, b in zip(names, [0, *ends[:-1]], ends, strict=True)}


def page_form(builder: FeatureBuilder, table: TableForm) -> Form:
    schema, layout = builder.schema, builder.layout
    windows = schema.windows
    late, places, wide = late_columns(schema), shared_places(builder), page_wide(builder).keys
    count = layout.K
    kind, own = np.full(count, MISSING), np.zeros(count, np.int64)
    mode, parts = np.full(count, LOOK), np.zeros(count, np.int64)
    values = np.full((count, max([1, *(len(key.columns) for key in windows.keys)])), -1, np.int64)
    order, parent = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    for place, (k, above) in enumerate(builder.order):
        key = windows.keys[k]
        order[place] = k
        if above is not None:
            parent[k] = above
        if k in table.own_keys:
            kind[k], own[k] = OWN, table.own_keys.index(k)
        elif not late & set(key.columns) and not any(builder.is_numeric(name) for name in key.columns):
            kind[k] = MADE if schema.key_side(key) == "user" else LOOSE
        parts[k] = len(key.columns)
        for p, name in enumerate(key.columns):
            if name in places:
                values[k, p] = -1 - places[name].start
            elif name in table.value_names:
                values[k, p] = table.value_names.index(name)
        if wide[k]:
            mode[k] = ONCE
        elif builder.item_column in key.columns and kind[k] != MISSING:
            mode[k] = EACH
    names = [f.name for f in layout.plain_fields]
    cat_shared = np.full(layout.F, -1, np.int64)
    salts = np.zeros(layout.F, np.uint64)
    for field, start in zip(layout.cat_fields, layout.cat_starts, strict=True):
        columns = slice(start, start + field.slots)
        salts[columns] = layout.field_salt(field)
        if field.name in places and field.name not in late:
            cat_shared[columns] = np.arange(places[field.name].start, places[field.name].stop)
    exposed, first = builder.exposed or (-1, -1)
    return Form(
        order=order,
        parent=parent,
        kind=kind.astype(np.int64),
        own=own,
        mode=mode.astype(np.int64),
        salts=np.array([layout.key_salt(name) for name in layout.key_names], np.uint64),
        parts=parts,
        values=values,
        block=builder.block,
        cat=np.array([-1 if layout.cat_names[c] in late else c for c in table.cat_columns], np.int64),
        cat_shared=cat_shared,
        cat_salts=salts,
        plain=table.plain_columns.astype(np.int64),
        age=names.index("age_days") if "age_days" in table.plain_names else -1,
        exposed=exposed,
        first=table.own_keys.index(first) if exposed >= 0 else -1,
        unit_ms=windows.unit_ms,
        age_steps=builder.age_steps,
    )
