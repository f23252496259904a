# core
"""Which features are the same for all items of a page: those of its user and of its context."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from millrace.windows.among_kernels import COUNT
from millrace.windows.features import FeatureBuilder

Flags = NDArray[np.bool_]


class PageWide(NamedTuple):
    """Where a page has one value for all of its items while they are ranked."""

    cat: Flags  # (F,) columns of feature ids
    num: Flags  # (N,) numbers
    keys: Flags  # (K,) window keys


def late_columns(schema: Schema) -> set[str]:
    """Columns that are known only after the page is made: they read as missing during ranking."""
    return {f.name for f in schema.fields if f.bias} | {"position"}


def page_wide(builder: FeatureBuilder) -> PageWide:
    """Rates are shrunk towards those of the parent key, so a window key is page-wide where its parent is as well."""
    schema, layout = builder.schema, builder.layout
    late, of_item = late_columns(schema), set(builder.needs("item"))
    cat, num, keys = (np.zeros(size, np.bool_) for size in (layout.F, layout.N, layout.K))
    for field, start in zip(layout.cat_fields, layout.cat_starts, strict=True):
        cat[start : start + field.slots] = field.name in late or field.of != "item"
    for i, field in enumerate(layout.plain_fields):
        num[i] = field.of != "item"
    for k, parent in builder.order:
        columns = set(schema.windows.keys[k].columns)
        missing = bool(late & columns) or any(builder.is_numeric(name) for name in columns)
        keys[k] = (parent is None or keys[parent]) and (missing or not of_item & columns)
    if layout.K:
        block = slice(layout.window_start, layout.among_start)
        num[block] = np.repeat(keys, (block.stop - block.start) // layout.K)
    num[layout.among_start :] = [form == COUNT for _, form in builder.comparisons.tolist()]
    return PageWide(cat, num, keys)
