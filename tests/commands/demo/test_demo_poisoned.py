"""A demo into which somebody pours wrong labels: its gate refuses them, and a browser shows that, why, and what serves
instead; when the labels are right again, versions are promoted again.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.gate.verdicts import CHECKS
from millrace.contracts.samples import FOLLOW_UP, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import make_producer, make_reader
from millrace.processes.services import EmbeddedBroker
from tests.scenes.browser import CHROMIUM, Browser, browser
from tests.scenes.demo_process import DemoProcess, demo_process
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

WARM = (1000, 6000, 11_000, 16_000, 21_000, 31_000, 41_000, 51_000, 61_000)
"""Samples that are waited for, one after the other: on a busy machine each takes its time. From 21,000 on bounds come
from the stream's own past; docs/concepts/trust.md states the warm-up. A past that is hardly longer is known so badly,
and its bounds are so wide, that a model may learn wrong labels before the checks of labels see them: others refuse."""
RANKS = 0.6
"""AUC of what is served before the poison: a model that knows nothing yet does not contradict wrong labels."""
WRONG = {"labels", "auc"}
"""Checks that see wrong labels before they are learnt from. Others may refuse as well, before or after them: pages of a
model that has learnt some wrong labels show items that nobody clicks, so that counts of items are 0 more often."""
GATE = {"MILLRACE_GATE": "on", "MILLRACE_QUARANTINE_MINUTES": "100000"}
"""Two hours are half a minute here: on a busy machine the poison would be the world before its labels are judged."""
SAID = re.compile(r"refused at \d\d:\d\d UTC: (.+): .*[\d.]+, beyond [\d.]+\. Version (\d+) serves instead")


def flipped(batch: SampleBatch, again: int) -> SampleBatch:
    """The same exposures under other names, each with the other label."""
    batch = batch.take(batch.kind != FOLLOW_UP)
    clicked = batch.label > 0
    return replace(
        batch,
        request=tuple(f"{request}-wrong-{again}" for request in batch.request),
        label=np.where(clicked, 0, 1).astype(np.float32),
        kind=np.where(clicked, NEGATIVE, POSITIVE).astype(np.uint8),
    )


@contextmanager
def poisoned(settings: Settings) -> Iterator[None]:
    """While it is entered, each message of samples is followed by itself with flipped labels."""
    stop = threading.Event()
    producer, reader = make_producer(settings), make_reader(settings, SAMPLES, {})
    reader.seek_to_end()

    def pour() -> None:
        while not stop.is_set():
            for records in reader.poll(timeout_ms=100).values():
                for record in records:
                    batch = SampleBatch.from_bytes(record.value)
                    if not len(batch) or "-wrong-" in batch.request[0]:
                        continue
                    wrong = flipped(batch, record.offset)
                    if len(wrong):
                        producer.send(SAMPLES, wrong.to_bytes(), key=record.key, headers=record.headers)

    thread = threading.Thread(target=pour, name="poison")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        reader.close()
        producer.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_a_browser_shows_what_a_poisoned_demo_refuses_and_what_serves_instead(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(tmp_path / "broker") as broker,
        demo_process(tmp_path, env=GATE | {"MILLRACE_KAFKA": broker.address}) as demo,
        browser(tmp_path) as tab,
    ):
        for rows in WARM:
            demo.until_learning(rows)
        demo.until(lambda: demo.state()["figures"]["auc"] > RANKS, "the model ranks")
        before = demo.state()["gate"]
        assert before["state"] == "promoting", before
        assert not refusing(before), before
        tab.go(demo.url)
        with poisoned(Settings(kafka=broker.address)):
            # The page shows the newest refusal and refreshes while it is looked at: what was refused first is unknown.
            said, served = refusal(demo, tab)
            assert said[1] in CHECKS.values(), said[0]
            assert said[2] == served.replace(",", ""), "the version that the page names is the one that serves"
            demo.until(lambda: bool(WRONG & refusing(demo.state()["gate"])), "the wrong labels are seen")
            demo.until(lambda: bool(WRONG & marked(tab)), "the page marks the check that saw them")
            demo.until(lambda: bool(demo.state()["figures"]["quarantine_rows"]), "samples are kept in quarantine")
        demo.until(lambda: demo.state()["gate"]["state"] == "promoting", "right labels are promoted again")
        version = demo.state()["figures"]["served_version"]
        demo.until(lambda: demo.state()["figures"]["served_version"] > version + 2, "newer versions are served again")
        tab.until(
            "document.getElementById('stands').className !== 'stands bad'"
            " && document.getElementById('gate-says').textContent.includes('refused last')"
        )
        assert demo.end(signal.SIGINT) == 1, demo.text()
        report = demo.report()
    gate, problem = report["gate"], report["problem"]
    assert gate["quarantined"] > 0
    assert WRONG & set(gate["refused"]), gate
    # The audit names what came in from the side, and finds each sample: learnt, held out or in quarantine.
    assert "labels for exposures that nobody sent" in problem
    assert "the learner learnt" not in problem


def refusing(gate: Mapping[str, Any]) -> set[str]:
    """The checks that have refused something so far."""
    return {one["check"] for one in gate["verdicts"] if one["refused"]}


def marked(tab: Browser) -> set[str]:
    """The checks that the page marks as such."""
    cells = "[...document.querySelectorAll('#verdicts td.bad')].map((cell) => cell.parentNode.cells[0].textContent)"
    return set(tab.evaluate(cells))


def refusal(demo: DemoProcess, tab: Browser) -> tuple[re.Match[str], str]:
    """What the page says of the newest refusal, once it gives figure and bound, and the version that it shows at that
    moment as the one that serves."""
    found: list[tuple[re.Match[str], str]] = []

    def there() -> bool:
        said, version = tab.evaluate(
            "[document.getElementById('stands').textContent, document.querySelector('#served dd').textContent]"
        )
        match = SAID.search(said)
        if match is not None:
            found.append((match, version))
        return bool(found)

    demo.until(there, "the page shows a refusal")
    return found[0]
