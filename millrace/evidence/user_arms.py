# core
"""Arms: which users get pages made in which way.

::

    0 ─ control_share ─┬─ share ─┬─ share ─┬──────────────── 1     where a hash of the user's id falls
       control         │ first   │ second  │ model: all others
       random pages    │ arm     │ arm     │

A user stays in an arm as long as its share and those before it stay. So a new arm at the end takes users of the model's
alone.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from millrace.basics.errors import SettingError
from millrace.basics.hashing import mix, salt, value_hash
from millrace.evidence.exploration import Exploration
from millrace.evidence.rerank import Rerank

Kind = Literal["model", "popular", "newest", "random"]
RESERVED = "model", "control", "logged", "other", "lists"
"""Names that pages have already."""
_MODEL, _CONTROL = RESERVED[:2]
ARM_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_ARM = salt("scorer", "arm")


class Arm(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the pages of an arm are made.

    ``model``: as all others, but for settings of its own; None: the shop's. ``popular``: the hottest items, the same
    for everybody. ``newest``: those born last. ``random``: any item, by chance. ``learner``: whose model ranks the
    pages; empty: the first's.
    """

    kind: Kind
    share: Annotated[float, Meta(ge=0, le=1)]
    candidates: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    recall: dict[str, Annotated[float, Meta(ge=0, le=1)]] | None = None
    explore: str | None = None
    bought_days: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    rerank: Rerank | None = None
    learner: str = ""

    def __post_init__(self) -> None:
        given = [*self.own, *(["learner"] if self.learner else [])]
        if self.kind != "model" and given:
            raise ValueError(f"pages of the kind '{self.kind}' have no '{given[0]}'; leave it out")
        if self.explore is not None:
            Exploration.of(self.explore)

    @property
    def own(self) -> dict[str, Any]:
        """The settings of its own, by name."""
        names = ("candidates", "recall", "explore", "bought_days", "rerank")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def check_arms(control_share: float, arms: Mapping[str, Arm], learners: Collection[str] = ()) -> None:
    """Raises SettingError for a name that no arm can have, for a learner that is none of ``learners``, or for shares of
    more than all users."""
    for name, arm in arms.items():
        if arm.learner and arm.learner not in learners:
            there = f"learners are {', '.join(learners)}" if learners else "there is none yet"
            raise SettingError(
                f"the arm '{name}' names a learner '{arm.learner[:60]}'", f"name it in [model.learners.NAME]; {there}"
            )
        if name in RESERVED:
            raise SettingError(f"an arm is named '{name}', as pages of Millrace's own are", "give it another name")
        if not ARM_NAME.fullmatch(name):
            raise SettingError(f"an arm is named {name[:60]!r}", "use up to 40 of A-Z, a-z, 0-9, _ and -")
    total = sum((arm.share for arm in arms.values()), control_share)
    if not total <= 1 + 1e-9:  # NaN too
        given = ", ".join(f"{name} {share:g}" for name, share in _shares(control_share, arms).items())
        raise SettingError(f"the arms' shares add up to {total:g} ({given})", "have them add up to 1 at most")


def _shares(control_share: float, arms: Mapping[str, Arm]) -> dict[str, float]:
    return {_CONTROL: control_share} | {name: arm.share for name, arm in arms.items()}


class ArmDraw:
    """Draws each user's arm."""

    def __init__(self, control_share: float, arms: Mapping[str, Arm]) -> None:
        shares = _shares(control_share, arms)
        self._names, self._ends = [*shares, _MODEL], list(accumulate(shares.values()))

    def of(self, user_id: int | str) -> str:
        """The name of the user's arm, by a hash of the id."""
        draw = int(mix(_ARM, np.array([value_hash(user_id)], np.uint64))[0]) / 2.0**64
        return self._names[bisect_right(self._ends, draw)]
