# core
"""What the gate knows, in a place of its own in the store: a restart need not begin unjudged.

It is no part of snapshots: it may have 40 MB, most of it held-out pages, and is worth writing now and then only.
"""

from __future__ import annotations

import msgspec
import structlog

from learner.gate.promotion import Promotion
from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import SnapshotError, StoreError, one_line
from millrace.basics.store import Store
from millrace.contracts.settings import Settings

log = structlog.get_logger("learner")

PLACE, _STATE = "gate", "gate.state"
KEEP_SECONDS = 600.0
"""How often it is kept at least."""


def resume_gate(settings: Settings, promotion: Promotion) -> None:
    """What the gate knew when a process before this one kept it; without it, it warms up anew, aloud."""
    if promotion.checks is None:
        return
    try:
        store = Store(settings.place(PLACE))
        if _STATE not in store.names():
            return
        specs, body, _ = store.get(_STATE)
        promotion.resume(view(msgspec.json.decode(specs, type=list[ArraySpec]), body))
    except (StoreError, SnapshotError, msgspec.MsgspecError, KeyError, ValueError) as error:
        log.warning("the gate's state cannot be used: it warms up anew", error=str(error))


def keep_gate(settings: Settings, promotion: Promotion) -> None:
    """Writes what the gate knows, and what quarantine keeps waiting. What cannot be written is tried again."""
    if promotion.checks is None:
        return
    promotion.flush_quarantine()
    arrays = promotion.snapshot()
    try:
        Store(settings.place(PLACE)).put(_STATE, specs_of(arrays), *lay(arrays))
    except StoreError as error:
        log.warning("the gate's state cannot be kept; it is tried again", error=one_line(error))
