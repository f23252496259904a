# shell
"""`millrace doctor`: checks settings, schema, model, services, topics, clocks, disk and versions.

It reads up.json of the data folder if a run is there, and sends all probes together. It changes nothing, starts
nothing but a process that tries a named model, and always ends: a missing answer is a finding.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from millrace import __version__
from millrace.basics.errors import MillraceError
from millrace.commands.loop.monitor import readiness
from millrace.commands.up import data_folder as folders
from millrace.commands.up import findings, probes
from millrace.commands.up.findings import Finding, mend, note, ok, status
from millrace.commands.up.ports import check, choose
from millrace.commands.up.uprun import ROLES
from millrace.connections import redis_clients
from millrace.connections.kafka_security import security_of
from millrace.contracts.schema import Schema
from millrace.contracts.settings import HIDDEN, Settings, load_settings, unread_variables, without_password
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import topics_of
from millrace.processes.tokens import Tokens, is_loopback
from millrace.processes.wall import wall_ms

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest that Millrace is tested with."""


_GATE = {
    "on": "refuses what fails a check",
    "observe": "says what it would refuse, and refuses only what is damaged or absurd",
    "off": "nothing is judged",
}


def doctor(overrides: Mapping[str, Any], *, as_json: bool = False, say: Callable[[str], None] = print) -> int:
    """Prints a line a check; returns 0 when nothing must be mended, else 1."""
    found = examine(overrides)
    if as_json:
        say(msgspec.json.encode(found).decode())
    else:
        for finding in found:
            say(str(finding))
    return status(found)


def examine(overrides: Mapping[str, Any]) -> list[Finding]:
    found = _program()
    try:
        settings = load_settings(overrides)
        data = Path(folders.on_folder(settings).data)
    except MillraceError as error:
        return [*found, mend("settings", error.problem, error.remedy)]
    running = folders.in_use(data)
    there = folders.addresses(data) if running else {}
    shown = {name: address for name in ("kafka", "redis", "scorer", "intake") if (address := there.get(name))}
    if HIDDEN in shown.get("redis", ""):  # only whoever started the loop knows it whole
        del shown["redis"]
    settings = msgspec.structs.replace(settings, **shown)
    found += _settings(settings)
    settings = folders.on_folder(settings)
    schema = _schema(settings, data, found)
    tried = None
    if schema is not None and status(found) == 0 and (settings.model, settings.model_spec) != (Settings().model, {}):
        # The default needs no trial, and its imports take seconds.
        tried = probes.within(lambda: probes.model(settings), probes.TRIAL_SECONDS + probes.PATIENCE_SECONDS)
    found += findings.judge_folder(str(data), *probes.folder(data), 0.0 if settings.kafka else settings.broker_gib)
    if settings.store and "://" not in settings.store:
        found += findings.judge_folder(settings.store, *probes.folder(Path(settings.store)))
    if running and not there:
        found.append(note("run", f"a run on '{data}' starts or stops just now", "ask again in a moment"))
    elif running:
        found.append(ok("run", f"'millrace up' runs on '{data}' (process {there['pid']})"))
    else:
        found += _ports(settings)
    if schema is not None:
        found.append(findings.judge_memory(schema))
        found += _services(settings, there)
    if tried is not None:
        found.append(_model(settings, tried()))
    return found


