"""The one way in which faults are tried: load, fault, healed, books, row.

::

    loop lives ─┬─ shop opens ─ load ─ fault begins ─ lasts ─ ends ─ healed ─ shop closes ─ balance ─ row ─┐
                └──────────────────────────── FAULTS_A_LIFE times, then another loop ◄─────────────────────┘

Rows are lines of ``OUT/rows.jsonl``: a run that is started again with the same folder goes on, and the faults that were
tried least come first.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from millrace.basics.errors import MillraceError
from tests.crash.books import Balance, Books
from tests.crash.faults import Fault, Missed
from tests.crash.loop import PACES, CrashLoop, NotHealedError, Pace
from tests.crash.table import markdown, table

FAULTS_A_LIFE = 8
LOAD_SECONDS = (2.0, 8.0)
DRAINING_SECONDS, READING_SECONDS = (0.0, 4.0), (0.0, 3.0)
NAMED = 5
TRIES = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried.

    Attributes:
        home: of Apache Kafka; None: the embedded broker.
        times: of each fault at each pace.
        minutes: no fault is begun after so long; 0: no end.
        keep: the folders of all loops, not of those alone after which something was wrong.
    """

    out: Path
    faults: Sequence[Fault]
    seed: int = 0
    home: Path | None = None
    paces: Sequence[str] = tuple(PACES)
    times: int = 10
    minutes: float = 0.0
    prefix: str = ""
    keep: bool = False


