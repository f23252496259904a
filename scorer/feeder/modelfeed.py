# shell
"""The feed of model versions: deltas from the topic ``model.deltas``, snapshots from the store.

This thread reads, verifies and builds versions as :class:`scorer.feeder.version_order.Follower` decides;
:mod:`scorer.feeder.versionhost` has the workers serve them. After a load it reads the topic from the snapshot's
position. It verifies a whole delta before it stages any part.

A model may have a retrieval head beside the ranker::

    image ──split─┬─ the ranker's tables ──► ModelWriter, VersionHost       each version
                  └─ the head's tables ────► Tower, TowerHost               the versions that carry it

So retrieval lags ranking by the learner's interval between heads, and has the same gaps, damage and loads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import structlog

from learner.custom.ownclass import is_own
from learner.network.forward import Arithmetic
from learner.network.models.spec import read_spec
from learner.retrieval.tower import Tower, factors_of
from learner.role.model_factory import writer_of
from learner.serving.staging import ModelWriter
from millrace.basics.errors import SettingError, SnapshotError, StoreError, one_line
from millrace.basics.store import AbsentError, DamagedError
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Image, check_head, split
from millrace.versions.modellog import Assembler, Bad, Claimed, Decisions, Delta, Entry
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import unpack
from millrace.versions.versioning import Announcement, Place, VersionClicks
from scorer.catalog.index_checkpoint import Bookmark
from scorer.feeder.kafka_feed import FeedRecord, TopicFeed, TopicSource
from scorer.feeder.state import FeederState, Stopped
from scorer.feeder.towerhost import TowerHost
from scorer.feeder.version_order import Follower
from scorer.feeder.versionhost import VersionHost, Writer

log = structlog.get_logger("scorer")

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.5, 15.0
"""Interval of looks at the store while a snapshot is missing. It doubles from look to look."""
ALL_ROWS = 1 << 30


@dataclass(slots=True)
class _Loaded:
    """A built snapshot that is not served yet."""

    writer: Writer
    tower: Tower | None
    note: Announcement  # of the newest version whose head is in the tower


class ModelFeed(TopicFeed):
    """Model versions: deltas in order; after a gap, the newest snapshot and the deltas after it. ``monotonic``:
    seconds. ``towers``: serves retrieval versions; None: they are only checked. ``choose``: in what arithmetic pages
    are computed; None: in float32."""

    topic = MODEL_DELTAS
    what = "model versions"

    def __init__(
        self,
        state: FeederState,
        host: VersionHost,
        broker: TopicSource | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        towers: TowerHost | None = None,
        choose: Callable[[ModelWriter], Arithmetic] | None = None,
    ) -> None:
        super().__init__(state, broker=broker)
        self.host, self.towers, self._choose = host, towers, choose
        self.store = ModelStore(self.primary.settings.place("models"), writes=False)
        self.follower = Follower(self.primary.schema.id)
        self._writer: Writer | None = None  # of the version follower.at
        self._loaded: _Loaded | None = None  # while that is not served
        self._factors = 0  # of the retrieval head of that model; 0: it has none
        self._assembler = Assembler()
        self._monotonic = monotonic
        self._look_at, self._pause = 0.0, FIRST_LOOK_SECONDS
        self._torn_at: Place | None = None  # the last delta that could not be put in, for a reason that nobody knows
        self._said: set[tuple[str, object]] = set()
        self._logged_waiting = ""

    # -- the topic --------------------------------------------------------------------------------------------

    def start_up(self) -> None:
        if self.primary.settings.learner:
            structlog.contextvars.bind_contextvars(learner=self.primary.settings.learner)
        if self.follower.at is None:
            self.look()

    def turn(self) -> bool:
        if (self.follower.at is None or self.follower.waiting) and self._monotonic() >= self._look_at:
            self.look()
        return super().turn()

    def take(self, records: list[FeedRecord]) -> None:
        for entry in self._entries(records):
            try:
                self.follow(entry)
            except Stopped:
                raise
            except Exception as error:  # unforeseen; if a version is missing now, the next one shows it
                self.bad("message", one_line(error))
            if self.sought is not None:
                return  # what follows is read again, or not wanted

    def _entries(self, records: list[FeedRecord]) -> Iterator[Entry]:
        """None while reading is to continue elsewhere: entries would then count as repetitions."""
        for record in records:
            if self.sought is not None:
                return
            yield from self._assembler.take(record.value)

    def follow(self, entry: Entry) -> None:
        verdict = self.follower.take(entry)
        if isinstance(entry, Bad) and verdict != "ignore":
            self.bad("announcement", entry.why)
        if verdict in ("foreign", "fenced") and not isinstance(entry, Claimed | Decisions | Bad):
            self._ignored(verdict, entry.note)
        if verdict == "patch" and isinstance(entry, Delta):
            self._patch(entry)
        elif verdict == "look":
            self.look()
        self._log_waiting()

    # -- deltas -----------------------------------------------------------------------------------------------

    def _patch(self, entry: Delta) -> None:
        note, writer = entry.note, self._writer
        assert writer is not None
        try:
            ranker, head = split(unpack(entry.body, writer.dense()))
            writer.check(ranker)
            check_head(head, self._factors)
            if bool(head.tables) != (note.retrieval_clicks >= 0):
                raise SnapshotError("a delta says of its retrieval head what is not so", "the next snapshot mends it")
        except SnapshotError as error:
            self._refuse(note, error)
        else:
            self._put(entry, writer, ranker, head)

    def _put(self, entry: Delta, writer: Writer, ranker: Image, head: Image) -> None:
        note = msgspec.structs.replace(entry.note, spec=self.follower.at.spec if self.follower.at else {})
        served = self.host.writer is writer
        try:
            if served:
                self.host.patch(note, ranker, [VersionClicks.of(note)] if self.caught_up else [])
            else:
                writer.stage(ranker)
                while writer.fold(ALL_ROWS):
                    pass
                self._put_aside(note, head)
        except (
            Exception
        ) as error:  # unforeseen, as the delta was checked: what is served stays, and is followed no more
            self.meters.error("patch")
            if note.place == self._torn_at:  # it would fail for ever: the next snapshot is waited for
                self._refuse(note, error)
                return
            self._writer, self._torn_at = None, note.place
            self.follower.torn(f"version {note.version} could not be put in: {one_line(error)}")
            self._log_waiting()
            self.look()
            return
        self.follower.patched(note)
        if served and head.tables and self.towers is not None:
            self.towers.patch(note, head)
        if not served and self.follower.serves:
            self._install(note, self.follower.clicks())

    def _put_aside(self, note: Announcement, head: Image) -> None:
        """Applies a delta's head to a tower that is not served yet."""
        loaded = self._loaded
        if loaded is not None and loaded.tower is not None and head.tables:
            loaded.tower.apply(head)
            loaded.note = note

    def _refuse(self, note: Announcement, error: Exception) -> None:
        self.bad("delta", error)
        self.follower.refused(note, one_line(error))
        self._log_waiting()
        self.look()

    # -- snapshots --------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Loads the newest useful snapshot of the store, if there is one."""
        self._look_at = self._monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_LOOK_SECONDS)
        try:
            known = len(self.store.damaged)
            found = self.store.snapshots()
            for name in self.store.damaged[known:]:
                self._bad_snapshot(name, "its manifest is damaged")
        except StoreError as error:
            self.bad("store", error)
            return
        for note in self.follower.candidates(found):
            try:
                loaded = self._build(note)
            except Stopped:
                raise
            except (SnapshotError, SettingError, AbsentError, DamagedError) as error:
                self._bad_snapshot(f"of version {note.version}", error)
            except StoreError as error:  # it may be back at the next look
                self.bad("store", error)
                return
            except Exception as error:  # unforeseen: it would fail again
                self._bad_snapshot(f"of version {note.version}", one_line(error))
            else:
                self._have(loaded)
                return
            self.follower.failed(note)
        if self.follower.at is None and self.primary.settings.learner and ("none", "") not in self._said:
            self._said.add(("none", ""))
            log.warning("the learner has no version yet: users of its arms get pages of the shop's lists")

    def _build(self, note: Announcement) -> _Loaded:
        """A model from a snapshot, in shared memory. All its parts are verified."""
        schema, own = self.primary.schema, is_own(note.spec.get("model"))
        spec = read_spec({} if own else note.spec)
        factors = factors_of(spec) if note.retrieval_clicks >= 0 and not own else 0
        tower = Tower(schema, spec) if factors and self.towers is not None else None

        def ranked(parts: Iterator[Image]) -> Iterator[Image]:
            for image in parts:
                ranker, head = split(image)
                check_head(head, factors)
                if tower is not None:
                    tower.apply(head)
                yield ranker

        parts = ranked(_one_ahead(self.store.read_parts(note)))
        allocate, named = self.host.pool.allocate, self.primary.settings.model
        writer = writer_of(schema, note.spec, parts, _rows(note), allocate, named, self._choose)
        self._factors = factors
        return _Loaded(writer, tower, note)

    def _have(self, loaded: _Loaded) -> None:
        note = loaded.note
        self.follower.loaded(note)
        self._loaded, self._writer = loaded, loaded.writer
        self._pause = FIRST_LOOK_SECONDS
        if self.follower.serves:
            self._install(note, [*self.follower.clicks(), *([VersionClicks.of(note)] if self.caught_up else [])])
        self.seek(Bookmark(note.log, {0: note.follows}))
        self.meters.load()
        rows, served = loaded.writer.rows, self.follower.serves
        log.info("model loaded", version=note.version, epoch=note.epoch, rows=rows, served=served)

    def _install(self, note: Announcement, clicks: list[VersionClicks]) -> None:
        loaded, self._loaded = self._loaded, None
        assert loaded is not None
        self.host.install(note, loaded.writer, 0, clicks)
        if self.towers is not None:
            self.towers.install(loaded.note, loaded.tower)

    def seek(self, mark: Bookmark) -> None:
        self._assembler = Assembler()
        super().seek(mark)

    # -- saying it --------------------------------------------------------------------------------------------

    def _log_waiting(self) -> None:
        """Logs each change between following and waiting."""
        waiting = self.follower.waiting
        self.meters.waits(bool(waiting))
        if waiting and not self._logged_waiting:
            self.meters.gap()
            at = self.follower.at
            log.warning("model waits for a snapshot", served=at.version if at else None, reason=waiting)
        elif self._logged_waiting and not waiting:
            log.info("model follows again", version=self.follower.at.version if self.follower.at else None)
        self._logged_waiting = waiting

    def _ignored(self, verdict: str, note: Announcement) -> None:
        what = (verdict, note.schema_id if verdict == "foreign" else (note.epoch, note.claimant))
        if what in self._said:
            return
        self._said.add(what)
        if verdict == "foreign":
            self.bad("schema", f"version {note.version} is of schema {note.schema_id}, not of ours")
        else:
            self.bad("fenced", f"version {note.version} is of a learner that has lost epoch {note.epoch}")

    def _bad_snapshot(self, which: str, error: object) -> None:
        self.meters.error("snapshot")
        log.warning("a snapshot cannot be used", which=which, error=" ".join(str(error).split()))


def _one_ahead(parts: Iterator[Image]) -> Iterator[Image]:
    """The same parts; a thread reads and verifies the next one while the caller applies one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part


def _rows(note: Announcement) -> dict[str, int]:
    """Rows of each table as far as the snapshot gives them: only a hint for speed."""
    hint = note.extra.get("rows")
    rows = hint if isinstance(hint, dict) else {}
    return {name: n for name, n in rows.items() if isinstance(n, int) and 0 <= n < 2**31}
