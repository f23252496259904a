# shell
"""Requests about topics, offsets of records, the cluster and producers' ids: one function each."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from kafka.protocol import admin, consumer, metadata, producer

from millrace.broker import codes
from millrace.broker.call import HOST, NODE, Call, log
from millrace.broker.codes import NONE, BrokerRefusal
from millrace.broker.log import PartitionLog
from millrace.broker.topic_store import BrokerTopic

T = TypeVar("T")

DEFAULT_PARTITIONS = 1
_OLDEST, _LATEST, _NEWEST = -2, -1, -3
_FOR_TOPIC, _FOR_BROKER = 2, 4


def describe_topics(call: Call) -> Any:
    """All topics' partitions, on this broker. Kafka's request ``Metadata``."""
    kind, topics = metadata.MetadataResponse, call.broker.topics
    asked = call.request.topics
    if asked is None or (call.version == 0 and not asked):
        found = [_metadata_of(topic) for topic in topics]
    else:
        by_id = {topic.id: topic for topic in topics}
        found = []
        for one in asked:
            topic = by_id.get(str(one.topic_id)) if one.name is None else topics.get(one.name)
            found.append(_metadata_of(topic) if topic else _unknown(one))
    node = kind.MetadataResponseBroker(node_id=NODE, host=HOST, port=call.broker.port, rack=None)
    return kind(
        throttle_time_ms=0, brokers=[node], cluster_id=topics.cluster, controller_id=NODE, topics=found, error_code=NONE
    )


def _metadata_of(topic: BrokerTopic) -> Any:
    kind = metadata.MetadataResponse.MetadataResponseTopic
    here = {"leader_id": NODE, "leader_epoch": -1, "replica_nodes": [NODE], "isr_nodes": [NODE], "offline_replicas": []}
    numbers = range(len(topic.logs))
    partitions = [kind.MetadataResponsePartition(error_code=NONE, partition_index=n, **here) for n in numbers]
    return kind(error_code=NONE, name=topic.name, topic_id=topic.id, is_internal=False, partitions=partitions)


def _unknown(asked: Any) -> Any:
    kind = metadata.MetadataResponse.MetadataResponseTopic
    code = codes.UNKNOWN_TOPIC_OR_PARTITION if asked.name is not None else codes.UNKNOWN_TOPIC_ID
    return kind(error_code=code, name=asked.name or "", topic_id=asked.topic_id, is_internal=False, partitions=[])


def create_topics(call: Call) -> Any:
    """Each topic by itself is created or refused."""
    kind = admin.CreateTopicsResponse
    made = []
    for asked in call.request.topics:
        answer = kind.CreatableTopicResult(name=asked.name, topic_id=None, num_partitions=-1, replication_factor=1)
        answer.error_code, answer.error_message = NONE, None
        answer.topic_config_error_code, answer.configs = NONE, []
        try:
            _create(call, asked, answer)
        except BrokerRefusal as refused:
            answer.error_code, answer.error_message = refused.code, refused.why
        except OSError as error:
            answer.error_code, answer.error_message = codes.KAFKA_STORAGE_ERROR, str(error)
        made.append(answer)
    return kind(throttle_time_ms=0, topics=made)


def _create(call: Call, asked: Any, answer: Any) -> None:
    topics = call.broker.topics
    if asked.assignments and any(list(one.broker_ids) != [NODE] for one in asked.assignments):
        raise BrokerRefusal(codes.INVALID_REQUEST, "there is one broker")
    if not asked.assignments and asked.replication_factor not in (-1, 1):
        raise BrokerRefusal(
            codes.INVALID_REPLICATION_FACTOR, f"{asked.replication_factor} replicas, but there is one broker"
        )
    count = len(asked.assignments) or (DEFAULT_PARTITIONS if asked.num_partitions == -1 else asked.num_partitions)
    config = {one.name: one.value for one in asked.configs if one.value is not None}
    if call.request.validate_only:
        topics.check(asked.name, count, config)
    else:
        answer.topic_id = topics.create(asked.name, str(uuid.uuid4()), count, config, call.broker.now_ms()).id
        log.info("topic created", topic=asked.name, partitions=count)
    answer.num_partitions = count
    configs = topics.defaults.of(config).as_configs()
    entry = admin.CreateTopicsResponse.CreatableTopicResult.CreatableTopicConfigs
    answer.configs = [
        entry(name=name, value=value, read_only=False, config_source=1, is_sensitive=False)
        for name, value in configs.items()
    ]


def delete_topics(call: Call) -> Any:
    """Each topic by itself is deleted or refused."""
    kind = admin.DeleteTopicsResponse
    done = []
    for name in call.request.topic_names:
        code, why = NONE, None
        try:
            topic = call.broker.topics.get(name)
            folder = call.broker.topics.delete(name)
            call.broker.offsets.forget(topic=name)
            if topic is not None:
                call.broker.forget_topic(topic)
            shutil.rmtree(folder, ignore_errors=True)  # some files a partition: a matter of milliseconds
            log.info("topic deleted", topic=name)
        except BrokerRefusal as refused:
            code, why = refused.code, refused.why
        done.append(kind.DeletableTopicResult(name=name, error_code=code, error_message=why))
    return kind(throttle_time_ms=0, responses=done)


def delete_records(call: Call) -> Any:
    """The new beginning of each partition."""
    kind = admin.DeleteRecordsResponse.DeleteRecordsTopicResult
    topics = []
    for asked in call.request.topics:
        done = []
        for part in asked.partitions:
            code, start = _of_log(
                call, asked.name, part.partition_index, partial(PartitionLog.trim, offset=part.offset), -1
            )
            index = part.partition_index
            done.append(kind.DeleteRecordsPartitionResult(partition_index=index, low_watermark=start, error_code=code))
        topics.append(kind(name=asked.name, partitions=done))
    return admin.DeleteRecordsResponse(throttle_time_ms=0, topics=topics)


def _of_log(call: Call, topic: str, partition: int, do: Callable[[PartitionLog], T], otherwise: T) -> tuple[int, T]:
    """NONE and the result of ``do`` on a partition's log; after a refusal, its code and ``otherwise``."""
    try:
        return NONE, do(call.broker.topics.log(topic, partition))
    except BrokerRefusal as refused:
        return refused.code, otherwise
    except OSError:
        return codes.KAFKA_STORAGE_ERROR, otherwise


