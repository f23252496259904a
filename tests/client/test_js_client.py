"""The JavaScript client in Node: its own tests, and the real intake and scorer through it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp

from millrace.processes.services import free_port
from tests.architecture import ROOT
from tests.scenes.filter_world import Shop
from tests.scenes.intake_desk import Intake
from tests.scenes.scorer_shop import item
from tests.scenes.waiting import PATIENCE

NODE = shutil.which("node")


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.mark.services
@pytest.mark.skipif(NODE is None, reason="there is no node on PATH")
def test_the_javascript_client_does_what_it_should_and_the_real_servers_understand_it() -> None:
    intake, shop = Intake(), Shop([item(n, "shoes") for n in range(9)])

    async def main() -> tuple[int | None, str]:
        async with AsyncExitStack() as stack:
            where = [await stack.enter_async_context(served(app)) for app in (intake.app, shop.app)]
            env = {**os.environ, "MILLRACE_INTAKE": where[0], "MILLRACE_SCORER": where[1]}
            pipe = asyncio.subprocess.PIPE
            command = [str(NODE), "--test", str(ROOT / "client/js/millrace.test.js")]
            node = await asyncio.create_subprocess_exec(*command, env=env, stdout=pipe)
            said, _ = await asyncio.wait_for(node.communicate(), PATIENCE)
            return node.returncode, said.decode()

    status, said = asyncio.run(main())
    assert status == 0, said
    assert "# skipped 0" in said
    events = [value for value in intake.outlet.values if value and "type" in value]
    assert [event["type"] for event in events] == ["exposure", "click", "collect", "cart", "purchase"]
    (log,) = [page for page in shop.sent if page.request_id == events[0]["request_id"]]
    assert events[0]["items"] == log.items
    assert {event["position"] for event in events[1:]} == {0}
