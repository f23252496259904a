"""The books of a loop after a fault: what became of each exposure, of each update of the model, and of the weights.

::

    exposures    topics events, samples, dead-letters      millrace/commands/demo/conservation.py: each is labelled,
                                                           or in a dead letter with its reason; nothing twice
    updates      topic samples, decisions of the learner   each labelled row is in one micro-batch that is in force,
                                                           or in quarantine; none in two
    archive      topic samples, the archive's files        a replay of the archive learns what the stream sent:
                                                           exposure by exposure its time, policy and label
    weights      model.deltas, the store, page logs        snapshot plus deltas, scored again: what pages were scored
                                                           with is what was learnt
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import numpy as np
from kafka.errors import KafkaError

from learner.promotion.decisionhistory import decided_in
from learner.serving.serving_model import ServingModel
from millrace.basics.errors import MillraceError, SchemaError, SnapshotError
from millrace.commands.demo.conservation import Ledger
from millrace.commands.loop.monitor import fetch
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings
from millrace.contracts.events import NOT_READ, BadEventError, Exposure, decode_dead_letter, decode_event
from millrace.contracts.page_logs import decode_page_log, decode_served
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import load_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, MODEL_DELTAS, PAGE_LOGS, SAMPLES
from millrace.logs import read_log
from millrace.processes.deltas import read_decisions, read_deltas
from millrace.processes.kafka import make_reader, read_all
from millrace.versions.decisions import (
    Adopted,
    Decided,
    Learnt,
    LogPart,
    Refused,
    RolledBack,
    Span,
    WentBack,
    decode_decisions,
    in_force,
)
from millrace.versions.image import split
from millrace.versions.modellog import Assembler, Claimed, Decisions, Delta, Fence
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import unpack
from millrace.versions.proof import prove
from millrace.versions.versioning import Place
from scorer.feeder.arithmetic import BOUND
from tests.crash.loop import CrashLoop
from tests.scenes.waiting import PATIENCE

NO_LOG, LATE_LOG = "no-page-log", "page-log-late"
"""Exposures whose page log went with a scorer that was killed, and those whose page log lies in the topic: it came
after their page's life."""
PROBES = 24
NAMED = 5
"""Exposures that are named where they differ."""
RETRY_SECONDS = 0.5
YOUNG = 0.1
"""Standard deviation of logits below which a model knows next to nothing, and rounding is not compared with it."""

Row = tuple[str, int, int]
"""A labelled row: request, position, kind."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of an exposure."""

    ts_ms: int
    policies: frozenset[int]
    kinds: frozenset[int]

    @property
    def label(self) -> bool:
        """The last that was told."""
        return not self.kinds.isdisjoint((POSITIVE, CORRECTION))

    def and_more(self, ts_ms: int, policy: int, kind: int) -> Told:
        return Told(ts_ms, self.policies | {policy}, self.kinds | {kind})


Exposures = dict[tuple[str, int], Told]
"""By request and position."""
_NOTHING = Told(0, frozenset(), frozenset())


@dataclass(slots=True)
class Balance:
    """What the books say of the whole life of a loop."""

    exposures: int = 0
    labelled: int = 0
    apart: Counter[str] = field(default_factory=Counter)  # exposures in dead letters and nowhere else, by reason
    dead: Counter[str] = field(default_factory=Counter)  # events in dead letters, by reason
    refusals: int = 0  # of the gate; nothing was wrong with any sample
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    updates: int = 0
    delayed: int = 0  # corrections that came after the watermark alone: by the times, labels
    weights: str = ""  # which version was compared


