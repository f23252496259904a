"""Serves the live page and its state on loopback, from a thread of the demo.

The page needs nothing from elsewhere: three files and ``/state.json``. A content security policy holds it to that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

import msgspec

from millrace.contracts.errors import PortError
from millrace.demo.status import State

FIRST_PORT = 8710
_TRIES = 50
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:"


class PageServer:
    """Answers GET for the page's files and the state.

    Args:
        state: asked for the state at each poll of a browser.
        port: the port to bind; None: 8710 or the next free one.

    Raises:
        PortError: the given port is taken.
    """

    def __init__(self, state: Callable[[], State], port: int | None = None, host: str = "127.0.0.1") -> None:
        files = {
            path: (resources.files(__package__).joinpath(name).read_bytes(), kind)
            for path, (name, kind) in _FILES.items()
        }

        class Handler(BaseHTTPRequestHandler):
            server_version = "millrace"
            sys_version = ""
            protocol_version = "HTTP/1.1"
            timeout = 60

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/state.json":
                    self._answer(200, msgspec.json.encode(state()), "application/json")
                elif path in files:
                    self._answer(200, *files[path])
                else:
                    self._answer(404, b"not here; the page is at /\n", "text/plain; charset=utf-8")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Security-Policy", _POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not worth a line each."""

        self._server = _bind(host, port, Handler)
        self.url = f"http://{host}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle of an answer is no news."""


def _bind(host: str, port: int | None, handler: type[BaseHTTPRequestHandler]) -> _Server:
    candidates = range(FIRST_PORT, FIRST_PORT + _TRIES) if port is None else (port,)
    for candidate in candidates:
        try:
            return _Server((host, candidate), handler)
        except OSError as error:
            problem = error.strerror
    raise PortError(
        f"port {host}:{candidate} for the live page cannot be bound ({problem})", "give a free one with --page-port"
    )
