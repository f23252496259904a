"""The intake's routes, in process: bodies, verdicts, refusals of whole requests, and what it says about itself."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.routing import Route
from starlette.types import Message as AsgiMessage

from millrace.basics.openapi import Failure
from millrace.processes.repeated_warnings import QUIET_S
from stream.intake import intake_openapi
from stream.intake.intake_app import BODIES_BYTES
from stream.intake.intake_metrics import REFUSED, Refusals
from stream.intake.intake_wire import MAX_BODY_BYTES, Taken, Verdict
from tests.scenes.intake_desk import Intake, Outlet, ask, click, exposure

NDJSON = "application/x-ndjson"


def post(intake: Intake, path: str, body: Any, kind: str = "") -> tuple[int, Any, dict[str, str]]:
    return asyncio.run(intake.ask("POST", path, body, kind))


def statuses(answer: Any) -> list[str]:
    return [verdict["status"] for verdict in answer["verdicts"]]


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_one_bad_line_does_not_reject_the_others() -> None:
    intake = Intake()
    body = [click(1), {"type": "clack"}, click(2, ts_ms=1_772_323_200), exposure(3), click(1)]
    status, answer, _ = post(intake, "/events", body)
    assert status == 200
    assert statuses(answer) == ["kept", "refused", "refused", "kept", "duplicate"]
    assert [v.get("reason") for v in answer["verdicts"]] == [None, "unknown-type", "seconds", None, None]
    assert (answer["kept"], answer["duplicates"], answer["refused"]) == (2, 1, 2)
    assert [value["event_id"] for value in intake.outlet.values] == ["e1", "e3"]


def test_json_lines_with_rubbish_among_them() -> None:
    intake = Intake()
    body = b"\n".join([msgspec.json.encode(click(1)), b"rubbish", b"", b"[1", msgspec.json.encode(click(2))])
    for kind in ("", NDJSON):
        _, answer, _ = post(intake, "/events", body, kind)
        assert [v.get("reason") for v in answer["verdicts"]] == [None, "malformed", "wrong-type", None]
    assert [value["event_id"] for value in intake.outlet.values] == ["e1", "e2"]


def test_users_items_and_their_removal() -> None:
    intake = Intake()
    assert post(intake, "/users", {"user_id": 7, "attributes": {"country": "de"}})[0] == 200
    assert post(intake, "/items", [{"item_id": "a/b", "attributes": {"price": 2.5}, "gone": True}])[0] == 200
    for path in ("/users/7", "/users/8\n", "/items/a/b", "/items/" + "é" * 200):  # as servers hand it over: decoded
        status, answer, _ = asyncio.run(intake.ask("DELETE", path))
        assert (status, statuses(answer), answer["kept"]) == (200, ["kept"], 1)
        note = answer["verdicts"][0].get("note", "")
        assert ("millrace data forget" in note) == path.startswith("/users"), "the archive is left to do"
    found = sorted((lane[0], one.key, one.value is None) for lane, one in intake.outlet.log if b"\xff" not in one.key)
    assert found == sorted(
        [
            ("users", b"7", False),
            ("items", b"a/b", False),
            ("users", b"7", True),
            ("users", b"8\n", True),
            ("items", b"a/b", True),
            ("items", ("é" * 200).encode(), True),
        ]
    )
    status, answer, _ = asyncio.run(intake.ask("DELETE", "/items/" + "x" * 201))
    assert (status, answer["verdicts"][0]["reason"]) == (422, "bad-key")


def test_a_kept_line_says_which_attributes_the_schema_does_not_have() -> None:
    intake = Intake()
    items = [{"item_id": 1, "attributes": {"catgory": "a"}}, {"item_id": 2, "attributes": {"category": "a"}}]
    _, answer, _ = post(intake, "/items", items)
    odd, plain = answer["verdicts"]
    assert odd == {"status": "kept", "note": "item 1: the schema has no 'catgory'; near: 'category'"}
    assert (plain, answer["kept"]) == ({"status": "kept"}, 2)
    _, answer, _ = post(intake, "/users", {"user_id": 7, "attributes": {"regoin": "de", "zzz": 1}})
    assert answer["verdicts"][0]["note"] == (
        "user 7: the schema has no 'regoin'; near: 'region'; user 7: the schema has no 'zzz'"
    )


def test_every_line_refused_is_422_and_an_empty_list_is_nothing() -> None:
    intake = Intake()
    status, answer, _ = post(intake, "/items", [{"item_id": 7, "attributes": {"price": "12,50"}}])
    assert (status, answer["verdicts"][0]["reason"]) == (422, "bad-value")
    assert "price '12,50'" in answer["verdicts"][0]["detail"]
    assert post(intake, "/items", [])[:2] == (200, {"kept": 0, "duplicates": 0, "refused": 0, "verdicts": []})


async def test_an_answer_comes_when_all_is_kept_and_not_before() -> None:
    outlet = Outlet(at_once=False)
    intake = Intake(outlet)
    asked = asyncio.create_task(intake.ask("POST", "/events", [click(1), click(2)]))
    again = asyncio.create_task(intake.ask("POST", "/events", click(1)))
    while outlet.keeper.waiting < 2:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asked.done()
    assert not again.done()
    outlet.deliver()
    assert statuses((await again)[1]) == ["duplicate"]
    status, answer, _ = await asked
    assert (status, statuses(answer)) == (200, ["kept", "kept"])


# -- what is refused whole --------------------------------------------------------------------------------------------


def test_a_broker_that_takes_nothing_is_503_and_the_same_again_is_kept_once() -> None:
    outlet = Outlet(at_once=False)
    intake = Intake(outlet, intake_seconds=0.01)
    status, answer, headers = post(intake, "/events", click(1))
    assert (status, headers["retry-after"]) == (503, "2")
    assert "same event_id" in answer["error"]
    assert asyncio.run(intake.ask("DELETE", "/users/1"))[0] == 503
    outlet.deliver()
    assert statuses(post(intake, "/events", click(1))[1]) == ["duplicate"]
    assert len(outlet.values) == 2


def test_too_many_that_wait_are_429_or_503_where_the_broker_is_away() -> None:
    outlet = Outlet(limit=2, at_once=False)
    intake = Intake(outlet, intake_seconds=0.01)
    post(intake, "/events", [click(1), click(2)])
    status, answer, headers = post(intake, "/events", click(3))
    assert (status, headers["retry-after"]) == (429, "1")
    assert "2 messages wait" in answer["error"]
    outlet.away = "it does not answer"
    assert post(intake, "/events", click(3))[0] == 503
    status, answer, _ = asyncio.run(intake.ask("GET", "/readyz"))
    assert (status, answer["ready"]) == (503, False)
    outlet.away = ""
    outlet.deliver()
    outlet.at_once = True
    assert post(intake, "/events", click(3))[0] == 200
    assert asyncio.run(intake.ask("GET", "/readyz"))[:2] == (200, {"ready": True})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"[1,", {}, 400),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413),
        (b"[" + b"{}," * 1000 + b"{}]", {}, 413),
        (b"{}", {"content-encoding": "gzip"}, 415),
    ],
)
def test_a_body_that_cannot_be_read_is_one_line(body: bytes, headers: dict[str, str], status: int) -> None:
    intake = Intake()
    found, answer, _ = asyncio.run(ask(intake.app, "POST", "/events", body, headers))
    assert found == status
    assert set(answer) == {"error"}
    assert "\n" not in answer["error"]
    assert post(intake, "/events", click(1))[0] == 200  # nothing is held


def test_a_body_in_pieces_and_a_client_that_goes_away() -> None:
    intake = Intake()
    body = msgspec.json.encode([click(n) for n in range(50)])
    assert asyncio.run(ask(intake.app, "POST", "/events", body, chunk=7))[1]["kept"] == 50

    async def goes() -> list[AsgiMessage]:
        sent: list[AsgiMessage] = []
        coming: list[AsgiMessage] = [
            {"type": "http.request", "body": b"[", "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> AsgiMessage:
            return coming.pop(0)

        async def send(message: AsgiMessage) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/events", "headers": [], "root_path": ""}
        await intake.app(scope, receive, send)
        return sent

    assert asyncio.run(goes()) == []
    assert intake.desk._held == 0


def test_bodies_in_work_are_bounded() -> None:
    intake = Intake()
    intake.desk._held = BODIES_BYTES
    status, _, headers = post(intake, "/events", click(1))
    assert (status, headers["retry-after"]) == (429, "1")
    assert intake.desk._held == BODIES_BYTES


def test_a_bug_costs_its_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake()
    read = intake.desk._reader.read

    def breaks(what: Any, raw: bytes, now_ms: int, wall_ms: int) -> Any:
        if b'"e2"' in raw:
            raise ZeroDivisionError
        return read(what, raw, now_ms, wall_ms)

    monkeypatch.setattr(intake.desk._reader, "read", breaks)
    answer = post(intake, "/events", [click(1), click(2), click(3)])[1]
    assert [v.get("reason") for v in answer["verdicts"]] == [None, "error", None]


# -- what it says -----------------------------------------------------------------------------------------------------


def test_refusals_are_counted_and_reported_once_a_minute_with_an_example() -> None:
    now, logged = 0.0, list[dict[str, Any]]()
    refusals = Refusals(lambda: now, lambda line, **values: logged.append(values))
    before = REFUSED.labels("events", "future")._value.get()
    bad = Verdict("refused", "future", "the first")
    refusals.note("events", [bad, Verdict("kept"), Verdict("refused", "future", "the second")])
    refusals.note("users", [bad])
    now = QUIET_S - 1
    refusals.note("events", [Verdict("refused", "future", "within the minute")])
    assert [(one["kind"], one["times"]) for one in logged] == [("events: future", 2), ("users: future", 1)]
    now = QUIET_S
    refusals.log_due()
    assert logged[2:] == [{"kind": "events: future", "times": 1, "example": "within the minute"}]
    assert REFUSED.labels("events", "future")._value.get() - before == 3


def test_the_description_has_the_routes_of_the_application_and_no_others() -> None:
    intake = Intake()
    served = set()
    for route in intake.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Route)
        assert route.methods
        served |= {(method, route.path.replace(":anything", "")) for method in route.methods - {"HEAD"}}
    assert served == {(route.method, route.path) for route in intake_openapi.ROUTES}
    status, document, _ = asyncio.run(intake.ask("GET", "/openapi.json"))
    assert status == 200
    assert {(m.upper(), path) for path, calls in document["paths"].items() for m in calls} == served
    components = document["components"]["schemas"]
    assert {"Exposure", "Click", "User", "Item", "Taken", "Verdict", "Failure", "Ready"} <= set(components)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/events", "POST"), ("POST", "/users/7", "DELETE"), ("PUT", "/items", "POST"), ("GET", "/", None)],
)
def test_what_is_not_served_says_what_is(method: str, path: str, allowed: str | None) -> None:
    status, answer, headers = asyncio.run(Intake().ask(method, path))
    assert (status, headers.get("allow")) == (405 if allowed else 404, allowed)
    assert "POST /events" in answer["error"]


def test_answers_are_as_described() -> None:
    outlet = Outlet()
    intake = Intake(outlet)
    for status, kind, body in ((200, Taken, click(1)), (422, Taken, {}), (400, Failure, b"")):
        found, answer, _ = post(intake, "/events", body)
        assert found == status
        msgspec.convert(answer, kind)
