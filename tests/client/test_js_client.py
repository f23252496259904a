"""The JavaScript client in Node: its own tests, and the real intake and scorer through it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.architecture import ROOT
from tests.scenes.app_server import served
from tests.scenes.filter_world import Shop
from tests.scenes.intake_desk import Intake
from tests.scenes.scorer_shop import item
from tests.scenes.waiting import PATIENCE

NODE = shutil.which("node")


@pytest.mark.services
@pytest.mark.skipif(NODE is None, reason="there is no node on PATH")
def test_the_javascript_client_does_what_it_should_and_the_real_servers_understand_it() -> None:
    intake, shop = Intake(), Shop([item(n, "shoes") for n in range(9)])
    command = [str(NODE), "--test", str(ROOT / "client/js/millrace.test.js")]
    with served(intake.app) as to, served(shop.app) as of:
        env = {**os.environ, "MILLRACE_INTAKE": to, "MILLRACE_SCORER": of}
        node = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert node.returncode == 0, node.stdout
    assert "# skipped 0" in node.stdout
    events = [value for value in intake.outlet.values if value and "type" in value]
    assert [event["type"] for event in events] == ["exposure", "click", "collect", "cart", "purchase"]
    (log,) = [page for page in shop.sent if page.request_id == events[0]["request_id"]]
    assert events[0]["items"] == log.items
    assert {event["position"] for event in events[1:]} == {0}
