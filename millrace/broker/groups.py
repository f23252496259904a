# core
"""Consumer groups, Kafka's classic protocol, as a state machine: requests and times go in, answers come out.

::

             first join                    all joined, or time is over             leader's assignment came
    EMPTY ───────────────► JOINING ─────────────────────────────────► SYNCING ────────────────────────────► STABLE
      ▲                      ▲  ▲   generation + 1, joins answered       │    syncs answered                   │
      │ the last left        │  └───────────────────────────────────────┴── a member joins, leaves or ────────┘
      └──────────────────────┘                                              is silent for its session

A request that must wait (a join for the other members, a sync for the leader's assignment) leaves a *ticket*. Every
call returns the answers that are due now, as pairs of a ticket and an answer; they may be for other members.
Generations begin with 1: clients read smaller ones as "no generation".

Ids of members are arguments, and no call reads a clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from millrace.broker import codes
from millrace.broker.codes import NONE

SHORTEST_SESSION_MS, LONGEST_SESSION_MS = 100, 30 * 60_000

Ticket = Hashable


class State(Enum):
    """States of the module's drawing, with Kafka's words for them."""

    EMPTY = "Empty"
    JOINING = "PreparingRebalance"
    SYNCING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to a join. Only the leader gets ``members``, (id, metadata) each."""

    code: int
    member: str
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Synced:
    code: int
    assignment: bytes = b""


Answers = list[tuple[Ticket, Joined | Synced]]


@dataclass(slots=True)
class Member:
    id: str
    client: str
    session_ms: int
    rebalance_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    deadline_ms: int  # end of its session; ignored while its join waits
    joining: Ticket | None = None
    syncing: Ticket | None = None
    assignment: bytes = b""

    def metadata(self, protocol: str) -> bytes:
        return next((data for name, data in self.protocols if name == protocol), b"")


@dataclass(slots=True)
class JoinRequest:
    """A join request, with the id for a member that has none yet."""

    member: str
    fresh: str
    client: str
    session_ms: int
    rebalance_ms: int
    protocol_type: str
    protocols: Sequence[tuple[str, bytes]]
    id_first: bool  # the request's version needs an id from the broker before it joins


