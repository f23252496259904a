"""A stream worker without processes: a broker, Redis and a worker's hands in one loop of small steps.

A story is a list of what happens; failures are items of it like all others::

    [page("a"), click("a"), CRASH, page("b"), SILENCE(7), REBALANCE, STANDSTILL(30, page("c"))]

:class:`Scene` lets it happen to a real :class:`stream.worker.turn.Turns` with real partitions; the hands that
execute what is due are as simple as can be. At the end :meth:`Scene.check` holds what came out against what the
shoppers did. A step is a tenth of a second of the worker, and 24 seconds of event time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from millrace.contracts.clock import HEADER, EventClock
from millrace.contracts.coclick_message import Lists
from millrace.contracts.online_layout import MOST_RECENT, unpack_recent
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.labels import policy_named
from stream.join.topic_order import Arrival, ReadTo
from stream.partition import journal
from stream.partition.coclick_counts import CoClicks
from stream.partition.journal import Journal
from stream.partition.partition import Partition, StepOutput
from stream.partition.recents import UserRecent
from stream.worker.turn import (
    INPUTS,
    Advance,
    Checkpoint,
    Due,
    Now,
    Pace,
    Pause,
    Publish,
    Reads,
    Recall,
    ResetOffsets,
    Resume,
    Return,
    SetBack,
    Take,
    Turn,
    Turns,
    arrival,
    other_logs,
)
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, SCHEMA, T0, action, exposure, page_log, rows

STEP_S = 0.1
WALL_S = 1_700_000_000.0
CLOCK = EventClock(round(WALL_S * 1000), T0, 240.0)
PACE = Pace(publish_s=0.2, checkpoint_s=0.3, idle_s=1.0)
JOB_STEPS = 2  # what a publication or a checkpoint takes
LOAD_STEPS = 3  # what loading the checkpoints takes
READ_STEPS = 4  # what reading page logs again takes
BASE_EVERY = 4  # checkpoints with a base among the others
ITEMS = (11, 12)
PARTITIONS = 2


# ---------------------------------------------------------------------- what may happen


class page(NamedTuple):
    """The scorer serves a page, and it is seen."""

    name: str
    partition: int = 0


class click(NamedTuple):
    """The first item of a page is clicked. ``after_minutes`` of event time: it was then, and is told only now.
    ``ahead_minutes``: the telephone's clock is ahead by so much."""

    name: str
    after_minutes: float | None = None
    ahead_minutes: float = 0.0


class forget(NamedTuple):
    """The user of a partition is deleted."""

    partition: int = 0


class RUN(NamedTuple):
    """Time goes by, and the worker works."""

    seconds: float


class SILENCE(NamedTuple):
    """The same; its name says what it is for."""

    seconds: float


class OTHER_RUN(NamedTuple):
    """An event of another run comes, so many hours ahead of that run's clock: from the future, now and for ever. That
    clock may be behind ours."""

    ahead_hours: float
    behind_hours: float = 0.0


class OTHER_CLOCK(NamedTuple):
    """The process is started again with an event clock that is so many hours behind."""

    behind_hours: float


class STANDSTILL(NamedTuple):
    """The worker's machine is asleep while these things happen, evenly spread."""

    seconds: float
    meanwhile: tuple[page | click | OTHER_RUN, ...] = ()


class SLOW_PAGE_LOGS(NamedTuple):
    """From now on the consumer hands over one page log in so many steps, and events as ever."""

    steps: int


class UNREADABLE(NamedTuple):
    """For so long, page logs cannot be read again."""

    seconds: float


CRASH, REBALANCE, LOST_REDIS, EMPTY_BROKER = "crash", "rebalance", "lost Redis", "empty broker"
Shopping = page | click | forget
Happening = Shopping | RUN | SILENCE | STANDSTILL | SLOW_PAGE_LOGS | OTHER_RUN | OTHER_CLOCK | UNREADABLE | str


