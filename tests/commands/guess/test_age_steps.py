"""How fine ages may be, as a guess weighs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.experiment_ages import schema_of
from millrace.basics.durations import MINUTE_MS
from millrace.commands.guess.agesteps import age_step
from millrace.commands.guess.write import guess_schema
from millrace.commands.replay.logfeatures import clock
from millrace.contracts.schema import parse_schema
from millrace.logs import read_log
from millrace.windows.features import FeatureBuilder
from simulator.news import News


def sample(half_min: float, delay_s: float, n: int = 40_000) -> tuple[Any, Any, Any]:
    """Exposures of items of up to two hours, whose rates halve in such a time, and delays of clicks by their median."""
    rng = np.random.default_rng(1)
    age_ms = rng.integers(0, 120 * MINUTE_MS, n)
    clicked = rng.random(n) < 0.4 * 2 ** (-age_ms / MINUTE_MS / half_min)
    return age_ms, clicked, (1000 * delay_s * np.exp(rng.standard_normal(clicked.sum()))).astype(np.int64)


@pytest.mark.parametrize(
    ("half_min", "delay_s", "age", "words"),
    [
        (
            20,
            9,
            "5min",
            ["halve in 20 min", "nine in ten clicks come within 0.6 min", "0.0% with '5min', 3.1% with '1min'"],
        ),
        (90, 9, "10min", ["halve in", "with '10min'"]),
        (300, 9, "30min", ["halve in"]),
        (20, 50, "15min", ["within 3.1 min", "with '15min'"]),  # four times the delay, though a half-life has few
        (20, 180, "", ["within 11.2 min", "would tell late clicks"]),
        (1e9, 9, "", ["do not fall"]),
    ],
)
def test_a_step_is_well_above_delays_and_a_part_of_the_half_life(
    half_min: float, delay_s: float, age: str, words: list[str]
) -> None:
    found, said = age_step(*sample(half_min, delay_s))
    assert found == age, said
    for word in words:
        assert word in said


def test_what_cannot_be_weighed_leaves_hours_and_says_so() -> None:
    age_ms, clicked, delay_ms = sample(20, 9)
    assert age_step(age_ms, clicked, delay_ms[:0])[0] == ""
    assert 'if most come within a minute, age = "5min"' in age_step(age_ms, clicked, delay_ms[:0])[1]
    assert "too few" in age_step(age_ms[:100], clicked[:100], delay_ms)[1]
    assert "too few" in age_step(age_ms + 60 * MINUTE_MS, clicked, delay_ms)[1]
    assert "too few" in age_step(age_ms[:0], clicked[:0], delay_ms[:0])[1]


@pytest.mark.parametrize(("median_ms", "age"), [(9000.0, "5min"), (180_000.0, "")])
def test_a_guess_of_a_news_log_is_read_with_ages_so_fine(median_ms: float, age: str, tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    pq.write_table(News(0, 2, 1, median_ms).table().drop_columns(["p_true"]), path)
    schema = parse_schema(guess_schema(path).text)
    assert schema.age == age
    (field,) = [f for f in schema.fields if f.name == "age_days"]
    assert field.transform == ("bucket" if age else "raw")
    ages = read_log(path, schema).table["age_days"].to_numpy()
    made = FeatureBuilder(schema).num(
        {"age_days": ages}, np.zeros((len(ages), schema.layout.K, 0, 0), np.uint32), len(ages)
    )
    assert len(np.unique(made[:, schema.layout.num_names.index("age_days")])) == (36 if age else 4)


@pytest.mark.parametrize(
    ("median_ms", "age", "told"),
    [
        (9000.0, "5min", None),
        (9000.0, "1min", r"'1min' is a clock here: [45]\.\d% of clicks .*, nine in ten in 0\.7 min; name 3 minutes"),
        (180_000.0, "5min", r"'5min' is a clock here: 3\d\.\d% .* name [45]\d minutes or more"),
        (180_000.0, "1h", None),
    ],
)  # fmt: skip
def test_a_replay_warns_of_ages_that_tell_late_clicks(median_ms: float, age: str, told: str | None) -> None:
    schema = schema_of(age)
    lines = clock(read_log(News(0, 2, 0.5, median_ms).table(), schema), schema)
    assert len(lines) == (told is not None)
    assert told is None or re.search(told, lines[0])
