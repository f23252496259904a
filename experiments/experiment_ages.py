# shell
"""``millrace dev experiment ages``: how fine ages of items may be, where articles lose half of their odds in twenty
minutes (simulator/news.py). With ``--titles``: what an article's content is worth where tastes lie in the words of
titles: AUC of the first 20 exposures of each article, by what the schema has of it.

Live labels of the default policy, at real speed; each score is the model's as it was at the exposure. Figures are of
the time from the second hour until the whole catalogue is another one; calibration also of articles younger than twenty
minutes, and of the first and the second ten minutes of the new catalogue. ``late``: half of the clicks come after three
minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from experiments.experiment_labels import Traffic
from experiments.runs import Row, differences, interval_of, means, run_experiment
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import figures_of, known
from millrace.commands.offline.intervals import DIGITS
from millrace.commands.replay.logsamples import learn_through
from millrace.contracts.schema import Schema, parse_schema
from millrace.contracts.settings import Settings
from millrace.logs import read_log
from millrace.reports import show
from simulator.news import HALF_LIFE_MS, START_MS, News
from simulator.params import DEFAULT

HOURS = "1h"
PROMPT = "prompt"
MEDIANS_MS = {PROMPT: DEFAULT.click_median_ms, "late": 180_000.0}
"""Of the delay of clicks."""
FIGURES = ("auc", "new_auc", "calibration", "young_calibration", "first_calibration", "second_calibration")
"""``new_auc``: of the first :data:`FEW` exposures of each article."""
ORACLE = ("auc", "new_auc")
FEW = 20
NOTHING, SECTION = "nothing", "section"
CONTENTS = (NOTHING, SECTION, "title", "keywords")
"""What a schema has of an article: no content, its category, its words, and those of its topic alone: no weighting of
words by how rare they are can do better than the last."""
SCHEMA = """
name = "news"
fields = [{name = "user_id", of = "user"}, {name = "item_id", of = "item"}, {name = "section", of = "item"},
          {name = "age_days", of = "item", kind = "numeric"}, {name = "position", of = "context", bias = true}]
[windows]
lengths = ["15min", "1h", "6h"]
actions = ["exposure", "click"]
keys = [{columns = ["section"]}, {columns = ["item_id"], parent = ["section"]}, {columns = ["user_id"]},
        {columns = ["user_id", "section"], parent = ["user_id"]}]
[log]
time = "ts_ms"
user = "user_id"
item = "item_id"
label = "click"
request = "request_id"
position = "position"
born = "born_ms"
action_times = {click = "click_ms"}
attribution_minutes = 60
"""


def schema_of(age: str) -> Schema:
    """The schema with ages so fine."""
    text = SCHEMA if age == HOURS else SCHEMA.replace('"numeric"', '"numeric", transform = "bucket"')
    return parse_schema(f'age = "{age}"\n{text}' if age != HOURS else text)


def schema_with(content: str) -> Schema:
    """The schema with one of :data:`CONTENTS`."""
    schema = schema_of("5min")
    if content == SECTION:
        return schema
    more = [] if content == NOTHING else [{"name": content, "of": "item", "kind": "text"}]
    keys = [{"columns": [name]} for name in schema.ids]
    return schema.edit(fields=[*(f for f in schema.fields if f.name != SECTION), *more], windows={"keys": keys})


def few_first(item: Any) -> Any:
    """Whether a row is among the first :data:`FEW` of its item. (n,) by time"""
    order = np.argsort(item, kind="stable")
    starts = np.flatnonzero(np.diff(item[order], prepend=-1))
    first = np.zeros(len(item), np.bool_)
    first[order] = np.arange(len(item)) - np.repeat(starts, np.diff(starts, append=len(item))) < FEW
    return first


def figures(p: Any, y: Any, ts_ms: Any, age_ms: Any, new: Any, news: News) -> dict[str, float | None]:
    """:data:`FIGURES` of scores p for labels y. (n,) each"""
    usual = (ts_ms >= news.counted_ms) & (ts_ms < news.renewed_ms)
    tens = [(ts_ms - news.renewed_ms) // (10 * MINUTE_MS) == k for k in (0, 1)]
    whole = figures_of(p[usual], y[usual])
    parts = (figures_of(p[rows], y[rows])["calibration"] for rows in (usual & (age_ms < HALF_LIFE_MS), *tens))
    found = whole["auc"], figures_of(p[usual & new], y[usual & new])["auc"], whole["calibration"], *parts
    return {name: known(value, DIGITS) for name, value in zip(FIGURES, found, strict=True)}


def _run(policy: str, delay: str, news: News, spec: Mapping[str, Any]) -> list[Row]:
    """The figures of a model with ages so fine, or such content, and the oracle's AUC."""
    table, schema = news.table(), schema_with(policy) if news.titled else schema_of(policy)
    traffic = Traffic(read_log(table, schema), schema, 0)
    y, ts_ms = traffic.rows.label, traffic.rows.ts_ms
    born_ms = table["born_ms"].to_numpy()
    told = y, ts_ms, ts_ms - born_ms, (born_ms >= START_MS) & few_first(table["item_id"].to_numpy()), news
    with threads(1):
        model, samples = OnlineModel(schema, spec, news.seed), traffic.samples(Settings().label_policy)
        p = learn_through(model, traffic.rows, traffic.cat, traffic.num, samples, BATCH_ROWS)
    best = figures(table["p_true"].to_numpy(), *told)
    oracle = {f"oracle_{name}": best[name] for name in ORACLE}
    return [{"world": news.seed, "delay": delay, "policy": policy, **oracle} | figures(p, *told)]


