"""`mr.up`: a loop in a block of a program. It serves in it, and is gone after it, however the block ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import millrace as mr
from millrace.basics.errors import SchemaError, ServiceError
from millrace.commands.up.data_folder import ADDRESSES, in_use
from millrace.contracts.schema import parse_schema
from millrace_client import Unavailable
from tests.scenes.demo_process import PATIENT, born, descendants
from tests.scenes.schemas import named, of_item, of_user
from tests.scenes.waiting import LONG, PATIENCE, until

SCHEMA = parse_schema(named("bakery") + of_user("user_id") + of_item("item_id", "kind"))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(LONG)
def test_a_loop_serves_in_its_block_and_is_gone_after_an_error_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, alone = tmp_path / "data", os.getpid()
    before = descendants(alone)
    with pytest.raises(ZeroDivisionError), mr.up(SCHEMA, data=folder) as loop:  # noqa: PT012 (the block is tested)
        assert loop.page.startswith("http://127.0.0.1:")
        assert in_use(folder)
        loop.client.put_items([{"item_id": str(n), "attributes": {"kind": "cake"}} for n in range(3)])

        def page() -> list[str]:
            return [item.item_id for item in loop.client.recommend("anna", size=3).items]

        def serves() -> bool:
            try:
                return len(page()) == 3
            except Unavailable:  # it has no items yet
                return False

        until(serves, "its items are on a page")
        with (
            pytest.raises(ServiceError, match="beside another of this process; leave the block"),
            mr.up(SCHEMA, data=tmp_path / "other"),
        ):
            pass
        raise ZeroDivisionError
    assert not in_use(folder)
    assert not (folder / ADDRESSES).exists(), "it stopped in good order"
    assert not [pid for pid, at in descendants(alone).items() if pid not in before and at]
    with pytest.raises(Unavailable, match="closed"):
        loop.client.recommend("anna")
    said = capsys.readouterr().out
    assert loop.page in said.replace("\n", "")
    assert len(re.findall("Starting a loop|It is up", said)) == 2
    assert os.listdir(tmp_path) == ["data"], "nothing lies beside its folder"


@pytest.mark.timeout(LONG)
def test_a_killed_program_takes_its_loop_with_it(tmp_path: Path) -> None:
    program = """
import sys, millrace as mr
with mr.up("schema.toml", data="data") as loop:
    print("up", loop.page, flush=True)
    sys.stdin.read()
"""
    SCHEMA.write(tmp_path / "schema.toml")
    argv: list[Any] = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "up http" not in (line := process.stdout.readline()):
            assert line, "it ended"
        tree = descendants(process.pid)
        assert len(tree) >= 7
        process.send_signal(signal.SIGKILL)
    until(lambda: all(born(pid) != at for pid, at in tree.items()), "all its processes are gone", PATIENCE)


def test_a_start_that_fails_says_in_one_line_why_and_the_next_may_start(tmp_path: Path) -> None:
    for _ in range(2):  # the first leaves the way free
        started = mr.up(data=tmp_path / "data", progress=False)
        with pytest.raises(ServiceError, match=r"no schema is named.*give --schema") as raised, started:
            pass
        assert "\n" not in str(raised.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="file"), mr.up(SCHEMA, data=tmp_path / "file", progress=False):
        pass
    with pytest.raises(SchemaError, match="cannot be read"), mr.up(tmp_path / "no.toml", data=tmp_path / "data"):
        pass
    assert not (tmp_path / "data").exists()
