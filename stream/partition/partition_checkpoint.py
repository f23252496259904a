# core
"""Checkpoints, by which a partition's state survives a crash: a base, and journals of the changes since.

::

    p00003-000000000040-000002.base       the state after journal 40
    p00003-000000000041-000002.journal    what was done then (:mod:`stream.partition.journal`), follows 40
    p00003-000000000042-000003.journal    the same, by the next owner of the partition: line 3, follows 41
    ...
    p00003-000000000097-000003.journal
    p00003-000000000097-000003.base       the state after journal 97

Each is a sealed file (:mod:`millrace.basics.store`), its body compressed by zstd. Each journal names the digest of
the one before it, so no other can take its place.

**Cost.** A checkpoint is a journal: its size depends on the new messages, not on the state. When the journals since
the last base have :data:`GROWN` times its size, a base follows, so at most 1 + 1 / :data:`GROWN` times the messages
are written. :data:`REPLAY_BYTES` bounds replaying, so that recovery takes seconds.

**Guarantee.** When :meth:`CheckpointLine.write` returns, the state is durable, and :meth:`CheckpointStore.load`
restores it, to the bit but for keys that have just ended. The caller writes it after all output of its messages has
been delivered, so a replay emits nothing.

**Damage.** The newest two bases and all journals since the older one are kept. A damaged base costs nothing. A
damaged journal after the newest base costs itself and its successors: Kafka is read again from there, so output
comes again with the same ids, but labels that silence had decided may differ. A damaged file is renamed. When no
base is whole, nothing is loaded: a start from nothing would count the same events again.

**Owners.** A new owner of a partition claims a line above all others at once (:meth:`CheckpointStore.claim`), and
begins it with an empty journal when it has read the state, which may take long. So the late checkpoint of a worker that
lost its partition unawares, even while it read the state, never replaces one of the new owner. Where both follow the
same journal, the higher line is the right one. An owner whose line is still the highest has had no successor.

A journal is valid for its label policy, waits, schema and number of partitions. If they have changed, it is replayed
under its own, and the state goes on under the present ones. (A change of schema must be allowed by ``evolve``.) A
journal of another version of :data:`~stream.partition.journal.RULES` is not replayed: Kafka is read from there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import structlog
import zstandard
from msgspec import structs

from millrace.basics.errors import UNFIT, StoreError, one_line
from millrace.basics.store import AbsentError, DamagedError, Sealed, Store
from millrace.contracts.logforms import OutcomePolicy
from millrace.labels import policy_named
from stream.partition.journal import RULES, Entry, from_bytes, to_bytes
from stream.partition.partition import Partition, PartitionSnapshot, Policy

log = structlog.get_logger("checkpoint")

GROWN = 4.0
"""A base follows when the journals since the last one are so many times its size."""
LEAST_BYTES = 256 * 1024
"""And at least this long together: a base saves nothing for a journal that is read in some milliseconds."""
REPLAY_BYTES = 32 * 1024 * 1024
"""Or when they hold this much, before compression. It is replayed in two seconds of a core."""
MOST_JOURNALS = 1800
"""Or when there are so many, in an hour by default: an object store takes some 30 ms a file."""
CLEAN_BYTES = REPLAY_BYTES // 8
"""The same at a clean stop, so that the next start is quick."""
KEPT = 2
LEVEL = 3  # of zstd

_REMEDY_DAMAGED = "move them away to read its topics from their beginning"
_REMEDY_EVOLVE = (
    "set MILLRACE_EVOLVE=true to carry over what both have, MILLRACE_SCHEMA to the former schema, or MILLRACE_DATA to "
    "an empty folder"
)
_REMEDY_UNKNOWN = (
    "start the stream once with the schema that it was made with, so that it is noted in the store, and then change it "
    "with MILLRACE_EVOLVE=true; or set MILLRACE_DATA to an empty folder"
)

_NAME = re.compile(r"p(\d{5})-(\d{12})-(\d{6})\.(base|journal|claim)$")


class Terms(msgspec.Struct, frozen=True):
    """The settings for which a journal is valid."""

    schema: str
    rules: int
    partitions: int | None
    settles: bool
    attribution_ms: int
    disorder_ms: int
    lateness_ms: int
    ahead_ms: int
    observation_ms: int
    label: str
    sends_pages: bool
    outcomes: dict[str, OutcomePolicy]  # policies of outcomes, but for "wait"

    @classmethod
    def of(cls, partition: Partition) -> Terms:
        p = partition.policy
        waits = p.attribution_ms, p.disorder_ms, p.lateness_ms, p.ahead_ms, p.observation_ms
        outcomes: dict[str, OutcomePolicy] = {}
        outcomes |= {one.name: one.told for one in partition.schema.outcome if one.told != "wait"}
        rest = *waits, p.label.name, p.sends_pages, outcomes
        return cls(partition.schema.id, RULES, partition.partitions, partition.settles, *rest)

    def partition(self, like: Partition) -> Partition:
        """A new partition under these terms. Raises StoreError for an unknown schema."""
        known = {schema.id: schema for schema in (*like.history, like.schema)}
        if self.schema not in known:
            raise StoreError(
                f"a checkpoint of schema {self.schema}, the settings name {like.schema.id}", _REMEDY_UNKNOWN
            )
        waits = self.attribution_ms, self.disorder_ms, self.lateness_ms, self.ahead_ms
        policy = Policy(*waits, policy_named(self.label), self.observation_ms, self.sends_pages)
        schema = known[self.schema]
        outcomes = [structs.replace(one, policy=self.outcomes.get(one.name, "wait")) for one in schema.outcome]
        schema = structs.replace(schema, outcome=tuple(outcomes)) if outcomes else schema
        return Partition(like.number, schema, policy, self.partitions, self.settles, like.history)


class CheckpointHeader(msgspec.Struct, frozen=True):
    """A file's header."""

    kind: Literal["base", "journal"]
    partition: int
    number: int  # of the journal that ends here
    follows: str  # digest of the journal before; of a base: of the journal whose state it is
    offsets: dict[str, int]  # next to read, by topic
    advance_ms: int | None  # an advance that is the next thing to be done
    bytes: int  # of the body, before compression
    terms: Terms | None  # None: as in the file before (a base says them)
    logs: dict[str, str] | None  # ids of the topics that offsets are of; empty: not known; None: as in the file before


