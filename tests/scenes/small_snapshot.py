"""A snapshot of a small model, written to a store."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.versions.modelstore import Announcement, Image, ModelStore, Place, TableRows

META: dict[str, Any] = {
    "claimant": "a",
    "schema_id": "s",
    "spec": {"model": "toy"},
    "event_ms": 1,
    "trained": 0,
    "published_ms": 1,
}


def image(values: dict[int, float], dense: float | None = None, removed: tuple[int, ...] = ()) -> Image:
    ids = np.array(sorted(values), np.int64)
    columns = {"emb": np.array([[values[i], -values[i]] for i in ids.tolist()], np.float32).reshape(-1, 2)}
    tensors = {} if dense is None else {"w": np.array([dense], np.float32)}
    return Image(tensors, {"t": TableRows(ids, columns, np.array(removed, np.int64))})


def snapshot(
    store: ModelStore, epoch: int, version: int, value: float = 1.0, own_hash: str | None = None
) -> Announcement:
    """Two rows in two parts, and a last one that corrects one of them."""
    begun = Place(epoch, version)
    parts = [
        store.write_part(begun, 0, image({1: 0.0, 2: value}), {"z": np.array([1.0, 2.0])}),
        store.write_part(begun, 1, image({7: value, 8: 0.5}), {"z": np.array([7.0, 8.0])}),
        store.write_part(begun, 2, image({1: value}, dense=value, removed=(8,)), {"clock": np.array([version])}),
    ]
    return store.write_manifest(parts, own_hash, epoch=epoch, version=version, **META)