class Books:
    """Balances one loop, as often as one likes; to be closed.

    The learner removes decisions from the topic that its newest snapshots do not need, so they are followed in a thread
    from the beginning.
    """

    def __init__(self, loop: CrashLoop) -> None:
        self._loop = loop
        self._decided: dict[int, Decided] = {}
        self._log = ""
        self._differ: list[str] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="decisions", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _take(self, part: LogPart) -> None:
        with self._lock:
            self._log = self._log or part.log
            for each in part.decided if part.log == self._log else ():
                if self._decided.setdefault(each.n, each) != each:
                    self._differ.append(f"decision {each.n} is {each.what}, and was {self._decided[each.n].what}")

    def _follow(self) -> None:
        """Reads the topic on and on, whatever becomes of the broker."""
        follower, at = DecisionFollower(self._take), 0
        while not self._over.is_set():
            with contextlib.suppress(MillraceError, KafkaError, OSError, ValueError), self._reader(at) as reader:
                while not self._over.is_set():
                    for record in chain.from_iterable(reader.poll(timeout_ms=500).values()):
                        follower.take(record.value)
                        at = record.offset + 1
            self._over.wait(RETRY_SECONDS)

    def _reader(self, at: int) -> AbstractContextManager[Any]:
        return contextlib.closing(make_reader(self._loop.settings, MODEL_DELTAS, {0: at}))

    def gather(self) -> None:
        """Takes up the decisions that are there now."""
        settings = self._loop.settings
        store = ModelStore(settings.place("models"), writes=False)
        for part in [*decided_in(store), *self._loop.read(lambda: read_decisions(settings))]:
            self._take(part)

    def balance(self) -> Balance:
        """To be called when nothing moves."""
        found = Balance()
        self._exposures(found)
        self._loop.come_to_rest()
        self.gather()
        sent = self._updates(found)
        self._archive(found, sent)
        self._weights(found)
        return found

    # -- exposures -------------------------------------------------------------------------------------------

    def _exposures(self, found: Balance) -> None:
        ledger, settlement = self._loop.settled()
        found.exposures = ledger.exposures
        found.labelled = ledger.count("positive") + ledger.count("negative")
        found.dead = Counter(ledger.dead)
        found.apart = _by_reason(ledger, self._loop)
        found.refusals = sum(round(n) for n in settlement.picture.gate.refused.values())
        if settlement.problem is not None:
            found.wrong.append(str(settlement.problem))
        if settlement.forgotten:
            found.wrong.append(f"the broker has forgotten {settlement.forgotten}")
        found.lost += [f"{one['page']}: {one['exposures']} exposures without a label" for one in ledger.missing]
        found.lost += [f"{page}: pending" for page, account in ledger.pages.items() if account.pending]
        found.doubled += [f"{name}: two labels" for name in ledger.undecided]
        found.doubled += [f"{page}: a label and a dead letter" for page in ledger.both]

    # -- updates ---------------------------------------------------------------------------------------------

    def _updates(self, found: Balance) -> Exposures:
        rows: dict[int, list[Row]] = {}
        sent: Exposures = {}

        def visit(record: Any) -> None:
            try:
                batch = SampleBatch.from_bytes(record.value)
            except SchemaError:
                return
            # Of a page whose user was not read: as a follow-up it teaches nothing.
            kinds = np.where(batch.user_missing & NOT_READ, FOLLOW_UP, batch.kind)
            named = zip(batch.ids(), kinds.tolist(), strict=True)
            rows[record.offset] = [(*place, kind) for place, kind in named]
            _note(sent, batch.ids(), batch.ts_ms, batch.policy, batch.kind)

        settings = self._loop.settings
        self._loop.read(lambda: read_all(settings, SAMPLES, visit))
        with self._lock:
            known = list(self._decided.values())
            found.wrong += self._differ
        first = min((each.n for each in known), default=0)
        decided, behind_gap = in_force(known, first - 1)
        if behind_gap:
            found.wrong.append(f"decisions behind {decided[-1].n if decided else first} are missing")
        account_updates(found, decided, rows)
        return sent

    # -- the archive -----------------------------------------------------------------------------------------

    def _archive(self, found: Balance, sent: Exposures) -> None:
        replayed: Exposures = {}

        def whole() -> bool:
            nonlocal replayed
            replayed = replayed_exposures(self._loop.settings)
            return len(replayed) >= len(sent)

        self._loop.until(whole, "the archive has all exposures", more=lambda: f"{len(replayed)} of {len(sent)}")
        account_archive(found, sent, replayed)

    # -- weights ---------------------------------------------------------------------------------------------

    def _weights(self, found: Balance) -> None:
        settings = self._loop.settings
        try:
            self._loop.read(lambda: prove(ModelStore(settings.place("models"), writes=False), read_deltas(settings)))
        except SnapshotError as error:
            found.wrong.append(str(error))
        try:
            found.weights = served_weights(settings, self._loop)
        except (MillraceError, OSError, AssertionError) as error:
            found.wrong.append(f"served weights: {error}")


class DecisionFollower:
    """The decisions of who had the epoch, from the messages of ``model.deltas`` one by one."""

    def __init__(self, take: Callable[[LogPart], None]) -> None:
        self._take, self._assembler, self._fence = take, Assembler(), Fence()

    def take(self, message: bytes) -> None:
        for entry in self._assembler.take(message):
            if isinstance(entry, Claimed):
                self._fence.claims(entry.claim)
            elif isinstance(entry, Delta | Decisions):
                note = entry.note
                if self._fence.admits(note.epoch, note.claimant) and note.decisions:
                    self._take(decode_decisions(note.decisions))


