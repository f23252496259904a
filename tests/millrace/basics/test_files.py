"""Files are whole or absent, also when the disk is full, and what dead writers left is cleared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millrace.basics.atomic_files import clear_leftovers, temporary_beside, write_whole


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