def items_of(name: str) -> tuple[int, ...]:
    """The items of a page: the same in one of two orders, so that not always the same one is clicked."""
    return ITEMS[:: -1 if sum(name.encode()) % 2 else 1]


# ---------------------------------------------------------------------- broker and consumer


class Record(NamedTuple):
    stamp_s: float
    raw: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = None  # of a tombstone


@dataclass
class Consumer:
    """A member of the group: what it has fetched, and what the broker answered last."""

    position: dict[tuple[str, int], int] = field(default_factory=dict)
    end: dict[tuple[str, int], int] = field(default_factory=dict)
    asked_s: dict[tuple[str, int], float] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    started: bool = False


@dataclass
class Saved:
    """A partition's checkpoints: a base and the journals since, the ids of the topics, what the last one announces."""

    base: bytes = b""
    journals: list[bytes] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    advance_ms: int | None = None


class Key(NamedTuple):
    request: str
    position: int
    kind: int
    actions: int


# ---------------------------------------------------------------------- the scene


class Scene:
    """See the module's text.

    Args:
        pace: how often things are due.
        rests: steps of work after each item of a story.
    """

    def __init__(self, pace: Pace = PACE, rests: int = 2, label: str = "wait") -> None:
        self.pace, self._rests = pace, rests
        self._policy = replace(POLICY, label=policy_named(label))
        self.wall_s, self._steps, self._page_log_steps = WALL_S, 0, 0
        self.clock = CLOCK
        self.log: dict[tuple[str, int], list[Record]] = {(t, p): [] for t in INPUTS for p in range(PARTITIONS)}
        self.committed: dict[tuple[str, int], int] = {}
        self.checkpoints: dict[int, Saved] = {}
        self.broker = 0  # how often it came back empty
        self._unreadable_s = 0.0  # until when page logs cannot be read again
        self.redis: dict[tuple[str, int], bytes] = {}
        self.recents: dict[str, bytes] = {}  # there too: each user's last clicks
        self.coclicks: dict[tuple[int, int], Any] = {}  # by partition and item, as a reader of the topic has them
        self.filled: set[int] = set()
        self.samples: dict[Key, set[Any]] = {}
        self.dead: Counter[str] = Counter()
        self._dead_of: set[tuple[str, int, int]] = set()
        self.dues: Counter[str] = Counter()
        self.pages: dict[str, page] = {}
        self.seen_ms: dict[str, int] = {}
        self.reported_ms: dict[str, int] = {}  # when the click of a page came to Kafka, or its time
        self.forgotten_ms: dict[int, int] = {}  # when the user of a partition was deleted last
        self.ahead = 0
        self._begin()

    def _begin(self) -> None:
        """A process starts: it has nothing but what is durable."""
        self.turns = Turns(self.pace, self.clock)
        self.consumer = Consumer()
        self._flight: list[tuple[int, int, Arrival]] = []  # generation, due step, message
        self._unsent: list[tuple[int, StepOutput]] = []
        self._jobs: deque[tuple[int, Callable[[], None]]] = deque()
        self._readings: list[tuple[int, Turn, Recall]] = []
        self._job_left = 0
        self._generation = getattr(self, "_generation", 0) + 1
        self._load_left = LOAD_STEPS

    # ------------------------------------------------------------------ the story

    def play(self, story: Sequence[Happening]) -> Scene:
        """Lets it all happen."""
        for item in story:
            match item:
                case page() | click() | forget() | OTHER_RUN():
                    self._come(item)
                case RUN(seconds) | SILENCE(seconds):
                    self._run(seconds)
                case STANDSTILL(seconds, meanwhile):
                    for one in meanwhile:
                        self.wall_s += seconds / (len(meanwhile) + 1)
                        self._come(one)
                    self.wall_s += seconds / (len(meanwhile) + 1)
                    self._round()  # it wakes: what it does first is not to fetch
                case SLOW_PAGE_LOGS(steps):
                    self._page_log_steps = steps
                case UNREADABLE(seconds):
                    self._unreadable_s = self.wall_s + seconds
                case OTHER_CLOCK(hours):
                    self.clock = replace(CLOCK, event_zero_ms=CLOCK.event_zero_ms - round(hours * HOUR))
                    self._begin()
                case str():
                    {
                        CRASH: self._begin,
                        REBALANCE: self._rebalance,
                        LOST_REDIS: self._lose_redis,
                        EMPTY_BROKER: self._lose_broker,
                    }[item]()
            if not isinstance(item, STANDSTILL):
                self._run(self._rests * STEP_S)
        return self

    def finish(self) -> Scene:
        """Lets the worker catch up, and then silence decide every label. That begins when page logs can be read
        again: what waits for one that cannot is neither lost nor at its end."""
        self._page_log_steps = 0
        self._run(max(0.0, self._unreadable_s - self.wall_s))
        # Half an hour of attribution is 7.5 s of the worker; a page lives 12.5 s, and an advance takes a checkpoint.
        self._run(20.0 + max(self.pace.idle_s, 1.0))
        return self

    def _come(self, item: page | click | forget | OTHER_RUN) -> None:
        """Messages come to Kafka."""
        ts_ms = self.event_ms
        match item:
            case page(name, at):
                self.pages[name], self.seen_ms[name] = item, ts_ms
                self._append("page_logs", at, page_log(name, ts_ms, items_of(name), user=at))
                self._append("events", at, exposure(name, ts_ms, items_of(name), user_id=at))
            case click(name, after_minutes, ahead_minutes):
                at = self.pages[name].partition
                if after_minutes is not None:
                    ts_ms = min(ts_ms, self.seen_ms[name] + round(after_minutes * MINUTE))
                ts_ms += round(ahead_minutes * MINUTE)
                self.reported_ms[name] = max(self.event_ms, ts_ms)
                self._append("events", at, action("click", name, ts_ms, 0, items_of(name)[0], user_id=at))
            case forget(at):
                self.forgotten_ms[at] = ts_ms
                self.log["users", at].append(Record(self.wall_s, b"", (), str(at).encode()))
            case OTHER_RUN(hours, behind_hours):
                ts_ms -= round(behind_hours * HOUR)
                theirs = EventClock(round(self.wall_s * 1000), ts_ms, 1.0)
                ahead = exposure(f"other{self.ahead}", ts_ms + round(hours * HOUR), ITEMS, user_id=0)
                self._append("events", 0, ahead, ((HEADER, theirs.encode().encode()),))
                self.ahead += 1

    def _append(self, topic: str, partition: int, raw: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> None:
        self.log[topic, partition].append(Record(self.wall_s, raw, headers))

    @property
    def event_ms(self) -> int:
        return self.clock.at(round(self.wall_s * 1000))

    def _lose_redis(self) -> None:
        self.redis.clear()
        self.recents.clear()
        self.filled.clear()

    def _lose_broker(self) -> None:
        """Broker and worker start again, and all that the topics held is gone. The state is not."""
        self.broker += 1
        self.log = {tp: [] for tp in self.log}
        self.committed.clear()
        self._begin()

    @property
    def logs(self) -> dict[str, str]:
        return {topic: f"{topic} {self.broker}" for topic in INPUTS}

    # ------------------------------------------------------------------ the worker's hands

    def _run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.wall_s += STEP_S
            self._steps += 1
            self._load()
            self._fetch()
            self._deliver()
            self._round()
            self._work()
            self._read()

    def _now(self) -> Now:
        return Now(self.wall_s, self.wall_s)

    def _load(self) -> None:
        if self._load_left:
            self._load_left -= 1
            if not self._load_left:
                partitions = [self._newest(number) for number in range(PARTITIONS)]
                replaced = {
                    number: other_logs(saved.logs, self.logs, partitions[number].offsets, {})
                    for number, saved in self.checkpoints.items()
                }
                self.turns.begin(partitions, self._now(), replaced)

    def _newest(self, number: int) -> Partition:
        partition = Partition(number, SCHEMA, self._policy, settles=True)
        saved = self.checkpoints.get(number)
        if saved is not None:
            partition.resume(saved.base)
            for one in saved.journals:
                partition.replay(journal.from_bytes(one))
            partition.advance_ms = saved.advance_ms
        partition.journal = Journal()
        return partition

    def _fetch(self) -> None:
        """The consumer starts as soon as it is told where, and hands over what there is."""
        consumer = self.consumer
        if not consumer.started:
            found = self.turns.positions()
            if found is None:
                return
            consumer.started = True
            consumer.position = {tp: found.get(tp, self.committed.get(tp, 0)) for tp in self.log}
        for tp, records in self.log.items():
            topic, number = tp
            at = consumer.position[tp]
            slow = self._page_log_steps and topic == "page_logs"
            take = len(records) if not slow else at + (self._steps % self._page_log_steps == 0)
            if topic == "events" and number in consumer.paused:
                take = at
            for offset, record in enumerate(records[at:take], at):
                when = record.stamp_s, record.headers, self.clock, self.wall_s
                wire = arrival(number, topic, offset, record.raw, *when, record.key)
                self._flight.append((self._generation, self._steps + 1, wire))
            consumer.position[tp] = max(at, min(take, len(records)))
            consumer.end[tp], consumer.asked_s[tp] = len(records), self.wall_s

    def _reads(self, turn: Turn) -> Reads:
        found: dict[str, ReadTo | None] = {}
        for topic in INPUTS:
            tp, consumer = (topic, turn.number), self.consumer
            if tp in consumer.end:
                at = consumer.position[tp]
                found[topic] = ReadTo(at, consumer.end[tp], consumer.asked_s[tp], at)
        return found

    def _round(self) -> None:
        came = [one for generation, due, one in self._flight if due <= self._steps and generation == self._generation]
        self._flight = [flying for flying in self._flight if flying[1] > self._steps]
        self.turns.arrived(came, self._now())
        for turn in self.turns:
            for due in turn.inbound(self._reads(turn), self._now()):
                self._do(turn, due)
        for turn in self.turns:
            for due in turn.outbound(self._reads(turn), self.turns.newest_ms, self._now()):
                self._do(turn, due)

    def _do(self, turn: Turn, due: Due) -> None:
        self.dues[type(due).__name__] += 1
        match due:
            case Take():
                self._unsent.append((turn.number, turn.partition.take(due.messages, self.event_ms)))
            case Advance():
                self._unsent.append((turn.number, turn.partition.advance(due.until_ms)))
            case SetBack():
                turn.partition.set_back()
            case ResetOffsets():
                self._unsent.append((turn.number, turn.partition.reset_offsets(due.topics)))
            case Recall():
                self._readings.append((self._steps + READ_STEPS, turn, due))
            case Return():
                self._unsent.append((turn.number, turn.partition.returned(due.found)))
            case Pause():
                self.consumer.paused.add(turn.number)
            case Resume():
                self.consumer.paused.discard(turn.number)
            case Publish():
                self._publish(turn, due)
            case Checkpoint():
                self._checkpoint(turn, due)

    def _publish(self, turn: Turn, due: Publish) -> None:
        partition, changes = turn.partition, turn.partition.changes()

        def job() -> None:
            if partition.number not in self.filled:
                if not due.new:
                    for some in partition.whole():
                        self._write(some.users, some.recents)
                self.filled.add(partition.number)
            for user in map(str, changes.forgotten):
                self.redis = {key: blob for key, blob in self.redis.items() if key[0] != user}
                self.recents.pop(user, None)
            self._write(changes.users, changes.recents)
            reported = self.coclicks | lists_of(partition.number, changes.coclicks)
            self.coclicks = {item: near for item, near in reported.items() if near}
            turn.done(due)

        self._jobs.append((JOB_STEPS, job))

    def _write(self, users: Sequence[tuple[Any, list[tuple[int, bytes]]]], recents: Sequence[UserRecent]) -> None:
        for user, tiles in users:
            self.redis |= {(str(user), key): blob for key, blob in tiles}
        self.recents |= {str(user): value for user, value in recents}

    def _checkpoint(self, turn: Turn, due: Checkpoint) -> None:
        number, offsets, noted = turn.number, dict(turn.partition.offsets), turn.partition.journal
        assert noted is not None
        entries = noted.cut().entries
        saves = self.dues["Checkpoint"]
        base = turn.snapshot() if number not in self.checkpoints or saves % BASE_EVERY == 0 else None
        # The first take of another topic follows its ResetOffsets, so before that the offsets are of the topic before.
        logs = self.checkpoints[number].logs if turn.position("events") != offsets.get("events", 0) else self.logs
        sent, self._unsent = self._unsent, []

        def job() -> None:
            self._sent(sent)
            saved = self.checkpoints.setdefault(number, Saved())
            saved.journals.append(journal.to_bytes(entries))
            if base is not None:
                saved.base, saved.journals = base.to_bytes(), []
            saved.logs, saved.advance_ms = logs, due.advance_ms
            self.committed |= {(topic, turn.number): offset for topic, offset in offsets.items()}
            turn.done(due)

        self._jobs.append((JOB_STEPS, job))

    def _work(self) -> None:
        """The outlet: one job after another, each of some steps."""
        if self._jobs:
            self._job_left = self._job_left or self._jobs[0][0]
            self._job_left -= 1
            if not self._job_left:
                self._jobs.popleft()[1]()

    def _read(self) -> None:
        """The thread that reads page logs again."""
        due = [one for one in self._readings if one[0] <= self._steps]
        self._readings = [one for one in self._readings if one[0] > self._steps]
        for _, turn, recall in due:
            log = self.log["page_logs", turn.number]
            found = {r: log[at].raw if at < len(log) else None for r, at in recall.wanted.items()}
            turn.recalled(None if self.wall_s < self._unreadable_s else found, self._now())

    def _deliver(self) -> None:
        """What the producer was given a step ago."""
        sent, self._unsent = self._unsent, []
        self._sent(sent)

    def _sent(self, outputs: Sequence[tuple[int, StepOutput]]) -> None:
        for _, output in outputs:
            for row in rows(output.samples):
                key = Key(row.request, row.position, row.kind, row.actions)
                self.samples.setdefault(key, set()).add(row)
            for dead_letter in output.dead:
                of = (dead_letter.topic, dead_letter.partition, dead_letter.offset)
                if of not in self._dead_of:
                    self._dead_of.add(of)
                    self.dead[dead_letter.reason] += 1

    def _rebalance(self) -> None:
        """The partitions go, with a last checkpoint, and come back to a worker that knows nothing else."""
        for turn in self.turns:
            for due in turn.last(self._now()):
                self._do(turn, due)
        while self._jobs:
            self._jobs.popleft()[1]()
        self._deliver()
        self._begin()

    # ------------------------------------------------------------------ what must hold

    def kinds(self, name: str, position: int = 0) -> Counter[int]:
        """The kinds of the samples of a page's position."""
        return Counter(key.kind for key in self.samples if (key.request, key.position) == (name, position))

    def check(self) -> Scene:
        """Every exposure has one label, every click is in one sample, nothing is lost, Redis holds every window.

        A click that comes when its page may be gone already, because the story left it too long, is in one sample or in
        one dead letter.
        """
        gone_ms = POLICY.life_ms - POLICY.disorder_ms
        too_late = {name for name, at_ms in self.reported_ms.items() if at_ms - self.seen_ms[name] >= gone_ms}
        lost = sum(1 for name in too_late if not self._clicks_of(name, 0))
        found = self.dead["future"], self.dead["late"] + self.dead["no-exposure"]  # gone, or even forgotten
        assert found == (self.ahead, lost), f"dead letters: {self.dead}; {self.ahead} from the future, {lost} too late"
        assert self.dead.total() == sum(found), f"dead letters: {self.dead}"
        for key, bodies in self.samples.items():
            assert len(bodies) == 1, f"{key} was given twice, differently"
        for name in self.pages:
            for position in range(len(ITEMS)):
                kinds = self.kinds(name, position)
                labels = kinds[NEGATIVE] + kinds[POSITIVE]
                assert labels == 1, f"page {name}, position {position}: {labels} labels"
                reported, clicked = self._clicks_of(name, position), position == 0 and name in self.reported_ms
                assert reported == clicked or name in too_late, f"page {name}, position {position}: {reported} clicks"
        for turn in self.turns:
            assert turn.partition.pending == 0
            for some in turn.partition.whole():
                for user, tiles in some.users:
                    for window, blob in tiles:
                        assert self.redis.get((str(user), window)) == blob, f"a window of user {user} is not in Redis"
            own = {window for some in turn.partition.whole() for _, tiles in some.users for window, _ in tiles}
            there = {key for (user, key), blob in self.redis.items() if user == str(turn.number) and blob}
            assert there <= own, f"Redis has windows of user {turn.number} that the partition has not"
            read = {key: own for key, own in self.coclicks.items() if key[0] == turn.number}
            assert read == whole_lists(turn.number, turn.partition.coclicks), "co-clicks were not told"
            held = {str(user): value for some in turn.partition.whole() for user, value in some.recents}
            assert held == {user: value for user, value in self.recents.items() if user == str(turn.number) and value}
            self._check_recents(turn.number)
        return self

    def _check_recents(self, number: int) -> None:
        """The user of a partition has the clicks that were taken, newest first; a crash takes none of them twice."""
        since_ms = self.forgotten_ms.get(number, 0)
        clicked = [
            name for name in self.reported_ms if self.pages[name].partition == number and self._clicks_of(name, 0)
        ]
        clicked = [name for name in clicked if self.seen_ms[name] > since_ms]
        found = unpack_recent(self.recents.get(str(number)))
        if since_ms and self._generation > 1:
            # After a crash the topics are read in another order: a tombstone may take a little more than it did.
            assert len(found.clicks) <= len(clicked)
            assert all(past.ts_ms > since_ms for past in found.clicks)
            return
        assert len(found.clicks) == min(len(clicked), MOST_RECENT), f"{found} of the clicks on {clicked}"
        assert [past.ts_ms for past in found.clicks] == sorted((p.ts_ms for p in found.clicks), reverse=True)
        assert {past.item_id for past in found.clicks} <= {items_of(name)[0] for name in clicked}

    def _clicks_of(self, name: str, position: int) -> int:
        kinds = self.kinds(name, position)
        return kinds[POSITIVE] + kinds[CORRECTION]


def lists_of(number: int, lists: Lists) -> dict[tuple[int, int], Any]:
    """Lists of a partition as a reader keeps them: by partition and item, the counts of each neighbour by day."""
    found: dict[tuple[int, int], Any] = {}
    ends = np.cumsum(lists.sizes, dtype=np.int64).tolist()
    for item, start, end in zip(lists.items.tolist(), [0, *ends], ends, strict=False):
        days = [{lists.day - age: n for age, n in enumerate(row) if n} for row in lists.counts[start:end].tolist()]
        found[number, item] = dict(zip(lists.near[start:end].tolist(), days, strict=True))
    return found


def whole_lists(number: int, counted: CoClicks) -> dict[tuple[int, int], Any]:
    """All that a partition has counted, in the same form."""
    return lists_of(number, counted.part(0.0, 1.0))
