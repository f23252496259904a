# shell
"""``millrace dev experiment NAME``: its flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cyclopts

from millrace.basics.errors import SettingError
from millrace.contracts.schema import Schema

app = cyclopts.App(name="millrace dev experiment")


@app.default
def experiment(
    name: Literal["models", "rounds", "drift", "labels", "recall", "safety", "shop", "chaos"],
    log: Path | None = None,
    *,
    schema: Path | None = None,
    simulated_days: int | None = None,
    test_days: int = 1,
    seeds: int = 5,
    seed: int = 0,
    models: list[str] | None = None,
    inputs: list[str] | None = None,
    cut: list[str] | None = None,
    worlds: list[int] | None = None,
    rates: list[float] | None = None,
    rows: int | None = None,
    policies: list[str] | None = None,
    users: int | None = None,
    items: int | None = None,
    hours: float | None = None,
    guests: float | None = None,
    pages: float | None = None,
    seconds: float | None = None,
    kills: int | None = None,
    emptied: int | None = None,
    busy: int | None = None,
    resume: bool = False,
    out: Path,
) -> None:
    """Compare models, ways of keeping one up to date, detectors, label policies, recall; try the gate; live long.

    Parameters
    ----------
    name
        models: all of them, on raw and scaled inputs. rounds: ways of keeping up from one start. drift: false alarms
        of drift detectors on clean days and their delay on planted changes, a simulated world for each seed. labels:
        label policies at real speed, in worlds of several rates of traffic. It takes hours. recall: the recall that
        serves against the mixture before it, in closed loop and with the same luck, a simulated world for each seed.
        safety: what is served while samples and models are poisoned, and false refusals where nothing is wrong.
        shop: a small shop by 'millrace up' at real speed, in which nothing is wrong; what the gate refuses there.
        chaos: demos whose processes are killed at random moments; at the end each exposure is accounted for.
    log
        An exposure log (default: one that the simulator writes for this). For labels, one without action times: its
        clicks are given delays, and the last rows are the traffic. For safety, days in which nothing is wrong, besides
        the simulated ones. Not for recall, shop and chaos.
    schema
        Schema of the log (default: the simulated shop's).
    simulated_days
        Days of the simulated log (default: 8; for drift, 5; for safety, 10, of each clean world; not for recall, which
        has seven before its day).
    test_days
        Days at the end that are only tested on, or lived through (not for drift, labels, recall and safety).
    seeds
        Runs of each; for safety, worlds that are poisoned; for chaos, demos.
    seed
        Seed of the simulated world; for drift, recall, safety and chaos, of the first (not for labels).
    models
        Models to compare (default: all; for rounds, the default model; not for drift, labels, recall and safety).
    inputs
        Kinds of input: raw, scaled, and own, which is as the schema says (default: the first two; not for drift, labels
        and recall).
    cut
        For rounds: at which times micro-batches are cut, as in 'millrace freshness --sync' (default: where a day
        begins).
    worlds
        For labels: seeds of the worlds, or with a log of the click delays (default: 3, 7, 11, 19, 23).
    rates
        For labels: exposures a second (default: 1, 20, 200).
    rows
        For labels: exposures of each run (default: 80000).
    policies
        For labels: which to compare (default: all).
    users
        For recall: shoppers of an average day (default: 1500). For shop: its users (default: 500).
    items
        For recall: about how many items are on sale at a time (default: the simulated shop's own, some 6000). For shop:
        its items (default: 2000).
    hours
        For shop: how long visitors come (default: 2).
    guests
        For shop: share of visits by people whom the shop never named (default: 0.03).
    pages
        For shop: pages a second (default: 3).
    seconds
        For chaos: how long shoppers come, in each demo (default: 200).
    kills
        For chaos: kills in each demo, of roles, the scorer's worker and template, broker and Redis (default: 15).
    emptied
        For chaos: how often Redis is emptied in each demo (default: 2).
    busy
        For chaos: loops that keep cores busy beside it (default: 0).
    resume
        For labels and recall: keep the runs that OUT/runs.jsonl has, when they are of the same code and settings.
    out
        Folder for report.json, run.json, runs.jsonl, report.html and plots.
    """
    import tempfile

    from experiments.experiment import EXPERIMENTS, INPUTS
    from millrace.contracts.schema import load_schema, shop_schema
    from millrace.reports import say
    from simulator.daylog import write_days

    _no_flags(name, {"--cut": None if name == "rounds" else cut}, "it is for rounds")
    plan = load_schema(schema) if schema else shop_schema()
    long = {"--hours": hours, "--guests": guests, "--pages": pages}
    if name != "shop":
        _no_flags(name, long, "it is for shop")
    struck = {"--seconds": seconds, "--kills": kills, "--emptied": emptied, "--busy": busy}
    if name != "chaos":
        _no_flags(name, struck, "it is for chaos")
    if name == "labels":
        _no_flags(name, {"--users": users, "--items": items}, "it is for recall")
        _labels(log, plan, out, seeds, worlds, rates, rows, policies, resume)
        return
    given: dict[str, object] = {"--worlds": worlds, "--rates": rates, "--rows": rows, "--policies": policies}
    if name == "recall":
        given |= {"LOG": log, "--schema": schema, "--simulated-days": simulated_days, "--models": models}
        _no_flags(name, given | {"--inputs": inputs}, "it is for other experiments")
        _recall(out, seed, seeds, users, items, resume)
        return
    _no_flags(name, given | {"--resume": resume or None}, "it is for labels")
    if name == "chaos":
        given |= {"LOG": log, "--schema": schema, "--simulated-days": simulated_days, "--models": models}
        _no_flags(name, given | {"--inputs": inputs, "--users": users, "--items": items}, "it is for other experiments")
        _chaos(out, range(seed, seed + seeds), seconds=seconds, kills=kills, emptied=emptied, busy=busy)
        return
    if name == "shop":
        given |= {"LOG": log, "--schema": schema, "--simulated-days": simulated_days, "--models": models}
        _no_flags(name, given | {"--inputs": inputs}, "it is for other experiments")
        _shop(out, seed=seed, users=users, items=items, hours=hours, guests=guests, pages_per_s=pages)
        return
    if name == "safety":
        given = {"--models": models, "--inputs": inputs, "--users": users, "--items": items}
        _no_flags(name, given, "it is for other experiments")
        _safety(out, seed, seeds, simulated_days, log, schema)
        return
    _no_flags(name, {"--users": users, "--items": items}, "it is for recall")
    with tempfile.TemporaryDirectory(prefix="millrace-log-") as folder:
        logs = [log] if log else []
        if log is None:
            for world in range(seed, seed + (seeds if name == "drift" else 1)):
                logs.append(Path(folder) / f"world-{world}")
                write_days(logs[-1], days=simulated_days or (5 if name == "drift" else 8), seed=world)
        run, kinds = EXPERIMENTS[name], tuple(inputs or INPUTS)
        if name == "drift":
            report = run(logs, plan, out)
        else:
            more = {"cut": tuple(cut or ())} if name == "rounds" else {}
            report = run(
                logs[0], plan, out, seeds=seeds, test_days=test_days, models=tuple(models or ()), inputs=kinds, **more
            )
    say(report["verdict"])
    print(f"report in {out}")


def _labels(
    log: Path | None,
    plan: Schema,
    out: Path,
    seeds: int,
    worlds: list[int] | None,
    rates: list[float] | None,
    rows: int | None,
    policies: list[str] | None,
    resume: bool,
) -> None:
    from experiments.experiment_labels import experiment_labels
    from millrace.reports import say
    from simulator.daylog import write_traffic

    if log is not None and rates is not None:
        raise SettingError(f"--rates with the log '{log}'", "leave them out: a log is run at its own times")
    given = {"worlds": worlds, "rates": rates, "rows": rows}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    report = experiment_labels(
        out, plan, write=write_traffic, log=log, seeds=seeds, policies=policies or (), resume=resume, **chosen
    )
    say(report["verdict"])
    print(f"report in {out}")


def _recall(out: Path, seed: int, seeds: int, users: int | None, items: int | None, resume: bool) -> None:
    from experiments.experiment_recall import experiment_recall
    from millrace.reports import say

    given = {"users": users, "items": items}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    report = experiment_recall(out, seeds=range(seed, seed + seeds), resume=resume, **chosen)
    say(report["verdict"])
    print(f"report in {out}")


def _chaos(out: Path, seeds: Sequence[int], **chosen: Any) -> None:
    from experiments.chaos import Plan, experiment_chaos
    from millrace.reports import say

    report = experiment_chaos(out, Plan(tuple(seeds), **{name: v for name, v in chosen.items() if v is not None}))
    say(report["verdict"])
    print(f"report in {out}")


def _shop(out: Path, **chosen: Any) -> None:
    from experiments.shop import Plan, experiment_shop
    from millrace.reports import say

    report = experiment_shop(out, Plan(**{name: value for name, value in chosen.items() if value is not None}))
    say(report["verdict"])
    print(f"report in {out}")


def _safety(out: Path, seed: int, seeds: int, days: int | None, log: Path | None, schema: Path | None) -> None:
    from experiments.experiment_safety import Plan, experiment_safety
    from millrace.contracts.schema import load_schema
    from millrace.reports import say

    if (log is None) != (schema is None):
        raise SettingError("a log without a schema, or a schema without a log", "give both, or neither")
    given: dict[str, Any] = {} if days is None else {"days": days}
    plan = Plan(range(seed, seed + seeds), log=log, log_schema=load_schema(schema) if schema else None, **given)
    report = experiment_safety(out, plan)
    say(report["verdict"])
    print(f"report in {out}")


def _no_flags(name: str, given: Mapping[str, object], why: str) -> None:
    """What an experiment has no use for is refused rather than passed over."""
    for flag, value in given.items():
        if value is not None:
            raise SettingError(f"{flag} for the experiment '{name}'", f"leave it out: {why}")
