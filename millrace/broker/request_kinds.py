# shell
"""All requests but Produce and Fetch: kafka-python's message classes decode and encode them.

:data:`CALLS` has each request with its versions. Group requests stay below the versions with static members, and most
requests below those with "flexible" fields.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from kafka.protocol import admin, consumer, metadata, producer

from millrace.broker import group_calls, topic_calls
from millrace.broker.call import Call, Handler
from millrace.broker.codes import NONE, UNSUPPORTED_VERSION
from millrace.broker.kafka_wire import FETCH, FETCH_VERSIONS, PRODUCE, PRODUCE_VERSIONS, Malformed, Request

API_VERSIONS = int(metadata.ApiVersionsRequest.API_KEY)
CALL_BYTES = 4 * 1024 * 1024
"""Limit for requests without record sets. Decoded, they take some twenty times as much memory."""

_ENDLESS = re.compile(rb"[\x80-\xff]{256}")


def _api_versions(call: Call) -> Any:
    kind = metadata.ApiVersionsResponse
    known = {PRODUCE: PRODUCE_VERSIONS, FETCH: FETCH_VERSIONS} | {key: entry.versions for key, entry in CALLS.items()}
    keys = [kind.ApiVersion(api_key=key, min_version=low, max_version=high) for key, (low, high) in known.items()]
    return kind(error_code=NONE, api_keys=sorted(keys, key=lambda one: int(one.api_key)))


def unsupported_version() -> Any:
    """The answer to an ApiVersions request of an unknown version."""
    kind = metadata.ApiVersionsResponse
    low, high = CALLS[API_VERSIONS].versions
    own = kind.ApiVersion(api_key=API_VERSIONS, min_version=low, max_version=high)
    return kind(error_code=UNSUPPORTED_VERSION, api_keys=[own])


class RequestKind(NamedTuple):
    request: Any
    versions: tuple[int, int]
    handle: Handler


CALLS: dict[int, RequestKind] = {
    int(entry.request.API_KEY): entry
    for entry in (
        RequestKind(consumer.ListOffsetsRequest, (1, 7), topic_calls.list_offsets),
        RequestKind(metadata.MetadataRequest, (0, 12), topic_calls.describe_topics),
        RequestKind(consumer.OffsetCommitRequest, (2, 6), group_calls.commit),
        RequestKind(consumer.OffsetFetchRequest, (1, 5), group_calls.committed),
        RequestKind(metadata.FindCoordinatorRequest, (0, 2), group_calls.find_coordinator),
        RequestKind(consumer.JoinGroupRequest, (0, 4), group_calls.join_group),
        RequestKind(consumer.HeartbeatRequest, (0, 2), group_calls.heartbeat),
        RequestKind(consumer.LeaveGroupRequest, (0, 2), group_calls.leave_group),
        RequestKind(consumer.SyncGroupRequest, (0, 2), group_calls.sync_group),
        RequestKind(admin.DescribeGroupsRequest, (0, 2), group_calls.describe_groups),
        RequestKind(admin.ListGroupsRequest, (0, 2), group_calls.list_groups),
        RequestKind(metadata.ApiVersionsRequest, (0, 3), _api_versions),
        RequestKind(admin.CreateTopicsRequest, (2, 7), topic_calls.create_topics),
        RequestKind(admin.DeleteTopicsRequest, (1, 5), topic_calls.delete_topics),
        RequestKind(admin.DeleteRecordsRequest, (0, 2), topic_calls.delete_records),
        RequestKind(producer.InitProducerIdRequest, (0, 4), topic_calls.init_producer_id),
        RequestKind(admin.DescribeConfigsRequest, (1, 3), topic_calls.describe_configs),
        RequestKind(admin.DeleteGroupsRequest, (0, 1), group_calls.delete_groups),
        RequestKind(admin.DescribeClusterRequest, (0, 1), topic_calls.describe_cluster),
    )
}


def decode(entry: RequestKind, head: Request, frame: memoryview) -> Any:
    """A request's fields. Raises Malformed when the bytes are not such a request."""
    if len(frame) > CALL_BYTES:
        raise Malformed(f"a request without records of {len(frame)} bytes")
    at = head.at
    try:
        if entry.request.flexible_version_q(head.version):
            if _ENDLESS.search(frame):  # no field looks so, and a number of any length would take minutes to read
                raise Malformed("a number without an end")
            if frame[at] != 0:  # no client sends any
                raise Malformed("tagged fields in a request's head")
            at += 1
        return entry.request.decode(frame[at:], version=head.version)
    except Malformed:
        raise
    except Exception as error:  # any error of the decoder on bytes from outside
        raise Malformed(f"{entry.request.name}: {type(error).__name__}") from None


def encode(answer: Any, version: int, correlation: int) -> bytes:
    answer.API_VERSION = version
    answer.with_header(correlation)
    return bytes(answer.encode(header=True, framed=True))