class Run:
    """One run. ``say`` takes a line at a time."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = print) -> None:
        self.plan, self.say = plan, say
        plan.out.mkdir(parents=True, exist_ok=True)
        self._lines = plan.out / "rows.jsonl"
        self.rows: list[dict[str, Any]] = list(_read(self._lines))
        self._end = time.monotonic() + 60 * plan.minutes if plan.minutes else float("inf")
        self._skipped: dict[tuple[str, str], str] = {}  # why, by pace and fault
        left = [int(folder.name.removeprefix("life-")) for folder in plan.out.glob("life-*")]
        self._life = 1 + max([row["life"] for row in self.rows] + left, default=0)

    def run(self) -> list[dict[str, Any]]:
        """All rows, of earlier runs in this folder too."""
        while self._goes_on() and (pace := self._next_pace()) is not None:
            self._live(pace)
            self._life += 1
        for (pace_name, name), why in self._skipped.items():
            self.say(f"skipped: {name} ({pace_name}): {why}")
        return self.rows

    def _goes_on(self) -> bool:
        return time.monotonic() < self._end

    def _left(self, pace: str) -> list[Fault]:
        """Faults that are still to be tried at a pace, those tried least first."""
        done = Counter(row["fault"] for row in self.rows if row["clock"] == pace)
        left = [f for f in self.plan.faults if done[f.name] < self.plan.times and (pace, f.name) not in self._skipped]
        return sorted(left, key=lambda fault: done[fault.name])

    def _next_pace(self) -> Pace | None:
        """That with the fewest rows."""
        done = Counter(row["clock"] for row in self.rows)
        left = [name for name in self.plan.paces if self._left(name)]
        return PACES[min(left, key=lambda name: done[name])] if left else None

    def _live(self, pace: Pace) -> None:
        """One life of a loop, and the faults that it bears."""
        folder = self.plan.out.absolute() / f"life-{self._life}"
        draw = np.random.default_rng([self.plan.seed, self._life])
        loop = CrashLoop(
            folder,
            pace,
            self.plan.seed + self._life,
            self.plan.home,
            through_intake=bool(draw.random() < 0.5),
            prefix=self.plan.prefix,
        )
        whole = False
        try:
            with loop.running(), Books(loop) as books:
                before = Balance()
                for _ in range(FAULTS_A_LIFE):
                    if not self._goes_on() or (fault := self._drawn(loop, pace, draw)) is None:
                        whole = True
                        return
                    row, before = self._try(loop, books, before, fault, draw)
                    self._keep(row)
                    if row["recovery_s"] is None or row["lost"] or row["doubled"] or row["wrong"]:
                        return
                whole = True
        except (MillraceError, NotHealedError) as error:
            self.say(f"life {self._life} ended: {error}")
        finally:
            if whole and not self.plan.keep:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self.say(f"kept for a look: {folder}")

    def _drawn(self, loop: CrashLoop, pace: Pace, draw: Generator) -> Fault | None:
        """One of the faults that were tried least."""
        left = self._left(pace.name)
        for fault in left:
            if why := fault.needs(loop):
                self._skipped[pace.name, fault.name] = why
        left = self._left(pace.name)
        done = Counter(row["fault"] for row in self.rows if row["clock"] == pace.name)
        least = [fault for fault in left if done[fault.name] == done[left[0].name]]
        return least[int(draw.integers(len(least)))] if least else None

    def _try(
        self, loop: CrashLoop, books: Books, before: Balance, fault: Fault, draw: Generator
    ) -> tuple[dict[str, Any], Balance]:
        row: dict[str, Any] = {
            "life": self._life,
            "seed": self.plan.seed,
            "clock": loop.pace.name,
            "broker": "embedded" if self.plan.home is None else "Apache Kafka",
            "kind": fault.kind,
            "fault": fault.name,
            "recovery_s": None,
        }
        found = Balance()
        try:
            loop.open_shop()
            _pass(loop, draw.uniform(*LOAD_SECONDS))
            how = self._strike_late if fault.late else self._strike
            found = how(loop, books, fault, draw, row)
        except (MillraceError, NotHealedError) as error:
            found.wrong.append(str(error))
        row |= {
            "exposures": found.exposures - before.exposures,
            "updates": found.updates - before.updates,
            "apart": dict(found.apart - before.apart),
            "dead": dict(found.dead - before.dead),
            "lost": len(found.lost),
            "doubled": len(found.doubled),
            "named": [*found.lost[:NAMED], *found.doubled[:NAMED]],
            "wrong": found.wrong,
            "refusals": found.refusals - before.refusals,
            "delayed": found.delayed,
            "weights": found.weights,
        }
        return row, found

    def _strike(self, loop: CrashLoop, books: Books, fault: Fault, draw: Generator, row: dict[str, Any]) -> Balance:
        """Under load."""
        end, row["detail"] = _begun(loop, fault, draw)
        began = time.monotonic()
        try:
            _pass(loop, draw.uniform(*fault.lasts))
        finally:
            end()
        ended = time.monotonic()
        row["lasted_s"] = round(ended - began, 1)
        loop.until(loop.healed(), "the loop works again", more=loop.seen)
        row["recovery_s"] = round(time.monotonic() - ended, 1)
        loop.close_shop()
        return books.balance()

    def _strike_late(
        self, loop: CrashLoop, books: Books, fault: Fault, draw: Generator, row: dict[str, Any]
    ) -> Balance:
        """While the loop drains, or while its books are read: that takes some seconds at least."""
        if draw.random() < 0.5:
            row["detail"] = "draining"
            loop.stop_role("simulate")
            _pass(loop, draw.uniform(*DRAINING_SECONDS))
            _begun(loop, fault, draw)
            struck = time.monotonic()
            loop.close_shop()
            row["recovery_s"] = round(time.monotonic() - struck, 1)
            return books.balance()
        row["detail"] = "books are read"
        loop.close_shop()
        after = draw.uniform(*READING_SECONDS)
        strikes = threading.Timer(after, fault.begin, (loop, draw))
        struck = time.monotonic() + after
        strikes.start()
        try:
            return books.balance()
        finally:
            strikes.join()
            loop.come_to_rest()
            row["recovery_s"] = round(time.monotonic() - struck, 1)

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self._lines.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        told = table(self.rows)
        (self.plan.out / "table.json").write_text(json.dumps(told, indent=1) + "\n")
        (self.plan.out / "table.md").write_text(markdown(told))
        self.say(said(row))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def _pass(loop: CrashLoop, seconds: float) -> None:
    """Lets time pass, and keeps roles and services alive."""
    loop.wait(lambda: False, seconds, ends_early=False)


def _begun(loop: CrashLoop, fault: Fault, draw: Generator) -> tuple[Callable[[], None], str]:
    for left in reversed(range(TRIES)):
        try:
            return fault.begin(loop, draw)
        except Missed as missed:
            if not left:
                raise NotHealedError(f"there was nothing to strike: {missed}") from None
            _pass(loop, 1.0)
    raise AssertionError("unreachable")


def said(row: dict[str, Any]) -> str:
    """A row in a line."""
    healed = "NOT HEALED" if row["recovery_s"] is None else f"healed after {row['recovery_s']} s"
    books = "books balance" if not (row["lost"] or row["doubled"] or row["wrong"]) else "BOOKS DO NOT BALANCE"
    apart = ", ".join(f"{n} {reason}" for reason, n in row["apart"].items())
    more = "".join(f"; {each}" for each in (*row["named"], *row["wrong"]))
    return (
        f"life {row['life']} {row['clock']}: {row['fault']} {row.get('detail', '')}: {healed}; {row['exposures']:,} "
        f"exposures{f', dead: {apart}' if apart else ''}; {row['refusals']} refusals; {row['weights']}; {books}{more}"
    )
