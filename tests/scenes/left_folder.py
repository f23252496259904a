"""What a small loop leaves when it ends: everything that outlives a process, in one folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import msgspec
import tomli_w
from kafka.record import MemoryRecords
from redis import Redis

from learner.gate.quarantine import Quarantine
from learner.gate.verdicts import GateRefusal
from millrace.basics.store import Store
from millrace.broker.log import Limits
from millrace.broker.topic_store import Topics
from millrace.commands.loop.monitor import fetch
from millrace.commands.up.started import Started
from millrace.contracts.events import key_of
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import load_schema
from millrace.contracts.settings import SECTIONS, Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, FEATURES_COCLICKS, PAGE_LOGS, SAMPLES
from millrace.processes.kafka import make_producer
from millrace.versions.decisions import (
    Adopted,
    Began,
    Decided,
    Decision,
    Discarded,
    HeldBack,
    Learnt,
    Passed,
    Promoted,
    Rebased,
    Refused,
    Released,
    RolledBack,
    Saved,
    Span,
    WentBack,
    encode_decisions,
)
from millrace.versions.modelstore import ModelStore
from millrace_client import Item, Millrace, Options, User
from scorer.catalog.index_checkpoint import manifests
from scorer.pagelog.spool import Spool
from stream.join.join import Policy
from tests.scenes.demo_process import PATIENT
from tests.scenes.waiting import PATIENCE, until

SCHEMA = """
name = "bakery"
crosses = [["user_id", "kind"]]
filters = ["kind"]
fields = [{name = "user_id", of = "user"}, {name = "town", of = "user"}, {name = "item_id", of = "item"},
          {name = "kind", of = "item"}, {name = "price", of = "item", kind = "numeric", transform = "log"},
          {name = "title", of = "item", kind = "text"}, {name = "look", of = "item", kind = "vector", size = 3},
          {name = "position", of = "context", bias = true}]
[windows]
lengths = ["1h", "1d"]
actions = ["exposure", "click"]
keys = [{columns = ["item_id"]}, {columns = ["user_id", "kind"]}]
[[outcome]]
name = "buy"
on = "click"
event = "purchase"
within = "1min"
"""
SMALL = {
    "MILLRACE_PARTITIONS": "1",
    "MILLRACE_MODEL_SPEC": '{"width": 2, "hidden": [4], "blocks": 1, "buckets": 2, "retrieval_width": 4}',
    "MILLRACE_CONTROL_SHARE": "0",
    "MILLRACE_HELDOUT_SHARE": "0",
    "MILLRACE_ARCHIVE_FEATURES": "true",
}
SOON = {
    "MILLRACE_ATTRIBUTION_MINUTES": "0.05",
    "MILLRACE_OBSERVATION_SECONDS": "1",
    "MILLRACE_LATENESS_MINUTES": "0.05",
    "MILLRACE_DISORDER_SECONDS": "0.5",
    "MILLRACE_IDLE_SECONDS": "1",
    "MILLRACE_SNAPSHOT_SECONDS": "2",
    "MILLRACE_ARCHIVE_SECONDS": "1",
    "MILLRACE_INDEX_SECONDS": "1",
}
GENEROUS = Policy(attribution_ms=300_000, disorder_ms=60_000, lateness_ms=7_200_000, ahead_ms=0)
"""To read what lies in the checkpoints."""
KEPT = ("broker", "models", "checkpoints", "index", "schemas", "archive", "schema.toml")


def visit(shop: Millrace, user: str) -> None:
    """A page, its exposure, two clicks and a purchase."""
    page = shop.recommend(user, size=6)
    assert shop.exposure(page)
    for place in (0, 2):
        shop.click(page, page.items[place])
    shop.purchase(page, page.items[2])
    shop.flush()
    assert not shop.refused


def goods(n: int) -> dict[str, Any]:
    """The attributes of an item."""
    kind = "bread" if n % 2 else "cake"
    return {"kind": kind, "price": n, "title": f"Fresh {kind} of oven {n}", "look": [n / 8, 0.5, -n]}


def kept(data: Path) -> int:
    """Samples that the newest snapshot has learnt from."""
    note = ModelStore(str(data / "models"), writes=False).latest()
    return 0 if note is None else note.trained


def run(folder: Path) -> dict[str, dict[bytes, bytes]]:
    """The loop. Leaves its data folder, and returns the users in Redis."""
    (folder / "bakery.toml").write_text(SCHEMA)
    data = folder / "data"
    with ExitStack() as stack:
        env = PATIENT | SMALL | SOON
        loop = stack.enter_context(Started(data, "--schema", str(folder / "bakery.toml"), env=env, cwd=folder))
        where = loop.where(PATIENCE)
        settings = Settings(kafka=where["kafka"], partitions=1)
        options = Options(page_s=PATIENCE, patience_s=PATIENCE)
        shop = stack.enter_context(Millrace(where["intake"], where["scorer"], options=options))
        shop.put_items([*(Item(f"b{n}", goods(n)) for n in range(8)), Item("b7", gone=True)])
        shop.put_users([User("anna", {"town": "Ulm"}), User("ben", {"town": "Ulm"}), User("gone")])
        shop.delete_user("gone")
        with closing(make_producer(settings)) as producer:
            producer.send(EVENTS, b"no event", key_of("anna")).get(PATIENCE)
        until(lambda: "ready: " in loop.text(), "pages can be had", more=loop.text)
        for _ in range(4):
            visit(shop, "anna")
            visit(shop, "ben")
        trained = "millrace_samples_trained_total 48.0"
        until(lambda: trained in fetch(where["metrics"]["learn"], PATIENCE), "all is learnt", more=loop.text)
        own = {"Authorization": f"Bearer {(data / 'admin.token').read_text().strip()}"}
        for command in ("hold", "promote"):
            with urlopen(Request(f"{where['admin']}/model/{command}", b"{}", own), timeout=PATIENCE):
                pass
        until(lambda: len(list((data / "archive" / "features").glob("*.parquet"))) > 0, "rows are archived", PATIENCE)
        until(lambda: any(manifests(Store(data / "index", writes=False), lambda *_: None)), "an index is kept")
        for n in range(3):  # a snapshot each, with the deltas that lead there from the one before
            visit(shop, "anna")
            until(lambda n=n: kept(data) >= 48 + 6 * (n + 1), "a snapshot has it", more=loop.text)  # type: ignore[misc]
        with Redis.from_url(f"redis://{where['redis']}") as redis:
            until(lambda: len(redis.hgetall("user:anna")) >= 4, "the user's counts are there")
            users = {key.decode(): redis.hgetall(key) for key in redis.scan_iter("user:*")}
        shop.close()
        assert loop.stop() == 0, loop.text()
    return users


def messages(folder: Path, now_ms: int) -> dict[str, list[bytes | None]]:
    """The values of all messages by topic, from the embedded broker's files."""
    topics, found = Topics(folder, "", Limits(), now_ms), {}
    try:
        for topic in topics:
            values = found[topic.name] = list[bytes | None]()
            for log in topic.logs:
                offset = log.start
                while raw := log.fetch(offset, 1):
                    records = MemoryRecords(raw)
                    while (batch := records.next_batch()) is not None:
                        for record in batch:
                            values.append(None if record.value is None else bytes(record.value))
                            offset = record.offset + 1
    finally:
        topics.close()
    return found


