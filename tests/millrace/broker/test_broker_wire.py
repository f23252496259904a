"""Produce and Fetch by hand against kafka-python's message classes, which are made from Kafka's own schemas."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.metadata import MetadataRequest
from kafka.protocol.producer import ProduceRequest, ProduceResponse

from millrace.broker import kafka_wire, request_kinds
from millrace.broker.kafka_wire import GetPart, Got, Malformed, Placed, PutPart

TOPICS = st.sampled_from(["events", "features.items", "t"])
NUMBERS = st.integers(0, 2**31 - 1)
OFFSETS = st.integers(-1, 2**62)
BYTES = st.binary(max_size=40)


def by_topic(parts: list[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for at, (topic, _) in enumerate(parts):
        found.setdefault(topic, []).append(at)
    return found


def body(framed: list[bytes]) -> bytes:
    """An answer's fields, after a look at its frame."""
    whole = b"".join(framed)
    assert int.from_bytes(whole[:4], "big") == len(whole) - 4
    assert int.from_bytes(whole[4:8], "big") == 77
    return whole[8:]


@pytest.mark.parametrize("version", range(kafka_wire.PRODUCE_VERSIONS[0], kafka_wire.PRODUCE_VERSIONS[1] + 1))
@given(parts=st.lists(st.tuples(TOPICS, NUMBERS, BYTES), max_size=5), acks=st.integers(-1, 1))
def test_a_produce_request_is_read_as_it_was_written(
    version: int, parts: list[tuple[str, int, bytes]], acks: int
) -> None:
    kind = ProduceRequest.TopicProduceData
    groups = by_topic([(topic, 0) for topic, _, _ in parts])
    request = ProduceRequest(
        version=version,
        transactional_id=None,
        acks=acks,
        timeout_ms=100,
        topic_data=[
            kind(
                name=topic,
                partition_data=[kind.PartitionProduceData(index=parts[n][1], records=parts[n][2]) for n in rows],
            )
            for topic, rows in groups.items()
        ],
    )
    request.with_header(77, "c")
    frame = memoryview(bytes(request.encode(header=True)))
    head = kafka_wire.read_request(frame)
    assert (head.key, head.version, head.correlation, head.client) == (kafka_wire.PRODUCE, version, 77, "c")
    put = kafka_wire.read_put(frame, head.at)
    assert put.acks == acks
    assert [(p.topic, p.partition, bytes(p.records)) for p in put.parts] == [
        parts[n] for rows in groups.values() for n in rows
    ]
    assert all(isinstance(part, PutPart) for part in put.parts)


@pytest.mark.parametrize("version", range(kafka_wire.PRODUCE_VERSIONS[0], kafka_wire.PRODUCE_VERSIONS[1] + 1))
@given(placed=st.lists(st.builds(Placed, TOPICS, NUMBERS, st.integers(0, 90), OFFSETS, OFFSETS, st.text(max_size=9))))
def test_a_produce_answer_is_read_by_the_client_as_it_was_meant(version: int, placed: list[Placed]) -> None:
    found = ProduceResponse.decode(body(kafka_wire.put_answer(77, version, placed)), version=version)
    rows = [(t.name, p) for t in found.responses for p in t.partition_responses]
    groups = by_topic([(part.topic, part.partition) for part in placed])
    for (topic, row), part in zip(rows, [placed[n] for ns in groups.values() for n in ns], strict=True):
        assert (topic, row.index, row.error_code, row.base_offset) == part[:4]
        assert row.log_append_time_ms == -1
        if version >= 5:
            assert row.log_start_offset == part.start
        if version >= 8:
            assert row.error_message == (part.why or None)


