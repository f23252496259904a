"""A page as commands: its fenced blocks in order, run as a reader would, with other ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.processes.services import free_port
from tests.architecture import ROOT
from tests.scenes.demo_process import PATIENT
from tests.scenes.waiting import LONG, PATIENCE, until

PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "client", "deploy", "examples") for page in (ROOT / folder).rglob("*.md")),
]
"""All pages that a reader may open."""

PORTS = {"scorer": 8700, "page": 8710, "intake": 8720}
"""The ports that pages have, by their names in ``up.json``."""
READY = "is at http|live page: http|ready to receive web requests"
"""What the programs of the pages say when they work; `up` has its addresses then."""
SHOP = "http://127.0.0.1:8000"
VENV = Path(sys.executable).parent.parent
"""In place of what ``make`` would install into a clone."""


@dataclass(frozen=True, slots=True)
class Block:
    """Commands between two fences. ``where``: empty, ``install``, or ``terminal=N`` or ``demo`` for what runs on
    meanwhile."""

    text: str
    where: str


def blocks(page: str) -> list[Block]:
    """The commands of a page, in order."""
    return [Block(text, where.strip()) for where, text in re.findall(r"^```bash(.*)\n((?:.*\n)*?)```$", page, re.M)]


def answers(text: str) -> list[dict[str, Any]]:
    """The JSON objects that a block printed, one after the other, among other text."""
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        value, at = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
    return found


@dataclass
class Walker:
    """Somebody who does what the page says.

    Args:
        home: an empty folder, in place of the home directory.
        cwd: where the commands run.
        data: the data folder of the loop that they start.
    """

    home: Path
    cwd: Path
    data: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    """What each block printed; of one that runs on, nothing."""
    shop_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)

    @property
    def where(self) -> dict[str, str]:
        """Addresses of the loop that runs."""
        found: dict[str, str] = json.loads((self.data / "up.json").read_text())
        return found

    @property
    def shop(self) -> str:
        return SHOP.replace("8000", str(self.shop_port))

    def do(self, block: Block) -> None:
        """One block. It fails where a command of it does."""
        if block.where == "install":
            return
        if block.where.startswith(("terminal=", "demo")):
            self.start(block)
            return
        log = self.home / f"block-{len(self.printed)}.out"
        with log.open("wb") as out:
            process = subprocess.Popen(self._shell(block.text), **self._as(), stdout=out, stderr=subprocess.STDOUT)
            try:
                status = process.wait(LONG)  # a block may be several commands, each of which compiles and learns
            finally:
                _end(process, signal.SIGKILL)
        self.printed.append(log.read_text())
        assert status == 0, f"{block.text}\nended with {status}:\n{self.printed[-1]}\n{self.said()}"

    def start(self, block: Block, ready: str = READY) -> None:
        """What a terminal of its own runs, until it says that it is ``ready``; a second time it is ended by Ctrl-C
        before."""
        if block.where in self.running:
            self.stop(block.where)
        own = self.home / f"{block.where}.out"
        with own.open("ab") as out:
            process = subprocess.Popen(self._shell(block.text), **self._as(), stdout=out, stderr=out)
        self.running[block.where] = process

        def says() -> bool:
            assert process.poll() is None, f"{block.text} ended:\n{self.said()}"
            if "millrace up" in block.text:
                return (self.data / "up.json").exists()
            return re.search(ready, own.read_text(errors="replace")) is not None

        until(says, block.text, every=0.1, more=self.said)

    def stop(self, name: str) -> None:
        """Ctrl-C."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)

    def kill(self) -> None:
        for process in self.running.values():
            _end(process, signal.SIGTERM)
        self.running.clear()

    def said(self) -> str:
        """What the terminals show."""
        return "\n".join(
            path.read_text(errors="replace")[-3000:] for path in self.home.glob("*.out") if path.stem in self.running
        )

    def _shell(self, text: str) -> list[str]:
        """The commands, with what the page says that this test changes."""
        changed = text.replace("millrace up", "exec millrace up --free-ports").replace("--seconds 120", "--seconds 15")
        changed = changed.replace("shop-app/app.py", f"shop-app/app.py --port {self.shop_port}")
        changed = changed.replace(
            "git clone ADDRESS millrace", f"git clone -q {ROOT} millrace; ln -s {VENV} millrace/.venv"
        )
        changed = changed.replace("make -C", "exec make --old-file=.venv/.loop -C")
        listen = f"--web.listen-address=127.0.0.1:{self.prometheus_port}"
        changed = changed.replace("prometheus --config", f"exec prometheus {listen} --config")
        if (self.data / "up.json").exists():
            for name, port in PORTS.items():
                here = self.where[name].rstrip("/")
                changed = re.sub(rf"(http://127\.0\.0\.1|\blocalhost):{port}", here, changed)
        # Values go from block to block, as in a terminal that stays open.
        kept = self.home / "kept"
        save = f"declare -p | grep -E '^declare -- [a-z]+=' > {kept} || true"
        return ["bash", "-c", f"set -e; [ ! -f {kept} ] || . {kept}\n{changed}\n{save}"]

    def _as(self) -> dict[str, Any]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**clean, **PATIENT, "HOME": str(self.home), "PATH": path}
        if (self.data / "up.json").exists():
            env |= {"MILLRACE_INTAKE": self.where["intake"], "MILLRACE_SCORER": self.where["scorer"]}
        return {"cwd": self.cwd, "env": env, "start_new_session": True}


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    """Ends a process and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, number)
        process.wait(PATIENCE)