SPANS = (Span(3, 0, 5), Span(4, 2, 3))
DECISIONS: tuple[Decision, ...] = (
    Began(3),
    Learnt(SPANS, 8, "00000003-labels", True),
    Passed(),
    Saved(True),
    Refused(SPANS, "labels", 2.5, 1.5, "labels", 7),
    WentBack(6),
    HeldBack("a person"),
    Promoted("a person"),
    Rebased("a person"),
    Released(("00000003-labels",), "a person"),
    Discarded(("00000003-labels",), "a person"),
    RolledBack(2, 41, "gate"),
    Adopted(3, 17, "shadow", "a person"),
)
"""Each kind of decision, with every field set."""


def rest(folder: Path) -> None:
    """What a short run does not leave: each decision, refused rows, pages that Kafka does not have, settings."""
    decided = [Decided(n, 1000 + n, what, 10 * n) for n, what in enumerate(DECISIONS)]
    (folder / "decisions").write_bytes(encode_decisions("a log", decided))
    found = messages(folder / "broker" / "topics", now_ms=0)
    batch = SampleBatch.from_bytes(found[SAMPLES][0])
    quarantine = Quarantine(Store(folder / "quarantine"), load_schema(folder / "schema.toml").id)
    quarantine.samples_log = "a topic"
    quarantine.keep(7, GateRefusal("labels", 2.5, 1.5, "labels"), [Span(3, 0, len(batch))], (1, 2), 3)
    quarantine.write_list()
    quarantine.copy(quarantine.entries()[-1].name, batch)
    (folder / "quarantine.state").write_bytes(quarantine.snapshot())
    spool = Spool(folder / "spool", 1 << 30, lambda *_: None)
    for raw in found[PAGE_LOGS][:2]:
        assert raw is not None
        spool.append(key_of(decode_page_log(raw).user_id), raw, len(decode_page_log(raw).items))
    spool.close()
    settings = msgspec.to_builtins(Settings())
    sections = {section: {name: settings[name] for name in names} for section, names in SECTIONS.items()}
    (folder / "millrace.toml").write_text(tomli_w.dumps(sections))
    assert found[DEAD_LETTERS]
    assert found[FEATURES_COCLICKS]


def leave(folder: Path) -> Path:
    """Runs the loop in ``folder``, and returns a folder of all that outlives it."""
    users, left = run(folder), folder / "left"
    left.mkdir()
    (left / "redis").write_bytes(msgspec.msgpack.encode(users))
    for kept in KEPT:
        source = folder / "data" / kept
        (shutil.copytree if source.is_dir() else shutil.copy)(source, left / kept)
    rest(left)
    return left
