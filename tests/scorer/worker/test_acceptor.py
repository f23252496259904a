"""Workers that share a listening socket share the connections, and one that is gone is not waited for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import uvicorn

from scorer.worker import acceptor
from scorer.worker.acceptor import NOBODY, WorkerServer
from scorer.worker.door import StandIn
from tests.scenes.waiting import PATIENCE


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
