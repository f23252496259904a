"""Misuses of the public package: each is one line that names the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

import millrace as mr
from millrace.basics.arguments import checked
from millrace.basics.errors import LogError, MillraceError, SchemaError, SettingError, SnapshotError
from millrace.contracts.schema import parse_schema
from millrace.reports.result import Result
from tests.scenes.tiny_log import SCHEMA, SMALL, START_MS, rows

PLAN = parse_schema(SCHEMA)
TIMED = PLAN.edit(log={"action_times": {"click": "clicked_at"}})
BARE = parse_schema('name = "bare"\n[[fields]]\nname = "item"\nof = "item"\n')
LONGEST = 300
"""Characters of a line: what a terminal shows in a few rows."""
replay: Any = partial(mr.replay, progress=False)
freshness: Any = partial(mr.freshness, progress=False, workers=0)
delays: Any = partial(mr.delays, progress=False, workers=0)
bootstrap: Any = partial(mr.bootstrap, progress=False)
audit: Any = partial(mr.audit, progress=False)
judge: Any = mr.judge
guess: Any = mr.guess
read: Any = mr.read
up: Any = mr.up
Model: Any = mr.Model


def log(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(rows()).assign(**columns)


def row(**values: Any) -> dict[str, Any]:
    return {"at": START_MS, "user": 1, "item": "i1", "price": 0.5} | values


RESULT = Result({"verdict": "none"}, {}, "A result", list, lambda: None)


class Scene:
    """What a misuse is made with: a folder, a file in it that is no folder, a model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "file"
        self.file.write_text("text")

    @cached_property
    def model(self) -> Any:
        return Model(PLAN, spec=SMALL)


