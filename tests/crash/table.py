"""The table of a run: a row for each kind of fault, from the rows of the faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

Row = Mapping[str, Any]
LATE = ("late", "page-log-late", "page-log-gone")
"""Why an exposure is in a dead letter that nobody lost: a page lives for two hours, and by a lapsed clock an outage of
half a minute takes as long."""
COLUMNS = ("clock", "fault", "times", "exposures", "late", "no page log", "other dead", "lost", "doubled", "wrong",
           "refusals", "recovery p50 s", "worst s")  # fmt: skip


def table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """By clock and fault. Of faults after which a loop did not heal there is no recovery, but "not healed" is told.

    >>> row = {"clock": "real", "fault": "kill learn", "exposures": 9, "apart": {"late": 2}, "lost": 0, "doubled": 0}
    >>> found = table([row | {"recovery_s": s, "wrong": [], "refusals": 0} for s in (1.0, 2.0, 6.0)])
    >>> found[0]["times"], found[0]["exposures"], found[0]["late"], found[0]["recovery p50 s"], found[0]["worst s"]
    (3, 27, 6, 2.0, 6.0)
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["clock"], row["fault"]), []).append(row)
    return [_group(clock, fault, those) for (clock, fault), those in groups.items()]


def _group(clock: str, fault: str, rows: list[Row]) -> dict[str, Any]:
    apart = sum((Counter(row["apart"]) for row in rows), Counter[str]())
    late, no_log = sum(apart[reason] for reason in LATE), apart["no-page-log"]
    healed = [row["recovery_s"] for row in rows if row["recovery_s"] is not None]
    return {
        "clock": clock,
        "fault": fault,
        "times": len(rows),
        "exposures": sum(row["exposures"] for row in rows),
        "late": late,
        "no page log": no_log,
        "other dead": apart.total() - late - no_log,
        "lost": sum(row["lost"] for row in rows),
        "doubled": sum(row["doubled"] for row in rows),
        "wrong": sum(bool(row["wrong"]) for row in rows),
        "refusals": sum(row["refusals"] for row in rows),
        "recovery p50 s": round(median(healed), 1) if healed else None,
        "worst s": round(max(healed), 1) if len(healed) == len(rows) else "not healed",
    }


def markdown(found: list[dict[str, Any]]) -> str:
    """
    >>> print(markdown([dict.fromkeys(COLUMNS, 1)]).splitlines()[2])
    | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |
    """
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join("" if row[name] is None else str(row[name]) for name in COLUMNS) for row in found]
    return "".join(f"| {line} |\n" for line in lines)
