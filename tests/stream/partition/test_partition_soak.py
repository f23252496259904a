"""A partition that runs for weeks with ever new keys ends at the size it had once its windows were full."""

from __future__ import annotations

from stream.partition.partition import Partition
from tests.scenes.stream_world import DAY, HOUR, MINUTE, POLICY, SCHEMA, T0, Log, action, exposure, page_log, rows


def test_state_is_bounded_when_keys_churn_for_weeks() -> None:
    log, partition = Log(), Partition(0, SCHEMA, POLICY)
    keys, pool, body, pages, labels = [], [], [], [], 0
    for hour in range(24 * 40):
        t, request, user = T0 + hour * HOUR, f"r{hour}", hour // 5
        items = [hour * 3 + k for k in range(6)]  # half of them are never seen again
        messages = [
            *log.page_logs(page_log(request, t, items, user=user)),
            *log.events(exposure(request, t, items, user_id=user)),
            *log.events(action("click", request, t + MINUTE, 1, items[1], user_id=user)),
        ]
        labels += len(rows(partition.take(messages, t + DAY).samples))
        for _ in range(64):  # each step sweeps a slice
            partition.advance(t)
        partition.changes()
        if hour % 24 == 23:
            keys.append(len(partition.windows))
            pool.append(partition.windows.nbytes)
            body.append(len(partition.snapshot().to_bytes()))
            pages.append(len(partition.join.pages))
    assert labels >= 24 * 40 * 6 - 6
    full = slice(9, 12)  # the windows of 7 days and their grain of 6 hours have passed once
    month = slice(30, 33)  # and so have the days for which last clicks are kept
    for sizes, once in ((keys, full), (pool, full), (pages, full), (body, month)):
        assert max(sizes[-7:]) <= 1.05 * max(sizes[once])
    assert keys[11] < keys[0] * 12  # keys did end