Misuse = tuple[Callable[[Scene], Any], type[MillraceError], str]
MISUSES: dict[str, Misuse] = {
    # -- the log
    "a log of another kind": (lambda s: replay(5, PLAN), LogError, "a log is no int; give a path, or a frame"),
    "columns in a dict": (lambda s: replay(rows(), PLAN), LogError, "a log is no dict; give a path, or a frame"),
    "an array": (lambda s: replay(log().to_numpy(), PLAN), LogError, "a log is no numpy ndarray; give"),
    "no log": (lambda s: replay([], PLAN), LogError, "no log is named; give"),
    "no such log": (lambda s: read(s.folder / "no.csv", PLAN), LogError, "no.csv' does not exist; give"),
    "a file of no form": (lambda s: read(s.file, PLAN), LogError, "the ending tells the form"),
    "an empty frame": (lambda s: replay(log().head(0), PLAN), LogError, "has no rows; give"),
    "a column that lacks": (lambda s: replay(log().drop(columns="user"), PLAN), SchemaError, "lack the column 'user'"),
    "a frame of words": (lambda s: replay(log(at="noon"), PLAN), LogError, r"column 'at' is no time \('noon'\)"),
    "labels of 2": (lambda s: replay(log(click=2), PLAN), LogError, "label 'click' has the value 2, not 0 or 1"),
    "rows without a time": (lambda s: replay(log(at=None), PLAN), LogError, r"row 1 has no time \('at'\)"),
    "times in seconds": (lambda s: replay(log(at=START_MS // 1000), PLAN), LogError, "correct log.time_unit"),
    "one day": (lambda s: freshness(log().head(2), PLAN), SettingError, "one local day alone; give a log of two days"),
    "no time of clicks": (lambda s: delays(log(), PLAN), LogError, r"name its column under \[log\]: action_times"),
    "a guess of nothing": (lambda s: guess([]), LogError, "a guess of 0 paths; name one"),
    "a guess of a column": (lambda s: guess(log()["at"]), LogError, "a log is no pandas Series; give"),
    "no archive": (lambda s: judge(s.folder), LogError, "holds no archived exposures; name the folder 'archive'"),
    # -- the schema
    "no schema": (lambda s: replay(log(), None), SettingError, "schema is None, of type NoneType; give Schema"),
    "a schema as a dict": (lambda s: read(log(), {"name": "x"}), SettingError, "of type dict; give Schema"),
    "to read no path": (lambda s: mr.Schema.read(log()), SchemaError, "a schema is no DataFrame; give"),
    "no such schema": (lambda s: audit(log(), s.folder / "no.toml"), SchemaError, "no.toml' cannot be read"),
    "a file that is no schema": (lambda s: read(log(), s.file), SchemaError, "Expected '=' after a key"),
    "a schema without a log": (lambda s: replay(log(), BARE), SchemaError, r"no \[log\] section; say there"),
    "an unknown entry": (lambda s: PLAN.edit(logg={"time": "at"}), SchemaError, "unknown field `logg`"),
    "a folder as a schema's file": (lambda s: PLAN.write(s.folder), SchemaError, "cannot be written .*; name another"),
    "a loop of no schema": (lambda s: up(5).__enter__(), SettingError, "schema is 5, of type int; give Schema or Path"),
    # -- values
    "a negative seed": (lambda s: replay(log(), PLAN, seed=-1), SettingError, "seed -1; use a whole number from 0 on"),
    "a seed below all": (lambda s: audit(log(), PLAN, seed=-1), SettingError, "seed -1; use"),
    "a huge seed": (lambda s: Model(PLAN, seed=1 << 70), SettingError, "seed 1180591620717411303424; use"),
    "a seed as text": (lambda s: freshness(log(), PLAN, seed="a"), SettingError, "seed is 'a', of type str; give int"),
    "negative workers": (lambda s: freshness(log(), PLAN, workers=-2), SettingError, "-2 workers; use 1 or more"),
    "a class that is no model": (lambda s: replay(log(), PLAN, model=Scene), SettingError, "has no score, learn"),
    "a model as a model": (lambda s: audit(log(), PLAN, model=s.model), SettingError, "of type Model; give str"),
    "no such model": (lambda s: audit(log(), PLAN, model="gpt"), SettingError, "unknown model 'gpt'; use one of"),
    "no such policy": (lambda s: replay(log(), PLAN, label_policy="now"), SettingError, "label_policy 'now': Invalid"),
    "a live loop at once": (
        lambda s: bootstrap(log(), PLAN, s.folder / "shop", label_policy="immediate"), SettingError, "name one that a"
    ),
    "one model to compare": (lambda s: freshness(log(), PLAN, sync="daily"), SettingError, "name two models or more"),
    "more days than there are": (
        lambda s: freshness(log(), PLAN, train_days=9), SettingError, "--train-days 9 of a log with 2 days; use 1 to 1"
    ),
    "a wrong word": (lambda s: freshness(log(), PLAN, features="old"), SettingError, "'old', .*; give day-old or live"),
    "no such outcome": (lambda s: judge(s.folder, outcome="clik"), SettingError, "'clik', of type str; give click or"),
    "no length of time": (lambda s: judge(s.folder, horizon="soon"), SettingError, "'soon' is no length of time"),
    "windows of nothing": (lambda s: delays(log(), TIMED, windows=[0]), SettingError, "no attribution window above 0"),
    "a column of none": (
        lambda s: delays(log(clicked_at=START_MS), TIMED, segments="colour"), SettingError, "'colour' names no column"
    ),
    # -- places
    "out in place of a seed": (lambda s: replay(log(), PLAN, 7), SettingError, "out is 7, of type int; give Path"),
    "out that is a file": (lambda s: replay(log(), PLAN, s.file), SettingError, "file' cannot be written"),
    "to write to a file": (lambda s: RESULT.write(s.file), SettingError, "file' cannot be written .*; name another"),
    "a guess to a file": (lambda s: guess(log(), s.file), SettingError, "file' is there already; name another file"),
    "a guess below a file": (lambda s: guess(log(), s.file / "x"), SettingError, "cannot be written"),
    "a loop in a file": (lambda s: bootstrap(log(), PLAN, s.file), SettingError, "cannot be made"),
    "no such plot": (lambda s: RESULT.plot("roc"), SettingError, "no plot 'roc'; use none"),
    # -- a model
    "unsorted": (lambda s: s.model.learn(log()[::-1]), LogError, "not in the order of time; sort them by 'at'"),
    "back in time": (lambda s: s.model.learn(log()).learn(log()), LogError, r"a row of .* comes after one of .*; sort"),
    "predict the past": (lambda s: s.model.learn(log()).predict(log().head(1)), LogError, "comes after one of"),
    "no label": (lambda s: s.model.learn(log().drop(columns="click")), SchemaError, "lack the column 'click'"),
    "no user": (lambda s: s.model.predict({"at": START_MS, "item": "i1", "price": 1}), SchemaError, "column 'user'"),
    "texts as labels": (lambda s: s.model.learn(log(click="maybe")), LogError, "label 'click' has the value maybe"),
    "a path": (lambda s: s.model.learn("log.parquet"), LogError, "a log is no str; give"),
    "rows of numbers": (lambda s: s.model.learn([1, 2]), LogError, "a log is no list; give"),
    "no rows": (lambda s: s.model.predict([]), LogError, "has no rows"),
    "mixed rows": (lambda s: s.model.predict([row(), row(at="x")]), LogError, "'at' has values of several kinds"),
    "a bad time": (lambda s: s.model.predict(row(at=5)), LogError, "before 1990"),
    "no [log]": (lambda s: Model(BARE), SchemaError, r"no \[log\] section"),
    "an unknown model": (lambda s: Model(PLAN, model="gpt"), SettingError, "'gpt'"),
    "an unknown value": (lambda s: Model(PLAN, spec={"wdith": 4}), SettingError, "wdith"),
    "values in a list": (lambda s: Model(PLAN, spec=["width"]), SettingError, "of type list; give Mapping"),
    "batches of none": (lambda s: Model(PLAN, batch_rows=0), SettingError, "batch_rows 0"),
    "no reasons": (lambda s: s.model.explain(log().head(1), most=0), SettingError, "most 0; use a whole number"),
    "reasons below none": (lambda s: s.model.explain(log().head(1), most=-1), SettingError, "most -1; use"),
    "half a reason": (lambda s: s.model.explain(log().head(1), most=1.5), SettingError, "most 1.5; use"),
    "unsorted reasons": (lambda s: s.model.explain(log()[::-1]), LogError, "not in the order of time"),
    "no such file": (lambda s: Model.load(s.folder / "no.npz"), SnapshotError, "is no saved model"),
    "another file": (lambda s: Model.load(s.file), SnapshotError, "is no saved model"),
    "a folder to save": (lambda s: s.model.save(s.folder), SettingError, "cannot be written"),
}  # fmt: skip


def test_the_table_has_misuses_of_all_functions() -> None:
    assert len(MISUSES) > 60


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_one_line_with_a_remedy(name: str, tmp_path: Path) -> None:
    misuse, kind, words = MISUSES[name]
    with pytest.raises(kind, match=words) as raised:
        misuse(Scene(tmp_path))
    line = str(raised.value).replace(str(tmp_path), "")
    assert "\n" not in line
    assert len(line) < LONGEST, line
    assert raised.value.remedy


def test_numbers_of_numpy_and_words_of_a_command_are_no_misuse() -> None:
    @checked
    def asked(seed: int, how: Literal["day", "hour"] | None = None, of: Mapping[str, Any] | None = None) -> int:
        return seed

    assert asked(np.int64(3), "day", of={}) == 3  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"how is 'year', of type str; give day or hour$"):
        asked(3, how="year")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument: 'seed'"):
        asked()  # type: ignore[call-arg]
