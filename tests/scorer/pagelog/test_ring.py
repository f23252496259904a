"""The ring between a worker and the feeder: what goes in comes out, in order, or is counted as lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import PageLog
from scorer.pagelog.ring import RingReader, RingWriter
from tests.architecture import ROOT
from tests.scenes.page_logs import page
from tests.scenes.scorer_shop import copied
from tests.scenes.waiting import until

steps = st.lists(st.one_of(st.integers(0, 12), st.just("take"), st.just("restart")), max_size=60)


@given(steps=steps, size=st.sampled_from([1024, 2048, 5000]), most=st.integers(1, 5))
def test_a_ring_is_a_queue_that_counts_what_it_does_not_take(steps: list[int | str], size: int, most: int) -> None:
    memory = np.zeros(size, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    waiting: list[PageLog] = []
    lost = [0, 0]
    for number, step in enumerate([*steps, *["take"] * len(steps)]):
        if step == "restart":
            writer = RingWriter(memory)  # the worker ended, and another one has its ring
        elif step == "take":
            found = [copied(i) for i in reader.take(most)]
            reader.give_back()
            expected, waiting = waiting[:most], waiting[most:]
            assert found == expected
        elif isinstance(step, int):
            made = page(number, step)
            if writer.put(made):
                waiting.append(made)
            else:
                lost[0] += 1
                lost[1] += step
                assert waiting or step > 2, "an empty ring takes a small page"
    assert not waiting
    assert reader.lost() == tuple(lost)
    assert reader.lost() == (0, 0)


def test_room_comes_back_only_when_it_is_given_back() -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    count = 0
    while writer.put(page(count, 4)):
        count += 1
    taken = reader.take(count)
    assert not writer.put(page(99, 4)), "what was taken is still looked at"
    assert [copied(i) for i in taken] == [page(i, 4) for i in range(count)]
    reader.give_back()
    assert writer.put(page(99, 4))


def test_pages_that_are_read_at_once_take_the_first_part_of_the_memory_alone() -> None:
    memory = np.zeros(64 << 10, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    for number in range(1000):
        assert writer.put(page(number, 4))
        assert [i.request_id for i in reader.take(5)] == [f"r{number}"]
        reader.give_back()
    assert not memory[len(memory) // 2 :].any()


def test_whoever_waits_for_pages_hears_of_each() -> None:
    bell = os.eventfd(0)
    try:
        writer = RingWriter(np.zeros(4096, np.uint8), bell)
        for number in range(3):
            assert writer.put(page(number, 4))
        assert os.eventfd_read(bell) == 3
    finally:
        os.close(bell)


@pytest.mark.parametrize(("at", "value"), [(256, 0xFF), (256 + 7, 1), (264, 0xFF), (272, 0xC1)])
def test_damage_is_reported_and_the_next_page_comes(at: int, value: int) -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.put(page(1, 4))
    memory[at] = value
    with pytest.raises(ValueError, match="no record"):
        reader.take(5)
    reader.give_back()
    writer.put(page(2, 4))
    assert [i.request_id for i in reader.take(5)] == ["r2"]


def test_pages_before_a_damaged_one_are_given_first() -> None:
    memory = np.zeros(4096, np.uint8)
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.put(page(1, 4))
    writer.put(page(2, 4))
    place = 256 + int(memory[:256].view(np.uint64)[0])  # of the third
    writer.put(page(3, 4))
    memory[place] = 0xFF
    assert [i.request_id for i in reader.take(5)] == ["r1", "r2"]
    reader.give_back()
    with pytest.raises(ValueError, match="no record"):
        reader.take(5)


def test_too_small_a_ring_is_an_error() -> None:
    with pytest.raises(ValueError, match="100 bytes"):
        RingWriter(np.zeros(100, np.uint8))


WRITER = """
import os, sys
import numpy as np
from scorer.pagelog.ring import RingWriter
from tests.scenes.page_logs import page
writer = RingWriter(np.memmap(sys.argv[1], np.uint8, "r+"))
for number in range(int(sys.argv[2])):
    made = page(number, number % 20)
    while not writer.put(made):
        os.sched_yield()
"""


def test_pages_cross_between_two_processes(tmp_path: Path) -> None:
    count, shared = 400, tmp_path / "ring"
    shared.write_bytes(bytes(16 * 1024))
    reader, seen = RingReader(np.memmap(shared, np.uint8, "r+")), list[PageLog]()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(shared), str(count)], cwd=ROOT) as child:

        def took() -> bool:
            found = [copied(i) for i in reader.take(8)]
            reader.give_back()
            seen.extend(found)
            return len(seen) >= count or child.poll() not in (0, None)

        until(took, "all pages came through", every=0)
    assert child.returncode == 0
    assert seen == [page(i, i % 20) for i in range(count)]
