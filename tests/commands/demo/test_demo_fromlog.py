"""A log of one's own, played through Kafka and the live loop: the model learns, every exposure is accounted for."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.scenes.demo_process import demo_process
from tests.scenes.demo_report import missing_keys
from tests.scenes.schemas import named, of_context, of_item, of_user, table, windows_of
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

SCHEMA = (
    named("shelf", utc_offset="+01:00")
    + table("[log]", time="at", user="reader", item="book", label="opened")
    + (of_user("reader") + of_item("book", "genre") + of_context("screen"))
    + windows_of("book", "reader genre")
)


def write_log(folder: Path) -> None:
    """6,000 exposures in six hours; genre 0 is opened half the time, the others hardly ever."""
    rng = np.random.default_rng(4)
    lines = ["at,reader,book,genre,screen,opened"]
    for at in np.sort(rng.integers(0, 6 * 3_600_000, 6000)).tolist():
        book = int(rng.integers(0, 60))
        opened = int(rng.random() < (0.5 if book % 4 == 0 else 0.05))
        reader, screen = rng.integers(0, 200), rng.integers(0, 3)
        lines.append(f"{1_750_000_000_000 + at},{reader},b{book},g{book % 4},s{screen},{opened}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "schema.toml").write_text(SCHEMA)


@pytest.mark.slow
def test_a_log_plays_through_the_live_loop(tmp_path: Path) -> None:
    write_log(tmp_path)
    log, schema = str(tmp_path / "log.csv"), str(tmp_path / "schema.toml")
    with demo_process(tmp_path, "--from-log", log, "--schema", schema, "--speed", "500") as demo:
        # That much of the log, however long it takes: what a model is worth depends on what it has learnt from. And no
        # faster: when the log is played hours behind the clock, pages are too late for a partition that fell silent.
        # Pages that were shown before anything was learnt count, too: on a busy machine those are the first thousand.
        demo.until(lambda: (demo.state()["figures"].get("trained") or 0) > 4000, "samples are learnt from")
        assert demo.end(signal.SIGINT) == 0, demo.text()
        report = demo.report()
        demo.until_nothing_left()
    # True rates are unknown, and others made the pages.
    assert {*missing_keys(report)} <= {"oracle_auc", "first_20000", "ctr_model", "ctr_control"}
    assert report["conserved"] is True
    assert report["exposures_sent"] > 4000
    assert report["exposures_sent"] == report["positives"] + report["negatives"] + report["pending"]
    assert report["dead_letters"] == 0
    assert report["shown_auc"] > 0.6
