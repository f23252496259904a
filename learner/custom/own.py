# core
"""A model of one's own as the learner holds it: the class of :class:`~learner.ranker.interfaces.CustomModel`, and all
else around it.

::

    batch ──► usable rows ──► learn ──► score the batch again ──► snapshot ──► the last good state
                                │                │                    │              │
                              raises          unusable             unusable          ▼
                                └────────────────┴──── refused, counted ──► another object

So a refused batch leaves no trace, even where the class changed itself before it raised, and what is published is
always the last good state. Offline the first fault ends the run, so a snapshot is taken only where one is asked for.

Followers see dense tensors alone, and no table::

    Image.dense     each array of the class's snapshot but those of "training/"
    training half   "own/NAME" of these; "known/..." (ownids.py); "delays/..." (delays.py of the models); "clock"
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.custom.ownclass import (
    InvalidModelError,
    OwnClass,
    arrays_of,
    differs,
    error_text,
    learnt,
    scores_of,
    serving_of,
)
from learner.custom.ownids import KnownIds, id_columns
from learner.network.models import Columns
from learner.network.models.delays import SIZE, Delays
from learner.network.models.spec import read_spec
from learner.ranker.inputs import finite
from learner.ranker.interfaces import TRAINING, CustomModel
from learner.ranker.model import LearnReport
from learner.ranker.sampling import usable
from learner.ranker.snapshot_slices import Part
from millrace.basics.errors import SettingError, SnapshotError, one_line
from millrace.basics.ranking_metrics import log_loss
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.labels import asks, weigh, weighs
from millrace.versions.image import Array, Image, below

log = structlog.get_logger("learner")

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class OwnModel:
    """A model of one's own that learns batch by batch. One thread at a time. Raises SettingError where the class cannot
    be imported or made, or breaks the rules of its methods.

    Args:
        schema: the meaning of the arrays; a model is bound to it.
        spec: "model" is the name of its class, ``module:Class``, which is imported: never a name from a message. The
            class gets the other entries.
        seed: for the class.
        live: later failures are counted, and end nothing. Else each raises SettingError: an offline run must not end
            with figures of a model that failed on the way.
    """

    by_page = False
    head = None
    tables: Mapping[str, Any] = MappingProxyType({})
    rows = 0

    def __init__(self, schema: Schema, spec: Mapping[str, Any], seed: int, *, live: bool) -> None:
        self.schema, self.seed, self._live = schema, seed, live
        self._class = OwnClass.of(schema, spec)
        self.name = self._class.name
        if self._class.other_source(spec):
            log.warning("the code of the class is not what it was when the snapshot was made", model=self.name)
        self._class.probe()
        self._model: CustomModel | None = self._class.make(seed)  # None: its last batch was refused
        self.newest_ms = 0
        self.faults: Counter[str] = Counter()
        """Failures by method: "score", "learn"."""
        self._ids, self._known = id_columns(schema), KnownIds()
        self._settled_minutes = read_spec({n: spec[n] for n in ("settled_minutes",) if n in spec}).settled_minutes
        self._delay_weights, self._delays = self._fresh_delays()
        self._good = arrays_of(self._model)  # the last good state
        self._reports_loss = False

    @property
    def spec(self) -> dict[str, Any]:
        """The name of the class, its entries, the settled wait of clicks, and a digest of the code."""
        known = {"model": self.name, "settled_minutes": self._settled_minutes}
        return {**known, **self._class.entries, **self._class.source}

    @property
    def columns(self) -> Columns:
        layout = self.schema.layout
        return Columns((), (), tuple(layout.num_names), (), tuple(f.name for f in layout.cat_fields))

    @property
    def nbytes(self) -> int:
        """Memory of the state as arrays, in bytes, held twice. The object itself may take more."""
        return 2 * sum(a.nbytes for a in self._good.values()) + self._known.nbytes

    # -- the verbs -------------------------------------------------------------------------------------------

    def score(self, cat: Ids, num: Floats) -> Floats:
        """Click probabilities (B,) of cat (B, F), num (B, N); NaN in all rows where the class fails."""
        if not len(cat):
            return np.empty(0, np.float32)
        try:
            return scores_of(self._object(), cat, finite(num)[0])
        except Exception as error:
            self._fault("score", error)
            return np.full(len(cat), np.nan, np.float32)

    def knows(self, field: str, cat: Ids) -> NDArray[np.bool_]:
        """Whether the id that each row of cat (n, F) has in a field of users or items was learnt from lately. (n,)"""
        return self._known.has(cat[:, self._ids[field]])

    def learn(self, batch: SampleBatch, vouched: bool = False) -> LearnReport:
        """One call of the class's ``learn``, without follow-ups and unusable rows. A batch is refused whole where the
        class raises, or then gives no probabilities for these rows, ``vouched`` or not."""
        batch, refused = usable(batch)
        if not len(batch):
            return LearnReport(0.0, 0, None, refused)
        num, bad = finite(batch.num)
        if bad:
            batch = replace(batch, num=num)
        try:
            policy = batch.policy
            weighing = weighs(policy)
            if weighing:  # the label policy's own weights
                p = scores_of(self._object(), batch.cat, batch.num)
                early = self._delays.early(batch.position, batch.cat)
                batch = replace(batch, weight=batch.weight * weigh(policy, batch.kind, p, early))
            loss, skipped = self._step(batch)
        except Exception as error:
            self._model = None
            self._fault("learn", error)
            why = "model_invalid" if isinstance(error, InvalidModelError) else "model_raised"
            return LearnReport(math.nan, 0, why, refused, bad)
        if skipped is not None:  # by the class itself, which left itself as it was
            return LearnReport(loss, 0, skipped, refused, bad)
        if weighing and (asking := asks(policy)).any():
            self._delays.learn(batch if asking.all() else batch.take(asking))
        self.newest_ms = max(self.newest_ms, int(batch.ts_ms.max()))
        for column in self._ids.values():
            self._known.add(batch.cat[:, column])
        return LearnReport(loss, len(batch), None, refused, bad)

    def _object(self) -> CustomModel:
        """The object of the class; after a refused batch another one, of the last good state. Raises what its class
        raises where it cannot be made: half learnt, none scores, learns or is published."""
        if self._model is None:
            self._model = self._class.resumed(self._good, self.seed)
        return self._model

    def _step(self, batch: SampleBatch) -> tuple[float, str | None]:
        """Has the object learn a batch. Returns its mean loss before, and why the class refused it, if it did. Raises
        InvalidModelError where it gives no probabilities for these rows now, or no usable state."""
        loss, model = math.nan, self._object()
        if not self._reports_loss:
            with contextlib.suppress(Exception):  # the figure is all that is lost
                loss = log_loss(scores_of(model, batch.cat, batch.num), batch.label)
        report = learnt(model, batch)
        self._reports_loss = report is not None
        scores_of(model, batch.cat, batch.num)
        if self._live and (report is None or report.skipped is None):
            self._take(model)
        return (loss, None) if report is None else (float(report.loss), report.skipped)

    def _take(self, model: CustomModel) -> None:
        """Makes the state of an object the last good one. Raises InvalidModelError where it is not usable."""
        arrays = arrays_of(model)
        if arrays.keys() != self._good.keys():
            raise InvalidModelError(
                f"snapshot gave other names than before: {sorted(arrays.keys() ^ self._good.keys())}"
            )
        self._good = arrays

    def _fault(self, verb: str, error: Exception) -> None:
        """Counts a failure, and logs the first, the tenth ... Raises SettingError where it is not live."""
        if not self._live:
            raise SettingError(
                f"model '{self.name}' failed in {verb}: {error_text(error, self.name)}",
                "correct it; a live learner would count this and go on, docs/how-to/use-your-own-model.md says how",
            ) from error
        self.faults[verb] += 1
        count = self.faults[verb]
        if count == 10 ** (len(str(count)) - 1):
            log.error(
                "the model of one's own fails",
                model=self.name,
                verb=verb,
                times=count,
                error=error_text(error, self.name),
            )

    # -- versions --------------------------------------------------------------------------------------------

    def changes(self, dense: bool = True, retrieval: bool = True) -> Image:
        return Image(serving_of(self._state()), {}) if dense else Image({}, {})

    def snapshot(self) -> Part:
        return Image(serving_of(self._state()), {}), self.small_state()

    def _state(self) -> dict[str, Array]:
        """The last good state; offline it is taken now. Raises SettingError where that fails."""
        if not self._live:
            try:
                self._take(self._object())
            except Exception as error:
                self._fault("snapshot", error)
        return self._good

    def slices(self, rows: int = 100_000) -> OwnSlices:
        """A snapshot in one part: there are no rows to copy beside learning."""
        return OwnSlices(self)

    def small_state(self) -> dict[str, Array]:
        """What a snapshot has besides the arrays that scorers get."""
        state = {f"own/{n}": a for n, a in below(TRAINING, self._good).items()}
        state |= {f"known/{n}": a for n, a in self._known.snapshot().items()}
        state |= {f"delays/{n}": a for n, a in self._delays.snapshot().items()}
        state["delays/weights"] = self._delay_weights.numpy().copy()
        state["clock"] = np.array([self.newest_ms, self.seed], np.int64)
        return state

    def around(self) -> dict[str, Array]:
        """What scorers and later steps need besides the state of the class. Shares memory with the model."""
        return {"delays/weights": self._delay_weights.numpy(), "newest_ms": np.array([self.newest_ms], np.int64)}

    def _fresh_delays(self) -> tuple[Tensor, Delays]:
        """The model of click delays, as registered models have it: the weights of some label policies depend on it."""
        weights = torch.zeros(SIZE)
        return weights, Delays(weights, round(self._settled_minutes * 60_000))

    def resume(
        self, snapshot: Image | Iterable[tuple[Image, Mapping[str, Array]]], training: Mapping[str, Array] | None = None
    ) -> None:
        """Replaces this model's state by a snapshot of this class with this schema and spec; the seed becomes the
        snapshot's. ``snapshot``: a whole image with its ``training``, or without it the parts of a snapshot, in order.
        Raises SnapshotError where the class refuses it, or becomes something else; this one stays as it was."""
        arrays: dict[str, Array] = {}
        state: dict[str, Array] = {}
        tables: set[str] = set()
        for image, own in [(snapshot, training or {})] if isinstance(snapshot, Image) else snapshot:
            arrays |= image.dense
            tables |= set(image.tables)
            state |= own
        arrays |= {f"{TRAINING}{n}": a for n, a in below("own/", state).items()}
        known = KnownIds()
        try:
            if tables:
                raise ValueError(f"it has the tables {sorted(tables)}")
            newest_ms, seed = (int(v) for v in state["clock"])
            known.resume(below("known/", state))
            weights, delays = self._fresh_delays()
            delays.resume(below("delays/", state))
            weights.copy_(torch.from_numpy(np.array(state["delays/weights"])))
            model = self._class.resumed(arrays, seed)
            kept = arrays_of(model)
            if changed := differs(arrays, kept):
                raise ValueError(f"'{changed}' is another one after it was resumed")
        except Exception as error:
            raise SnapshotError(
                f"the snapshot is not of a '{self.name}' with this schema and spec ({one_line(error)})",
                "start with an empty model folder, or with the settings it was made with",
            ) from None
        self._model, self._good, self._known = model, kept, known
        self.newest_ms, self.seed = newest_ms, seed
        self._delay_weights, self._delays = weights, delays


class OwnSlices:
    """The snapshot of a model of one's own; used as :class:`~learner.ranker.snapshot_slices.Slices` is."""

    def __init__(self, model: OwnModel) -> None:
        self._model = model

    def next(self) -> Part | None:
        return None

    def finish(self) -> Part:
        return self._model.snapshot()

    def abandon(self) -> None:
        """Does nothing, for nothing is tracked."""
