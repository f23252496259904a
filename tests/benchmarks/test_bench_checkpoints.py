"""What checkpoints and settled pages cost, measured as the benchmark does, on a short stretch of traffic."""

from __future__ import annotations

import pytest

from benchmarks.parts.checkpoints import checkpoint_amplification, replay_seconds, settled_page_bytes
from benchmarks.tools.traffic import make
from millrace.contracts.events import Impression
from millrace.contracts.impressions import decode_impression
from millrace.contracts.schema import shop_schema
from millrace.contracts.topics import IMPRESSIONS
from stream.partition import partition_checkpoint


@pytest.fixture(scope="module")
def pages() -> list[Impression]:
    stream = make(shop_schema(), 100, 50, 200, 0.1, seed=3)
    return [decode_impression(m.raw) for m in stream.messages if m.topic == IMPRESSIONS]


@pytest.mark.slow
def test_what_is_written_stays_in_proportion_to_what_came(
    pages: list[Impression], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bases among the journals; and the figure can be missed: it is when each checkpoint has a base."""
    monkeypatch.setattr(partition_checkpoint, "LEAST_BYTES", 0)
    found = checkpoint_amplification(pages_a_second=1.0, hours=0.6, warm_hours=0.1, pages=pages)
    assert found["bases"] > 0
    assert found["settled"] > 0
    assert 0.1 < found["checkpoint_amplification"] <= 1.5
    monkeypatch.setattr(partition_checkpoint, "GROWN", 0)
    found = checkpoint_amplification(pages_a_second=1.0, hours=0.02, warm_hours=0.05, pages=pages)
    assert found["checkpoint_amplification"] > 1.5


@pytest.mark.slow
def test_a_settled_page_takes_a_small_part_of_a_page(pages: list[Impression]) -> None:
    page = sum(len(p.cat) + len(p.num) + len(p.keys) + len(p.scores) for p in pages) / len(pages)
    found = settled_page_bytes(pages=200, pool_of=pages)
    for where in ("memory", "checkpoint"):
        assert 0 < found[where] < page / 5


def test_the_longest_journal_is_replayed(pages: list[Impression], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_checkpoint, "REPLAY_BYTES", 3_000_000)
    found = replay_seconds(pages=pages[:5], base_hours=0.05)
    assert 3_000_000 < found["journal_bytes"] < 6_000_000
