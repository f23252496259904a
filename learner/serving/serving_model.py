# core
"""A model as scorers hold it: versions that share one base, each with overlays of its own (learner/serving/overlay.py).

::

    writer   ModelWriter   stage(delta) ──► overlay (arrays)      fold(rows), fold(rows), ... ──► settled
                │                             │                                                     │
             base() ──────────► attach ──► followed ──► a model of the next version            ──► settled
    readers  ServingModel      version 7      version 8                                        version 8, fewer overlays

The base and all overlays are arrays by name, so they may lie in memory that processes share. A version never changes: a
reader takes the next one by swapping a reference, and each answer is of one version. Overlays hide the base, so a
version is whole at once, and its rows move into the base afterwards, step by step.

The dense tensors of a version are one buffer, which is never written to again. A delta has all of them or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from learner.network.backward import Workspace
from learner.network.forward import Arithmetic, PageInput, rows_of
from learner.network.models import Network
from learner.ranker.model import score_with
from learner.serving import overlaykernels as kernels
from learner.serving.model_form import Arrays, Dense, Floats, ModelForm, NumberPlan, PagePass
from learner.serving.overlay import Layer, Table, record_width
from learner.serving.staging import ModelWriter, layers_of
from learner.tables import attention
from learner.tables.table import as_read
from millrace.basics.probing import FREE
from millrace.contracts.schema import Schema
from millrace.versions.modelstore import Image

Ids = NDArray[np.int64]

_EVERYTHING = 2**31 - 1


class ServingModel:
    """One version of a model, to score with. Reads only; several threads may score at once. :meth:`attach` makes it in
    any process that has the writer's arrays. :meth:`of` makes one with a writer of its own, which can be patched."""

    def __init__(self, form: ModelForm, tables: dict[str, Table], dense: Dense, dropped: int = 0) -> None:
        self.form, self.tables, self._dense, self._dropped = form, tables, dense, dropped
        self._writer: ModelWriter | None = None

    @classmethod
    def attach(
        cls, schema: Schema, spec: Mapping[str, Any], base: Arrays, like: ServingModel | None = None
    ) -> ServingModel:
        """A reader of a writer's :meth:`ModelWriter.base`, which goes on to change. It must follow every overlay that
        was pending then, and all that come. ``like``: a model that served before. If it has the same schema and spec,
        its working memory is reused. Raises SettingError where the spec has an unknown name or value."""
        if like is not None and like.form.serves(schema, spec):
            return cls._attached(like.form, base)
        return cls._attached(ModelForm(schema, spec), base)

    @classmethod
    def _attached(cls, form: ModelForm, base: Arrays) -> ServingModel:
        tables = {
            name: Table(width, Layer.of(base[f"{name}/slots"], base[f"{name}/data"]), ())
            for name, width in form.widths.items()
        }
        return cls(form, tables, Dense(form, base))

    @classmethod
    def of(
        cls,
        schema: Schema,
        spec: Mapping[str, Any],
        parts: Image | Iterable[Image],
        rows: Mapping[str, int] | None = None,
        arithmetic: Arithmetic = "float32",
    ) -> ServingModel:
        """The model of a snapshot with a writer of its own, in one process; as :meth:`ModelWriter.of`."""
        writer = ModelWriter.of(schema, spec, parts, rows, choose=lambda _: arithmetic)
        model = cls._attached(writer.form, writer.base())
        model._writer = writer
        return model

    # -- versions --------------------------------------------------------------------------------------------

    def followed(self, overlay: Arrays) -> ServingModel:
        """The next version: this one with an overlay of :meth:`ModelWriter.stage`. This one stays as it is."""
        layers = layers_of(overlay, [record_width(table.width) for table in self.tables.values()])
        tables = {
            name: Table(t.width, t.base, (*t.overlays, Layer.of(*layer, int(changed))))
            for (name, t), layer, changed in zip(self.tables.items(), layers, overlay["changed"], strict=True)
        }
        dense = Dense(self.form, overlay) if "dense" in overlay else self._dense
        return ServingModel(self.form, tables, dense, self._dropped)

    def settled(self, folded: int, base: Arrays | None = None) -> ServingModel:
        """The same version without the ``folded`` overlays that went into the base since this reader attached.
        ``base``: the writer's, when its ``generation`` has risen; missing names stay as they were."""
        base = base or {}
        tables = {}
        for name, t in self.tables.items():
            slots, data = base.get(f"{name}/slots", t.base.slots), base.get(f"{name}/data", t.base.data)
            tables[name] = Table(t.width, Layer.of(slots, data), t.overlays[folded - self._dropped :])
        return ServingModel(self.form, tables, self._dense, folded)

    def patch(self, delta: Image) -> None:
        """Applies a delta whole or not at all. Only for a model that :meth:`of` made, and not while it scores."""
        writer = self._own
        model = self.followed(writer.stage(delta))
        while writer.fold(_EVERYTHING):
            pass
        model = model.settled(writer.folded, writer.base())
        self.tables, self._dense, self._dropped = model.tables, model._dense, model._dropped

    def check(self, delta: Image) -> None:
        """:meth:`ModelWriter.check`; only for a model that :meth:`of` made."""
        self._own.check(delta)

    @property
    def _own(self) -> ModelWriter:
        if self._writer is None:
            raise TypeError("this model only reads: stage deltas with the ModelWriter whose base it is attached to")
        return self._writer

    @property
    def network(self) -> Network:
        """The network with this version's tensors, in evaluation mode."""
        return self._dense.network

    def dense(self) -> dict[str, Floats]:
        return self.form.named(self._dense.flat)

    def snapshot(self) -> Image:
        """The serving half of ``OnlineModel.snapshot``. Call it only while nothing writes to the base."""
        dense: dict[str, NDArray[Any]] = {n: a.copy() for n, a in self.dense().items()}
        return Image(dense, {n: t.snapshot() for n, t in self.tables.items()})

    # -- scoring ---------------------------------------------------------------------------------------------

    @property
    def arithmetic(self) -> Arithmetic:
        return self._dense.arithmetic

    @property
    def numbers(self) -> NumberPlan | None:
        """How numbers get into the input of the click's network (:meth:`score_page`); None with buckets, or where
        passes are not written out."""
        return self._dense.passes[0].numbers if self._dense.passes else None

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (n,) of feature rows cat (n, F), num (n, N), whatever page each is of; in float32 the
        learner's to the bit. Reads only; unknown ids read as zero."""
        return score_with(self.form.inputs, self._dense.inference, self.tables, cat, num)

    def predict(self, cat: Ids, num: Floats) -> Floats:
        """:meth:`score`, and the probabilities of the schema's K outcomes: (n, 1 + K), as the learner's ``predict``."""
        return score_with(self.form.inputs, self._dense.inference, self.tables, cat, num, self._dense.heads)

    def warm(self, most: int) -> None:
        """Scores each number of rows, up to ``most``, that matrix products distinguish, so that no request pays for the
        first product of a size. Any thread may do this."""
        layout, widened = self.form.schema.layout, self.arithmetic != "float32"
        for n in sorted({rows_of(n) for n in range(1, most + 1)}) if widened else [most]:
            cat = np.ones((n, layout.F), np.int64)
            if self.numbers is None:
                self.score(cat, np.zeros((n, layout.N), np.float32))
            else:
                self.score_page(cat, _fill_zeros)

    def score_page(self, cat: Ids, fill: Callable[[NumberPlan, PageInput], None], outcomes: bool = False) -> Floats:
        """Click probabilities (n,) of a page's cat (n, F), and with ``outcomes`` those of the schema's K as well, as of
        :meth:`predict`, (n, 1 + K). ``fill`` is called for each network: it puts the numbers into the network's input,
        whose other columns it leaves alone. Features of the user and the context are read of the first row alone
        (:mod:`millrace.windows.pagewide`)."""
        room, n, columns = self.form.room, len(cat), self.form.columns
        own = room.array("own", rows_of(n), len(columns.own))
        given = PageInput(own, room.array("same", 1, len(columns.same)), n)
        groups = [found for k in range(len(self.form.once)) if (found := self._distinct(k, cat)) is not None]
        logits: list[Floats] = []
        for one in self._dense.passes if outcomes else self._dense.passes[:1]:
            fill(one.numbers, given)
            t = np.full(n, one.base, np.float32)  # (n,) the wide part
            for group in groups:
                self._pool(one, group, cat, given, t)
            z = one.forward.page(given, room) + t
            logits.append(z + one.lift * logits[0] if logits else z)
        # Each by itself: torch rounds a value by its place in the array.
        p: list[Floats] = [torch.sigmoid(torch.from_numpy(z)).numpy() for z in logits]
        return np.stack(p, axis=1) if outcomes else p[0]

    def _distinct(self, number: int, cat: Ids) -> _PageIds | None:
        """The distinct ids of the group ``number``; None: there are none."""
        form, group = self.form, self.form.inputs.groups[number]
        lone, columns, room = form.once[number], group.columns, form.room
        if not group.width and form.inputs.crosses:
            crossed = np.empty((len(cat), len(lone)), np.int64)
            crossed[:, : len(columns)] = cat[:, columns]
            kernels.cross(as_read(cat), form.crossed, form.seeds, len(columns), crossed)
            cat, columns = crossed, np.arange(len(lone))
        n, c = len(cat), len(columns)
        if not n or not c:
            return None
        size = n * int((~lone).sum()) + int(lone.sum())
        bits = max(4, size.bit_length() + 1)
        scratch = _integers(room, "scratch", 1 << bits)
        scratch.fill(FREE)
        unique = np.empty(size, np.int64)
        inverse = _integers(room, f"inverse {number}", n * c).reshape(n, c)
        found = kernels.distinct(as_read(cat), columns, lone, scratch, 64 - bits, unique, inverse)
        return _PageIds(number, unique[:found], inverse)

    def _pool(self, one: PagePass, ids: _PageIds, cat: Ids, given: PageInput, t: Floats) -> None:
        """Pools the embeddings of a group into ``given``, and adds its wide weights to ``t``."""
        form, inputs, number, inverse = self.form, self.form.inputs, ids.group, ids.inverse
        group, (at, end) = inputs.groups[number], inputs.spans[number]
        places, lone = as_read(form.place[at : end : max(1, group.width)]), form.once[number]
        values = form.room.array("values", len(ids.unique), group.table_width + 1)
        self.tables[one.name + group.name].values(ids.unique, values)
        kernels.pool(values, inverse, group.meant, group.texts, lone, group.lent, places, given.own, given.same[0], t)
        for content in (c for c in inputs.contents if c.group == number):
            item, text = int(form.place[content.item]), int(form.place[content.text])
            own = given.own[: given.n]
            own[:, item : item + content.width] += own[:, text : text + content.width]
        for field in (f for f in inputs.attended if f.group == number):
            slots = np.ascontiguousarray(inverse[:1, field.first : field.first + field.slots])
            bias = field.bias(one.network.ages.numpy(), field.bucket(cat[:1, field.cat]))
            query = np.ascontiguousarray(inverse[:, field.query])
            place = int(form.place[field.at])
            attention.attend(values, group.width, query, slots, bias, given.own, place)


class _PageIds(NamedTuple):
    """The ids of a page in the tables of one group."""

    group: int
    unique: Ids  # (U,)
    inverse: NDArray[np.int32]  # (n, C) as of :func:`learner.serving.overlaykernels.distinct`


def _fill_zeros(_: NumberPlan, given: PageInput) -> None:
    given.own[:], given.same[:] = 0, 0


def _integers(room: Workspace, name: str, size: int) -> NDArray[np.int32]:
    flat: NDArray[np.int32] = room.array(name, 1, size).reshape(-1).view(np.int32)
    return flat
