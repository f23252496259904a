"""Parts of the crash suite: a way that can be cut, a clock that can be stepped, the choice of faults."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.crash.faults import FAULTS, chosen
from tests.crash.link import DELAY_SECONDS, Link
from tests.crash.machine import Clocks, Disks
from tests.crash.table import COLUMNS, markdown, table
from tests.scenes.waiting import PATIENCE


@contextmanager
def echo(word: bytes) -> Iterator[str]:
    """A server that answers each piece with its word and the piece."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(near: socket.socket) -> None:
            with near:
                while piece := near.recv(100):
                    near.sendall(word + piece)

        def serve() -> None:
            while True:
                try:
                    near, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(near,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def connected(link: Link, patience: float = PATIENCE) -> socket.socket:
    host, _, port = link.address.rpartition(":")
    return socket.create_connection((host, int(port)), patience)


def test_a_link_passes_on_and_takes_its_targets_in_turn_past_those_that_refuse() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"127.0.0.1:{gone.getsockname()[1]}"
    with echo(b"one ") as one, echo(b"two ") as two, Link([one, two, nobody]) as link:
        said = set()
        for _ in range(6):
            with connected(link) as near:
                near.sendall(b"?")
                said.add(near.recv(100))
        assert said == {b"one ?", b"two ?"}


def test_a_dead_link_passes_nothing_and_tells_nobody_and_goes_on_where_it_was() -> None:
    with echo(b"") as target, Link([target]) as link, connected(link) as near:
        near.sendall(b"before")
        assert near.recv(100) == b"before"
        link.set("dead")
        near.sendall(b"during")
        near.settimeout(2 * DELAY_SECONDS)
        with pytest.raises(TimeoutError):
            near.recv(100)
        link.set("open")
        near.settimeout(PATIENCE)
        assert near.recv(100) == b"during"


def test_a_closed_link_ends_connections_and_refuses_new_ones_until_it_is_open() -> None:
    with echo(b"") as target, Link([target]) as link:
        with connected(link) as near:
            near.sendall(b"before")
            assert near.recv(100) == b"before"
            link.set("closed")
            with suppress(ConnectionResetError):
                assert near.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            connected(link)
        link.set("open")
        with connected(link) as near:
            near.sendall(b"after")
            assert near.recv(100) == b"after"


def test_a_slow_link_passes_all(tmp_path: Path) -> None:
    with echo(b"") as target, Link([target]) as link, connected(link) as near:
        link.set("slow")
        near.sendall(b"slowly")
        assert near.recv(100) == b"slowly"


def test_a_process_has_the_clock_of_its_role_and_its_step_while_it_runs(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clocks")
    env = os.environ | clocks.made(["learn"]) | {"CRASH_ROLE": "learn"}
    clocks.step("learn", 3600.0)
    code = (
        "import sys, time; print(time.time() - time.clock_gettime(time.CLOCK_REALTIME), flush=True);"
        "sys.stdin.readline(); print((time.time_ns() - time.clock_gettime_ns(time.CLOCK_REALTIME)) / 1e9)"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = float(process.stdout.readline())
        clocks.step("learn", -60.0)
        process.stdin.write("\n")
        process.stdin.flush()
        second = float(process.stdout.readline())
    assert first == pytest.approx(3600.0, abs=30.0)
    assert second == pytest.approx(-60.0, abs=30.0)


def test_a_disk_is_full_until_that_is_taken_back_and_what_it_held_stays(tmp_path: Path) -> None:
    disks, place = Disks(), tmp_path / "models"
    with disks.mounted("models", place):
        (place / "kept").write_text("it")
        if disks.places:  # else mounting is refused here, and the folder is one like any other
            end = disks.fill("models")
            with pytest.raises(OSError, match="No space left"):
                (place / "more").write_text("than there is room for")
            end()
            (place / "again").write_text("there is room")
    assert (place / "kept").read_text() == "it"
    assert not place.is_mount()


def test_faults_have_names_of_their_own_and_are_chosen_by_kind_or_name() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert chosen("") == FAULTS
    assert {fault.kind for fault in chosen("kill, Redis emptied")} == {"kill", "emptied"}
    with pytest.raises(ValueError, match="'kil' is no fault"):
        chosen("kil")


def test_the_table_adds_up_by_clock_and_fault_and_says_what_did_not_heal() -> None:
    row = {"clock": "real", "fault": "kill learn", "exposures": 9, "lost": 0, "doubled": 1, "wrong": [], "refusals": 2}
    row |= {"apart": {"late": 2, "page-log-gone": 1, "no-page-log": 4, "future": 8}}
    found = table([row | {"recovery_s": s} for s in (1.0, 2.0, 6.0)] + [row | {"recovery_s": None, "clock": "lapsed"}])
    assert [line["times"] for line in found] == [3, 1]
    assert found[0] == {
        "clock": "real", "fault": "kill learn", "times": 3, "exposures": 27, "late": 9, "no page log": 12,
        "other dead": 24, "lost": 0, "doubled": 3, "wrong": 0, "refusals": 6, "recovery p50 s": 2.0, "worst s": 6.0,
    }  # fmt: skip
    assert (found[1]["recovery p50 s"], found[1]["worst s"]) == (None, "not healed")
    lines = markdown(found).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
