# core
"""The tables of a freshness report, and its sentence, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.ranking_metrics import DIGITS, known
from millrace.commands.freshness.freshnessplots import arms_plot, gains_plot, staleness_plot
from millrace.commands.freshness.freshnesswords import (
    BASELINE,
    DAY_OLD,
    LIVE,
    RETRAINED,
    Late,
    how_often,
    named,
    verdict,
    whole,
)
from millrace.commands.freshness.measure import ALL, Figure, Measured
from millrace.commands.offline.dataset import Dataset
from millrace.commands.offline.slicing import local_hours
from millrace.commands.offline.synchronising import SyncPlan, period_ms
from millrace.reports import Plot

Places = NDArray[np.intp]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    data: Dataset
    plan: SyncPlan
    rows: slice
    train_days: int
    sync: tuple[str, ...]
    fresh: str
    reference: str
    cut: tuple[str, ...]
    features: bool  # whether there are models on day-old features
    seeds: int

    @property
    def figures(self) -> tuple[str, ...]:
        """Of pages. A log without any has none: a user's day is scored by the models at its start, so models that
        differ in what they learn later that day would differ by 0."""
        return self.data.figures if "page_auc" in self.data.figures else ()


def report_of(
    setup: Setup,
    found: Measured,
    days: Mapping[str, Places],
    hours: Mapping[str, Places],
    values: Mapping[tuple[str, str], Places],
) -> tuple[dict[str, Any], list[Plot]]:
    fresh, reference, plan = setup.fresh, setup.reference, setup.plan
    data, label = setup.data, np.asarray(setup.data.label[setup.rows])
    what = f"learning {how_often(fresh)} instead of {how_often(reference)}, both on live features"
    models = _models(setup, found)

    def gains(where: str, head: Row, places: Places) -> Row:
        row = head | {
            "rows": len(places),
            "users": found.users_of(where),
            "click_rate": known(float(label[places].mean()), DIGITS),
        }
        row |= _both("auc_gain", found.gap(fresh, reference, "auc", where))
        row |= {"smallest_gain": known(found.gap(fresh, reference, "auc", where).smallest, DIGITS)}
        row |= _both("log_loss_gain_percent", found.gain_percent(fresh, reference, where))
        if setup.features:
            row |= _both("features_gain", found.gap(fresh, named(DAY_OLD, fresh), "auc", where))
            row |= _both("whole_gain", found.gap(fresh, named(DAY_OLD, reference), "auc", where))
        for name, sync in (("reference_auc", reference), ("fresh_auc", fresh)):
            row[name] = known(found.figure(sync, "auc", where).value, DIGITS)
        return row

    by_day = [
        {"day": day, "model": sync} | _figures(setup, found, sync, reference, f"day {day}")
        for day in days
        for sync in setup.sync
    ]
    compared, late = _comparisons(setup, found), late_clicks(setup)
    report: dict[str, Any] = {
        "verdict": verdict(found, fresh, reference, setup.features, late, bool(setup.figures)),
        "training_rows": setup.rows.start,
        "test_rows": len(label),
        "users": found.users,
        "training_days": ", ".join(data.days[: setup.train_days]),
        "test_days": ", ".join(data.days[setup.train_days :]),
        "click_rate": known(float(label.mean()), DIGITS),
        "micro_batches": len(plan.bounds) - 1,
        "exposures_a_micro_batch": known(len(label) / (len(plan.bounds) - 1), 1),
        "seeds": setup.seeds,
        "grouped_auc_compares": data.compares if setup.figures else "nothing: the log has no pages",
        "gains_are": what,
        "whole_gains_are": " instead of ".join(whole(fresh, reference)),
        "labels": "taken as known right after the exposure, since the log has no times of clicks",
        "coincide": _coincide(setup),
        "models": models,
        "comparisons": compared,
        "features_and_weights": _features_and_weights(setup, found),
        "by_day": by_day,
        "gains_by_day": [gains(f"day {d}", {"day": d}, p) for d, p in days.items()],
        "gains_by_hour": [gains(f"hour {h}", {"hour": h}, p) for h, p in hours.items()],
        "slices": [gains(f"{c} {v}", {"column": c, "value": v}, p) for (c, v), p in values.items()],
    }
    if late is not None:
        report |= {
            "labels": late.said,
            "finest_interval_seconds": known(late.finest_ms / 1000, 1),
            "clicks_later_than_it": known(late.share, DIGITS),
            "clicks_without_a_time": late.untimed,
        }
    if not setup.features:
        del report["features_and_weights"], report["whole_gains_are"]
    curve = _curve(setup, found)
    plots = [
        staleness_plot(curve, setup.sync[0]),
        arms_plot(by_day),
        gains_plot("gain_by_hour", what, report["gains_by_hour"], "hour"),
        gains_plot("gain_by_day", what, report["gains_by_day"], "day"),
    ]
    return report | {"curves": curve}, plots


def late_clicks(setup: Setup) -> Late | None:
    """Which of the clicks came later than the freshest model synchronises; None where the log has no times of them."""
    delay_ms = setup.data.delay_ms
    if delay_ms is None:
        return None
    plan, fresh = setup.plan, setup.fresh
    between = np.diff(setup.data.ts_ms[plan.bounds[plan.syncs[fresh]]])
    finest = period_ms(fresh) or (float(np.median(between)) if len(between) else DAY_MS)
    clicked = np.asarray(setup.data.label[setup.rows]) > 0
    came = np.asarray(delay_ms[setup.rows])[clicked]
    timed = came[came >= 0]
    return Late(finest, float((timed > finest).mean()) if len(timed) else 0.0, len(came) - len(timed))


def _figures(setup: Setup, found: Measured, name: str, base: str, where: str = ALL) -> Row:
    row = _both("auc", found.figure(name, "auc", where)) | _both("auc_gain", found.gap(name, base, "auc", where))
    for measure in ("log_loss", "calibration", *setup.figures):
        row |= _both(measure, found.figure(name, measure, where))
    return row


def _models(setup: Setup, found: Measured) -> list[Row]:
    """A row a model. Gains are over the reference on live features, which has none itself."""
    rows = []
    for name, sync, _ in _names(setup, found):
        row: Row = {"model": name, "staleness_minutes": _staleness(setup, sync)}
        row |= _figures(setup, found, name, setup.reference)
        row |= _both("log_loss_gain_percent", found.gain_percent(name, setup.reference))
        for measure in setup.figures:
            row |= _both(f"{measure}_gain", found.gap(name, setup.reference, measure))
        rows.append(_without_gains(row) if name == setup.reference else row)
    return rows


def _without_gains(row: Row) -> Row:
    return {key: None if "gain" in key else value for key, value in row.items()}


def _names(setup: Setup, found: Measured) -> list[tuple[str, str | None, str]]:
    """(name, how often it synchronises, features) of every model that was measured."""
    out: list[tuple[str, str | None, str]] = [(s, s, LIVE) for s in setup.sync]
    if setup.features:
        few = (s for s in setup.sync if s in (setup.sync[0], setup.reference, setup.fresh))
        out += [(named(DAY_OLD, s), s, DAY_OLD) for s in few]
    return out + [(n, None, LIVE) for n in (RETRAINED, BASELINE) if math.isfinite(found.figure(n, "auc").value)]


def _comparisons(setup: Setup, found: Measured) -> list[Row]:
    """Compares the live loop with the job, each model with the reference, and the features; with the smallest gain
    that could have been shown."""
    fresh, reference, plan = setup.fresh, setup.reference, setup.plan
    place = setup.sync.index(reference)
    pairs = [(f"{fresh} over {(old := named(DAY_OLD, reference))}", fresh, old)] if setup.features else []
    pairs += [(f"{reference} over {s}", reference, s) for s in setup.sync[:place]]
    pairs += [(f"{s} over {reference}", s, reference) for s in setup.sync[place + 1 :]]
    if setup.features:
        pairs += [(f"live over day-old features, {s}", s, named(DAY_OLD, s)) for s in dict.fromkeys((reference, fresh))]
    for name in (RETRAINED, BASELINE):
        if math.isfinite(found.figure(name, "auc").value):
            pairs.append((f"{fresh} over {name}", fresh, name))
    rows = []
    for what, one, other in pairs:
        gap, loss = found.gap(one, other, "auc"), found.gain_percent(one, other)
        coincide = one in setup.sync and other in setup.sync and np.array_equal(plan.syncs[one], plan.syncs[other])
        few = "too few users" if math.isnan(gap.half) else "no"
        row = _both("auc_gain", gap) | {"smallest_gain": known(gap.smallest, DIGITS)}
        for measure in setup.figures:
            row |= _both(f"{measure}_gain", found.gap(one, other, measure))
        row |= _both("log_loss_gain_percent", loss) | {"smallest_log_loss_gain_percent": known(loss.smallest, DIGITS)}
        shown = "coincide" if coincide else "yes" if gap.shown else few
        rows.append({"comparison": what, "shown": shown} | (_without_gains(row) if coincide else row))
    return rows


def _features_and_weights(setup: Setup, found: Measured) -> list[Row]:
    """Two kinds of features by two of weights. Each model has learnt from the features that it scores with."""
    reference, fresh = setup.reference, setup.fresh
    base, rows = named(DAY_OLD, reference), []
    for features in (DAY_OLD, LIVE):
        for sync in (reference, fresh):
            name = named(features, sync)
            row = {"features": features, "weights": sync} | _figures(setup, found, name, base)
            rows.append(_without_gains(row) if name == base else row)
    return rows


def _curve(setup: Setup, found: Measured) -> list[Row]:
    return [
        {"model": name, "sync": sync, "features": features, "staleness_minutes": _staleness(setup, sync)}
        | _both("gain", found.gap(name, setup.sync[0], "auc"))
        for name, sync, features in _names(setup, found)
        if sync is not None
    ]


def _coincide(setup: Setup) -> str:
    plan, rows = setup.plan, setup.rows.stop - setup.rows.start
    said = []
    for one, other in zip(setup.sync, setup.sync[1:], strict=False):
        same = plan.per_row((plan.version(one) == plan.version(other)).astype(np.intp)).sum()
        if same == rows:
            said.append(f"'{one}' and '{other}' are one model on this log: no time between lies within a micro-batch")
        elif same * 2 > rows:
            said.append(f"'{one}' scores {100 * same / rows:.0f}% of the exposures with the weights of '{other}'")
    return "; ".join(said) or "no two models"


def _staleness(setup: Setup, sync: str | None) -> float | None:
    if sync is None:
        return None
    return known(float(setup.plan.staleness_ms(sync, setup.data.ts_ms).mean()) / 60_000, 2)


def _both(name: str, figure: Figure) -> Row:
    return {name: known(figure.value, DIGITS), f"{name}_ci": known(figure.half, DIGITS)}


def day_slices(data: Dataset, rows: slice) -> dict[str, Places]:
    """Places, counted from the first of ``rows``, of each of their days."""
    day = data.day[rows]
    return {data.days[d]: np.flatnonzero(day == d) for d in np.unique(day).tolist()}


def hour_slices(data: Dataset, rows: slice) -> dict[str, Places]:
    hour = local_hours(np.asarray(data.ts_ms[rows]), data.schema)
    return {f"{h:02d}": np.flatnonzero(hour == h) for h in np.unique(hour).tolist()}


def value_slices(data: Dataset, rows: slice) -> dict[tuple[str, str], Places]:
    """Slices of new and known users and items, and of each value of the dataset's own slices, by (column, value).

    A user or item is new without an exposure before the row's local day: a model of the day before cannot know it.
    """
    out: dict[tuple[str, str], Places] = {}
    for name, ids in (("user", data.user), ("item", data.item)):
        _, first, own = np.unique(np.asarray(ids[: rows.stop]), return_index=True, return_inverse=True)
        new = (data.day[first[own]] == data.day[: rows.stop])[rows.start :]
        out[name, "new"], out[name, "known"] = np.flatnonzero(new), np.flatnonzero(~new)
    for column, one in data.slices.items():
        code = np.asarray(one.code[rows])
        for c in np.unique(code).tolist():
            out[column, one.values[c]] = np.flatnonzero(code == c)
    return {key: places for key, places in out.items() if len(places)}