def _by_reason(ledger: Ledger, loop: CrashLoop) -> Counter[str]:
    """Exposures that are in dead letters and nowhere else, by the reason. Those whose page log never came are told
    apart from those whose page log came after their page's life."""
    pages: dict[str, dict[str, int]] = {}
    logged = set[str]()

    def letter(record: Any) -> None:
        try:
            dead = decode_dead_letter(record.value)
            event = decode_event(dead.raw)
        except BadEventError:
            return
        if dead.topic == EVENTS and isinstance(event, Exposure):
            of = pages.setdefault(event.request_id, {})
            of[dead.reason] = of.get(dead.reason, 0) | event.mask

    def log(record: Any) -> None:
        with contextlib.suppress(BadEventError):
            logged.add(decode_served(record.value).request_id)

    loop.read(lambda: read_all(loop.settings, DEAD_LETTERS, letter))
    if any(NO_LOG in of for of in pages.values()):
        loop.read(lambda: read_all(loop.settings, PAGE_LOGS, log))
    found = Counter[str]()
    for page, masks in pages.items():
        left = ledger.pages[page].lost
        for reason, mask in masks.items():
            told = LATE_LOG if reason == NO_LOG and page in logged else reason
            found[told] += (mask & left).bit_count()
            left &= ~mask
    return +found


def account_updates(found: Balance, decided: list[Decided], rows: dict[int, list[Row]]) -> None:
    """Whether each row of the topic is in one micro-batch that is in force, or in quarantine, and in no second one.

    Args:
        decided: in force, in their order.
        rows: of each message of ``samples``, by offset.
    """
    learnt: list[tuple[int, Span]] = []  # decision, rows
    apart: list[Span] = []
    for each in decided:
        match each.what:
            case Learnt(spans=spans):
                learnt += [(each.n, span) for span in spans]
            case Refused(spans=spans):
                apart += spans
            case WentBack(to=to):
                apart += [span for n, span in learnt if n > to]
                learnt = [(n, span) for n, span in learnt if n <= to]
            case RolledBack() | Adopted():
                found.wrong.append(f"decision {each.n} took a model back by hand: {each.what}")
    taken = max((each.read for each in decided), default=0)
    times = Counter(row for _, span in learnt for row in _rows_of(span, rows))
    known = set(times) | {row for span in apart for row in _rows_of(span, rows)}
    read = {row for offset, those in rows.items() if offset < taken for row in those if row[2] < FOLLOW_UP}
    unread = [at for at, those in rows.items() if at >= taken and any(r[2] < FOLLOW_UP for r in those)]
    found.updates = len(times)
    found.doubled += [f"{row} is in {n} micro-batches" for row, n in times.items() if n > 1]
    found.lost += [f"{row} is in no micro-batch" for row in sorted(read - known)]
    found.lost += [f"samples at {at} were never read" for at in unread]


def _rows_of(span: Span, rows: dict[int, list[Row]]) -> list[Row]:
    return rows.get(span.offset, [])[span.first : span.stop]


def _note(told: Exposures, ids: Iterable[tuple[str, int]], *columns: Any) -> None:
    """Adds labels that were told: ``columns`` are ts_ms, policy and kind."""
    for of, ts_ms, policy, kind in zip(ids, *(column.tolist() for column in columns), strict=True):
        if kind in (NEGATIVE, POSITIVE, CORRECTION):
            told[of] = told.get(of, _NOTHING).and_more(ts_ms, policy, kind)


def replayed_exposures(settings: Settings) -> Exposures:
    """What a replay of the archive would learn."""
    folder = settings.folder("archive")
    if not any((folder / "exposures").glob("*.parquet")):
        return {}
    schema = load_schema(folder / "schema.toml")
    log = read_log(folder / "exposures", schema)
    rows, said = LogRows(log, schema), LabelSettings.of(settings)
    made = KnownSamples.of(rows.ts_ms, Labels(log, schema, rows), said.named, said.observation_ms)
    ids = list(zip(log.table["request_id"].to_pylist(), log.table["position"].to_pylist(), strict=True))
    told: Exposures = {}
    _note(told, (ids[row] for row in made.row), rows.ts_ms[made.row], made.policy, made.kind)
    return told


