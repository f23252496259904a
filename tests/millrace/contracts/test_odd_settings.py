"""Settings and schemas with any text in them: taken, or named in one line."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.commands.cli.cliconfig import check, show
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import SECTIONS, Settings, load_settings, read_settings, variable
from millrace.labels.policy import Waits
from millrace.windows.features import FeatureBuilder
from tests.architecture import ROOT
from tests.scenes.exploring import examples
from tests.scenes.mangled import ODD, raw, said, trees

TEXTS = (
    "", " ", "nan", "inf", "-inf", "1e400", "-1", "0", "1e9", "1e308", "9" * 5000, "0x10", "1_000", "true", "yes",
    "none", "\N{ARABIC-INDIC DIGIT THREE}", "[" * 20_000, '{"a":' * 20_000, "{", "[1", '{"user": NaN}', "user=nan",
    '{"user": null}', "a=1,a=2", "a:x|y;b:z", "user=" + "9" * 5000, "a\nb", "a\r", "\udcff", "x" * 5000, "/dev/null",
    "/proc/self/mem", "..", "redis://", "rediss://a:b@", "http://[", "http://[::1", "host:port", "host:99999", ":::",
    "a,b,,", "${", "${file:}", "${NAME}", "${file:/proc}", "s3://", "memory://", "what://", "file://\n", "1:2:3",
    "0:0:0", "1:1:nan", "module:Class", "os:system", ":", "0.5,softmax,nan", "1,swap,inf", "nan,uniform", "%s{}",
    "\N{ZERO WIDTH SPACE}", "\u2028", "'; --",
)  # fmt: skip
texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def used(settings: Settings) -> None:
    """What is made of settings before anything is connected to."""
    Waits.of(settings)
    settings.environment()
    repr(settings)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to be in."""
    folder = tmp_path_factory.mktemp("here")
    with contextlib.chdir(folder):
        yield folder


@pytest.mark.parametrize("name", [*Settings.__struct_fields__, "config"])
@examples(40)
@given(text=texts)
@example(text="\udcff")  # a byte that is no text
def test_any_text_in_a_variable(name: str, text: str) -> None:
    environ = {"MILLRACE_CONFIG": "", variable(name): text}
    with said() as lines:
        used(load_settings({}, environ))
    assert len(lines) <= 1
    assert all(name in line.lower() and len(line) < 1000 for line in lines)
    with patch.dict(os.environ, environ), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out:
        for command in (check, show):
            with pytest.raises(SystemExit) if command is check else contextlib.nullcontext():
                command()
        out.flush()


@given(data=st.data())
def test_any_entry_in_a_file(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from([*SECTIONS]))
    tree = {section: {data.draw(st.sampled_from(SECTIONS[section])): data.draw(st.sampled_from(TOML_ODD) | texts)}}
    read(
        tomli_w.dumps(data.draw(st.just(tree) | trees(tree, TOML_ODD).filter(is_table))).encode(
            "utf-8", "surrogatepass"
        )
    )


@given(data=st.data())
def test_any_file(data: st.DataObject) -> None:
    read(
        data.draw(
            st.composite(raw)(b'[ports]\nport = 1\n[gate.teach_limits]\nuser = 1\n[services]\nredis = "h:1"\n') | FILES
        )
    )


TOML_ODD = (
    *(value for value in ODD if value is not None and value != [None]), float("nan"), float("inf"), datetime.time(1),
    datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), 10**30, [[1], ["a"]],
    {"user": {"a": [{}]}},
)  # fmt: skip
FILES = st.sampled_from(
    [b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"\xff", b"[", b"a" * 100_000, b"[a.b.c.d]\n" * 1000]
)


def is_table(tree: Any) -> bool:
    return isinstance(tree, dict)


def read(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "millrace.toml")
        path.write_bytes(text)
        found = read_settings({}, {"MILLRACE_CONFIG": str(path)})
        used(found.settings)
        assert all(len(line.splitlines()) == 1 for line in found.mistakes)


# -- schemas -----------------------------------------------------------------------------------------------------------

SCHEMAS = [
    tomllib.loads(path.read_text())
    for path in (
        ROOT / "millrace" / "contracts" / "shop.toml",
        ROOT / "tests" / "scenes" / "scorer_shop.toml",
        ROOT / "examples" / "kuairand" / "schema.toml",
    )
]


@given(data=st.data())
def test_any_entry_in_a_schema(data: st.DataObject) -> None:
    tree = data.draw(trees(data.draw(st.sampled_from(SCHEMAS)), (*TOML_ODD, *TEXTS[:20])).filter(is_table))
    parsed(tomli_w.dumps(tree))


@given(data=st.data())
def test_any_text_as_a_schema(data: st.DataObject) -> None:
    text = tomli_w.dumps(data.draw(st.sampled_from(SCHEMAS))).encode()
    parsed(data.draw(st.composite(raw)(text) | FILES).decode("utf-8", "replace"))


def parsed(text: str) -> None:
    with said() as lines:
        schema = parse_schema(text)
        assert len(schema.id) == 16
        assert schema.utc_offset_ms % 60_000 == 0
        FeatureBuilder(schema)
    assert len(lines) <= 1
