# core
"""Learners by name: models that learn beside the first one, for arms of their own or to be compared with it.

::

    DATA/models               of the first learner         topic model.deltas
    DATA/learners/NAME/models of the learner NAME          topic model.deltas.NAME
    DATA/learners/NAME/learner, quarantine, repair         as the first learner has them
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct

from millrace.basics.errors import SettingError

LearnsFrom = Literal["all", "own", "weighted"]
"""Pages that a learner learns from: all; those that its own model made; or all, weighted by the odds that they log."""

LEARNS_FROM: dict[LearnsFrom, str] = {
    "all": "all pages",
    "own": "its own pages alone",
    "weighted": "all pages, weighted by their odds",
}
"""In words."""

REPAIRED = "repair"
"""The store of a repaired model, and what adopts it."""
NEWEST = "newest"
PLACES = frozenset({"models", "quarantine", REPAIRED, "learner"})
"""What each learner has of its own in the store and in the data folder."""

LEARNER_ROLE = "learn-"
"""Before a learner's name: its process in a loop, its log file, and its label ``role``."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class NamedLearner(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A learner beside the first."""

    model: str
    spec: dict[str, Any] = {}


def check_names(names: Iterable[str]) -> None:
    """Raises SettingError for a name that no learner can have."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise SettingError(f"a learner is named {name[:60]!r}", "use up to 40 of A-Z, a-z, 0-9, _ and -")
        if name in (REPAIRED, NEWEST):
            raise SettingError(
                f"a learner is named '{name}', as 'millrace model promote' calls another model", "rename it"
            )
