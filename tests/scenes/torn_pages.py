"""Pages under changing versions: does any answer mix two of them?

A writer stages, and folds as soon as it may, versions of a small model, as fast as a reader beside it follows. The
reader asks for pages all the time, and says of each whether it is its version's to the bit. A version differs from the
one before in a third of the rows, by embedding and wide weight; in ids that are new, removed and never come again (so
that slots fill and are made again); and every other one in the network's bias.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.network.dense import threads
from learner.network.forward import Arithmetic, PageInput
from learner.ranker.model import OnlineModel
from learner.serving.model_form import Arrays, NumberPlan
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from millrace.contracts.schema import parse_schema
from millrace.versions.modelstore import Image, TableRows
from tests.scenes.schemas import named, of_item, windows_of

SCHEMA = parse_schema(named("torn") + of_item("item_id", "price:numeric") + windows_of(days=[1]))
_WIDTH = 4
SPEC = {"model": "wide_resnet", "width": _WIDTH, "hidden": [16], "blocks": 1, "max_rows": 20_000}

_IDS = 4000  # that a version has or had lately
_NEW = 40  # ids that come with a version; as many go for ever
_PAGE = 20
_AHEAD = 3  # versions that the reader may be behind
_PACE = 50  # pages that a version has at the least
_SLICE = 200  # rows folded at a time


@dataclass(frozen=True, slots=True)
class _Truth:
    """What a version answers by: its ids are ``first`` to before ``first + _IDS``, id i at place ``i % _IDS``."""

    first: int
    embedding: NDArray[np.float32]  # (_IDS,) the first column of the id's embedding; 0 where it has none
    wide: NDArray[np.float32]  # (_IDS,)
    bias: np.float32

    def scores(self, ids: NDArray[np.int64], prior: float) -> NDArray[np.float32]:
        here = ids >= self.first
        place = ids % _IDS
        logit = np.where(here, self.embedding[place], np.float32(0)) + self.bias
        wide = np.float32(prior) + np.where(here, self.wide[place], np.float32(0))
        found: NDArray[np.float32] = torch.sigmoid(torch.from_numpy(logit + wide)).numpy()
        return found


class Versions:
    """Makes deltas, and the truth of each. Values are multiples of 1/8 below 8, which bfloat16 holds as they are."""

    def __init__(self) -> None:
        image = OnlineModel(SCHEMA, SPEC, 0).snapshot()[0]
        (self._table,) = image.tables
        self._dense = {name: np.zeros_like(a) for name, a in image.dense.items()}
        self._dense["scale.var"] += 1
        self._dense["out.weight"][0, 0] = 1  # the logit is the embedding's first column, and the bias
        self.number = 0
        self._first = 1
        self._embedding, self._wide = np.zeros((2, _IDS), np.float32)
        self._has = np.zeros(_IDS, np.bool_)

    def next(self) -> tuple[Image, _Truth]:
        v = self.number
        gone = np.arange(self._first, self._first + (_NEW if v else 0))
        self._first += len(gone)
        live = np.arange(self._first, self._first + _IDS)
        fresh = live[-_NEW:] if v else live
        touched = live[((live + v) % 3 == 0) | (live >= fresh[0])]
        some = live[((live + v) % 7 == 0) & ((live + v) % 3 != 0) & (live < fresh[0])]
        removed = np.concatenate([gone, some])
        for array in (self._embedding, self._wide, self._has):
            array[removed % _IDS] = 0
        place = touched % _IDS
        self._has[place] = True
        self._embedding[place] = (touched + v) % 61 / 8 + 0.125
        self._wide[place] = (touched + 5 * v) % 59 / 8
        if v % 2 == 0:
            self._dense["out.bias"][:] = v % 31 / 8
        embedding = np.zeros((len(touched), _WIDTH), np.float32)
        embedding[:, 0] = self._embedding[place]
        rows = TableRows(touched, {"embedding": embedding, "wide": self._wide[place]}, removed)
        dense = {name: a.copy() for name, a in self._dense.items()} if v % 2 == 0 else {}
        self.number += 1
        bias = np.float32(self._dense["out.bias"][0])
        return Image(dense, {self._table: rows}), _Truth(self._first, self._embedding.copy(), self._wide.copy(), bias)


@dataclass(frozen=True, slots=True)
class _Message:
    """What the writer tells the reader: an overlay to follow with its truth, or how many overlays have been folded."""

    overlay: Arrays | None = None
    truth: _Truth | None = None
    folded: int = 0
    base: Arrays | None = None


class _Reader:
    """Asks for pages of one version after another."""

    def __init__(self, model: ServingModel, truth: _Truth) -> None:
        self.model, self.truth = model, truth
        self.reported: deque[_Message] = deque()
        self.followed = self.pages = self.torn = 0
        self._rng = np.random.default_rng(0)
        self._prior = model.form.inputs.prior_logit

    def hear(self) -> None:
        """Applies what the writer told, as a scorer does between two requests."""
        while self.reported:
            message = self.reported.popleft()
            if message.overlay is not None and message.truth is not None:
                self.model, self.truth = self.model.followed(message.overlay), message.truth
                self.followed += 1
            else:
                self.model = self.model.settled(message.folded, message.base)

    def page(self) -> None:
        first = self.truth.first
        ids = self._rng.integers(max(1, first - _NEW), first + _IDS, _PAGE)
        scores = self.model.score_page(ids[:, None], _without_price)
        self.torn += scores.tobytes() != self.truth.scores(ids, self._prior).tobytes()
        self.pages += 1


def _without_price(_: NumberPlan, given: PageInput) -> None:
    given.own[:, -1] = 0


def torn_pages(pages: int, arithmetic: Arithmetic = "float32", patient: bool = True) -> dict[str, int]:
    """Asks for so many ``pages`` under changing versions: how many were ``torn``, and how many ``versions`` there were.

    Args:
        arithmetic: of the pages.
        patient: whether the writer folds a version only when the reader has followed it. If not, pages are torn: this
            is how to see that the count can be other than 0.
    """
    versions = Versions()
    image, truth = versions.next()
    writer = ModelWriter.of(SCHEMA, SPEC, image, choose=lambda _: arithmetic)
    reader = _Reader(ServingModel.attach(SCHEMA, SPEC, writer.base()), truth)
    ended = threading.Event()
    progress = threading.Condition()

    def write() -> None:
        generation = 0
        while not ended.is_set():
            change, now = versions.next()
            message = _Message(writer.stage(change), now)
            if patient:
                reader.reported.append(message)
            _wait(lambda: versions.number - 1 - reader.followed <= (_AHEAD if patient else 1))
            _wait(lambda: not patient or reader.pages > versions.number * _PACE)
            while not ended.is_set() and writer.folded < reader.followed + (not patient):
                whole = writer.folded
                writer.fold(_SLICE)
                if writer.folded > whole:
                    base = None if writer.generation == generation else writer.base()
                    generation = writer.generation
                    if not patient:
                        seen = reader.pages
                        _wait(lambda seen=seen: reader.pages > seen + 1)
                        reader.reported.append(message)
                    reader.reported.append(_Message(folded=writer.folded, base=base))

    def _wait(until: Any) -> None:
        with progress:
            progress.wait_for(lambda: ended.is_set() or until())

    thread = threading.Thread(target=write, name="writer")
    with threads(1):
        thread.start()
        try:
            while reader.pages < pages:
                reader.hear()
                reader.page()
                with progress:
                    progress.notify()
        finally:
            ended.set()
            with progress:
                progress.notify()
            thread.join()
    return {"pages": reader.pages, "torn": reader.torn, "versions": reader.followed, "moves": writer.generation}
