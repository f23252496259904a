"""The public package: what importing it loads and changes, and that functions and commands give one thing."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millrace as mr
from millrace.basics.errors import SchemaError, SettingError, SnapshotError
from millrace.commands.cli import clifunctions
from millrace.commands.cli.cli import app
from millrace.contracts.schema import parse_schema
from tests.architecture import ROOT
from tests.learner.own_models import Hashed
from tests.scenes.tiny_log import SCHEMA, SMALL, rows
from tests.scenes.waiting import PATIENCE

HEAVY = {"numpy", "pyarrow", "duckdb", "numba", "torch", "matplotlib", "pandas", "polars", "river", "asyncio"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(rows()), path)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return path


def test_importing_it_loads_nothing_heavy_and_changes_nothing() -> None:
    program = """
import logging, signal, sys, threading
def state():
    policy = sys.modules.get("asyncio")
    return (logging.root.level, logging.root.handlers[:], sorted(logging.root.manager.loggerDict),
            [signal.getsignal(s) for s in signal.valid_signals()], threading.enumerate(), policy, sys.excepthook,
            sys.getswitchinterval())
before = state()
import millrace as mr
dir(mr), mr.__all__, mr.__version__
assert state() == before
print(*sys.modules)
"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    loaded = set(done.stdout.split())
    assert "millrace" in loaded
    assert not HEAVY & loaded
    assert not [name for name in loaded if name.startswith(("millrace.", "learner"))]


def test_its_names_are_those_of_its_stub_and_no_module_shadows_one() -> None:
    stub = (ROOT / "millrace" / "__init__.pyi").read_text()
    for name in mr.__all__:
        assert f"import {name} as {name}\n" in stub
        assert inspect.getdoc(getattr(mr, name)), name
        assert not (ROOT / "millrace" / name).exists()
    assert f"__all__ = {json.dumps(mr.__all__)}\n" in stub
    assert sorted(mr.__all__) == mr.__all__
    assert set(mr.__all__) <= set(dir(mr))
    with pytest.raises(AttributeError, match="'millrace' has no attribute 'replayed'; it has"):
        mr.replayed  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
def test_function_and_command_write_the_same_report(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.toml"
    result = mr.replay(str(log), str(schema), tmp_path / "function", seed=3, progress=False)
    with pytest.raises(SystemExit):
        app(["log", "replay", str(log), "--schema", str(schema), "--out", str(tmp_path / "command"), "--seed", "3"])
    one, other = (tmp_path / name for name in ("function", "command"))
    assert (one / "report.json").read_bytes() == (other / "report.json").read_bytes()
    ran = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    assert {k for k in ran[0] if ran[0][k] != ran[1][k]} <= {"started", "seconds", "rows_per_second"} | {
        k for k in ran[0] if k.endswith("_seconds")
    }
    assert result["verdict"] in " ".join(capsys.readouterr().out.split())


def test_a_result_is_figures_tables_plots_and_a_page(log: Path, tmp_path: Path) -> None:
    result = mr.replay(log, mr.Schema.read(tmp_path / "schema.toml"), spec=SMALL, progress=False)
    assert result.total["auc"] == result["total"]["auc"] == dict(result)["total"]["auc"]
    days = pa.table(result.days)
    assert days["day"].to_pylist() == [day["day"] for day in result["days"]]
    assert days["auc"].to_pylist() == [day["auc"] for day in result["days"]]
    scores = pa.table(result.scores)
    assert scores.column_names == ["time", "user", "item", "label", "score", "baseline"]
    given = rows()
    assert scores["time"].cast("int64").to_pylist() == given["at"]
    assert scores["user"].to_pylist() == given["user"]
    assert scores["item"].to_pylist() == given["item"]
    assert scores["label"].to_pylist() == given["click"]
    p, y = scores["score"].to_numpy(), scores["label"].to_numpy()
    assert np.isclose(p.sum() / y.sum(), result.total["calibration"], atol=1e-4)
    assert result.scores.to_pandas().shape == (300, 6)
    assert result.scores.to_polars().shape == (300, 6)
    assert result.plot().get_ylabel() == "AUC"
    assert result.plot("calibration").get_xlabel() == "predicted"
    page = result._repr_html_()
    assert "<iframe" in page
    assert str(result["verdict"]).split(",")[0] in page
    assert result["verdict"] in repr(result)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("log.parquet", "schema.toml")]


OWN = "tests.learner.own_models:Hashed"


