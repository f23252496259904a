"""Workers that share a listening socket share the connections, and one that is gone is not waited for."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import numpy as np
import pytest
import uvicorn

from scorer.worker import acceptor
from scorer.worker.acceptor import NOBODY, WorkerServer
from tests.scenes.waiting import PATIENCE


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def served(workers: int, connections: int, gone: int = 0, still: int = 0) -> list[int]:
    """Opens connections, has each answered, and says how many each worker had."""
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
def test_a_burst_of_connections_is_shared(workers: int, connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        acceptor, "LEAVE_SECONDS", 0.1
    )  # all workers have one loop here: a busy machine must not end it
    assert asyncio.run(served(workers, connections)) == [connections // workers] * workers


def test_a_worker_that_does_not_run_gets_no_share() -> None:
    assert asyncio.run(served(1, 6, gone=1)) == [6]


def test_a_worker_that_takes_nothing_is_not_waited_for_long() -> None:
    """It has no connections, and its loop stands still: the others take all, one after the other."""

    assert asyncio.run(served(1, 6, still=1)) == [6]
