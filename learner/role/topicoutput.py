# shell
"""What a learner says: its versions to Kafka, its figures, and answers to commands of the admin port."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from kafka import KafkaProducer

from learner.gate.admin import Admin
from learner.gate.checks import QUARANTINED
from learner.promotion.promotion_status import promotion_status
from learner.ranker.model import LearnReport
from learner.role.learner import Learner
from learner.role.learner_metrics import (
    DELTA_BYTES,
    DELTAS,
    HELD_UP,
    LAG,
    LEARN_SECONDS,
    SKIPPED,
    SNAPSHOTS,
    VERSION,
    Board,
)
from learner.role.loopoutput import LoopOutput
from learner.training.learner_claim import HEARTBEAT_SECONDS, LearnerClaim
from learner.training.publisher import Publisher
from learner.training.trainer import ClickCounts
from millrace.basics.errors import MillraceError
from millrace.contracts.events import DeadLetter, dead_letter_bytes
from millrace.contracts.topics import DEAD_LETTERS, SAMPLES
from millrace.processes.tally import CLICK_STAGE
from millrace.processes.wall import wall_ms
from millrace.versions.decisions import LogPart
from millrace.versions.modelstore import Announcement
from millrace.versions.versioning import Claim

log = structlog.get_logger("learner")


class TopicOutput(LoopOutput):
    """Sends a learner's versions to Kafka, shows its figures, and runs the commands of the admin port."""

    def __init__(self, learner: Learner, tenure: LearnerClaim, producer: KafkaProducer, publisher: Publisher) -> None:
        self._learner, self._promotion = learner, learner.loop.promotion
        self._tenure, self._producer, self._publisher = tenure, producer, publisher
        self._board = Board(learner.trainer, learner.settings.folder("learner") / "history.jsonl")
        self._said: dict[str, Any] = {}  # what the admin port says of the gate
        self._unpublished: list[tuple[int, int]] = []  # (wall time of a step, its clicks) since the last delta
        self._heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        self._comparison = learner.comparison()
        self._admin = Admin(learner.settings, lambda: self._said)

    def close(self) -> None:
        self._admin.close()

    def check(self) -> None:
        self._tenure.check()

    def delta(self, note: Announcement, body: bytes) -> None:
        VERSION.set(note.version)
        self._publisher.delta(note, body)
        waited_ms = [max(0, note.published_ms - learnt_ms) for learnt_ms, _ in self._unpublished]
        CLICK_STAGE.observe(np.array(waited_ms) / 1000, [clicks for _, clicks in self._unpublished], "published")
        self._unpublished.clear()
        DELTAS.inc()
        DELTA_BYTES.inc(len(body))

    def root(self, note: Announcement) -> None:
        VERSION.set(note.version)
        self._unpublished.clear()
        self.snapshot(note)

    def snapshot(self, note: Announcement) -> None:
        self._publisher.snapshot(note)
        SNAPSHOTS.inc()

    def decided(self, part: LogPart) -> None:
        self._publisher.decisions(self._tenure.epoch, self._tenure.claimant, part)

    def settled(self) -> None:
        self._tenure.check_at(self._publisher.settled())

    @property
    def sent(self) -> int:
        return self._publisher.sent

    def heard(self) -> tuple[bool, int]:
        return self._publisher.heard()

    def behind_newest(self) -> Callable[[], dict[str, Any]]:
        return self._publisher.behind_newest()

    def forget_before(self, offset: int) -> None:
        self._publisher.forget_before(offset)

    def learnt(self, report: LearnReport, clicks: list[ClickCounts], seconds: float) -> None:
        LEARN_SECONDS.observe(seconds)
        if report.skipped is not None and report.skipped != QUARANTINED:
            SKIPPED.labels(report.skipped).inc()
            log.error("batch refused, weights untouched", reason=report.skipped, loss=report.loss)
        for each in clicks:
            now_ms = wall_ms()
            joined_ms = each.joined_ms[each.joined_ms > 0]  # some brokers do not report when a message was made
            CLICK_STAGE.observe(np.maximum(now_ms - joined_ms, 0) / 1000, label="learnt")
            self._unpublished.append((now_ms, len(each.sent_ms)))

    def held_up(self, seconds: float) -> None:
        HELD_UP.observe(seconds)

    def between(self, now: float) -> None:
        """Runs commands, compares, and reports that this learner is still there."""
        if self._comparison is not None:
            self._comparison.between(now)
        while (command := self._admin.next()) is not None:
            self._learner.loop.learn(drain=True)  # what waits came before it; what fails of it is not the command's
            try:
                said = self._learner.do(command.name, command.args)
            except MillraceError as error:
                command.fail(error)
                continue
            self._said = promotion_status(self._promotion)
            command.answer(said | {"state": self._said["state"]})
        self.at_work(now)

    def at_work(self, now: float) -> None:
        """Sends the learner's heartbeat."""
        if now >= self._heartbeat:
            self._publisher.still_here(Claim(self._tenure.epoch, self._tenure.claimant))
            self._heartbeat = now + HEARTBEAT_SECONDS

    def report(self, lag: int) -> None:
        LAG.set(lag)
        self._said = promotion_status(self._promotion)
        if self._promotion.checks is None:
            self._board.show()
        else:
            self._board.show(self._said, self._promotion.state.verdicts)

    def bad(self, record: Any, why: Exception) -> None:
        """Keeps an unusable message of samples as a dead letter. Its offset reveals a repetition after a crash."""
        SKIPPED.labels("unreadable").inc()
        letter = DeadLetter.of("bad-samples", str(why), SAMPLES, record.partition, record.offset, record.value)
        self._producer.send(DEAD_LETTERS, dead_letter_bytes(letter), letter.reason.encode()).add_errback(
            lambda error: log.error("dead letter lost; the message is still in its topic", error=str(error))
        )

    def gone(self, messages: int) -> None:
        SKIPPED.labels("gone").inc(messages)
