# core
"""What processes have taken so far: processor time, memory, bytes on the disk. Linux, from ``/proc``.

A process belongs to the role that its command line names, else to its parent's. Memory is the proportional share (PSS):
pages that processes share are counted once, split among them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_NAMES = {"millrace.broker": "broker", "redis-server": "redis"}


@dataclass
class Taken:
    """Of one moment."""

    cpu_s: dict[str, float] = field(default_factory=dict)  # by role, since its processes began
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    folders: dict[str, int] = field(default_factory=dict)  # bytes of files


def processes(root: int, roles: Sequence[str], own: str) -> Taken:
    """What the process ``root`` and all below it take, by role. ``roles``: commands of ``python -m millrace`` that are
    roles. ``own``: the name of ``root`` itself, and of what is below it and has no name."""
    found, names = Taken(), dict[int, str]()
    for process in below(root):
        with suppress(psutil.Error):  # it ended meanwhile
            role = "" if process.pid == root else role_of(process.cmdline(), roles)
            name = names[process.pid] = role or names.get(process.ppid(), own)
            found.cpu_s[name] = found.cpu_s.get(name, 0.0) + own_cpu_seconds(process)
            found.memory[name] = found.memory.get(name, 0) + process.memory_full_info().pss
    return found


def below(root: int) -> list[psutil.Process]:
    """The process ``root`` and all below it, parents before children; none: it is gone."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def own_cpu_seconds(process: psutil.Process) -> float:
    """Its own time, and that of children that have ended and were waited for; 0: it is gone."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder. Files may come and go meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def topic_bytes(broker: Path) -> dict[str, int]:
    """Bytes of each topic in the folder of an embedded broker: what was appended, as it lies on the disk."""
    found = {path.name.rpartition(".")[0]: folder_bytes(path) for path in broker.glob("topics/logs/*")}
    return {name: size for name, size in found.items() if name}


def role_of(argv: Sequence[str], roles: Sequence[str]) -> str:
    """The role or service that a command line names; empty: none of ``roles``."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        for name, role in _NAMES.items():
            if argument == name or os.path.basename(argument.split(" ")[0]) == name:
                return role
        if argument in ("millrace", "run") and following in roles:
            return following
    return ""
