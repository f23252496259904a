# shell
"""``millrace model``: the versions of a loop's model, and commands on them. Docs: docs/concepts/trust.md."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cyclopts
import msgspec

from millrace.basics.durations import utc
from millrace.basics.errors import LogError, SettingError, SnapshotError
from millrace.commands.cli.cliadmin import Admin, Yes, refusal_of, send_command, sure
from millrace.commands.cli.cliflags import Data, Json, Kafka, Learner, emit, report, settings_of, with_broker
from millrace.commands.up.data_folder import of_loop
from millrace.evidence.learners import NEWEST

app = cyclopts.App(name="model", help="Versions of the model: list, history, promote, hold, roll back, verify, repair.")


@app.command(name="list")
def list_versions(*, data: Data = None, learner: Learner = None, json: Json = False) -> None:
    """Print the versions that are kept, newest first."""
    from millrace.versions.modelstore import ModelStore

    notes = list(ModelStore(of_loop(settings_of(data, learner=learner)).place("models"), writes=False).snapshots())
    found = [{"version": note.version, "event_ms": note.event_ms, "trained": note.trained} for note in notes]
    lines = (
        f"{n.version}  of {utc(n.event_ms)}  {n.trained:,} samples learnt"
        if n.trained
        else f"{n.version}  nothing learnt yet"
        for n in notes
    )
    emit(found, lines, json)


@app.command
def promote(
    which: str = NEWEST,
    *,
    data: Data = None,
    learner: Learner = None,
    admin: Admin = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Serve a model that is not served yet, whatever the checks say. Ends a hold.

    Args:
        which: newest: what the gate holds back. repair: the one that 'millrace model repair' has made. Or the name of
            another learner: its newest model.
    """
    if which == NEWEST:
        if refusal := refusal_of(data, admin, learner):
            sure(f"the gate refuses ({refusal}), and what it refused would be learnt and served", yes)
        send_command(data, admin, json, learner, "/model/promote")
    else:
        send_command(data, admin, json, learner, "/model/adopt", **{"from": which})


@app.command
def hold(*, data: Data = None, learner: Learner = None, admin: Admin = None, json: Json = False) -> None:
    """Serve no newer version until 'millrace model promote'."""
    send_command(data, admin, json, learner, "/model/hold")


@app.command
def rollback(
    version: int | None = None,
    *,
    data: Data = None,
    learner: Learner = None,
    admin: Admin = None,
    json: Json = False,
) -> None:
    """Go back to an older version. The learner continues from it; what it has learnt since is dropped.

    Args:
        version: The version to go back to, of 'millrace model list' (default: the promoted one before the newest).
    """
    send_command(data, admin, json, learner, "/model/rollback", version=version)


@app.command
def compare(learner: str, *, last: int = 5, data: Data = None, json: Json = False) -> None:
    """Print how a learner compares with the first one on pages that neither has learnt, newest last.

    Args:
        learner: Its name, of the setting learners.
        last: How many comparisons to print.
    """
    settings = settings_of(data, learner=learner)
    path = Path(settings.data, settings.own("learner"), "compared.jsonl")
    try:
        found = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()[-last:]]
    except (OSError, msgspec.MsgspecError) as error:
        raise LogError(
            f"there are no comparisons in '{path}' ({error})", "name the folder with --data, or run this learner"
        ) from None
    emit(found, map(_compared, found), json)


def _compared(one: dict[str, Any]) -> str:
    """A comparison as a line.

    >>> _compared({"event_ms": 1_772_452_800_000, "rows": 353, "auc": 0.7796, "first_auc": 0.7767, "auc_gap": 0.0029,
    ...     "auc_half": 0.0524})
    '2026-03-02 12:00  353 rows  AUC .7796, first .7767: +.0029 ± .0524'
    """
    auc, first, gap, half = (f"{one[name]:.4f}" for name in ("auc", "first_auc", "auc_gap", "auc_half"))
    text = f"{utc(one['event_ms'])}  {one['rows']:,} rows  AUC {auc}, first {first}: {'' if gap[0] == '-' else '+'}"
    return f"{text}{gap} ± {half}".replace("0.", ".")


@app.command
def history(
    *, last: int = 40, data: Data = None, learner: Learner = None, kafka: Kafka = None, json: Json = False
) -> None:
    """Print what the learner decided, oldest first: what was learnt, refused, released, and by whom.

    Args:
        last: How many lines to print.
        kafka: Broker whose topic model.deltas has the newest decisions (default: that of the loop, where one runs).
    """
    from learner.promotion.decisionhistory import decided_in, history
    from millrace.processes.deltas import read_decisions
    from millrace.versions.modelstore import ModelStore

    settings = of_loop(settings_of(data, learner=learner, kafka=kafka))
    parts = decided_in(ModelStore(settings.place("models"), writes=False))
    with contextlib.suppress(SettingError):  # no broker: what lies in the store is printed
        parts += read_decisions(with_broker(settings))
    found = history(parts)[-last:]
    emit(found, map(_decided, found), json)


