# core
"""What is open at the gate, for people."""

from __future__ import annotations

from typing import Any

from learner.gate.blind_spots import blind_spots
from learner.gate.checks import Checks
from learner.promotion.decisionhistory import history
from learner.promotion.promotion import Promotion
from millrace.versions.decisions import LogPart

_SHOWN = 12
_NEW_ITEMS = "wrong labels and a wrong model are not looked for, since goods are new"


def promotion_status(promotion: Promotion) -> dict[str, Any]:
    """Ready for JSON. Times are event time in Unix ms."""
    state, standing, checks = promotion.state, promotion.state.standing, promotion.checks
    name = "held" if standing.held else "promoting"
    if standing.probation:
        name = "probation" if state.unjudged else "blocked"
    refusal, observed, judgement = standing.refusal, promotion.judge.observed, promotion.judge.judgement
    return {
        "state": name,
        "refusal": str(refusal) if refusal else None,  # the newest; it may be over
        "check": refusal.check if refusal else None,
        "refused_ms": standing.refused_ms,
        "observes": checks is not None and checks.observe,
        "observed": str(observed) if observed else None,  # what would have been refused last
        "blocked_since_ms": min((ms for ms, _ in standing.since.values()), default=0),
        "promoted_version": promotion.promoted_version,
        "promoted_ms": promotion.promoted_ms,
        "heldout": {k: v for k, v in judgement._asdict().items() if k != "refusal"} if judgement else {},
        "quarantined_rows": state.quarantine.rows,
        "releasing": len(standing.releasing),
        "history": history([LogPart("", list(state.log.notable))])[-_SHOWN:],
        "unseen": _unseen(checks) if checks else [],
    }


def _unseen(checks: Checks) -> list[str]:
    if checks.shift.of_new_items:
        return [_NEW_ITEMS]
    return [str(one) for one in blind_spots(checks.screen, checks.heldout)]
