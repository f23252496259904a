"""The limit on requests in work, and the turns in which they go on; workers that share a socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from scorer.users.user_reader import LOOKS, RequestTurns
from scorer.worker import acceptor
from scorer.worker.acceptor import NOBODY, WorkerServer
from scorer.worker.door import StandIn
from scorer.worker.request_limit import RequestLimit
from tests.scenes.waiting import PATIENCE, in_loop


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


@in_loop
async def test_beyond_the_limit_a_request_is_refused_at_once_and_the_next_one_after_an_answer_is_taken() -> None:
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


@pytest.mark.parametrize("how", ["error", "cancelled"])
@in_loop
async def test_a_request_that_ends_badly_is_not_in_work_any_more(how: str) -> None:
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


@pytest.mark.parametrize("protocol", ["h11", "auto"])
@in_loop
async def test_a_refused_request_with_a_body_leaves_its_connection_usable_or_closed(protocol: Any) -> None:
    """Over a real socket: what the client had sent of the body must not be taken for the next request."""
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


@given(stays=st.lists(st.booleans(), min_size=1, max_size=12))
@in_loop
async def test_requests_go_on_in_the_order_in_which_they_came_and_the_loop_looks_around_between_them(
    stays: list[bool],
) -> None:
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


@in_loop
async def test_a_turn_that_nobody_takes_goes_to_the_next() -> None:
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


# -- Workers that share a listening socket share the connections, and one that is gone is not waited for ---------------


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


TURNS = 20
"""Of the loop that all workers have here, instead of the time for which a connection is left to others: a machine that
stands still for a moment changes nothing then."""


def leave_for_turns(loop: asyncio.AbstractEventLoop) -> None:
    call_later = loop.call_later

    def after(turns: int, call: Callable[[], None]) -> None:
        if turns:
            loop.call_soon(after, turns - 1, call)
        else:
            call()

    def later(delay: float, call: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        if delay == acceptor.LEAVE_SECONDS:
            return loop.call_soon(after, TURNS, call)
        return call_later(delay, call, *args, **kwargs)

    loop.call_later = later  # type: ignore[method-assign, assignment]


async def served(workers: int, connections: int, gone: int = 0, still: int = 0) -> list[int]:
    """Opens connections, has each answered, and says how many each worker had."""
    leave_for_turns(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        shares = np.array([NOBODY] * (workers + gone) + [0] * still)
        servers = [
            WorkerServer(
                uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False),
                socket.socket(fileno=os.dup(listener.fileno())),
                shares,
                slot,
            )
            for slot in range(workers)
        ]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(connections)]  # all wait already
        tasks = [asyncio.create_task(server.serve()) for server in servers]

        async def answers() -> list[bytes]:
            streams = [await asyncio.open_connection(sock=client) for client in clients]
            for _, writer in streams:
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            found = [await reader.readuntil(b"ok") for reader, _ in streams]
            counts.extend(len(server.server_state.connections) for server in servers)
            for _, writer in streams:
                writer.close()
            return found

        counts: list[int] = []
        found = await asyncio.wait_for(answers(), PATIENCE)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in found)
        for server in servers:
            server.should_exit = True
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        return counts


@pytest.mark.parametrize(("workers", "connections"), [(1, 5), (2, 8), (3, 30)])
def test_a_burst_of_connections_is_shared(workers: int, connections: int) -> None:
    assert asyncio.run(served(workers, connections)) == [connections // workers] * workers


def test_a_worker_that_does_not_run_gets_no_share() -> None:
    assert asyncio.run(served(1, 6, gone=1)) == [6]


def test_a_worker_that_takes_nothing_is_not_waited_for_long() -> None:
    """It has no connections, and its loop stands still: the others take all, one after the other."""

    assert asyncio.run(served(1, 6, still=1)) == [6]


def test_while_no_worker_accepts_there_is_an_answer_and_a_worker_that_does_gets_all() -> None:
    async def life() -> list[bytes]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            shares = np.array([NOBODY, NOBODY])

            def own() -> socket.socket:
                return socket.socket(fileno=os.dup(listener.fileno()))

            async def asked(parts: int = 1) -> bytes:
                """The whole answer to a request whose body comes in parts."""
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                head = (
                    f"POST /recommend HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {parts << 16}\r\n\r\n"
                )
                writer.write(head.encode())
                for _ in range(parts):
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                found = await reader.read()
                writer.close()
                return found

            stand_in = StandIn(own(), shares, os.getppid())
            standing = asyncio.create_task(stand_in.serve())
            found = [await asked(), await asked(40)]
            idle, its_end = await asyncio.open_connection(*listener.getsockname())
            while not stand_in.server_state.connections:
                await asyncio.sleep(0)

            shares[1] = 7  # a worker that accepts in a moment
            waiting = [asyncio.create_task(asked()) for _ in range(5)]
            worker = WorkerServer(uvicorn.Config(app, lifespan="off", log_level="warning"), own(), shares, 0)
            working = asyncio.create_task(worker.serve())
            found += await asyncio.gather(*waiting)
            assert await idle.read() == b"", "its next request goes to a worker"
            its_end.close()

            worker.should_exit = True
            await working
            shares[:] = NOBODY
            found.append(await asked())
            stand_in.should_exit = True
            await standing
            return found

    found = asyncio.run(asyncio.wait_for(life(), PATIENCE))
    assert [answer.split(b" ", 2)[1] for answer in found] == [b"503"] * 2 + [b"200"] * 5 + [b"503"]
    assert all(b"\r\nretry-after: 1\r\n" in answer for answer in found if b" 503 " in answer)
