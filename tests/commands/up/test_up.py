"""`millrace up`, as a shop runs it: own items, own clicks, a kill -9 of everything, and on it goes."""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as PageRequest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from millrace.commands.loop.monitor import RoleMetrics, fetch
from millrace.commands.up.started import Started
from millrace.versions.modelstore import ModelStore
from tests.scenes.app_server import served
from tests.scenes.browser import CHROMIUM, Browser, browser
from tests.scenes.demo_process import PATIENT, born, descendants, post
from tests.scenes.schemas import named, of_item, of_user
from tests.scenes.waiting import LONG, PATIENCE, until

SCHEMA = named("bakery") + of_user("user_id") + of_item("item_id", "kind")
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
        *_, stopping, stopped = loop.text().rstrip().splitlines()
        assert stopping.startswith("stopping: intake first")
        lasts = f"its data lie in {tmp_path / 'data'}: the same command goes on from there"
        assert stopped == f"everything has stopped; {lasts}"


EVIL = "evil.example"
"""A name that leads to this machine, as a name server of somebody else may say (DNS rebinding)."""
CLICK = {"type": "click", "request_id": "r", "user_id": "ann", "item_id": "b1", "position": 0}
TAKEN = {200, 403, 422, 503}
"""Of a request that is no web page's: it is answered in its own way; 403 is the learner's, who knows no token."""


def asks(where: dict[str, Any]) -> dict[str, tuple[str, str, bytes]]:
    """What every door of a loop can be asked: address, method and path, body."""
    scorer, intake, page, admin = (where[name] for name in ("scorer", "intake", "page", "admin"))
    posts = [(scorer, path) for path in ("/recommend", "/score", "/similar", "/popular", "/v2/models/millrace/infer")]
    posts += [(intake, path) for path in ("/events", "/items", "/users", "/events/segment")]
    posts += [(page, path) for path in ("/recommend", "/model/hold")] + [(admin, "/model/hold")]
    gets = [(scorer, "/model"), (scorer, "/openapi.json"), (scorer, "/items/b1"), (page, "/state.json"), (page, "/")]
    gets += [(admin, "/model"), (admin, "/versions"), (admin, "/quarantine"), (intake, "/openapi.json")]
    found = {f"POST {at}{path}": (at, f"POST {path}", b"{}") for at, path in posts}
    found |= {f"GET {at}{path}": (at, f"GET {path}", b"") for at, path in gets}
    return found | {f"DELETE {intake}/{what}": (intake, f"DELETE /{what}/ann", b"") for what in ("users", "items")}


