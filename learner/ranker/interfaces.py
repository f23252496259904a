# core
"""The interfaces of a model: the methods of a model of one's own (:class:`CustomModel`), and what a learner asks of
any model (:class:`Learning`). learner/custom/own.py makes the second of the first; model.py is the other one.

Symbols: B rows of a batch; F categorical columns of ``cat`` and N numbers of ``num``, as ``schema.layout`` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array, Image

if TYPE_CHECKING:
    from learner.network.models import Columns
    from learner.ranker.model import LearnReport
    from learner.retrieval.retrieval import RetrievalHead

TRAINING = "training/"
"""Arrays whose names begin with it serve learning alone: they are in snapshots, and never reach a scorer."""


class CustomModel(Protocol):
    """A model of your own, named ``module:Class`` in ``MILLRACE_MODEL`` or ``--model``.

    It is made as ``Class(schema, spec, seed)``: ``schema.layout`` names the columns of ``cat`` and ``num``, ``spec`` is
    the object of ``MILLRACE_MODEL_SPEC`` (a dict, perhaps empty), ``seed`` an int. The learner makes one object, and
    another after each refused batch; a scorer makes one in each worker for each version. So the constructor must be
    quick, and must neither start threads nor open files.

    One thread calls an object at a time. No other method is ever called, and no attribute read.
    """

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        """Click probabilities p (B,) in [0, 1] of the rows cat (B, F), num (B, N), with B >= 1.

        The learner calls it before it learns each batch (the model is judged on that), and each scorer calls it for all
        candidates of a page (some hundred rows).

        ``cat`` holds ids: hashes that mean nothing but equality, 0 where a value is missing. Unseen ids come all the
        time. ``num`` is always finite. Both are read-only: a page logs the same arrays.

        Never change anything in it, not even a table entry for an unseen id. That is the likely mistake: many libraries
        create what they look up, and a scorer would grow with every page.
        """

    def learn(self, batch: SampleBatch) -> LearnReport | None:
        """Learns from ``batch``: cat, num, label (B,) in [0, 1] and weight (B,) > 0, most often 0 or 1 and 1.

        Only the learner calls it, every ``BATCH_MS`` or ``BATCH_ROWS`` rows, with at least one row, and often with just
        one. Follow-ups, unusable labels and weights, and numbers that are not finite never come here. The arrays are
        read-only.

        An exception refuses the batch: the object is thrown away, and another one resumes the snapshot of before it. A
        report is optional; its loss saves the learner another scoring of the batch.

        The likely mistake is to draw from a random generator, or to read a clock. Two objects of one seed that learn
        the same batches must be equal to the bit, or a learner that starts again, and learns again what came after its
        last snapshot, gets another model. Draw from a generator that ``seed`` made and that the snapshot keeps.
        """

    def snapshot(self) -> Mapping[str, Array]:
        """The whole state as arrays by name: of floats, integers or bools, all floats finite, none sharing memory with
        the object. Names are always the same; shapes may change. Those that begin with ``training/`` stay with the
        learner.

        A learner calls it after each batch, a replay where it needs one. The state lies in memory a few times over,
        and a delta carries a gibibyte at most: that bounds it.

        The likely mistake is to give the live arrays: what was published would go on changing.
        """

    def resume(self, arrays: Mapping[str, Array]) -> None:
        """Becomes what :meth:`snapshot` gave, to the bit. The object owns the arrays and may write to them.

        It is called one time on a fresh object: by the learner with all arrays, by a scorer without those of
        ``training/``. An object that was resumed without them never learns.

        Raise ``ValueError`` or ``KeyError`` where they are not of this model. The likely mistake is to forget something
        that decides what comes next, as an optimiser's momentum or a counter of steps.
        """


class Scoring(Protocol):
    """What predicts: a model that learns, or one that serves."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...


class Predicting(Scoring, Protocol):
    """What those ask of a model who judge it by its predictions alone."""

    schema: Schema
    newest_ms: int


class Learning(Protocol):
    """What trainer, versions and service ask of a model: :class:`~learner.ranker.model.OnlineModel`, or a model of
    one's own in :class:`~learner.custom.own.OwnModel`. One thread at a time."""

    schema: Schema
    seed: int
    newest_ms: int
    """Time of the newest exposure learnt from."""

    @property
    def spec(self) -> dict[str, Any]:
        """Everything needed to make it again, JSON-able."""

    @property
    def columns(self) -> Columns: ...

    @property
    def by_page(self) -> bool:
        """Whether rows of one page are learnt together, so that no micro-batch may cut a page."""

    @property
    def tables(self) -> Mapping[str, Sized]:
        """Tables of rows by id; a model of one's own has none."""

    @property
    def head(self) -> RetrievalHead | None: ...

    @property
    def rows(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def knows(self, field: str, cat: NDArray[np.int64]) -> NDArray[np.bool_]: ...

    def learn(self, batch: SampleBatch, vouched: bool = False) -> LearnReport:
        """``vouched``: a person, or time, says that the rows are right."""

    def changes(self, dense: bool = True, retrieval: bool = True) -> Image: ...

    def snapshot(self) -> tuple[Image, dict[str, Array]]: ...

    def slices(self, rows: int = 100_000) -> Slicing: ...

    def resume(
        self, snapshot: Image | Iterable[tuple[Image, Mapping[str, Array]]], training: Mapping[str, Array] | None = None
    ) -> None: ...


class Slicing(Protocol):
    """The methods of :class:`~learner.ranker.snapshot_slices.Slices`."""

    def next(self) -> tuple[Image, dict[str, Array]] | None: ...

    def finish(self) -> tuple[Image, dict[str, Array]]: ...

    def abandon(self) -> None: ...
