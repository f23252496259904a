# core
"""The runs of ``millrace bench safety`` and ``millrace experiment safety``: each is one job, in one process.

::

    poisons   a day and a morning ──► origin ──► twin, and a life for each poison            + both without a gate
    slots     the same in a small shop ──► origin ──► twin, and a life for each slot
    clean     days from nothing: each refusal is a false one (also: a high click rate, a sale, a log of one's own)
    taste     two days and a morning ──► origin ──► the afternoon of another taste, with a gate and without

A job gives rows for ``runs.jsonl``. Poisons of samples begin at ten of the last day.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from commands.offline.intervals import rounded
from experiments.poisons import POISONS, SLOTS, Window, spoil_slot
from experiments.safetyrun import MINUTE_MS, STRETCH_ROWS, WINDOW_ROWS, Life, Log, Served, live, loss, some, until
from experiments.safetyworld import HOUR_MS, Moment, Shop, traffic, write_shop
from millrace.basics.merit import known
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable, read_log

Row = dict[str, Any]

SLOT_SPEC = {"admit": 2, "retrieval_width": 16}
"""So that counters of admission and a retrieval head are there to be spoilt."""
SLOT_USERS, SLOT_ROWS, SLOT_WINDOW, SLOT_AFTER = 1000, 12_000, 4000, 2
MOST_DRIFT_MINUTES = 180
"""Refusals later than this after a change of taste are not of it."""


def _log(shop: Shop, schema: Schema, folder: Path) -> LogTable:
    return read_log(write_shop(shop, folder / "log"), schema)


def _morning(
    shop: Shop, schema: Schema, spec: Mapping[str, Any], folder: Path, at_ms: int
) -> tuple[Path, Iterator[Moment], list[Moment], Log]:
    """A life up to a time, what comes then, and the moment that reaches it."""
    moments, over = traffic(_log(shop, schema, folder), schema), list[Moment]()
    life = Life(schema, spec, folder / "origin")
    live(life, until(moments, at_ms, over))
    return life.end(), moments, over, life.log


def poisons(shop: Shop, schema: Schema, rows: int, folder: Path) -> Iterator[Row]:
    """A row for each poison.

    Args:
        rows: that are shown from the beginning of a poison on.
    """
    start_ms = shop.last_ms + 10 * HOUR_MS
    origin, rest, moments, before = _morning(shop, schema, {}, folder, start_ms)
    moments += some(rest, rows)
    batches = [m.batch for m in moments if m.batch is not None]
    twins = {gate: _branch(schema, {}, origin, folder, moments, gate)[1] for gate in (True, False)}
    for poison in POISONS:
        window = Window.of(batches, schema, start_ms, poison.minutes)
        spoil = poison.during(window)
        life, served = _branch(schema, {}, origin, folder, moments, True, spoil)
        _, bare = _branch(schema, {}, origin, folder, moments, False, spoil)
        yield {
            "kind": "poison",
            "name": poison.name,
            "claimed": poison.claimed,
            "seed": shop.seed,
            "auc_loss": rounded(loss(twins[True], served)),
            "auc_loss_without_gate": rounded(loss(twins[False], bare)),
            "by_window": [rounded(float(v)) for v in twins[True].aucs() - served.aucs()],
            "not_finite": life.scorer.not_finite + life.scorer.bad_numbers,
            "refused": life.log.by_check(),
            "refused_before": before.by_check(),
            "first": life.log.refused[0].why if life.log.refused else "",
            "quarantined": life.trainer.counts["quarantined"],
        }


def _branch(
    schema: Schema,
    spec: Mapping[str, Any],
    origin: Path,
    folder: Path,
    moments: list[Moment],
    gate: bool,
    spoil: Callable[[SampleBatch], SampleBatch] = lambda batch: batch,
    slot: str = "",
) -> tuple[Life, Served]:
    """A life from an origin on, its files gone. A ``slot`` is spoilt when a few deltas are out."""
    gc.collect()  # a gate and its trainer hold each other, and with them the model of the branch before
    place = folder / "branch"
    life = Life(schema, spec, place, origin, gate)
    parts = [live(life, moments[:SLOT_AFTER], spoil)]
    if slot:
        spoil_slot(life.model, slot)
    parts.append(live(life, moments[SLOT_AFTER:], spoil))
    shutil.rmtree(place)
    return life, Served(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))


def slots(
    shop: Shop,
    schema: Schema,
    folder: Path,
    rows: int = SLOT_ROWS,
    names: Iterable[str] = (),
    spec: Mapping[str, Any] = SLOT_SPEC,
) -> Iterator[Row]:
    """A row for each slot: it is spoilt between two steps, when a few deltas are out."""
    shop = replace(shop, users=min(shop.users, SLOT_USERS))
    origin, rest, moments, _ = _morning(shop, schema, spec, folder, shop.last_ms + 10 * HOUR_MS)
    moments += some(rest, rows)
    window = min(SLOT_WINDOW, rows // 2)
    wanted = set(names)
    for gate in (True, False):
        _, twin = _branch(schema, spec, origin, folder, moments, gate)
        for slot in (s for s in SLOTS if not wanted or s.name in wanted):
            life, served = _branch(schema, spec, origin, folder, moments, gate, slot=slot.name)
            yield {
                "kind": "slot",
                "name": slot.name,
                "gate": gate,
                "seed": shop.seed,
                "auc_loss": rounded(loss(twin, served, window)),
                "not_finite": life.scorer.not_finite,
                "bad_numbers": life.scorer.bad_numbers,
                "refused": life.log.by_check(),
                "first": life.log.refused[0].why if life.log.refused else "",
            }


def clean(name: str, shop: Shop | Path, schema: Schema, folder: Path) -> Iterator[Row]:
    """One row: a life from nothing through a world or a log in which nothing is wrong.

    Args:
        name: what the world is called in reports.
        shop: a simulated one, or the path of a log.
    """
    log = read_log(shop, schema) if isinstance(shop, Path) else _log(shop, schema, folder)
    life = Life(schema, {}, folder / "life")
    served = live(life, traffic(log, schema))
    first_day_ms = int(served.shown_ms[0]) + 24 * HOUR_MS
    early = sum(one.event_ms < first_day_ms for one in life.log.refused)
    yield {
        "kind": "clean",
        "name": name,
        "seed": shop.seed if isinstance(shop, Shop) else 0,
        "rows": life.log.rows,
        "candidates": round(life.log.candidates, 1),
        "refused": life.log.by_check(),
        "refused_first_day": early,
        "refusals": [list(one) for one in life.log.refused[:50]],
        "quarantined": life.trainer.counts["quarantined"],
        "over_limit": life.trainer.counts["over_limit"],
        "held_out": life.trainer.counts["held_out"],
        "longest_pause_minutes": rounded(_longest_pause(life.log)),
        "auc": [rounded(float(v)) for v in served.aucs(min(len(served.p), 4 * WINDOW_ROWS))],
    }


def _longest_pause(log: Log) -> float:
    """Minutes from a refusal to the next version, at most."""
    published = np.sort(np.array(log.published_ms))
    pauses = [0.0]
    for one in log.refused:
        later = published[np.searchsorted(published, one.event_ms, side="right") :]
        end = int(later[0]) if len(later) else int(published[-1])
        pauses.append((end - one.event_ms) / MINUTE_MS)
    return max(pauses)


def taste(shop: Shop, schema: Schema, rows: int, folder: Path) -> Iterator[Row]:
    """One row: half of the shoppers have another taste from noon on. Minutes until what is learnt of it is served."""
    shop = replace(shop, change="taste")
    origin, rest, moments, _ = _morning(shop, schema, {}, folder, shop.noon_ms)
    moments += some(rest, rows)
    life, served = _branch(schema, {}, origin, folder, moments, True)
    _, bare = _branch(schema, {}, origin, folder, moments, False)
    yield {
        "kind": "taste",
        "seed": shop.seed,
        "minutes": minutes_of(promoted_after(life.log, served, shop.noon_ms)),
        "auc_loss_to_no_gate": rounded(loss(bare, served)),
        "refused": life.log.by_check(),
    }


def minutes_of(minutes: float) -> float | None:
    """A time as a row has it; None: it never came. JSON has no infinity."""
    return known(rounded(minutes))


def promoted_after(log: Log, served: Served, change_ms: int) -> float:
    """Minutes from a change until a version is out that has learnt a whole stretch of rows since, and behind which the
    gate has nothing against the change any more. Infinite where there is none."""
    since = served.shown_ms[served.shown_ms >= change_ms]
    if len(since) < STRETCH_ROWS:
        return float("inf")
    last_ms = int(since[STRETCH_ROWS - 1])
    own = [r.event_ms for r in log.refused if change_ms <= r.event_ms < change_ms + MOST_DRIFT_MINUTES * MINUTE_MS]
    last_ms = max([last_ms, *own])
    later = [ms for ms in log.published_ms if ms >= last_ms]
    return (min(later) - change_ms) / MINUTE_MS if later else float("inf")
