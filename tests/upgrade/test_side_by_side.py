"""A loop of the version before is upgraded role by role in the order of docs/how-to/upgrade.md, under traffic, and goes
back: no request fails, and each exposure gets its label once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections import Counter
from contextlib import ExitStack
from io import BytesIO
from itertools import count
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import pytest

from millrace.commands.loop.monitor import fetch
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, SAMPLES
from millrace.processes.kafka import create_topics, read_all
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.spawn import spawn, stop
from millrace.processes.supervisor import PYTHON, role_argv
from tests.architecture import ROOT
from tests.scenes.demo_process import PATIENT, post
from tests.scenes.left_folder import SCHEMA, SMALL
from tests.scenes.waiting import LONG, PATIENCE, until

OLD = "b76cd57cafad65fe1629cca6d8df0bb0a3a04b13"
"""The commit of version 0.3.0. With the next release it becomes the commit of that one."""
ORDER = ("archive", "serve", "learn", "stream", "intake")
BESIDE = {"serve": "port", "intake": "intake_port"}
"""Roles that answer requests: the new one is ready before the old one stops. And the setting of its port."""
SHOPPERS, PAGE, CLICKED = 40, 6, (0, 2)
LOOP = {
    **PATIENT,
    **SMALL,
    "MILLRACE_LABEL_POLICY": "wait",
    "MILLRACE_ATTRIBUTION_MINUTES": "0.05",
    "MILLRACE_DISORDER_SECONDS": "10",
    "MILLRACE_IDLE_SECONDS": "1",
    "MILLRACE_SNAPSHOT_SECONDS": "2",
    "MILLRACE_ARCHIVE_SECONDS": "2",
    "MILLRACE_TEACH_LIMITS": "{}",
}


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, f"{done.stderr.decode()}: the clone needs the whole history"
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.py"):
        take_compiled(path, ROOT / path.relative_to(folder))
    return folder


def take_compiled(path: Path, ours: Path) -> None:
    """What is compiled of our file serves for one with the same content and time: this saves minutes."""
    if ours.exists() and ours.read_bytes() == path.read_bytes():
        shutil.copystat(ours, path)
        for found in (ours.parent / "__pycache__").glob(f"{ours.stem}.*.nb?"):
            (path.parent / "__pycache__").mkdir(exist_ok=True)
            shutil.copy2(found, path.parent / "__pycache__")


class Traffic(threading.Thread):
    """Shoppers who come one after another, look at a page and click twice. It ends with the first error."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pages = 0
        self.error: Exception | None = None
        self._doors: dict[str, str] = {}
        self._visit = threading.Lock()
        self._end = threading.Event()

    def switch(self, name: str, port: int) -> None:
        """From now on requests go there. None is under way to the former address when this returns."""
        with self._visit:
            self._doors[name] = f"http://127.0.0.1:{port}"

    def run(self) -> None:
        try:
            while not self._end.wait(0.05):
                with self._visit:
                    self._look(f"user-{self.pages % SHOPPERS}", f"visit-{self.pages}")
                self.pages += 1
        except Exception as error:
            self.error = error

    def _look(self, user: str, name: str) -> None:
        page = post(f"{self._doors['serve']}/recommend", {"user_id": user, "size": PAGE})
        items = [item["item_id"] for item in page["items"]]
        assert len(items) == PAGE, page
        of = {"request_id": page["request_id"], "user_id": user}
        clicks = [
            {**of, "type": "click", "event_id": f"{name}-{at}", "item_id": items[at], "position": at} for at in CLICKED
        ]
        exposure = {**of, "type": "exposure", "event_id": name, "items": items}
        taken = post(f"{self._doors['intake']}/events", [exposure, *clicks])
        assert taken["kept"] == 1 + len(CLICKED), taken

    def goes_on(self, pages: int) -> None:
        """Waits for so many more pages."""
        wanted = self.pages + pages

        def seen() -> bool:
            if self.error is not None:
                raise self.error
            return self.pages >= wanted

        until(seen, "pages are answered", every=0.1)

    def end(self) -> None:
        self._end.set()
        self.join(PATIENCE)
        if self.error is not None:
            raise self.error


class Role(NamedTuple):
    """A process. ``port``: where it answers requests, if it does; ``metrics``: where its figures are."""

    child: Popen[bytes]
    port: int
    metrics: str
    log: Path

    def until_ready(self) -> None:
        """Waits until it does its work: for a scorer, until it makes pages."""

        def ready() -> bool:
            assert self.child.poll() is None, self.log.read_text()
            try:
                return re.search(r"^millrace_ready 1\.0$", fetch(self.metrics, PATIENCE), re.MULTILINE) is not None
            except OSError:
                return False

        until(ready, f"{self.log.stem} does its work", every=0.1, more=self.log.read_text)


