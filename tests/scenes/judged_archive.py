"""An archive of small pages that chance put in order, and a model that knows which of their items are clicked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from learner.ranker.model import OnlineModel
from millrace.contracts.events import PageLog, to_msgpack
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import parse_schema
from millrace.evidence.exploration import Exploration
from millrace.versions.modelstore import ModelStore, Place
from stream.archive.archive_columns import ArchiveColumns, SettledRow
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.logged import LoggedTable
from stream.archive.schemafile import schema_text

T0, MINUTE = 1_772_000_000_000, 60_000
SCHEMA = parse_schema(
    """
name = "tiny"
fields = [{name = "item_id", of = "item"}, {name = "price", of = "item", kind = "numeric"},
          {name = "position", of = "context", bias = true}]
"""
)
ITEMS = 8
TRUE = np.linspace(0.02, 0.6, ITEMS)  # chance of a click on each item
EXAMINED = np.array([1.0, 0.7, 0.6, 0.2, 0.02])  # times this in each slot
SERVED = np.clip(TRUE[::-1], 0.05, 0.95).astype(np.float32)  # the model that serves has them the wrong way round
AT_ITEM, AT_POSITION = (SCHEMA.layout.cat_names.index(name) for name in ("item_id", "position"))


def cat_of(items: np.ndarray) -> np.ndarray:
    cat = np.zeros((len(items), SCHEMA.layout.F), np.int64)
    cat[:, AT_ITEM] = 1000 + items
    cat[:, AT_POSITION] = 77 + np.arange(len(items))
    return cat


def store_of(folder: Path, event_ms: int = T0, version: int = 5) -> str:
    """A model that knows which items are clicked; what is clicked in the first slots it knows wrongly."""
    model, rng = (
        OnlineModel(SCHEMA, {"model": "wide_deep", "hidden": [8], "max_rows": 100}, 0),
        np.random.default_rng(0),
    )
    for _ in range(150):
        items = rng.integers(ITEMS, size=64)
        cat = cat_of(items)
        cat[:, AT_POSITION] = 0
        label = np.where(rng.random(64) < TRUE[items], POSITIVE, NEGATIVE).astype(np.uint8)
        num = np.full((64, SCHEMA.layout.N), 2.0, np.float32)
        model.learn(SampleBatch.of_rows(label, np.full(64, event_ms), cat, num, position=np.zeros(64, np.int32)))
    store, place = ModelStore(folder), Place(1, version)
    store.write_manifest(
        [store.write_part(place, 0, *model.snapshot())],
        epoch=1,
        version=version,
        claimant="a",
        schema_id=SCHEMA.id,
        spec=model.spec,
        event_ms=event_ms,
        trained=9600,
        published_ms=T0,
    )
    return str(folder)


def archive_of(folder: Path, pages: int, explore: str = "1,softmax,2", features: bool = True) -> Path:
    """Pages of five items by a model that serves, one in five of them random, a minute from each other."""
    rng, how, columns = np.random.default_rng(1), Exploration.of(explore), ArchiveColumns(SCHEMA)
    settled, ranked = [], np.argsort(-SERVED, kind="stable")
    for n in range(pages):
        control = n % 5 == 0
        if control:
            items, odds = rng.permutation(ITEMS)[:5], (1 / (ITEMS - np.arange(5))).astype(np.float32)
        else:
            page = (how or Exploration(0.0)).draw(SERVED[ranked], 5, 5, rng)
            items, odds = ranked[page.order], page.odds
        arm, ts_ms, user = "control" if control else "model", T0 + (n + 1) * MINUTE, f"u{n // 5 % 900}"
        scores, names = SERVED[items], [f"i{item}" for item in items]
        log = PageLog(
            request_id=f"r{n}",
            ts_ms=ts_ms,
            user_id=user,
            arm=arm,
            model_version=1,
            schema_id=SCHEMA.id,
            items=[*names],
            scores=scores.tobytes(),
            keys=b"",
            cat=cat_of(items).astype("<i8").tobytes(),
            num=np.full((5, SCHEMA.layout.N), 2.0, "<f4").tobytes(),
            odds=odds.tobytes(),
        )
        kept = to_msgpack(log) if features else b""
        for k, item in enumerate(items.tolist()):
            clicked = rng.random() < TRUE[item] * EXAMINED[k]
            times = (ts_ms + 1000 if clicked else None, None, None, None)
            price = columns.pack("item", {"price": 2.0})
            chance = float(odds[k]) if how else None
            about = (
                ts_ms,
                f"r{n}",
                k,
                k,
                user,
                names[k],
                None,
                price,
                times,
                float(scores[k]),
                1,
                arm,
                "control" if control else "hot",
            )
            settled.append(SettledRow(*about, chance, kept))
    place = ArchiveFolder(folder)
    place.put_schema(schema_text(SCHEMA, 30.0))
    half = len(settled) // 2
    for part in (settled[:half], settled[half:]):
        place.write({"exposures": columns.table(part), "features": LoggedTable(SCHEMA).table(part)[0]}, {})
    place.close()
    return folder