def test_a_class_is_replayed_as_the_model_of_its_name_is(log: Path, tmp_path: Path) -> None:
    class Here(Hashed):
        """Of a function: no name leads to it."""

    options: dict[str, Any] = {"progress": False, "spec": {"rate": 0.3}}
    for folder, model in (("name", OWN), ("class", Hashed), ("here", Here)):
        mr.replay(log, tmp_path / "schema.toml", tmp_path / folder, model=model, **options)
    name, given, here = (tmp_path / folder for folder in ("name", "class", "here"))
    assert (name / "report.json").read_bytes() == (given / "report.json").read_bytes()
    assert (name / "report.json").read_bytes() == (here / "report.json").read_bytes()
    specs = [json.loads((folder / "run.json").read_text())["spec"] for folder in (name, given, here)]
    assert specs[0] == specs[1]
    assert specs[0]["model"] == OWN
    assert specs[2]["model"].endswith("<locals>.Here")


def test_a_class_of_ones_own_in_a_loop_is_saved_and_loaded(log: Path, tmp_path: Path) -> None:
    class Here(Hashed):
        pass

    schema, table = tmp_path / "schema.toml", pa.table(rows())
    model = mr.Model(schema, model=Here, spec={"rate": 0.3}).learn(table.slice(0, 280))
    model.save(tmp_path / "model.npz")
    again = mr.Model.load(tmp_path / "model.npz", Here)
    rest = table.slice(280)
    assert again.predict_then_learn(rest).tobytes() == model.predict_then_learn(rest).tobytes()
    with pytest.raises(SnapshotError, match="is of the class"):
        mr.Model.load(tmp_path / "model.npz", Hashed)


def test_worker_processes_import_a_class_by_its_name(log: Path, tmp_path: Path) -> None:
    class Here(Hashed):
        pass

    schema = tmp_path / "schema.toml"
    ask: Any = partial(mr.freshness, log, schema, train_days=1, sync="never,daily", progress=False)
    found = [ask(model=OWN, workers=0), ask(model=Hashed, workers=1), ask(model=Here, workers=0)]
    assert found[0].report == found[1].report == found[2].report
    assert found[0].run["spec"] == found[1].run["spec"]
    assert found[1].run["model"] == OWN
    for function in (mr.freshness, mr.delays):
        with pytest.raises(SettingError, match="was made in a function, where worker processes") as raised:
            function(log, schema, model=Here)
        assert "\n" not in str(raised.value)
        assert "put the class into a file" in raised.value.remedy


