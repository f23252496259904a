"""The recent items, the ring and the histories against dictionaries; how often an item is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.retrieval import retrievalkernels
from learner.retrieval.click_history import History, Pending, RecentItems
from learner.retrieval.retrievalkernels import SampleRows, SideColumns
from tests.learner.retrieval_scene import PlainHead

F, N, HISTORY = 3, 2, 4
ITEM_COLUMNS, PLAIN_COLUMNS, USER_COLUMNS = np.array([1, 2]), np.array([1]), np.array([0])


@dataclass
class Batch:
    """What the kernel takes of a batch."""

    clicked: NDArray[np.bool_]
    user: NDArray[np.uint64]
    item: NDArray[np.uint64]
    ts_ms: NDArray[np.int64]
    weight: NDArray[np.float32]
    cat: NDArray[np.int64]
    num: NDArray[np.float32]

    @classmethod
    def drawn(cls, rng: np.random.Generator, rows: int, users: int, items: int, start_ms: int) -> Batch:
        """Some items and some users have no id."""
        item = rng.integers(0, items + 1, rows)
        return cls(
            rng.random(rows) < 0.3,
            rng.integers(0, users + 1, rows).astype(np.uint64),
            item.astype(np.uint64),
            np.sort(start_ms + rng.integers(0, 50, rows)),
            rng.uniform(0.5, 2, rows).astype(np.float32),
            np.stack([np.arange(rows), item * 7, item * 11], axis=1),
            rng.normal(size=(rows, N)).astype(np.float32),
        )


@dataclass
class Held:
    """Recent items, history and pending clicks, small."""

    recent_items: RecentItems
    history: History
    pending: Pending
    state: NDArray[np.uint64] = field(default_factory=lambda: np.array([5], np.uint64))

    @classmethod
    def of(cls, items: int, ring: int, users: int = 64, micro: int = 10_000) -> Held:
        return cls(RecentItems(2, 1, items, ring), History(users, HISTORY), Pending(micro, 1, HISTORY))

    def take(self, batch: Batch, start: int = 0, strangers: int = 0) -> int:
        r, h, p = self.recent_items, self.history, self.pending
        rows = SampleRows(batch.clicked, batch.user, batch.item, batch.ts_ms, batch.weight, batch.cat, batch.num)
        columns = SideColumns(ITEM_COLUMNS, PLAIN_COLUMNS, USER_COLUMNS, 0)
        row, p.count = retrievalkernels.take(
            start, rows, columns, r.arrays, r.shift, h.arrays, p.arrays, p.count, self.state, strangers
        )
        return int(row)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        parts: dict[str, Any] = {"recent_items": self.recent_items, "history": self.history, "pending": self.pending}
        return {name: part.snapshot() for name, part in parts.items()}

    def resumed(self) -> Held:
        state, twin = self.snapshot(), Held.of(len(self.recent_items.keys), len(self.recent_items.ring))
        twin.history, twin.pending = (
            History(len(self.history.users), HISTORY),
            Pending(len(self.pending.user), 1, HISTORY),
        )
        twin.recent_items.resume(state["recent_items"])
        twin.history.resume(state["history"])
        twin.pending.resume(state["pending"], len(twin.recent_items))
        twin.state[:] = self.state
        return twin


def stream(seed: int, batches: int, items: int, users: int = 9) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    for k in range(batches):
        yield Batch.drawn(rng, 40, users, items, 1000 + 40 * k)


@pytest.mark.slow
def test_items_are_registered_as_they_were_shown_last() -> None:
    held, shown = Held.of(256, 32), {}
    for batch in stream(0, 20, 100):
        held.take(batch)
        for i, key in enumerate(batch.item.tolist()):
            if key:
                shown[key] = (batch.cat[i, 1:].tolist(), batch.num[i, 1:].tolist())
    recent_items = held.recent_items
    keys = np.array(sorted(shown), np.uint64)
    entries = recent_items.entries(keys)
    assert sorted(entries.tolist()) == list(range(len(shown)))
    made = {
        k: (recent_items.cat[e].tolist(), recent_items.plain[e].tolist())
        for k, e in zip(keys.tolist(), entries, strict=True)
    }
    assert made == shown
    assert recent_items.entries(np.array([0, 999], np.uint64)).tolist() == [-1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_the_register_is_bounded_and_keeps_what_was_clicked_or_just_shown(seed: int) -> None:
    """The clock, in plain words, beside it."""
    items, ring = 24, 8
    held = Held.of(items, ring)
    keys: list[int] = []
    seen: list[bool] = []
    clicks: list[int] = []
    hand = 0
    for batch in stream(seed, 60, 200):
        held.take(batch)
        for key, clicked in zip(batch.item.tolist(), batch.clicked.tolist(), strict=True):
            if not key:
                continue
            if key in keys:
                at = keys.index(key)
            elif len(keys) < items:
                at = len(keys)
                keys.append(key)
                seen.append(True)
            else:
                while seen[hand] or keys[hand] in clicks:
                    seen[hand] = False
                    hand = (hand + 1) % items
                at, hand = hand, (hand + 1) % items
                keys[at] = key
            seen[at] = True
            if clicked:
                clicks = [*clicks, key][-ring:]
    recent_items = held.recent_items
    assert recent_items.keys.tolist() == keys
    assert recent_items.entries(np.array(keys, np.uint64)).tolist() == list(range(items))
    in_ring = sorted(recent_items.keys[recent_items.ring].tolist())
    assert in_ring == sorted(clicks)
    assert recent_items.clicks.tolist() == np.bincount(recent_items.ring, minlength=items).tolist()


def test_a_clicks_entry_stays_its_items_until_it_is_learnt_from() -> None:
    """However many items are shown between."""
    held = Held.of(24, 12, micro=12)
    for batch in stream(3, 30, 500):
        row = 0
        wanted: list[int] = []
        while row < len(batch.item):
            first = row
            row = held.take(batch, row)
            part = slice(first, row)
            wanted += batch.item[part][batch.clicked[part] & (batch.item[part] != 0)].tolist()
            pending = held.pending
            assert held.recent_items.keys[pending.entry[: len(pending)]].tolist() == wanted[-len(pending) :]
            if len(pending) == 12:
                pending.count, wanted = 0, []
        held.pending.count = 0


def test_histories_are_those_of_dictionaries() -> None:
    held = Held.of(512, 400)
    plain: dict[int, list[tuple[int, int]]] = {}
    for batch in stream(1, 25, 80):
        before = len(held.pending)
        held.take(batch)
        at = before
        for i in np.flatnonzero(batch.clicked & (batch.item != 0)).tolist():
            user, ts_ms = int(batch.user[i]), int(batch.ts_ms[i])
            past = plain.get(user, [])
            assert held.pending.past[at].tolist() == [k for k, _ in past] + [0] * (HISTORY - len(past))
            known = [ms < ts_ms for _, ms in past] + [False] * (HISTORY - len(past))
            assert held.pending.known[at].tolist() == known
            assert (held.pending.user[at], held.pending.weight[at]) == (user, batch.weight[i])
            assert held.pending.cat[at].tolist() == [i]
            if user:
                plain[user] = [(int(batch.item[i]), ts_ms), *past][:HISTORY]
            at += 1
        assert len(held.pending) == at
    assert at > 200
    assert any(len(past) == HISTORY for past in plain.values())


def test_a_page_does_not_know_its_own_clicks_but_they_are_masked() -> None:
    held = Held.of(16, 8)
    two = np.array([3, 3], np.uint64)
    rows = Batch(
        np.array([True, True]), two, np.array([5, 6], np.uint64), np.array([100, 100]), np.ones(2, np.float32),
        np.zeros((2, F), np.int64), np.zeros((2, N), np.float32),
    )  # fmt: skip
    held.take(rows)
    rows.ts_ms[:] = 101
    held.take(rows)
    known = [
        [k for k, ok in zip(*pair, strict=True) if ok]
        for pair in zip(held.pending.past[:4].tolist(), held.pending.known[:4].tolist(), strict=True)
    ]
    assert held.pending.past[:4].tolist() == [[0, 0, 0, 0], [5, 0, 0, 0], [6, 5, 0, 0], [5, 6, 5, 0]]
    assert known == [[], [], [6, 5], [6, 5]]


def test_the_history_is_bounded_and_the_longest_absent_make_room() -> None:
    held = Held.of(2048, 1000, users=16)
    for batch in stream(2, 50, 300, users=400):
        held.take(batch)
    users = held.history.users
    assert 12 <= np.count_nonzero(users) <= 16
    last = {}
    for batch in stream(2, 50, 300, users=400):
        for i in np.flatnonzero(batch.clicked & (batch.item != 0) & (batch.user != 0)).tolist():
            last[int(batch.user[i])] = int(batch.ts_ms[i])
    newest = sorted(last.values())
    assert held.history.newest[users != 0].min() >= newest[len(newest) // 2], "who came last is there"
    for user, ms in zip(users.tolist(), held.history.newest.tolist(), strict=True):
        assert not user or last[user] == ms


def test_strangers_have_neither_history_nor_id_and_are_as_many_as_wanted() -> None:
    held = Held.of(512, 400)
    total = strange = masked = 0
    for batch in stream(4, 150, 80):
        held.pending.count = 0
        held.take(batch, strangers=1 << 14)
        pending = held.pending
        n = len(pending)
        clicked = np.flatnonzero(batch.clicked & (batch.item != 0))
        hidden = (pending.cat[:n, 0] == 0) & (clicked != 0)
        assert not pending.known[:n][hidden].any()
        masked += int(pending.past[:n][hidden].any(axis=1).sum())
        total, strange = total + n, strange + int(hidden.sum())
    assert total > 1500
    assert masked > strange / 2, "what they clicked is known all the same, to be masked"
    assert abs(strange / total - 0.25) < 5 * (0.25 * 0.75 / total) ** 0.5


@pytest.mark.parametrize("after", [1, 7, 30])
def test_what_resumes_goes_on_bit_for_bit(after: int) -> None:
    batches = list(stream(6, 40, 120, users=40))
    held = Held.of(24, 8, users=16)
    for batch in batches[:after]:
        held.take(batch, strangers=5000)
    twin = held.resumed()
    for batch in batches[after:]:
        held.take(batch, strangers=5000)
        twin.take(batch, strangers=5000)
    mine, theirs = held.snapshot(), twin.snapshot()
    for part, arrays in mine.items():
        for name, array in arrays.items():
            assert array.tobytes() == theirs[part][name].tobytes(), (part, name)
    assert (
        held.recent_items.entries(held.recent_items.keys).tolist()
        == twin.recent_items.entries(twin.recent_items.keys).tolist()
    )


def test_a_state_of_another_form_is_refused() -> None:
    held = Held.of(24, 8)
    for batch in stream(0, 5, 100):
        held.take(batch)
    state = held.snapshot()
    bad: list[tuple[str, str, Any]] = [
        ("recent_items", "cat", np.zeros((24, 1), np.int64)),
        ("recent_items", "plain", np.zeros((24, 1))),
        ("recent_items", "ring", np.full(8, 24, np.int32)),
        ("recent_items", "counts", np.zeros(4, np.int64)),
        ("history", "at", np.array([64])),
        ("history", "past", np.zeros((1, HISTORY), np.uint64)),
        ("pending", "entry", np.full(len(held.pending), 24)),
        ("pending", "cat", np.zeros((len(held.pending), 2), np.int64)),
    ]
    for part, name, array in bad:
        fresh = Held.of(24, 8)
        own = {**state[part], name: array}
        with_items: list[Any] = [24] if part == "pending" else []
        resume = getattr(fresh, part).resume
        with pytest.raises(ValueError, match=r"\w"):
            resume(own, *with_items)
        with pytest.raises(KeyError):
            resume({n: a for n, a in state[part].items() if n != name}, *with_items)
    with pytest.raises(ValueError, match="ring of 8"):
        RecentItems(1, 1, 8, 8)


def test_items_are_drawn_as_often_as_expected() -> None:
    """Monte Carlo: clicks are drawn from the ring by those who click, so they too are a part of the mixture."""
    held = Held.of(64, 30)
    for batch in stream(8, 6, 40):
        held.take(batch)
    recent_items = held.recent_items
    size, from_ring, from_all, turns = 16, 40, 24, 4000
    places = np.full(64, -1, np.int32)
    entries, times, expected = np.zeros(200, np.int64), np.zeros(200, np.int64), np.zeros(200)
    rng, state = np.random.default_rng(0), np.array([9], np.uint64)
    total, wanted = np.zeros(64), np.zeros(64)
    for _ in range(turns):
        clicked = rng.choice(recent_items.ring, size).astype(np.int64)
        found = retrievalkernels.candidates(
            clicked, recent_items.arrays, state, from_ring, from_all, places, entries, times, expected,
        )  # fmt: skip
        assert times[:found].sum() == size + from_ring + from_all
        assert (entries[places[clicked]] == clicked).all()
        total[entries[:found]] += times[:found]
        wanted[entries[:found]] = expected[:found]
        places[entries[:found]] = -1
    drawn = np.flatnonzero(wanted)
    assert len(drawn) == len(recent_items)
    assert wanted.sum() == pytest.approx(size + from_ring + from_all)
    noise = np.sqrt(wanted[drawn] / turns)
    assert (np.abs(total[drawn] / turns - wanted[drawn]) < 5 * noise).all()
    assert len(set(np.round(wanted[drawn], 6))) > 3, "items differ in how likely they are"


def test_draws_are_those_of_plain_integers() -> None:
    held, plain = Held.of(64, 30), PlainHead(0, 0)
    for batch in stream(8, 6, 40):
        held.take(batch)
    plain.draws.state = 77
    recent_items = held.recent_items
    places, entries = np.full(64, -1, np.int32), np.zeros(200, np.int64)
    found = retrievalkernels.candidates(
        np.empty(0, np.int64), recent_items.arrays, np.array([77], np.uint64), 50, 50,
        places, entries, np.zeros(200, np.int64), np.zeros(200),
    )  # fmt: skip
    drawn = [int(recent_items.ring[plain.draws.below(30)]) for _ in range(50)]
    drawn += [plain.draws.below(len(recent_items)) for _ in range(50)]
    assert entries[:found].tolist() == list(dict.fromkeys(drawn))
