# shell
"""The commands that take a log: ``millrace replay``, ``experiment``, ``verify``. :mod:`commands.cli.cli` has the
others.

Each command imports what it needs itself, so that ``--help`` and short commands start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cyclopts

from millrace.basics.errors import LogError, SchemaError, SettingError, SnapshotError
from millrace.contracts.schema import Schema
from millrace.contracts.settings import load_settings


def replay(
    log: list[Path],
    *,
    schema: Path,
    out: Path | None = None,
    into: Path | None = None,
    people: bool = True,
    seed: int = 0,
    model: str | None = None,
    label_policy: str | None = None,
    skip_bad: bool = False,
    audit: bool = False,
) -> None:
    """Run a day of logs (or many) through windows, learner and progressive evaluation; print the AUC of each day.

    Parameters
    ----------
    log
        Exposure log: files or folders of Parquet, CSV, TSV or JSON lines; one row an exposure or a page.
    schema
        TOML file that says which columns are time, user, item, label and features.
    out
        Folder for report.json, run.json, report.html and plots. Needed without --into.
    into
        Leave in this folder what 'millrace up' and the roles go on from: windows, join, model, items, users. It must
        be empty. Model, waits and partitions are those of the settings that the loop will have (docs/history.md).
    people
        With --into: leave users and items too, to be published at the first start. Not where the shop does so itself.
    seed
        Seed of the model. The same seed gives the same report, bit for bit.
    model
        Model to train (default: the learner's).
    label_policy
        When labels are learnt: wait, equal-wait, fake-negative-weighted, es-dfm, prompt (default: the setting's), or
        immediate: at the exposure, which no live loop can do, to compare with.
    skip_bad
        Leave out rows that are wrong, counted by what is wrong with them, instead of ending with all faults.
    audit
        Look for leaks instead: alter all that comes after random times, and name what differs before them.
    """
    if audit:
        _audit(log, schema, into, out, seed=seed, model=model, label_policy=label_policy, skip_bad=skip_bad)
        return
    if out is None and into is None:
        raise SettingError("neither --out nor --into", "name a folder for the report, or one for a live loop's start")
    if into is not None:
        made_of = _one_or_more(log)
        reads = {"skip_bad": skip_bad}
        _into(made_of, schema, into, seed=seed, model=model, label_policy=label_policy, people=people, **reads)
        if out is None:
            return
    assert out is not None
    from commands.replay.known import LabelSettings
    from commands.replay.run import replay as run

    at_once = label_policy == "immediate"
    labels = LabelSettings.of(load_settings({"label_policy": None if at_once else label_policy}))
    how = replace(labels, policy=None) if at_once else labels
    run(_one_or_more(log), schema, out, seed=seed, model=model, labels=how, skip_bad=skip_bad)


schema_commands = cyclopts.App(name="schema", help="Schemas of logs.")


@schema_commands.command
def guess(log: Path, *, out: Path | None = None) -> None:
    """Write a commented schema from a sample of LOG: roles of columns, time, lists, fields, windows, likely outcomes.

    Fails, once the schema is written, when the time, the user, the item or the label cannot be told: the schema then
    says which columns it could be and has a line to fill in.

    Parameters
    ----------
    log
        Exposure log: Parquet, CSV, TSV or JSON lines, or a folder of such files.
    out
        TOML file to write (default: print it). A file that is there already is not overwritten.
    """
    from commands.guess import guess_schema
    from millrace.basics.files import write_whole

    if out is not None and out.exists():
        raise SettingError(f"--out '{out}' is there already", "name another file, or remove it")
    found = guess_schema(log)
    if out is None:
        print(found.text, end="")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, found.text.encode(), durable=False)
        for line in found.summary():
            print(line)
        print(f"schema in {out}")
    if found.open:
        could = "; ".join(f"{role}: {', '.join(names) or 'no column fits'}" for role, names in found.open.items())
        raise SchemaError(f"the schema of '{log}' has open roles ({could})", "fill in its lines with '?'")


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


def freshness(
    log: list[Path],
    *,
    schema: Path,
    out: Path,
    train_days: int | None = None,
    sync: str = "never,daily,hourly,15min,minute,batch",
    cut: str | None = None,
    retrain: bool = False,
    features: Literal["day-old", "live"] = "day-old",
    slices: str = "",
    seeds: int = 1,
    seed: int = 0,
    model: str = "default",
    inputs: Literal["own", "raw", "scaled"] = "own",
    draws: int = 1000,
    skip_bad: bool = False,
) -> None:
    """Say what freshness is worth on a log: models that learn every minute, hour, day or never, and live features.

    Parameters
    ----------
    log
        Exposure log: files or folders of Parquet, CSV, TSV or JSON lines; one row an exposure or a page.
    schema
        TOML file that says which columns are time, user, item, label and features.
    out
        Folder for report.json, run.json, report.html and plots.
    train_days
        Days at the beginning of the log that every model learns first (default: half of them).
    sync
        How often models take over what was learnt, separated by commas: never, daily, hourly, 15min, minute, batch
        (every micro-batch), or another part of a day such as 5min or 6h.
    cut
        At whose times micro-batches are cut (default: those of --sync). '--cut daily' leaves them whole.
    retrain
        Also a model that is trained anew on all data before each day. Its cost grows with the square of the days.
    features
        day-old: compare live window features with those that a daily job would have made. live: only live ones.
    slices
        Columns by whose values figures are given too, separated by commas; hour and weekday too.
    seeds
        Models of each kind; figures are means over them.
    seed
        The first seed. The same seed gives the same report, bit for bit.
    model
        A registered model, module:Class for one of your own, or default.
    inputs
        own: as the schema says. raw, scaled: as in 'millrace experiment', to compare with it.
    draws
        Draws of users for the intervals.
    skip_bad
        Leave out rows that are wrong, counted by what is wrong with them, instead of ending with all faults.
    """
    from commands.freshness.run import freshness as run

    def listed(text: str | None) -> list[str]:
        return [part.strip() for part in (text or "").split(",") if part.strip()]

    run(
        log[0] if len(log) == 1 else log,
        schema,
        out,
        train_days=train_days,
        sync=listed(sync),
        cut=None if cut is None else listed(cut),
        retrain=retrain,
        features=features == "day-old",
        slices=listed(slices),
        seeds=seeds,
        seed=seed,
        model=model,
        inputs=inputs,
        draws=draws,
        skip_bad=skip_bad,
    )


def delays(
    log: list[Path],
    *,
    schema: Path,
    out: Path,
    windows: str = "10s,1min,5min,15min,1h,1d",
    policies: str | None = None,
    segments: str | None = None,
    model: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> None:
    """Say how late a log's labels come, and what each attribution window and label policy would cost or gain.

    Parameters
    ----------
    log
        Exposure log with the times of its clicks; several are one log.
    schema
        TOML file that says which columns mean what, with action_times under [log].
    out
        Folder for report.json, run.json, report.html and plots.
    windows
        Attribution windows to try, with commas. Labels of the longest are the final ones.
    policies
        Label policies to try, with commas (default: all). The present setting and immediate labels always run.
    segments
        Columns by whose values completeness is told too, with commas.
    model
        Model to train (default: the learner's).
    seed
        Seed of the model. The same seed gives the same report, bit for bit.
    skip_bad
        Leave rows out that cannot be used, and count them.
    """
    from commands.delays.run import delays as run
    from millrace.reports.spans import span_ms

    run(
        _one_or_more(log),
        schema,
        out,
        windows=[span_ms(text) for text in windows.split(",")],
        policies=[name.strip() for name in policies.split(",")] if policies else (),
        segments=[name.strip() for name in segments.split(",")] if segments else (),
        spec={"model": model} if model else {},
        settings=load_settings({}),
        seed=seed,
        skip_bad=skip_bad,
    )


def verify(
    store: str | None = None, *, kafka: str | None = None, parity: Path | None = None, out: Path | None = None
) -> None:
    """Prove that each model snapshot in STORE plus the deltas after it equals the next snapshot, bit for bit.

    Parameters
    ----------
    store
        A model store: the folder or object store 'models'.
    kafka
        Broker whose topic model.deltas has the deltas (default: MILLRACE_KAFKA; none: those in the store alone).
    parity
        Instead: compare the features that replay makes of the archive in this data folder with those that the loop
        logged. It needs an archive with features: 'millrace demo --archive', or MILLRACE_ARCHIVE_FEATURES=true.
    out
        With --parity: folder for its report.
    """
    if parity is not None:
        if store is not None or kafka is not None:
            raise SettingError("--parity with a model store or --kafka", "verify one thing at a time")
        from commands.proofs.parity import verify_parity

        verify_parity(parity, load_settings(), out)
        return
    if store is None or out is not None:
        raise SettingError("nothing to verify is named", "name a model store, or a data folder with --parity")
    from millrace.versions.modelstore import ModelStore
    from millrace.versions.proof import prove

    if "://" not in store and not Path(store).is_dir():
        raise LogError(f"'{store}' is no folder", "name a model store: the folder 'models' in the data folder")
    settings = load_settings({"kafka": kafka})
    bodies = {}
    if settings.kafka:
        from millrace.processes.deltas import read_deltas

        bodies = read_deltas(settings)
    models = ModelStore(store, writes=False)
    if models.latest() is None:
        raise LogError(f"'{store}' has no whole snapshot", "name a model store: the folder 'models' in the store")
    found = prove(models, bodies)
    for proof in found.proofs:
        way = f"snapshot {proof.base.number} + {proof.deltas} deltas = snapshot {proof.target.number}"
        print(f"{way}: {proof.rows} rows, bit for bit")
    for gap in found.unproved:
        lost = f"{len(gap.missing)} deltas, {gap.missing[0]} to {gap.missing[-1]}, " if gap.missing else ""
        print(f"snapshot {gap.base.number} to snapshot {gap.target.number} cannot be proved: {lost}{gap.why}")
    if found.unproved and not found.proofs:
        raise SnapshotError(
            f"nothing in '{store}' could be proved for want of deltas", "name the broker that has them with --kafka"
        )
    if not found.proofs:
        print(f"nothing to prove in {store}: fewer than two snapshots of one chain")


def _into(
    log: Path | list[Path],
    schema: Path,
    into: Path,
    *,
    seed: int,
    model: str | None,
    label_policy: str | None,
    people: bool,
    **reading: Any,
) -> None:
    """Leaves in a folder what a live loop goes on from; ``reading`` is for the reader of logs."""
    from commands.history.command import replay_into

    if label_policy == "immediate":
        raise SettingError("--label-policy immediate with --into", "name one that a live loop can have")
    overrides = {"data": str(into), "schema": str(schema.absolute()), "model": model, "label_policy": label_policy}
    settings = load_settings(overrides | ({"seed": seed} if seed else {}))
    replay_into(log, settings, people=people, **reading)


def _audit(
    log: list[Path],
    schema: Path,
    into: Path | None,
    out: Path | None,
    *,
    seed: int,
    model: str | None,
    label_policy: str | None,
    skip_bad: bool,
) -> None:
    from commands.proofs.auditrun import audit_log
    from commands.replay.known import LabelSettings

    if into is not None:
        raise SettingError(f"--audit with --into '{into}'", "leave one of them out")
    at_once = label_policy == "immediate"
    settings = load_settings({"label_policy": None if at_once else label_policy})
    labels = LabelSettings.of(settings)
    how = replace(labels, policy=None) if at_once else labels
    spec = settings.spec() | ({"model": model} if model else {})
    audit_log(_one_or_more(log), schema, out, spec=spec, seed=seed, labels=how, skip_bad=skip_bad)


def _one_or_more(log: list[Path]) -> Path | list[Path]:
    """A log of one path is that path, in reports as in titles."""
    return log[0] if len(log) == 1 else log


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