@dataclass(slots=True)
class Group:
    name: str
    state: State = State.EMPTY
    generation: int = 0
    protocol_type: str = ""
    protocol: str = ""
    leader: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    _promised: dict[str, int] = field(default_factory=dict)  # ids given to clients that have yet to join, until when
    _rebalance_ends_ms: int = 0

    # ------------------------------------------------------------------ requests

    def join(self, ask: JoinRequest, ticket: Ticket, now_ms: int) -> Answers:
        """Adds or keeps a member. The answer comes when the group has agreed."""
        refused = self._refuse_join(ask)
        if refused:
            return [(ticket, Joined(refused, ask.member))]
        if not ask.member and ask.id_first:
            self._promised[ask.fresh] = now_ms + ask.session_ms
            return [(ticket, Joined(codes.MEMBER_ID_REQUIRED, ask.fresh))]
        name = ask.member or ask.fresh
        member = self.members.get(name)
        protocols = tuple(ask.protocols)
        if member is None:
            self._promised.pop(name, None)
            member = Member(name, ask.client, ask.session_ms, ask.rebalance_ms, protocols, now_ms + ask.session_ms)
            self.members[name] = member
            self.protocol_type = ask.protocol_type
            changed = True
        else:
            changed = member.protocols != protocols or (name == self.leader and self.state is State.STABLE)
            member.protocols, member.client = protocols, ask.client
            member.session_ms, member.rebalance_ms = ask.session_ms, ask.rebalance_ms
            member.deadline_ms = now_ms + ask.session_ms
        if not changed and self.state in {State.SYNCING, State.STABLE}:
            return [(ticket, self._joined(member))]  # it did not get the answer that it asks for again
        answers: Answers = []
        if member.joining is not None:
            answers.append(
                (member.joining, Joined(codes.UNKNOWN_MEMBER_ID, name))
            )  # it asked twice: the later one counts
        member.joining = ticket
        answers += self._begin(now_ms)
        return answers + self._complete(now_ms)

    def _refuse_join(self, ask: JoinRequest) -> int:
        if not SHORTEST_SESSION_MS <= ask.session_ms <= LONGEST_SESSION_MS:
            return codes.INVALID_SESSION_TIMEOUT
        if ask.member and ask.member not in self.members and ask.member not in self._promised:
            return codes.UNKNOWN_MEMBER_ID
        others = [member for member in self.members.values() if member.id != ask.member]
        names = {name for name, _ in ask.protocols}
        if not names or not ask.protocol_type:
            return codes.INCONSISTENT_GROUP_PROTOCOL
        if others and (ask.protocol_type != self.protocol_type or not names & self._common(others)):
            return codes.INCONSISTENT_GROUP_PROTOCOL
        return NONE

    def sync(
        self, name: str, generation: int, assignments: Mapping[str, bytes], ticket: Ticket, now_ms: int
    ) -> Answers:
        """A member asks for its assignment; the leader brings all assignments."""
        code = self._wrong(name, generation)
        if not code and self.state is State.JOINING:
            code = codes.REBALANCE_IN_PROGRESS
        if code:
            return [(ticket, Synced(code))]
        member = self.members[name]
        member.deadline_ms = now_ms + member.session_ms
        if self.state is State.STABLE:
            return [(ticket, Synced(NONE, member.assignment))]
        answers: Answers = []
        if member.syncing is not None:
            answers.append((member.syncing, Synced(codes.REBALANCE_IN_PROGRESS)))
        member.syncing = ticket
        if name != self.leader:
            return answers
        self.state = State.STABLE
        for one in self.members.values():
            one.assignment = assignments.get(one.id, b"")
            if one.syncing is not None:
                answers.append((one.syncing, Synced(NONE, one.assignment)))
                one.syncing = None
                one.deadline_ms = now_ms + one.session_ms
        return answers

    def heartbeat(self, name: str, generation: int, now_ms: int) -> int:
        """Keeps a member alive. The code asks it to join again when a rebalance is under way."""
        code = self._wrong(name, generation)
        if not code:
            member = self.members[name]
            member.deadline_ms = now_ms + member.session_ms
            if self.state is State.JOINING:
                code = codes.REBALANCE_IN_PROGRESS
        return code

    def may_commit(self, name: str, generation: int, now_ms: int) -> int:
        """Whether offsets may be committed: by a member, or by any client when the group has no members."""
        if generation < 0 and not name:
            return NONE if not self.members else codes.UNKNOWN_MEMBER_ID
        code = self._wrong(name, generation)
        if not code:
            member = self.members[name]
            member.deadline_ms = now_ms + member.session_ms
            if self.state is State.SYNCING:
                code = codes.REBALANCE_IN_PROGRESS
        return code

    def leave(self, name: str, now_ms: int) -> tuple[int, Answers]:
        """Removes a member; the others share its partitions."""
        if name not in self.members:
            return (NONE, []) if self._promised.pop(name, None) is not None else (codes.UNKNOWN_MEMBER_ID, [])
        return NONE, self._remove([name], now_ms)

    def _wrong(self, name: str, generation: int) -> int:
        if name not in self.members:
            return codes.UNKNOWN_MEMBER_ID
        return NONE if generation == self.generation else codes.ILLEGAL_GENERATION

    # ------------------------------------------------------------------ time

    def next_ms(self) -> int | None:
        """When :meth:`tick` is due next; None: not until another request comes."""
        times = [member.deadline_ms for member in self.members.values() if member.joining is None]
        times += self._promised.values()
        if self.state is State.JOINING:
            times.append(self._rebalance_ends_ms)
        return min(times, default=None)

    def tick(self, now_ms: int) -> Answers:
        """Ends sessions, and continues a rebalance without members that did not join."""
        self._promised = {name: until for name, until in self._promised.items() if until > now_ms}
        gone = [one.id for one in self.members.values() if one.joining is None and one.deadline_ms <= now_ms]
        if self.state is State.JOINING and self._rebalance_ends_ms <= now_ms:
            gone = [one.id for one in self.members.values() if one.joining is None]
        return self._remove(gone, now_ms) if gone else []

    # ------------------------------------------------------------------ transitions

    def _remove(self, names: Sequence[str], now_ms: int) -> Answers:
        answers: Answers = []
        for name in names:
            member = self.members.pop(name)
            if member.joining is not None:
                answers.append((member.joining, Joined(codes.UNKNOWN_MEMBER_ID, name)))
            if member.syncing is not None:
                answers.append((member.syncing, Synced(codes.UNKNOWN_MEMBER_ID)))
        if not self.members:
            if self.state is not State.EMPTY:
                self.generation += 1
            self.state, self.protocol, self.leader = State.EMPTY, "", ""
            return answers
        answers += self._begin(now_ms)
        return answers + self._complete(now_ms)

    def _begin(self, now_ms: int) -> Answers:
        """Begins a rebalance, unless one is under way. Waiting syncs get the answer to join again."""
        if self.state is State.JOINING:
            return []
        answers: Answers = []
        for member in self.members.values():
            if member.syncing is not None:
                answers.append((member.syncing, Synced(codes.REBALANCE_IN_PROGRESS)))
                member.syncing = None
        self.state = State.JOINING
        self._rebalance_ends_ms = now_ms + max(member.rebalance_ms for member in self.members.values())
        return answers

    def _complete(self, now_ms: int) -> Answers:
        """Begins a new generation when all have joined."""
        if self.state is not State.JOINING or any(member.joining is None for member in self.members.values()):
            return []
        self.generation += 1
        self.state = State.SYNCING
        self.protocol = self._elect()
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        answers: Answers = []
        for member in self.members.values():
            answers.append((member.joining, self._joined(member)))
            member.joining = None
            member.assignment = b""
            member.deadline_ms = now_ms + member.session_ms
        return answers

    def _common(self, members: Sequence[Member]) -> set[str]:
        return set.intersection(*({name for name, _ in member.protocols} for member in members))

    def _elect(self) -> str:
        """The protocol with most members' preference, among those that all know."""
        members = list(self.members.values())
        common = self._common(members)
        votes: dict[str, int] = {}
        for member in members:
            best = next(name for name, _ in member.protocols if name in common)
            votes[best] = votes.get(best, 0) + 1
        return max(votes, key=lambda name: votes[name])

    def _joined(self, member: Member) -> Joined:
        members: tuple[tuple[str, bytes], ...] = ()
        if member.id == self.leader:
            members = tuple((one.id, one.metadata(self.protocol)) for one in self.members.values())
        return Joined(NONE, member.id, self.generation, self.protocol, self.leader, members)
