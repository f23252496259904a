# shell
"""``millrace dev experiment rows``: a log that is larger than memory, by the commands that a person would use.

KuaiRand's log is repeated: users are shifted, so that each copy has its own, and days, so that copies follow each other
week by week. Items stay. The rows are shuffled, which is the worst that a log can be. Then::

    make ─► log import ─► log replay                 all rows
         └► log freshness                            a tenth of the weeks

Each command is a process of its own. Every half second the anonymous memory of it and its children is added up; mapped
files do not count, since the system takes their pages back. Its lines of progress are kept: what was said of the time
left is compared with the time that it took.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import psutil
import pyarrow.parquet as pq

from millrace.basics.errors import SettingError
from millrace.contracts.schema import parse_schema
from millrace.logs import read_log
from millrace.processes.resident_memory import resident_bytes
from millrace.reports import make_folder, say, show, write_all
from millrace.reports.progress import Took

SCHEMA = """
name = "many"
utc_offset = "+08:00"
fields = [{name = "user_id", of = "user"}, {name = "video_id", of = "item"}, {name = "author_id", of = "item"},
          {name = "tab", of = "context"}]
[log]
time = "time_ms"
user = "user_id"
item = "video_id"
label = "is_click"
[windows]
actions = ["exposure", "click"]
keys = [{columns = ["user_id"]}, {columns = ["video_id"]}]
"""
WEEK_MS = 7 * 86_400_000
WEEKS = 21
MEMORY = "1GB"
_LEFT = re.compile(r"(.+) ([\d,]+) of ([\d,]+) \(\d+%\), about (\d+) s left")


def experiment_rows(log: Path, out: Path, *, rows: int = 100_000_000, kills: int = 0, seed: int = 0) -> dict[str, Any]:
    """Makes, imports and replays so many rows, and asks for the freshness of a tenth of them.

    Args:
        log: KuaiRand's Parquet file, or its folder.
        out: takes report, log and import: some 150 bytes a row.
        kills: so often a second import, and then its replay, are killed at seeded moments and begun again.
    """
    took = Took()
    make_folder(out, "report.json")
    file = log if log.is_file() else next(iter(sorted(log.glob("*.parquet"))), None)
    if file is None:
        raise SettingError(f"'{log}' has no Parquet file", "give KuaiRand's log")
    people = max(1, round(rows / pq.read_metadata(file).num_rows / WEEKS))
    (out / "schema.toml").write_text(SCHEMA)
    began, made, few = time.monotonic(), out / "log.parquet", out / "few.parquet"
    n = make(file, made, people, WEEKS, seed)
    make(file, few, people, max(1, WEEKS // 10), seed)
    lines: list[dict[str, Any]] = [{"stage": "make", "rows": n, "seconds": time.monotonic() - began}]
    how = "--schema", str(out / "schema.toml"), "--out"
    for stage, command in {
        "import": ("import", made, *how, out / "imported"),
        "replay": ("replay", out / "imported", *how, out / "replay"),
        "freshness": ("freshness", few, *how, out / "freshness", "--sync", "never,daily,batch"),
    }.items():
        of = pq.read_metadata(few).num_rows if stage == "freshness" else n
        lines.append({"stage": stage, "rows": of} | watched(("log", *map(str, command))))
    same = killed(out, made, {line["stage"]: line["seconds"] for line in lines}, kills, seed) if kills else None
    began = time.monotonic()
    read_log(out / "imported", parse_schema(SCHEMA))
    lines.append({"stage": "read again", "rows": n, "seconds": round(time.monotonic() - began, 3)})
    for line in lines:
        line["rows_per_second"] = round(line["rows"] / line["seconds"])
    run = msgspec.json.decode((out / "replay" / "run.json").read_bytes())
    state = {key: run[key] for key in ("model_mb", "windows_mb")}
    report = {"verdict": verdict(lines), "stages": lines, "state": state, "same_after_kills": same}
    write_all(out, report, took.run | {"seed": seed, "people": people, "weeks": WEEKS, "source": str(file)}, [],
              "A log larger than memory")  # fmt: skip
    show("Stages", lines, ("stage", "rows", "seconds", "rows_per_second", "peak_mb", "time_left_within_20"))
    return report


def make(source: Path, file: Path, people: int, weeks: int, seed: int) -> int:
    """Writes the rows of a log for so many times its users and weeks, shuffled; how many there are."""
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(file.parent)}) as sql:
        columns = f"user_id + 1000000 * p.n AS user_id, video_id, author_id, tab, is_click, time_ms + {WEEK_MS} * w.n"
        rows = f"SELECT {columns} AS time_ms FROM '{source}', range({people}) p(n), range({weeks}) w(n)"
        sql.execute(f"COPY (SELECT * FROM ({rows}) ORDER BY hash(time_ms, user_id, video_id, {seed})) TO '{file}'")
    rows_made: int = pq.read_metadata(file).num_rows
    return rows_made


def watched(command: tuple[str, ...]) -> dict[str, Any]:
    """Runs a command of ours: its seconds, its anonymous memory, how true its time left was. Raises SettingError where
    it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said: list[tuple[float, str]] = []
    stderr = process.stderr

    def listen() -> None:
        said.extend((time.monotonic() - began, line.strip()) for line in stderr)

    listener = threading.Thread(target=listen)
    listener.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(0.5)
    listener.join()
    seconds = time.monotonic() - began
    if process.returncode:
        raise SettingError(f"'{' '.join(command)}' failed: {said[-1][1] if said else ''}", "see what it says")
    return {"seconds": round(seconds, 1), "peak_mb": peak >> 20, "time_left_within_20": true_share(said)}


