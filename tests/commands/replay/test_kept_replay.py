"""A replay of an imported log that was killed goes on where it was, to the same report, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from learner.ranker.model import OnlineModel
from millrace.commands.replay.kept import KeptReplay
from millrace.commands.replay.replayrun import replay
from millrace.contracts.schema import load_schema
from millrace.logs.importing import import_log
from millrace.versions.modelstore import ModelStore
from tests.scenes.replayed_logs import PAGES, SCHEMA, SMALL, make_log

OUTCOME = '[[outcome]]\nname = "order"\non = "click"\nevent = "cart"\nwithin = "1d"\n'
TEXTS = {"frozen each day": SCHEMA, "pages": PAGES, "an outcome": SCHEMA + OUTCOME}
BATCH_ROWS = 16


class KilledError(BaseException):
    """Nothing catches it, as a signal."""


def imported(folder: Path, text: str, n: int = 400) -> tuple[Path, Path]:
    file = folder / "schema.toml"
    file.write_text(text)
    schema = load_schema(file)
    rows = make_log(schema, n, seed=1).table
    pq.write_table(rows.filter(rows["item"].is_valid()), folder / "log.parquet")
    import_log([folder / "log.parquet"], schema, folder / "in")
    return folder / "in", file


def run(log: Path, schema: Path, out: Path, **more: Any) -> str:
    replay(log, schema, out, spec=SMALL, batch_rows=BATCH_ROWS, progress=False, **more)
    return (out / "report.json").read_text()


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("stage", ["part", "manifest", "behind"])
def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, stage: str) -> None:
    """Killed again and again, while it is kept or behind; each run learns what the one before had not."""
    log, schema = imported(tmp_path, text)
    learnt: list[int] = [0]
    began: list[int] = []
    left = [5]
    plain_learn, plain_write, plain_note = OnlineModel.learn, ModelStore.write_part, ModelStore.write_manifest
    plain_look, plain_init = KeptReplay.look, KeptReplay.__init__
    monkeypatch.setattr("millrace.commands.replay.kept.EVERY_S", 0.0)

    def dies(when: str) -> None:
        if when == stage and learnt[-1] >= left[0]:
            raise KilledError

    def learn(self: Any, *args: Any, **named: Any) -> Any:
        learnt[-1] += 1
        return plain_learn(self, *args, **named)

    def write_part(self: Any, *args: Any) -> Any:
        dies("part")
        return plain_write(self, *args)

    def note(self: Any, *args: Any, **named: Any) -> Any:
        dies("manifest")
        return plain_note(self, *args, **named)

    def look(self: Any, steps: int) -> None:
        plain_look(self, steps)
        dies("behind")

    def init(self: Any, folder: Path, model: Any, same: object) -> None:
        plain_init(self, folder, model, same)
        began.append(self.steps)

    monkeypatch.setattr(OnlineModel, "learn", learn)
    whole, all_steps = run(log, schema, tmp_path / "whole"), learnt.pop()
    learnt.append(0)
    with monkeypatch.context() as patched:
        for owner, verb, made in (
            (ModelStore, "write_part", write_part), (ModelStore, "write_manifest", note),
            (KeptReplay, "look", look), (KeptReplay, "__init__", init),
        ):  # fmt: skip
            patched.setattr(owner, verb, made)
        for kill_at in (5, 4, 7):
            left[0], learnt[-1] = kill_at, 0
            with pytest.raises(KilledError):
                run(log, schema, tmp_path / "killed")
            learnt.append(0)
        left[0] = 10**9
        assert run(log, schema, tmp_path / "killed") == whole
    assert began[0] == 0
    assert began[1] > 0
    assert began == sorted(began)
    assert sum(learnt) <= all_steps + 3 * 2  # of each kill a step or two again
    assert not (tmp_path / "killed" / "kept").exists()


def test_another_replay_begins_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, schema = imported(tmp_path, SCHEMA)
    other = run(log, schema, tmp_path / "other", seed=5)
    plain_look = KeptReplay.look
    monkeypatch.setattr("millrace.commands.replay.kept.EVERY_S", 0.0)

    def look(self: KeptReplay, steps: int) -> None:
        plain_look(self, steps)
        if steps > 10:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(KeptReplay, "look", look)
        with pytest.raises(KilledError):
            run(log, schema, tmp_path / "out")
    assert run(log, schema, tmp_path / "out", seed=5) == other


def test_what_is_damaged_begins_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, schema = imported(tmp_path, SCHEMA)
    whole = run(log, schema, tmp_path / "whole")
    monkeypatch.setattr("millrace.commands.replay.kept.EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(KeptReplay, "remove", lambda self: None)
        run(log, schema, tmp_path / "out")
    for part in (tmp_path / "out" / "kept").glob("part-*"):
        part.write_bytes(b"\0" * 100 + part.read_bytes()[100:])
    assert run(log, schema, tmp_path / "out") == whole
    assert json.loads(whole)["rows"] > 200


def test_a_log_that_is_no_import_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, schema = imported(tmp_path, SCHEMA)
    monkeypatch.setattr("millrace.commands.replay.replayrun.KeptReplay", None)  # nobody makes one
    run(tmp_path / "log.parquet", schema, tmp_path / "out")