def account_archive(found: Balance, sent: Exposures, replayed: Exposures) -> None:
    """Whether both tell the same of the same exposures. A label may be a negative and its correction in one of them,
    since live the watermark decides when a label is given: that is counted."""
    found.wrong += [f"{of} is not in the archive" for of in sorted(sent.keys() - replayed.keys())[:NAMED]]
    found.wrong += [f"{of} is in the archive alone" for of in sorted(replayed.keys() - sent.keys())[:NAMED]]
    for of in sent.keys() & replayed.keys():
        live, again = sent[of], replayed[of]
        if (live.ts_ms, live.policies, live.label) != (again.ts_ms, again.policies, again.label):
            found.wrong.append(f"{of}: {live} was sent, and the archive gives {again}")
        found.delayed += live.kinds != again.kinds


def served_weights(settings: Settings, loop: CrashLoop) -> str:
    """Asks for pages and scores their logs again with the newest snapshot and the deltas behind it. Returns which
    version that was, and by how much the logits differ: the root mean square over their standard deviation.

    Raises:
        AssertionError: by more than what they are computed in makes them differ.
    """
    served = json.loads(fetch(f"{settings.scorer}/model", 60.0))
    schema, named = settings.load_schema(), f"probe-{served['version']}-{time.time_ns()}"
    asked = {_asked(settings.scorer, f"{named}-{i}", user=i + 1) for i in range(PROBES)}
    logs: dict[str, Any] = {}

    def visit(record: Any) -> None:
        try:
            log = decode_page_log(record.value)
        except BadEventError:
            return
        if log.request_id in asked:
            logs[log.request_id] = log

    def came() -> bool:
        loop.read(lambda: read_all(settings, PAGE_LOGS, visit))
        return logs.keys() >= asked

    loop.until(came, "the page logs of the probes come", more=lambda: f"{len(logs)} of {len(asked)}")
    arithmetic = "float32" if served["arithmetic"] is None else served["arithmetic"]["arithmetic"]
    # The learner may publish once more meanwhile: each page is compared with the version that made it.
    models = {
        version: _learnt(settings, version, arithmetic) for version in {log.model_version for log in logs.values()}
    }
    assert min(models) >= served["version"], f"pages of versions {[*models]} where {served['version']} served"
    own, theirs = list[Any](), list[Any]()
    for log in logs.values():
        n = len(log.items)
        cat = np.frombuffer(log.cat, "<i8").reshape(n, schema.layout.F).copy()
        cat[:, schema.layout.cat_names.index("position")] = 0  # it is logged for the learner; pages are scored without
        num = np.frombuffer(log.num, "<f4").reshape(n, schema.layout.N)
        own.append(_logits(models[log.model_version].score(cat, num)))
        theirs.append(_logits(np.frombuffer(log.scores, "<f4")))
    mine, shown = np.concatenate(own), np.concatenate(theirs)
    error = float(np.sqrt(np.mean((mine - shown) ** 2)) / max(shown.std(), YOUNG))
    told = f"version {max(models)}, {len(shown)} scores in {arithmetic}, error {error:.1e}"
    assert error <= (BOUND if arithmetic == "bfloat16" else 1e-5), f"{told}: these are not the weights that were learnt"
    return told


def _asked(scorer: str, request_id: str, user: int) -> str:
    """Asks for a page that nobody looks at; its name."""
    body = json.dumps({"user_id": user, "request_id": request_id}).encode()
    asked = urllib.request.Request(f"{scorer}/recommend", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60.0) as answer:
        return str(json.load(answer)["request_id"])


def _logits(p: Any) -> Any:
    with np.errstate(divide="ignore"):
        q = np.clip(p.astype(np.float64), 1e-12, 1 - 1e-12)
        return np.log(q) - np.log1p(-q)


def _learnt(settings: Settings, version: int, arithmetic: Any) -> ServingModel:
    """What was learnt up to a version: the newest snapshot at or before it, and the deltas behind."""
    store, bodies = ModelStore(settings.place("models"), writes=False), read_deltas(settings)
    base = next(note for note in store.snapshots() if note.version <= version)
    state = store.read(base)
    for number in range(base.version + 1, version + 1):
        body = bodies.get(Place(base.epoch, number))
        assert body is not None, f"delta {number} behind snapshot {base.version} is not on the topic"
        state = state.apply(unpack(body, state.dense))
    return ServingModel.of(settings.load_schema(), base.spec, split(state)[0], arithmetic=arithmetic)
