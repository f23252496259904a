# core
"""A warm start after the schema or the spec has changed: carries over what both have, and reports the rest.

::

    old snapshot   [ user_id[0..15] | item_id[0..15] | price          ]  a layer's input columns, by name
                          |                |             (dropped)
    new model      [ user_id[0..15] | item_id[0..15] | stock: zero    ]  the rest of its answer stays as it was

A new column enters every layer with weight zero (the optimiser moves it from there). So a new number changes no
prediction before something is learnt about it; nor does a new field, whose ids have no rows. A layer whose other axis
has changed (hidden widths) starts untrained. Optimiser state goes with its weights. Rolling metrics restart.

The retrieval head is carried over whole where its spec is the same, else it begins empty. Its columns of items and
users begin empty where the columns changed.

An id does not reveal its field. So where a field moves to a table of another width, all rows of its old table are
copied there, and age removes the rows of other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from learner.network.dense import tensors_of
from learner.network.models import Columns, Network
from learner.network.models.norm import Running
from learner.network.models.spec import read_spec
from learner.ranker.buckets import FIRST_ROWS
from learner.ranker.model import OnlineModel, build_network, head_columns
from learner.tables import table_kernels
from learner.tables.table import SparseTable
from learner.training.learner_versions import same_head
from millrace.basics.errors import SnapshotError
from millrace.contracts.schema import Schema
from millrace.versions.image import HEAD, RETRIEVAL_TABLES, Array, Image, TableRows, split


@dataclass(slots=True)
class Report:
    """What a warm start did, one line each."""

    changed: list[str] = field(default_factory=list)  # settings
    kept: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        kinds = ("changed", "kept", "new", "dropped")
        return [f"{kind}: {line}" for kind in kinds for line in getattr(self, kind)]


def read_columns(note: object) -> Columns:
    """The columns in a snapshot's ``extra["columns"]``. Raises SnapshotError where it names none."""
    try:
        return msgspec.convert(note, Columns)
    except msgspec.ValidationError as error:
        raise SnapshotError(
            f"the snapshot does not say what its columns were ({error})",
            "start the learner once with the schema it was made with, or set MILLRACE_DATA to an empty folder",
        ) from None


def evolve(
    old: Columns,
    old_spec: Mapping[str, Any],
    image: Image,
    training: Mapping[str, Array],
    schema: Schema,
    spec: Mapping[str, Any],
    seed: int,
) -> tuple[OnlineModel, Report]:
    """A model of ``schema`` and ``spec`` that goes on from a snapshot of another, and a report of each part. ``old``:
    names of the snapshot's columns (its ``extra["columns"]``). ``seed``: of what is new. Raises SettingError where one
    of the specs is not one, and SnapshotError where the snapshot's tensors are not those of its spec and columns."""
    model = OnlineModel(schema, spec, seed)
    report = Report()
    _compare(old, model.columns, old_spec, model.spec, report)
    try:
        dense, state = _dense(old, old_spec, image, training, model, report)
        tables, own = _head(old_spec, image, training, model, report)
        state |= own
        for name in (n for n in model.tables if n not in RETRIEVAL_TABLES):
            tables[name], rows = _table(name, old, image, training, model, report)
            state |= {f"table/{name}/{n}": a for n, a in rows.items()}
        gone = (n for n in image.tables if n not in RETRIEVAL_TABLES and n not in model.tables)
        report.dropped += [f"table {n}" for n in gone]
        if model.columns.buckets:
            state |= _sample(old, training, model, dense, report)
        state |= _delays(training, model)
        state |= {n: a for n, a in training.items() if n.startswith("slots/")}
        state["guard"] = model.guard.snapshot()  # restarts: other inputs, other losses
        state["clock"] = np.array([*training["clock"][:2], seed], np.int64)
    except (KeyError, ValueError, IndexError) as error:
        raise SnapshotError(
            f"the snapshot's tensors are not those of its spec ({error})", "set MILLRACE_DATA to an empty folder"
        ) from None
    model.resume(Image(dense, tables), state)
    return model, report