def experiment_ages(
    out: Path,
    *,
    worlds: Sequence[int] = (0, 1, 2),
    ages: Sequence[str] = (HOURS, "5min", "1min"),
    hours: float = 3.0,
    pages: float = 0.5,
    titles: bool = False,
    spec: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare how fine ages of items are, on a news site with prompt and with late clicks.

    Args:
        out: folder for the report.
        worlds: seeds.
        ages: as a schema has them; 1h is compared with the others.
        hours: of the log; the catalogue is another one in the last three quarters of an hour.
        pages: a second.
        titles: compare contents of articles with titles, with prompt clicks, instead of ages.
        spec: overrides of the model's settings.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: too few worlds, or hours.
        SchemaError: an age that no schema has.
    """
    if len(set(worlds)) < 2 or HOURS not in ages or not hours >= 2:
        problem = f"worlds {[*worlds]}, ages {[*ages]}, {hours:g} hours"
        raise SettingError(problem, f"name two worlds or more, '{HOURS}' among the ages, and two hours or more")
    schemas = [*CONTENTS] if titles else [schema_of(age).age for age in ages]
    calls = [
        (_run, (policy, delay, News(world, hours, pages, median_ms, titles), dict(spec or {})))
        for (delay, median_ms), world, policy in product(MEDIANS_MS.items(), worlds, CONTENTS if titles else ages)
        if delay == PROMPT or not titles
    ]
    how: dict[str, Any] = {"workers": workers, "progress": progress, "worlds": worlds, "hours": hours, "pages": pages}
    report = run_experiment(out, "Ages of items", calls, lambda rows: (make_report(rows), []), **how, schemas=schemas)
    show("Ages", report["cells"], ("delay", "policy", report["of"], *FIGURES))
    return report


def make_report(runs: Sequence[Row]) -> dict[str, Any]:
    """Means over worlds with intervals. ``runs``: rows of :func:`_run`."""
    worlds, cells, base = list(dict.fromkeys(r["world"] for r in runs)), [], runs[0]["policy"]
    base, figure = (NOTHING, "new_auc") if base in CONTENTS else (HOURS, "auc")
    more_than = f"{figure}_over_{'hours' if base == HOURS else base}"
    for delay, age in dict.fromkeys((r["delay"], r["policy"]) for r in runs):
        here = [r for r in runs if r["delay"] == delay]
        row: Row = {"delay": delay, "policy": age}
        for name in (*FIGURES, *(f"oracle_{one}" for one in ORACLE)):
            row |= interval_of(name, means(here, age, name, worlds))
        more = means(here, age, figure, worlds) - means(here, base, figure, worlds)
        cells.append(row | interval_of(more_than, more))
    said = [
        f"{differences([r for r in cells if r['delay'] == d and r['policy'] != base], 'policy', more_than)} "
        f"with {d} clicks"
        for d in dict.fromkeys(r["delay"] for r in cells)
    ]
    of = "ages in hours" if base == HOURS else f"none, of an article's first {FEW} exposures"
    return {"verdict": f"AUC over {of}: {'; '.join(said)}.", "of": more_than, "cells": cells}