class Name(NamedTuple):
    """The parts of a file's name. Names sort from old to new."""

    number: int
    line: int
    kind: str

    def text(self, partition: int) -> str:
        return f"p{partition:05d}-{self.number:012d}-{self.line:06d}.{self.kind}"


@dataclass(slots=True)
class LoadedPartition:
    """A partition as its checkpoints have it, and the line in which its new owner goes on."""

    partition: Partition
    line: CheckpointLine


class CheckpointStore:
    """Checkpoints of any number of independent partitions.

    Args:
        url: a folder, or any URL that fsspec knows (``s3://bucket/prefix``, ``memory://name``).

    Raises:
        StoreError: the place cannot be used.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.store = Store(self.url)

    def claim(self, partition: int, own: int = 0) -> int:
        """The line in which a new owner of a partition goes on, above all that there are. ``own``: that of its last
        claim in this process, which it keeps if it is still the highest. Raises StoreError."""
        newest = max((name.line for name in self.names(partition)), default=0)
        if own and own == newest:
            return own
        self.store.put(Name(0, newest + 1, "claim").text(partition), None)
        return newest + 1

    def load(self, fresh: Partition, evolve: bool = False, line: int | None = None) -> LoadedPartition:
        """Takes a partition over: its state from the newest whole base and the journals that follow, and a line.

        Args:
            fresh: a new partition under the present terms, returned when nothing was written before.
            evolve: whether a state of an earlier schema of ``fresh.history`` is carried over.
            line: the one that was claimed; None: it is claimed now.

        Raises:
            StoreError: the store cannot be used, the state is of another schema and may not be carried over, or all of
                the state is damaged.
        """
        begun = line or self.claim(fresh.number)
        loaded = self._load(fresh, evolve, CheckpointLine(self, fresh.number, Terms.of(fresh), begun))
        claims = (name for name in self.names(fresh.number) if name.kind == "claim" and name.line <= begun)
        self.store.remove(name.text(fresh.number) for name in claims)  # files of the line itself show it now
        return loaded

    def _load(self, fresh: Partition, evolve: bool, line: CheckpointLine) -> LoadedPartition:
        number = fresh.number
        names = [name for name in self.names(number) if name.kind != "claim"]
        damaged: list[str] = []
        partition = self._recover(fresh, names, damaged, line)
        if partition is None:
            if names:
                raise StoreError(
                    f"all {len(names)} checkpoints of partition {number} in '{self.url}' are damaged", _REMEDY_DAMAGED
                )
            line.begin(fresh.snapshot(fresh.advance_ms))
            return LoadedPartition(fresh, line)
        for name in damaged:
            self.store.rename_damaged(name, "it is not what was written, or follows such a file")
        if partition.schema.id != fresh.schema.id:
            if not evolve:
                raise StoreError(
                    f"a checkpoint of schema {partition.schema.id}, the settings name {fresh.schema.id}", _REMEDY_EVOLVE
                )
            log.warning(
                "the state was carried over to another schema",
                partition=number,
                former=partition.schema.id,
                schema=fresh.schema.id,
            )
        if Terms.of(partition) != line.terms:
            partition = self._under(partition, fresh)
        line.write([], None, partition.offsets, partition.advance_ms)
        return LoadedPartition(partition, line)

    def names(self, partition: int) -> list[Name]:
        """A partition's files, oldest first."""
        found = [_NAME.match(name) for name in self.store.names(f"p{partition:05d}-")]
        return sorted(Name(int(m[2]), int(m[3]), m[4]) for m in found if m)

    def prune(self, partition: int) -> None:
        """Removes the files that the newest two bases do not need. Raises StoreError."""
        names = self.names(partition)
        bases = [base for base in _bases(names) if not _is_late(base, names)]
        if len(bases) < KEPT:
            return
        kept, oldest = bases[-KEPT:], bases[-KEPT].number
        gone = [n for n in names if n.kind == "base" and n not in kept]
        gone += [n for n in names if n.kind == "journal" and n.number <= oldest]
        self.store.remove(name.text(partition) for name in gone)

    def _recover(
        self, fresh: Partition, names: Sequence[Name], damaged: list[str], line: CheckpointLine
    ) -> Partition | None:
        """The newest state that can be recovered, which ``line`` follows then. Files found damaged are added to
        ``damaged``."""
        journals: dict[int, list[Name]] = defaultdict(list)
        for name in names:
            if name.kind == "journal":
                journals[name.number].append(name)
        for name in reversed(_bases(names)):
            read = self._read(fresh.number, name, damaged)
            if read is None:
                log.warning("checkpoint is damaged, trying the one before", file=name.text(fresh.number))
                continue
            head, body, file = read
            assert head.terms is not None
            partition = head.terms.partition(fresh)
            partition.resume(body)
            line.number, line.tip, line.logs, line.base_bytes = head.number, head.follows, head.logs or {}, file.size
            for after, entries, journal in self._follow(head, line, journals, damaged):
                if after.terms is not None and after.terms != Terms.of(partition):
                    partition = self._under(partition, after.terms.partition(fresh))
                try:
                    partition.replay(entries)
                except UNFIT as error:
                    raise StoreError(
                        f"checkpoint '{journal.name}' in '{self.url}' cannot be done again ({one_line(error)})",
                        _REMEDY_DAMAGED,
                    ) from error
                partition.advance_ms = after.advance_ms
                line.number, line.tip = after.number, journal.digest
                line.logs = line.logs if after.logs is None else after.logs
                line.journal_bytes += journal.size
                line.journals += 1
                line.replay_bytes += after.bytes
            return partition
        return None

    def _follow(
        self, base: CheckpointHeader, line: CheckpointLine, journals: dict[int, list[Name]], damaged: list[str]
    ) -> Iterator[tuple[CheckpointHeader, list[Entry], Sealed]]:
        """The journals after what ``line`` has come to from a base, as far as they are whole and consecutive."""
        number, terms, offsets = base.partition, base.terms, base.offsets
        while True:
            candidates = sorted(journals.get(line.number + 1, ()), reverse=True)  # the highest line first
            read, entries = None, list[Entry]()
            for name in candidates:
                read = self._read(number, name, damaged)
                if read is None or read[0].follows != line.tip:
                    read = None
                    continue
                try:
                    entries = from_bytes(read[1])
                    break
                except UNFIT:
                    damaged.append(name.text(number))
                    read = None
            terms = terms if read is None else read[0].terms or terms
            rules = terms.rules if terms is not None else RULES
            if read is None or rules != RULES:
                rest = [n.text(number) for k, several in journals.items() if k > line.number for n in several]
                if rest:
                    damaged += [name for name in rest if name not in damaged]
                    log.error(
                        "journal cannot be used: Kafka is read again from there",
                        partition=number,
                        journal=line.number + 1,
                        why="it is damaged or missing" if read is None else f"it is of rules {rules}",
                        given_up=len(rest),
                        offsets=offsets,
                    )
                return
            head, _, file = read
            offsets = head.offsets
            yield head, entries, file

    def _read(self, partition: int, name: Name, damaged: list[str]) -> tuple[CheckpointHeader, bytes, Sealed] | None:
        text = name.text(partition)
        try:
            said, body, file = self.store.get(text)
            head = msgspec.json.decode(said, type=CheckpointHeader)
            if zstandard.frame_content_size(body) == head.bytes:
                return head, zstandard.ZstdDecompressor().decompress(body), file
            damaged.append(text)
            return None
        except AbsentError:
            return None
        except (DamagedError, zstandard.ZstdError, *UNFIT):
            damaged.append(text)
            return None

    @staticmethod
    def _under(partition: Partition, fresh: Partition) -> Partition:
        fresh.resume(partition.snapshot(partition.advance_ms).to_bytes())
        return fresh