def _program() -> list[Finding]:
    versions, missing = probes.libraries()
    python = platform.python_version()
    found = [ok("python", f"{python}; millrace {__version__}")]
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        oldest, newest = (".".join(map(str, pair)) for pair in PYTHONS)
        found = [mend("python", f"{python}; millrace {__version__}", f"use {oldest} to {newest}")]
    if missing:
        found.append(mend("libraries", f"missing: {', '.join(missing)}", "install millrace again, by pip or uv"))
    else:
        found.append(ok("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return found


def _settings(settings: Settings) -> list[Finding]:
    try:
        settings.spec()
        clock = settings.event_clock()
        tokens = bool(Tokens.of(settings))
        security_of(settings)
        if settings.redis:
            redis_clients.redis_client(settings.redis).close()
    except MillraceError as error:
        return [mend("settings", error.problem, error.remedy)]
    default = Settings()
    changed = [name for name in Settings.__struct_fields__ if getattr(settings, name) != getattr(default, name)]
    secret = {"tokens", "token_file"}
    shown = [
        name if name in secret else f"{name}={without_password(str(getattr(settings, name)))}"
        for name in sorted(changed)
    ]
    return [
        *[note("settings", *line.split("; ")) for line in unread_variables(os.environ)],
        ok("settings", f"not the default: {', '.join(shown)}" if shown else "the defaults"),
        ok("gate", _GATE[settings.gate]),
        findings.judge_event_clock(clock, wall_ms()),
        findings.judge_tokens(is_loopback(settings.host), settings.host, tokens),
    ]


def _schema(settings: Settings, data: Path, found: list[Finding]) -> Schema | None:
    try:
        schema = settings.load_schema()
    except MillraceError as error:
        found.append(mend("schema", error.problem, error.remedy))
        return None
    if not settings.schema:
        remedy = "name yours with --schema: 'millrace up' asks for one"
        found.append(note("schema", "none is named; the simulated shop's is looked at", remedy))
    found += findings.judge_schema(schema, folders.kept_schema(data))
    return schema


def _model(settings: Settings, answer: probes.ProbeResult[dict[str, str]]) -> Finding:
    """Whether the named model could be made; a user's own class is tried on a few rows."""
    if answer.value is None:
        return note("model", f"'{settings.model}' could not be tried ({answer.problem})")
    if "problem" in answer.value:
        return mend("model", answer.value["problem"], answer.value["remedy"])
    return ok("model", answer.value["text"])


def _ports(settings: Settings) -> list[Finding]:
    """No run is there: whether one could have its ports."""
    try:
        check(choose(settings, ROLES, free=False), settings.host)
    except MillraceError as error:
        return [mend("ports", error.problem, error.remedy)]
    return [ok("ports", "those of 'millrace up' are free")]


def _services(settings: Settings, there: Mapping[str, Any]) -> list[Finding]:
    http = {name: address for name in ("scorer", "intake") if (address := getattr(settings, name))}
    of_broker = probes.within(lambda: probes.broker(settings)) if settings.kafka else None
    of_redis = probes.within(lambda: probes.redis_clock(settings.redis)) if settings.redis else None
    of_http = {name: probes.within(lambda url=url: readiness(url, probes.SHORT)) for name, url in http.items()}  # type: ignore[misc]
    metrics: Mapping[str, str] = there.get("metrics", {})
    of_roles = {name: probes.within(lambda url=url: probes.role(url)) for name, url in metrics.items()}  # type: ignore[misc]
    found: list[Finding] = []
    clocks: dict[str, float] = {}
    present: dict[str, int] | None = None
    if of_broker is None:
        found.append(note("kafka", "none is named", "'millrace up' starts one; or set MILLRACE_KAFKA to host:port"))
    elif (kafka := of_broker()).value is None:
        text = f"'{settings.kafka}' gives no list of topics ({kafka.problem})"
        found.append(mend("kafka", text, kafka.remedy or "start Kafka there, or set MILLRACE_KAFKA to its host:port"))
    else:
        found.append(ok("kafka", f"'{settings.kafka}' answers"))
        present = kafka.value
    if of_redis is None:
        found.append(note("redis", "none is named", "'millrace up' starts one; or set MILLRACE_REDIS to host:port"))
    elif (answer := of_redis()).value is None:
        text = f"'{without_password(settings.redis)}' does not answer ({answer.problem})"
        found.append(mend("redis", text, answer.remedy or redis_clients.REMEDY))
    else:
        found.append(ok("redis", f"'{without_password(settings.redis)}' answers"))
        clocks["Redis"] = answer.value
    if present is not None:
        found += findings.judge_topics(present, topics_of(settings), settings.partitions, bool(there))
    for name, ask in of_http.items():
        said = ask()
        if said.value is None:
            text = f"'{http[name]}' does not answer ({said.problem})"
            found.append(mend(name, text, f"start it, or set MILLRACE_{name.upper()} to its http://host:port"))
            continue
        code, reason, ahead = said.value
        if ahead is not None:
            clocks[f"the {name}"] = ahead
        found.append(ok(name, f"'{http[name]}' is ready") if code == 200 else note(name, f"not ready: {reason}"))
    if metrics:
        found += findings.judge_versions(__version__, {name: ask().value for name, ask in of_roles.items()})
    if there.get("admin"):
        found += findings.judge_unseen(probes.within(lambda: probes.unseen(there["admin"]))().value or [])
    if clocks:
        found += findings.judge_clocks(clocks)
    if present and settings.topic(MODEL_DELTAS) in present:
        found += findings.judge_newest(wall_ms(), probes.within(lambda: probes.newest_message_ms(settings))().value)
    return found
