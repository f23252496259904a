# core
"""A model of one's own as scorers hold it. For registered models, learner/serving/staging.py and serving.py do this.

Each worker makes and resumes an object of its own for each version, between two pages. So a version never changes under
a page. The writer makes one first and has it score a few rows: a delta that the class refuses reaches no worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.custom.ownclass import OwnClass, error_text, probe_rows, scores_of
from learner.ranker.inputs import finite
from learner.ranker.interfaces import TRAINING
from learner.serving.overlay import Allocate
from millrace.basics.errors import SnapshotError
from millrace.contracts.schema import Schema
from millrace.versions.image import Array, Image, below

log = structlog.get_logger("scorer")

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Arrays = dict[str, Array]

_PREFIX = "own/"
_WHAT = "rows"  # an array that each overlay has, also one without weights: (0,)
_REMEDY = "the next snapshot mends it"


class OwnServing:
    """One version, to score with. Reads only; one thread at a time."""

    numbers = None
    """Ranking has no input to fill: a page is scored from ``cat`` and ``num``."""

    def __init__(self, schema: Schema, spec: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self.schema, self.spec = schema, dict(spec)
        self._arrays = dict(arrays)
        self._model = OwnClass.of(schema, spec).resumed(arrays)
        self._faults = 0

    @classmethod
    def attach(cls, schema: Schema, spec: Mapping[str, Any], base: Mapping[str, Array]) -> OwnServing:
        """A reader of :meth:`OwnWriter.base`. Raises SettingError where the class cannot be imported or made."""
        return cls(schema, spec, below(_PREFIX, base))

    def followed(self, overlay: Mapping[str, Array]) -> OwnServing:
        """The next version, made of these arrays. This one stays as it is."""
        arrays = below(_PREFIX, overlay)
        return OwnServing(self.schema, self.spec, arrays) if arrays else self

    def settled(self, folded: int, base: Mapping[str, Array] | None = None) -> OwnServing:
        """The same version: it is whole by itself."""
        return self

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (n,) of feature rows cat (n, F), num (n, N); NaN in all rows where the class raises or
        gives anything else. Then pages keep the order of recall, and ``scores`` counts as an error."""
        if not len(cat):
            return np.empty(0, np.float32)
        try:
            return scores_of(self._model, cat, finite(num)[0])
        except Exception as error:
            self._faults += 1
            if self._faults == 1:  # one time a version
                name = self.spec["model"]
                log.error("the model of one's own fails", model=name, verb="score", error=error_text(error, name))
            return np.full(len(cat), np.nan, np.float32)

    def warm(self, most: int) -> None:
        """Scores this many rows, for the work that a class does at its first call."""
        rows = probe_rows(self.schema, most)
        self.score(rows.cat, rows.num)

    def snapshot(self) -> Image:
        return Image({name: array.copy() for name, array in self._arrays.items()}, {})


class OwnWriter:
    """Makes versions for readers; used as :class:`~learner.serving.staging.ModelWriter` is. One thread at a time."""

    rows = 0

    def __init__(
        self, schema: Schema, spec: Mapping[str, Any], arrays: Mapping[str, Array], allocate: Allocate
    ) -> None:
        self._class, self._allocate = OwnClass.of(schema, spec), allocate
        self._try(arrays)
        if self._class.other_source(spec):
            log.warning("the code of the class here is not the learner's: scores may differ", model=spec["model"])
        self._base = self._newest = self._shared(arrays)
        self._pending: list[Arrays] = []
        self._tried: Image | None = None
        self.folded = self.generation = 0

    @classmethod
    def of(
        cls,
        schema: Schema,
        spec: Mapping[str, Any],
        parts: Image | Iterable[Image],
        allocate: Allocate = np.zeros,
    ) -> OwnWriter:
        """The writer of a snapshot. Imports ``spec``'s "model": the caller has compared it with its own setting. Raises
        SettingError where the class cannot be made, and SnapshotError where it refuses the arrays."""
        arrays: Arrays = {}
        for image in [parts] if isinstance(parts, Image) else parts:
            if image.tables:
                raise SnapshotError(f"a snapshot of '{spec['model']}' has the tables {sorted(image.tables)}", _REMEDY)
            arrays |= image.dense
        if not arrays:
            raise SnapshotError("the parts of a snapshot have no dense tensors", "give all of them, in order")
        return cls(schema, spec, arrays, allocate)

    def dense(self) -> Arrays:
        """The read-only arrays of the newest staged version."""
        return below(_PREFIX, self._newest)

    def check(self, image: Image) -> None:
        """Has an object take a delta and score a few rows. Raises SnapshotError on failure. Changes nothing."""
        if image.tables:
            raise SnapshotError(f"a delta of '{self._class.name}' has the tables {sorted(image.tables)}", _REMEDY)
        if image.dense:
            if other := set(image.dense) ^ set(self.dense()):
                raise SnapshotError(f"a delta has not the model's arrays: {sorted(other)} are in one alone", _REMEDY)
            self._try(image.dense)
        self._tried = image

    def stage(self, image: Image) -> Arrays:
        """What readers follow: all arrays of the delta, which must pass :meth:`check`."""
        if self._tried is not image:
            self.check(image)
        self._tried = None
        overlay: Arrays = {_WHAT: np.zeros(0, np.int64)}
        if image.dense:
            self._newest = self._shared(image.dense)
            overlay |= self._newest
        self._pending.append(overlay)
        return overlay

    def base(self) -> Arrays:
        return {_WHAT: np.zeros(0, np.int64), **self._base}

    def pending(self) -> list[Arrays]:
        """The staged overlays that are not yet folded, oldest first."""
        return list(self._pending)

    def fold(self, rows: int) -> bool:
        """Makes the oldest staged version the base; returns whether there is more to fold."""
        if self._pending:
            overlay = self._pending.pop(0)
            self._base = {n: a for n, a in overlay.items() if n != _WHAT} or self._base
            self.folded += 1
        return bool(self._pending)

    def _shared(self, arrays: Mapping[str, Array]) -> Arrays:
        found: Arrays = {}
        for name, array in arrays.items():
            found[_PREFIX + name] = self._allocate(array.shape, array.dtype)
            found[_PREFIX + name][...] = array
        return found

    def _try(self, arrays: Mapping[str, Array]) -> None:
        name = self._class.name
        if any(n.startswith(TRAINING) for n in arrays):
            raise SnapshotError(f"a version of '{name}' has arrays of '{TRAINING}'", _REMEDY)
        rows = probe_rows(self._class.schema)
        try:
            model = self._class.resumed(arrays)
            scores_of(model, rows.cat, rows.num)
        except Exception as error:
            raise SnapshotError(
                f"'{name}' does not take a version's arrays: {error_text(error, name)}", _REMEDY
            ) from error
