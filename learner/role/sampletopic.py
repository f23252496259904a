# shell
"""The topic ``samples``, from which samples are read again."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kafka.errors import KafkaError

from learner.samples.batch_reader import TopicMessage
from millrace.basics.errors import BrokerError, SnapshotError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import REMEDY, broker_error, first_offsets, make_reader, topic_ids, wait_for_broker

_POLL_MS = 200


class SampleTopic:
    """The topic ``samples`` of a broker, read without a consumer group, so no other reader notices.

    Args:
        id: of the topic that offsets are of; empty: the broker that was learnt from gave none.
        patience_seconds: for which a broker is waited for; None: the settings'.

    Raises:
        BrokerError: the broker does not answer.
        SnapshotError: its topic is another one.
    """

    def __init__(self, settings: Settings, id: str = "", patience_seconds: float | None = None) -> None:
        self._settings = settings
        wait_for_broker(settings, patience_seconds)
        found = topic_ids(settings).get(SAMPLES, "")
        if id and found and id != found:
            raise SnapshotError(
                f"the samples at '{settings.kafka}' are another log ({found}) than the one learnt from ({id})",
                "name the broker that the learner reads with --kafka",
            )

    def first(self) -> Mapping[int, int]:
        return first_offsets(self._settings, SAMPLES)

    def open(self, wanted: Mapping[int, range]) -> _Polled:
        return _Polled(self._settings, wanted)


class _Polled:
    def __init__(self, settings: Settings, wanted: Mapping[int, range]) -> None:
        self._settings, self._wanted = settings, wanted
        self._reader = make_reader(settings, SAMPLES, {p: at.start for p, at in wanted.items()})
        self._of = {tp.partition: tp for tp in self._reader.assignment()}
        ends = self._ends()
        self._stop = {p: min(at.stop, ends[p]) for p, at in wanted.items() if p in ends}

    def _ends(self) -> dict[int, int]:
        try:
            return {tp.partition: end for tp, end in self._reader.end_offsets(list(self._of.values())).items()}
        except KafkaError as error:
            self._reader.close()
            raise broker_error(f"ends of the topic '{SAMPLES}' cannot be asked for", error) from None

    def more(self, ahead: Collection[int]) -> Sequence[TopicMessage]:
        heard = time.monotonic()
        while left := self._left():
            self._pause(left - set(ahead) or left)
            try:
                polled: dict[Any, list[Any]] = self._reader.poll(timeout_ms=_POLL_MS)
            except KafkaError as error:
                raise broker_error(f"broker '{self._settings.kafka}' gives no samples", error) from None
            found = [
                TopicMessage(r.partition, r.offset, r.value, r.headers or ())
                for records in polled.values()
                for r in records
                if r.value is not None and r.offset in self._wanted.get(r.partition, ())
            ]
            if found:
                return found
            heard = time.monotonic() if polled else heard
            if time.monotonic() - heard > self._settings.patience_seconds:
                raise BrokerError(f"broker '{self._settings.kafka}' gives no more of topic '{SAMPLES}'", REMEDY)
        return ()

    def _left(self) -> set[int]:
        return {p for p, stop in self._stop.items() if self._reader.position(self._of[p]) < stop}

    def _pause(self, reading: set[int]) -> None:
        paused = {tp.partition for tp in self._reader.paused()}
        if stop := [tp for p, tp in self._of.items() if p not in reading and p not in paused]:
            self._reader.pause(*stop)
        if go := [self._of[p] for p in reading & paused]:
            self._reader.resume(*go)

    def close(self) -> None:
        self._reader.close()
