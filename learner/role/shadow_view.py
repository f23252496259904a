# core
"""The shadow as seen from the learner beside it: its place in the store, and its newest snapshot, ready to be adopted.

::

    DATA/models              of the learner that serves                     :mod:`learner.role.service`
    DATA/shadow/models       of the shadow: a place of the same kind        :mod:`learner.role.shadow`
    DATA/shadow/quarantine   samples that the shadow's own checks refused
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from learner.ranker.verbs import Learning
from learner.role.model_factory import resumed
from learner.training.learner_versions import FoundSnapshot, newest_valid
from millrace.basics.errors import SettingError, SnapshotError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore

SHADOW = "shadow"
"""The name of the shadow's place, and of the source of a model adopted from it."""
REPAIRED = "repair"
"""The name of a repaired model's store, beside ``models``."""
_POLICY = "label_policy"


def shadow_settings(settings: Settings) -> Settings:
    """The settings by which the shadow is a learner: another model, and a place of its own for all its files. Raises
    SettingError where neither ``store`` nor ``data`` is set."""
    if not settings.data and not settings.store:
        raise SettingError("'data' is not set", "set MILLRACE_DATA to a folder for checkpoints and models")
    spec = {name: value for name, value in settings.shadow_spec.items() if name != _POLICY}
    return msgspec.structs.replace(
        settings,
        data=str(Path(settings.data, SHADOW)) if settings.data else "",
        store=f"{settings.store.rstrip('/')}/{SHADOW}" if settings.store else "",
        model=settings.shadow_model,
        model_spec=spec,
        evolve=False,
    )


def shadow_policy(settings: Settings) -> str:
    """The label policy that ``shadow_spec`` names for the shadow; empty: the stream's own."""
    return str(settings.shadow_spec.get(_POLICY, ""))


def shadow_found(settings: Settings, schema: Schema) -> FoundSnapshot:
    """The newest whole snapshot of the shadow, as a model that can learn on. ``settings``: of the learner that takes it
    over.

    Raises:
        SnapshotError: there is none; or it is of another schema, or of a class that ``settings.model`` does not name.
        StoreError: the store cannot be read.
    """
    store = ModelStore(shadow_settings(settings).place("models"), writes=False)

    def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
        return resumed(schema, note, parts, settings.model, settings.seed)

    newest = store.latest()
    if newest is not None and newest.schema_id != schema.id:
        raise SnapshotError(
            f"the shadow is of schema {newest.schema_id}, the learner's is {schema.id}",
            "restart 'millrace run shadow' with the learner's schema",
        )
    found = newest_valid(store, schema.id, {}, build) if newest is not None else None
    if found is None:
        raise SnapshotError(
            f"there is no shadow to adopt: '{store.url}' has no snapshot",
            "run 'millrace run shadow' with MILLRACE_SHADOW_MODEL first",
        )
    return found