def status_of(at: str, what: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    parts, (method, path) = urlsplit(at), what.split()
    with closing(HTTPConnection(str(parts.hostname), parts.port, timeout=PATIENCE)) as connection:
        connection.putrequest(method, path, skip_host=True)
        for name, value in ({"Host": parts.netloc, "Content-Length": str(len(body))} | headers).items():
            connection.putheader(name, value.replace("ITSELF", parts.netloc))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def every_door_refuses_pages_of_elsewhere(where: dict[str, Any]) -> None:
    """Each request by each header that only a browser sends on behalf of a page of elsewhere."""
    form, json_type = {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "application/json"}
    foreign = [
        {"Host": f"{EVIL}:8720", **json_type},
        {"Origin": f"https://{EVIL}", **json_type},
        {"Origin": "null", **json_type},
        {"Sec-Fetch-Site": "cross-site", **json_type},
    ]
    own = [form, json_type, {"Origin": "http://ITSELF", "Sec-Fetch-Site": "same-origin", **json_type}]
    for name, (at, what, body) in asks(where).items():
        for headers in foreign:
            status, said = status_of(at, what, body, headers)
            assert (status, "MILLRACE_ALLOWED_" in said) == (403, True), (name, headers, said)
        for headers in own:
            status, said = status_of(at, what, body, headers)
            assert status not in (403, 404, 405, 500), (name, headers, said)
        if what.startswith("POST"):
            status, said = status_of(at, what, body, {"Origin": "http://ITSELF", **form})
            assert (status, "send application/json" in said) == (403, True), (name, said)
    for role, at in where["metrics"].items():
        assert "millrace_ready" in status_of(at, "GET /metrics", b"", {"Host": EVIL})[1], role
    for name in ("scorer", "intake"):
        assert [status_of(where[name], f"GET {path}", b"", {"Host": EVIL})[0] for path in ("/healthz", "/readyz")] == [
            200,
            200,
        ]
    assert status_of(where["scorer"], "GET /metrics", b"", {"Host": EVIL})[0] == 200


def a_page_tries(tab: Browser, where: dict[str, Any]) -> None:
    """What a page can have its browser send without asking first: `fetch` and a beacon with text, and a form."""
    click, item = json.dumps(CLICK | {"event_id": "web"}), json.dumps({"item_id": "boots", "attributes": {}})
    tab.evaluate(
        f"""(async () => {{
          const send = (at, body) => fetch(at, {{ method: 'POST', mode: 'no-cors', body }}).catch(() => null);
          await send('{where["intake"]}/items', {item!r});
          await send('{where["scorer"]}/recommend', '{{"user_id": "ann"}}');
          navigator.sendBeacon('{where["intake"]}/events', {click!r});
          const frame = document.createElement('iframe');
          frame.name = 'form';
          document.body.append(frame);
          const form = document.createElement('form');
          Object.assign(form, {{ method: 'POST', enctype: 'text/plain', target: 'form' }});
          form.action = '{where["intake"]}/items';
          const field = document.createElement('input');
          field.name = '{{"item_id": "form", "attributes": {{"kind';
          field.value = '": "bread"}}}}';
          form.append(field);
          document.body.append(form);
          const loaded = new Promise((done) => frame.addEventListener('load', done));
          form.submit();
          await loaded;
          await new Promise((done) => setTimeout(done, 0));
        }})()"""
    )


def counted(where: dict[str, Any], name: str, label: str) -> dict[str, float]:
    figures = RoleMetrics()
    figures.update(fetch(where["metrics"]["intake"], PATIENCE))
    return figures.by_label(name, label)


def lines_kept(where: dict[str, Any]) -> float:
    return counted(where, "millrace_intake_lines_total", "verdict")["kept"]


def refused(where: dict[str, Any], times: int) -> bool:
    return counted(where, "millrace_intake_requests_total", "status").get("403") == times


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found, so no page tries: install chromium")
def test_no_web_page_of_elsewhere_writes_into_a_loop_or_reads_it(tmp_path: Path) -> None:
    async def page(_: PageRequest) -> HTMLResponse:
        return HTMLResponse("<!doctype html><link rel=icon href='data:,'><body>a page of somebody else")

    (tmp_path / "my.toml").write_text(SCHEMA)
    elsewhere = Starlette(routes=[Route("/", page)])
    with served(elsewhere) as foreign, served(elsewhere) as tracker:
        origins = {"MILLRACE_ALLOWED_ORIGINS": tracker.replace("127.0.0.1", "localhost")}
        loop = Started(tmp_path / "data", "--schema", str(tmp_path / "my.toml"), env={**PATIENT, **QUICK, **origins})
        with loop, browser(tmp_path, f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as tab:
            where = loop.where(PATIENCE)
            keep(where["intake"], "items", *catalogue())
            until(lambda: ready(where), "there are items, so there are pages", more=loop.text)
            for n, at in enumerate((foreign, foreign.replace("127.0.0.1", "localhost")), 1):
                tab.go(f"{at}/")
                a_page_tries(tab, where)
                until(partial(refused, where, 3 * n), "its three requests are refused")
            for at, path in ((where["intake"], "/openapi.json"), (where["page"], "state.json")):
                tab.go(f"{at.replace('127.0.0.1', EVIL)}{path}")
                assert "MILLRACE_ALLOWED_HOSTS" in tab.evaluate("document.body.innerText"), "nor by a name of its own"
            tab.go(f"{where['intake'].replace('127.0.0.1', EVIL)}/healthz")
            assert tab.evaluate("fetch('/users/ann', { method: 'DELETE' }).then((answer) => answer.status)") == 403
            assert lines_kept(where) == ITEMS

            tab.go(where["page"])  # the loop's own page asks as before
            tab.evaluate("byId('user').value = 'ann'; byId('explain').requestSubmit()")
            tab.until(f"byId('explained').textContent.includes(', {ITEMS - 2} items')")
            tab.go(f"{origins['MILLRACE_ALLOWED_ORIGINS']}/")
            a_page_tries(tab, where)
            until(lambda: lines_kept(where) == ITEMS + 3, "a page that may send does")

            every_door_refuses_pages_of_elsewhere(where)
