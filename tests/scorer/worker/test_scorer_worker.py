"""A worker's process and how it ends: by a message that it cannot take, and by a link that closes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from millrace.contracts.settings import Settings
from millrace.processes.shared import Region
from scorer.ipc.link import Closed, Inbox, Packet
from scorer.pagelog.ring import RING_BYTES, RingReader, RingWriter
from scorer.worker.acceptor import NOBODY
from tests.scenes.page_logs import page
from tests.scenes.scorer_shop import SCHEMA_TOML
from tests.scenes.waiting import LONG, PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONG)]

PROGRAM = """
import sys, msgspec
from millrace.contracts.settings import Settings
from scorer.ipc.link import Handles
from scorer.worker.scorer_worker import work
work(msgspec.json.decode(sys.argv[1], type=Settings), 0, Handles(*map(int, sys.argv[2:])))
"""


class Feeder:
    """What a worker has at its other end: we."""

    def __init__(self, folder: Path) -> None:
        self.ring, self.shares, self.listener = Region(RING_BYTES), Region(8), socket.create_server(("127.0.0.1", 0))
        self.shares.array((1,), np.int64)[:] = NOBODY
        self.memory = self.ring.array((RING_BYTES,), np.uint8)
        for number in range(3):
            RingWriter(self.memory).put(page(number, 4))
        self.reader = RingReader(self.memory)
        self.settings = Settings(data=str(folder), schema=str(SCHEMA_TOML), redis="redis://127.0.0.1:9")
        self.end, theirs = socket.socketpair()
        handles = [theirs.fileno(), self.listener.fileno(), self.ring.fd, self.shares.fd, os.eventfd(0)]
        text = msgspec.json.encode(self.settings).decode()
        argv = [sys.executable, "-c", PROGRAM, text, *map(str, handles)]
        self.process = subprocess.Popen(argv, pass_fds=handles, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        theirs.close()
        self.inbox = Inbox(self.end)

    def until(self, kind: str) -> None:
        """Reads the worker's messages up to one of this kind."""
        while kind not in [message.kind for message in self.inbox.read()]:
            pass

    def output(self) -> str:
        return self.process.communicate(timeout=PATIENCE)[0].decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.inbox.close()
        self.end.close()
        self.listener.close()


@pytest.fixture
def feeder(tmp_path: Path) -> Iterator[Feeder]:
    found = Feeder(tmp_path)
    yield found
    found.close()


def spooled(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_worker_that_cannot_take_a_message_ends(feeder: Feeder) -> None:
    """It would lack what the message changed, and answer by a version that there never was."""
    feeder.until("hello")
    Packet("lists", None, {"nonsense": np.ones(3)}).send(feeder.end)
    with pytest.raises(Closed):
        feeder.until("nothing")
    assert "cannot take a message" in feeder.output()
    assert feeder.process.returncode == 1
    assert not feeder.reader.empty, "its log is the feeder's to read"


@pytest.mark.parametrize("lives", [True, False])
def test_a_worker_whose_link_closes_saves_its_log_only_if_the_feeder_is_gone(
    feeder: Feeder, tmp_path: Path, lives: bool
) -> None:
    """Two who read one ring would both take what they find, or neither."""
    if lives:
        fcntl.lockf(feeder.ring.fd, fcntl.LOCK_EX)
    feeder.until("hello")
    feeder.end.shutdown(socket.SHUT_RDWR)
    feeder.output()
    assert feeder.process.returncode == 0
    assert bool(spooled(tmp_path)) is not lives
    assert RingReader(feeder.memory).empty is not lives