class Roles:
    """The processes of a loop. ``trees``: the sources by version."""

    def __init__(self, folder: Path, trees: dict[str, Path], settings: dict[str, str], ending: ExitStack) -> None:
        self.folder, self.trees, self.settings, self._ending = folder, trees, settings, ending
        self.running: dict[str, Role] = {}
        self._numbers = count()

    def begin(self, name: str, version: str) -> Role:
        port, metrics, admin = free_port(), free_port(), free_port()
        log = self.folder / f"{name}-{next(self._numbers)}-{version}.log"
        ports = {BESIDE.get(name, "port"): port, "metrics_port": metrics, "admin_port": admin}
        own = {f"MILLRACE_{setting.upper()}": str(value) for setting, value in ports.items()}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MILLRACE_")}
        source = {"PYTHONPATH": str(self.trees[version]), "OMP_NUM_THREADS": "1"}
        child = spawn(role_argv(name), clean | source | self.settings | own, log, cwd=self.folder)
        self._ending.callback(stop, child)
        return Role(child, port, f"http://127.0.0.1:{metrics}/metrics", log)

    def replace(self, name: str, version: str, traffic: Traffic) -> None:
        """Another version takes a role over."""
        old = self.running[name]
        if name not in BESIDE:
            assert stop(old.child, PATIENCE) == 0, old.log.read_text()
        new = self.running[name] = self.begin(name, version)
        new.until_ready()
        if name in BESIDE:
            traffic.switch(name, new.port)
            assert stop(old.child, PATIENCE) == 0, old.log.read_text()


def trained(port: int) -> int:
    """Samples that the model which serves has learnt from."""
    return int(json.loads(fetch(f"http://127.0.0.1:{port}/model", PATIENCE))["trained"])


def labels(settings: Settings) -> Counter[tuple[str, int, bool]]:
    """How often each exposure has a label: by request, position, and whether it was clicked."""
    found: Counter[tuple[str, int, bool]] = Counter()

    def take(record: Any) -> None:
        batch = SampleBatch.from_bytes(record.value).labelled
        clicked = [label > 0 for label in batch.label.tolist()]
        found.update((*identity, click) for identity, click in zip(batch.ids(), clicked, strict=True))

    read_all(settings, SAMPLES, take)
    return found


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no clone: there is no earlier version here")
def test_a_loop_is_upgraded_under_traffic_and_goes_back(tmp_path: Path) -> None:
    trees = {"old": checkout(OLD, tmp_path / "old"), "new": ROOT}
    said = subprocess.run(
        [*PYTHON[:-1], "-c", "import millrace; print(millrace.__file__)"],
        env={**os.environ, "PYTHONPATH": str(trees["old"])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(said.stdout.strip()).is_relative_to(trees["old"])
    (tmp_path / "bakery.toml").write_text(SCHEMA)
    with ExitStack() as ending:
        kafka = ending.enter_context(EmbeddedBroker(tmp_path / "broker")).address
        redis = ending.enter_context(EmbeddedRedis(tmp_path / "redis")).address
        settings = Settings(kafka=kafka, redis=redis, partitions=1)
        create_topics(settings)
        own = {"KAFKA": kafka, "REDIS": redis, "DATA": str(tmp_path / "data"), "SCHEMA": str(tmp_path / "bakery.toml")}
        roles = Roles(tmp_path, trees, LOOP | {f"MILLRACE_{name}": value for name, value in own.items()}, ending)
        traffic = Traffic()

        def learnt() -> int:
            return trained(roles.running["serve"].port)

        roles.running.update({name: roles.begin(name, "old") for name in ORDER})
        for name in ("intake", "stream", "learn", "archive"):
            roles.running[name].until_ready()
        for name in BESIDE:
            traffic.switch(name, roles.running[name].port)
        items = [{"item_id": f"b{n}", "attributes": {"kind": "bread" if n % 2 else "cake"}} for n in range(PAGE + 1)]
        assert post(f"http://127.0.0.1:{roles.running['intake'].port}/items", items)["kept"] == len(items)
        roles.running["serve"].until_ready()
        traffic.start()
        traffic.goes_on(20)
        for version, order in (("new", ORDER), ("old", ORDER[::-1])):
            for name in order:
                before = learnt()
                roles.replace(name, version, traffic)
                traffic.goes_on(20)
                until(
                    lambda before=before: learnt() > before,  # type: ignore[misc]
                    f"what is learnt serves after {name} is {version}",
                    every=0.2,
                )
        traffic.end()
        exposures = traffic.pages * PAGE
        until(
            lambda: learnt() >= exposures,
            "all is learnt and serves",
            every=0.2,
            more=lambda: f"{learnt()} of {exposures}",
        )
        assert learnt() == exposures
        found = labels(settings)
        assert len(found) == found.total() == exposures
        assert len({request for request, _, _ in found}) == traffic.pages
        assert Counter(position for _, position, clicked in found if clicked) == dict.fromkeys(CLICKED, traffic.pages)
        dead: list[Any] = []
        read_all(settings, DEAD_LETTERS, dead.append)
        assert dead == []
