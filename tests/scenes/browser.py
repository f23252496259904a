"""A headless Chromium that tests drive, over its DevTools protocol: what a page's scripts really do."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.scenes.waiting import PATIENCE, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"Tab": 9, "Enter": 13}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1100")


class Browser:
    """One tab. Made by :func:`browser`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket = loop, socket
        self._calls = 0

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the protocol and its result; events that come meanwhile are passed over."""
        self._calls += 1
        answer = self._loop.run_until_complete(self._ask({"id": self._calls, "method": method, "params": params}))
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def go(self, url: str) -> None:
        """Opens a page and waits until its scripts run."""
        self.call("Page.navigate", url=url)
        until(
            lambda: bool(self.evaluate(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")), url
        )

    def press(self, key: str, text: str = "") -> None:
        """A key of :data:`KEYS`."""
        of = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **of)
        self.call("Input.dispatchKeyEvent", type="keyUp", **of)

    def tab_to(self, name: str) -> None:
        """Tab after tab to an element by its value or id, as one without a mouse goes; nothing on the way may keep
        him."""
        for _ in range(40):
            if self.evaluate("document.activeElement.value || document.activeElement.id") == name:
                return
            self.press("Tab")
        raise AssertionError(f"{name} cannot be reached")

    def until(self, script: str) -> None:
        """Waits until an expression is true."""
        until(lambda: bool(self.evaluate(script)), script, every=0.1)

    def screenshot(self, path: Path) -> None:
        """A picture of what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    async def _ask(self, command: dict[str, object]) -> dict[str, Any]:
        await self._socket.send_json(command)
        while True:
            answer: dict[str, Any] = await self._socket.receive_json(timeout=PATIENCE)
            if answer.get("id") == command["id"]:
                return answer


@contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Browser]:
    """A Chromium with a profile of its own; it is gone afterwards."""
    assert CHROMIUM is not None, "no Chromium is installed; see tests/scenes/browser.py"
    profile = folder / "chromium"
    with (folder / "chromium.out").open("wb") as out:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    loop = asyncio.new_event_loop()
    try:
        named = profile / "DevToolsActivePort"

        def says() -> bool:
            assert process.poll() is None, (folder / "chromium.out").read_text(errors="replace")
            return named.exists() and "\n" in named.read_text()

        until(says, "Chromium names its port")
        port = int(named.read_text().split("\n")[0])
        session, socket = loop.run_until_complete(_connect(port))
        try:
            yield Browser(loop, socket)
        finally:
            loop.run_until_complete(_leave(session, socket))
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            loop.close()


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
        address = (await answer.json())["webSocketDebuggerUrl"]
    return session, await session.ws_connect(address, max_msg_size=0)


async def _leave(session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.close()
    await session.close()
    await asyncio.sleep(0)  # aiohttp closes its connections in the next turn of the loop
