# core
"""Makes a model from its name: the one place where a name becomes an object that learns, or that serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import structlog

from learner.custom.own import OwnModel
from learner.custom.ownclass import is_own
from learner.custom.ownserving import OwnServing, OwnWriter
from learner.network.forward import Arithmetic
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Sides
from learner.serving.overlay import Allocate
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from millrace.basics.errors import SettingError, SnapshotError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.image import Array, Image
from millrace.versions.versioning import Announcement

log = structlog.get_logger("learner")

RETRIEVAL_WIDTH = 32
"""Of the vectors of the retrieval head, by default."""


def wanted_spec(settings: Settings, schema: Schema) -> dict[str, Any]:
    """The spec's entries of the settings, and a retrieval head where the schema has users and items."""
    if is_own(settings.model):
        log.info("a model of one's own has no retrieval head: recall does without vectors", model=settings.model)
        return {"settled_minutes": settings.attribution_minutes} | settings.spec()
    fits = Sides.fits(schema)
    if not fits:
        log.warning("no retrieval head: the schema has no fields of users, or none of items")
    return {
        "settled_minutes": settings.attribution_minutes,
        "retrieval_width": RETRIEVAL_WIDTH if fits else 0,
    } | settings.spec()


def model_of(schema: Schema, spec: Mapping[str, Any], seed: int, *, live: bool = False) -> OnlineModel | OwnModel:
    """The untrained model of a spec, whose entry ``model`` names a registered model or a class, ``module:Class``. A
    class is imported, so the name must be of the caller's own settings or flags, never of a message. ``live``: later
    failures of a class are counted, and end nothing; else they are raised. Raises SettingError where the spec has an
    unknown name or value, or a bad seed; or the class cannot be imported, or breaks the rules."""
    if not 0 <= seed < 1 << 63:
        raise SettingError(f"seed {seed}", "use a whole number from 0 on, below 2^63")
    return OwnModel(schema, spec, seed, live=live) if is_own(spec.get("model")) else OnlineModel(schema, spec, seed)


def resumed(
    schema: Schema,
    note: Announcement,
    parts: Iterable[tuple[Image, Mapping[str, Array]]],
    named: str = "",
    seed: int = 0,
) -> OnlineModel | OwnModel:
    """The model of a snapshot, which learns on. ``named``: the model in the caller's own setting. A class is imported
    only where it is this one.

    Raises:
        SnapshotError: it is of another schema, or of a class that ``named`` is not; or a part is not of such a model.
    """
    if note.schema_id != schema.id:
        raise SnapshotError(
            f"version {note.version} is of schema {note.schema_id}, not {schema.id}",
            "set MILLRACE_SCHEMA to its schema",
        )
    check_named(note.spec, named, f"version {note.version}")
    model = model_of(schema, note.spec, seed, live=True)
    model.resume(parts)
    return model


def writer_of(
    schema: Schema,
    spec: Mapping[str, Any],
    parts: Image | Iterable[Image],
    rows: Mapping[str, int] | None = None,
    allocate: Allocate = np.zeros,
    named: str = "",
    choose: Callable[[ModelWriter], Arithmetic] | None = None,
) -> ModelWriter | OwnWriter:
    """The writer of a snapshot that serves (:meth:`~learner.serving.staging.ModelWriter.of`). ``spec``: as the
    snapshot's manifest has it. ``named``: the model in the scorer's own setting. Only this class is ever imported.

    Raises:
        SettingError: the spec is not one.
        SnapshotError: a part is not of a model with this schema and spec; or it is of a class other than ``named``.
    """
    if not is_own(spec.get("model")):
        return ModelWriter.of(schema, spec, parts, rows, allocate, choose)
    check_named(spec, named)
    return OwnWriter.of(schema, spec, parts, allocate)


def reader_of(
    schema: Schema,
    spec: Mapping[str, Any],
    base: dict[str, Array],
    like: ServingModel | OwnServing | None = None,
    named: str = "",
) -> ServingModel | OwnServing:
    """A reader of a writer's base. Arguments and errors as :func:`writer_of`."""
    if not is_own(spec.get("model")):
        return ServingModel.attach(schema, spec, base, like if isinstance(like, ServingModel) else None)
    check_named(spec, named)
    return OwnServing.attach(schema, spec, base)


def check_named(spec: Mapping[str, Any], named: str, what: str = "the version") -> None:
    """Checks that the class of a version is the one that the caller's own setting names. ``what``: the name of the
    version in an error. Raises SnapshotError where it is another one."""
    name = spec.get("model")
    if is_own(name) and name != named:
        raise SnapshotError(
            f"{what} is of the class '{name}', MILLRACE_MODEL names '{named}'",
            "nothing is imported because a version names it: set MILLRACE_MODEL as for the learner",
        )
