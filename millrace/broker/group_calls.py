# shell
"""Requests about consumer groups: one function each. ``groups.py`` makes the decisions."""

from __future__ import annotations

import uuid
from typing import Any

from kafka.protocol import admin, consumer, metadata

from millrace.broker import codes
from millrace.broker.call import HOST, NODE, Call
from millrace.broker.codes import NONE
from millrace.broker.groups import Joined, JoinRequest, State, Synced


def find_coordinator(call: Call) -> Any:
    """The broker for a group: this one."""
    kind, known = metadata.FindCoordinatorResponse, getattr(call.request, "key_type", 0) == 0
    return kind(
        throttle_time_ms=0,
        error_code=NONE if known else codes.INVALID_REQUEST,
        error_message=None if known else "there are no transactions",
        node_id=NODE if known else -1,
        host=HOST if known else "",
        port=call.broker.port if known else -1,
    )


def join_group(call: Call) -> Any:
    """Answered when the group has agreed."""
    asked = call.request
    if not asked.group_id:
        return joined_answer(Joined(codes.INVALID_GROUP_ID, asked.member_id))
    ask = JoinRequest(
        member=asked.member_id,
        fresh=f"{call.client[:100]}-{uuid.uuid4()}",
        client=call.client,
        session_ms=asked.session_timeout_ms,
        rebalance_ms=asked.rebalance_timeout_ms if call.version >= 1 else asked.session_timeout_ms,
        protocol_type=asked.protocol_type,
        protocols=[(one.name, bytes(one.metadata)) for one in asked.protocols],
        id_first=call.version >= 4,
    )
    group = call.broker.group(asked.group_id)
    call.broker.settle(group, group.join(ask, call.ticket, call.broker.steady_ms()))
    return None


def joined_answer(joined: Joined) -> Any:
    kind = consumer.JoinGroupResponse
    return kind(
        throttle_time_ms=0,
        error_code=joined.code,
        generation_id=joined.generation,
        protocol_name=joined.protocol,
        leader=joined.leader,
        member_id=joined.member,
        members=[kind.JoinGroupResponseMember(member_id=name, metadata=data) for name, data in joined.members],
    )


def sync_group(call: Call) -> Any:
    """Answered when the leader has sent the assignment."""
    asked = call.request
    group = call.broker.groups.get(asked.group_id)
    if group is None:
        return synced_answer(Synced(codes.UNKNOWN_MEMBER_ID))
    assignments = {one.member_id: bytes(one.assignment) for one in asked.assignments}
    answers = group.sync(asked.member_id, asked.generation_id, assignments, call.ticket, call.broker.steady_ms())
    call.broker.settle(group, answers)
    return None


def synced_answer(synced: Synced) -> Any:
    return consumer.SyncGroupResponse(throttle_time_ms=0, error_code=synced.code, assignment=synced.assignment)


def heartbeat(call: Call) -> Any:
    """Whether the member is still one, and need not join again."""
    asked = call.request
    group = call.broker.groups.get(asked.group_id)
    code = codes.UNKNOWN_MEMBER_ID
    if group is not None:
        code = group.heartbeat(asked.member_id, asked.generation_id, call.broker.steady_ms())
    return consumer.HeartbeatResponse(throttle_time_ms=0, error_code=code)


def leave_group(call: Call) -> Any:
    asked = call.request
    group = call.broker.groups.get(asked.group_id)
    code = codes.UNKNOWN_MEMBER_ID
    if group is not None:
        code, answers = group.leave(asked.member_id, call.broker.steady_ms())
        call.broker.settle(group, answers)
    return consumer.LeaveGroupResponse(throttle_time_ms=0, error_code=code)


