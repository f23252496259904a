"""What the gate says that it cannot know: of its own bounds, by the traffic of now."""

from __future__ import annotations

import numpy as np
import pytest

from learner.gate.blind_spots import DRIP, LEAST_VISITS, blind_spots
from learner.gate.heldout import Heldout
from learner.gate.screen import Screen
from tests.learner.gate.plain_model import MINUTE_MS, START_MS, Plain, rows
from tests.scenes.learning import SCHEMA
from tests.scenes.screened_stream import HOUR_MS, labelled, learn, warm


def heldout_at(rows_a_second: float) -> Heldout:
    """Held-out pages of a shop with this traffic."""
    heldout = Heldout(0.01)
    heldout._rate, heldout.rows_a_visit = 3600 * rows_a_second, 10.0
    heldout._shares = np.array([min(0.05, 8000 / heldout.rows_an_hour)])
    return heldout


def test_rows_until_a_fault_is_told_are_what_a_screen_takes() -> None:
    screen, stream = warm(3, base=-4.0)
    assert screen.tells_after(flipped=0.0, clicked=0.0, rows_an_hour=36_000.0) is None
    assert screen.tells_after(flipped=1.0, clicked=0.0, rows_an_hour=3600.0) == 128
    assert screen.tells_after(flipped=1.0, clicked=0.0, rows_an_hour=36_000.0) == 256, "half a minute is not over"
    told = screen.tells_after(flipped=0.1, clicked=0.0, rows_an_hour=36_000.0)
    assert told is not None
    met = 0
    for batch, p in stream.batches(8192, 64):
        met += len(batch)
        if learn(screen, iter([(labelled(batch, np.abs(batch.label - (stream.rng.random(64) < 0.1))), p)])):
            break
    assert told / 3 <= met <= 3 * told


def test_less_is_known_with_little_traffic() -> None:
    screen, _ = warm()
    little, much = ({one.fault: one for one in blind_spots(screen, heldout_at(rate))} for rate in (0.02, 100.0))
    name = "5% of users who click everything"
    assert str(little[name]) == f"{name}: cannot be known at this traffic", (
        "12 visits with held-out pages are of 33 hours"
    )
    assert much[name].by == "held-out pages"
    assert 1 < (much[name].hours or 0) < 1.1, "pages of the second half of a shop's life, half an hour old"
    slow, quick = (next(iter(spots.values())) for spots in (little, much))
    assert (slow.rows, slow.by) == (quick.rows, "samples")
    assert slow.hours == pytest.approx(5000 * (quick.hours or 0.0))
    assert any(name.startswith(DRIP) for name in little)


def test_nothing_is_said_before_there_is_a_past_or_a_rate() -> None:
    assert blind_spots(Screen(SCHEMA, HOUR_MS), heldout_at(1.0)) == []
    assert blind_spots(warm()[0], Heldout(0.01)) == []
    screen, heldout = warm()[0], Heldout(0.0)
    heldout._rate = 3600.0
    said = {one.fault: one.rows for one in blind_spots(screen, heldout)}
    assert said["one item of 1% of rows that is always clicked"] is None


@pytest.mark.parametrize("asked", [15, 75, 150], ids=["a young shop", "before the second anchors", "judging by now"])
def test_held_out_pages_judge_when_it_is_said_that_they_do(asked: int) -> None:
    """Minutes of a shop that is one page a second, a tenth of them held out, and promotes a snapshot every minute."""
    held, model, promised, judged = Heldout(0.1), Plain(), None, []
    for minute in range(240):
        held.clock.now_ms = START_MS + minute * MINUTE_MS
        batch = rows(600, minute, held.clock.now_ms, step_ms=1000, user=np.zeros(600, np.uint64))
        held.take(batch.take(held.held(batch)))
        held.promoted(model)
        if minute == asked:
            promised = held.judges_in_ms(LEAST_VISITS)
        judged.append(held.judge(model).rows >= LEAST_VISITS * 10)
    first = judged.index(True, asked)
    assert promised is not None
    assert abs(asked + promised / MINUTE_MS - first) <= 2
    assert (promised == 0) == (first == asked)
