"""Shared memory and the link: what arrives is what was sent, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from millrace.processes.shared import Pool, Region
from scorer.ipc.link import INLINE, MOST_REGIONS, Closed, FeederLink, Inbox, LinkMessage, Packet, WorkerLink
from tests.scenes.exploring import examples
from tests.scenes.scorer_feeder import delivered
from tests.scenes.waiting import PATIENCE, until

KINDS = ["<i8", "<f4", "|b1", "<u8", "|u1", "<i4"]
shapes = st.one_of(st.just(()), hn.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40))


def shared_files() -> int:
    """How many descriptors of shared memory this process holds; 0 where the system does not tell."""
    gc.collect()
    found = 0
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found += "memfd:millrace" in os.readlink(path)
    return found


# -- shared memory ------------------------------------------------------------------------------------------------


def test_what_one_mapping_writes_the_other_reads() -> None:
    region = Region(4096)
    other = Region.of_fd(os.dup(region.fd))
    assert other.size == 4096
    ours, theirs = region.array((4, 8), np.int64, 64), other.array((4, 8), np.int64, 64)
    assert not theirs.any()
    ours[2, 3] = 7
    assert theirs[2, 3] == 7
    with pytest.raises(ValueError, match="beyond"):
        region.array((513,), np.int64)


@pytest.mark.slow
def test_an_array_keeps_its_region_and_the_last_one_lets_it_go() -> None:
    before = shared_files()
    pool = Pool()
    array = pool.allocate((1000,), np.float64)
    view = array[10:20]
    del array
    gc.collect()
    view[:] = 3
    found = pool.find(view)
    assert found is not None
    region, offset = found
    assert offset == 80
    assert region.array((10,), np.float64, 80).tolist() == [3.0] * 10
    del region, found, view
    assert shared_files() <= before


def test_what_is_not_shared_is_not_found() -> None:
    pool = Pool()
    shared = pool.allocate((10,), np.int8)
    assert pool.find(np.zeros(10, np.int8)) is None
    assert Pool().find(shared) is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="looks at how many blocks a memory file has")
def test_populating_takes_no_memory_where_nothing_was_written() -> None:
    """A table has room for millions of rows that it does not hold. In shared memory even reading takes a page."""
    region = Region(64 << 20)
    rows = region.array((1 << 20,), np.uint8, 16 << 20)
    rows[:] = 1
    region.populate()
    taken = os.fstat(region.fd).st_blocks * 512
    assert taken < 8 << 20  # by the rows, in whatever pages
    assert rows.sum() == 1 << 20


def test_populating_changes_nothing() -> None:
    region = Region(10 << 20)
    region.array((5,), np.int64, 8)[...] = range(5)
    region.populate()
    region.huge_pages()
    assert region.array((5,), np.int64, 8).tolist() == [0, 1, 2, 3, 4]


def test_a_large_region_that_is_let_go_takes_nothing_from_others() -> None:
    """Its pages are given back in pieces, and other mappings still have what it wrote."""
    region = Region(64 << 20)
    other = Region.of_fd(os.dup(region.fd))
    region.array((64 << 20,), np.uint8)[::4096] = 7
    theirs = other.array((64 << 20,), np.uint8)
    del region
    gc.collect()
    assert (theirs[::4096] == 7).all()


# -- messages -----------------------------------------------------------------------------------------------------


@examples(60)
@given(
    arrays=st.dictionaries(
        st.text(max_size=8), st.sampled_from(KINDS).flatmap(lambda kind: hn.arrays(kind, shapes)), max_size=4
    ),
    large=st.integers(0, 3),
    facts=st.recursive(st.none() | st.integers(0, 9) | st.text(max_size=5), lambda x: st.lists(x, max_size=3)),
)
def test_what_arrives_is_what_was_sent(arrays: dict[str, Any], large: int, facts: Any) -> None:
    pool = Pool()
    for n in range(large):
        arrays[f"large {n}"] = np.random.default_rng(n).random((INLINE, 2))
    arrays["shared"] = pool.allocate((INLINE, 2), np.int32)
    arrays["shared"][:, 1] = 5
    arrays["part of it"] = arrays["shared"][100 : 100 + INLINE // 2]
    message = delivered(Packet("word", facts, arrays, pool))
    assert (message.kind, message.facts) == ("word", facts)
    assert list(message.arrays) == sorted(message.arrays, key=list(message.arrays).index)
    assert message.arrays.keys() == arrays.keys()
    for name, sent in arrays.items():
        got = message.arrays[name]
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got, sent)
        assert got.flags.writeable
        assert got.flags.aligned
        assert got.flags.c_contiguous


def test_shared_memory_is_not_copied_and_loose_arrays_are() -> None:
    pool = Pool()
    shared, loose = pool.allocate((INLINE,), np.int64), np.zeros(INLINE, np.int64)
    few = pool.allocate((4,), np.int64)  # as the tables of a small shop: they are written to as large ones are
    message = delivered(Packet("base", None, {"shared": shared, "few": few, "loose": loose}, pool))
    shared[3], few[3], loose[3] = 1, 1, 1
    assert message.arrays["shared"][3] == 1
    assert message.arrays["few"][3] == 1
    assert message.arrays["loose"][3] == 0


def test_a_message_over_more_regions_than_can_be_sent_is_refused() -> None:
    pool = Pool()
    arrays = {str(n): pool.allocate((INLINE + 1,), np.int8) for n in range(MOST_REGIONS + 1)}
    with pytest.raises(ValueError, match="regions"):
        Packet("base", None, arrays, pool)


@pytest.mark.slow
def test_packets_leave_no_descriptors_behind() -> None:
    before = shared_files()
    pool = Pool()
    arrays = {"a": pool.allocate((INLINE,), np.int64), "b": np.ones(INLINE)}
    for _ in range(20):
        message = delivered(Packet("base", None, arrays, pool))
    del arrays, message
    assert shared_files() <= before


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_frame_may_come_in_pieces(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packet = Packet("word", {"n": 1}, {"a": np.arange(20), "b": np.ones((INLINE,))})
        fds = [region.fd for region in packet.regions]
        socket.send_fds(ours, [packet.data[:size]], fds)
        inbox = Inbox(theirs)
        found = inbox.read()
        for start in range(size, len(packet.data), size):
            assert not found
            ours.sendall(packet.data[start : start + size])
            found = inbox.read()
        assert found[0].arrays["a"].tolist() == list(range(20))
        assert found[0].arrays["b"].sum() == INLINE


def test_several_messages_in_one_read_come_in_order_each_with_its_arrays() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for n in range(5):
            Packet("word", n, {"a": np.full(INLINE, n)}).send(ours)
        inbox, found = Inbox(theirs), list[LinkMessage]()
        while len(found) < 5:
            found += inbox.read()
        assert [m.facts for m in found] == [0, 1, 2, 3, 4]
        assert [int(m.arrays["a"][0]) for m in found] == [0, 1, 2, 3, 4]
        ours.close()
        with pytest.raises(Closed):
            inbox.read()


def test_what_is_no_message_closes_the_link() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\xff" * 64)
        with pytest.raises(Closed):
            Inbox(theirs).read()


@pytest.mark.slow
def test_a_message_whose_memory_cannot_be_mapped_closes_the_link() -> None:
    """Were it passed over, its other descriptors would be taken for the next message's."""
    before = shared_files()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packet = Packet("word", None, {"a": np.ones(INLINE), "b": np.ones(INLINE)})
        head = bytearray(packet.data)
        head[12:16] = (2).to_bytes(4, "little")  # two regions, of which the first is none
        pipe = os.pipe()
        socket.send_fds(ours, [head], [pipe[0], packet.regions[0].fd])
        inbox = Inbox(theirs)
        with pytest.raises(Closed):
            inbox.read()
        inbox.close()
        for fd in pipe:
            os.close(fd)
    del packet, inbox
    assert shared_files() <= before


