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
from typing import NamedTuple

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
        roles: commands of ``python -m commands`` that are roles.
        own: the name of ``root`` itself, and of what is below it and has no name.
    """
    found = Taken()
    names: dict[int, str] = {}
    for pid, process in below(root).items():
        fields = _fields(pid)
        if not fields:
            continue
        inherited = names.get(process.parent) or names.get(process.session, own)
        name = names[pid] = own if pid == root else role_of(process.argv, roles) or inherited
        # Its own time, and that of children that have ended and were waited for.
        found.cpu_s[name] = found.cpu_s.get(name, 0.0) + sum(map(int, fields[11:15])) * _TICK_S
        found.memory[name] = found.memory.get(name, 0) + _proportional(pid)
    return found


class Process(NamedTuple):
    """One that runs."""

    parent: int
    session: int  # the process that leads it
    argv: tuple[str, ...]


def below(root: int) -> dict[int, Process]:
    """The process ``root`` and all below it, parents before children; last those that have lost their parent and are in
    a session of one of these."""
    every = {int(entry.name): _process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, process in every.items():
        if process is not None:
            children.setdefault(process.parent, []).append(pid)
    found: dict[int, Process] = {}
    line = [root]
    while line:
        pid = line.pop(0)
        if (process := every.get(pid)) is not None:
            found[pid] = process
            line += children.get(pid, [])
    own = {process.session for pid, process in found.items() if process.session in found}
    return found | {pid: p for pid, p in every.items() if p is not None and p.session in own and pid not in found}


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


def _process(pid: int) -> Process | None:
    fields = _fields(pid)
    if not fields or fields[0] == "Z":
        return None
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(int(fields[1]), int(fields[3]), tuple(argv))


def role_of(argv: Sequence[str], roles: Sequence[str]) -> str:
    """The role or service that a command line names; empty: none of ``roles``."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        for name, role in _NAMES.items():
            if argument == name or os.path.basename(argument.split(" ")[0]) == name:
                return role
        if argument in ("millrace", "commands", "run") and following in roles:
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