def list_offsets(call: Call) -> Any:
    """Beginning, end, or the offset of a time, of each partition; exact."""
    kind = consumer.ListOffsetsResponse.ListOffsetsTopicResponse
    topics = []
    for asked in call.request.topics:
        found = []
        for part in asked.partitions:
            index, at = part.partition_index, part.timestamp
            code, (offset, time_ms) = _of_log(call, asked.name, index, partial(_place, time_ms=at), (-1, -1))
            place = {"offset": offset, "timestamp": time_ms, "leader_epoch": -1}
            found.append(kind.ListOffsetsPartitionResponse(partition_index=index, error_code=code, **place))
        topics.append(kind(name=asked.name, partitions=found))
    return consumer.ListOffsetsResponse(throttle_time_ms=0, topics=topics)


def _place(found: PartitionLog, time_ms: int) -> tuple[int, int]:
    """(offset, time) for a time of ListOffsets or one of its special values; -1, -1: nothing."""
    if time_ms == _LATEST:
        return found.end, -1
    if time_ms == _OLDEST:
        return found.start, -1
    return (found.newest() if time_ms == _NEWEST else found.offset_since(time_ms)) or (-1, -1)


def describe_configs(call: Call) -> Any:
    kind = admin.DescribeConfigsResponse.DescribeConfigsResult
    plain = {"read_only": True, "is_sensitive": False, "synonyms": [], "config_type": 0, "documentation": None}
    results = []
    for asked in call.request.resources:
        code, why, configs, given = NONE, None, {}, {}
        topic = call.broker.topics.get(asked.resource_name)
        if asked.resource_type == _FOR_BROKER:
            configs = call.broker.topics.defaults.as_configs()
        elif asked.resource_type == _FOR_TOPIC and topic is not None:
            configs, given = topic.limits.as_configs(), topic.config
        else:
            code, why = codes.UNKNOWN_TOPIC_OR_PARTITION, f"no topic '{asked.resource_name}'"
        entries = [
            kind.DescribeConfigsResourceResult(name=n, value=v, config_source=1 if n in given else 5, **plain)
            for n, v in configs.items()
            if asked.configuration_keys is None or n in asked.configuration_keys
        ]
        which = {"resource_type": asked.resource_type, "resource_name": asked.resource_name}
        results.append(kind(error_code=code, error_message=why, configs=entries, **which))
    return admin.DescribeConfigsResponse(throttle_time_ms=0, results=results)


def describe_cluster(call: Call) -> Any:
    kind = admin.DescribeClusterResponse
    node = kind.DescribeClusterBroker(broker_id=NODE, host=HOST, port=call.broker.port, rack=None)
    cluster = {"cluster_id": call.broker.topics.cluster, "controller_id": NODE, "brokers": [node]}
    return kind(throttle_time_ms=0, error_code=NONE, error_message=None, endpoint_type=1, **cluster)


def init_producer_id(call: Call) -> Any:
    """A new id for an idempotent producer, or the next epoch of a known one."""
    asked, code, number, epoch = call.request, NONE, -1, -1
    if asked.transactional_id is not None:
        code = codes.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    elif call.version >= 3 and asked.producer_id >= 0 and 0 <= asked.producer_epoch < 32_766:
        # After an error the client asks for its next epoch: its sequence numbers begin with 0 again (KIP-360).
        number, epoch = asked.producer_id, asked.producer_epoch + 1
    else:
        number, epoch = call.broker.topics.next_producer(), 0
    return producer.InitProducerIdResponse(
        throttle_time_ms=0, error_code=code, producer_id=number, producer_epoch=epoch
    )
