"""`millrace up`, as a shop runs it: own items, own clicks, a kill -9 of everything, and on it goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from commands.loop.monitor import RoleMetrics, fetch
from commands.up.started import Started
from millrace.versions.modelstore import ModelStore
from tests.scenes.demo_process import PATIENT, born, descendants
from tests.scenes.waiting import LONG, PATIENCE, until

SCHEMA = """
name = "bakery"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[[fields]]
name = "kind"
of = "item"
"""
ITEMS = 12
QUICK = {
    "MILLRACE_OBSERVATION_SECONDS": "1",
    "MILLRACE_IDLE_SECONDS": "1",
    "MILLRACE_SNAPSHOT_SECONDS": "1",
    "MILLRACE_CONTROL_SHARE": "0",
    "MILLRACE_HELDOUT_SHARE": "0",
}
"""Labels and snapshots soon, no random pages and none held out: the hash of a page's request id decides both."""
TRAINED = "millrace_samples_trained_total"


def post(url: str, body: object) -> dict[str, Any]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def keep(intake: str, what: str, *messages: dict[str, Any]) -> None:
    answer = post(f"{intake}/{what}", list(messages))
    assert answer["kept"] == len(messages), answer


def catalogue() -> list[dict[str, Any]]:
    return [{"item_id": f"b{n}", "attributes": {"kind": "bread" if n % 2 else "cake"}} for n in range(ITEMS)]


def total(where: dict[str, Any], role: str, name: str) -> float:
    figures = RoleMetrics()
    figures.update(fetch(where["metrics"][role], PATIENCE))
    return figures.total(name)


def model(where: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetch(f"{where['scorer']}/model", PATIENCE))
    return found


def kept(data: Path) -> int:
    """Samples that the newest snapshot has learnt from."""
    note = ModelStore(str(data / "models"), writes=False).latest()
    return 0 if note is None else note.trained


def ready(where: dict[str, Any]) -> bool:
    try:
        return bool(fetch(f"{where['scorer']}/readyz", PATIENCE))
    except OSError:
        return False


def shop(where: dict[str, Any], user: str, visit: str) -> list[str]:
    """A visit: a page, its exposure, and a click on the first cake."""
    page = post(f"{where['scorer']}/recommend", {"user_id": user, "size": ITEMS})
    ids = [item["item_id"] for item in page["items"]]
    seen = {"type": "exposure", "event_id": f"{visit}-e", "request_id": page["request_id"], "user_id": user}
    at = next(i for i, name in enumerate(ids) if int(str(name)[1:]) % 2 == 0)
    click = {**seen, "type": "click", "event_id": f"{visit}-c", "item_id": ids[at], "position": at}
    keep(where["intake"], "events", {**seen, "items": ids}, click)
    return ids


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_a_shop_of_ones_own_learns_and_goes_on_after_kill_9_of_everything(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(SCHEMA)
    schema = str(tmp_path / "my.toml")
    with Started(tmp_path / "data", "--schema", schema, env={**PATIENT, **QUICK}, cwd=tmp_path) as loop:
        where = loop.where(PATIENCE)
        assert not ready(where)
        until(lambda: "Send your catalogue" in loop.text(), "it says what it waits for", more=loop.text)
        keep(where["intake"], "items", *catalogue())
        keep(where["intake"], "users", {"user_id": "anna", "attributes": {}})
        until(lambda: ready(where), "there are items, so there are pages", more=loop.text)
        assert sorted(shop(where, "anna", "v1")) == sorted(item["item_id"] for item in catalogue())
        until(lambda: total(where, "learn", TRAINED) >= ITEMS, "every item of the page is learnt from", more=loop.text)
        until(lambda: kept(tmp_path / "data") >= ITEMS, "a snapshot has it all", more=loop.text)
        until(lambda: model(where)["trained"] >= ITEMS, "and what was learnt serves", more=loop.text)
        state = json.loads(fetch(f"{where['page']}state.json", PATIENCE))
        assert state["figures"]["exposures"] == ITEMS
        assert [role["name"] for role in state["roles"]] == ["stream", "learn", "serve", "intake", "archive"]
        assert state["figures"]["oracle_auc"] is None
        before = model(where)
        gate = json.loads(fetch(f"{where['admin']}/model", PATIENCE))
        assert (gate["state"], gate["refusal"]) == ("promoting", None)

        assert loop.process is not None
        tree = descendants(loop.process.pid)
        assert len(tree) >= 7  # broker, Redis, five roles
        loop.kill()
        for pid in tree:
            if born(pid) == tree[pid]:
                os.kill(pid, signal.SIGKILL)
        loop.start()
        where = loop.where(PATIENCE)
        until(lambda: ready(where), "the items are there still", more=loop.text)
        after = model(where)
        assert after["version"] >= before["version"] > 0
        assert after["trained"] == before["trained"] >= ITEMS, "what was learnt outlived the kill"
        assert total(where, "learn", TRAINED) == 0, "and was not learnt again"
        answer = post(f"{where['scorer']}/recommend", {"user_id": "anna", "size": ITEMS})
        assert len(answer["items"]) == ITEMS
        assert answer["notes"] == [], "the user is known"
        shop(where, "anna", "v2")
        until(lambda: model(where)["trained"] >= 2 * ITEMS, "it goes on learning", more=loop.text)
        assert loop.stop(signal.SIGINT) == 0, loop.text()
        assert not (tmp_path / "data" / "up.json").exists()
        assert loop.text().rstrip().splitlines()[-1].startswith("stopping: intake first")
