# shell
"""``millrace dev experiment recall``: what recall brings, in closed loop, with the same luck for each way of recalling.

::

    world (a seed) ──► seven days of the previous recommender ──► one model that learnt them ──┐ start "history"
          │                                                        untrained model, no counts ─┤ start "nothing"
          └──► the next day's visits ──► each arm lives through it by itself ◄─────────────────┘

Arms (:mod:`experiments.recall.recallfigures`): ``new`` and ``perfect`` differ by how candidates are found and by
nothing else; the same model ranks them and learns from what it showed. ``perfect`` has the items that the shopper truly
likes best, so it says how much recall can bring at all beside this ranker. ``popular`` shows the most clicked items,
``previous`` what the shop's previous recommender shows, both without a model. Each page of the day is the
recommender's: no control group. From a start with nothing there are the catalogue and the shoppers' profiles, no count
and an untrained model.

A run is one arm on one world from one start, in a process with one thread (:mod:`experiments.recall.recallloop`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from msgspec import structs

from experiments.recall.recallfigures import ARMS, NEW, PERFECT, POPULAR, PREVIOUS, Tally, make_report
from experiments.recall.recallhistory import learn_days
from experiments.recall.recallloop import STEP_MS, DayLoop, Pupil, Recall, new_recall, perfect_recall, start_shop
from experiments.recall.recallshop import RecallShop, params_of
from experiments.runs import Call, Group, Row, ended_runs, run_groups, runs_file
from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.basics.errors import SettingError
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.reports import surroundings, write_all
from millrace.versions.image import Image, below
from simulator.daylog import day_table, parse_day
from simulator.params import DEFAULT
from simulator.world import World

STARTS = ("history", "nothing")
RECALLS: Mapping[str, Callable[[RecallShop], Recall]] = {NEW: new_recall, PERFECT: perfect_recall}
"""The arms with a model."""
SEEDS, USERS, HISTORY_DAYS = 5, 1500, 7
FIRST_DAY = parse_day("2026-03-02")
"""The history's first day, a Monday."""
LARGE = 20_000
"""Items beyond which state is brought up to date less often."""
WIDTH = 32
"""Of the retrieval head, as the role `learn` has it."""


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


def _prepare(folder: Path, seed: int, scale: Scale, spec: Mapping[str, Any]) -> None:
    """Writes the model that learnt a world's history."""
    world = scale.world(seed)
    tables = [day_table(world, FIRST_DAY + k) for k in range(scale.days)]
    with threads(1):
        model = learn_days(OnlineModel(shop_schema(), _spec(spec, True), seed), tables)
    image, training = model.snapshot()
    named: dict[str, Any] = {f"image:{name}": array for name, array in image.tensors().items()}
    np.savez(_model_path(folder), **named | {f"training:{name}": array for name, array in training.items()})


def _model_path(folder: Path) -> Path:
    return folder / "model.npz"


def _run(folder: Path, job: Job, spec: Mapping[str, Any]) -> list[Row]:
    """The figures of one run."""
    clock = time.perf_counter()
    scale, world = job.scale, job.scale.world(job.seed)
    with threads(1):
        found = _previous(world, scale) if job.arm == PREVIOUS else _arm(folder, job, world, spec)
    return [_facts(job) | {"seconds": round(time.perf_counter() - clock, 1)} | found]


def _arm(folder: Path, job: Job, world: World, spec: Mapping[str, Any]) -> dict[str, Any]:
    scale, history = job.scale, job.start == "history"
    settings = structs.replace(Settings(), candidates=scale.candidates)
    days = [day_table(world, FIRST_DAY + k) for k in range(scale.days)] if history else []
    shop = start_shop(world, settings, scale.number, days)
    if job.arm == POPULAR:
        return DayLoop(world, shop, scale.number, settings, None, None, scale.step_ms).play()
    model = OnlineModel(shop_schema(), _spec(spec, job.arm == NEW), job.seed)
    if history:
        with np.load(_model_path(folder)) as file:
            arrays = dict(file)
        model.resume(Image.of_tensors(below("image:", arrays)), below("training:", arrays))
    pupil = Pupil(model, BATCH_ROWS)
    pupil.renew(shop)
    return DayLoop(world, shop, scale.number, settings, RECALLS[job.arm](shop), pupil, scale.step_ms).play()


