"""The queries of the dashboard and of the rules in ``deploy/``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.architecture import ROOT

DEPLOY = ROOT / "deploy"
FIRST = [
    "Rolling AUC of served scores: model, baseline, oracle",
    "Click rate by arm",
    "Click to served weights",
    "Throughput",
    "All well",
]
"""The panels of the dashboard that are not folded."""


def dashboards() -> Iterator[tuple[str, list[Any]]]:
    """(file, panels), those within a collapsed row too."""
    for path in sorted(DEPLOY.rglob("*.json")):
        panels = json.loads(path.read_text())["panels"]
        yield path.name, panels + [inner for panel in panels for inner in panel.get("panels", [])]


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every panel and rule."""
    for name, panels in dashboards():
        for panel in panels:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']}", target["expr"]
    for group in yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rules.yml: {rule['alert']}", rule["expr"]
