"""The store's files are whole or absent, prove themselves, and one damaged file costs nothing but itself.
Whole files."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from millrace.basics.atomic_files import clear_leftovers, temporary_beside, write_whole
from millrace.basics.errors import StoreError
from millrace.basics.store import ASIDE, AbsentError, DamagedError, Sealed, Store, seal, unseal


@pytest.fixture(params=["folder", "file url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = {"folder": str(tmp_path / "deep" / "er"), "file url": f"file://{tmp_path}/c"}
    return where.get(request.param, f"memory://{tmp_path.name}-{request.node.name}")


def test_what_was_put_comes_back_with_its_seal(url: str) -> None:
    store = Store(url)
    file = store.put("a.part", {"rows": 3}, b"first ", memoryview(b"second"))
    head, body, found = Store(url).get("a.part")
    assert (json.loads(head), bytes(body), found) == ({"rows": 3}, b"first second", file)
    assert bytes(store.expect(file)[1]) == b"first second"
    store.put("a.part", None, b"another")
    with pytest.raises(DamagedError, match="not the one that was meant"):
        store.expect(file)


def test_of_several_writers_of_a_file_the_first_ones_stays(url: str) -> None:
    store = Store(url)
    for number in range(3):
        store.put_first("a.choice", number)
    assert json.loads(store.get("a.choice")[0]) == 0
    assert store.names() == ["a.choice"]
    if "://" not in url:
        assert [path.name for path in Path(url).iterdir()] == ["a.choice"], "nothing is left behind"
    store.remove(["a.choice"])
    store.put_first("a.choice", 3)
    assert json.loads(store.get("a.choice")[0]) == 3


def test_names_are_in_order_and_leave_out_what_is_not_for_readers(url: str) -> None:
    store = Store(url)
    for name in ("b.part", "a.part", "a.note"):
        store.put(name, {})
    store.rename_damaged("b.part", "its digest differs")
    assert store.names() == ["a.note", "a.part"]
    assert store.names("a.p") == ["a.part"]
    store.remove(["a.note", "a.note"])
    assert store.names() == ["a.part"]


def test_a_damaged_file_is_renamed_alone_and_aloud(url: str) -> None:
    store = Store(url)
    store.put("bad", {}, b"x" * 100)
    store.put("good", {}, b"y")
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/bad", fs.cat_file(f"{root}/bad")[:-1])
    with pytest.raises(DamagedError, match="'bad' of 165 bytes"):
        store.get("bad")
    with capture_logs() as logs:
        store.rename_damaged("bad", "torn")
        store.rename_damaged("bad", "torn")  # another process was faster
    assert [entry["kept_as"] for entry in logs] == [ASIDE + "bad"] * 2
    assert store.names() == ["good"]
    with pytest.raises(AbsentError, match="'bad' is not in"):
        store.get("bad")


@given(body=st.binary(max_size=300), head=st.dictionaries(st.text(max_size=5), st.integers(0, 9)), data=st.data())
def test_no_single_change_goes_unnoticed(body: bytes, head: dict[str, int], data: st.DataObject) -> None:
    chunks, digest = seal(head, body)
    raw = b"".join(chunks)
    said, found, again = unseal(raw, "whole")
    assert (json.loads(said), bytes(found), again) == (head, body, digest)
    at = data.draw(st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["flipped", "torn", "longer", "empty"]))
    if kind == "flipped":
        bad = bytearray(raw)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        bad = bytearray({"torn": raw[:at], "longer": raw + b"\0" * (at + 1), "empty": b""}[kind])
    with pytest.raises(DamagedError):
        unseal(bytes(bad), "bad")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_damaged(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        unseal(raw + b"MILLRACE SEALED\1", "foreign")


def test_a_reader_makes_no_folder_and_finds_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "not-there", writes=False)
    assert store.names() == []
    assert not (tmp_path / "not-there").exists()


def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("no-such-protocol://bucket")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    old = store.put("a", {}, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match=r"cannot be written to \(No space left on device\)"):
            store.put("a", {}, b"new")
    assert store.get("a")[2] == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


WRITER = """
import sys
from millrace.basics.store import Store
store = Store(sys.argv[1])
number = 0
while True:
    store.put("a", {"number": number}, b"x" * 3_000_000)
    number += 1
    if number == 2:
        print("writing", flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_files_and_nothing_for_ever(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert len(Store(tmp_path).get("a")[1]) == 3_000_000
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_another_machine_go_when_they_are_abandoned(tmp_path: Path) -> None:
    def left(name: str, age_s: float) -> None:
        path = tmp_path / name
        path.write_bytes(b"half")
        os.utime(path, (10**9 - age_s, 10**9 - age_s))

    own = re.sub(r"\W", "_", platform.node()) or "machine"
    left(".a.elsewhere-7.tmp", 90_000)
    left(".b.elsewhere-7.tmp", 80_000)
    left(f".c.{own}-{2**22 + 12345}.tmp", 0)
    left("whole", 0)
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.elsewhere-7.tmp", "whole"]


def test_a_sealed_file_is_named_by_what_it_is(tmp_path: Path) -> None:
    a, b = Store(tmp_path).put("a", {}, b"1"), Store(tmp_path).put("b", {}, b"1")
    assert (a.digest, a.size) == (b.digest, b.size)
    assert a != b
    assert Sealed("a", a.digest, a.size) == a


# -- Files are whole or absent, also when the disk is full, and what dead writers left is cleared ----------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a"
    write_whole(path, b"first", durable=durable)
    write_whole(path, b"sec", memoryview(b"ond"), durable=durable)
    assert path.read_bytes() == b"second"
    write_whole(path, durable=durable)
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a", list[tuple[str, bool]]()

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, b"not durable", durable=False)
    assert synced == []
    path.unlink()
    write_whole(path, b"durable", durable=True)
    assert synced == [(str(temporary_beside(path)), False), (str(tmp_path), True)]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "a"
    write_whole(path, b"before", durable=True)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"after", durable=True)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_go_unless_their_writer_lives(tmp_path: Path) -> None:
    dead, own = 2**22 + 12345, os.getpid()  # the first is above the largest process id
    (tmp_path / f".half.{dead}.tmp").write_bytes(b"half")
    (tmp_path / f".huge.{10**30}.tmp").write_bytes(b"half")
    folder = tmp_path / f".folder.{dead}.tmp"
    folder.mkdir()
    (folder / "serving").write_bytes(b"half")
    (tmp_path / f".mine.{own}.tmp").write_bytes(b"half")  # of an earlier process that had our number
    kept = [".first.1.tmp", ".no-process.tmp", "whole", f"seen.{dead}.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
