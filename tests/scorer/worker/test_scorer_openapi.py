"""The API's description against the application that it describes, and the Open Inference Protocol's routes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.routing import Route

from millrace.basics.openapi import Described, Failure, Ready
from scorer.page.page_wire import MAX_SCORED
from scorer.worker import infer, scorer_openapi
from scorer.worker.request_limit import RequestLimit
from tests.scenes.scorer_shop import ITEMS, NOW_MS, OneWorker, stock


class Shop(OneWorker):
    """A worker; without a model until it is told to be ready."""

    def ready(self) -> Shop:
        self.follow()
        stock(self.scorer, ITEMS)
        return self


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def tensor(name: str, data: list[Any], datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data, **more}


def inference(*more: dict[str, Any], items: list[Any] | None = None, **rest: Any) -> dict[str, Any]:
    own = [tensor("user_id", ["ann"]), tensor("item_id", [3, 5] if items is None else items, "INT64")]
    return {"inputs": [*own, *more], **rest}


def deep(field: str, levels: int) -> bytes:
    """A request with an input one of whose fields is nested."""
    asked = inference()
    asked["inputs"][1][field] = ["deep"]
    return msgspec.json.encode(asked).replace(b'["deep"]', b"[" * levels + b"1" + b"]" * levels)


INFER = "/v2/models/millrace/infer"

# -- the description ----------------------------------------------------------------------------------------------


def test_the_description_has_the_routes_of_the_application_and_no_others(shop: Shop) -> None:
    served = set()
    for route in shop.app.routes:
        assert isinstance(route, Route)
        assert route.methods
        served |= {(method, route.path.replace(":path", "")) for method in route.methods - {"HEAD"}}
    assert served == {(route.method, route.path) for route in scorer_openapi.ROUTES}
    status, document = shop.call("GET", "/openapi.json")
    assert status == 200
    assert document == msgspec.json.decode(msgspec.json.encode(scorer_openapi.description()))
    described = {(method.upper(), path) for path, calls in document["paths"].items() for method in calls}
    assert described == served


def references(part: Any) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*(references(value) for value in part.values()))
    return set().union(*(references(value) for value in part)) if isinstance(part, list) else set()


def test_every_reference_of_the_description_leads_somewhere() -> None:
    document = scorer_openapi.description()
    schemas = document["components"]["schemas"]
    assert references(document)
    for ref in references(document):
        assert ref.removeprefix("#/components/schemas/") in schemas, ref
    fields = schemas["RecommendRequest"]["properties"]
    assert {"user_id", "size", "list", "cursor", "context", "explain"} <= set(fields)
    answered = schemas["RecommendAnswer"]
    assert "retrieval_version" in set(answered["properties"]) - set(answered["required"]), "told only when asked"
    assert "source" in set(schemas["PlacedItem"]["properties"]) - set(schemas["PlacedItem"]["required"])
    assert schemas["RecommendRequest"]["additionalProperties"] is False
    assert schemas["RecommendRequest"]["required"] == ["user_id"]


ASKED: dict[str, Any] = {
    "/recommend": {"user_id": "ann", "size": 3, "list": 9, "context": {"tab": "home"}, "explain": True},
    "/score": {"user_id": 7, "items": [3, "nobody"], "log": True},
    "/similar": {"item_id": 3, "user_id": "ann", "session": "s1", "size": 3, "only": {"price": {"min": 2}}},
    "/popular": {"size": 3, "not": {"category": ["c1"]}},
    "/v2/models/{name}/infer": inference(tensor("tab", ["home"])),
}
REFUSED: dict[str, Any] = {
    "/recommend": {"user_id": "ann", "size": 0},
    "/score": {"user_id": 7},
    "/similar": {"user_id": 7},
    "/popular": {"size": -1},
    "/v2/models/{name}/infer": {"inputs": []},
}


@pytest.mark.parametrize("route", scorer_openapi.ROUTES, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("is_ready", [True, False])
def test_real_answers_are_of_the_types_that_are_described(shop: Shop, route: Described, is_ready: bool) -> None:
    if is_ready:
        shop.ready()
    path = route.path.replace("{name}", infer.MODEL).replace("{id}", "3")
    status, answer = shop.call(route.method, path, ASKED.get(route.path))
    assert status == 200 or (not is_ready and status in route.refusals), answer
    readiness = route.answers is Ready
    kind = route.answers if status == 200 or readiness else Failure
    if kind is not None:
        exact(answer, kind)
    if route.asks is not None:
        status, answer = shop.call(route.method, path, REFUSED[route.path])
        assert status == 400
        exact(answer, Failure)
    if "{name}" in route.path:
        status, answer = shop.call(route.method, route.path.replace("{name}", "other"), ASKED.get(route.path))
        assert (status, "other" in answer["error"]) == (404, True)
        assert 404 in route.refusals


def exact(answer: Any, kind: type[msgspec.Struct]) -> None:
    """The answer is of the type, and has no field that the type has not."""
    decoded = msgspec.convert(answer, kind, strict=True)
    assert set(answer) <= set(kind.__struct_encode_fields__)
    again = msgspec.json.decode(msgspec.json.encode(decoded))
    assert {name: again[name] for name in answer} == answer


# -- the Open Inference Protocol ----------------------------------------------------------------------------------


def test_inference_gives_the_scores_of_the_score_route(shop: Shop) -> None:
    shop.ready()
    items = [i.item_id for i in ITEMS[:50]]
    _, scored = shop.call("POST", "/score", {"user_id": "ann", "items": items, "context": {"tab": "home"}})
    status, answer = shop.call("POST", INFER, inference(tensor("tab", ["home"]), items=items, id="7"))
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("millrace", "0", "7")
    score, known = answer["outputs"]
    assert (score["name"], score["datatype"], score["shape"]) == ("score", "FP32", [50])
    np.testing.assert_array_equal(score["data"], scored["scores"])
    assert known == {"name": "known", "datatype": "BOOL", "shape": [50], "data": [True] * 50}
    assert shop.sent == []


def test_inference_takes_nested_data_other_times_and_says_which_items_are_unknown(shop: Shop) -> None:
    shop.ready()
    ids = tensor("item_id", [["3"], ["nobody"]], shape=[2, 1])
    asked = {"inputs": [tensor("user_id", ["ann"]), ids, tensor("ts_ms", [NOW_MS - 1000], "INT64")]}
    status, answer = shop.call("POST", INFER, {**asked, "outputs": [{"name": "known"}]})
    assert status == 200
    assert [o["name"] for o in answer["outputs"]] == ["known"]
    assert answer["outputs"][0]["data"] == [True, False]
    assert "1 of 2 items are not in the catalogue" in answer["parameters"]["notes"]
    _, answer = shop.call("POST", INFER, asked)
    assert answer["outputs"][0]["data"][1] == 0


def test_health_and_metadata(shop: Shop) -> None:
    assert shop.call("GET", "/v2/health/live") == (200, {"live": True})
    status, answer = shop.call("GET", "/v2/health/ready")
    assert (status, answer["ready"], "no model" in answer["error"]) == (503, False, True)
    assert shop.call("GET", "/v2/models/millrace")[1]["versions"] == []
    shop.ready()
    for path in ("/v2/health/ready", "/v2/models/millrace/ready"):
        assert shop.call("GET", path) == (200, {"ready": True})
    _, answer = shop.call("GET", "/v2/models/millrace")
    assert answer["versions"] == ["0"]
    assert [(t["name"], t["shape"]) for t in answer["inputs"]] == [
        ("user_id", [1]), ("item_id", [-1]), ("ts_ms", [1]), ("tab", [1])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", ["JSON"]),
        ({}, ["inputs"]),
        ({"inputs": [tensor("user_id", ["ann"])]}, ["item_id"]),
        (inference(tensor("mood", ["good"])), ["mood", "tab"]),
        (inference(tensor("tab", ["a"]), tensor("tab", ["b"])), ["tab", "twice"]),
        (inference(tensor("tab", ["a", "b"])), ["tab", "[1]"]),
        (inference(tensor("tab", [])), ["tab", "0 values"]),
        (inference(tensor("ts_ms", ["now"], "INT64")), ["ts_ms", "now", "INT64"]),
        (inference(tensor("ts_ms", [1], "INT64")), ["ts_ms 1 ", "behind"]),
        (inference(tensor("ts_ms", [1.5], "FP64")), ["ts_ms"]),
        (inference(items=[1.5]), ["item_id", "1.5"]),
        (inference(items=list(range(MAX_SCORED + 1))), ["items", str(MAX_SCORED + 1)]),
        (inference(outputs=[{"name": "logit"}]), ["logit", "score"]),
        ({"inputs": [tensor("user_id", [True], "BOOL"), tensor("item_id", [1], "INT64")]}, ["user_id", "BOOL"]),
        ({"inputs": [tensor("user_id", ["ann"], shape=[7]), tensor("item_id", ["a"])]}, ["user_id", "[7]"]),
        ({"inputs": [tensor("user_id", ["ann"], shape=[-1, -1]), tensor("item_id", ["a"])]}, ["user_id"]),
        ({"inputs": [tensor("user_id", [""]), tensor("item_id", ["a"])]}, ["user_id", "length"]),
        ({"inputs": [tensor("user_id", ["a"], "COMPLEX"), tensor("item_id", ["a"])]}, ["datatype", "COMPLEX"]),
        (inference(items=[[[[]]] * 3]), ["item_id"]),
        ({"inputs": [tensor("user_id", ["a"]), tensor("item_id", [1], shape=[1] * 33)]}, ["item_id", "33 lengths"]),
        (
            {"inputs": [tensor("user_id", ["a"]), tensor("item_id", [1], shape=[1 << 62] * 45_000)]},
            ["item_id", "45000"],
        ),
        (deep("data", 100), ["item_id", "32 levels"]),
        (deep("data", 100_000), ["too deep", "inputs"]),
        (deep("more", 100_000), ["too deep", "inputs"]),
    ],
)
def test_a_bad_inference_is_one_line_that_names_the_input(shop: Shop, body: Any, words: list[str]) -> None:
    shop.ready()
    status, answer = shop.call("POST", INFER, body)
    assert status == 400
    for word in words:
        assert word in answer["error"]
    assert sum(shop.meters.errors.values()) == 0


def test_inference_before_a_model_is_there_is_503(shop: Shop) -> None:
    status, answer = shop.call("POST", INFER, inference())
    assert (status, "no model" in answer["error"]) == (503, True)


# -- a body that does not come ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/recommend", "/score", "/similar", "/popular", INFER])
async def test_a_body_that_never_comes_whole_does_not_hold_its_place(
    shop: Shop, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.ready()
    monkeypatch.setattr("scorer.worker.page_app.BODY_SECONDS", 0.001)
    parts = [{"type": "http.request", "body": b'{"user', "more_body": True}]
    said: list[Any] = []

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    gate = RequestLimit(shop.app, 1, lambda: None)
    await gate({**scope, "root_path": "", "headers": [], "server": ("", 80), "scheme": "http"}, receive, send)
    assert gate.in_work == 0
    status, body = said[0]["status"], said[1]["body"]
    assert (status, b"6 bytes of the body" in body) == (408, True)
    assert sum(shop.meters.errors.values()) == 0
