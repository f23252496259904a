# core
"""Makes the versions of a model that serves: the base of a snapshot, then an overlay for each delta.

Readers are in learner/serving/serving_model.py, which describes the whole. Both agree on the form of an overlay
(:func:`layers_of`)::

    slots, data       of all tables, one behind another (learner/serving/overlay.py)
    entries, changed  (T,) of each table: its records, and how many of them are rows; the others are removed ids
    dense, page/...   as :meth:`ModelWriter.base` has them, if the delta has dense tensors
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.network.forward import Arithmetic, PageInput, prepared, rows_of
from learner.network.models import Network
from learner.serving.model_form import Arrays, Floats, ModelForm, with_tensors
from learner.serving.overlay import Allocate, TableWriter, entries, overlay_slots, record_width
from millrace.basics.errors import SnapshotError
from millrace.contracts.schema import Schema
from millrace.versions.modelstore import Image

_LINE = 64  # bytes of a cache line


class ModelWriter:
    """Makes versions for readers. One thread at a time.

    Args:
        allocate: allocates what readers see: zeroed memory of a shape and dtype.

    An image that is not one of this model raises SnapshotError (:meth:`check`) and changes nothing; a spec that is none
    raises SettingError.
    """

    def __init__(self, schema: Schema, spec: Mapping[str, Any], allocate: Allocate = np.zeros) -> None:
        self.form = ModelForm(schema, spec)
        self._allocate = allocate
        self._arithmetic: Arithmetic | None = None  # of pages; None: not chosen yet
        max_rows = self.form.spec.max_rows
        self.tables = {name: TableWriter(width, max_rows, allocate) for name, width in self.form.widths.items()}
        self._newest: Arrays = {}  # dense tensors of the newest version that is staged
        self._dense: Arrays = {}  # of the newest that is folded
        self._pending: list[Arrays] = []
        self.folded = 0
        self.generation = 0

    @classmethod
    def of(
        cls,
        schema: Schema,
        spec: Mapping[str, Any],
        parts: Image | Iterable[Image],
        rows: Mapping[str, int] | None = None,
        allocate: Allocate = np.zeros,
        choose: Callable[[ModelWriter], Arithmetic] | None = None,
    ) -> ModelWriter:
        """The writer of a snapshot: a whole image, or its parts in order, taken one by one. ``rows``: about how many
        each table will have; it saves a third of the time. ``choose``: says, of the loaded writer, in what arithmetic
        readers compute pages; default: float32. Raises SettingError where the spec is not one, and
        SnapshotError where a part is not one of this model, or the dense tensors did not come."""
        writer = cls(schema, spec, allocate)
        for name, count in (rows or {}).items():
            if name in writer.tables:
                writer.tables[name].reserve(count)
        for image in [parts] if isinstance(parts, Image) else parts:
            writer.load(image)
        if not writer._dense:
            raise SnapshotError("the parts of a snapshot have no dense tensors", "give all of them, in order")
        writer._arithmetic = "float32" if choose is None else choose(writer)
        writer._dense = writer._newest = writer._derived(writer._newest["dense"])
        return writer

    def network(self) -> Network:
        """The network of the newest staged version, in evaluation mode."""
        return self._network(self._newest["dense"])

    def _network(self, flat: Floats) -> Network:
        tensors = {name: torch.from_numpy(array) for name, array in self.form.named(flat).items()}
        return with_tensors(self.form.network, tensors)

    def sizes(self) -> str:
        """What a pass of the network costs depends on: its kind and the sizes of its matrices."""
        sizes = " ".join(f"{name}{list(shape)}" for name, shape in self.form.shapes.items() if len(shape) > 1)
        return f"{self.form.spec.model} {len(self.form.columns.own)} {sizes}"

    def example(self, n: int, rng: np.random.Generator) -> PageInput:
        """A page of n rows: embeddings of ids that the tables have, and numbers of the standard normal distribution."""
        form = self.form
        x = rng.standard_normal((n, form.network.shape.flat), np.float32)
        for (at, end), group in zip(form.inputs.spans, form.inputs.groups, strict=True):
            if group.width:
                rows = self.tables[group.name].sample(n * len(group.fields), rng)
                x[:, at:end] = rows[:, : group.width].reshape(n, -1)
        own = np.zeros((rows_of(n), len(form.columns.own)), np.float32)
        own[:n] = x[:, form.columns.own]
        return PageInput(own, x[:1, form.columns.same], n)

    @property
    def rows(self) -> int:
        """Rows in all tables, as far as they are folded."""
        return sum(len(t) for t in self.tables.values())

    def dense(self) -> dict[str, Floats]:
        """The tensors of the newest staged version, by name: read-only views."""
        return self.form.named(self._newest["dense"])

    def check(self, image: Image) -> None:
        """Checks that a delta, or a part of a snapshot, is one of this model: every table with each of its columns, and
        all dense tensors or none. The error names what is wrong."""
        if problem := self._problem(image):
            raise SnapshotError(f"a delta has {problem}", "the next snapshot mends it")

    def _problem(self, image: Image) -> str:
        shapes = self.form.shapes
        if image.dense and set(image.dense) != set(shapes):
            return f"not the model's tensors: {_unlike(set(image.dense), set(shapes))}"
        for name, array in image.dense.items():
            if array.shape != shapes[name] or array.dtype != np.float32:
                return f"a tensor '{name}' that is {array.dtype} {array.shape}, not float32 {shapes[name]}"
        if set(image.tables) != set(self.tables):
            return f"not the model's tables: {_unlike(set(image.tables), set(self.tables))}"
        for name, rows in image.tables.items():
            problem = self.tables[name].check(rows)
            if problem:
                return f"in table '{name}' {problem}"
        return ""

    def load(self, image: Image) -> None:
        """Puts a part of a snapshot into the base at once, before any reader attaches."""
        self.check(image)
        for name, rows in image.tables.items():
            self.tables[name].load(rows)
        if image.dense:
            self._dense = self._newest = self._dense_of(image.dense)

    def base(self) -> Arrays:
        """The folded versions, as :meth:`~learner.serving.serving_model.ServingModel.attach` takes them. Live:
        :meth:`fold` writes to these arrays. A reader that attaches must at once follow all :meth:`pending` overlays."""
        found: Arrays = {**self._dense}
        for name, table in self.tables.items():
            found |= {f"{name}/slots": table.slots, f"{name}/data": table.data}
        return found

    def pending(self) -> list[Arrays]:
        """The staged overlays that are not yet folded whole, oldest first."""
        return list(self._pending)

    def stage(self, image: Image) -> Arrays:
        """The overlay of a delta, for readers to follow: a hash of its changed rows and of its removed ids for each
        table; and if it has dense tensors, a buffer of these with what is derived from them for each version."""
        self.check(image)
        counts = [entries(rows) for rows in self._changes(image)]
        widths = [record_width(table.width) for table in self.tables.values()]
        first = sum(overlay_slots(n) for n in counts)  # even, as records have to lie
        room = self._allocate((first + sum(n * width for n, width in zip(counts, widths, strict=True)),), np.int32)
        slots, data = room[:first], room[first:].view(np.float32)
        overlay: Arrays = {"slots": slots, "data": data, "entries": np.array(counts, np.int64)}
        layers = layers_of(overlay, widths)
        for table, rows, (own_slots, own_data) in zip(self.tables.values(), self._changes(image), layers, strict=True):
            table.stage(rows, own_slots, own_data)
        overlay["changed"] = np.array([len(rows.ids) for rows in self._changes(image)], np.int64)
        if image.dense:
            self._newest = self._dense_of(image.dense)
            overlay |= self._newest
        self._pending.append(overlay)
        return overlay

    def fold(self, rows: int) -> bool:
        """Moves at most ``rows`` rows of the oldest staged overlay into the base; returns whether there is more to
        fold.

        Call it only when every reader has followed that overlay: until then some answer by the base's rows of the
        version before. Likely mistake: to fold what a reader that is just attaching has not followed yet.

        Where a table has outgrown its slots, the same calls make larger ones first. Then :attr:`generation` rises, and
        readers must get the new :meth:`base` with their next
        :meth:`~learner.serving.serving_model.ServingModel.settled`.
        """
        if not self._pending:
            return False
        left = rows
        for table in self.tables.values():
            slots = table.slots
            while left > 0 and (took := table.fold(left)):
                left -= took
            self.generation += table.slots is not slots
        if left > 0:  # every table has all of it
            for table in self.tables.values():
                table.settle()
            overlay = self._pending.pop(0)
            self._dense = {name: overlay[name] for name in self._dense if name in overlay} or self._dense
            self.folded += 1
        return bool(self._pending)

    def _changes(self, image: Image) -> list[Any]:
        return [image.tables[name] for name in self.tables]

    def _dense_of(self, tensors: Mapping[str, NDArray[Any]]) -> Arrays:
        """A version's buffer of its tensors, and what is derived from it."""
        flat = self._allocate((self.form.size,), np.float32)
        for name, view in self.form.named(flat).items():
            view[...] = tensors[name]
        return self._derived(flat)

    def _derived(self, flat: Floats) -> Arrays:
        made: Arrays = {"dense": flat}
        if self.form.paged and self._arithmetic is not None:
            for begin, network in self.form.bodies(self._network(flat)).items():
                for name, array in prepared(network, self.form.columns, self._arithmetic).items():
                    room = made[begin + name] = _aligned(self._allocate, array.size, array.dtype)
                    room[...] = array
        return made


def layers_of(overlay: Arrays, widths: list[int]) -> list[tuple[NDArray[np.int32], Floats]]:
    """The slots and records of each table in an overlay."""
    found = []
    at = place = 0
    for n, width in zip(overlay["entries"].tolist(), widths, strict=True):
        size = overlay_slots(n)
        found.append((overlay["slots"][at : at + size], overlay["data"][place : place + n * width].reshape(n, width)))
        at, place = at + size, place + n * width
    return found


def _aligned(allocate: Allocate, size: int, dtype: Any) -> NDArray[Any]:
    """Memory (size,) that begins at a cache line: products take a third longer where it does not."""
    each = np.dtype(dtype).itemsize
    room = allocate((size + _LINE // each,), dtype)
    skip = -room.ctypes.data % _LINE // each
    return room[skip : skip + size]


def _unlike(found: set[str], wanted: set[str]) -> str:
    lacks, more = sorted(wanted - found), sorted(found - wanted)
    return ", ".join([*(f"'{n}' is missing" for n in lacks), *(f"'{n}' is unknown" for n in more)])
