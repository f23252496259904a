# core
"""The log of a learner's decisions, as people read it: when, what, why, and by whom.

Decisions lie in the records between snapshots (``cuts-*``), and the newest ones on ``model.deltas``. What was learnt
between two other decisions is one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from learner.gate.verdicts import GateRefusal
from learner.training.decisionlog import rows_in
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, DamagedError
from millrace.versions.decisions import (
    Adopted,
    Began,
    Decided,
    Discarded,
    HeldBack,
    Learnt,
    LogPart,
    Passed,
    Promoted,
    Rebased,
    Refused,
    Released,
    RolledBack,
    Saved,
    WentBack,
    decode_decisions,
    in_force,
)
from millrace.versions.modelstore import ModelStore


def decided_in(store: ModelStore) -> list[LogPart]:
    """What lies in a store, oldest first. Raises StoreError where the store cannot be read."""
    found = []
    for name in sorted(store.store.names("cuts-")):
        try:
            _, body, _ = store.store.get(name)
            found.append(decode_decisions(body))
        except (AbsentError, DamagedError, SnapshotError):  # removed while we looked, or of no use to anybody
            continue
    return found


def history(parts: Iterable[LogPart]) -> list[dict[str, Any]]:
    """The newest of the logs, oldest decision first: ``n``, ``ms`` (event time), ``what``, ``why`` and ``by`` of each
    decision. Of what was learnt, or refused by one check, there is one entry between two others, with ``rows`` in all.

    >>> log = [Decided(1, 5, Learnt((), 7)), Decided(2, 6, Learnt((), 8)), Decided(3, 9, HeldBack("you"))]
    >>> history([LogPart("a", log)])  # doctest: +NORMALIZE_WHITESPACE
    [{'n': 2, 'ms': 6, 'what': 'learnt', 'why': '', 'by': '', 'rows': 15},
     {'n': 3, 'ms': 9, 'what': 'held', 'why': '', 'by': 'you'}]
    """
    parts = list(parts)
    known = in_force((each for part in parts if part.log == parts[-1].log for each in part.decided), -1)
    found: list[dict[str, Any]] = []
    refused = ""  # the check of the newest entry
    for decided in chain(*known):
        what = decided.what
        if isinstance(what, Saved) or (isinstance(what, Passed) and not refused):
            continue
        entry, check = _entry(decided), what.check if isinstance(what, Refused) else ""
        last = found[-1] if found else None
        if last is not None and "rows" in entry and last["what"] == entry["what"] and check == refused:
            found[-1] = entry | {"rows": last["rows"] + entry["rows"]}
        else:
            found.append(entry)
        refused = check or (refused if isinstance(what, Learnt | WentBack) else "")
    return found


def _entry(decided: Decided) -> dict[str, Any]:
    what, why, by, more = "", "", "", {}
    match decided.what:
        case Learnt() as one:
            what, more = "learnt of quarantine" if one.of else "learnt", {"rows": max(0, one.rows)}
        case Passed():
            what = "a stretch passed: versions are published again"
        case Refused() as one:
            what, more = "refused", {"rows": rows_in(one.spans)}
            why = str(GateRefusal(one.check, one.value, one.bound, one.what))
        case WentBack() as one:
            what = f"went back to decision {one.to}"
        case Began() as one:
            what = f"a learner began behind decision {one.after}"
        case HeldBack() as one:
            what, by = "held", one.by
        case Promoted() as one:
            what, by = "promoted", one.by
        case Rebased() as one:
            what, by = "bounds began again", one.by
        case Released() as one:
            what, by, why = f"released {len(one.names)} entries", one.by, _names(one.names)
        case Discarded() as one:
            what, by, why = f"discarded {len(one.names)} entries", one.by, _names(one.names)
        case RolledBack() as one:
            what, by = f"rolled back to version {one.version}", one.by
        case Adopted() as one:
            what, by = f"adopted version {one.version} of '{one.source}'", one.by
    return {"n": decided.n, "ms": decided.ms, "what": what, "why": why, "by": by} | more


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
