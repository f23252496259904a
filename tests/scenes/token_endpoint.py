"""A token endpoint as identity providers have it (RFC 6749, client credentials); its tokens are not signed."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote_plus

CLIENT, SECRET = "millrace", "s&cret of the shop"


class TokenEndpoint(ThreadingHTTPServer):
    """``life_s``: of its tokens. ``status``: what it answers; with another one than 200 there is no token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.life_s, self.status = 3600.0, 200
        self.asked: list[dict[str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _Handler(BaseHTTPRequestHandler):
    server: TokenEndpoint

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append(form)
        kind, _, given = self.headers["Authorization"].partition(" ")
        known = [unquote_plus(part) for part in base64.b64decode(given).decode().split(":")] == [CLIENT, SECRET]
        good = kind == "Basic" and known and form["grant_type"] == ["client_credentials"]
        self.send_response(self.server.status if good else 401)
        self.end_headers()
        if good and self.server.status == 200:
            now = time.time()
            claims = {"sub": CLIENT, "iat": now, "exp": now + self.server.life_s}
            token = f"{_part({'alg': 'none'})}.{_part(claims)}."
            self.wfile.write(json.dumps({"access_token": token, "expires_in": self.server.life_s}).encode())

    def log_message(self, *_: object) -> None:
        pass


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@contextmanager
def token_endpoint() -> Iterator[TokenEndpoint]:
    with TokenEndpoint() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
