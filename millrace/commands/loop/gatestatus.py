# core
"""The gate before serving, as it is shown: its state, the newest refusal and its reason, the version that serves.

State, verdicts by check and rows in quarantine come from the learner's ``/metrics``, the newest refusal in words from
its ``GET /model``, the version that serves from the scorer's ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Counts = Mapping[str, float]
VERDICTS = ("passed", "refused", "observed", "unjudged")

NOTHING_NEW = {
    "probation": "nothing newer is served until a whole stretch of samples has passed",
    "blocked": "samples are refused and kept in quarantine; nothing newer is served",
    "held": "a person holds what is served; learning goes on",
}
"""What each state means in which the newest version does not serve."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate at one moment. ``state`` None: the learner has none, or has not answered yet."""

    state: str | None = None
    check: str = ""  # of the newest refusal; empty: nothing was refused
    why: str = ""  # the same in words, with figure and bound
    refused_ms: int | None = None  # event time of it
    refused: Counts = field(default_factory=dict)  # by check
    passed: Counts = field(default_factory=dict)
    unjudged: Counts = field(default_factory=dict)
    observed: Counts = field(default_factory=dict)  # what was only reported
    observes: str | None = None  # what was reported last, in words; empty: nothing yet; None: the gate refuses
    unseen: tuple[str, ...] = ()  # what it cannot know, or not soon, at the traffic of now
    history: tuple[Mapping[str, Any], ...] = ()  # what the learner decided lately, oldest first


def gate_of(states: Counts, verdicts: Mapping[str, Counts], admin: Mapping[str, Any], before: Gate) -> Gate:
    """The gate now. A restarted learner does not know an earlier process's refusals, so those stay as they were.

    Args:
        states: the gauge of states: 1 for the one that holds.
        verdicts: of each kind of :data:`VERDICTS`, by check.
        admin: the learner's ``GET /model``; empty: it did not answer.
        before: the gate at the look before.
    """
    state = next((name for name, value in states.items() if value == 1), None)
    counts = {kind: {check: n for check, n in some.items() if n} for kind, some in verdicts.items()}
    observes = (admin.get("observed") or "") if admin.get("observes") else None if admin else before.observes
    check, why, refused_ms = before.check, before.why, before.refused_ms
    if admin.get("refusal"):
        check, why, refused_ms = str(admin.get("check") or ""), str(admin["refusal"]), _whole(admin.get("refused_ms"))
    else:  # without words the check's name must do
        grown = [name for name, n in counts["refused"].items() if n > before.refused.get(name, 0)]
        if grown:
            check, why, refused_ms = grown[-1], f"check '{grown[-1]}'", None
    unseen = tuple(str(line) for line in admin["unseen"]) if admin.get("unseen") else before.unseen
    history = tuple(admin["history"]) if "history" in admin else before.history
    return Gate(state, check, why, refused_ms, **counts, observes=observes, unseen=unseen, history=history)


def says(gate: Gate, figures: Mapping[str, float | None]) -> str:
    """The gate in a sentence or two; empty where there is none.

    >>> says(Gate("promoting"), {})
    'every version was promoted'
    >>> says(Gate("promoting", observes=""), {})
    'every version was promoted; it only observes'
    >>> says(Gate("blocked", "auc", "AUC of incoming labels: 0.41, beyond 0.58"), {"served_version": 57.0})[:73]
    'refused: AUC of incoming labels: 0.41, beyond 0.58. Version 57 serves ins'
    """
    if gate.state is None:
        return ""
    kept = figures.get("quarantine_rows") or 0
    rows = f"; {kept:,.0f} samples in quarantine" if kept else ""
    if gate.state not in NOTHING_NEW:
        said = f"promotes; refused last{_clock(gate.refused_ms)}: {gate.why}" if gate.why else _all_promoted(gate)
        return f"{said}{rows}"
    served = figures.get("served_version")
    version = "the version promoted last" if served is None else f"version {served:.0f}"
    meaning = f"{NOTHING_NEW[gate.state]}{rows}"
    if gate.state == "held" or not gate.why:
        return f"{version} serves: {meaning}"
    return f"refused{_clock(gate.refused_ms)}: {gate.why}. {version[0].upper()}{version[1:]} serves instead: {meaning}"


def _all_promoted(gate: Gate) -> str:
    """
    >>> _all_promoted(Gate("promoting", observed={"auc": 2.0, "shift": 1.0}, observes="AUC of incoming labels: 0.4"))
    'only observes; it would have refused 3 times, last: AUC of incoming labels: 0.4'
    """
    if gate.observes is None or not gate.observed:
        return "every version was promoted" if gate.observes is None else "every version was promoted; it only observes"
    last = f", last: {gate.observes}" if gate.observes else ""
    return f"only observes; it would have refused {sum(gate.observed.values()):,.0f} times{last}"


def _clock(event_ms: int | None) -> str:
    if event_ms is None:
        return ""
    minute = event_ms // 60_000 % 1440
    return f" at {minute // 60:02d}:{minute % 60:02d} UTC"


def _whole(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) and value > 0 else None
