"""The numbers of rows in array operations, one formula after another: the reference for the compiled blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.windows.features import F32, FeatureBuilder


def plain_num(
    builder: FeatureBuilder,
    plain: Mapping[str, NDArray[Any]],
    counts: NDArray[Any],
    n: int,
    ts_ms: NDArray[np.int64] | int = 0,
) -> F32:
    """As :meth:`FeatureBuilder.num`, which makes what does not follow from counts. (n, N)"""
    layout, windows = builder.layout, builder.schema.windows
    out = builder.num(plain, counts, n, ts_ms)
    if not layout.K:
        return out
    counts = counts[:, :, : len(windows.spans)]
    out[:, layout.window_start : layout.among_start] = np.nan
    actions, spans = len(windows.actions), len(windows.durations)
    rates = 2 * actions - 1
    block = out[:, layout.window_start : layout.among_start]
    block = block.reshape(n, layout.K, counts.shape[2], rates + len(windows.means), copy=False)
    block[:, :, :spans, :actions] = counts[:, :, :spans, :actions]
    if windows.half_lives:
        fade = builder.fade(ts_ms)[:, None, :, None]
        block[:, :, spans:, :actions] = counts[:, :, spans:, :actions] * fade
    for m, mean in enumerate(windows.means):
        action = windows.actions.index(mean.action)
        seen = counts[..., action]
        average = counts[..., actions + m] * np.float64(mean.step) / np.maximum(seen, 1)
        block[..., rates + m] = np.where(seen > 0, average, 0.0)
    weight = np.float32(windows.prior_weight)
    prior = np.full(actions - 1, windows.prior_rate / 10, np.float32)
    prior[: 1 if windows.actions[1:2] == ("click",) else 0] = windows.prior_rate
    for k, parent in builder.order:
        rate = block[:, k, :, actions:rates]
        towards = prior if parent is None else block[:, parent, :, actions:rates]
        exposed = block[:, k, :, :1] + weight
        np.multiply(towards, weight, out=rate)
        rate += block[:, k, :, 1:actions]
        if windows.prior_weight == 0:
            unseen = exposed == 0
            np.copyto(rate, towards, where=unseen)
            exposed = np.where(unseen, np.float32(1), exposed)
        rate /= exposed
    return out
