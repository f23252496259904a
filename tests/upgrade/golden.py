"""What a version of a small loop left, read by this one: everything that outlives a process, as plain facts.

Once a release ``python -m tests.upgrade.golden`` runs a loop of this version and keeps what it leaves, with the facts
that this version read: 0.3.0.tar.xz is of that version for ever. Each later one must find the same facts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq

from learner.gate.quarantine import Quarantine
from learner.role.model_factory import resumed
from learner.training.learner_versions import newest_valid
from millrace import __version__
from millrace.basics.store import Store
from millrace.contracts import coclick_message
from millrace.contracts.events import (
    BadEventError,
    decode_dead_letter,
    decode_event,
    decode_item,
    decode_item_tiles,
    decode_user,
)
from millrace.contracts.itemtiles import unpack
from millrace.contracts.online_layout import window_fields, window_keys
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import load_schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import load_settings
from millrace.contracts.topics import (
    DEAD_LETTERS,
    EVENTS,
    FEATURES_COCLICKS,
    FEATURES_ITEMS,
    ITEMS,
    MODEL_DELTAS,
    PAGE_LOGS,
    SAMPLES,
    USERS,
)
from millrace.versions.decisions import decode_decisions
from millrace.versions.modellog import Assembler, Delta
from millrace.versions.modelstore import ModelStore
from millrace.versions.proof import prove
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import counts_of
from scorer.catalog.index_checkpoint import manifests, read_part
from scorer.pagelog.spool import Spool
from scorer.users.userrecord import KnownUser
from stream.archive.archive_folder import KINDS, ArchiveFolder
from stream.partition.partition import Partition
from stream.partition.partition_checkpoint import CheckpointStore
from tests.scenes.left_folder import GENEROUS, leave, messages

GOLDEN = sorted(Path(__file__).parent.glob("*.tar.xz"))
"""What earlier versions left, packed."""
PREDICTED = "predicted"
"""The one fact that another processor may round otherwise."""


def seen(value: Any) -> Any:
    """A value as JSON: structures by the names of their fields, arrays and bytes by a digest."""
    if value is msgspec.UNSET:  # a field that the message does not have
        return None
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return None if value != value else value
        case Enum():
            return value.name
        case bytes() | bytearray() | memoryview():
            return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:16]}"
        case np.generic():
            return seen(value.item())
        case np.ndarray():
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
            return f"{value.dtype}{list(value.shape)} {digest}"
        case Mapping():
            return {str(seen(name)): seen(one) for name, one in value.items()}
    if isinstance(value, msgspec.Struct):
        return {"kind": type(value).__name__} | {n: seen(getattr(value, n)) for n in value.__struct_fields__}
    if hasattr(value, "_asdict"):
        return {n: seen(one) for n, one in value._asdict().items()}
    if is_dataclass(value):
        return {f.name: seen(getattr(value, f.name)) for f in fields(value)}
    return [seen(one) for one in value]


def missing(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What is not now as it was before. New fields of a structure are no difference."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name, one in before.items():
            yield from missing(one, now.get(name, "absent"), f"{where}/{name}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from missing(one, other, f"{where}/{place}")
    elif where.startswith(f"/{PREDICTED}/"):
        if abs(before - now) > 1e-3:
            yield f"{where}: {before} is now {now}"
    elif before != now:
        yield f"{where}: {before} is now {now}"


DECODERS = {
    EVENTS: decode_event,
    USERS: decode_user,
    ITEMS: decode_item,
    PAGE_LOGS: decode_page_log,
    SAMPLES: SampleBatch.from_bytes,
    FEATURES_ITEMS: lambda raw: unpack(decode_item_tiles(raw)),
    FEATURES_COCLICKS: coclick_message.unpack,
    DEAD_LETTERS: decode_dead_letter,
}


def message(topic: str, raw: bytes | None) -> Any:
    """A message as those read it who read the topic; why it cannot be used, if it is a bad one."""
    try:
        return None if raw is None else seen(DECODERS[topic](raw))
    except BadEventError as error:
        return f"bad: {error.reason}"


def read(folder: Path) -> dict[str, Any]:
    """All facts. ``folder`` is written to: give a copy."""
    facts: dict[str, Any] = {}
    schema = load_schema(folder / "schema.toml")
    facts["schema"] = {"id": schema.id, "history": [one.id for one in SchemaBook(folder / "schemas").history()]}
    config = {"MILLRACE_CONFIG": str(folder / "millrace.toml")}
    found = load_settings(environ=config)
    facts["settings"] = seen(msgspec.structs.replace(found, rerank_file=""))  # a path of this copy

    sent = messages(folder / "broker" / "topics", now_ms=0)
    facts["topics"] = {name: [message(name, raw) for raw in sent[name]] for name in DECODERS}

    models, assembler = ModelStore(folder / "models"), Assembler()
    entries = [entry for raw in sent[MODEL_DELTAS] for entry in assembler.take(raw)]
    facts["model.deltas"] = [{"kind": type(entry).__name__} | seen(entry) for entry in entries]
    bodies = {entry.note.place: entry.body for entry in entries if isinstance(entry, Delta)}
    facts["proved"] = seen(prove(models, bodies).proofs)
    facts["snapshots"] = {str(note.place): [seen(note), seen(models.read_whole(note))] for note in models.snapshots()}
    newest = newest_valid(models, schema.id, {}, lambda note, parts: resumed(schema, note, parts))
    assert newest is not None
    batches = [SampleBatch.from_bytes(raw) for raw in sent[SAMPLES]]
    facts[PREDICTED] = [float(p) for batch in batches for p in newest.model.score(batch.cat, batch.num)]
    facts["decisions"] = seen(decode_decisions((folder / "decisions").read_bytes()))

    loaded = CheckpointStore(folder / "checkpoints").load(Partition(0, schema, GENEROUS)).partition
    facts["checkpoint"] = {"offsets": loaded.offsets, "pending": loaded.pending, "advance_ms": loaded.advance_ms}

    index, damaged = Store(folder / "index", writes=False), list[str]()
    facts["index"] = {
        name: [seen(manifest), [seen(read_part(index, part)) for part in manifest.parts]]
        for name, manifest in manifests(index, lambda name, _: damaged.append(name))
    }
    facts["damaged"] = damaged

    archive = ArchiveFolder(folder / "archive")
    facts["archive"] = {"state": seen(archive.load()), "schema": load_schema(folder / "archive" / "schema.toml").name}
    for kind in KINDS:
        rows = [row for path in archive.files() if path.parent.name == kind for row in pq.read_table(path).to_pylist()]
        facts["archive"][kind] = seen(rows)
    archive.close()

    quarantine = Quarantine(Store(folder / "quarantine"), schema.id)
    quarantine.resume((folder / "quarantine.state").read_bytes())
    copies = [seen(quarantine.read_copy(name)) for name in sorted(quarantine.copies())]
    facts["quarantine"] = [seen(quarantine.entries()), copies]

    spool, records = Spool(folder / "spool", 1 << 30, lambda *_: damaged.append("spool")), list[Any]()
    while (place := spool.next()) is not None:
        records.append([seen(place.key), seen(decode_page_log(place.value))])
        spool.acknowledge(place.at)
    spool.close()
    facts["spool"] = records

    builder = FeatureBuilder(schema)
    online = msgspec.msgpack.decode((folder / "redis").read_bytes(), type=dict[str, dict[bytes, bytes]])
    users = {key: KnownUser.of(builder, key.partition(":")[2], record) for key, record in sorted(online.items())}
    facts["users"] = {key: seen(user) for key, user in users.items()}
    tiles = [user.tiles[field] for user in users.values() for field in window_fields(window_keys(user.tiles))]
    tiles += [tile for raw in sent[FEATURES_ITEMS] for tile in unpack(decode_item_tiles(raw))[1]]
    newest_ms = max(decode_item_tiles(raw).event_ms for raw in sent[FEATURES_ITEMS])
    counts = counts_of(tiles, newest_ms, schema.windows.durations, schema.windows.columns)
    facts["counts"] = counts.tolist()
    return facts


def lacking(facts: Mapping[str, Any]) -> list[str]:
    """What a golden folder has nothing of."""
    kinds = {entry["kind"] for entry in facts["model.deltas"]}
    empty = [f"topics/{name}" for name, found in facts["topics"].items() if not found]
    empty += [f"model.deltas/{kind}" for kind in ("Claimed", "Snapshot", "Delta", "Decisions") if kind not in kinds]
    empty += [
        name for name in ("proved", "snapshots", PREDICTED, "index", "spool", "users", "counts") if not facts[name]
    ]
    empty += [f"archive/{kind}" for kind in KINDS if not facts["archive"][kind]]
    return empty if all(facts["quarantine"]) else [*empty, "quarantine"]


def make(target: Path) -> None:
    """Packs what a loop of this version leaves, and the facts."""
    with tempfile.TemporaryDirectory() as name:
        left = leave(Path(name))
        shutil.copytree(left, Path(name, "copy"))
        facts = read(Path(name, "copy"))
        assert not lacking(facts), f"run it again: {lacking(facts)}"
        (left / "facts.json").write_text(json.dumps(facts, indent=1))
        with tarfile.open(target, "w:xz") as archive:
            archive.add(left, "")


if __name__ == "__main__":
    make(Path(__file__).parent / f"{__version__}.tar.xz")
