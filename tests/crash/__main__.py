"""``python -m tests.crash OUT``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from millrace.processes.role import calm_logs
from tests.crash.faults import FAULTS, chosen
from tests.crash.loop import PACES
from tests.crash.run import Plan, Run
from tests.crash.table import markdown, table


def main() -> int:
    """Status 1: some exposure, update or weight is not accounted for, or a loop did not heal."""
    asked = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    asked.add_argument("out", type=Path, help="folder; rows that it has count, so a run goes on")
    asked.add_argument("--faults", default="", help=f"kinds or names, with commas between: {_kinds()} (default: all)")
    asked.add_argument("--minutes", type=float, default=0.0, help="no fault is begun after so long (default: no end)")
    asked.add_argument("--times", type=int, default=10, help="of each fault at each pace")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--pace", choices=[*PACES], help="how fast event time goes (default: both)")
    asked.add_argument("--prefix", default="", help="before the names of topics, groups and keys")
    asked.add_argument("--keep", action="store_true", help="the folder of each loop, not of those alone that failed")
    given = asked.parse_args()
    home = os.environ.get("MILLRACE_TEST_KAFKA_HOME", "")
    if not home or shutil.which("java") is None:
        print("on the embedded broker: MILLRACE_TEST_KAFKA_HOME names no Kafka, or there is no Java runtime")
        home = ""
    try:
        faults = chosen(given.faults)
    except ValueError as error:
        asked.error(str(error))
    plan = Plan(
        given.out,
        faults,
        given.seed,
        Path(home) if home else None,
        (given.pace,) if given.pace else tuple(PACES),
        given.times,
        given.minutes,
        prefix=given.prefix,
        keep=given.keep,
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    calm_logs((plan.out / "harness.log").open("a", encoding="utf-8"))  # loggers keep it for good
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that small disks are unmounted
    print(f"seed {plan.seed}, {len(faults)} faults, rows in {plan.out}/rows.jsonl")
    rows = Run(plan, lambda line: print(line, flush=True)).run()
    print(markdown(table(rows)))
    bad = [row for row in rows if row["recovery_s"] is None or row["lost"] or row["doubled"] or row["wrong"]]
    return 1 if bad else 0


def _kinds() -> str:
    return ", ".join(dict.fromkeys(fault.kind for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
