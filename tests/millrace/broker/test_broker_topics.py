"""A broker's topics and their folder: what a crash at any moment leaves, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import ServiceError
from millrace.broker import topic_store as module
from millrace.broker.codes import INVALID_CONFIG, TOPIC_ALREADY_EXISTS, UNKNOWN_TOPIC_OR_PARTITION, BrokerRefusal
from millrace.broker.log import Limits
from millrace.broker.topic_store import PRODUCER_BLOCK, Topics
from tests.scenes.record_batches import one, put


def opened(folder: Path, cluster: str = "c") -> Topics:
    return Topics(folder, cluster, Limits(), 0)


def test_topics_outlive_the_process_with_ids_settings_and_records(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.create("events", "id-1", 2, {"retention.ms": "5"}, 0)
    put(first.log("events", 1), one())
    first.close()
    again = opened(tmp_path)
    topic = again.get("events")
    assert topic is not None
    assert (topic.id, topic.config, topic.limits.retention_ms) == ("id-1", {"retention.ms": "5"}, 5)
    assert [log.end for log in topic.logs] == [0, 1]
    for name, number in (("events", 2), ("events", -1), ("other", 0)):
        with pytest.raises(BrokerRefusal) as refused:
            again.log(name, number)
        assert refused.value.code == UNKNOWN_TOPIC_OR_PARTITION
    again.close()


def test_a_topic_deleted_and_created_again_never_meets_its_old_records_whenever_the_broker_ends(
    tmp_path: Path,
) -> None:
    first = opened(tmp_path)
    first.create("t", "old", 1, {}, 0)
    put(first.log("t", 0), one())
    leftover = first.delete("t")
    first.close()  # ends before the folder was removed
    assert leftover.exists()
    again = opened(tmp_path)
    assert not leftover.exists()
    assert again.create("t", "new", 1, {}, 0).logs[0].end == 0
    again.close()


def test_a_crash_before_the_topic_was_written_down_leaves_no_topic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", crash)
        with pytest.raises(KeyboardInterrupt):
            first.create("t", "id", 1, {}, 0)
    first.close()
    again = opened(tmp_path)
    assert again.get("t") is None
    assert list((tmp_path / "logs").iterdir()) == []
    again.close()


def test_producer_ids_are_never_given_twice(tmp_path: Path) -> None:
    given: list[int] = []
    for _ in range(3):
        topics = opened(tmp_path)
        given += [topics.next_producer() for _ in range(PRODUCER_BLOCK + 1)]
        topics.close()
    assert len(set(given)) == len(given)


def test_a_folder_of_another_cluster_or_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    opened(tmp_path, "mine").close()
    opened(tmp_path, "").close()
    with pytest.raises(ServiceError, match="belongs to cluster 'mine', not 'yours'; name another folder"):
        opened(tmp_path, "yours")
    (tmp_path / "broker.json").write_bytes(b"\xff")
    with pytest.raises(ServiceError, match="cannot be read"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"retention.ms": "-2"}, "retention.ms '-2'"),
        ({"segment.bytes": "0"}, "segment.bytes '0'"),
        ({"cleanup.policy": "delete,sweep"}, "cleanup.policy 'delete,sweep'"),
        ({"color": "red"}, "color is not known"),
    ],
)
def test_a_setting_that_cannot_be_is_named(config: dict[str, str], problem: str, tmp_path: Path) -> None:
    topics = opened(tmp_path)
    with pytest.raises(BrokerRefusal, match=problem) as refused:
        topics.create("t", "id", 1, config, 0)
    assert refused.value.code == INVALID_CONFIG
    assert topics.get("t") is None
    topics.create("t", "id", 1, {}, 0)
    with pytest.raises(BrokerRefusal) as refused:
        topics.create("t", "id-2", 1, {}, 0)
    assert refused.value.code == TOPIC_ALREADY_EXISTS
    topics.close()


def test_settings_are_listed_by_kafkas_names_as_they_are_taken() -> None:
    reported = (
        Limits()
        .of({"cleanup.policy": "compact,delete", "retention.bytes": "-1", "compression.type": "zstd"})
        .as_configs()
    )
    assert (reported["cleanup.policy"], reported["retention.bytes"], reported["retention.ms"]) == (
        "compact",
        "-1",
        str(7 * DAY_MS),
    )
    assert Limits().of(reported) == Limits(compact=True, retention_bytes=-1)


def test_a_partition_holds_all_of_its_time_however_much_that_is() -> None:
    assert Limits().retention_bytes == -1


def test_all_topics_together_stay_within_a_bound_and_lose_as_much_of_their_time(tmp_path: Path) -> None:
    day = 86_400_000
    topics = Topics(tmp_path, "c", Limits(segment_bytes=1), 0)  # a segment for each record
    week, month = ({"retention.ms": str(days * day)} for days in (7, 31))
    topics.create("samples", "1", 2, week, 0)
    topics.create("features", "2", 1, month, 0)
    topics.create("users", "3", 1, {"cleanup.policy": "compact"}, 0)
    logs = [topics.log("samples", 0), topics.log("samples", 1), topics.log("features", 0), topics.log("users", 0)]
    for now in range(31):
        for log in logs:
            put(log, one(), now * day)
            log.expire(now * day)
    size = logs[0].size // 8
    assert topics.bound(sum(log.size for log in logs)) == 0, "there is room"
    before = [log.start for log in logs]
    assert before == [23, 23, 0, 0]
    assert topics.bound(sum(log.size for log in logs) - 5 * size) == 5 * size
    assert [log.start for log in logs] == [25, 25, 1, 0]
    assert {log.expires_ms for log in logs[:3]} == {32 * day}, "each is short of its time by as much"
    topics.bound(0)
    assert [log.end - log.start for log in logs] == [1, 1, 1, 31], "the newest segments stay, and what is compacted"
    topics.close()