def _previous(world: World, scale: Scale) -> dict[str, Any]:
    """The previous recommender's day, from its log."""
    table = day_table(world, scale.number)
    requests = table["request_id"].to_numpy(zero_copy_only=False)
    tally = Tally(world.visits(scale.number).n)
    first = np.flatnonzero(np.r_[True, requests[1:] != requests[:-1]])
    user, chance = table["user_id"].to_numpy() - 1, table["p_true"].to_numpy().astype(np.float64)
    clicked, bought = table["click"].to_numpy() == 1, table["purchase_ms"].is_valid().to_numpy()
    for view, (a, b) in enumerate(zip(first.tolist(), [*first[1:].tolist(), len(requests)], strict=True)):
        tally.page(view, int(user[a]), clicked[a:b], chance[a:b], int(bought[a:b].sum()), [PREVIOUS] * (b - a))
    return tally.figures()


# -- the experiment ------------------------------------------------------------------------------------------


def experiment_recall(
    out: Path,
    *,
    seeds: int = SEEDS,
    seed: int = 0,
    users: int = USERS,
    items: int = 0,
    days: int = HISTORY_DAYS,
    candidates: int = Settings().candidates,
    spec: Annotated[Mapping[str, Any] | None, Parameter(parse=False)] = None,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare recall with a perfect one and with pages of the most clicked items, in closed loop, with the same luck.

    Args:
        out: folder for the report.
        seeds: how many worlds, each with a model of its own.
        seed: of the first world.
        users: who come on an average day.
        items: about how many are on sale at a time; 0: the default world's, some 6,000.
        days: of history.
        candidates: of each page.
        spec: overrides of the model's settings.
        resume: keep the runs that ``runs.jsonl`` has. Whoever asks for it knows that they are of this code.
        workers: processes (default: one for each core); 0 runs in this one.

    Raises:
        SettingError: too few of something.
    """
    if min(seeds, users, days) < 1 or min(seed, items) < 0:
        what = f"{seeds} worlds from seed {seed}, {users} users, {items} items, {days} days of history"
        raise SettingError(what, "ask for at least one world, user and day, and for nothing below 0")
    scale, own = Scale(users, items, days, candidates), dict(spec or {})
    worlds = range(seed, seed + seeds)
    jobs = [Job(world, start, arm, scale) for world in worlds for start in STARTS for arm in ARMS]
    started = time.perf_counter()
    done = ended_runs(out, _key) if resume else {}
    todo = [job for job in jobs if _key(_facts(job)) not in done]
    groups = [_group(own_jobs, own) for w in worlds if (own_jobs := [job for job in todo if job.seed == w])]
    with runs_file(out, resume) as keep:
        done |= {_key(row): row for row in run_groups(groups, keep, workers, progress)[0]}
    runs = [done[_key(_facts(job))] for job in jobs]
    made = make_report(runs)
    about = {
        "worlds": seeds,
        "users_a_day": users,
        "candidates_a_page": candidates,
        "history_days": days,
        "seconds_between_updates": scale.step_ms // 1000,
    }
    report = {"verdict": " ".join(made["verdicts"])} | about | made
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started),
        "seconds_of_runs": round(sum(r["seconds"] for r in runs)),
        "runs": len(runs),
        "seeds": list(worlds),
        "recall": Settings().recall,
        "spec": OnlineModel(shop_schema(), _spec(own, True), 0).spec,
    } | surroundings()
    write_all(out, report, run, [], "Recall in closed loop")
    return report


def _group(jobs: Sequence[Job], spec: Mapping[str, Any]) -> Group:
    """A world's runs; its history is learnt first where one of them begins with it."""

    def runs(folder: Path, _: Any) -> list[Call]:
        return [(_run, (folder, job, spec)) for job in jobs]

    def prepare(folder: Path) -> Call:
        return _prepare, (folder, jobs[0].seed, jobs[0].scale, spec)

    learns = any(job.start == "history" and job.arm in RECALLS for job in jobs)
    return Group(runs, prepare if learns else None)


def _facts(job: Job) -> dict[str, Any]:
    return {"seed": job.seed, "start": job.start, "arm": job.arm} | asdict(job.scale)


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("seed", "start", "arm", "users", "items", "days", "candidates"))