@pytest.mark.parametrize("version", range(kafka_wire.FETCH_VERSIONS[0], kafka_wire.FETCH_VERSIONS[1] + 1))
@given(parts=st.lists(st.builds(GetPart, TOPICS, NUMBERS, OFFSETS, NUMBERS), max_size=5), wait=NUMBERS, least=NUMBERS)
def test_a_fetch_request_is_read_as_it_was_written(version: int, parts: list[GetPart], wait: int, least: int) -> None:
    kind = FetchRequest.FetchTopic
    groups = by_topic([(part.topic, part.partition) for part in parts])
    request = FetchRequest(
        version=version,
        replica_id=-1,
        max_wait_ms=wait,
        min_bytes=least,
        max_bytes=5000,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[
            kind(
                topic=topic,
                partitions=[
                    kind.FetchPartition(
                        partition=parts[n].partition,
                        current_leader_epoch=-1,
                        fetch_offset=parts[n].offset,
                        log_start_offset=-1,
                        partition_max_bytes=parts[n].max_bytes,
                    )
                    for n in rows
                ],
            )
            for topic, rows in groups.items()
        ],
        forgotten_topics_data=[],
        rack_id="",
    )
    request.with_header(77, None)
    frame = memoryview(bytes(request.encode(header=True)))
    head = kafka_wire.read_request(frame)
    assert head.client == ""
    get = kafka_wire.read_get(frame, head.at, version)
    assert (get.max_wait_ms, get.min_bytes, get.max_bytes) == (wait, least, 5000)
    assert get.parts == [parts[n] for rows in groups.values() for n in rows]


@pytest.mark.parametrize("version", range(kafka_wire.FETCH_VERSIONS[0], kafka_wire.FETCH_VERSIONS[1] + 1))
@given(got=st.lists(st.builds(Got, TOPICS, NUMBERS, st.integers(0, 90), OFFSETS, OFFSETS, BYTES), max_size=5))
def test_a_fetch_answer_is_read_by_the_client_as_it_was_meant(version: int, got: list[Got]) -> None:
    found = FetchResponse.decode(body(kafka_wire.get_answer(77, version, got)), version=version)
    rows = [(t.topic, p) for t in found.responses for p in t.partitions]
    groups = by_topic([(part.topic, part.partition) for part in got])
    for (topic, row), part in zip(rows, [got[n] for ns in groups.values() for n in ns], strict=True):
        assert (topic, row.partition_index, row.error_code) == part[:3]
        assert row.high_watermark == row.last_stable_offset == part.end
        assert bytes(row.records) == part.records
        assert not row.aborted_transactions
        if version >= 5:
            assert row.log_start_offset == part.start


@given(st.binary(max_size=300), st.sampled_from([4, 7, 11]))
def test_any_bytes_at_all_are_a_request_or_malformed(data: bytes, version: int) -> None:
    frame = memoryview(data)
    for read in (
        lambda: kafka_wire.read_put(frame, 0),
        lambda: kafka_wire.read_get(frame, 0, version),
        lambda: kafka_wire.frame_size(bytearray(data.ljust(4, b"\0"))),
        lambda: len(data) < 10 or kafka_wire.read_request(frame),
    ):
        try:
            read()
        except Malformed:
            continue


@given(st.data())
def test_any_bytes_at_all_are_a_call_or_malformed(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(request_kinds.CALLS)))
    entry = request_kinds.CALLS[key]
    version = data.draw(st.integers(*entry.versions))
    frame = memoryview(data.draw(st.binary(max_size=200)))
    with contextlib.suppress(Malformed):
        request_kinds.decode(entry, kafka_wire.Request(key, version, 1, "", 0), frame)


@pytest.mark.parametrize("version", [0, 8, 9, 12])
def test_an_array_of_two_milliards_ends_at_the_end_of_its_frame(version: int) -> None:
    entry = request_kinds.CALLS[int(MetadataRequest.API_KEY)]
    flexible = version >= 9
    count = b"\xff\xff\xff\xff\x07" if flexible else b"\x7f\xff\xff\xff"
    with pytest.raises(Malformed):
        request_kinds.decode(
            entry, kafka_wire.Request(3, version, 1, "", 0), memoryview(b"\0" * flexible + count + b"\0" * 50)
        )


def test_a_number_without_an_end_is_malformed_before_it_is_read() -> None:
    entry = request_kinds.CALLS[int(MetadataRequest.API_KEY)]
    with pytest.raises(Malformed, match="without an end"):
        request_kinds.decode(entry, kafka_wire.Request(3, 12, 1, "", 0), memoryview(b"\0" + b"\xff" * 1_000_000))


def test_every_version_that_is_announced_can_be_read_and_answered() -> None:
    """Kafka's schemas in kafka-python know each of them."""
    for key, entry in request_kinds.CALLS.items():
        low, high = entry.versions
        assert int(entry.request.API_KEY) == key
        assert 0 <= low <= high <= entry.request.max_version