def test_a_class_of_a_notebooks_cell_is_replayed(log: Path, tmp_path: Path) -> None:
    """As there, the class is of a ``__main__`` without a file."""
    program = f"""
import millrace as mr
from tests.learner.own_models import Hashed

class Mine(Hashed):
    pass

log, schema, out = {str(log)!r}, {str(tmp_path / "schema.toml")!r}, {str(tmp_path / "cell")!r}
print(mr.replay(log, schema, out, model=Mine, progress=False).run["spec"]["model"])
try:
    mr.freshness(log, schema, model=Mine)
except Exception as error:
    print(type(error).__name__, error)
"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    model, refused = done.stdout.splitlines()
    assert model == "__main__:Mine"
    assert refused.startswith("SettingError model '__main__:Mine' was made in a notebook, where worker processes")
    mr.replay(log, tmp_path / "schema.toml", tmp_path / "name", model=OWN, progress=False)
    assert (tmp_path / "cell" / "report.json").read_bytes() == (tmp_path / "name" / "report.json").read_bytes()


def test_what_is_no_model_is_one_line(log: Path, tmp_path: Path) -> None:
    for model, words in ((Path, "has no score, learn, snapshot, resume"), (Hashed.score, "model"), (7, "model")):
        with pytest.raises(SettingError, match=words) as raised:
            mr.replay(log, tmp_path / "schema.toml", model=cast(Any, model), progress=False)
        assert "\n" not in str(raised.value)
        assert raised.value.remedy


def test_a_log_is_read_as_rows_that_any_reader_takes(log: Path, tmp_path: Path) -> None:
    table = mr.read(log, tmp_path / "schema.toml")
    assert len(table) == 300
    assert table.to_polars()["item"].to_list() == pa.table(table)["item"].to_pylist() == rows()["item"]


def test_a_schema_is_guessed_edited_written_and_read(log: Path, tmp_path: Path) -> None:
    found = mr.guess(log, tmp_path / "new" / "found.toml")
    assert (tmp_path / "new" / "found.toml").read_text() == found.text
    assert "time 'at', user 'user', item 'item', label 'click'" in repr(found)
    found.write(tmp_path / "found.toml")
    text = (tmp_path / "found.toml").read_text()
    assert "# Guessed from log.parquet" in text
    again = mr.Schema.read(tmp_path / "found.toml")
    assert again == found
    assert again.source == str(tmp_path / "found.toml")
    edited = again.edit(utc_offset="+08:00", log={"disorder": "2h"}, windows={"lengths": ["1d", "7d"]})
    assert (edited.utc_offset, edited.log and edited.log.disorder, edited.windows.days) == ("+08:00", "2h", (1, 7))
    assert edited.log is not None
    assert edited.log.time == "at"
    assert (again.utc_offset, again.windows.days) != ("+08:00", (1, 7))
    edited.write(tmp_path / "edited.toml")
    assert mr.Schema.read(tmp_path / "edited.toml") == edited
    assert edited.edit(log={"disorder": None}).log != edited.log


def test_a_feature_of_ones_own_is_a_column_and_a_field() -> None:
    """Whether user and item fit decides the label; no other column says so."""
    given = rows(1500)
    fits = [(user + int(item[1:])) % 2 for user, item in zip(given["user"], given["item"], strict=True)]
    frame = pd.DataFrame(given | {"click": fits}).astype({"user": "str"})
    schema = parse_schema(SCHEMA)

    def fit(row: Any) -> str:
        return "fits" if (int(row["user"]) + int(row["item"][1:])) % 2 else "does not"

    own = frame.assign(fit=frame.apply(fit, axis=1))
    more = schema.edit(fields=[*schema.fields, {"name": "fit", "of": "context"}])
    options: dict[str, Any] = {"spec": SMALL, "batch_rows": 8, "progress": False}
    assert mr.replay(own, more, **options).total["auc"] > 0.75
    assert mr.replay(frame, schema, **options).total["auc"] < 0.6
    last = own.iloc[-1].to_dict()
    model = mr.Model(more, spec=SMALL, batch_rows=8).learn(own.iloc[:-1])
    yes, no = (float(model.predict({**last, "fit": value})[0]) for value in ("fits", "does not"))
    assert yes > no
    assert pa.table(model.explain(last))["input"][0].as_py() == "fit"
    for fields in ([*schema.fields, fit], [*schema.fields, {"name": "fit", "of": "context", "function": fit}], fit):
        with pytest.raises(SchemaError, match=r"cannot hold this entry .*function") as raised:
            schema.edit(fields=fields)
        assert "frame.assign(x=...), and a field of that name" in raised.value.remedy
        assert "\n" not in str(raised.value)


MORE = {
    "replay": {"spec", "batch_rows", "progress"},
    "freshness": {"workers", "progress"},
    "delays": {"spec", "settings", "workers", "progress"},
    "audit": {"spec", "progress"},
    "bootstrap": {"progress"},
    "judge": set(),
    "guess": set(),
}
"""By function, what its command lacks: values that are no text, or that a test and a program need."""
REQUIRED = {"log", "archive", "schema", "data", "out"}
PRINTED = {("audit", "out"), ("guess", "out")}
"""What a command can do without: it prints all that it found."""


def test_all_functions_but_two_are_commands_made_of_them() -> None:
    by_hand = {"read", "up"}  # rows, which are no figures; a block, and not a process that Ctrl-C ends
    functions = {name for name in mr.__all__ if inspect.isfunction(getattr(mr, name))}
    assert functions - by_hand == set(MORE) == set(clifunctions.FLAGS)


@pytest.mark.parametrize("name", MORE)
def test_a_function_has_the_names_and_defaults_of_its_command(name: str) -> None:
    command = app[name] if name == "judge" else app["log"][name]
    flags = {one.field_info.name: one for one in command.assemble_argument_collection(parse_docstring=True)}
    taken = inspect.signature(getattr(mr, name)).parameters
    assert set(flags) - {"json"} == set(taken) - MORE[name]
    assert all(flag.parameter.help for flag in flags.values()), "each says what it is"
    for one in set(flags) & set(taken):
        assert flags[one].required == (one in REQUIRED and (name, one) not in PRINTED), one
        assert flags[one].required or flags[one].field_info.default == taken[one].default, one
        assert flags[one].field_info.is_positional == (one in ("log", "archive")), one
        assert (taken[one].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD) == (one in REQUIRED), one


def test_the_facade_hands_on_what_the_rooms_have() -> None:
    rooms = importlib.import_module("millrace").__dict__["_ROOMS"]
    assert list(rooms) == mr.__all__
    for name, room in rooms.items():
        found = getattr(mr, name)
        made = getattr(importlib.import_module(room), name)
        assert found is made if inspect.isclass(made) else found.__wrapped__ is made
        assert pickle.loads(pickle.dumps(found)) is found, "a process pool takes it"
