# shell
"""A worker's replicas of the feeder's state: the effect of each message on what requests read.

::

    items      rows and counts of the item index that changed       applied to Serving.items
    lists      recall's lists                                       replace Serving.lists
    status     what has to be read, the newest event                replace Serving.to_read, .newest_counted_ms
    neighbours items clicked together                               replace Serving.neighbours
    base       a model's arrays ── attach, elsewhere ── attached    then served, once its overlays are there
    delta      an overlay                                           the next version is served
    folded     overlays that the base has now                       the same version without them
    retrieval  a retrieval version ─ attach, elsewhere ─ attached   replaces Serving.retrieval
    vectors    vectors of items that came or changed since          taken by the retrieval version that they are of

Messages are applied in the order sent, each between two requests. ``attach`` takes long, so it runs beside the
requests. Deltas and vectors wait for the attachment of their base or retrieval version; vectors of any other version
are ignored. Messages about versions and vectors name their learner (``facts["learner"]``), and go to its own replica.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from learner.custom.ownserving import OwnServing
from learner.retrieval.tower import UserTower
from learner.role.model_factory import reader_of
from learner.serving.serving_model import ServingModel
from millrace.contracts.schema import Schema
from millrace.versions.versioning import Announcement
from scorer.ipc.link import LinkMessage
from scorer.page.page_service import Serving
from scorer.page.worker_state import HeldModel
from scorer.recall.approximate import Approximate
from scorer.recall.candidate_lists import CandidateLists
from scorer.recall.nearest import Retrieval
from scorer.recall.neighbours import Neighbours


class ModelReplica:
    """Applies messages about one learner's versions to ``held``. ``attach`` starts the work for a base message;
    :meth:`attached` must be called with its result later, between two requests. ``serves`` is called with each new
    number."""

    def __init__(
        self,
        held: HeldModel,
        attach: Callable[[LinkMessage], None],
        serves: Callable[[int], None],
    ) -> None:
        self.held = held
        self._attach, self._serves = attach, serves
        self._base = 0  # of the model that we have
        self._folded = 0  # what its base held when we attached
        self._model: ServingModel | OwnServing | None = None
        self._missing = 0  # overlays that the base needs before it is a version
        self._note: Announcement | None = None
        self._later: list[LinkMessage] = []  # of the base that is being attached
        self._coming = 0
        self._looking: Retrieval | None = None
        self._fetched: LinkMessage | None = None  # the retrieval version that is being attached
        self._since: list[LinkMessage] = []  # vectors of it

    @property
    def model(self) -> ServingModel | OwnServing | None:
        return self._model

    @property
    def attaching(self) -> bool:
        """Whether a base has come that is not attached yet."""
        return bool(self._coming)

    def take(self, message: LinkMessage) -> None:
        """Applies a message. An unknown kind is ignored."""
        match message.kind:
            case "base":
                self._coming, self._later = message.facts["base"], []
                self._attach(message)
            case "delta":
                self._delta(message)
            case "folded":
                self._folds(message)
            case "retrieval":
                self._retrieval(message)
            case "vectors":
                self._vectors(message)

    def attached(self, message: LinkMessage, made: ServingModel | OwnServing | Retrieval) -> None:
        """Uses the result of :func:`attach`."""
        if isinstance(made, Retrieval):
            self._attached_retrieval(message, made)
        else:
            self._attached_base(message, made)

    def failed(self, message: LinkMessage) -> None:
        """A retrieval version cannot be attached: recall continues with the previous one, without newer vectors."""
        if message is self._fetched:
            self._fetched, self._since = None, []

    def _attached_base(self, message: LinkMessage, model: ServingModel | OwnServing) -> None:
        facts = message.facts
        if facts["base"] != self._coming:
            return  # a newer one is on its way
        self._base, self._folded, self._model = facts["base"], facts["folded"], model
        self._missing, self._coming = facts["overlays"], 0
        self._show(facts)
        later, self._later = self._later, []
        for message in later:
            self.take(message)

    # -- messages ---------------------------------------------------------------------------------------------

    def _delta(self, message: LinkMessage) -> None:
        if message.facts["base"] == self._coming:
            self._later.append(message)
        elif message.facts["base"] == self._base and self._model is not None:
            self._model = self._model.followed(message.arrays)
            self._missing = max(0, self._missing - 1)
            self._show(message.facts)

    def _folds(self, message: LinkMessage) -> None:
        if message.facts["base"] == self._coming:
            self._later.append(message)
        elif message.facts["base"] == self._base and self._model is not None:
            self._model = self._model.settled(message.facts["folded"] - self._folded, message.arrays or None)
            if self._note is not None and not self._missing:
                self.held.install(self._note, self._model)

    def _retrieval(self, message: LinkMessage) -> None:
        self._since = []
        if message.arrays:
            self._fetched = message
            self._attach(message)
        else:  # the model has no head any more
            self._fetched = None
            self._look_with(None)

    def _attached_retrieval(self, message: LinkMessage, retrieval: Retrieval) -> None:
        if message is not self._fetched:
            return  # a newer one is on its way, or there is none any more
        since, self._since, self._fetched = self._since, [], None
        self._look_with(retrieval)
        for message in since:
            self.take(message)

    def _look_with(self, retrieval: Retrieval | None) -> None:
        self._looking = self.held.retrieval = retrieval

    def _vectors(self, message: LinkMessage) -> None:
        version = message.facts["epoch"], message.facts["version"]
        if self._fetched is not None and version == (self._fetched.facts["epoch"], self._fetched.facts["version"]):
            self._since.append(message)
        elif self._looking is not None and version == self._looking.version:
            self._looking.take(message.arrays["rows"], message.arrays["vectors"], message.arrays["gone"])

    def _show(self, facts: dict[str, Any]) -> None:
        self._note = msgspec.convert(facts["note"], Announcement)
        if self._missing:
            return
        assert self._model is not None
        self.held.install(self._note, self._model)
        self._serves(facts["number"])


class Replica(ModelReplica):
    """Applies messages about the catalogue, and about the first learner's versions, to ``serving``."""

    def __init__(
        self,
        serving: Serving,
        attach: Callable[[LinkMessage], None],
        serves: Callable[[int], None],
    ) -> None:
        super().__init__(serving, attach, serves)
        self.serving = serving

    def take(self, message: LinkMessage) -> None:
        match message.kind:
            case "items":
                self.serving.items.apply(message.arrays)
            case "lists":
                self.serving.lists = CandidateLists.of_arrays(message.arrays)
            case "neighbours":
                self.serving.neighbours = Neighbours.of_arrays(message.arrays)
            case "status":
                self.serving.to_read = dict(message.facts["to_read"])
                self.serving.newest_counted_ms = message.facts["newest_counted_ms"]
            case _:
                super().take(message)


def attach(
    schema: Schema, message: LinkMessage, rows: int, like: ServingModel | OwnServing | None = None, named: str = ""
) -> ServingModel | OwnServing | Retrieval:
    """The model over a base message's arrays, warmed for up to ``rows`` rows so that no request pays for its first
    call; or the version of a retrieval message. Any thread may do this.

    Args:
        like: the model that serves meanwhile; both share what they have in common.
        named: the model that the worker's own setting names.

    Raises:
        SnapshotError: the version is of a class that ``named`` is not.
        SettingError, RuntimeError: an approximate index cannot be opened.
    """
    if message.kind == "retrieval":
        tiles, index = message.arrays["tiles"], message.arrays.get("index")
        finder = None if index is None else Approximate(tiles.shape[1], index)
        return Retrieval.of_arrays(message.facts, message.arrays, UserTower.of_arrays(message.arrays), finder)
    model = reader_of(schema, message.facts["note"]["spec"], dict(message.arrays), like, named)
    known = isinstance(model, ServingModel) and isinstance(like, ServingModel) and model.form is like.form
    if not known:
        model.warm(rows)
    return model