def _compare(
    old: Columns, new: Columns, old_spec: Mapping[str, Any], new_spec: Mapping[str, Any], report: Report
) -> None:
    before = msgspec.to_builtins(read_spec(old_spec))
    report.changed += [f"{n}: {before[n]} -> {v}" for n, v in new_spec.items() if before[n] != v]
    mine, theirs = _inputs(old), _inputs(new)
    for name, what in theirs.items():
        if name not in mine:
            report.new.append(f"{name}, {what}")
        else:
            report.kept.append(f"{name}, {what}" + ("" if mine[name] == what else f" (was {mine[name]})"))
    report.dropped += [f"{name}, {what}" for name, what in mine.items() if name not in theirs]


def _inputs(columns: Columns) -> dict[str, str]:
    found = {
        f"field {name}": f"width {width}"
        for names, width in zip(columns.fields, columns.widths, strict=True)
        for name in names
        if name not in columns.buckets
    }
    found |= {f"{'cross' if '*' in name else 'field'} {name}": "wide weights only" for name in columns.wide}
    found |= {f"outcome {name}": "a head" for name in columns.outcomes}
    found |= {f"number {name}": "a number" for name in columns.numbers}
    return found | {f"number {name}": "in buckets" for name in columns.buckets}


# -- the network -----------------------------------------------------------------------------------------------


