# core
"""Files that are whole or absent: written under a temporary name, ``.{name}.{machine}-{process id}.tmp``, then renamed.

The caller chooses whether a file also survives a loss of power (fsync of the file, and of its folder after the rename):

================================  =========  ==========================================================================
file                              durable    why
================================  =========  ==========================================================================
checkpoint of a partition         yes        offsets are committed, and Kafka forgets, because it exists
snapshot and delta of the model   yes        they are announced to scorers on other machines, and deltas build on them
item index of the scorer          yes        it is a file of the store; Kafka could make it again, slowly
offsets that groups committed     --sync     as the records; lost, readers begin where their own state says
offsets of reported dead letters  no         lost, dead letters are written again, and are recognised by their offsets
last metrics of a role            no         read by the demo's report on the same machine, minutes later
points of the live page's charts  no         lost, the charts begin anew
report, day log                   no         a person reads it; the same command makes it again
================================  =========  ==========================================================================
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?:([\w-]+)-)?(\d+)\.tmp")
_MACHINE = re.sub(r"\W", "_", platform.node()) or "machine"
_ABANDONED_S = 86_400
_scratches = count()


def temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.tmp")


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A folder in ``folder`` for what this process needs for a while. Those of processes that were killed are removed
    before."""
    clear_leftovers(folder)
    made = temporary_beside(folder / f"{name}-{next(_scratches)}")
    shutil.rmtree(made, ignore_errors=True)  # of a former process with this id
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_whole(path: Path, *chunks: bytes | memoryview, durable: bool, replaces: bool = True) -> None:
    """Makes or replaces the file ``path``. Raises OSError; the old file or the new one is then there, whole.
    ``durable``: file and rename are on the disk when this returns; otherwise the system writes them later.
    ``replaces``: False: a file that is there stays, and FileExistsError is raised.

    Two threads of one process must not write the same path at the same time: they would share the temporary file.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if replaces:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the names in ``folder`` are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_of(path: Path) -> int | None:
    """A lock on a file, which is made if missing, until the descriptor is closed or this process ends, however it ends.
    None: another has it. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def clear_leftovers(folder: Path) -> None:
    """Removes temporary files and folders whose writers no longer run.

    Files of this machine name a process, which can be checked. A file of another machine counts as abandoned when the
    newest temporary or whole file of the folder is a day younger: no write takes so long.

    Call it before this process writes there: a leftover with its own process id is of an earlier process (in a
    container the id is often 1).
    """
    found = [(path, match) for path in folder.glob(".*.tmp") if (match := _TEMPORARY.fullmatch(path.name))]
    if not found:
        return
    newest_s = max((_changed_s(path) for path in folder.iterdir()), default=0.0)
    for path, match in found:
        if match[1] in (None, _MACHINE):
            process = int(match[2])
            if process != os.getpid() and _lives(process):
                continue
        elif _changed_s(path) > newest_s - _ABANDONED_S:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _changed_s(path: Path) -> float:
    """Time of the last write; 0 for a missing file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True
