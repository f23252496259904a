# shell
"""``millrace experiment recall``: the new recall against the mixture before it, in closed loop and with the same luck.

::

    world (a seed) ──► seven days of the previous recommender ──► one model that learnt them ──┐ start "history"
          │                                                        untrained model, no counts ─┤ start "nothing"
          └──► the next day's visits ──► each arm lives through it by itself ◄─────────────────┘

Arms (:mod:`experiments.recallfigures`): ``new``, ``before`` and ``perfect`` differ by how candidates are found and
by nothing else; the same model ranks them and learns from what it showed. ``perfect`` has the items that the shopper
truly likes best, so it says how much recall can bring at all beside this ranker. ``undamped`` is ``new`` without
putting last what the shopper bought. The world's shoppers do not tire of it, so doing so costs clicks here, whatever it
is worth in a shop. ``popular`` shows the most clicked items, ``previous`` what the shop's previous recommender shows,
both without a model. Each page of the day is the recommender's: no control group. From a start with nothing there are
the catalogue and the shoppers' profiles, no count and an untrained model.

A run is one arm on one world from one start, in a process with one thread (:mod:`experiments.recallloop`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commands.offline.workers import ended, pool
from experiments.recallfigures import ARMS, BEFORE, NEW, PERFECT, POPULAR, PREVIOUS, UNDAMPED, Tally, make_report
from experiments.recallhistory import learn_days
from experiments.recallloop import (
    STEP_MS,
    DayLoop,
    Pupil,
    Recall,
    new_recall,
    perfect_recall,
    recall_before,
    start_shop,
)
from experiments.recallshop import RecallShop, params_of
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.reports import hours_plot, make_folder, surroundings, write_all
from millrace.versions.image import Image, below
from simulator.daylog import day_table, parse_day
from simulator.params import DEFAULT, HOUR_MS
from simulator.world import World, start_of

STARTS = ("history", "nothing")
RECALLS: Mapping[str, Callable[[RecallShop], Recall]] = {
    NEW: new_recall,
    BEFORE: recall_before,
    PERFECT: perfect_recall,
    UNDAMPED: new_recall,
}
"""The arms with a model."""
SEEDS, USERS, HISTORY_DAYS = 5, 1500, 7
FIRST_DAY = parse_day("2026-03-02")
"""The history's first day, a Monday."""
LARGE = 20_000
"""Items beyond which state is brought up to date less often."""
WIDTH = 32
"""Of the retrieval head, as the role `learn` has it."""

RUN_SECONDS = {NEW: 110, BEFORE: 95, PERFECT: 95, POPULAR: 25, PREVIOUS: 2, UNDAMPED: 110, "prepare": 90}
"""What a run with :data:`USERS` takes of one core, in seconds."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is; runs of another scale are other runs."""

    users: int = USERS
    items: int = 0  # on sale at a time, about; 0: the default world's
    days: int = HISTORY_DAYS  # of history
    candidates: int = Settings().candidates

    def world(self, seed: int) -> World:
        return World(seed, self.users, params_of(self.items) if self.items else DEFAULT)

    @property
    def step_ms(self) -> int:
        """How often state is brought up to date. Each step sorts the catalogue anew, which a large one makes long."""
        return STEP_MS if self.items <= LARGE else 5 * STEP_MS

    @property
    def number(self) -> int:
        """The day that is lived through."""
        return FIRST_DAY + self.days


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    seed: int
    start: str
    arm: str
    scale: Scale


# -- in a worker ---------------------------------------------------------------------------------------------


def _spec(spec: Mapping[str, Any], head: bool) -> dict[str, Any]:
    return {"retrieval_width": WIDTH if head else 0, **spec}


def _prepare(folder: Path, seed: int, scale: Scale, spec: Mapping[str, Any]) -> float:
    """Writes the model that learnt a world's history; gives the seconds that it took."""
    clock = time.perf_counter()
    world = scale.world(seed)
    tables = [day_table(world, FIRST_DAY + k) for k in range(scale.days)]
    with threads(1):
        model = learn_days(OnlineModel(shop_schema(), _spec(spec, True), seed), tables)
    _write_model(_model_path(folder, seed), model)
    return time.perf_counter() - clock


def _model_path(folder: Path, seed: int) -> Path:
    return folder / f"model-{seed}.npz"


def _write_model(path: Path, model: OnlineModel) -> None:
    image, training = model.snapshot()
    named: dict[str, Any] = {f"image:{name}": array for name, array in image.tensors().items()}
    np.savez(path, **named | {f"training:{name}": array for name, array in training.items()})


