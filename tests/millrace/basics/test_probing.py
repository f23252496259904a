"""Tables of both forms against a dictionary: keys that are in each other's way, put in and taken out in any order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics import probing
from millrace.basics.probing import EMPTY, FREE, GONE, home_slot
from tests.scenes.exploring import examples

BITS = 4
SHIFT = 64 - BITS
KEYS = np.arange(1, 200, dtype=np.uint64)
LAST = [int(k) for k in KEYS if home_slot(k, SHIFT) in (0, 13, 14, 15)][:20]  # runs of them go past the table's end
TURNS = st.lists(st.sampled_from(LAST), min_size=1, max_size=40)
MOST = 10  # keys at a time


@examples(200)
@given(TURNS)
def test_keys_in_the_table(turns: list[int]) -> None:
    """A turn puts a key in, or takes it out if it is there."""
    table, plain = np.zeros((1 << BITS, 2), np.uint64), dict[int, int]()
    for turn, key in enumerate(turns):
        at = probing.place(table[:, 0], home_slot(key, SHIFT), np.uint64(key))
        assert (table[at, 0] == key) == (key in plain)
        if key in plain:
            del plain[key]
            probing.vacate(table, at, SHIFT)
        elif len(plain) < MOST:
            plain[key] = turn
            table[at] = key, turn
        for one in LAST:
            at = probing.place(table[:, 0], home_slot(one, SHIFT), np.uint64(one))
            assert table[at].tolist() == ([one, plain[one]] if one in plain else [0, 0])


@examples(200)
@given(TURNS)
def test_rows_in_the_table(turns: list[int]) -> None:
    slots, keys, plain = np.zeros(1 << BITS, np.int32), np.zeros(MOST, np.uint64), dict[int, int]()
    for key in turns:
        home = home_slot(key, SHIFT)
        if key in plain:
            assert probing.take_out(slots, home, SHIFT, keys, np.uint64(key)) == plain.pop(key)
        elif len(plain) < MOST:
            row = plain[key] = int(np.argmin(keys != 0))
            keys[row] = key
            probing.put(slots, home, row)
        for one in LAST:
            assert probing.seek(slots, home_slot(one, SHIFT), keys, np.uint64(one)) == plain.get(one, EMPTY)


@examples(200)
@given(TURNS)
def test_rows_that_go_while_others_read(turns: list[int]) -> None:
    """Slots whose row went are taken again, the first one on the way; where none is free, a search ends."""
    slots, keys, plain = np.zeros(1 << BITS, np.int32), np.zeros(MOST, np.uint64), dict[int, int]()
    for key in turns:
        slot, row, hole = probing.slot_and_hole(slots, home_slot(key, SHIFT), keys, np.uint64(key))
        way = (home_slot(key, SHIFT) + np.arange((slot - home_slot(key, SHIFT)) % len(slots))) % len(slots)
        gone = way[slots[way] == GONE]
        assert hole == (gone[0] if len(gone) else EMPTY)
        assert row == ~slots[slot] == plain.get(key, EMPTY)
        if key in plain:
            slots[slot], keys[plain.pop(key)] = GONE, 0
        elif len(plain) < MOST and (slots == FREE).sum() > 1:
            row = plain[key] = int(np.argmin(keys != 0))
            keys[row], slots[slot if hole == EMPTY else hole] = key, ~row
        for one in LAST:
            full = np.where(slots == FREE, np.int32(GONE), slots)
            for read in (slots, full):
                assert probing.seek_beside(read, home_slot(one, SHIFT), keys, np.uint64(one)) == plain.get(one, EMPTY)