def _bases(names: Sequence[Name]) -> list[Name]:
    """The bases, the one to be tried first last."""
    bases = (name for name in names if name.kind == "base")
    return sorted(bases, key=lambda n: (not _is_late(n, names), n.line, n.number))


def _is_late(base: Name, names: Sequence[Name]) -> bool:
    """Whether a base is of a worker that had lost the partition: a higher line went on from an earlier journal."""
    return any(n.kind == "journal" and n.line > base.line and n.number <= base.number for n in names)


class CheckpointLine:
    """The checkpoints of one owner of a partition. One thread at a time."""

    def __init__(self, checkpoints: CheckpointStore, partition: int, terms: Terms, line: int) -> None:
        self._checkpoints, self._partition, self.terms, self.line = checkpoints, partition, terms, line
        self.logs: dict[str, str] = {}  # ids of the topics that offsets are of; empty: not known
        self._said: dict[str, str] | None = None  # the same, in the file before; None: this line has no file yet
        self.number, self.tip = 0, ""
        self.base_bytes = self.journal_bytes = 0  # of the last base, and of the journals since
        self.replay_bytes = 0  # of these, before compression
        self.journals = 0  # how many these are
        self.written_bytes = 0  # by this line, in all

    def wants_base(self, arrived_bytes: int, stops: bool) -> bool:
        """Whether the checkpoint that is due should have a base.

        Args:
            arrived_bytes: size of the journal to come, before compression.
            stops: the partition is being given up.
        """
        replay = self.replay_bytes + arrived_bytes
        if replay > (CLEAN_BYTES if stops else REPLAY_BYTES) or self.journals >= MOST_JOURNALS:
            return True
        return self.journal_bytes > max(LEAST_BYTES, GROWN * self.base_bytes)

    def write(
        self,
        entries: Iterable[Entry],
        base: PartitionSnapshot | None,
        offsets: dict[str, int] | None = None,
        advance_ms: int | None = None,
        logs: dict[str, str] | None = None,
    ) -> None:
        """Adds a durable checkpoint: the entries since the last, and the resulting state if there is a ``base``.
        Removes bases that are no longer needed.

        Args:
            offsets, advance_ms: of the state; a base says so itself.
            logs: ids of the topics that the offsets are of; by default the line's.

        Raises:
            StoreError: it could not be written; earlier ones are untouched.
        """
        if base is not None:
            offsets, advance_ms = base.head["offsets"], base.head["advance_ms"]
        assert offsets is not None
        logs = self.logs if logs is None else logs
        self.number += 1
        file = self._put("journal", to_bytes(entries), offsets, advance_ms, logs)
        self.tip = file.digest
        self.journal_bytes += file.size
        self.journals += 1
        if base is not None:
            self._base(base, logs)
            self._checkpoints.prune(self._partition)

    def begin(self, base: PartitionSnapshot) -> None:
        """Writes the first base of a partition, which follows no journal."""
        self.tip = f"begin {self.line}"
        self._base(base, self.logs)

    def _base(self, base: PartitionSnapshot, logs: dict[str, str]) -> None:
        file = self._put("base", base.to_bytes(), base.head["offsets"], base.head["advance_ms"], logs)
        self.base_bytes, self.journal_bytes, self.replay_bytes, self.journals = file.size, 0, 0, 0

    def _put(
        self,
        kind: Literal["base", "journal"],
        body: bytes,
        offsets: dict[str, int],
        advance_ms: int | None,
        logs: dict[str, str],
    ) -> Sealed:
        number = self._partition
        whole = kind == "base" or self._said is None
        terms, ids = self.terms if whole else None, logs if whole or logs != self._said else None
        self._said = logs
        head = CheckpointHeader(kind, number, self.number, self.tip, offsets, advance_ms, len(body), terms, ids)
        packed = zstandard.ZstdCompressor(LEVEL).compress(body)
        file = self._checkpoints.store.put(Name(self.number, self.line, kind).text(number), head, packed)
        self.written_bytes += file.size
        self.replay_bytes += len(body)
        return file
