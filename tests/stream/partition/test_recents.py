"""What users did last: in order of event time, counted once, told, kept, and ended; and the co-clicks that it makes."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.hashing import value_hash
from millrace.contracts.online_layout import MOST_RECENT, Past, Recent, unpack_recent
from millrace.windows.lastactions import KEPT_MS
from stream.partition.coclick_counts import EARLIER, WITHIN_MS
from stream.partition.recents import CLICKS, PURCHASES, Recents
from tests.scenes.stream_world import (
    DAY,
    HOUR,
    MINUTE,
    T0,
    Log,
    World,
    action,
    exposure,
    page_log,
    resumed,
)
from tests.scenes.turn_scene import whole_lists


def recent(world: World) -> dict[str, Recent]:
    return {str(user): unpack_recent(value) for some in world.partition.whole() for user, value in some.recents}


def reported(world: World) -> dict[str, bytes]:
    return {str(user): value for user, value in world.partition.changes().recents}


def test_clicks_and_purchases_are_kept_in_order_of_event_time_and_once_each() -> None:
    world = World()
    world.page("a", T0, [11, 12, 13])
    world.act("click", "a", T0 + 30, 0, 11)
    world.act("click", "a", T0 + 50, 2, 13)
    world.act("click", "a", T0 + 40, 1, 12)  # it comes late
    again = world.act("click", "a", T0 + 60, 0, 11)  # another click on the same exposure is none
    assert again.counts["duplicates"] == 1
    world.act("cart", "a", T0 + 65, 2, 13)  # neither a click nor a purchase
    world.act("purchase", "a", T0 + 70, 2, 13)
    clicks = [Past(13, T0 + 50), Past(12, T0 + 40), Past(11, T0 + 30)]
    assert recent(world) == {"7": Recent(clicks, [Past(13, T0 + 70)])}
    assert {user: unpack_recent(value) for user, value in reported(world).items()} == recent(world)
    assert reported(world) == {}


def test_an_action_without_exposure_or_with_another_item_is_no_click() -> None:
    world = World()
    world.page("a", T0, [11, 12])
    world.act("click", "a", T0 + 30, 0, 12)
    world.act("click", "a", T0 + 30, 9, 11)
    world.act("click", "b", T0 + 30, 0, 11)
    assert recent(world) == {}
    assert len(world.partition.coclicks) == 0


def test_a_click_that_waits_for_its_page_is_taken_with_it() -> None:
    world = World()
    world.act("click", "a", T0 + 30, 0, 11)
    assert recent(world) == {}
    world.page("a", T0, [11, 12])
    assert recent(world)["7"].clicks == [Past(11, T0 + 30)]


def test_ids_are_as_their_owner_writes_them() -> None:
    world = World()
    world.page("a", T0, ["7", 8, "ü"], user="ann")
    for position, item in enumerate((7, 8, "ü")):  # the shopper's client writes numbers
        world.act("click", "a", T0 + position, position, item, user="ann")
    assert [past.item_id for past in recent(world)["ann"].clicks] == ["ü", 8, "7"]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 50)), max_size=120), st.data())
def test_the_last_sixteen_of_each_user_against_sorting(deeds: list[tuple[int, bool, int]], data: Any) -> None:
    """Wherever the state is taken and restored, and however often changes are told."""
    recents, plain = Recents(), dict[tuple[str, int], list[Past]]()
    reader: dict[str, bytes] = {}
    cut = data.draw(st.integers(0, len(deeds)))
    for number, (user, bought, at) in enumerate(deeds):
        if number == cut:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(recents.snapshot()))
            recents = Recents()
            recents.resume(state)
        if data.draw(st.booleans()):
            reader |= {str(user_id): value for user_id, value in recents.changes()}
        own = plain.setdefault((str(user), bought), [])
        before = recents.add(user, PURCHASES if bought else CLICKS, number, T0 + at, EARLIER)
        earlier = [past for past in own if past.ts_ms <= T0 + at][:EARLIER]
        assert before == [value for past in earlier for value in past]
        own.append(Past(number, T0 + at))
        own.sort(key=lambda past: (past.ts_ms, past.item_id), reverse=True)  # of equal times the later one first
        del own[MOST_RECENT:]
    reader |= {str(user_id): value for user_id, value in recents.changes()}
    assert {str(user): value for some in recents.whole() for user, value in some} == reader
    for (name, what), own in plain.items():
        assert list(unpack_recent(reader[name])[what]) == own


def test_a_user_of_whom_nothing_is_left_ends_once() -> None:
    world = World()
    for user, at in ((1, T0), (2, T0 + DAY)):
        world.page(f"of {user}", at, [11], user)
        world.act("click", f"of {user}", at + 1, 0, 11, user)
    assert set(reported(world)) == {"1", "2"}
    world.page("later", T0 + KEPT_MS + HOUR, [12], user=3)
    assert set(recent(world)) == {"2"}
    assert reported(world) == {"1": b""}
    assert reported(world.crash()) == {}
    world.page("again", T0 + KEPT_MS + 2 * HOUR, [12], user=1)
    world.act("click", "again", T0 + KEPT_MS + 2 * HOUR, 0, 12, user=1)
    assert [past.item_id for past in unpack_recent(reported(world)["1"]).clicks] == [12]


def test_users_are_bounded_and_the_one_silent_for_longest_goes() -> None:
    recents = Recents(most_users=10)
    for user in range(10):
        recents.add(user, CLICKS, 1, T0 + user)
    recents.changes()
    recents.add(0, CLICKS, 2, T0 + 20)
    recents.add("new", CLICKS, 3, T0 + 21)
    assert len(recents) == 10
    ended = [user for user, value in recents.changes() if not value]
    assert ended == ["1"]


def test_many_users_end_in_steps() -> None:
    recents = Recents()
    for user in range(10_000):
        recents.add(user, CLICKS, 1, T0)
    sizes = []
    for _ in range(4):
        recents.sweep(T0 + 2 * KEPT_MS)
        sizes.append(len(recents))
    assert sizes[0] > 0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0


# ---------------------------------------------------------------------- co-clicks of a partition


def test_a_click_counts_with_the_users_clicks_of_the_day_before_it() -> None:
    world = World()
    times = {11: T0 + HOUR, 12: T0 + HOUR + WITHIN_MS - 1, 13: T0 + HOUR + WITHIN_MS}  # 13 is a day after 11
    for number, (item, at) in enumerate(times.items()):
        world.page(f"p{number}", at, [item])
        world.act("click", f"p{number}", at, 0, item)
    world.page("other", T0 + HOUR + WITHIN_MS, [12], user=8)  # another user's clicks are another's
    world.act("click", "other", T0 + HOUR + WITHIN_MS, 0, 12, user=8)
    h11, h12, h13 = map(value_hash, times)
    day = T0 // DAY + 1
    assert whole_lists(0, world.partition.coclicks) == {
        (0, h11): {h12: {day: 1}},
        (0, h12): {h11: {day: 1}, h13: {day: 1}},
        (0, h13): {h12: {day: 1}},
    }
    assert sorted(world.partition.changes().coclicks.items.tolist()) == sorted([h11, h12, h13])
    assert not len(world.partition.changes().coclicks.items)


def test_last_clicks_and_co_clicks_do_not_depend_on_how_messages_are_cut() -> None:
    rng, log = random.Random(3), Log()
    messages = []
    for number in range(120):
        at, items, user = T0 + number * 40 * MINUTE, rng.sample(range(30), 4), rng.randrange(5)
        messages += log.page_logs(page_log(f"p{number}", at, items, user))
        messages += log.events(exposure(f"p{number}", at, items, user_id=user))
        for position in rng.sample(range(4), 2):
            late = at - rng.randrange(2) * 20_000 + rng.randrange(MINUTE)
            kind = rng.choice(["click", "click", "purchase"])
            messages += log.events(action(kind, f"p{number}", late, position, items[position], user_id=user))
    states = []
    for size in (1, 7, len(messages)):
        world = World()
        for start in range(0, len(messages), size):
            world.take(*messages[start : start + size])
        states.append((recent(world), whole_lists(0, world.partition.coclicks)))
    assert len(states[0][1]) > 20
    assert states[0] == states[1] == states[2]


# ---------------------------------------------------------------------- checkpoints from before


@pytest.mark.parametrize("name", ["recents", "coclicks"])
def test_a_damaged_part_of_a_checkpoint_is_a_named_error(name: str) -> None:
    world = World()
    world.page("a", T0, [11, 12])
    for position, item in enumerate((11, 12)):
        world.act("click", "a", T0 + 1, position, item)
    head = msgspec.msgpack.decode(world.partition.snapshot().to_bytes())
    bad = ({"7": b"\xc1"}, [], 0) if name == "recents" else {**head[name], "near": b"1234567"}
    with pytest.raises(Exception, match="damaged") as caught:
        resumed(msgspec.msgpack.encode({**head, name: bad}))
    assert type(caught.value).__name__ == "StoreError"
