"""Checkpoints are whole or absent, in a folder and in an object store."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
from structlog.testing import capture_logs

from millrace.contracts.errors import StoreError
from stream.checkpoint import CheckpointStore


@pytest.fixture(params=["folder", "file url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = {"folder": str(tmp_path / "deep" / "er"), "file url": f"file://{tmp_path}/c"}
    return where.get(request.param, f"memory://{tmp_path.name}")


def files(url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    return sorted(fs.ls(root, detail=False))


def damage(url: str, index: int, how: str) -> None:
    fs, _ = fsspec.core.url_to_fs(url)
    name = files(url)[index]
    raw = bytearray(fs.cat_file(name))
    if how == "torn":
        raw = raw[:-3]
    elif how == "flipped":
        raw[len(raw) // 2] ^= 1
    else:
        raw = bytearray()
    fs.pipe_file(name, bytes(raw))


def test_the_newest_of_each_partition_is_found_and_two_are_kept(url: str) -> None:
    store = CheckpointStore(url)
    assert store.newest(0) is None
    for i in range(12):
        store.write(0, b"zero %d" % i, {"events": i})
        store.write(11, b"eleven %d" % i, {})
    assert CheckpointStore(url).newest_with_offsets(0) == (b"zero 11", {"events": 11})
    assert store.newest(11) == b"eleven 11"
    assert store.newest(1) is None
    assert len(files(url)) == 4


@pytest.mark.parametrize("how", ["torn", "flipped", "empty"])
def test_a_damaged_newest_falls_back_aloud(url: str, how: str) -> None:
    store = CheckpointStore(url)
    store.write(5, b"before" * 100, {"events": 1})
    store.write(5, b"after" * 100, {"events": 2})
    damage(url, -1, how)
    with capture_logs() as logs:
        assert store.newest_with_offsets(5) == (b"before" * 100, {"events": 1})
    assert [(entry["log_level"], "p00005" in entry["file"]) for entry in logs] == [("warning", True)]
    store.write(5, b"next", {})
    assert store.newest(5) == b"next"


def test_nothing_but_damage_is_an_error_not_a_fresh_start(url: str) -> None:
    store = CheckpointStore(url)
    store.write(5, b"only", {})
    damage(url, -1, "torn")
    with pytest.raises(StoreError, match="all 1 checkpoints of partition 5"):
        store.newest(5)


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.write(0, b"whole", {})

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="No space left on device"):
            store.write(0, b"never", {})
    assert store.newest(0) == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_dead_writers_are_cleared(tmp_path: Path) -> None:
    gone = 2**22 + 12345  # above the largest process id
    for pid in (gone, os.getppid()):
        (tmp_path / f".p00000-{1:020d}.ckpt.{pid}.tmp").write_bytes(b"half")
    store = CheckpointStore(tmp_path)
    assert store.newest(0) is None
    assert [p.name.split(".")[-2] for p in tmp_path.iterdir()] == [str(os.getppid())]


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file" / "x"), "nosuch://x"):
        with pytest.raises(StoreError, match="cannot be opened"):
            CheckpointStore(place)
