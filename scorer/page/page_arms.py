# core
"""Arms as a worker serves them, each with its own recall and chance (:mod:`millrace.evidence.user_arms`).

Pages of every arm are scored by a model, logged and learnt from. An arm of the kind ``model`` orders them so. To page
logs only those of the first learner are the ``model``'s: others have the name of their arm.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from millrace.contracts.events import CONTROL, MODEL, OTHER, Id
from millrace.contracts.settings import Settings
from millrace.evidence.exploration import Exploration
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import ARM_NAME, RESERVED, Arm, ArmDraw, Kind, check_arms
from scorer.page.candidates import Recaller
from scorer.page.page_wire import RequestError
from scorer.page.rank import Ranker

_MADE = {"model": MODEL, "random": CONTROL, "popular": OTHER, "newest": OTHER}


class PageArm(NamedTuple):
    """An arm. ``candidates``: items that are ranked for a page. ``exploration``: None: no page is drawn. ``learner``:
    whose model scores its pages; empty: the first's."""

    name: str
    kind: Kind
    candidates: int
    recaller: Recaller
    exploration: Exploration | None
    rerank: Rerank
    learner: str = ""

    @property
    def made(self) -> str:
        """Who makes its pages, one of :data:`millrace.contracts.events.ARMS`."""
        return OTHER if self.learner else _MADE[self.kind]

    @property
    def ranks(self) -> bool:
        """Whether the model orders its pages."""
        return self.kind == "model"


class PageArms:
    """Every arm of the settings. Raises SettingError for an invalid arm, or invalid shares of recall."""

    def __init__(self, settings: Settings, ranker: Ranker) -> None:
        check_arms(settings.control_share, settings.arms, settings.learners)
        self._draw = ArmDraw(settings.control_share, settings.arms)
        given = {MODEL: Arm("model", 0), CONTROL: Arm("random", 0)} | settings.arms
        self._arms = {name: _arm(name, arm, settings, ranker) for name, arm in given.items()}

    @property
    def candidates(self) -> int:
        """The most items that are ranked for a page."""
        return max(arm.candidates for arm in self._arms.values())

    def of(self, user_id: Id) -> PageArm:
        """The arm of a user, who stays in it."""
        return self._arms[self._draw.of(user_id)]

    def check_others(self, name: str, logged: bool) -> None:
        """Raises RequestError for a name that an arm of pages from elsewhere cannot have; empty: it has none."""
        if name and (name in self._arms or name in RESERVED or not ARM_NAME.fullmatch(name)):
            raise RequestError(
                f"'arm' is {name[:60]!r}", "use up to 40 of A-Z, a-z, 0-9, _ and -, and no arm of Millrace's own"
            )
        if name and not logged:
            raise RequestError("'arm' without 'log'", "set log, or leave the arm out")

    @property
    def reranks(self) -> list[Rerank]:
        return [arm.rerank for arm in self._arms.values()]

    def named(self, name: str) -> PageArm:
        """The arm of this name; the model's where there is none any more."""
        return self._arms.get(name, self._arms[MODEL])


def _arm(name: str, arm: Arm, settings: Settings, ranker: Ranker) -> PageArm:
    own = replace(settings, **arm.own)
    rerank = own.rerank.over(settings.rerank)
    explore = Exploration.of(own.explore)
    return PageArm(name, arm.kind, own.candidates, Recaller(own, ranker), explore, rerank, arm.learner)
