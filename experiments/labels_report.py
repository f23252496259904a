# core
"""What the runs of ``millrace dev experiment labels`` come to: means, differences to the bound, and three verdicts.

A run is one model under one policy on one stretch of traffic. The bound is the policy that no live loop can have: every
label at its exposure. For a figure f over a set of runs, f(policy) being the mean over them::

    gap_closed        = (AUC(policy) - AUC(wait)) / (AUC(bound) - AUC(wait))    over the last quarter of the rows;
                                                                                no value where wait reaches the bound
    log_loss_ratio    = log loss(policy) / log loss(bound)                      over the first quarter
    calibration_error = calibration(policy) - calibration(bound)                over either

Policies are compared on the same exposures and with the same model seeds. Intervals are over worlds, whose figures are
means over their seeds (Student's t; for gap and ratio a bootstrap that draws worlds, with percentiles). With one world
alone they are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from commands.offline.intervals import interval, rounded
from millrace.basics.ranking_metrics import auc, calibration, judged, log_loss

BOUND = "bound"
ORACLE = "oracle"
WAIT = "wait"

MEASURES = ("auc", "log_loss", "calibration")
DRAWS = 2000
"""Of the bootstrap."""

GAP_CLOSED, LOG_LOSS_RATIO, CALIBRATION_ERROR = 0.8, 1.03, 0.05
"""What the default policy must reach."""

Run = Mapping[str, Any]


class Parts(NamedTuple):
    """The rows that figures are over, by name: the first 16th, first quarter, middle half and last quarter."""

    opening: tuple[str, slice]
    early: tuple[str, slice]
    middle: tuple[str, slice]
    late: tuple[str, slice]

    @classmethod
    def of(cls, rows: int) -> Parts:
        a, b, c = rows // 16, rows // 4, rows - rows // 4
        k = _thousands
        return cls(
            (f"0-{k(a)}", slice(0, a)),
            (f"0-{k(b)}", slice(0, b)),
            (f"{k(b)}-{k(c)}", slice(b, c)),
            (f"{k(c)}+", slice(c, rows)),
        )


def figures(p: NDArray[np.float32], y: NDArray[Any]) -> dict[str, Any]:
    """The figures of one run: each measure over each part, None where there is no value. A score that is not finite
    counts as wrong. p, y: (n,)"""
    p = judged(p, y).astype(np.float32)
    out: dict[str, Any] = {}
    for name, part in Parts.of(len(y)):
        for measure, of in zip(MEASURES, (auc, log_loss, calibration), strict=True):
            out[f"{measure}_{name}"] = _plain(of(p[part], y[part]))
    return out


def make_report(runs: Sequence[Run], policies: Sequence[str], rows: int, default: str) -> dict[str, Any]:
    """The tables of all runs.

    Args:
        runs: dictionaries with ``world``, ``rate`` (its name), ``start``, ``policy``, ``seed`` and :func:`figures`.
        policies: in the order of the tables.
        rows: of each run.
        default: the policy that the verdicts are on.
    """
    parts = Parts.of(rows)
    shown = [p for p in (BOUND, *policies, ORACLE) if any(r["policy"] == p for r in runs)]
    cells = list(dict.fromkeys((r["rate"], r["start"]) for r in runs))
    tables: dict[str, list[dict[str, Any]]] = {}
    for measure in MEASURES:
        names = [f"{measure}_{name}" for name, _ in parts]
        own: list[dict[str, Any]] = []
        over: list[dict[str, Any]] = []
        for rate, start in cells:
            here = [r for r in runs if (r["rate"], r["start"]) == (rate, start)]
            for policy in shown:
                head = {"policy": policy, "rate": rate, "start": start}
                mine = [r for r in here if r["policy"] == policy]
                if not mine:
                    continue
                own.append(head | _all(mine, names))
                if policy not in (BOUND, ORACLE):
                    over.append(head | _all(_differences(mine, here, names), names))
        tables[measure], tables[f"{measure}_over_bound"] = own, over
    pooled = [
        {"policy": policy, "runs": len(mine)} | _closed(mine, runs, parts)
        for policy in policies
        if (mine := [r for r in runs if r["policy"] == policy])
    ]
    whole = next((row for row in pooled if row["policy"] == default), None)
    verdicts = [] if whole is None else _verdicts(whole, parts)
    return {"default": default, "verdicts": verdicts, "pooled": pooled} | tables


def _all(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Mean and interval of each figure; None where no run has a value."""
    out: dict[str, Any] = {}
    for name in names:
        values = _by_unit(runs, name)
        if len(values) > 1:
            out |= interval(name, values)
        else:
            out[name] = rounded(values[0]) if len(values) else None
    return out