def _dense(
    old: Columns,
    old_spec: Mapping[str, Any],
    image: Image,
    training: Mapping[str, Array],
    model: OnlineModel,
    report: Report,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Serving tensors and training arrays of the network, named as in a snapshot."""
    columns, before = model.columns, read_spec(old_spec)
    was, now = build_network(old, before, 0), model.network
    sizes = {n: p.numel() for n, p in was.named_parameters()}
    flat = {n: _split(training[f"dense/{n}"], was) for n in ("weights", "first", "second", "total")}
    if training["dense/weights"].size != sum(sizes.values()):
        raise ValueError(f"{training['dense/weights'].size} weights")
    old_axes, new_axes = was.axes(old), now.axes(columns)
    lasting = _lasting(now, columns)
    origin = {name: n for n, name in _lasting(was, old).items()} if before.model == now.name else {}
    if not origin:
        report.new.append(f"network {now.name}, untrained: the snapshot's is a {before.model}")
    published, fresh_state = model.dense.snapshot()
    own = {n: _split(fresh_state[n], now) for n in ("weights", "first", "second", "total")}
    same_optimiser = before.dense == model.spec["dense"]
    kept = fresh = 0
    for name, tensor in tensors_of(now).items():
        source = origin.get(lasting[name])
        shape = () if source is None else image.dense[source].shape
        where = None if source is None else _match(old_axes.get(source), shape, new_axes.get(name), tuple(tensor.shape))
        if source is None or where is None:
            fresh += 1
            if origin:
                report.new.append(f"tensor {name}, untrained")
            continue
        kept += 1
        partly = shape != tuple(tensor.shape) or name in new_axes
        blank = partly and not isinstance(now.get_submodule(name.rpartition(".")[0]), Running | nn.LayerNorm)
        blank = blank and name != "edges"
        published[name] = _carried(image.dense[source], published[name], where, blank)
        if source in sizes:
            own["weights"][name] = _carried(flat["weights"][source], own["weights"][name], where, blank)
            for moment in ("first", "second", "total") if same_optimiser else ("total",):
                if flat[moment] and own[moment]:
                    own[moment][name] = _carried(flat[moment][source], own[moment][name], where, True)
    published["delays"] = image.dense["delays"].copy()  # of any network: it is about shoppers
    report.dropped += [f"tensor {n}" for k, n in origin.items() if k not in lasting.values()]
    report.kept.append(f"network {now.name}, {kept} of {kept + fresh} tensors")
    state = {
        f"dense/{n}": np.concatenate([a.ravel() for a in parts.values()] or [np.zeros(0, np.float32)])
        for n, parts in own.items()
    }
    steps = training["dense/steps"] if origin and same_optimiser else np.zeros(1, np.float32)
    rows = training["dense/rows"] if origin else np.zeros(1, np.int64)
    return published, {**state, "dense/steps": steps, "dense/rows": rows}


def _lasting(network: Network, columns: Columns) -> dict[str, str]:
    """A lasting name for each tensor, of heads too."""
    known = dict(network.known_as(columns))
    for outcome, head in network.heads.items():
        prefix = f"outcomes.{outcome}.body."
        known |= {prefix + n: prefix + name for n, name in head.body.known_as(columns).items()}
    return {n: known.get(n, n) for n in tensors_of(network)}


def _split(vector: Array, network: nn.Module) -> dict[str, Array]:
    """A flat vector as one array a parameter; none when the optimiser keeps no such vector."""
    if not vector.size:
        return {}
    parts, at = {}, 0
    for name, p in network.named_parameters():
        parts[name] = vector[at : at + p.numel()].reshape(tuple(p.shape)).copy()
        at += p.numel()
    return parts


Where = tuple[list[int], list[int]]


def _match(
    old: tuple[list[str] | None, ...] | None,
    old_shape: tuple[int, ...],
    new: tuple[list[str] | None, ...] | None,
    new_shape: tuple[int, ...],
) -> list[Where] | None:
    """For each axis, the places in the new and the old tensor that are the same; None: another tensor."""
    if len(old_shape) != len(new_shape):
        return None
    old, new = old or (None,) * len(old_shape), new or (None,) * len(new_shape)
    found: list[Where] = []
    for was, size, now, extent in zip(old, old_shape, new, new_shape, strict=True):
        if was is None or now is None:
            if size != extent:
                return None
            found.append((list(range(size)), list(range(size))))
        else:
            place = {name: i for i, name in enumerate(was)}
            pairs = [(j, place[name]) for j, name in enumerate(now) if name in place]
            found.append(([j for j, _ in pairs], [i for _, i in pairs]))
    return found


def _carried(old: Array, new: Array, where: list[Where], blank: bool) -> Array:
    """``new`` (zeroed first, if ``blank``) with the places of ``old`` that it has too."""
    out = np.zeros_like(new) if blank else new.copy()
    if where:
        out[np.ix_(*(w[0] for w in where))] = old[np.ix_(*(w[1] for w in where))]
        return out
    return old.copy()


def _delays(training: Mapping[str, Array], model: OnlineModel) -> dict[str, Array]:
    """The state of the delay models. What waits is dropped: its features may be other columns."""
    fresh = {n: a for n, a in model.small_state().items() if n.startswith(("delays/", "outcome/"))}
    kept = ("clock", "squares", "weights")
    return {n: training.get(n, a) if n.rpartition("/")[2] in kept else a for n, a in fresh.items()}


# -- tables ----------------------------------------------------------------------------------------------------


def _homes(columns: Columns) -> dict[str, str]:
    found = {f: f"w{w}" for names, w in zip(columns.fields, columns.widths, strict=True) for f in names}
    return found | dict.fromkeys(columns.wide, "w0")


def _table(
    name: str, old: Columns, image: Image, training: Mapping[str, Array], model: OnlineModel, report: Report
) -> tuple[TableRows, dict[str, Array]]:
    """Rows and training columns of the table ``name``, from the old tables of its fields."""
    table = model.tables[name]
    head = name[: name.find(HEAD) + 1]  # of an outcome's table
    known = not head or head.removesuffix(HEAD) in old.outcomes
    was, now = ({f: head + home for f, home in _homes(columns).items()} for columns in (old, model.columns))
    homes = {was[f] for f, at in now.items() if known and at == name and f in was}
    sources = sorted(homes, key=lambda n: (n != name, n))
    parts = [_rows_of(source, image.tables[source], training, table) for source in sources]
    columns = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]} if parts else {}
    _, first = np.unique(columns["ids"], return_index=True) if parts else (None, np.zeros(0, np.intp))
    if len(first) > table.index.max_rows:  # those seen last, and of equals those with the smallest ids, stay
        order = np.argsort(-columns["seen_min"][first].astype(np.int64), kind="stable")
        gone = len(first) - table.index.max_rows
        first = np.sort(first[order[: table.index.max_rows]])
        first = first[np.argsort(columns["ids"][first], kind="stable")]
        report.dropped.append(f"rows of table {name}: {gone}, for want of room")
    kept = {n: c[first] for n, c in columns.items()}
    blank, state = table.snapshot()
    if not parts:
        report.new.append(f"table {name}, empty")
        return blank, state
    what = f"table {name}, {len(first)} rows"
    moved = [s for s in sources if s != name]
    report.kept.append(what + (f" (those of {', '.join(moved)} copied: other fields' go by age)" if moved else ""))
    state = {n: kept[n] for n in state if n in kept}
    same = name in image.tables and training[f"table/{name}/admission"].shape == table.admission.counts.shape
    state["admission"] = training[f"table/{name}/admission"] if same else table.admission.counts
    state["counters"] = training[f"table/{name}/counters"] if same else np.zeros(2, np.int64)
    serving = {"embedding": kept["embedding"]} if table.width else {}
    return TableRows(kept["ids"], {**serving, "wide": np.zeros(len(first), np.float32)}), state


def _rows_of(
    source: str, rows: TableRows, training: Mapping[str, Array], table: SparseTable
) -> dict[str, NDArray[Any]]:
    """An old table's rows with embeddings as wide as ``table`` has them: cut, or filled up with first values."""
    prefix, width = f"table/{source}/", table.width
    found = {"ids": rows.ids, **{n: training[prefix + n] for n in ("z", "n", "seen_min")}}
    if not width:
        return found
    embedding = np.zeros((len(rows.ids), width), np.float32)
    table_kernels.initial(rows.ids, table.salt, table.scale, embedding)
    if table.counted:
        embedding[:, -1] = table_kernels.ONE_ITEM
    if "embedding" in rows.columns:
        old, size = rows.columns["embedding"], int(source.rpartition("w")[2])  # D of the old fields
        common = min(width - table.counted, size)
        embedding[:, :common] = old[:, :common]
        if table.counted and old.shape[1] > size:
            embedding[:, -1] = old[:, -1]
    square = training.get(prefix + "square", np.zeros(len(rows.ids), np.float32))
    return {**found, "embedding": embedding, "square": square}


# -- the retrieval head ----------------------------------------------------------------------------------------


def _head(
    old_spec: Mapping[str, Any], image: Image, training: Mapping[str, Array], model: OnlineModel, report: Report
) -> tuple[dict[str, TableRows], dict[str, Array]]:
    """Tables and training arrays of the retrieval head; none where the model has none, or begins an empty one."""
    tables = split(image)[1].tables
    if model.head is None:
        report.dropped += ["retrieval head"] if tables else []
        return {}, {}
    if not tables or not same_head(old_spec, model.spec):
        report.new.append("retrieval head, empty")
        return {}, {}
    state = {n: a for n, a in training.items() if n.startswith(tuple(f"table/{name}/" for name in tables))}
    small = {n: a for n, a in training.items() if n.startswith("retrieval/")}
    if not np.array_equal(small["retrieval/columns"], head_columns(model.schema)):
        model.head.clicks = int(small["retrieval/clock"][0])  # the tables have learnt from them
        small = {n: a for n, a in model.small_state().items() if n.startswith("retrieval/")}
        report.new.append("clicks and items that the retrieval head has seen lately")
    report.kept.append(f"retrieval head, {sum(len(rows.ids) for rows in tables.values())} rows")
    return tables, state | small


# -- buckets ---------------------------------------------------------------------------------------------------


def _sample(
    old: Columns, training: Mapping[str, Array], model: OnlineModel, dense: dict[str, Array], report: Report
) -> dict[str, Array]:
    """The sample that edges are made from. It restarts when a number is new in buckets, since that has no past rows."""
    names = model.columns.buckets
    if not set(names) <= set(old.buckets):
        report.new.append("sample for the edges of buckets: edges kept stay until it has rows enough")
        return {f"sample/{n}": a for n, a in model.reservoir.snapshot().items()}
    values = training["sample/values"][:, [old.buckets.index(n) for n in names]]
    counts = training["sample/counts"]
    model.reservoir.resume({"values": values, "counts": counts})
    buckets = dense["edges"].shape[1] + 1
    if np.isinf(dense["edges"]).any() and counts[0] >= FIRST_ROWS:  # their number has changed
        dense["edges"] = model.reservoir.edges(buckets)
    return {"sample/values": values, "sample/counts": counts}