def _decided(one: dict[str, Any]) -> str:
    """A decision as a line.

    >>> _decided({"n": 7, "ms": 1_772_452_800_000, "what": "held", "why": "", "by": "person"})
    '2026-03-02 12:00       7  held, by person'
    """
    rows = f" {one['rows']:,} rows" if "rows" in one else ""
    why = f": {one['why']}" if one["why"] else ""
    by = f", by {one['by']}" if one["by"] else ""
    time = utc(one["ms"]) if one["ms"] else "before any event"  # it began with nothing
    return f"{time:<16}  {one['n']:>6}  {one['what']}{rows}{why}{by}"


@app.command
def verify(
    store: str | None = None,
    *,
    data: Data = None,
    learner: Learner = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Prove that each model snapshot and the deltas after it equal the next snapshot, bit for bit.

    Args:
        store: A model store: the folder or object store 'models' (default: that of the loop).
        kafka: Broker whose topic model.deltas has the deltas (default: the setting, else that of the loop, where one
            runs).
    """
    from millrace.versions.modelstore import ModelStore
    from millrace.versions.proof import prove

    settings = settings_of(data, learner=learner, kafka=kafka)
    if store is None:
        store = of_loop(settings).place("models")
        with contextlib.suppress(SettingError):  # no broker: what lies in the store is proved
            settings = with_broker(settings)
    if "://" not in store and not Path(store).is_dir():
        raise LogError(f"'{store}' is no folder", "name a model store: the folder 'models' in the data folder")
    bodies = {}
    if settings.kafka:
        from millrace.processes.deltas import read_deltas

        bodies = read_deltas(settings)
    models = ModelStore(store, writes=False)
    if models.latest() is None:
        raise LogError(f"'{store}' has no whole snapshot", "name a model store: the folder 'models' in the store")
    found = prove(models, bodies)

    def lines() -> Iterator[str]:
        for proof in found.proofs:
            way = f"snapshot {proof.base.number} + {proof.deltas} deltas = snapshot {proof.target.number}"
            yield f"{way}: {proof.rows} rows, bit for bit"
        for gap in found.unproved:
            lost = f"{len(gap.missing)} deltas, {gap.missing[0]} to {gap.missing[-1]}, " if gap.missing else ""
            yield f"snapshot {gap.base.number} to snapshot {gap.target.number} cannot be proved: {lost}{gap.why}"
        if not found.proofs and not found.unproved:
            yield f"nothing to prove in {store}: fewer than two snapshots of one chain"

    emit(found, lines(), json)
    if found.unproved and not found.proofs:
        raise SnapshotError(
            f"nothing in '{store}' could be proved for want of deltas", "name the broker that has them with --kafka"
        )


@app.command
def repair(
    *,
    since: str,
    without_users: str | None = None,
    without_items: str | None = None,
    without_arm: str | None = None,
    without_interval: str | None = None,
    of: int | None = None,
    dry_run: bool = False,
    data: Data = None,
    learner: Learner = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Learn the samples since a time again, without what is named; 'millrace model promote repair' adopts the result.

    Args:
        since: Begin at the newest version of this time or before: 2026-03-01T14:30 (event time, UTC), or 2h before the
            newest.
        without_users: Users by id, with commas, or a file with one a line. #HASH names one as 'millrace model bisect'
            does.
        without_items: Items, likewise.
        without_arm: Arms of pages, with commas: model, control, logged.
        without_interval: Exposures of this time, FROM..TO, each as --since.
        of: Version to repair (default: the newest), as one that a rollback left.
        dry_run: Say what would be left out, and write nothing.
    """
    from millrace.commands.repair.repairrun import run_repair
    from millrace.commands.repair.without import Without, arms_of, ids_of

    without = Without(
        users=ids_of(_listed(without_users)), items=ids_of(_listed(without_items)), arms=arms_of(without_arm or "")
    )
    if without_interval is None and not without:
        raise SettingError("nothing is named that is to be left out", "give --without-users, -items, -arm or -interval")
    settings = with_broker(of_loop(settings_of(data, learner=learner, kafka=kafka)))
    report(json, run_repair, settings, since, without, without_interval, dry_run, of)


@app.command
def bisect(
    *,
    since: str,
    figure: Literal["heldout_auc", "log_loss", "calibration", "auc"] = "heldout_auc",
    of: int | None = None,
    data: Data = None,
    learner: Learner = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Find the stretch of samples that moved a figure, and what stands out in it. Writes nothing.

    Args:
        since: Begin at the newest kept version of this time or before, as for 'millrace model repair'.
        figure: heldout_auc, log_loss, calibration: on held-out pages of before. auc: on the rows learnt last before it.
        of: Version to look back from (default: the newest), as one that a rollback left.
    """
    from millrace.commands.repair.repairrun import run_bisect

    settings = with_broker(of_loop(settings_of(data, learner=learner, kafka=kafka)))
    report(json, run_bisect, settings, since, figure, of)


def _listed(text: str | None) -> list[str]:
    """The parts of a list with commas, or the lines of the file of this name."""
    if text is None:
        return []
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"file '{text}' cannot be read ({error})", "name one with an id a line") from None
