# core
"""What persons ask of a learner, and what becomes of samples that were released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import structlog

from learner.promotion.learnerstate import LearnerState
from learner.promotion.releasedrows import ReleasedRows
from learner.promotion.savedstate import quarantine_of
from learner.training.learner_versions import FoundSnapshot
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import BrokerError, SchemaError, SnapshotError, StoreError, one_line
from millrace.basics.store import AbsentError, DamagedError
from millrace.contracts.topics import KEPT_DAYS
from millrace.versions.modelstore import Announcement

log = structlog.get_logger("learner")

PERSON = "person"


class GateCommands:
    """Each method is for the learner's own thread, between two steps. ``by``: who asks, for the log."""

    def __init__(self, state: LearnerState) -> None:
        self._state = state
        self._rows = ReleasedRows(state)
        self._nowhere: set[str] = set()  # entries that cannot be copied any more

    def hold(self, by: str = PERSON) -> None:
        """Nothing newer is published until :meth:`promote`. The learner learns on."""
        self._state.hold(True, by)

    def promote(self, by: str = PERSON) -> None:
        """Vouches for what comes: a hold ends, and what is open at the gate passes."""
        state = self._state
        if state.standing.back >= 0:
            raise BrokerError("the model has to go back, and cannot yet: samples cannot be read", "start the broker")
        state.hold(False, by)
        if state.checks is None:
            return
        if state.standing.since:
            self.world_changed(by, min(ms for ms, _ in state.standing.since.values()))
        else:
            state.rebased(by)

    def world_changed(self, by: str, since_ms: int) -> None:
        """What is different is the world: bounds begin anew, and what was kept since is learnt."""
        log.warning("what is different is taken for the world: it is learnt", by=by, since_ms=since_ms)
        kept = self._state.quarantine.entries()
        self._state.released([e.name for e in kept if e.made_ms >= since_ms and e.check != "absurd"], by)
        self._state.rebased(by)

    def release(self, names: Sequence[str] | Literal["all"], by: str = PERSON) -> int:
        """Has entries of quarantine learnt. How many are to be learnt that were not before. Raises AbsentError where
        there is none of a name."""
        return self._state.released(self._state.quarantine.chosen(names), by)

    def discard(self, names: Sequence[str] | Literal["all"], by: str = PERSON) -> int:
        """Removes entries of quarantine for good, but for those that are to be learnt: how many rows. Raises
        AbsentError where there is none of a name."""
        chosen = self._state.quarantine.chosen(names)
        return self._state.discarded([name for name in chosen if name not in self._state.standing.releasing], by)

    def roll_back(self, note: Announcement, by: str = PERSON) -> int:
        """Goes back to a snapshot of the store. What was learnt since is set aside, uncounted in ``trained``: rows. The
        next delta is the root.

        Raises:
            StoreError, SnapshotError: the snapshot cannot be read; nothing has changed then.
        """
        self._state.settle()
        return self._state.rolled_back(note, self._state.restorer.snapshot(note), by)

    def adopt(self, found: FoundSnapshot, source: str, same_samples: bool = False, by: str = PERSON) -> None:
        """Goes on with a model that was learnt elsewhere. The next delta is the root.

        Args:
            same_samples: it was learnt of this learner's own samples, and counts what became of them, too.
        """
        self._state.settle()
        self._state.adopted(found, source, by, quarantine_of(found), same_samples)

    # -- released samples ------------------------------------------------------------------------------------

    def learn_some(self) -> bool:
        """Learns some rows of what was released, if there is any and all else was judged: whether it was so. No samples
        are taken meanwhile, and nothing is published. When the last are learnt, bounds begin anew."""
        state, standing = self._state, self._state.standing
        if not standing.releasing or standing.back >= 0 or state.root_due or state.unjudged:
            return False
        name = standing.releasing[0]
        try:
            piece = self._rows.next()
        except (SnapshotError, SchemaError, AbsentError, DamagedError) as error:
            log.error("an entry of quarantine cannot be learnt: it is given up", name=name, why=one_line(error))
            state.discarded([name], "lost")
        except (BrokerError, StoreError) as error:
            log.error("what was released cannot be read yet; tried again", error=one_line(error))
            return False
        else:
            state.learnt_released(piece.cut, name, piece.size, piece.ends, piece.unfit)
        if not standing.releasing:
            state.rebased("release")
        return True

    def copy_some(self, held: range) -> None:
        """Copies an entry whose rows the topic is about to lose, if there is one: of those among its oldest quarter
        where it loses some, or half as old as it keeps any. For the owner to call now and then.

        Args:
            held: the offsets that it has now.

        Raises:
            BrokerError: the topic cannot be read.
            StoreError: the store cannot be read or written.
        """
        quarantine, checks = self._state.quarantine, self._state.checks
        if not quarantine.rows:
            return
        now_ms = checks.clock.now_ms if checks else 0
        old_ms = now_ms - KEPT_DAYS * DAY_MS // 2
        least = held.start + len(held) // 4 if held.start else 0
        there = quarantine.copies() | self._nowhere
        for entry in quarantine.entries():
            if entry.name in there or quarantine.grows(entry.name, now_ms):
                continue
            soon = any(span.offset < least for span in quarantine.spans(entry.name))
            if not soon and entry.made_ms > old_ms:
                continue
            try:
                quarantine.copy(entry.name, self._rows.from_topic(entry.name))
            except (SnapshotError, SchemaError) as error:
                self._nowhere.add(entry.name)
                log.error("an entry of quarantine was not copied in time", name=entry.name, error=one_line(error))
            return
