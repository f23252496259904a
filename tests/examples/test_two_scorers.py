"""The example of two scorer machines, run as its page says: lists go on at the other scorer, and one may end.

Without HAProxy the two requests of the page go to one scorer each, as its balancer would send them."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millrace.processes.services import free_port
from tests.architecture import ROOT
from tests.docs.walk import Block, Walker, answers, blocks
from tests.scenes.waiting import LONG, until

EXAMPLE = ROOT / "examples" / "two-scorers"
HAPROXY = shutil.which("haproxy")


@pytest.fixture
def walker(tmp_path: Path) -> Iterator[Walker]:
    folder = tmp_path / "checkout"
    folder.mkdir()
    found = Walker(tmp_path, cwd=folder, data=folder / "one")
    yield found
    found.kill()


def ask(port: int, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/recommend", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def scored(page: dict[str, Any]) -> list[tuple[str, float]]:
    return [(item["item_id"], item["score"]) for item in page["items"]]


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_a_list_goes_on_at_the_other_scorer_and_one_may_end(walker: Walker) -> None:
    up, second, balancer, calls = blocks((EXAMPLE / "README.md").read_text())
    shutil.copytree(EXAMPLE, walker.cwd / "examples" / "two-scorers")
    (walker.cwd / "examples" / "shop-app").symlink_to(ROOT / "examples" / "shop-app")
    walker.do(up)
    one, two, front = int(walker.where["scorer"].rsplit(":", 1)[1].strip("/")), free_port(), free_port()
    here = {"8700": str(one), "8800": str(two), "8600": str(front)}
    here |= {f"127.0.0.1:{port}": walker.where[name] for port, name in (("8730", "kafka"), ("8740", "redis"))}

    def moved(text: str) -> str:
        for port, mine in here.items():
            text = text.replace(port, mine)
        return text

    config = walker.cwd / "examples" / "two-scorers" / "haproxy.cfg"
    config.write_text(moved(config.read_text()))
    for block in (second, balancer)[: 2 if HAPROXY else 1]:
        changed = block.text.replace("millrace run", "exec millrace run").replace("haproxy -db", "exec haproxy -db")
        walker.start(replace(block, text=moved(changed)), ready="")
    text = calls.text if HAPROXY else calls.text.replace("8600", "8700", 1).replace("8600", "8800", 1)
    walker.do(Block(moved(text), calls.where))

    first, rest = answers(walker.printed[-1])[-2:]
    assert sorted(item["item_id"] for item in (*first["items"], *rest["items"])) == list("abcdef")
    assert (first["offset"], rest["offset"]) == (0, 3)
    if HAPROXY:
        before = requests(one), requests(two)
        page = ask(front, user_id="bob", size=3, list=6)
        ask(front, user_id="bob", size=3, cursor=page["cursor"])
        until(
            lambda: (requests(one), requests(two)) == (before[0] + 1, before[1] + 1), "each was asked once", every=0.2
        )

    at_ms = time.time_ns() // 1_000_000

    def same() -> bool:
        pages = [ask(port, user_id="ann", size=6, ts_ms=at_ms) for port in (one, two)]
        return pages[0]["model_version"] == pages[1]["model_version"] and scored(pages[0]) == scored(pages[1])

    until(same, "both answer alike to the bit", every=0.2, more=walker.said)
    walker.stop("terminal=2")
    for n in range(6 if HAPROXY else 0):
        assert len(ask(front, user_id=f"u{n}", size=6)["items"]) == 6


def requests(port: int) -> float:
    """Pages that a scorer was asked for."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("millrace_requests_total{") and 'route="recommend"' in line
    )
