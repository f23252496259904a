# core
"""What a running loop has taken so far, by role: processor time, memory, bytes on the disk. Linux, from ``/proc``.

::

    up ─┬─ stream                      a process belongs to the role that its command line names,
        ├─ serve ── worker, worker     else to the role of its parent
        └─ broker, redis

Memory is the proportional share (PSS): pages that processes share are counted once, split among them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_NAMES = {"millrace.broker": "broker", "redis-server": "redis"}


@dataclass
class Taken:
    """Of one moment."""

    cpu_s: dict[str, float] = field(default_factory=dict)  # by role, since its processes began
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    folders: dict[str, int] = field(default_factory=dict)  # bytes of files


def processes(root: int, roles: Sequence[str], own: str) -> Taken:
    """Of the process ``root`` and all below it.

    Args:
        roles: commands of ``python -m millrace`` that are roles.
        own: the name of ``root`` itself, and of what is below it and has no name.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, line = Taken(), [(root, own)]
    while line:
        pid, parent = line.pop()
        fields = _fields(pid)
        if not fields:
            continue
        name = own if pid == root else _role(pid, roles) or parent
        # Its own time, and that of children that have ended and were waited for.
        found.cpu_s[name] = found.cpu_s.get(name, 0.0) + sum(map(int, fields[11:15])) * _TICK_S
        found.memory[name] = found.memory.get(name, 0) + _proportional(pid)
        line += [(child, name) for child in children.get(pid, [])]
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder. Files may come and go meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total


def topic_bytes(broker: Path) -> dict[str, int]:
    """Bytes of each topic in the folder of an embedded broker: what was appended, as it lies on the disk."""
    logs = broker / "topics" / "logs"
    found = {path.name.rpartition(".")[0]: folder_bytes(path) for path in logs.iterdir()} if logs.exists() else {}
    return {name: size for name, size in found.items() if name}


def _fields(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name: state, parent, ...; none: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _role(pid: int, roles: Sequence[str]) -> str:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        for name, role in _NAMES.items():
            if argument == name or os.path.basename(argument.split(" ")[0]) == name:
                return role
        if argument == "millrace" and following in roles:
            return following
    return ""


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
