# shell
"""What a loop on a data folder does now: for ``millrace status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from millrace.basics.durations import span_name
from millrace.commands.loop.monitor import fetch
from millrace.commands.up import data_folder as folders
from millrace.contracts.settings import Settings, without_password

ANSWER_SECONDS = 5.0
FIGURES = ("served_version", "waiting_actions", "intake_refused")


def running(settings: Settings) -> dict[str, Any]:
    """The loop on the folder of ``settings``: ``running``, its ``addresses`` and ``pid``, and from its live page
    ``phase``, ``roles``, ``services`` (our own broker and Redis, and their pids), ``gate``, ``awaits``,
    ``lateness_minutes`` and :data:`FIGURES`. Unavailable entries are left out."""
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
        names = ("phase", "roles", "services", "gate", "awaits", "lateness_minutes")
        found |= {name: state[name] for name in names} | {name: state["figures"].get(name) for name in FIGURES}
    return found


def status_lines(found: dict[str, Any]) -> list[str]:
    version = f"; newest snapshot: version {found['version']}" if "version" in found else ""
    if (served := found.get("served_version")) is not None:
        version = f"; serves model version {served:.0f}"
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
    return [*lines, *waiting_lines(found), *([found["awaits"]] if found.get("awaits") else [])]


def waiting_lines(found: dict[str, Any]) -> list[str]:
    """Which messages are in nothing that is learnt, and in no dead letter either: at most one line."""
    if (waiting := found.get("waiting_actions")) is None:
        return []
    late = span_name(60_000 * found["lateness_minutes"])
    refused = f"; the intake refused {found['intake_refused']:,.0f} messages" if found.get("intake_refused") else ""
    says = f"{waiting:,.0f} actions, for their exposure or its page log: a dead letter (no-exposure) after {late}"
    return [f"{'waiting':<10} {says}{refused}"]