def test_a_message_that_says_nonsense_of_its_arrays_closes_the_link() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packet = Packet("word", None, {"a": np.arange(20)})
        ours.sendall(packet.data.replace(b"<i8", b"<x8"))
        with pytest.raises(Closed, match="x8"):
            Inbox(theirs).read()


def test_descriptors_that_cannot_be_received_close_the_link() -> None:
    """A process that may open no more files gets a message without its memory, and no error."""
    resource = pytest.importorskip("resource")
    ours, theirs = socket.socketpair()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    with ours, theirs:
        Packet("word", None, {"a": np.ones(INLINE)}).send(ours)
        Packet("word", None, {"a": np.zeros(INLINE)}).send(ours)
        inbox = Inbox(theirs)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(Closed):
                inbox.read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        inbox.close()


# -- both ends ----------------------------------------------------------------------------------------------------


async def test_feeder_and_worker_talk_both_ways_and_see_each_other_end() -> None:
    ours, theirs = socket.socketpair()
    received: list[Any] = []
    gone = threading.Event()
    feeder = FeederLink(ours, lambda message: received.append(message.facts), gone.set)
    got: list[int] = []
    ended = asyncio.Event()

    def take(message: LinkMessage) -> None:
        got.append(int(message.arrays["a"].sum()))
        link.send("word", len(got))

    link = WorkerLink(theirs, take, ended.set)
    link.start(asyncio.get_running_loop())
    feeder.start()
    for n in range(200):  # more than it reads ahead
        feeder.put(Packet("word", None, {"a": np.full(INLINE, n)}))
    while len(got) < 200:
        await asyncio.sleep(0)
    feeder.close()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    link.close()
    assert got == [INLINE * n for n in range(200)]
    assert gone.wait(PATIENCE)
    assert received == list(range(1, 201))


