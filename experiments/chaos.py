# shell
"""``millrace dev experiment chaos``: demos whose processes are killed at random moments; at the end the books balance.

::

    millrace demo (gate on) ──► shoppers ───────────────────────────────► draining, audit ──► report
        at moments drawn from the seed:  SIGKILL of a role, a worker or template of the scorer, the broker or Redis
                                         FLUSHALL of Redis                 beside it: loops that keep cores busy

With ``MILLRACE_TEST_KAFKA_HOME`` (a folder with Kafka's ``libs/``) and a Java runtime the broker is Apache Kafka, which
is started again here. Without, it is the embedded one, which the demo starts again, as it does Redis. Nobody sends
poison, so each refusal of the gate is a false one. Without kills this is the demo as it is, on a busy machine.

Rows, one a demo, are written to ``runs.jsonl`` as they are measured; the demo's own report, log and data lie in
``demo-SEED``. Each exposure is positive, negative, pending or in a dead letter. One that is not is listed with why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import redis
from cyclopts import Parameter

from commands.loop.monitor import fetch
from experiments.runs import runs_file
from experiments.taken import Process, below, role_of
from millrace.basics.errors import SettingError
from millrace.processes.spawn import spawn, stop, tail
from millrace.reports import surroundings, write_all
from tests.scenes.apachekafka import ApacheKafka

Row = dict[str, Any]
Say = Callable[[str], None]

ROLES = ("simulate", "stream", "learn", "serve")
VICTIMS = ("stream", "learn", "serve", "worker", "template", "simulate", "broker", "redis")
EMPTIED, END = "emptied", "end"
AFTER_SECONDS = 15.0
"""Kills may also come so long after the end of the traffic: while it drains, and during the audit."""
END_SECONDS = 900.0
"""For a demo to end after its traffic: it ends what hangs, and nothing is measured by it."""
KAFKA_HOME = "MILLRACE_TEST_KAFKA_HOME"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run.

    Args:
        seeds: demos.
        seed: of the first demo: its world, and when what is killed.
        seconds: how long shoppers come, in each demo.
        kills: kills in each demo, of roles, the scorer's worker and template, broker and Redis.
        emptied: how often Redis is emptied in each demo.
        busy: loops that keep cores busy beside it.
    """

    seeds: int = 5
    seed: int = 0
    seconds: float = 200.0
    kills: int = 15
    emptied: int = 2
    busy: int = 0


class Strike(NamedTuple):
    """Something that is done to a demo."""

    second: float  # of its traffic
    what: str  # one of VICTIMS, EMPTIED or END: Ctrl-C, after which the demo drains and makes its report


