# shell
"""``millrace dev experiment shop``: a small shop of one's own for hours at real speed, in which nothing is wrong.

::

    millrace up (gate on) ──► catalogue, visitors by the client ──► honest visits; guests and a heavy reader among them
        each minute: a row of what visitors saw and roles count        at half time he is deleted, and goes on reading

Nobody sends poison, so each refusal is a false one. A row is one minute:

- ``refused``: candidates that the gate refused, by check; ``quarantined``: samples that it kept out of the model.
- ``versions``: by how much the served version grew; 0 is a minute in which nothing was published.
- ``without_user``: pages whose user was not read from Redis in time (``millrace_user_reads_total``, ``nothing``);
  ``unknown``: pages of people whom Redis has not, guests and the deleted reader.
- ``click_rate``, ``control_click_rate``: on the model's and on random pages. ``auc``: of the scores on the model's
  pages against their clicks; ``oracle_auc``: of the true probabilities; ``page_auc``: what the live page shows.

Rows are written to ``runs.jsonl`` as they are measured. A run that Ctrl-C stops makes its report of what it has. Needs
the package ``millrace-client`` (the folder ``client``).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from commands.loop.monitor import RoleMetrics, fetch
from commands.up.started import Started
from experiments.runs import BenchError, runs_file
from experiments.tasteshop import SCHEMA, Taste, catalogue
from experiments.tastevisits import HEAVY, Crowd, Looked, Visitors, check_client, opened, user
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import auc, known
from millrace.reports import minutes_plot, surroundings, write_all

Row = dict[str, Any]
Say = Callable[[str], None]

PAGES, PAUSE_S, HEAVY_SHARE = 3.0, 10.0, 0.05
"""Of a visit, on average; between two of them; visits that are the heavy reader's."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run.

    Args:
        hours: how long visitors come.
        items: of the shop.
        users: of the shop.
        guests: share of visits by people whom the shop never named.
        pages_per_s: pages a second.
        seed: of the shop.
        row_s: seconds of a row.
    """

    hours: float = 2.0
    items: int = 2000
    users: int = 500
    guests: float = 0.03
    pages_per_s: float = 3.0
    seed: int = 0
    row_s: float = 60.0

    @property
    def rows(self) -> int:
        return max(1, round(self.hours * 3600 / self.row_s))


def experiment_shop(
    out: Path, plan: Plan | None = None, *, say: Annotated[Say, Parameter(parse=False)] = print
) -> dict[str, Any]:
    """Run a small shop by 'millrace up' at real speed, in which nothing is wrong, and see what the gate refuses.

    Args:
        out: folder for the report. The loop's folder, with its logs, is ``out/loop``; one of an earlier run is removed.

    Raises:
        SettingError: the plan is of nothing, or the folder cannot be written to.
        BenchError: the client is not installed, or the shop did not open.
        ServiceError: the loop ended.
    """
    plan = plan or Plan()
    if plan.hours <= 0 or plan.pages_per_s <= 0 or not 0 <= plan.guests <= 1 - HEAVY_SHARE:
        raise SettingError(f"'{plan}' is no plan", "hours and pages above 0, guests at least 0 and well below 1")
    check_client()
    started = time.monotonic()
    folder = out.absolute() / "loop"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema = folder / "schema.toml"
    schema.write_text(SCHEMA, encoding="utf-8")
    taste = Taste(catalogue(plan.items, plan.seed), plan.users, plan.seed)
    loop = Started(folder / "data", "--schema", str(schema), env={"MILLRACE_GATE": "on"})
    rows: list[Row] = []
    with runs_file(out) as write, loop, suppress(KeyboardInterrupt):

        def keep(row: Row) -> None:
            rows.append(row)
            write(row)
            say(f"{said(row)}; {plan.rows - len(rows)} rows to come")

        asyncio.run(_live(loop, taste, plan, keep, say))
    report = make_report(rows)
    run = {"seconds": round(time.monotonic() - started), "plan": asdict(plan), **surroundings()}
    lines_of = {
        "click rate": ("click_rate", "control_click_rate"),
        "AUC": ("auc", "page_auc", "oracle_auc"),
        "rows refused, in quarantine": ("quarantined",),
    }
    plots = [minutes_plot("shop", "What visitors and roles saw, by minute.", rows, lines_of)] if rows else []
    page = {name: report[name] for name in ("checks", "thirds")}
    write_all(out, report, run, plots, "A small shop", report["verdict"], page)
    return report


async def _live(loop: Started, taste: Taste, plan: Plan, keep: Callable[[Row], None], say: Say) -> None:
    from millrace_client import AsyncMillrace

    where = await asyncio.to_thread(loop.where)
    seen: list[Looked] = []
    crowd = Crowd(plan.users, plan.pages_per_s, PAGES, PAUSE_S, plan.guests, HEAVY_SHARE)
    async with AsyncMillrace(where["intake"], where["scorer"]) as shop:
        await opened(shop, taste, plan.users)
        say(f"{plan.items:,} items and {plan.users:,} users are there; {plan.rows} rows to come; {loop.data}")
        counts, ending = Counts(where["metrics"]), asyncio.Event()
        visitors = Visitors(shop, taste, crowd, plan.seed, seen.append)
        before = await asyncio.to_thread(counts.look)
        began = time.monotonic()
        visiting = asyncio.create_task(visitors.come(ending))
        try:
            for number in range(plan.rows):
                deleted = number == plan.rows // 2
                if deleted:
                    await shop.delete_user(user(HEAVY))
                    say(f"'{user(HEAVY)}', who reads most, is deleted, and goes on reading")
                left = began + (number + 1) * plan.row_s - time.monotonic()
                done, _ = await asyncio.wait({visiting}, timeout=max(0.0, left))
                if done:
                    raise BenchError("the visitors ended early", "see the error above") from visiting.exception()
                now, pages = await asyncio.to_thread(counts.look), seen[:]
                seen.clear()
                row: Row = {"minute": number, "seconds": round(time.monotonic() - began, 1), "deleted": deleted}
                keep(row | _of_pages(pages) | {"unanswered": visitors.unanswered} | _between(before, now))
                before = now
        finally:
            ending.set()
        await visiting


class Counts:
    """What scorer and learner count, over all their restarts.

    Args:
        targets: URL of each role's ``/metrics``.
    """

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = {name: targets[name] for name in ("learn", "serve")}
        self._roles = {name: RoleMetrics() for name in self._targets}

    def look(self) -> Row:
        """Totals and gauges of now. A role that does not answer keeps its last ones."""
        for name, url in self._targets.items():
            with suppress(OSError, ValueError):
                self._roles[name].update(fetch(url, 5.0))
        learn, serve = self._roles["learn"], self._roles["serve"]
        return {
            "versions": serve.gauge("millrace_served_version") or 0.0,
            "requests": serve.total("millrace_user_reads_total"),
            "without_user": serve.total("millrace_user_reads_total", found="nothing"),
            "unknown": serve.total("millrace_user_reads_total", found="unknown"),
            "trained": learn.total("millrace_samples_trained_total"),
            "quarantined": learn.total("millrace_quarantined_rows_total"),
            "ways_back": learn.total("millrace_way_back_total"),
            **{v: learn.by_label("millrace_gate_verdicts_total", "check", verdict=v) for v in VERDICTS},
            "page_auc": learn.gauge("millrace_rolling_auc", arm="model"),
        }


TOTALS = ("versions", "requests", "without_user", "unknown", "trained", "quarantined", "ways_back")
VERDICTS = ("passed", "refused", "unjudged", "observed")


def _between(before: Row, now: Row) -> Row:
    """Growth of the totals; gauges as they are now; checks that had no verdict of a kind are left out."""
    row = {name: round(now[name] - before[name]) for name in TOTALS}
    grown = {v: {check: round(n - before[v].get(check, 0.0)) for check, n in now[v].items()} for v in VERDICTS}
    return row | {v: {c: n for c, n in grown[v].items() if n} for v in VERDICTS} | {"page_auc": now["page_auc"]}


def _of_pages(pages: Sequence[Looked]) -> Row:
    """What visitors saw in a minute."""
    model = [page for page in pages if page.arm == "model"]
    control = [page for page in pages if page.arm == "control"]

    def joined(name: str, of: Sequence[Looked]) -> Any:
        return np.concatenate([getattr(page, name) for page in of]) if of else np.empty(0)

    clicked = joined("clicked", model)
    return {
        "pages": len(pages),
        "guests": sum(page.guest for page in pages),
        "impressions": sum(len(page.clicked) for page in pages),
        "clicks": int(joined("clicked", pages).sum()),
        "click_rate": known(float(clicked.mean())) if len(clicked) else None,
        "control_click_rate": float(joined("clicked", control).mean()) if control else None,
        "auc": known(auc(joined("score", model), clicked)),
        "oracle_auc": known(auc(joined("chance", model), clicked)),
    }


def said(row: Row) -> str:
    """A row in a line."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    refused = ", ".join(f"{check} {n}" for check, n in row["refused"].items()) or "nothing"
    return (
        f"minute {row['minute']}: {row['pages']} pages, {row['without_user']} without their user, {row['versions']} "
        f"versions, click rate {number(row['click_rate'])} (random {number(row['control_click_rate'])}), "
        f"AUC {number(row['auc'])}; refused {refused}, {row['quarantined']} samples quarantined"
    )


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows together: sums, each check's verdicts, figures by thirds of the time, and the verdict in words."""
    sums = ("pages", "guests", "unanswered", "impressions", "clicks", "requests", "without_user", "unknown", "trained")
    total = {name: sum(row[name] for row in rows) for name in (*sums, "quarantined", "ways_back", "versions")}
    total["unanswered"] = rows[-1]["unanswered"] if rows else 0  # it is told from the beginning on
    # Before the first version of all there is nothing that could be published anew.
    first = next((i for i, row in enumerate(rows) if row["versions"] > 0), len(rows))
    total["minutes"] = len(rows)
    total["minutes_without_version"] = sum(row["versions"] <= 0 for row in rows[first:])
    total["without_user_share"] = total["without_user"] / total["requests"] if total["requests"] else 0.0
    names = sorted({check for row in rows for v in VERDICTS for check in row[v]})
    checks = [{"check": c, **{v: sum(row[v].get(c, 0) for row in rows) for v in VERDICTS}} for c in names]
    total["refused"] = sum(check["refused"] for check in checks)
    thirds = [
        {"third": n + 1, **{name: _mean([row[name] for row in part]) for name in FIGURES}}
        for n, part in enumerate(np.array_split(np.array(rows, object), 3))
        if len(part)
    ]
    return {"verdict": verdict(total, checks, thirds), **total, "checks": checks, "thirds": thirds, "rows": list(rows)}


FIGURES = ("click_rate", "control_click_rate", "auc", "page_auc", "oracle_auc")


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return round(float(np.mean(told)), 4) if told else None


def verdict(total: Row, checks: Sequence[Row], thirds: Sequence[Row]) -> str:
    """In a few plain sentences."""
    if not total["minutes"]:
        return "It was stopped before the first minute was over."
    by = ", ".join(f"{check['check']} {check['refused']}" for check in checks if check["refused"])
    rates = [third["click_rate"] for third in thirds if third["click_rate"] is not None]
    went = f"The click rate went from {rates[0]:.3f} to {rates[-1]:.3f}. " if rates else ""
    return (
        f"In {total['minutes']} minutes with {total['pages']:,} pages the gate refused {total['refused']} candidates"
        f"{f' ({by})' if by else ''} and put {total['quarantined']:,} samples into quarantine; nothing was wrong. "
        f"In {total['minutes_without_version']} minutes nothing was published. {went}"
        f"{total['without_user_share']:.2%} of the pages were made without reading their user, "
        f"{total['unknown'] / (total['requests'] or 1):.2%} for people who are unknown."
    )
