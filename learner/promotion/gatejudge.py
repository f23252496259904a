# core
"""What the checks say, and what follows: it is counted, told, and the model goes back where it has to."""

from __future__ import annotations

import structlog

from learner.gate.heldout import Judgement
from learner.gate.model_checks import unsound
from learner.gate.verdicts import OF_MODEL, GateRefusal, kind_of
from learner.promotion.gatecommands import GateCommands
from learner.promotion.learnerstate import GATE, LearnerState
from learner.training.trainer import MicroBatch
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import BrokerError, SnapshotError, StoreError, one_line

log = structlog.get_logger("learner")


class GateJudge:
    """One thread.

    Attributes:
        judgement: of the newest snapshot.
        observed: the newest refusal that was only told of.
        wall_ms: now, for what is told at most once a minute.
    """

    def __init__(self, state: LearnerState, commands: GateCommands) -> None:
        self._state, self._commands, self._checks = state, commands, state.checks
        self.judgement: Judgement | None = None
        self.observed: GateRefusal | None = None
        self.wall_ms = 0
        self._told_ms: dict[str, int] = {}

    # -- samples ---------------------------------------------------------------------------------------------

    def samples(self, refusal: GateRefusal | None, cut: MicroBatch) -> bool:
        """Whether the screen lets a micro-batch pass. If not, what was learnt since the mark is refused with it."""
        refusal = self._judged("screen", refusal)
        if refusal is not None:
            if self._state.unjudged:
                self._state.settle()
            self._refuse(refusal, cut, self._state.standing.mark if self._state.unjudged else -1)
        return refusal is None

    def mend(self, to: int | None = None) -> bool:
        """Goes back if the model itself is not sound: whether it was so. What was asked may be asked again then.

        Args:
            to: the newest decision that counts; None: all do.

        Raises:
            BrokerError, StoreError, SnapshotError: it is not, and no other can be made now.
        """
        refusal = unsound(self._state.trainer.model, whole=True)
        if refusal is None:
            return False
        self._state.settle()
        self._say(refusal)
        back = self._of_model()
        self._state.refused(refusal, back=back if to is None else min(back, to))
        self.go_back()
        return True

    # -- the model -------------------------------------------------------------------------------------------

    def stretch(self, ends: bool = False) -> bool:
        """Judges what was learnt since the mark, and where that is a whole stretch, or ``ends`` as one, moves the mark.
        Whether nothing was refused."""
        checks, state = self._checks, self._state
        if checks is None or (not ends and state.standing.probation and not checks.shift.due):
            return True
        model = state.trainer.model
        refusal = unsound(model)
        if refusal is not None:
            return self._refuse_model(refusal)
        state.verdicts["soundness", "passed"] += 1
        if not (checks.shift.due or (ends and state.unjudged)):
            return True
        refusal = self._judged("shift", checks.shift.look(model))
        if refusal is not None:
            return self._refuse_model(refusal)
        if state.standing.probation:
            log.warning("a whole stretch has passed the gate: versions are published again")
        state.passed()
        return True

    def part(self, refusal: GateRefusal | None) -> bool:
        """Whether a part of a snapshot is sound."""
        if refusal is not None:
            return self._refuse_model(refusal)
        self._state.verdicts["soundness", "passed"] += 1
        return True

    def snapshot(self) -> bool:
        """Whether the model passes on held-out pages, where there are enough: it is saved then."""
        state, checks = self._state, self._checks
        if checks is None:
            state.saved()
            return True
        self.judgement = checks.heldout.judge(state.trainer.model, checks.shift.of_new_items)
        refusal = self.judgement.refusal
        if self.judgement.judged:
            refusal = self._judged("heldout", refusal)
        else:
            state.verdicts["heldout", "unjudged"] += 1
        if refusal is not None:
            return self._refuse_model(refusal)
        state.saved(judged=True)
        return True

    def _refuse_model(self, refusal: GateRefusal) -> bool:
        state = self._state
        state.settle()  # what the writer has written is gone back to, not behind
        back = state.standing.mark
        if kind_of(refusal.check) == OF_MODEL:
            back = self._of_model()
        elif refusal.check == "heldout" and state.restorer.base is not None:
            back = state.restorer.base.at
        self._refuse(refusal, None, back)
        return False

    def _of_model(self) -> int:
        """Where a model goes back to that is itself not sound: all that was learnt counts, but on probation."""
        standing = self._state.standing
        return standing.mark if standing.probation else self._state.log.newest

    # -- what follows ----------------------------------------------------------------------------------------

    def _judged(self, name: str, refusal: GateRefusal | None) -> GateRefusal | None:
        """Counts what a check says. A refusal that is only to be observed is told of and is None: what was judged goes
        on as if it had passed."""
        assert self._checks is not None
        verdicts = self._state.verdicts
        if refusal is None:
            verdicts[name, "passed"] += 1
        elif self._checks.observe and kind_of(refusal.check) != OF_MODEL:
            verdicts[refusal.check, "observed"] += 1
            self.observed = refusal
            if self.wall_ms >= self._told_ms.get(refusal.check, -MINUTE_MS) + MINUTE_MS:
                self._told_ms[refusal.check] = self.wall_ms
                log.warning("the gate would have refused; it only observes", why=str(refusal))
            return None
        return refusal

    def _say(self, refusal: GateRefusal) -> None:
        if not self._state.standing.probation:
            log.error("the gate refused; what was promoted last is served", why=str(refusal))

    def _refuse(self, refusal: GateRefusal, cut: MicroBatch | None, back: int) -> None:
        self._say(refusal)
        self._state.refused(refusal, cut and cut.batch, None if cut is None else cut.places, back)
        try:
            self.go_back()
        except (BrokerError, StoreError, SnapshotError) as error:
            log.error("the model cannot go back yet; nothing newer goes out; tried again", why=one_line(error))

    def go_back(self) -> None:
        """Does what a refusal asked for, if it was not done yet; then looks at how long there were refusals.

        Raises:
            BrokerError: what is to be learnt again cannot be read now.
            StoreError: no snapshot can be read now.
            SnapshotError: there is none that is sound.
        """
        state, standing, restorer = self._state, self._state.standing, self._state.restorer
        if standing.back >= 0:
            restored = restorer.restored((standing.back, min(standing.back, standing.mark)))
            if restored is None:
                state.rolled_back(*restorer.older(), GATE)
            else:
                state.went_back(restored)
        if self._checks is None or not standing.suspected or not standing.since:
            return
        if standing.refusing_ms >= self._checks.quarantine_ms and standing.refusal is not None:
            self._commands.world_changed("time", standing.since[kind_of(standing.refusal.check)][0])
