"""Consumer groups as a state machine: what each member is told, by hand-made time, and never by a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace.broker.codes import (
    ILLEGAL_GENERATION,
    INCONSISTENT_GROUP_PROTOCOL,
    INVALID_SESSION_TIMEOUT,
    MEMBER_ID_REQUIRED,
    NONE,
    REBALANCE_IN_PROGRESS,
    UNKNOWN_MEMBER_ID,
)
from millrace.broker.groups import Answers, Group, Joined, JoinRequest, State, Synced
from millrace.broker.offsets import Offsets

SESSION_MS, REBALANCE_MS = 1000, 5000


def ask(member: str = "", fresh: str = "m", session_ms: int = SESSION_MS, **changed: object) -> JoinRequest:
    values: dict[str, object] = {
        "member": member,
        "fresh": fresh,
        "client": "c",
        "session_ms": session_ms,
        "rebalance_ms": REBALANCE_MS,
        "protocol_type": "consumer",
        "protocols": [("range", member.encode() or fresh.encode())],
        "id_first": False,
    }
    return JoinRequest(**{**values, **changed})  # type: ignore[arg-type]


def joined(answers: Answers, ticket: str) -> Joined:
    (found,) = [answer for one, answer in answers if one == ticket]
    assert isinstance(found, Joined)
    return found


def synced(answers: Answers, ticket: str) -> Synced:
    (found,) = [answer for one, answer in answers if one == ticket]
    assert isinstance(found, Synced)
    return found


def pair(now_ms: int = 0) -> Group:
    """A stable group of ``a``, who leads, and ``b``; generation 2."""
    group = Group("g")
    group.join(ask(fresh="a"), "a1", now_ms)
    group.join(ask(fresh="b"), "b1", now_ms)
    answers = group.join(ask("a"), "a2", now_ms)
    assert joined(answers, "a2").generation == 2
    group.sync("b", 2, {}, "bs", now_ms)
    group.sync("a", 2, {"a": b"A", "b": b"B"}, "as", now_ms)
    assert group.state is State.STABLE
    return group


def test_the_first_member_leads_generation_one() -> None:
    group = Group("g")
    found = joined(group.join(ask(fresh="a"), "t", 0), "t")
    assert (found.code, found.generation, found.leader, found.member) == (NONE, 1, "a", "a")
    assert found.members == (("a", b"a"),)
    assert synced(group.sync("a", 1, {"a": b"all"}, "s", 0), "s") == Synced(NONE, b"all")
    assert group.heartbeat("a", 1, 0) == NONE


def test_a_second_member_waits_until_the_first_has_joined_again() -> None:
    group = Group("g")
    group.join(ask(fresh="a"), "a1", 0)
    group.sync("a", 1, {"a": b"all"}, "as", 0)
    assert group.join(ask(fresh="b"), "b1", 0) == []
    assert group.heartbeat("a", 1, 0) == REBALANCE_IN_PROGRESS
    answers = group.join(ask("a"), "a2", 0)
    first, second = joined(answers, "a2"), joined(answers, "b1")
    assert first.generation == second.generation == 2
    assert first.leader == second.leader == "a"
    assert sorted(first.members) == [("a", b"a"), ("b", b"b")]
    assert second.members == (), "only the leader shares out"
    assert group.sync("b", 2, {}, "bs", 0) == []
    answers = group.sync("a", 2, {"a": b"A", "b": b"B"}, "as", 0)
    assert (synced(answers, "as").assignment, synced(answers, "bs").assignment) == (b"A", b"B")
    assert synced(group.sync("b", 2, {}, "again", 0), "again").assignment == b"B"


def test_a_member_that_leaves_makes_the_others_share() -> None:
    group = pair()
    code, answers = group.leave("b", 0)
    assert (code, answers) == (NONE, [])
    assert group.heartbeat("a", 2, 0) == REBALANCE_IN_PROGRESS
    assert joined(group.join(ask("a"), "a3", 0), "a3").generation == 3
    assert group.leave("b", 0)[0] == UNKNOWN_MEMBER_ID


def test_the_last_that_leaves_leaves_an_empty_group_whose_generations_go_on() -> None:
    group = pair()
    group.leave("a", 0)
    group.leave("b", 0)
    assert group.state is State.EMPTY
    assert group.next_ms() is None
    assert joined(group.join(ask(fresh="c"), "c", 0), "c").generation > 2


def test_a_silent_member_is_out_after_its_session_and_not_before() -> None:
    group = pair()
    group.heartbeat("a", 2, 900)
    assert group.next_ms() == SESSION_MS
    assert group.tick(SESSION_MS - 1) == []
    assert set(group.members) == {"a", "b"}
    group.tick(SESSION_MS)
    assert set(group.members) == {"a"}
    assert group.heartbeat("b", 2, SESSION_MS) == UNKNOWN_MEMBER_ID
    assert group.heartbeat("a", 2, SESSION_MS) == REBALANCE_IN_PROGRESS


def test_a_rebalance_goes_on_without_those_who_do_not_join_in_time() -> None:
    group = pair()
    assert group.join(ask(fresh="c"), "c1", 0) == []
    assert group.join(ask("b"), "b2", 0) == []
    for now_ms in range(500, REBALANCE_MS, 500):  # a lives, and does not join
        assert group.heartbeat("a", 2, now_ms) == REBALANCE_IN_PROGRESS
        assert group.tick(now_ms) == []
    assert group.next_ms() == REBALANCE_MS
    answers = group.tick(REBALANCE_MS)
    assert {joined(answers, "b2").leader, joined(answers, "c1").leader} == {"b"}
    assert set(group.members) == {"b", "c"}


def test_a_member_that_waits_for_its_join_does_not_lose_its_session() -> None:
    group = pair()
    group.join(ask(fresh="c"), "c1", 0)
    group.heartbeat("a", 2, SESSION_MS - 1)
    group.heartbeat("b", 2, SESSION_MS - 1)
    group.tick(SESSION_MS + 1)
    assert "c" in group.members


def test_a_leader_that_dies_before_it_shares_out_is_replaced() -> None:
    group = Group("g")
    group.join(ask(fresh="a"), "a1", 0)
    group.join(ask(fresh="b"), "b1", 0)
    group.join(ask("a"), "a2", 0)
    group.sync("b", 2, {}, "bs", 500)
    answers = group.tick(SESSION_MS)  # nothing came from a again
    assert synced(answers, "bs").code == REBALANCE_IN_PROGRESS
    found = joined(group.join(ask("b"), "b2", SESSION_MS), "b2")
    assert (found.leader, found.generation) == ("b", 3)


def test_who_asks_again_for_the_answer_that_it_did_not_get_disturbs_nobody() -> None:
    group = pair()
    found = joined(group.join(ask("b"), "b9", 0), "b9")
    assert (found.generation, group.state) == (2, State.STABLE)
    group.join(ask("a"), "a9", 0)
    assert group.state is State.JOINING, "a leader that joins again wants to share again"


def test_a_wrong_generation_or_member_is_reported_so() -> None:
    group = pair()
    assert group.heartbeat("a", 1, 0) == ILLEGAL_GENERATION
    assert group.heartbeat("x", 2, 0) == UNKNOWN_MEMBER_ID
    assert synced(group.sync("a", 1, {}, "s", 0), "s").code == ILLEGAL_GENERATION
    assert joined(group.join(ask("x"), "x", 0), "x").code == UNKNOWN_MEMBER_ID
    assert group.may_commit("a", 1, 0) == ILLEGAL_GENERATION
    assert group.may_commit("a", 2, 0) == NONE
    assert group.may_commit("", -1, 0) == UNKNOWN_MEMBER_ID, "a group with members is theirs"
    assert Group("h").may_commit("", -1, 0) == NONE


def test_a_join_that_cannot_be_is_refused() -> None:
    group = pair()
    for wrong in (
        ask(fresh="c", protocol_type="connect"),
        ask(fresh="c", protocols=[("sticky", b"")]),
        ask(fresh="c", protocols=[]),
    ):
        assert joined(group.join(wrong, "t", 0), "t").code == INCONSISTENT_GROUP_PROTOCOL
    assert joined(group.join(ask(fresh="c", session_ms=1), "t", 0), "t").code == INVALID_SESSION_TIMEOUT
    assert set(group.members) == {"a", "b"}


def test_the_protocol_is_one_that_all_know_and_most_like() -> None:
    group = Group("g")
    sides = {"a": ["x", "y"], "b": ["y", "z"], "c": ["z", "y", "x"]}
    first = [(name, b"") for name in sides["a"]]
    group.join(ask(fresh="a", protocols=first), "a1", 0)
    for name in ("b", "c"):
        group.join(ask(fresh=name, protocols=[(n, b"") for n in sides[name]]), f"{name}1", 0)
    answers = group.join(ask("a", protocols=first), "a2", 0)
    assert joined(answers, "a2").protocol == "y"


def test_a_client_that_wants_its_id_first_gets_it_for_a_session() -> None:
    group = Group("g")
    found = joined(group.join(ask(fresh="a", id_first=True), "t", 0), "t")
    assert (found.code, found.member) == (MEMBER_ID_REQUIRED, "a")
    assert group.members == {}
    assert joined(group.join(ask("a"), "t", 10), "t").generation == 1
    other = Group("h")
    other.join(ask(fresh="a", id_first=True), "t", 0)
    other.tick(SESSION_MS)
    assert joined(other.join(ask("a"), "t", SESSION_MS), "t").code == UNKNOWN_MEMBER_ID
    assert other.next_ms() is None


class GroupMachine(RuleBasedStateMachine):
    """Members that come, go, fall silent and ask twice in any order: nobody waits for ever, and each ticket is
    answered once."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group("g")
        self.now_ms = 0
        self.open: dict[int, tuple[str, int]] = {}  # ticket: member, since when
        self.answered: set[int] = set()
        self.known: dict[str, int] = {}  # member: generation that it was told
        self.generations: list[int] = []
        self.tickets = 0
        self.names = 0

    def _ticket(self, member: str) -> int:
        self.tickets += 1
        self.open[self.tickets] = (member, self.now_ms)
        return self.tickets

    def _take(self, answers: Answers) -> None:
        for ticket, answer in answers:
            assert isinstance(ticket, int)
            assert ticket not in self.answered, "answered once"
            self.answered.add(ticket)
            member, _ = self.open.pop(ticket)
            if isinstance(answer, Joined) and answer.code == NONE:
                assert answer.member == member
                self.known[member] = answer.generation
                self.generations.append(answer.generation)
                assert (len(answer.members) > 0) == (answer.leader == member)

    def _members(self) -> list[str]:
        return sorted(self.group.members)

    @precondition(lambda self: len(self.group.members) < 4)
    @rule()
    def comes(self) -> None:
        self.names += 1
        name = f"m{self.names}"
        self._take(self.group.join(ask(fresh=name), self._ticket(name), self.now_ms))

    @precondition(lambda self: self.group.members)
    @rule(data=st.data())
    def joins_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._members()))
        self._take(self.group.join(ask(name), self._ticket(name), self.now_ms))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def syncs(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        shares = {member: member.encode() for member in self.group.members}
        self._take(self.group.sync(name, self.known[name], shares, self._ticket(name), self.now_ms))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def beats(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.group.heartbeat(name, self.known[name], self.now_ms)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self._take(self.group.leave(name, self.now_ms)[1])

    @rule(by=st.integers(1, 3000))
    def time_passes(self, by: int) -> None:
        self.now_ms += by
        due = self.group.next_ms()
        if due is not None and due <= self.now_ms:
            self._take(self.group.tick(self.now_ms))
            due = self.group.next_ms()
            assert due is None or due > self.now_ms, "a timer is never due again at once"

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        for _, since in self.open.values():
            assert self.now_ms - since <= REBALANCE_MS + SESSION_MS + 6000
        if self.open:
            assert self.group.next_ms() is not None

    @invariant()
    def check(self) -> None:
        assert (self.group.state is State.EMPTY) == (not self.group.members)
        assert self.generations == sorted(self.generations)
        assert all(generation >= 1 for generation in self.generations)
        if self.group.state in {State.SYNCING, State.STABLE}:
            assert self.group.leader in self.group.members
        for member in self.group.members.values():
            if self.group.state is State.STABLE:
                assert member.joining is None
                assert member.syncing is None


TestGroups = GroupMachine.TestCase
TestGroups.settings = settings(stateful_step_count=60)


# ------------------------------------------------------------------ what groups committed


def test_committed_offsets_are_there_after_a_restart_however_often_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    offsets = Offsets(path)
    for number in range(500):
        offsets.commit("g", {("t", number % 3): (number, "")})
    offsets.commit("h", {("t", 0): (1, "é")})
    assert path.stat().st_size < 1000, "a line a partition"
    again = Offsets(path)
    assert [again.get("g", "t", n) for n in range(4)] == [(498, ""), (499, ""), (497, ""), None]
    assert again.of("h") == {("t", 0): (1, "é")}
    assert again.groups() == {"g", "h"}
    again.forget(group="h")
    assert Offsets(path).groups() == {"g"}
    again.forget(topic="t")
    assert Offsets(path).groups() == set()


def test_a_damaged_line_costs_that_commit_alone(tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    offsets = Offsets(path)
    for number in range(3):
        offsets.commit("g", {("t", number): (number, "")})
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-3] + b"\xff]", *lines[2:]]))
    offsets = Offsets(path)
    assert [offsets.get("g", "t", n) for n in range(3)] == [(0, ""), None, (2, "")]


def test_a_commit_that_the_disk_does_not_take_is_none_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "offsets"
    offsets = Offsets(path)
    offsets.commit("g", {("t", 0): (1, "")})

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            offsets.commit("g", {("t", 0): (22, "")})
    assert offsets.get("g", "t", 0) == (1, "") == Offsets(path).get("g", "t", 0)
    offsets.commit("g", {("t", 1): (3, "")})
    assert Offsets(path).of("g") == {("t", 0): (1, ""), ("t", 1): (3, "")}
