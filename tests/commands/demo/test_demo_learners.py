"""Two learners with two arms, in a whole loop: whose model made which pages, and who learnt from them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from learner.ranker.interfaces import Learning
from learner.role.model_factory import model_of
from millrace.contracts.events import PageLog
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import FOLLOW_UP, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import PAGE_LOGS, SAMPLES
from millrace.evidence.user_arms import ArmDraw
from millrace.processes.kafka import read_all
from millrace.processes.services import EmbeddedBroker
from millrace.versions.modelstore import Announcement, ModelStore
from millrace.windows.pagewide import late_columns
from tests.scenes.demo_process import DemoProcess, demo_process
from tests.scenes.waiting import LONG, PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(LONG)]

ENV = {
    "MILLRACE_LEARNERS": '{"challenger": {"model": "logistic"}}',
    "MILLRACE_ARMS": '{"B": {"kind": "model", "learner": "challenger", "share": 0.45}}',
    "MILLRACE_LEARNS_FROM": "own",
    "MILLRACE_SNAPSHOT_SECONDS": "2",
    "MILLRACE_GATE": "off",  # so that snapshots come often
}
OWN_ARM = {"": "model", "challenger": "B"}
SCHEMA = shop_schema()


def test_two_learners_make_the_pages_of_their_arms_and_learn_from_those_alone(tmp_path: Path) -> None:
    with demo_process(tmp_path, "--seed", "3", "--page-port", "0", env=ENV) as demo:
        demo.until_learning(2000)
        demo.until(lambda: says(demo, "learn-challenger") >= 2000, "the challenger learns as well")
        assert answered(tmp_path) == {"model", "B"}
        killed = demo.role("learn-challenger")["pid"]
        os.kill(killed, signal.SIGKILL)
        assert answered(tmp_path) == {"model", "B"}, "its newest version is served on"
        before = says(demo, "learn")
        demo.until(lambda: demo.role("learn-challenger")["restarts"] == 1, "it is started again")
        demo.until(lambda: demo.role("learn-challenger")["state"] == "running", "it is there again")
        demo.until(lambda: says(demo, "learn") > before + 1000, "the first one learns on")
        assert demo.end(signal.SIGINT) == 0, demo.text()
    assert "every exposure is accounted for" in demo.text()

    settings = load_settings({"data": str(tmp_path / "data")}, ENV)
    with EmbeddedBroker(tmp_path / "data" / "broker") as broker:
        read = load_settings({"data": settings.data, "kafka": broker.address}, ENV)
        pages = {page.request_id: page for page in logged(read)}
        samples = labelled(read)
    arms = Counter(page.arm_name or page.arm for page in pages.values())
    assert min(arms[name] for name in ("model", "B", "control")) > 20
    assert sum(arms.values()) == sum(arms[name] for name in ("model", "B", "control"))

    draw = ArmDraw(settings.control_share, settings.arms)
    assert all(draw.of(page.user_id) == (page.arm_name or page.arm) for page in pages.values())
    newest = {name: learnt(settings, name) for name in OWN_ARM}
    assert [newest[name].spec["model"] for name in OWN_ARM] == ["wide_resnet", "logistic"]
    for name, note in newest.items():
        # Each row that it has read is learnt, or another arm's.
        read_up = [arm for offset, arm in rows(samples, pages) if offset < (note.offset or 0)]
        counts = Counter(note.extra["counts"])
        own = sum(arm == OWN_ARM[name] for arm in read_up)
        assert counts["trained"] + counts["skipped"] == own > 1000, counts
        assert counts["others"] == len(read_up) - own
        made_by_it(settings, name, [page for page in pages.values() if (page.arm_name or page.arm) == OWN_ARM[name]])


def says(demo: DemoProcess, role: str) -> int:
    """How many samples a learner says that it has learnt from."""
    found = re.match(r"([\d,]+) trained", demo.role(role)["says"])
    return int(found[1].replace(",", "")) if found else 0


def answered(folder: Path) -> set[str]:
    """Arms of the scorer's answers to some users."""
    (url,) = set(re.findall(r"url=(http\S+) workers=", (folder / "data" / "logs" / "serve.log").read_text()))
    host = urlsplit(url).netloc
    found = set()
    for user in range(60):
        connection = HTTPConnection(host, timeout=PATIENCE)
        connection.request("POST", "/recommend", json.dumps({"user_id": user, "size": 1}))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["model_version"] >= 0, answer
        found.add(answer["arm"])
    return found - {"control"}


def logged(settings: Settings) -> Iterator[PageLog]:
    found: list[PageLog] = []
    read_all(settings, PAGE_LOGS, lambda record: found.append(decode_page_log(record.value)))
    return iter(found)


def labelled(settings: Settings) -> list[tuple[int, SampleBatch]]:
    """Samples by offset."""
    found: list[tuple[int, SampleBatch]] = []
    read_all(settings, SAMPLES, lambda r: found.append((r.offset, SampleBatch.from_bytes(r.value))))
    return found


def rows(samples: list[tuple[int, SampleBatch]], pages: dict[str, PageLog]) -> Iterator[tuple[int, str]]:
    """Where each row lies, and its arm as the page log has it. A sample that came twice counts once."""
    seen = set()
    for offset, batch in samples:
        for (request, position), kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            if kind != FOLLOW_UP and (request, position, kind) not in seen:
                seen.add((request, position, kind))
                yield offset, pages[request].arm_name or pages[request].arm


def learnt(settings: Settings, name: str) -> Announcement:
    note = ModelStore(settings.of_learner(name).place("models"), writes=False).latest()
    assert note is not None
    return note


def made_by_it(settings: Settings, name: str, pages: list[PageLog]) -> None:
    """Pages of versions that are still in the store have the scores that these give, and not the other learner's."""
    store = ModelStore(settings.of_learner(name).place("models"), writes=False)
    models = {note.version: whole(store, note) for note in store.snapshots()}
    other_name = next(other for other in OWN_ARM if other != name)
    others = ModelStore(settings.of_learner(other_name).place("models"), writes=False)
    other = whole(others, learnt(settings, other_name))
    there = [page for page in pages if page.model_version in models]
    assert there, sorted(models)
    for page in there:
        cat, num, scores = features(page)
        own = np.abs(models[page.model_version].score(cat, num) - scores).max()
        assert own < 0.03
        assert own < np.abs(other.score(cat, num) - scores).max()


def whole(store: ModelStore, note: Announcement) -> Learning:
    model = model_of(SCHEMA, note.spec, 0)
    model.resume(store.read_whole(note))
    return model


def features(page: PageLog) -> tuple[Any, Any, Any]:
    """As while the page was ranked."""
    layout, n = SCHEMA.layout, len(page.items)
    cat = np.frombuffer(page.cat, np.int64).reshape(n, layout.F).copy()
    cat[:, [at for at, name in enumerate(layout.cat_names) if name in late_columns(SCHEMA)]] = 0
    num = np.frombuffer(page.num, np.float32).reshape(n, layout.N)
    return cat, num, np.frombuffer(page.scores, np.float32)