def killed(out: Path, made: Path, seconds: dict[str, float], kills: int, seed: int) -> bool:
    """Whether the replay of an import has the same report, if both are killed at seeded moments of the time that they
    take, so many times each, and begun again."""
    rng = np.random.default_rng(seed)
    how = "--schema", str(out / "schema.toml"), "--out"
    for stage, command in {
        "import": ("import", made, *how, out / "imported-again"),
        "replay": ("replay", out / "imported-again", *how, out / "replay-again"),
    }.items():
        for moment in [*(rng.random(kills) * seconds[stage]).tolist(), None]:
            try:
                subprocess.run(
                    [sys.executable, "-c", _KEEPING, "log", *map(str, command)], timeout=moment, check=moment is None,
                    capture_output=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                say(f"{stage}: killed after {moment:.1f} s")
    return (out / "replay" / "report.json").read_bytes() == (out / "replay-again" / "report.json").read_bytes()


_KEEPING = (
    "import millrace.commands.cli.cli as cli, millrace.commands.replay.kept as kept; kept.EVERY_S = 3.0; cli.main()"
)


def true_share(said: list[tuple[float, str]]) -> float | None:
    """Of the lines of progress after a tenth of their work, the share whose time left is within 20% of what it took, or
    within two seconds. None: there are none."""
    found = [(at, match) for at, line in said if (match := _LEFT.search(line))]
    ends = {match[1]: at + float(match[4]) for at, match in found}  # by the last line of each work
    good = []
    for at, match in found:
        done, of = (int(match[k].replace(",", "")) for k in (2, 3))
        if done >= of / 10:
            good.append(abs(at + float(match[4]) - ends[match[1]]) <= max(2.0, 0.2 * (ends[match[1]] - at)))
    return round(sum(good) / len(good), 3) if good else None


def verdict(lines: list[dict[str, Any]]) -> str:
    told = [f"{line['stage']} {line['rows_per_second']:,} rows/s" for line in lines]
    peaks = [f"{line['stage']} {line['peak_mb']:,} MB" for line in lines if "peak_mb" in line]
    return f"{lines[0]['rows']:,} rows: {', '.join(told)}. Peak of anonymous memory: {', '.join(peaks)}."


def _anonymous_bytes(process: int) -> int:
    try:
        family = [process, *(child.pid for child in psutil.Process(process).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(resident_bytes(one, "RssAnon:") or 0 for one in family)
