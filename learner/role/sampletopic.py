# shell
"""The topic ``samples``, from which samples are read again."""

from __future__ import annotations

import time
from collections.abc import Sequence
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

    def first(self) -> int:
        return first_offsets(self._settings, SAMPLES)[0]

    def open(self, wanted: range) -> _Polled:
        return _Polled(self._settings, wanted)


class _Polled:
    def __init__(self, settings: Settings, wanted: range) -> None:
        self._settings, self._wanted = settings, wanted
        self._reader = make_reader(settings, SAMPLES, {0: wanted.start})
        (self._of,) = self._reader.assignment()
        try:
            self._stop = min(wanted.stop, self._reader.end_offsets([self._of])[self._of])
        except KafkaError as error:
            self._reader.close()
            raise broker_error(f"the end of the topic '{SAMPLES}' cannot be asked for", error) from None

    def more(self) -> Sequence[TopicMessage]:
        heard = time.monotonic()
        while self._reader.position(self._of) < self._stop:
            try:
                polled: dict[Any, list[Any]] = self._reader.poll(timeout_ms=_POLL_MS)
            except KafkaError as error:
                raise broker_error(f"broker '{self._settings.kafka}' gives no samples", error) from None
            found = [
                TopicMessage(r.offset, r.value, r.headers or ())
                for records in polled.values()
                for r in records
                if r.value is not None and r.offset in self._wanted
            ]
            if found:
                return found
            heard = time.monotonic() if polled else heard
            if time.monotonic() - heard > self._settings.patience_seconds:
                raise BrokerError(f"broker '{self._settings.kafka}' gives no more of topic '{SAMPLES}'", REMEDY)
        return ()

    def close(self) -> None:
        self._reader.close()