def test_other_callbacks_run_between_two_messages() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        for n in range(10):
            Packet("word", n).send(ours)

        async def worker() -> list[Any]:
            order: list[Any] = []
            loop = asyncio.get_running_loop()

            def take(message: LinkMessage) -> None:
                order.append(message.facts)
                loop.call_soon(order.append, "request")

            link = WorkerLink(theirs, take, lambda: None)
            link.start(loop)
            while len(order) < 20:
                await asyncio.sleep(0)
            link.close()
            return order

        order = asyncio.run(worker())
    assert order == [what for n in range(10) for what in (n, "request")]


def test_a_worker_that_has_closed_its_link_takes_no_message_more() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        for n in range(10):
            Packet("word", n).send(ours)

        async def worker() -> list[Any]:
            got: list[Any] = []

            def take(message: LinkMessage) -> None:
                got.append(message.facts)
                link.close()
                link.send("word")

            link = WorkerLink(theirs, take, lambda: None)
            link.start(asyncio.get_running_loop())
            while not got:
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            return got

        assert asyncio.run(worker()) == [0]


def test_a_worker_that_reads_nothing_does_not_hold_the_feeder_up() -> None:
    ours, theirs = socket.socketpair()
    gone = threading.Event()
    link = FeederLink(ours, lambda _: None, gone.set)
    link.start()
    for _ in range(1000):
        link.put(Packet("word", "x" * 10_000))
    assert link.waiting
    theirs.close()
    assert gone.wait(PATIENCE)
    until(lambda: not link._threads[0].is_alive(), "the sending thread ends as well")


def test_a_send_that_fails_ends_the_link_for_both_sides() -> None:
    """The kernel refuses a message where too many descriptors are on their way: no later one must follow it."""
    ours, theirs = socket.socketpair()
    gone = threading.Event()
    link = FeederLink(ours, lambda _: None, gone.set)

    class Refused(Packet):
        def send(self, to: socket.socket) -> None:
            raise OSError(errno.ETOOMANYREFS, "too many references")

    with theirs:
        link.put(Refused("word", 1))
        link.put(Packet("word", 2))
        link.start()
        assert gone.wait(PATIENCE)
        with pytest.raises(Closed):
            Inbox(theirs).read()
