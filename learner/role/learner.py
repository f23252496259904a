# shell
"""A learner: its model as the store has it, or untrained, its samples and its loop; and what persons ask of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from learner.custom.ownclass import is_own
from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.gate.checks import GATE
from learner.gate.quarantine import PLACE
from learner.ranker.interfaces import Learning
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.ranker.snapshot_slices import merge
from learner.role.comparison import Comparison, newest_of
from learner.role.learner_warmup import shop_hours, small
from learner.role.learnloop import LearnLoop
from learner.role.model_factory import model_of, wanted_spec
from learner.role.samplereader import SampleReader
from learner.samples.viewpoint import Viewpoint
from learner.training.evolve import evolve, read_columns
from learner.training.learner_versions import (
    FoundSnapshot,
    adopted,
    asked,
    newest_valid,
    same_head,
    same_shape,
    without_head,
)
from learner.training.trainer import Trainer
from millrace.basics.errors import SnapshotError, StoreError
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.basics.store import Store
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.evidence.learners import REPAIRED
from millrace.versions.image import below
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore

log = structlog.get_logger("learner")


class Learner:
    """A learner: what it goes on from, and its commands for persons. ``settings``: of the loop, with its name.

    Attributes:
        settings: its own.
        first: those of the first learner; None: it is the first.
        found: the newest snapshot of its own, if there is one.
        compares_from_ms: exposures before are not compared on: the first one may not have held them out.
    """

    def __init__(self, settings: Settings, schema: Schema) -> None:
        own = settings.of_learner(settings.learner)
        self.settings, self._schema, self._wanted = own, schema, wanted_spec(own, schema)
        self.first = settings.of_learner("") if own.learner else None
        self.compares_from_ms = 0
        self.store = ModelStore(own.place("models"), keep_ms=round(own.keep_minutes * 60_000))
        self.found = newest_valid(self.store, schema.id, self._wanted, self._build, own.evolve, held=True)
        found = self._like_first(self.first) if self.first is not None and self.found is None else self.found
        model = model_of(schema, self._wanted, own.seed, live=True) if found is None else found.model
        self.served = ServedExposures.of(own, schema)
        self.trainer = Trainer(model, Progressive(ROLLING_ROWS), Repeats(keep_ms_of(own)), served=self.served)
        self.trainer.diverted = Viewpoint.of(own).diverted
        self.samples = SampleReader(own, schema, self.served.time)
        self._adopted: Any = None
        if found is not None:
            note = found.note
            self.trainer.resume(found.training, note.extra.get("counts", {}))
            self.samples.resume(note)
            self._adopted = self._adoption_of(note) if found is self.found else None
            if found is not self.found:
                self.samples.began = self.samples.offset
            self.compares_from_ms = int(note.extra.get("from_ms", 0))
            log.info("resumed", epoch=note.epoch, version=note.version, trained=note.trained, offset=note.offset)
        self.loop = LearnLoop(own, self.samples, self.trainer, self.store, self._build, self._extra)
        checks = self.loop.promotion.checks
        if found is not None and found is not self.found and checks is not None:
            checks.minutes.resume(below(f"{GATE}minutes/", found.training))  # what it never learnt, this one has not

    def _like_first(self, first: Settings) -> FoundSnapshot | None:
        """The first learner's newest snapshot, where this one's model has its shape."""
        models = ModelStore(first.place("models"), writes=False)
        newest = models.latest()
        if newest is None:
            return None
        if newest.schema_id == self._schema.id and same_shape(newest.spec, {**newest.spec, **self._wanted}):
            log.info("it begins as the first learner's newest snapshot", version=newest.version)
            return newest_valid(models, self._schema.id, {}, self._build)
        log.info("its model is another one than the first's: it begins with the oldest sample")
        self.compares_from_ms = newest.event_ms
        return None

    def comparison(self) -> Comparison | None:
        """With the first learner; None: it is the first, or each knows its own pages alone, and is at home on them."""
        if self.first is None or self.trainer.diverted:
            return None
        return Comparison(self.first, self.settings, self.loop, self._schema, self.compares_from_ms)

    def _build(self, note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        return going_on(note, parts, self._schema, asked(note, self._wanted), self.settings)

    def _extra(self) -> dict[str, Any]:
        extra = {} if self._adopted is None else {"adopted": self._adopted}
        return extra | ({"from_ms": self.compares_from_ms} if self.first is not None else {})

    def _adoption_of(self, note: Announcement) -> Any:
        return None if asked(note, self._wanted) else note.extra.get("adopted")

    # -- what persons ask for --------------------------------------------------------------------------------

    def do(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a command of the admin port; returns its outcome, which is durable by then.

        Raises:
            MillraceError: it was not done.
            BrokerError: it was done, and a restart would not know it.
        """
        said = self._done(name, args)
        self.loop.promotion.make_durable()
        return said

    def _done(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        promotion, commands = self.loop.promotion, self.loop.promotion.commands
        match name:
            case "rollback":
                note = self._to_go_back_to(args["version"])
                gone = commands.roll_back(note)
                self._adopted = self._adoption_of(note)
                self._publish_root()
                return {"version": promotion.promoted_version, "content": note.version, "set_aside": gone}
            case "adopt":
                self._adopt(args["from"])
                return {"version": promotion.promoted_version}
            case "hold":
                commands.hold()
                return {"version": promotion.promoted_version}
            case "promote":
                commands.promote()
                self.loop.publish()
                return {"version": promotion.promoted_version}
        if name == "release":
            return {"entries": commands.release(args["names"])}
        return {"rows": commands.discard(args["names"])}

    def _publish_root(self) -> None:
        """Raises StoreError where it cannot be written: nothing has changed then for those who are served."""
        self.loop.publish()
        if self.loop.promotion.state.root_due:
            raise StoreError(
                "the model has changed, and cannot be published: the old one is served",
                "make room in the store, or start the broker: it is tried again by itself",
            )

    def _to_go_back_to(self, version: int | None) -> Announcement:
        """The snapshot for a rollback: of this version, or the newest that is older than what is served."""
        notes = self.store.snapshots()
        if version is None:
            found = next((note for note in notes if note.place < self.loop.promotion.state.restorer.origin), None)
        else:
            found = next((note for note in notes if note.version == version), None)
        if found is None:
            known = ", ".join(str(note.version) for note in notes)
            which = "older than what is served" if version is None else f"of version {version}"
            raise SnapshotError(f"there is no snapshot {which}", f"the store has versions {known}")
        return found

    def _adopt(self, source: str) -> None:
        """Goes on with a model that was learnt elsewhere, from the samples behind it."""
        if source != REPAIRED:
            found = newest_of(source, self.settings, self._schema)
            theirs = Store(self.settings.of_learner(source).place(PLACE), writes=False)
            self.loop.promotion.state.quarantine.take_copies(theirs, source)
        else:
            repaired = newest_valid(
                ModelStore(self.settings.place(REPAIRED), writes=False), self._schema.id, self._wanted, self._build
            )
            if repaired is None:
                raise SnapshotError("there is no repaired model to adopt", "run 'millrace model repair' first")
            found = repaired
        self.loop.promotion.commands.adopt(found, source, same_samples=source == REPAIRED)
        self.trainer.begin_again(found.training)
        self.samples.resume(found.note)
        self.samples.seek()
        own = found.note.extra.get("adopted")  # of a repaired model that had been another learner's
        self._adopted = own if source == REPAIRED else adopted(source, found.note, self._wanted)
        self._publish_root()


def going_on(
    note: Announcement,
    parts: Iterable[tuple[Image, Mapping[str, Array]]],
    schema: Schema,
    wanted: dict[str, Any],
    settings: Settings,
) -> Learning:
    """The model of a snapshot, with the ``wanted`` entries of a spec; carried over where its shape differs."""
    spec = {**note.spec, **wanted}
    if note.schema_id == schema.id and same_shape(note.spec, spec):
        model = model_of(schema, spec, settings.seed, live=True)
        if same_head(note.spec, spec):
            model.resume(parts)
            return model
        model.resume(without_head(parts))
        if model.head is not None:
            log.warning("the snapshot has no retrieval head like this one: it begins empty", version=note.version)
        else:
            log.warning("the snapshot's retrieval head is left behind: there is none now", version=note.version)
        return model
    if is_own(note.spec.get("model")) or is_own(spec["model"]):
        raise SnapshotError(
            f"nothing of snapshot {note.version} ('{note.spec.get('model')}', schema {note.schema_id}) can "
            f"be carried over to '{spec['model']}' with schema {schema.id}: one of them is a model of one's own",
            "set MILLRACE_MODEL and MILLRACE_SCHEMA as they were, or MILLRACE_DATA to an empty folder",
        )
    old = read_columns(note.extra.get("columns"))
    made, report = evolve(old, note.spec, *merge(parts), schema, spec, settings.seed)
    log.warning("the model was carried over to another schema or spec", version=note.version, schema=note.schema_id)
    for line in report.lines:
        log.info("carried over", what=line)
    return made


def rehearse(settings: Settings, schema: Schema, spec: Mapping[str, Any]) -> None:
    """Lets a learner with a model of ``spec`` learn and publish in a temporary folder, and throws it away."""
    with tempfile.TemporaryDirectory(dir=settings.folder("learner")) as folder:
        own, few = msgspec.structs.replace(settings, data=folder, store="", heldout_share=0.5), small(spec)

        def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
            return going_on(note, parts, schema, few, own)

        served = ServedExposures.of(own, schema)
        repeats = Repeats(keep_ms_of(own))
        trainer = Trainer(OnlineModel(schema, few, own.seed), Progressive(ROLLING_ROWS), repeats, served=served)
        samples, store = SampleReader(own, schema, served.time), ModelStore(own.place("models"))
        LearnLoop(own, samples, trainer, store, build, dict).rehearse(shop_hours(schema))
