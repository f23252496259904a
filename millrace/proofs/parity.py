# core
"""``millrace verify --parity DATA``: do live and replay agree? The archive of a loop is replayed and compared.

::

    archive ─► exposures, as replay reads them ─► features by replay ─┐
            └► features, as the scorer logged them ───────────────────┴─► equal to the bit? if not, why?
                                                                      └─► one model on each: AUC
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from learner.dense import threads
from learner.making import model_of
from millrace.contracts.errors import ParityError
from millrace.contracts.settings import Settings
from millrace.proofs.archived import Archived, read_archive
from millrace.proofs.causes import Cause, Compared, compare
from millrace.proofs.lag import spread
from millrace.replay.clustered import auc_parts, user_numbers
from millrace.replay.clustered import gap as gap_of
from millrace.replay.known import LabelSettings, Samples
from millrace.replay.logfeatures import Labels, LogRows
from millrace.reports import make_folder, say, show

MOST_GAP = 0.001
"""By how much the two progressive AUCs may differ."""
_BATCH_ROWS = 256
_THREADS = 1
_NAMED = 12  # features that are shown
TEXTS = {
    Cause.POSITION: "position: as answered, not as shown",
    Cause.PAGE_TIME: "the page's time, not the exposure's",
    Cause.LATE: "actions after the attribution window",
    Cause.TILE_BOUND: "tile bound: of the page's tile, known already",
    Cause.UNSENT: "happened before the page, sent after it",
    Cause.FEED_LAG: "feed lag: the newest events not known yet",
    Cause.PAGE_LOG: "feed lag, and pages' logs in another order",
    Cause.UNIT_TURN: "counts as of the tile before or after",
    Cause.MISSING: "user not known to the scorer yet",
    Cause.ATTRIBUTES: "attributes of another time",
    Cause.CONTEXT: "the request's own fields: not archived",
    Cause.UNEXPLAINED: "unexplained",
}


def verify_parity(data: Path, settings: Settings, out: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Compares, prints, writes parity.json to ``out`` if it is given; the report.

    Args:
        data: the data folder of a loop whose archive has features; the loop may still run.
        settings: model, spec and label policy for the two AUCs.

    Raises:
        LogError, SchemaError: there is no archive to compare.
        ParityError: the AUCs differ by more than :data:`MOST_GAP`, and the interval says so too.
    """
    if out is not None:
        make_folder(out, "parity.json")
    with _steps(progress) as tick:
        tick("reading the archive")
        archived = read_archive(data / "archive")
        found = compare(archived, tick)
        tick("a model on the features as logged, and one as replayed")
        labels = LabelSettings.of(settings)
        scores = [
            progressive(archived, cat, num, settings.spec(), settings.seed, labels)
            for cat, num in ((archived.pages.cat, archived.pages.num), (found.cat, found.num))
        ]
    report = make_report(archived, found, *scores)
    if out is not None:
        (out / "parity.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if progress:
        _print(report)
    gap = abs(report["auc_gap"])
    if gap - report["auc_gap_half"] > MOST_GAP:  # False where there is no AUC
        raise ParityError(
            f"progressive AUC of replayed features {report['auc_replayed']:.4f}, of logged ones "
            f"{report['auc_logged']:.4f}: {gap:.4f} +- {report['auc_gap_half']:.4f} apart, more than {MOST_GAP:g}",
            "see which features differ, and why",
        )
    return report


def progressive(
    archived: Archived,
    cat: NDArray[np.int64],
    num: NDArray[np.float32],
    spec: Mapping[str, Any],
    seed: int,
    how: LabelSettings,
) -> NDArray[np.float32]:
    """Scores (m,) of a model that learns as in replay, from features cat (m, F) and num (m, N)."""
    log, schema = archived.log, archived.schema
    log = replace(log, table=log.table.take(pa.array(archived.pages.row)))
    rows = LogRows(log, schema)
    samples = Samples.of(rows.ts_ms, Labels(log, schema, rows), how.named, how.observation_ms)
    bias = schema.layout.bias_columns
    p, scored = np.empty(rows.n, np.float32), 0
    with threads(_THREADS):
        model = model_of(schema, spec, seed)
        for start in range(0, len(samples.row), _BATCH_ROWS):
            part = slice(start, min(start + _BATCH_ROWS, len(samples.row)))
            end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
            for first in range(scored, end, _BATCH_ROWS):
                shown = slice(first, min(first + _BATCH_ROWS, end))
                ids = cat[shown].copy()
                ids[:, bias] = 0
                p[shown] = model.score(ids, num[shown])
            scored = max(scored, end)
            row = samples.row[part]
            model.learn(samples.batch(part, rows, cat[row], num[row]))
    return p


def make_report(
    archived: Archived, found: Compared, logged: NDArray[np.float32], replayed: NDArray[np.float32]
) -> dict[str, Any]:
    """The figures as plain values.

    Args:
        logged, replayed: (m,) scores of the two models.
    """
    layout, m = archived.schema.layout, len(archived.pages)
    label = archived.rows.label[archived.pages.row]
    row_cause = np.maximum(found.cat_cause.max(axis=1, initial=0), found.num_cause.max(axis=1, initial=0))
    causes: list[dict[str, Any]] = []
    equal = int(np.count_nonzero(row_cause == 0))
    reached = equal
    for cause in list(Cause)[1:]:
        in_cat, in_num = found.cat_cause == cause, found.num_cause == cause
        values = int(in_cat.sum() + in_num.sum())
        if not values:
            continue
        reached += int(np.count_nonzero(row_cause == cause))
        touched = int(np.count_nonzero(in_cat.any(axis=1) | in_num.any(axis=1)))
        names = _names(layout.cat_names, in_cat) | _names(layout.num_names, in_num)
        causes.append(
            {
                "cause": cause.name.lower(),
                "text": TEXTS[cause],
                "samples": touched,
                "values": values,
                "share_then_equal": None if cause is Cause.UNEXPLAINED else reached / m,
                "features": names,
            }
        )
    user = user_numbers(archived.log.table[archived.log.user].take(pa.array(archived.pages.row)))
    parts = auc_parts(logged, label), auc_parts(replayed, label)
    between = gap_of(parts[1], parts[0], user)
    return {
        "samples": m,
        "without_logged_features": archived.without,
        "events_without_sent_ms": archived.unsent,
        "features": layout.F + layout.N,
        "equal": equal,
        "share_equal": equal / m,
        "share_values_equal": 1 - sum(c["values"] for c in causes) / (m * (layout.F + layout.N)),
        "unexplained_samples": int(np.count_nonzero(row_cause == Cause.UNEXPLAINED)),
        "unexplained_values": sum(c["values"] for c in causes if c["cause"] == "unexplained"),
        "causes": causes,
        "unexplained": _unexplained(archived, found),
        "feed_lag": {side: spread(lags) for side, lags in found.lags_ms.items()},
        "auc_logged": parts[0][0],
        "auc_replayed": parts[1][0],
        "auc_gap": between.value,
        "auc_gap_half": between.half,
        "auc_agrees": abs(between.value) <= MOST_GAP,
    }


def _names(names: tuple[str, ...], differs: NDArray[np.bool_]) -> dict[str, int]:
    """How many values differ, by the feature's name, most first."""
    counts: dict[str, int] = {}
    for name, n in zip(names, differs.sum(axis=0).tolist(), strict=True):
        if n:
            counts[name] = counts.get(name, 0) + n
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _unexplained(archived: Archived, found: Compared) -> list[dict[str, Any]]:
    """Each feature with unexplained values: how many, and the first."""
    layout, out = archived.schema.layout, []
    request, position = archived.schema.log.identity if archived.schema.log else ("", "")
    for names, causes, made, logged in (
        (layout.cat_names, found.cat_cause, found.cat, archived.pages.cat),
        (layout.num_names, found.num_cause, found.num, archived.pages.num),
    ):
        for c, name in enumerate(names):
            rows = np.flatnonzero(causes[:, c] == Cause.UNEXPLAINED)
            if len(rows):
                first = int(rows[0])
                at = int(archived.pages.row[first])
                out.append(
                    {
                        "feature": name,
                        "values": len(rows),
                        "request_id": str(archived.log.table[request][at]),
                        "position": int(archived.log.table[position][at].as_py()),
                        "logged": logged[first, c].item(),
                        "replayed": made[first, c].item(),
                    }
                )
    return sorted(out, key=lambda one: (-one["values"], one["feature"]))


def verdict_of(report: Mapping[str, Any]) -> str:
    """Sentences for people."""
    m, un, values = report["samples"], report["unexplained_samples"], report["unexplained_values"]
    return (
        f"Of {m:,} exposures replay makes {report['share_equal']:.1%} as the loop logged them, to the bit; "
        f"{1 - un / m:.1%} with the causes computed. {un:,} exposures differ in {values:,} values that no cause "
        f"explains. Progressive AUC: {report['auc_replayed']:.4f} of replayed features, {report['auc_logged']:.4f} of "
        f"logged ones: {report['auc_gap']:+.4f} +- {report['auc_gap_half']:.4f}, "
        f"{'within' if report['auc_agrees'] else 'not within'} {MOST_GAP:g}."
    )


def _print(report: Mapping[str, Any]) -> None:
    equal = {"cause": "none: equal as replayed", "exposures": report["equal"], "values": 0}
    rows: list[dict[str, Any]] = [equal | {"then equal": _share(report["share_equal"])}]
    for c in report["causes"]:
        said = {"cause": c["text"], "exposures": c["samples"], "values": c["values"]}
        rows.append(said | {"then equal": _share(c["share_then_equal"])})
    title = f"{report['samples']:,} exposures, {report['features']} features each"
    show(title, rows, ["cause", "exposures", "values", "then equal"])
    for side, lag in report["feed_lag"].items():
        if lag["pages"]:
            print(
                f"feed of {side}s: {lag['pages']:,} pages lacked events, the oldest sent {lag['p50_s']:.2f} s before "
                f"(median), {lag['p99_s']:.2f} s (99%), {lag['most_s']:.2f} s at most"
            )
    if report["without_logged_features"]:
        print(f"{report['without_logged_features']:,} exposures have no logged features: not compared")
    if report["events_without_sent_ms"]:
        print(f"{report['events_without_sent_ms']:,} events do not say when they were sent: their event time stands in")
    if report["unexplained"]:
        named = [
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in one.items()} for one in report["unexplained"]
        ]
        columns = ["feature", "values", "request_id", "position", "logged", "replayed"]
        show(f"unexplained: {len(named)} features, the first {min(_NAMED, len(named))}", named[:_NAMED], columns)
    say(verdict_of(report))


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


@contextmanager
def _steps(wanted: bool) -> Iterator[Callable[[str], None]]:
    """What is done now, on a terminal."""
    if not wanted:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("parity")
        yield lambda what: bar.update(task, description=what)
