# shell
"""What a loop on a data folder does now: for ``millrace status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from millrace.commands.loop.monitor import fetch
from millrace.commands.up import data_folder as folders
from millrace.contracts.settings import Settings, without_password

ANSWER_SECONDS = 5.0


def running(settings: Settings) -> dict[str, Any]:
    """The loop on the folder of ``settings``: ``running``, its ``addresses`` and ``pid``, and from its live page
    ``phase``, ``roles``, ``services`` (our own broker and Redis, and their pids), ``gate`` and ``awaits``. Unavailable
    entries are left out."""
    data = Path(settings.data)
    found: dict[str, Any] = {"data": str(data), "running": folders.in_use(data)}
    if not found["running"]:
        return found
    addresses = folders.addresses(data)
    found["addresses"] = {n: without_password(v) for n, v in addresses.items() if isinstance(v, str)}
    if "pid" in addresses:
        found["pid"] = addresses["pid"]
    if page := addresses.get("page"):
        try:
            state = msgspec.json.decode(fetch(f"{page.rstrip('/')}/state.json", ANSWER_SECONDS))
        except (OSError, msgspec.MsgspecError):
            return found
        found |= {name: state[name] for name in ("phase", "roles", "services", "gate", "awaits")}
    return found


def status_lines(found: dict[str, Any]) -> list[str]:
    version = f"; model version {found['version']}" if "version" in found else ""
    if not found["running"]:
        return [f"no loop runs on '{found['data']}'{version}"]
    process = f" (process {found['pid']})" if "pid" in found else ""
    lines = [f"a loop runs on '{found['data']}'{process}: {found.get('phase', 'starting or stopping')}{version}"]
    for role in found.get("roles", []):
        awaits = f" ({role['awaits']})" if role.get("awaits") else ""
        process = f", process {role['pid']}" if role.get("pid") else ""
        lines.append(f"{role['name']:<10} {role['state']}{awaits}{process}, {role['restarts']} restarts")
    lines += [f"{name:<10} process {pid}" for name, pid in found.get("services", {}).items() if pid]
    if "gate" in found:
        lines.append(f"{'gate':<10} {found['gate']['says']}")
    lines += [f"{name:<10} {address}" for name, address in found.get("addresses", {}).items()]
    return [*lines, *([found["awaits"]] if found.get("awaits") else [])]