def _resume_model(path: Path, model: OnlineModel) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    model.resume(Image.of_tensors(below("image:", arrays)), below("training:", arrays))


def _run(folder: Path, job: Job, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one run."""
    clock = time.perf_counter()
    scale, world = job.scale, job.scale.world(job.seed)
    with threads(1):
        found = _previous(world, scale) if job.arm == PREVIOUS else _arm(folder, job, world, spec)
    return _key_facts(job) | {"seconds": round(time.perf_counter() - clock, 1)} | found


def _arm(folder: Path, job: Job, world: World, spec: Mapping[str, Any]) -> dict[str, Any]:
    scale, history = job.scale, job.start == "history"
    settings = structs.replace(Settings(), candidates=scale.candidates)
    if job.arm == UNDAMPED:
        settings = structs.replace(settings, bought_days=0.0)
    days = [day_table(world, FIRST_DAY + k) for k in range(scale.days)] if history else []
    shop = start_shop(world, settings, scale.number, days)
    if job.arm not in RECALLS:
        return DayLoop(world, shop, scale.number, settings, None, None, scale.step_ms).play()
    model = OnlineModel(shop_schema(), _spec(spec, job.arm in (NEW, UNDAMPED)), job.seed)
    if history:
        _resume_model(_model_path(folder, job.seed), model)
    pupil = Pupil(model, settings.batch_rows)
    pupil.renew(shop)
    return DayLoop(world, shop, scale.number, settings, RECALLS[job.arm](shop), pupil, scale.step_ms).play()


def _previous(world: World, scale: Scale) -> dict[str, Any]:
    """The previous recommender's day, from its log."""
    table, start_ms = day_table(world, scale.number), start_of(scale.number)
    views, visits = world.visits(scale.number), table["request_id"].to_numpy(zero_copy_only=False)
    tally = Tally(views.n, int(world.day(scale.number).alive(start_ms).sum()))
    first = np.flatnonzero(np.r_[True, visits[1:] != visits[:-1]])
    columns = {name: table[name].to_numpy() for name in ("ts_ms", "user_id", "item_id", "p_true")}
    clicked = table["click"].to_numpy() == 1
    bought = table["purchase_ms"].is_valid().to_numpy()
    for view, (a, b) in enumerate(zip(first.tolist(), [*first[1:].tolist(), len(visits)], strict=True)):
        tally.page(
            view,
            int(columns["ts_ms"][a] - start_ms) // HOUR_MS,
            int(columns["user_id"][a]) - 1,
            columns["item_id"][a:b].tolist(),
            clicked[a:b],
            columns["p_true"][a:b].astype(np.float64),
            int(bought[a:b].sum()),
            [PREVIOUS] * (b - a),
        )
    return tally.figures()


# -- the experiment ------------------------------------------------------------------------------------------


def experiment_recall(
    out: Path,
    *,
    seeds: Sequence[int] = tuple(range(SEEDS)),
    users: int = USERS,
    items: int = 0,
    days: int = HISTORY_DAYS,
    candidates: int | None = None,
    arms: Sequence[str] = ARMS,
    spec: Mapping[str, Any] | None = None,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compares ways of recall in closed loop; writes report.json, run.json, runs.jsonl, report.html and a plot to
    ``out``.

    Args:
        seeds: of the worlds, and of their models.
        users: who come on an average day.
        items: about how many are on sale at a time; 0: the default world's, some 6,000.
        days: of history.
        candidates: of each page (default: the setting's).
        arms: which to run (default: all); ``before`` is among them, since the others are held against it.
        spec: overrides of the model's settings.
        resume: keep the runs that ``runs.jsonl`` has. Whoever asks for it knows that they are of this code.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: no seed, one that stands twice, an unknown arm, or too few of something.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise SettingError(f"seeds {', '.join(map(str, seeds)) or '(none)'}", "name some, each once")
    if not set(arms) <= set(ARMS) or BEFORE not in arms:
        raise SettingError(
            f"arms {', '.join(arms) or '(none)'}", f"choose of {', '.join(ARMS)}; {BEFORE} has to be one"
        )
    if users < 1 or items < 0 or days < 1:
        raise SettingError(f"{users} users, {items} items, {days} days of history", "ask for at least one of each")
    scale = Scale(users, items, days, candidates or Settings().candidates)
    jobs = [Job(seed, start, arm, scale) for seed in seeds for start in STARTS for arm in ARMS if arm in arms]
    started = time.perf_counter()
    runs = _all(jobs, dict(spec or {}), out, resume, workers, progress)
    made = make_report(runs)
    report = {"verdict": " ".join(made["verdicts"])} | _about(scale, seeds) | made
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started),
        "seconds_of_runs": round(sum(r["seconds"] for r in runs)),
        "runs": len(runs),
        "seeds": list(seeds),
        "recall": Settings().recall,
        "spec": OnlineModel(shop_schema(), _spec(spec or {}, True), 0).spec,
    } | surroundings()
    write_all(out, report, run, [_plot(report)], "Recall in closed loop")
    return report


def _all(
    jobs: Sequence[Job], spec: Mapping[str, Any], out: Path, resume: bool, workers: int | None, progress: bool
) -> list[dict[str, Any]]:
    """All runs, in the jobs' order. Each is written to ``runs.jsonl`` as soon as it ends; a world's history is learnt
    while runs of others go on, and its model is removed after the last run that begins with it."""
    make_folder(out, "runs.jsonl")
    done = ended(out / "runs.jsonl", _key) if resume else {}
    todo = [job for job in jobs if _key(_key_facts(job)) not in done]
    cores = max(1, (os.cpu_count() or 1) if workers is None else workers)
    learnt = [seed for seed in dict.fromkeys(j.seed for j in todo) if _needs(todo, seed)]
    if progress:
        _foretell(todo, len(learnt), cores)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="millrace-recall-") as folder,
        pool(workers) as processes,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
        (out / "runs.jsonl").open("a" if resume else "w", encoding="utf-8") as lines,
    ):
        task = bar.add_task("runs", total=len(jobs) + len(learnt), completed=len(jobs) - len(todo))
        place = Path(folder)
        ready = [job for job in todo if not _of_history(job)]
        later = {seed: [job for job in todo if job.seed == seed and _of_history(job)] for seed in learnt}
        busy: dict[Future[Any], Job | int] = {}
        left = {seed: len(own) for seed, own in later.items()}
        while ready or learnt or busy:
            # Histories first, but no more models on disk at once than there are processes.
            while (ready or learnt) and len(busy) < cores:
                if learnt and (not ready or sum(n > 0 for s, n in left.items() if s not in learnt) < cores):
                    seed = learnt.pop(0)
                    busy[processes.submit(_prepare, place, seed, todo[0].scale, spec)] = seed
                else:
                    job = ready.pop(0)
                    busy[processes.submit(_run, place, job, spec)] = job
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                what, found = busy.pop(future), future.result()
                if isinstance(what, int):
                    ready = later[what] + ready
                else:
                    done[_key(found)] = found
                    lines.write(json.dumps(found) + "\n")
                    lines.flush()
                    if _of_history(what):
                        left[what.seed] -= 1
                        if not left[what.seed]:
                            _model_path(place, what.seed).unlink(missing_ok=True)
                bar.advance(task)
    return [done[_key(_key_facts(job))] for job in jobs]


