# core
"""The Prometheus configuration of one loop on one machine: which addresses to ask, and as which role.

Job "millrace" and label "role" are those of ``deploy/prometheus.yml``, so that the dashboard and the alert rules in
``deploy/`` fit both. The simulator and learners beside the first have jobs of their own there and here: no alert misses
them where a shop has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from millrace.evidence.learners import LEARNER_ROLE

SCRAPE_SECONDS = 5
"""Between two looks: the dashboard's rates are over a minute."""

_HEAD = f"""\
# Written by `millrace up` and `millrace demo` at each start: what this loop's roles measure. Try it with
#   prometheus --config.file=THIS_FILE
# `rule_files: [.../deploy/rules.yml]` adds the alerts; deploy/README.md says how to import the dashboard.
global:
  scrape_interval: {SCRAPE_SECONDS}s
  scrape_timeout: {SCRAPE_SECONDS - 1}s
  evaluation_interval: 15s
"""


def scrape_file(targets: Mapping[str, str]) -> str:
    """A Prometheus configuration, as YAML.

    Args:
        targets: where each role serves its metrics, by role: a URL or ``host:port``.

    Raises:
        ValueError: an address has no host or no port.

    >>> print(scrape_file({"learn": "127.0.0.1:8703"}).partition("scrape_configs:")[2])
    <BLANKLINE>
      - job_name: "millrace-learn"
        static_configs:
          - {targets: ["127.0.0.1:8703"], labels: {job: "millrace", role: "learn"}}
    <BLANKLINE>
    """
    lines = [_HEAD, "scrape_configs:"]
    for role, address in targets.items():
        job = "simulator" if role == "simulate" else "learners" if role.startswith(LEARNER_ROLE) else "millrace"
        lines.append(f"  - job_name: {_text(f'millrace-{role}')}")
        path = urlsplit(address).path if "://" in address else ""
        if path not in ("", "/metrics"):
            lines.append(f"    metrics_path: {_text(path)}")
        labels = f"{{job: {_text(job)}, role: {_text(role)}}}"
        lines += ["    static_configs:", f"      - {{targets: [{_text(_place(address))}], labels: {labels}}}"]
    return "\n".join(lines) + "\n"


def _place(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"'{address}' is no host:port")
    return parts.netloc


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
