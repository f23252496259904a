"""What each earlier version wrote is read, and means what it meant."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, get_args

import pytest

from millrace.contracts.topics import MODEL_DELTAS, TOPICS, TRUTH
from millrace.versions.decisions import Decision
from tests.scenes.left_folder import DECISIONS
from tests.upgrade.golden import DECODERS, GOLDEN, lacking, missing, read


def opened(golden: Path, folder: Path) -> dict[str, Any]:
    """Unpacks a golden folder, and returns its facts."""
    with tarfile.open(golden) as archive:
        archive.extractall(folder, filter="data")
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_this_version_reads_all_that_an_earlier_one_left(golden: Path, tmp_path: Path) -> None:
    facts = opened(golden, tmp_path)
    found = json.loads(json.dumps(read(tmp_path)))
    assert list(missing(facts, found)) == []
    assert found["damaged"] == []


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_a_golden_folder_has_something_of_every_kind(golden: Path, tmp_path: Path) -> None:
    assert lacking(opened(golden, tmp_path)) == []


def test_the_next_golden_folder_will_have_each_topic_and_each_kind_of_decision() -> None:
    assert {topic.name for topic in TOPICS} == {*DECODERS, MODEL_DELTAS, TRUTH}  # truth: what the simulator knows
    assert {type(one) for one in DECISIONS} == set(get_args(Decision))


def test_a_difference_is_found_and_a_new_field_is_none() -> None:
    before = {"a": [1, {"b": "x"}], "predicted": [0.5]}
    assert list(missing(before, {"a": [1, {"b": "x", "c": 2}], "predicted": [0.5001], "d": 3})) == []
    assert list(missing(before, {"a": [1, {"b": "y"}], "predicted": [0.6]})) == [
        "/a/1/b: x is now y",
        "/predicted/0: 0.5 is now 0.6",
    ]
    assert list(missing(before, {"a": [1], "predicted": [0.5]})) == ["/a: [1, {'b': 'x'}] is now [1]"]
    assert list(missing(before, {"predicted": [0.5]})) == ["/a: [1, {'b': 'x'}] is now absent"]