def _of_history(job: Job) -> bool:
    """Whether a run begins with a model that has to be made."""
    return job.start == "history" and job.arm in RECALLS


def _needs(jobs: Sequence[Job], seed: int) -> bool:
    return any(job.seed == seed and _of_history(job) for job in jobs)


def _foretell(todo: Sequence[Job], histories: int, cores: int) -> None:
    if not todo:
        return
    seconds = histories * RUN_SECONDS["prepare"] + sum(RUN_SECONDS[job.arm] for job in todo)
    minutes = seconds * todo[0].scale.users / USERS / cores / 60
    what = f"{len(todo)} runs of a day of {todo[0].scale.users:,} users"
    print(f"{what}, about {minutes:.0f} minutes with {cores} processes", file=sys.stderr)


def _key_facts(job: Job) -> dict[str, Any]:
    return {"seed": job.seed, "start": job.start, "arm": job.arm} | asdict(job.scale)


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("seed", "start", "arm", "users", "items", "days", "candidates"))


def _about(scale: Scale, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "worlds": len(seeds),
        "users_a_day": scale.users,
        "candidates_a_page": scale.candidates,
        "history_days": scale.days,
        "seconds_between_updates": scale.step_ms // 1000,
    }


def _plot(report: Mapping[str, Any]) -> Any:
    return hours_plot(
        "click_rate",
        "Click rate by hour of the day, all worlds together, by arm; a panel for each start.",
        report["curves"],
        "click rate",
    )
