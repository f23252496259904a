# shell
"""Child processes that die with their parent, however it ends: normally, by Ctrl-C, by SIGTERM, by ``kill -9``. Linux.

::

    parent ── launcher (python -I -S) ── prctl(PR_SET_PDEATHSIG, SIGKILL) ── exec ──► the program    one process id

The kernel sends the death signal when the *thread* that forked ends, so one thread that lives as long as the process
forks all children. The launcher checks its parent after it has asked for the signal: no signal comes if the parent died
before. No code runs between fork and exec in the parent's own image (no ``preexec_fn``), so spawning is safe while
other threads run.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from millrace.basics.errors import ServiceError

LOG_BYTES = 32 << 20  # limit of a program's log; the moved part before it has as many again

_LAUNCHER = """
import ctypes, os, signal, sys
parent, argv = int(sys.argv[1]), sys.argv[2:]
if ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0):
    sys.exit('prctl(PR_SET_PDEATHSIG) failed')
if os.getppid() != parent:
    os._exit(0)
for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored_by_python, signal.SIG_DFL)
try:
    os.execv(argv[0], argv)
except OSError as error:
    sys.exit(f'{argv[0]} cannot be executed: {error.strerror}')
"""

_Job = tuple[Future["subprocess.Popen[bytes]"], list[str], dict[str, str], Path, Path | None]


class _Forker:
    """The one thread that forks. A process that was itself forked from one with this thread makes a new one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="spawn", daemon=True).start()

    def _run(self) -> None:
        while True:
            future, argv, env, log_path, cwd = self.jobs.get()
            try:
                future.set_result(self._start(argv, env, log_path, cwd))
            except BaseException as error:
                future.set_exception(error)

    def _start(self, argv: list[str], env: dict[str, str], log_path: Path, cwd: Path | None) -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(self.pid), *argv],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone, which then stops us
            )


_forker: _Forker | None = None
_lock = threading.Lock()


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    log_path: Path,
    *,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts ``argv`` (an absolute path, then arguments) in its own session and appends its output to ``log_path``. It
    cannot outlive this process. The caller stops and reaps it (:func:`stop`). ``env`` is the whole environment, ``cwd``
    the working folder; None inherits ours. Raises ServiceError when the program is not there, or the log cannot be
    written."""
    global _forker
    if not os.path.isabs(argv[0]) or not os.access(argv[0], os.X_OK):
        raise ServiceError(f"program '{argv[0]}' is not an executable file", "give its full path")
    with _lock:
        if _forker is None or _forker.pid != os.getpid():
            _forker = _Forker()
    future: Future[subprocess.Popen[bytes]] = Future()
    environment = dict(os.environ if env is None else env)
    _forker.jobs.put((future, list(argv), environment, log_path, cwd))
    try:
        return future.result()
    except OSError as error:
        raise ServiceError(f"'{argv[0]}' cannot be started ({error})", "check the folder and its permissions") from None


def stop(child: subprocess.Popen[bytes], patience_seconds: float = 5.0) -> int:
    """SIGTERM, then SIGKILL after ``patience_seconds``; returns the exit status. Safe to call on an ended child."""
    if child.poll() is None:
        child.terminate()
        try:
            return child.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


def tail(log_path: Path, lines: int = 3) -> str:
    """The end of a child's log on one line, for an error message."""
    try:
        text = log_path.read_bytes()[-4096:].decode(errors="replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())


def bound(log_path: Path, most_bytes: int = LOG_BYTES) -> None:
    """Moves the content of a log above ``most_bytes`` to ``log_path`` + ``.1``, over the part moved before. Writers go
    on: :func:`spawn` opens logs for appending. Lines between the copy and the cut (under a millisecond) are lost."""
    try:
        if log_path.stat().st_size <= most_bytes:
            return
        with log_path.open("r+b") as log, log_path.with_name(f"{log_path.name}.1").open("wb") as before:
            shutil.copyfileobj(log, before)
            log.truncate(0)
    except OSError:  # a full disk: the log grows on, and the next look tries again
        return
