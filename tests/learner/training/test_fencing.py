"""Two learners on one store: the newer takes over, the older ends in a line and stays away while it works."""

from __future__ import annotations

import contextlib
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from learner.role import learnloop, service, topicoutput
from learner.role.learnloop import LearnPace
from learner.training import learner_claim
from learner.training.learner_claim import LearnerClaim
from learner.training.learner_versions import SnapshotFiles
from learner.training.publisher import Publisher
from millrace.basics.errors import FENCED_STATUS, FencedError, ServiceError, StoreError
from millrace.basics.store import Store
from millrace.commands.cli import cli, climodel
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.deltas import read_deltas
from millrace.processes.kafka import create_topics, make_producer, read_all, topic_ids, wait_for_broker
from millrace.processes.services import EmbeddedBroker
from millrace.processes.supervisor import Supervisor
from millrace.versions.decisions import Decided, HeldBack, LogPart
from millrace.versions.modellog import Assembler, Delta, Entry, encode_claim
from millrace.versions.modelstore import ModelStore
from millrace.versions.proof import prove
from millrace.versions.versioning import Claim, Place
from tests.scenes import learner_role
from tests.scenes.learner_role import Role, send, trained
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.waiting import LONG, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG), pytest.mark.usefixtures("short_stretches")]


broker, short_stretches = learner_role.broker, learner_role.short_stretches


