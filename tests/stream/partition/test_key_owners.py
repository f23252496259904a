"""Whose a user-side key is: everything can be handed out again, and a key that has ended takes its field away."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from millrace.contracts.events import Id
from stream.partition import counters, owners
from stream.partition.owners import Owners
from tests.scenes.stream_world import DAY, HOUR, T0, World, keys_of

Lists = dict[str, dict[int, bytes]]


def shown(world: World, user: int, items: list[int], ts_ms: int) -> None:
    world.now_ms = ts_ms
    world.page(f"{user}-{ts_ms}", ts_ms, items, user)


def lists_of(users: list[tuple[Id, list[tuple[int, bytes]]]]) -> Lists:
    return {str(user): dict(entries) for user, entries in users}


def whole(world: World) -> Lists:
    slices = [some.users for some in world.partition.whole() if some.users]
    users = [user for one in slices for user, _ in one]
    assert len(users) == len(set(users))
    return lists_of([entry for one in slices for entry in one])


def swept(world: World, ts_ms: int) -> None:
    """An event of another user, then so many steps that a sweep has come round."""
    shown(world, 99, [99], ts_ms)
    for _ in range(2 * counters._SWEEPS):  # one may be under way
        world.take()


def user_key(user: int, item: int) -> int:
    return int(keys_of(user, [item])[0, 1])


def test_all_lists_come_again_whatever_was_published_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_WHOLE_KEYS", 5)
    world = World()
    published: Lists = {}
    for user in range(7):
        shown(world, user, list(range(user, user + 4)), T0 + user)
        if user == 3:
            published = lists_of(world.partition.changes().users)
    assert len(published) == 4
    again = whole(world)
    assert again == published | lists_of(world.partition.changes().users)
    assert {user: len(lists) for user, lists in again.items()} == {str(user): 4 for user in range(7)}
    assert len(list(world.partition.whole())) == 7  # slices of one user's four keys each
    assert world.partition.changes().users == []
    assert whole(world.crash()) == again


@pytest.mark.parametrize("restored", [False, True])
def test_the_end_of_a_key_is_reported_once_and_others_stay(restored: bool) -> None:
    world = World()
    shown(world, 1, [1, 2], T0)
    shown(world, 2, [1], T0)
    shown(world, 1, [2], T0 + 5 * DAY)
    world.partition.changes()
    swept(world, T0 + 7 * DAY)
    assert lists_of(world.partition.changes().users).keys() == {"99"}  # still within the longest window
    swept(world, T0 + 8 * DAY + HOUR)
    if restored:
        world.crash()
    ended = lists_of(world.partition.changes().users)
    ended.pop("99")
    assert ended == {"1": {user_key(1, 1): b""}, "2": {user_key(2, 1): b""}}
    swept(world, T0 + 8 * DAY + 3 * HOUR)
    assert lists_of(world.partition.changes().users).keys() == {"99"}
    assert whole(world).keys() == {"1", "99"}
    assert whole(world)["1"].keys() == {user_key(1, 2)}


def test_a_key_that_comes_back_is_not_reported_to_have_ended() -> None:
    world = World()
    shown(world, 1, [1], T0)
    world.partition.changes()
    swept(world, T0 + 9 * DAY)
    shown(world, 1, [1], T0 + 9 * DAY)
    now = lists_of(world.partition.changes().users)["1"]
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
