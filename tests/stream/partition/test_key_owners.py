"""Whose a user-side key is: everything can be handed out again, and a key that has ended takes its field away."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from millrace.contracts.events import Id
from stream.partition import counters, owners
from stream.partition.owners import Owners
from stream.partition.partition import Partition
from tests.scenes.stream_world import DAY, HOUR, POLICY, SCHEMA, T0, Log, exposure, keys_of, page_log, resumed

Lists = dict[str, dict[int, bytes]]


def shown(part: Partition, log: Log, user: int, items: list[int], ts_ms: int) -> None:
    request = f"{user}-{ts_ms}"
    part.take(log.page_logs(page_log(request, ts_ms, items, user)), ts_ms)
    part.take(log.events(exposure(request, ts_ms, items, user_id=user)), ts_ms)


def lists_of(users: list[tuple[Id, list[tuple[int, bytes]]]]) -> Lists:
    return {str(user): dict(entries) for user, entries in users}


def whole(part: Partition) -> Lists:
    slices = [some.users for some in part.whole() if some.users]
    users = [user for one in slices for user, _ in one]
    assert len(users) == len(set(users))
    return lists_of([entry for one in slices for entry in one])


def swept(part: Partition, log: Log, ts_ms: int) -> None:
    """An event of another user, then so many steps that a sweep has come round."""
    shown(part, log, 99, [99], ts_ms)
    for _ in range(2 * counters._SWEEPS):  # one may be under way
        part.take([], ts_ms)


def user_key(user: int, item: int) -> int:
    return int(keys_of(user, [item])[0, 1])


def test_all_lists_come_again_whatever_was_published_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_WHOLE_KEYS", 5)
    part, log = Partition(0, SCHEMA, POLICY), Log()
    published: Lists = {}
    for user in range(7):
        shown(part, log, user, list(range(user, user + 4)), T0 + user)
        if user == 3:
            published = lists_of(part.changes().users)
    assert len(published) == 4
    again = whole(part)
    assert again == published | lists_of(part.changes().users)
    assert {user: len(lists) for user, lists in again.items()} == {str(user): 4 for user in range(7)}
    assert len(list(part.whole())) == 7  # slices of one user's four keys each
    assert part.changes().users == []
    assert whole(resumed(part.snapshot().to_bytes(), SCHEMA, POLICY)) == again


@pytest.mark.parametrize("restored", [False, True])
def test_the_end_of_a_key_is_reported_once_and_others_stay(restored: bool) -> None:
    part, log = Partition(0, SCHEMA, POLICY), Log()
    shown(part, log, 1, [1, 2], T0)
    shown(part, log, 2, [1], T0)
    shown(part, log, 1, [2], T0 + 5 * DAY)
    part.changes()
    swept(part, log, T0 + 7 * DAY)
    assert lists_of(part.changes().users).keys() == {"99"}  # still within the longest window
    swept(part, log, T0 + 8 * DAY + HOUR)
    if restored:
        part = resumed(part.snapshot().to_bytes(), SCHEMA, POLICY)
    ended = lists_of(part.changes().users)
    ended.pop("99")
    assert ended == {"1": {user_key(1, 1): b""}, "2": {user_key(2, 1): b""}}
    swept(part, log, T0 + 8 * DAY + 3 * HOUR)
    assert lists_of(part.changes().users).keys() == {"99"}
    assert whole(part).keys() == {"1", "99"}
    assert whole(part)["1"].keys() == {user_key(1, 2)}


def test_a_key_that_comes_back_is_not_reported_to_have_ended() -> None:
    part, log = Partition(0, SCHEMA, POLICY), Log()
    shown(part, log, 1, [1], T0)
    part.changes()
    swept(part, log, T0 + 9 * DAY)
    shown(part, log, 1, [1], T0 + 9 * DAY)
    now = lists_of(part.changes().users)["1"]
    assert now.keys() == {user_key(1, 1)}
    assert all(now.values())


def test_owners_equal_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "MERGE_KEYS", 50)
    rng = np.random.default_rng(3)
    ours, plain = Owners(), dict[int, Id]()

    def reported(by_user: Any) -> dict[int, Id]:
        users, bounds, keys = by_user
        pairs = [
            (key, user) for user, (a, b) in zip(users, pairwise(bounds), strict=True) for key in keys[a:b].tolist()
        ]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    for turn in range(60):
        users: list[Id] = [int(u) if u % 2 else f"u{u}" for u in rng.choice(40, 5, replace=False)]
        bounds = [0, *np.cumsum(rng.integers(0, 5, 5)).tolist()]
        keys = rng.integers(1, 1 << 63, bounds[-1], dtype=np.uint64) % np.uint64(300)
        ours.add(users, bounds, keys)
        for user, (a, b) in zip(users, pairwise(bounds), strict=True):
            for key in keys[a:b].tolist():
                plain.setdefault(key, user)
        if turn % 20 == 19:
            alive = np.unique(rng.permutation(np.array(list(plain), np.uint64))[: len(plain) // 2])
            lives = set(alive.tolist())
            assert reported(ours.end(rng.permutation(alive))) == {k: u for k, u in plain.items() if k not in lives}
            plain = {k: u for k, u in plain.items() if k in lives}
            state, ours = ours.snapshot(), owners.Owners()
            ours.resume(state)
        assert reported(ours.all()) == plain
        assert len(ours) == len(plain)
