"""A demo as a process of its own, for tests: what it runs, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from millrace.commands.loop.monitor import fetch
from tests.scenes.waiting import PATIENCE, until

FETCH_SECONDS = 60.0
LOOK_SECONDS = 0.1
"""Between two looks at a demo: each reads the whole process table, and most ask the live page."""
PATIENT = {"MILLRACE_REDIS_SECONDS": str(PATIENCE)}
"""On a busy machine a Redis that is there may take longer to answer than a shopper would wait: that is no fault."""
MEASURED = ("auc", "oracle_auc", "log_loss", "ctr_model", "ctr_control", "click_to_served_p50_ms")


def post(url: str, body: object) -> dict[str, Any]:
    """What a role answers, sent JSON."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def born(pid: int) -> str:
    """When a process began, or "" when it is gone: tells a process from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def descendants(root: int) -> dict[int, str]:
    """Every process below ``root`` and when it began."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, line = {}, [root]
    while line:
        for child in parents.get(line.pop(), []):
            found[child] = born(child)
            line.append(child)
    return found


class DemoProcess:
    """A running ``millrace demo``."""

    def __init__(self, folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.report_path = folder / "report.json"
        self.output = folder / "demo.out"
        self.seen: dict[int, str] = {}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "millrace", "demo"),
                    *("--data", str(folder / "data"), "--report", str(self.report_path), *flags),
                ],
                env={**clean, **PATIENT, **(env or {})},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition; fails at once when the demo ends before it holds."""

        def looked() -> bool:
            self.seen |= descendants(self.process.pid)
            assert self.process.poll() is None, f"the demo ended before {what}:\n{self.text()}"
            return condition()

        until(looked, what, every=LOOK_SECONDS, more=self.text)

    @property
    def url(self) -> str:
        """The live page's address, once it was said."""
        said: list[str] = []

        def named() -> bool:
            said[:] = re.findall(r"live page: (http\S+)\s", self.text())  # whole: something follows
            return bool(said)

        self.until(named, "it names its page")
        return said[0]

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(fetch(f"{self.url}state.json", FETCH_SECONDS))
        return state

    def role(self, name: str) -> dict[str, Any]:
        return next(r for r in self.state()["roles"] if r["name"] == name)

    def environment(self, name: str) -> dict[str, str]:
        """A role's environment, once it is its own: the event clock is what only the demo's children are given."""
        found: dict[str, str] = {}

        def own() -> bool:
            with suppress(OSError):
                raw = Path(f"/proc/{self.role(name)['pid']}/environ").read_text()
                found.update(dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry))
            return "MILLRACE_CLOCK" in found

        self.until(own, f"the {name} has an environment of its own")
        return found

    def kill(self, name: str) -> None:
        """Kills a role, and waits until it is back."""
        victim = self.role(name)["pid"]
        os.kill(victim, signal.SIGKILL)

        def back() -> bool:
            role = self.role(name)
            return bool(role["state"] == "running" and role["pid"] != victim)

        self.until(back, f"the {name} is back")

    def until_learning(self, rows: int = 200) -> None:
        """Until shoppers come, samples are learnt from, and whatever a report must tell has been measured."""

        def learning() -> bool:
            figures = self.state()["figures"]
            enough = all((figures.get(name) or 0) > rows for name in ("exposures", "trained"))
            return enough and all(figures.get(name) is not None for name in MEASURED)

        self.until(learning, "shoppers come and samples are learnt from")

    def end(self, number: int) -> int:
        """Sends a signal and returns the exit status."""
        self.seen |= descendants(self.process.pid)
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""

        def ended() -> bool:
            self.seen |= descendants(self.process.pid)
            return self.process.poll() is not None

        until(ended, "it ends", 2 * PATIENCE, every=LOOK_SECONDS, more=self.text)
        assert self.process.returncode is not None
        return self.process.returncode

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.report_path.read_text())
        return report

    def left_behind(self) -> list[int]:
        """Processes that it started and that are still there."""
        return [pid for pid, when in self.seen.items() if when and born(pid) == when]

    def until_nothing_left(self) -> None:
        until(lambda: not self.left_behind(), "nothing is left behind", more=lambda: str(self.left_behind()))


@contextmanager
def demo_process(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[DemoProcess]:
    """Runs a demo; whatever the test does, it is gone afterwards."""
    demo = DemoProcess(folder, *flags, env=env)
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.wait()


def is_page(url: str) -> bool:
    """Whether the live page and everything it loads are served from there."""
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    page = fetch(url, FETCH_SECONDS)
    linked = [piece.split('"')[1] for piece in page.replace("src=", "href=").split("href=")[1:]]
    own = [name for name in linked if not name.startswith("data:")]
    assert not [name for name in own if "//" in name], "the page loads something from elsewhere"
    return len(own) == 3 and all(fetch(url + name, FETCH_SECONDS) for name in own)
