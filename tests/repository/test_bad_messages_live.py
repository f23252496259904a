"""Messages that nobody should send, through the whole loop on Apache Kafka while it runs: it is at work afterwards,
also when its roles were killed and read them again, and every exposure is accounted for."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import pytest

from millrace.basics.errors import SchemaError
from millrace.commands.loop.monitor import fetch
from millrace.contracts.events import Item, decode_dead_letter, key_of, to_json
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, ITEMS, PAGE_LOGS, SAMPLES, USERS
from millrace.processes.kafka import create_topics, make_producer
from tests.scenes.bad_messages import Bad, astray, corpus
from tests.scenes.demo_kafka import apache_kafka, own_redis
from tests.scenes.demo_process import FETCH_SECONDS, demo_process
from tests.scenes.demo_report import assert_all_accounted_for
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.kafka, pytest.mark.timeout(LONG)]

TS_MS = 1_772_323_200_000  # 1 March 2026: before the day on which a demo opens


def is_label(bad: Bad) -> bool:
    """Whether the learner can use it: then it is a forged label and no bad message, and no audit could bear it."""
    if bad.topic != SAMPLES:
        return False
    try:
        SampleBatch.from_bytes(bad.value)
    except SchemaError:
        return False
    return True


def send(settings: Settings, messages: list[Bad]) -> None:
    producer = make_producer(settings)
    try:
        sent = []
        for bad in messages:
            # The client sends no message that is nothing at all, and no compacted topic takes one without a key.
            bare = bad.key is None and (bad.value is None or bad.topic in (ITEMS, USERS))
            key = b"" if bare else bad.key
            sent.append(producer.send(bad.topic, bad.value, key, list(bad.headers), partition=bad.partition))
        producer.flush()
        assert all(future.succeeded() for future in sent)
    finally:
        producer.close()


def is_scored(scorer: str, item: str) -> bool:
    """Whether the scorer scores an item; it does not while it does not answer."""
    asked = Request(f"{scorer}/score", msgspec.json.encode({"user_id": 1, "items": [item]}))
    try:
        with urlopen(asked, timeout=FETCH_SECONDS) as answer:
            return "scores" in msgspec.json.decode(answer.read())
    except OSError:
        return False


@pytest.mark.slow
def test_bad_messages_through_a_running_loop_cost_it_nothing(tmp_path: Path) -> None:
    messages = [bad for bad in corpus(shop_schema(), TS_MS) if not is_label(bad)]
    before = [bad for bad in messages if bad.topic == EVENTS]  # an earlier run's: what the simulator sends is counted
    during = [bad for bad in messages if bad.topic != EVENTS]
    with apache_kafka(tmp_path / "kafka") as kafka, own_redis(tmp_path / "redis") as redis:
        settings = Settings(kafka=kafka, redis=redis)
        create_topics(settings)
        send(settings, before)
        env = {"MILLRACE_KAFKA": kafka, "MILLRACE_REDIS": redis}
        with demo_process(tmp_path, env=env) as demo:
            demo.until_learning()
            send(settings, during)
            for name in ("stream", "learn", "serve"):  # each reads the topics again from where it has to
                demo.kill(name)
            scorer = demo.environment("simulate")["MILLRACE_SCORER"]
            send(settings, [Bad(ITEMS, "good", b"after", to_json(Item("after", {"category": 3, "price": 2.5})))])
            demo.until(lambda: is_scored(scorer, "after"), "a later item is known")
            send(settings, [Bad(ITEMS, "gone", key_of("after"), None)])
            start = demo.state()["figures"]

            def at_work() -> bool:
                now = demo.state()["figures"]
                return all((now.get(n) or 0) > (start.get(n) or 0) + 300 for n in ("exposures", "trained"))

            demo.until(at_work, "shoppers come and samples are learnt from")
            figures = fetch(f"{scorer}/metrics", 60.0)
            assert demo.end(signal.SIGINT) == 0, demo.text()
            report = demo.report()
            demo.until_nothing_left()
        assert_all_accounted_for(report)
        assert set(report["restarts"].values()) == {0, 1}, f"a role died that was not killed: {demo.text()}"
        assert 'millrace_errors_total{what="message"} 0.0' in figures, "each was foreseen"
        dead_letters = Counter[tuple[str, str, int, int]]()
        unread = 0

        for record in records(settings, DEAD_LETTERS):
            try:
                one = decode_dead_letter(record.value)
            except ValueError:
                unread += 1
            else:
                dead_letters[one.topic, one.reason, one.partition, one.offset] += 1
        assert unread > 100  # our own, that is
        reasons = Counter((topic, reason) for topic, reason, _, _ in dead_letters)
        assert reasons[USERS, "bad-user"] > 100
        assert reasons[ITEMS, "bad-item"] > 150
        assert reasons["features.items", "bad-item-tiles"] > 50
        assert reasons[SAMPLES, "bad-samples"] > 60
        assert reasons["page_logs", "bad-page-log"] > 100
        assert sum(n for (topic, _), n in reasons.items() if topic == EVENTS) > 300
        for topic in (EVENTS, USERS, PAGE_LOGS):
            assert reasons[topic, "wrong-partition"] >= sum(bad.topic == topic for bad in astray(shop_schema(), TS_MS))
        assert report["dead_letters_elsewhere"]
