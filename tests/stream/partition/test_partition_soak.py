"""A partition that runs for weeks with ever new keys ends at the size it had once its windows were full."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Shop
from millrace.contracts.schema import shop_schema
from stream.partition.partition import Partition
from tests.scenes.stream_world import DAY, HOUR, MINUTE, POLICY, SCHEMA, T0, Log, action, exposure, impression, rows


def test_state_is_bounded_when_keys_churn_for_weeks() -> None:
    log, partition = Log(), Partition(0, SCHEMA, POLICY)
    keys, pool, body, pages, labels = [], [], [], [], 0
    for hour in range(24 * 40):
        t, request, user = T0 + hour * HOUR, f"r{hour}", hour // 5
        items = [hour * 3 + k for k in range(6)]  # half of them are never seen again
        messages = [
            *log.impressions(impression(request, t, items, user=user)),
            *log.events(exposure(request, t, items, user_id=user)),
            *log.events(action("click", request, t + MINUTE, 1, items[1], user_id=user)),
        ]
        labels += len(rows(partition.take(messages, t + DAY).samples))
        for _ in range(64):  # each step sweeps a slice
            partition.advance(t)
        partition.changes()
        if hour % 24 == 23:
            keys.append(partition.window_keys)
            pool.append(partition.windows.nbytes)
            body.append(len(partition.snapshot().to_bytes()))
            pages.append(len(partition._join.pages))
    assert labels >= 24 * 40 * 6 - 6
    full = slice(9, 12)  # the windows of 7 days and their grain of 6 hours have passed once
    month = slice(30, 33)  # and so have the days for which last clicks are kept
    for sizes, once in ((keys, full), (pool, full), (pages, full), (body, month)):
        assert max(sizes[-7:]) <= 1.05 * max(sizes[once])
    assert keys[11] < keys[0] * 12  # keys did end


@pytest.mark.long
def test_the_soak_reports_the_most_memory_at_its_end_and_the_keys_it_ended_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory by the hour is given here, so that the figure must tell a leak in the last quarter from none."""
    hours = iter([100, 300, 200, *range(101, 104), *[900] * 12, 400, 450, *[100] * 4])
    monkeypatch.setattr(soak, "measured_bytes", lambda: next(hours))
    monkeypatch.setattr(soak, "EXPOSURES", 24 * 40)
    figures = {f["name"]: f for f in soak.run(tmp_path, lambda _: None)}
    assert next(hours, None) is None, "it looks once an hour"
    assert figures["soak_rss_first_quarter"]["value"] == 300
    assert (figures["soak_rss_end"]["value"], figures["soak_rss_end"]["ratio"]) == (450, 1.5)
    assert figures["soak_samples"]["value"] >= 24 * 40 * 0.8
    keys = figures["soak_keys_end"]["ratio"]
    assert keys is not None
    assert 0.95 < keys < 1.05, "as many keys end as begin"


def test_hours_of_the_soak_follow_one_another() -> None:
    shop = Shop(shop_schema(), 2, 50, 84)
    for _ in range(3):
        shop.play()
    assert shop.samples + shop.partition.pending >= 3 * 2 * 20
    assert shop.partition.offsets["impressions"] == 6