def commit(call: Call) -> Any:
    """Keeps offsets, if the group allows it."""
    kind, asked = consumer.OffsetCommitResponse.OffsetCommitResponseTopic, call.request
    name, topics = asked.group_id, call.broker.topics
    group = call.broker.groups.get(name)
    if group is not None:
        refused = group.may_commit(asked.member_id, asked.generation_id_or_member_epoch, call.broker.steady_ms())
    else:
        refused = codes.UNKNOWN_MEMBER_ID if asked.member_id else NONE
    entries, answers = {}, []
    for topic in asked.topics:
        found, rows = topics.get(topic.name), []
        for part in topic.partitions:
            code = refused
            if found is None or not 0 <= part.partition_index < len(found.logs):
                code = codes.UNKNOWN_TOPIC_OR_PARTITION
            elif not code:
                entries[topic.name, part.partition_index] = (part.committed_offset, part.committed_metadata or "")
            rows.append(kind.OffsetCommitResponsePartition(partition_index=part.partition_index, error_code=code))
        answers.append(kind(name=topic.name, partitions=rows))
    if entries:
        call.broker.offsets.commit(name, entries)
    return consumer.OffsetCommitResponse(throttle_time_ms=0, topics=answers)


def committed(call: Call) -> Any:
    """A group's committed offsets, for some partitions or for all."""
    kind, asked, offsets = consumer.OffsetFetchResponse.OffsetFetchResponseTopic, call.request, call.broker.offsets
    wanted: dict[str, list[int]] = {}
    if asked.topics is None:
        for topic, number in offsets.of(asked.group_id):
            wanted.setdefault(topic, []).append(number)
    else:
        wanted = {one.name: list(one.partition_indexes) for one in asked.topics}
    topics = []
    for topic, numbers in wanted.items():
        rows = []
        for number in numbers:
            offset, text = offsets.get(asked.group_id, topic, number) or (-1, "")
            kept = {"committed_offset": offset, "committed_leader_epoch": -1, "metadata": text}
            rows.append(kind.OffsetFetchResponsePartition(partition_index=number, error_code=NONE, **kept))
        topics.append(kind(name=topic, partitions=rows))
    return consumer.OffsetFetchResponse(throttle_time_ms=0, topics=topics, error_code=NONE)


def describe_groups(call: Call) -> Any:
    kind = admin.DescribeGroupsResponse
    found = []
    for name in call.request.groups:
        group = call.broker.groups.get(name)
        protocol = group.protocol if group else ""
        members = [
            kind.DescribedGroup.DescribedGroupMember(
                member_id=one.id,
                client_id=one.client,
                client_host=f"/{HOST}",
                member_metadata=one.metadata(protocol),
                member_assignment=one.assignment,
            )
            for one in (group.members.values() if group else ())
        ]
        known = group is not None or name in call.broker.offsets.groups()
        found.append(
            kind.DescribedGroup(
                error_code=NONE,
                group_id=name,
                group_state=group.state.value if group else State.EMPTY.value if known else "Dead",
                protocol_type=group.protocol_type if group else "",
                protocol_data=protocol,
                members=members,
            )
        )
    return kind(throttle_time_ms=0, groups=found)


def list_groups(call: Call) -> Any:
    """All groups with members or committed offsets."""
    kind = admin.ListGroupsResponse
    types = dict.fromkeys(call.broker.offsets.groups(), "")
    types |= {name: group.protocol_type for name, group in call.broker.groups.items()}
    groups = [kind.ListedGroup(group_id=name, protocol_type=kind_of) for name, kind_of in sorted(types.items())]
    return kind(throttle_time_ms=0, error_code=NONE, groups=groups)


def delete_groups(call: Call) -> Any:
    """Forgets groups without members."""
    kind, broker = admin.DeleteGroupsResponse, call.broker
    results = []
    for name in call.request.groups_names:
        group = broker.groups.get(name)
        code = NONE
        if group is not None and group.members:
            code = codes.NON_EMPTY_GROUP
        elif group is None and name not in broker.offsets.groups():
            code = codes.GROUP_ID_NOT_FOUND
        else:
            broker.groups.pop(name, None)
            broker.offsets.forget(group=name)
        results.append(kind.DeletableGroupResult(group_id=name, error_code=code))
    return kind(throttle_time_ms=0, results=results)