@pytest.fixture
def settings(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Topics of its own for each test: what is on them decides who is the learner."""
    monkeypatch.setattr(Settings, "load_schema", lambda self: SCHEMA)
    monkeypatch.setattr(learnloop, "PACE", LearnPace(batch_ms=50, delta_seconds=0.1, dense_seconds=0.2))
    settings = Settings(
        kafka=broker,
        prefix=f"{tmp_path.name}.",
        data=str(tmp_path / "a"),
        store=str(tmp_path / "store"),
        partitions=2,
        snapshot_seconds=0.5,
        heldout_share=0.0,  # so that every row is learnt
        admin_port=0,
    )
    wait_for_broker(settings)
    create_topics(settings)
    return settings


def on_another_machine(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, data=settings.data + "-other")


@pytest.mark.slow
def test_the_newer_learner_takes_over_and_the_older_stays_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_claim, "HEARTBEAT_SECONDS", 2.0)
    monkeypatch.setattr(topicoutput, "HEARTBEAT_SECONDS", 0.2)
    older = Role(settings)
    until(lambda: trained(settings) == 0, "the first learner serves")
    send(settings, [make_samples(100, 0)])
    until(lambda: trained(settings) == 100, "it has learnt")
    newer = Role(on_another_machine(settings))
    until(lambda: not older.thread.is_alive() or not newer.thread.is_alive(), "one of them has ended")
    send(settings, [make_samples(100, 1)])
    assert isinstance(older.error, FencedError)
    assert "\n" not in str(older.error)
    assert "with epoch 2; run one learner" in str(older.error)
    mark = Path(settings.data, "learner", "fenced")
    assert mark.exists()
    until(lambda: trained(settings) == 200, "the newer one goes on from what the older one had learnt")

    # A supervisor that starts it again nevertheless does not fence the newer one.
    again = Role(settings)
    until(lambda: not again.thread.is_alive(), "it ends again")
    assert isinstance(again.error, FencedError)
    assert newer.thread.is_alive()

    # Nor does one that is stopped while it listens.
    stop = threading.Event()
    stop.set()
    service.run(settings, stop)
    assert mark.exists()
    assert newer.thread.is_alive()
    newer.end()
    note = ModelStore(settings.place("models"), writes=False).latest()
    assert note is not None
    assert note.epoch == 2

    # When nothing comes from the other one, it may.
    monkeypatch.setattr(learner_claim, "HEARTBEAT_SECONDS", 0.1)
    last = Role(settings)

    def root() -> int:
        note = ModelStore(settings.place("models"), writes=False).latest()
        return note.epoch if note else 0

    until(lambda: root() == 3, "the first one is the learner again")
    last.end()
    assert not mark.exists()


def test_of_two_claims_of_one_epoch_the_first_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's claim of the same epoch gets in between reading and claiming."""
    claim = Publisher.claim

    def beaten(self: Any, own: Claim) -> int:
        producer = make_producer(settings)
        producer.send(MODEL_DELTAS, encode_claim(Claim(own.epoch, "the faster one")))
        producer.flush()
        producer.close()
        return claim(self, own)

    monkeypatch.setattr(Publisher, "claim", beaten)
    role = Role(settings)
    until(lambda: not role.thread.is_alive(), "it ends")
    assert isinstance(role.error, FencedError)
    assert "the faster one" in str(role.error)
    assert ModelStore(settings.place("models"), writes=False).store.names() == []


def test_what_is_sent_after_another_has_taken_over_is_not_durable(settings: Settings, tmp_path: Path) -> None:
    """It lies on the topic, and nobody goes on from it: who was asked for something must not say that it is done."""

    def claimed(name: str, after: int = 0) -> tuple[LearnerClaim, Publisher]:
        producer = make_producer(settings, linger_ms=0)
        ending.callback(producer.close)
        claim, out = LearnerClaim(settings, name, tmp_path / name, after), Publisher(settings, producer, "")
        ending.callback(claim.close)
        assert claim.win(out, Place(0, -1), threading.Event())
        return claim, out

    first, second = (LogPart("one", [Decided(n, 0, HeldBack("person"))]) for n in (1, 2))
    with contextlib.ExitStack() as ending:
        older, out = claimed("older")
        out.decisions(older.epoch, "older", first)
        older.check_at(out.settled())
        newer, _ = claimed("newer")
        assert newer.decided == [first]
        out.decisions(older.epoch, "older", second)
        with pytest.raises(FencedError, match="learner 'newer' has taken over with epoch 2"):
            older.check_at(out.settled())
        assert (tmp_path / "older").exists(), "it stays away"
        assert claimed("newest")[0].decided == [first]
        assert claimed("with a snapshot of it", after=1)[0].decided == []


def test_a_fenced_role_ends_with_a_status_of_its_own_and_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fenced(_: list[str]) -> None:
        raise FencedError("learner 'x' has taken over", "stop it")

    monkeypatch.setattr(cli, "app", fenced)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == FENCED_STATUS
    assert capsys.readouterr().err == "millrace: learner 'x' has taken over; stop it\n"
    supervisor = Supervisor(tmp_path)
    program = f"import sys; print('millrace: x has taken over', flush=True); sys.exit({FENCED_STATUS})"
    supervisor.start("learn", {}, [sys.executable, "-S", "-c", program])

    said: list[str] = []

    def gave_way() -> bool:
        try:
            supervisor.poll()
        except ServiceError as error:
            said.append(str(error))
        return bool(said)

    until(gave_way, "the supervisor has noticed")
    assert "gave way to another: millrace: x has taken over" in said[0]
    supervisor.poll()
    assert supervisor.restarts == {"learn": 0}


@pytest.mark.slow
def test_old_messages_and_files_are_removed_and_the_newest_pair_can_be_proved(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_PREFIX", settings.prefix)  # for the command
    settings = msgspec.structs.replace(settings, keep_minutes=1e-6)  # no older version is kept to go back to
    role = Role(settings)
    until(lambda: trained(settings) == 0, "it serves")
    for number in range(6):
        send(settings, [make_samples(600, number)])
        until(partial(has_learnt, settings, 600 * (number + 1)), "a snapshot has it")
    role.end()
    store = ModelStore(settings.place("models"), writes=False)
    newest, before = store.snapshots()  # nothing goes back behind the newest; the other is for where it is damaged
    assert newest.log == before.log == topic_ids(settings)[MODEL_DELTAS] != ""
    offsets: list[int] = []
    read_all(settings, MODEL_DELTAS, lambda record: offsets.append(record.offset))
    assert offsets[0] == before.follows > 0
    used = {f.name for note in (newest, before) for f in note.files}
    acts = store.store.names("cuts-")  # how they were learnt
    assert len(acts) <= 3
    assert set(store.store.names()) == used | {n for n in store.store.names() if n.endswith(".manifest")} | set(acts)
    assert len(prove(store, read_deltas(settings)).proofs) == 1
    climodel.verify(settings.place("models"), kafka=settings.kafka)
    assert f"= snapshot {newest.version}: " in capsys.readouterr().out


def has_learnt(settings: Settings, rows: int) -> bool:
    return trained(settings) == rows


class FullDisk:
    """A store that takes nothing while ``full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.refused = False, 0
        put = Store.put

        def maybe(store: Store, name: str, head: Any, *body: Any) -> Any:
            if self.full:
                self.refused += 1
                raise StoreError("store cannot be written to (No space left on device)", "make room")
            return put(store, name, head, *body)

        monkeypatch.setattr(Store, "put", maybe)


def test_a_full_disk_costs_a_snapshot_and_in_the_end_the_role(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "it serves")
    disk.full = True
    with capture_logs() as lines:
        send(settings, [make_samples(100, 0)])
        until(lambda: disk.refused > 0, "a snapshot was refused")
        disk.full = False
        until(lambda: trained(settings) == 100, "the next one was taken")
    assert any("takes nothing" in line["event"] for line in lines)
    disk.full = True
    send(settings, [make_samples(100, 1)])
    until(lambda: not role.thread.is_alive(), "it ends when the disk stays full")
    assert isinstance(role.error, StoreError)
    assert "No space left" in str(role.error)


def test_learning_goes_on_while_a_snapshot_is_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands still in the midst of a snapshot. Deltas are published meanwhile, and all is in it at last."""
    held, go_on = threading.Event(), threading.Event()
    add = SnapshotFiles.add

    def slow(self: SnapshotFiles, part: Any) -> None:
        if threading.current_thread().name == "snapshots":
            held.set()
            go_on.wait()
        add(self, part)

    role = Role(settings)
    until(lambda: trained(settings) == 0, "it serves")
    monkeypatch.setattr(SnapshotFiles, "add", slow)  # not before: the learner rehearses with snapshots, too
    try:
        send(settings, [make_samples(100, 0)])
        until(held.is_set, "a snapshot is being written")
        send(settings, [make_samples(100, 1)])
        assembler, seen = Assembler(), list[Entry]()

        def published() -> int:
            seen.clear()
            read_all(settings, MODEL_DELTAS, lambda r: seen.extend(assembler.take(r.value)))
            return max((e.note.trained for e in seen if isinstance(e, Delta)), default=0)

        until(lambda: published() == 200, "a delta has what was learnt meanwhile")
        assert trained(settings) == 0
    finally:
        go_on.set()
    until(lambda: trained(settings) == 200, "the snapshot has it too")
    role.end()
    store = ModelStore(settings.place("models"), writes=False)
    assert prove(store, read_deltas(settings)).proofs


@pytest.mark.slow
def test_samples_of_another_log_are_read_from_the_beginning(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was emptied, the store was not: what is learnt is kept, repeats are recognised."""
    role = Role(settings)
    until(lambda: trained(settings) == 0, "it serves")
    send(settings, [make_samples(100, n) for n in range(3)])
    until(lambda: trained(settings) == 300, "it has learnt")
    role.end()
    with EmbeddedBroker(tmp_path / "empty") as broker:
        other = msgspec.structs.replace(settings, kafka=broker.address)
        wait_for_broker(other)
        create_topics(other)
        send(other, [make_samples(100, 2), make_samples(100, 3)])
        with capture_logs() as lines:
            role = Role(other)
            until(lambda: trained(other) == 400, "the new ones were learnt, the old ones not again")
            role.end()
    note = ModelStore(settings.place("models"), writes=False).latest()
    assert note is not None
    assert note.epoch == 2
    assert note.extra["counts"]["repeated"] == 100
    assert note.offset == 2
    assert sum("another log" in line["event"] for line in lines) == 1
