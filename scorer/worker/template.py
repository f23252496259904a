# shell
"""The template: a process that has imported and compiled everything, and is forked once for each worker.

::

    feeder ── fork ───► template   compiles; has one thread
      │                    ├─ fork ─► worker 0     its end of a link, the listening socket, its log's memory
      │                    └─ fork ─► worker 1
      └─ "fork", "kill" ──►│ answers with the worker's process id, or 0

So a worker starts within milliseconds, and the feeder and all workers share what was imported. Questions come one at a
time. When the feeder ends, the template and the workers see their sockets close, and end. When the template ends, its
workers go on, and the feeder starts another one (:meth:`Template.renew`): a new program, since the feeder has threads
by then and cannot be forked.

multiprocessing's fork server would need pickle, and passes no listening sockets.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module

import msgspec
import structlog

from millrace.basics.errors import ServiceError
from millrace.contracts.settings import Settings
from scorer.ipc.link import Handles

log = structlog.get_logger("scorer")

_MOST = 1 << 16
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode
LOOK_SECONDS, ANSWER_SECONDS = 0.2, 10.0
WARM_SECONDS = 600.0
"""Timeout of the first answer: a fresh clone compiles everything before it."""


class Template:
    """The feeder's side. The workers have the same ``settings``; nothing waits after ``stop`` is set. Raises OSError:
    no process can be started.

    Args:
        forks: whether the first one is a fork of this process, which has one thread.
    """

    def __init__(self, settings: Settings, stop: threading.Event, forks: bool = False) -> None:
        self._settings, self._stop, self._lock = settings, stop, threading.Lock()
        self._process: subprocess.Popen[bytes] | Fork
        self._start(forks)

    def _start(self, forks: bool = False) -> None:
        self._warm = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            if forks:
                import_module("scorer.worker.scorer_worker")
                gc.collect()
                gc.freeze()  # what is there now stays shared: the collector would write to it
                self._process = Fork(partial(main, theirs.fileno()), theirs.fileno())
            else:
                argv = [sys.executable, "-m", "scorer.worker.template", str(theirs.fileno())]
                self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        with contextlib.suppress(OSError):  # it has ended already: whoever asks it something gets the error
            self._socket.sendall(_framed(_encode(self._settings)))

    @property
    def lost(self) -> bool:
        """Whether it has ended after it had started workers. One that ended before may never work."""
        return self._warm and self._process.poll() is not None

    def renew(self) -> None:
        """Replaces a template that has ended or does not answer. Its workers go on. Raises OSError."""
        with self._lock:
            self.close()
            if not self._stop.is_set():
                log.warning("the template process is of no use: another one is started", pid=self._process.pid)
                self._start()

    def fork(self, number: int, handles: Handles) -> int:
        """Starts worker ``number``; its process id. The first call waits for the imports. Raises ServiceError: the
        template has ended, or the role ends."""
        return self._ask(["fork", number], list(handles))

    def kill(self, pid: int) -> bool:
        """Kills a worker; False: it is none of this template's, or has ended already. Raises ServiceError."""
        return self._ask(["kill", pid], []) == pid

    def close(self) -> None:
        """Ends the template; workers that still run end with their links."""
        self._socket.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:  # still importing
            self._process.kill()
            self._process.wait()

    def _ask(self, question: list[object], fds: list[int]) -> int:
        with self._lock:
            answer, reason = self._answer(question, fds)
        if not answer:
            raise ServiceError(f"the scorer's template process is of no use ({reason})", "see what it said above")
        self._warm = True
        return int(_decode(answer))

    def _answer(self, question: list[object], fds: list[int]) -> tuple[bytes, str]:
        """The answer; or empty bytes and the reason."""
        deadline = time.monotonic() + (ANSWER_SECONDS if self._warm else WARM_SECONDS)
        try:
            self._socket.settimeout(LOOK_SECONDS)
            socket.send_fds(self._socket, [_encode(question)], fds)
            while time.monotonic() < deadline and not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    return self._socket.recv(_MOST), f"status {self._process.poll()}"
        except OSError as error:
            return b"", str(error)
        return b"", "it does not answer"


class Fork:
    """A fork of this process, which has one thread: it runs ``life``, with no file but ``kept`` and the standard ones.
    It has the methods of a :class:`subprocess.Popen`."""

    def __init__(self, life: Callable[[], None], kept: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.closerange(3, kept)
                os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
                life()
            finally:
                os._exit(1)  # nothing of the feeder's is to be cleaned up here

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("template", timeout)
            time.sleep(0.005)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = source.recv(size - len(data))
        if not got:
            raise EOFError
        data += got
    return data


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the feeder says when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=fd)
    try:
        settings = _decode(_read(control, int.from_bytes(_read(control, 8), "big")), type=Settings)
    except (EOFError, OSError):
        return
    from scorer.worker.scorer_worker import prepare, work

    prepare(settings)
    running: set[int] = set()
    while True:
        readable, _, _ = select.select([control], [], [], 0.5)
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                running.discard(pid)
        if not readable:
            continue
        try:
            data, fds, _, _ = socket.recv_fds(control, _MOST, len(Handles._fields))
        except OSError:
            return
        if not data:
            return
        what, number = _decode(data)
        answer = 0
        if what == "fork":
            answer = os.fork()
            if not answer:
                control.close()
                work(settings, number, Handles(*fds))  # does not come back
            running.add(answer)
        elif number in running:
            os.kill(number, signal.SIGKILL)
            answer = number
        for each in fds:
            os.close(each)
        try:
            control.sendall(_encode(answer))
        except OSError:  # the feeder has ended meanwhile; a worker that was just forked sees it too
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
