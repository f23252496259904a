"""The limit on requests in work, and the turns in which they go on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from scorer.users.user_reader import LOOKS, RequestTurns
from scorer.worker.request_limit import RequestLimit


class App:
    """Answers 200 when it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        if scope["method"] == "POST":
            await self.go_on.wait()
        if self.error:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


async def ask(app: Callable[..., Coroutine[Any, Any, None]], path: str, method: str = "POST") -> list[Message]:
    said: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    async def send(message: Message) -> None:
        said.append(message)

    await app({"type": "http", "method": method, "path": path}, receive, send)
    return said


def status(said: list[Message]) -> int:
    return int(said[0]["status"])


async def turn() -> None:
    """Lets everything that is ready go on."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_beyond_the_limit_a_request_is_refused_at_once_and_the_next_one_after_an_answer_is_taken() -> None:
    async def scene() -> None:
        app, refused = App(), list[int]()
        gate = RequestLimit(app, 2, lambda: refused.append(1))
        first = [asyncio.create_task(ask(gate, f"/{i}")) for i in range(2)]
        await turn()
        for count in range(1, 4):
            said = await ask(gate, "/late")
            assert status(said) == 503
            assert (b"retry-after", b"1") in said[0]["headers"]
            assert b"2 requests" in said[1]["body"]
            assert len(refused) == count
        assert app.asked == ["/0", "/1"], "the application knows nothing of those"
        for path in ("/healthz", "/readyz", "/metrics", "/model"):
            assert status(await ask(gate, path, "GET")) == 200
        app.go_on.set()
        assert [status(s) for s in await asyncio.gather(*first)] == [200, 200]
        assert status(await ask(gate, "/next")) == 200
        assert gate.in_work == 0

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["error", "cancelled"])
def test_a_request_that_ends_badly_is_not_in_work_any_more(how: str) -> None:
    async def scene() -> None:
        app = App()
        gate = RequestLimit(app, 1, lambda: None)
        request = asyncio.create_task(ask(gate, "/bad"))
        await turn()
        assert gate.in_work == 1
        if how == "error":
            app.error = ValueError()
            app.go_on.set()
        else:
            request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert gate.in_work == 0

    asyncio.run(scene())


@pytest.mark.parametrize("protocol", ["h11", "auto"])
def test_a_refused_request_with_a_body_leaves_its_connection_usable_or_closed(protocol: Any) -> None:
    """Over a real socket: what the client had sent of the body must not be taken for the next request."""

    async def scene() -> None:
        app = App()
        gate = RequestLimit(app, 1, lambda: None)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(gate, http=protocol, lifespan="off", log_level="critical"))
        serving = asyncio.create_task(server.serve([listener]))
        waiting = asyncio.create_task(ask(gate, "/in work"))
        client = HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=60)
        body = b"GET /nonsense HTTP/1.1\r\n\r\n" * 40_000

        def post() -> HTTPResponse:
            client.request("POST", "/late", body)
            answer = client.getresponse()
            content = answer.read()
            if answer.status == 503:
                assert "in work" in msgspec.json.decode(content)["error"]
            return answer

        for _ in range(3):
            answer = await asyncio.to_thread(post)
            assert (answer.status, answer.getheader("retry-after")) == (503, "1")
        app.go_on.set()
        await waiting
        assert (await asyncio.to_thread(post)).status == 200
        client.close()
        server.should_exit = True
        await serving
        listener.close()
        assert set(app.asked) == {"/in work", "/late"}

    asyncio.run(scene())


@given(stays=st.lists(st.booleans(), min_size=1, max_size=12))
def test_requests_go_on_in_the_order_in_which_they_came_and_the_loop_looks_around_between_them(
    stays: list[bool],
) -> None:
    async def scene() -> None:
        turns, log = RequestTurns(), list[int]()

        def tick() -> None:
            log.append(-1)
            if len(log) < 2 * LOOKS * len(stays):
                asyncio.get_running_loop().call_soon(tick)

        async def request(number: int) -> None:
            await turns.take()
            log.append(number)

        tasks = [asyncio.create_task(request(i)) for i in range(len(stays))]
        asyncio.get_running_loop().call_soon(tick)
        await asyncio.sleep(0)
        for task, stay in zip(tasks, stays, strict=True):
            if not stay:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pages = [(number, at) for at, number in enumerate(log) if number >= 0]
        # The first one had its turn before anybody could be cancelled.
        assert [number for number, _ in pages] == sorted({0, *(i for i, stay in enumerate(stays) if stay)})
        for (_, one), (_, other) in pairwise(pages):
            assert other - one >= LOOKS, "turns of the loop in which it heard others"
        await asyncio.wait_for(turns.take(), 60)

    asyncio.run(scene())


def test_a_turn_that_nobody_takes_goes_to_the_next() -> None:
    async def scene() -> None:
        turns = RequestTurns()
        await turns.take()
        first, second = (asyncio.create_task(turns.take()) for _ in range(2))
        await asyncio.sleep(0)
        given = turns._waiting[0]
        while not given.done():
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait_for(second, 60)
        assert first.cancelled()

    asyncio.run(scene())
