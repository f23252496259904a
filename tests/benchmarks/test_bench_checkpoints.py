"""What checkpoints cost, on a short stretch of traffic. Of live traffic ``dev bench capacity`` says it."""

from __future__ import annotations

import pytest

from benchmarks.tools.traffic import make
from millrace.contracts.events import PageLog
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.schema import shop_schema
from millrace.contracts.topics import PAGE_LOGS
from stream.partition import partition_checkpoint
from tests.scenes.checkpointed import checkpoint_amplification


@pytest.fixture(scope="module")
def pages() -> list[PageLog]:
    stream = make(shop_schema(), 100, 50, 200, 0.1, seed=3)
    return [decode_page_log(m.raw) for m in stream.messages if m.topic == PAGE_LOGS]


@pytest.mark.slow
def test_what_is_written_stays_in_proportion_to_what_came(
    pages: list[PageLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bases among the journals; and the figure can be missed: it is when each checkpoint has a base."""
    monkeypatch.setattr(partition_checkpoint, "LEAST_BYTES", 0)
    found = checkpoint_amplification(pages, hours=0.6, warm_hours=0.1)
    assert found["bases"] > 0
    assert found["settled"] > 0
    assert 0.1 < found["checkpoint_amplification"] <= 1.5
    monkeypatch.setattr(partition_checkpoint, "GROWN", 0)
    found = checkpoint_amplification(pages, hours=0.02, warm_hours=0.05)
    assert found["checkpoint_amplification"] > 1.5
