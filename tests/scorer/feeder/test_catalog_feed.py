"""Workers' item tables are kept up to date: whenever a worker joins, whatever fails on the way, nothing is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from millrace.contracts.settings import Settings
from scorer.feeder import feeder_publisher
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import ITEMS, item


@pytest.fixture
def scorer(tmp_path: Path) -> Whole:
    return Whole(Settings(data=str(tmp_path), control_share=0, candidates=50))


def put(scorer: Whole, items: Any) -> None:
    scorer.index.put([scorer.index.prepare(one) for one in items])


def test_a_worker_that_joins_before_the_whole_index_counts_as_sent_gets_what_the_others_got(scorer: Whole) -> None:
    put(scorer, ITEMS[:100])
    scorer.publisher.changes(all_of_them=True)
    scorer.replace_worker()
    put(scorer, ITEMS[100:])
    scorer.publisher.changes(all_of_them=True)
    assert scorer.serving.items.rows_of([one.item_id for one in ITEMS]).tolist() == list(range(len(ITEMS)))


def test_a_change_that_could_not_be_sent_is_sent_later(scorer: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index tells of each change once. Without it a list names rows that a table does not have, for ever."""
    scorer.stock(ITEMS)
    put(scorer, [item("late")])

    def refused(*_: Any) -> Any:
        raise OSError("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(feeder_publisher, "Packet", refused)
        with pytest.raises(OSError, match="too many"):
            scorer.publisher.changes()
    assert scorer.publisher.changes()
    assert scorer.serving.items.rows_of(["late"]).tolist() == [len(ITEMS)]
