"""The dashboard and the rules, asked of a loop that runs, by the real Prometheus: each query yields a value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from millrace.commands.loop.scrape import scrape_file
from tests.scenes.deployed import DEPLOY, expressions
from tests.scenes.running_prometheus import PROGRAM, prometheus
from tests.scenes.simulated_loop import simulated_loop
from tests.scenes.waiting import LONG, PATIENCE, until

RULES = DEPLOY / "rules.yml"
SOON = {"SNAPSHOT_SECONDS": "1", "ARCHIVE_SECONDS": "1", "HELDOUT_SHARE": "0.1", "LOG_FORMAT": "json"}
SOON |= {"HORIZON_MINUTES": "5"}
"""Snapshots, files, a verdict of held-out pages and users of arms soon."""


def send(intake: str, what: str, body: object) -> None:
    request = Request(f"{intake}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=PATIENCE):
            return
    except HTTPError as refused:
        if refused.code != 422:
            raise


def asked(expr: str) -> str:
    """An expression as Grafana would ask it, without the comparison that hides what has not happened."""
    return re.sub(r" > 0$", "", expr.replace("$__rate_interval", "1m"))


def selectors(expr: str) -> list[str]:
    """The series that an expression asks for."""
    return re.findall(r"\b(?:millrace_[a-z_]+|up\b)(?:\{[^}]*\})?", expr)


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.skipif(PROGRAM is None, reason="prometheus (Debian: prometheus) is not installed")
def test_each_panel_and_each_rule_finds_its_figures_in_a_loop_that_runs(tmp_path: Path) -> None:
    panels = [(where, asked(expr)) for where, expr in expressions() if not where.startswith("rules.yml")]
    rules = [(where, one) for where, expr in expressions() if where.startswith("rules.yml") for one in selectors(expr)]
    assert len(panels) > 80
    assert len(rules) > 30
    with simulated_loop(tmp_path, **SOON) as loop:
        send(loop.where["intake"], "users", {"user_id": "a visitor", "attributes": {}})
        send(loop.where["intake"], "users", {"user_id": ""})
        config = yaml.safe_load(scrape_file(loop.targets)) | {"rule_files": [str(RULES)]}
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with prometheus(tmp_path / "prometheus.yml", tmp_path) as asks:
            empty: list[tuple[str, str]] = []

            def answered() -> bool:
                assert loop.up.process is not None
                assert loop.up.process.poll() is None, loop.up.text()
                empty[:] = [(where, expr) for where, expr in panels + rules if not asks.values(expr)]
                return not empty

            until(answered, "each query yields a value", every=1.0, more=lambda: f"{empty}\n{asks.up()}")
            assert asks.up() == dict.fromkeys(loop.targets, "up")
            health = {rule["name"]: rule["health"] for group in asks.get("rules")["groups"] for rule in group["rules"]}
            assert set(health.values()) == {"ok"}
            assert {f"rules.yml: {name}" for name in health} == {where for where, _ in rules}
            for role in ("up", *(name for name in loop.targets if name != "simulate")):
                lines = (tmp_path / "data" / "logs" / f"{role}.log").read_text().rpartition("\n")[0].splitlines()
                assert {json.loads(line)["level"] for line in lines} <= {"info", "warning"}, lines
                assert lines
            assert asks.values("millrace_rolling_auk") == []
            assert asks.values('millrace_rolling_auc{arm="modell"}') == []