def strikes(plan: Plan, seed: int) -> list[Strike]:
    """When what is struck. Each victim has its turn before any has its second.

    >>> strikes(Plan(kills=0, emptied=1, seconds=10), 0)
    [Strike(second=3.8, what='emptied'), Strike(second=10, what='end')]
    """
    random = np.random.default_rng([seed, 5])
    emptied = [Strike(round(at, 1), EMPTIED) for at in random.uniform(0, plan.seconds, plan.emptied).tolist()]
    moments = np.sort(random.uniform(0, plan.seconds + AFTER_SECONDS, plan.kills)).round(1).tolist()
    turns = [VICTIMS[i] for _ in range(-(-plan.kills // len(VICTIMS))) for i in random.permutation(len(VICTIMS))]
    kills = [Strike(second, what) for second, what in zip(moments, turns[: plan.kills], strict=True)]
    return sorted([*emptied, *kills, Strike(plan.seconds, END)])


def experiment_chaos(
    out: Path, plan: Plan | None = None, *, say: Annotated[Say, Parameter(parse=False)] = print
) -> dict[str, Any]:
    """Run demos whose processes are killed at random moments, and account for each exposure at the end.

    Args:
        out: folder for the report; the demo's own report, log and data lie in ``demo-SEED``.

    Raises:
        SettingError: the plan is of nothing, or the folder cannot be written to.
        BenchError: Apache Kafka is named, and is not there or does not start.
    """
    plan = plan or Plan()
    if plan.seeds < 1 or plan.seconds <= 0 or min(plan.kills, plan.emptied, plan.busy) < 0:
        raise SettingError(f"'{plan}' is no plan", "give seeds and seconds above 0, and no number below 0")
    started = time.monotonic()
    rows: list[Row] = []
    with runs_file(out) as keep, suppress(KeyboardInterrupt), _busy(plan.busy, out):
        for seed in range(plan.seed, plan.seed + plan.seeds):
            row = _demo(out.absolute() / f"demo-{seed}", plan, seed, say)
            rows.append(row)
            keep(row)
            say(said(row))
    report = make_report(rows)
    run = {"seconds": round(time.monotonic() - started), "plan": asdict(plan), **surroundings()}
    page = {"runs": [{name: row[name] for name in SHOWN} for row in rows]}
    write_all(out, report, run, [], "Chaos", report["verdict"], page)
    return report


@contextmanager
def _busy(loops: int, out: Path) -> Iterator[None]:
    """Keeps cores busy."""
    running = [spawn([sys.executable, "-c", "while True: pass"], None, out / "busy.log") for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            stop(loop)


def _demo(folder: Path, plan: Plan, seed: int, say: Say) -> Row:
    """One demo; its row."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    env["MILLRACE_GATE"] = "on"
    home = os.environ.get(KAFKA_HOME, "")
    with ExitStack() as stack:
        kafka = (
            stack.enter_context(ApacheKafka(Path(home), folder / "kafka")) if home and shutil.which("java") else None
        )
        if kafka is not None:
            env["MILLRACE_KAFKA"] = kafka.address
        flags = ["--data", folder / "data", "--report", folder / "report.json", "--seed", seed, "--page-port", 0]
        flags += () if plan.kills else ("--twin",)
        log = folder / "demo.log"
        demo = spawn([sys.executable, "-m", "commands", "demo", *map(str, flags)], env, log)
        stack.callback(stop, demo)
        done: list[dict[str, Any]] = []
        if _opened(demo, log):
            done = _strike(demo, kafka, strikes(plan, seed), say)
        with suppress(subprocess.TimeoutExpired):
            demo.wait(END_SECONDS)
        status = demo.poll()
    report = folder / "report.json"
    found: Mapping[str, Any] = json.loads(report.read_bytes()) if report.exists() else {}
    broker = "Apache Kafka" if kafka is not None else "embedded"
    return {"seed": seed, "broker": broker, "status": status, "strikes": done} | _of(found, "" if found else tail(log))


def _opened(demo: subprocess.Popen[bytes], log: Path) -> bool:
    """Waits until shoppers come; False: the demo ended before."""
    while demo.poll() is None:
        page = re.search(r"live page: (http\S+)\s", log.read_text(errors="replace"))
        with suppress(OSError, ValueError):
            if page and json.loads(fetch(f"{page[1]}state.json", 5.0))["phase"] == "running":
                return True
        time.sleep(0.1)
    return False


def _strike(
    demo: subprocess.Popen[bytes], kafka: ApacheKafka | None, plan: Sequence[Strike], say: Say
) -> list[dict[str, Any]]:
    """Strikes one after the other, as long as the demo lives; what was struck."""
    began, done = time.monotonic(), []
    again: threading.Thread | None = None
    for second, what in plan:
        with suppress(subprocess.TimeoutExpired):
            demo.wait(max(0.0, began + second - time.monotonic()))
        if demo.poll() is not None:
            break
        hit = True
        if what == END:
            demo.send_signal(signal.SIGINT)
        elif what == "broker" and kafka is not None:
            if again is not None:
                again.join()
            kafka.kill()
            again = threading.Thread(target=kafka.start, name="kafka")
            again.start()
        else:
            hit = _hit(what, below(demo.pid))
        done.append({"second": round(time.monotonic() - began, 1), "what": what, "hit": hit})
        say(f"second {done[-1]['second']}: {what}{'' if hit else ' is not there'}")
    if again is not None:
        again.join()
    return done


def _hit(what: str, processes: Mapping[int, Process]) -> bool:
    """Kills a victim, or empties Redis; whether it was there."""
    if what == EMPTIED:
        at = port_of(processes)
        with suppress(redis.RedisError), redis.Redis("127.0.0.1", at, socket_timeout=5.0) as client:
            return bool(client.flushall())
        return False
    found = victim(what, processes)
    with suppress(ProcessLookupError):
        if found:
            os.kill(found, signal.SIGKILL)
            return True
    return False


def victim(what: str, processes: Mapping[int, Process]) -> int:
    """The process that is meant: of several workers the newest; 0: it does not run now."""
    if what in ("worker", "template"):
        serve = victim("serve", processes)
        forked = [pid for pid, p in processes.items() if "scorer.worker.template" in p.argv and p.session == serve]
        wanted = [pid for pid in forked if (processes[pid].parent == serve) == (what == "template")]
    else:
        wanted = [pid for pid, p in processes.items() if role_of(p.argv, ROLES) == what]
    return max(wanted, default=0)


def port_of(processes: Mapping[int, Process]) -> int:
    """Redis's port, from its command line or its title; 0: it does not run now."""
    line = " ".join(processes[pid].argv) if (pid := victim("redis", processes)) else ""
    found = re.search(r"(?:127\.0\.0\.1:|--port )(\d+)", line)
    return int(found[1]) if found else 0


def _of(report: Mapping[str, Any], failed: str) -> Row:
    """What a demo's report says; without one, why there is none."""
    if not report:
        return dict.fromkeys(FIGURES) | {"conserved": False, "problem": failed, "refused": {}, "observed": {}}
    served, gate = report["click_to_served_ms"], report["gate"]
    return {
        **{name: report.get(name) for name in ("conserved", "problem", *COUNTED)},
        "dead_letters": report["dead_letters_by_reason"],
        "quarantined": gate["quarantined"],
        "refused": gate["refused"],
        "observed": gate.get("observed", {}),
        **{f"user_{name}": share for name, share in report["without_user"].items()},
        "click_to_served_p50_ms": served["p50"],
        "click_to_served_p99_ms": served["p99"],
        "errors": report["errors"],
        "served_auc": report["served_auc"],
    }


COUNTED = ("exposures_sent", "positives", "negatives", "pending", "exposures_in_dead_letters", "restarts", "missing")
OTHERS = ("quarantined", "user_not_read", "user_unknown", "click_to_served_p50_ms", "click_to_served_p99_ms")
FIGURES = (*COUNTED, "dead_letters", *OTHERS, "errors", "served_auc")
SHOWN = ("seed", "broker", "status", "conserved", *COUNTED[:5], *OTHERS, "served_auc")


def said(row: Row) -> str:
    """A row in a line."""
    hits = struck_in([row])
    struck = ", ".join(f"{what} {n}" for what, n in sorted(hits.items())) or "nothing"
    books = "all books balance" if row["conserved"] else f"THE BOOKS DO NOT BALANCE: {row['problem']}"
    refused = sum(row["refused"].values())
    return (
        f"seed {row['seed']} on {row['broker']}, status {row['status']}; struck: {struck}; "
        f"{row['exposures_sent'] or 0:,} exposures, {row['exposures_in_dead_letters'] or 0:,} dead: {books}; "
        f"{refused} refusals; {row['user_not_read'] or 0:.2%} of pages without reading their user; click to served "
        f"{row['click_to_served_p50_ms'] or 0:.0f} ms (p50), {row['click_to_served_p99_ms'] or 0:.0f} ms (p99)"
    )


def struck_in(rows: Sequence[Row]) -> Counter[str]:
    """How often each was struck."""
    return Counter(s["what"] for row in rows for s in row["strikes"] if s["hit"] and s["what"] != END)


def make_report(rows: Sequence[Row]) -> dict[str, Any]:
    """All demos together, and a verdict in words."""
    hits = struck_in(rows)
    refused = sum((Counter(row["refused"]) for row in rows), Counter[str]())
    balanced = sum(bool(row["conserved"]) for row in rows)
    report = {
        "demos": len(rows),
        "balanced": balanced,
        "failed": sum(row["status"] != 0 for row in rows),
        "exposures": sum(row["exposures_sent"] or 0 for row in rows),
        "struck": dict(sorted(hits.items())),
        "refused": dict(sorted(refused.items())),
        "quarantined": sum(row["quarantined"] or 0 for row in rows),
        "runs": list(rows),
    }
    kills = hits.total() - hits[EMPTIED]
    verdict = (
        f"{len(rows)} demos, {kills} kills, Redis emptied {hits[EMPTIED]} times: the books of {balanced} balance, "
        f"{report['failed']} ended with an error. The gate refused {refused.total()} candidates; nothing was wrong."
    )
    return {"verdict": verdict} | report
