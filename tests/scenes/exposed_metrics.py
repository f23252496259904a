"""What each role's metrics registry exposes, asked in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from tests.architecture import ROOT
from tests.scenes.waiting import PATIENCE

MODULES = {
    "simulate": "simulator.live",
    "stream": "stream.worker.stream_worker",
    "learn": "learner.role.service",
    "serve": "scorer.feeder.feeder",
    "intake": "stream.intake.intake_main",
    "archive": "stream.archive.archive_main",
}
_NAMES = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
from prometheus_client import REGISTRY
suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
mine = [f for f in REGISTRY.collect() if f.name.startswith("millrace_")]
known = {f.name: f.name + ("_total" if f.type == "counter" else "") for f in mine}
names = {f.name + s: known[f.name] for f in mine for s in suffixes[f.type]}
def series(s):
    return s.name + "{" + ",".join(f'{n}="{v}"' for n, v in s.labels.items()) + "}"
sampled = {f.name: {label for s in f.samples for label in s.labels if label != "le"} for f in mine}
labels = {n: getattr(REGISTRY._names_to_collectors[n], "_labelnames", sampled[n]) for n in sampled}
labels = {f.name + s: [*labels[f.name], *(["le"] if s == "_bucket" else [])] for f in mine for s in suffixes[f.type]}
begun = {series(s): str(s.value) for f in mine for s in f.samples if f.type != "histogram" and "_created" not in s.name}
print(json.dumps([names, begun, labels]))
"""


class Registry(NamedTuple):
    """What a role exposes."""

    names: dict[str, str]
    """Series names, and the names under which people know the metrics."""
    begun: dict[str, str]
    """The counters and gauges that it begins with, with their labels and values."""
    labels: dict[str, list[str]]
    """Label names by series name."""


@cache
def registries() -> dict[str, Registry]:
    """By role.

    Each role is imported in a process of its own, as it runs: this asks the registries, not a list.
    """
    running = [
        subprocess.Popen([sys.executable, "-c", _NAMES, module], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for module in MODULES.values()
    ]
    found = {}
    for role, process in zip(MODULES, running, strict=True):
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        found[role] = Registry(*json.loads(out))
    return found


def exposed(roles: Collection[str] = MODULES) -> dict[str, str]:
    """Every series name that one of the roles exposes, and the name under which people know the metric."""
    return {series: name for role in roles for series, name in registries()[role].names.items()}