def _by_unit(runs: Sequence[Run], name: str) -> list[float]:
    """The figure of each world, a mean over its runs; of each seed if there is one world alone."""
    unit = _unit(runs)
    found: dict[Any, list[float]] = {}
    for r in runs:
        if r[name] is not None:
            found.setdefault(r[unit], []).append(r[name])
    return [float(np.mean(v)) for v in found.values()]


def _unit(runs: Sequence[Run]) -> str:
    return "world" if len({r["world"] for r in runs}) > 1 else "seed"


def _differences(mine: Sequence[Run], others: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each run's figures less those of the bound on the same exposures with the same seed."""
    bound = {_twin(r): r for r in others if r["policy"] == BOUND}
    out = []
    for r in mine:
        twin = bound[_twin(r)]
        pair = {n: None if r[n] is None or twin[n] is None else r[n] - twin[n] for n in names}
        out.append({"world": r["world"], "seed": r["seed"]} | pair)
    return out


def _twin(run: Run) -> tuple[Any, ...]:
    return run["world"], run["rate"], run["start"], run["seed"]


def _closed(mine: Sequence[Run], runs: Sequence[Run], parts: Parts) -> dict[str, Any]:
    """The module's three figures of a policy's runs, with bounds of their intervals."""
    late, early = f"auc_{parts.late[0]}", f"log_loss_{parts.early[0]}"
    unit = _unit(mine)
    names = list(dict.fromkeys(r[unit] for r in mine))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(names), size=(DRAWS, len(names)))  # units with replacement

    def means(policy_runs: Sequence[Run], name: str) -> NDArray[np.float64]:
        """(units,) NaN where there is no value."""
        of = [[r[name] for r in policy_runs if r[unit] == u and r[name] is not None] for u in names]
        return np.array([np.mean(v) if v else np.nan for v in of])

    def ratio(name: str, top: Any, bottom: Any) -> dict[str, Any]:
        """Without a value where what it is measured by is not above 0: there is no gap that could be closed."""
        below, draws = float(bottom.mean()), bottom[drawn].mean(1)
        value = float(top.mean()) / below if below > 0 else math.nan
        low = high = math.nan
        if below > 0 and (draws > 0).all():
            low, high = np.percentile(top[drawn].mean(1) / draws, [2.5, 97.5]).tolist()
        single = len(names) < 2
        return {
            name: _plain(value),
            f"{name}_low": None if single else _plain(low),
            f"{name}_high": None if single else _plain(high),
        }

    bound = [r for r in runs if r["policy"] == BOUND]
    wait = [r for r in runs if r["policy"] == WAIT]
    out: dict[str, Any] = {}
    if wait:
        base = means(wait, late)
        out |= ratio("gap_closed", means(mine, late) - base, means(bound, late) - base)
    else:
        out |= {"gap_closed": None, "gap_closed_low": None, "gap_closed_high": None}
    out |= ratio(f"log_loss_ratio_{parts.early[0].removeprefix('0-')}", means(mine, early), means(bound, early))
    for name, _ in (parts.early, parts.late):
        own = _differences(mine, runs, [f"calibration_{name}"])
        renamed = [{**d, f"calibration_error_{name}": d[f"calibration_{name}"]} for d in own]
        out |= _all(renamed, [f"calibration_error_{name}"])
    return out


def _verdicts(row: Mapping[str, Any], parts: Parts) -> list[dict[str, Any]]:
    """Whether the default policy reaches what it must, over everything. None: there is no value to tell by."""
    early, late = parts.early[0], parts.late[0]
    ratio = f"log_loss_ratio_{early.removeprefix('0-')}"
    wanted: list[tuple[str, str, Callable[[float], bool]]] = [
        ("gap_closed", f"at least {GAP_CLOSED}", lambda v: v >= GAP_CLOSED),
        (ratio, f"at most {LOG_LOSS_RATIO}", lambda v: v <= LOG_LOSS_RATIO),
        (f"calibration_error_{early}", f"within {CALIBRATION_ERROR}", lambda v: abs(v) <= CALIBRATION_ERROR),
        (f"calibration_error_{late}", f"within {CALIBRATION_ERROR}", lambda v: abs(v) <= CALIBRATION_ERROR),
    ]
    out = []
    for figure, target, reached in wanted:
        value = row[figure]
        out.append(
            {"figure": figure, "value": value, "target": target, "reached": None if value is None else reached(value)}
        )
    return out


def _plain(value: float) -> float | None:
    return rounded(value) if math.isfinite(value) else None


def _thousands(n: int) -> str:
    return f"{n // 1000}k" if n and n % 1000 == 0 else str(n)
