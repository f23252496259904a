# core
"""Judges what `millrace doctor` saw: a line a check, each ok, worth knowing, or to be mended.

A judge uses no clock, disk or network, so tests can try it on every case; :mod:`millrace.commands.up.probes` asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from millrace.basics.durations import utc
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.contracts.carry import same_tiles
from millrace.contracts.clock import EventClock
from millrace.contracts.schema import Schema
from millrace.contracts.topics import Topic, miscounted

State = Literal["ok", "note", "mend"]

CLOCK_SECONDS = 5.0
"""Two clocks may differ by this much, as long as the waits for labels. Date headers have whole seconds."""
LEAST_BYTES, SCARCE_BYTES = 1 << 30, 10 << 30
"""Free disk: below the first something must be done, below the second it is worth knowing."""
YEAR_MS = 365.25 * 86_400_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``remedy`` is empty where there is nothing to do."""

    check: str
    state: State
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:4} {self.check}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def note(check: str, text: str, remedy: str = "") -> Finding:
    return Finding(check, "note", text, remedy)


def mend(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, "mend", text, remedy)


def status(findings: list[Finding]) -> int:
    """The exit status: 1 when something must be mended.

    >>> status([ok("disk", "1 TiB free"), note("schema", "no windows")])
    0
    """
    return int(any(found.state == "mend" for found in findings))


def judge_memory(schema: Schema) -> Finding:
    """What a learner's memory grows by when it has run for long, however well its tables are bounded."""
    from learner.evaluation.served_scores import ServedExposures  # only here: the compiler is 50 MB
    from learner.gate.heldout import Heldout
    from learner.ranker.repeats import Repeats

    most = {
        "ids of samples": Repeats.most_bytes(),
        "exposures to judge": ServedExposures.most_bytes(ROLLING_ROWS),
        "held-out rows": Heldout.most_bytes(schema.layout.F, schema.layout.N),
    }
    each = ", ".join(f"{name} {size / (1 << 20):,.0f}" for name, size in most.items())
    text = f"beside its tables (max_rows) a learner grows by {sum(most.values()) / (1 << 20):,.0f} MiB at most: {each}"
    return ok("memory", text)


def judge_schema(schema: Schema, kept: Schema | None = None) -> list[Finding]:
    """A schema as a live loop needs it; ``kept`` is the schema of the data folder's state."""
    found, names = [], {field.name: field.of for field in schema.fields}
    for side, own in zip(("user", "item"), schema.ids, strict=True):
        if names.get(own) != side:
            text = f"it has no field '{own}': no {side} is learnt by itself, only by attributes"
            found.append(note("schema", text, f'add [[fields]] name = "{own}", of = "{side}"'))
    if not schema.windows.keys:
        text = "it counts nothing: no clicks of the last days, of no item and no user"
        found.append(
            note("schema", text, 'add [[windows.keys]] columns = ["' + schema.ids[1] + '"] (docs/reference/schema.md)')
        )
    if kept is not None and kept.id != schema.id:
        text = f"it is '{schema.name}' ({schema.id[:8]}), the data folder's state is of '{kept.name}' ({kept.id[:8]})"
        ways = "name the former one, start 'millrace up' with --evolve, or name an empty folder with --data"
        if not same_tiles(kept, schema):
            ways = "keep its actions, means and windows (docs/reference/schema.md), or name an empty folder with --data"
        found.append(mend("schema", text, ways))
    keys = ", ".join(key.name for key in schema.windows.keys) or "none"
    sides = ", ".join(f"{sum(of == side for of in names.values())} of {side}" for side in ("user", "item", "context"))
    if not any(finding.state == "mend" for finding in found):
        found.insert(0, ok("schema", f"'{schema.name}': fields {sides}; window keys {keys}"))
    return found


def judge_topics(
    present: Mapping[str, int], wanted: Mapping[str, Topic], partitions: int, running: bool
) -> list[Finding]:
    """Topics by name at the broker, ``present`` with their numbers of partitions; while roles are ``running``, no topic
    may be missing."""
    found = [mend("topics", *fault) for fault in miscounted(wanted, present, partitions)]
    missing = [name for name in wanted if name not in present]
    if missing and running:
        found.append(mend("topics", f"missing: {', '.join(missing)}", "make them: millrace dev topics"))
    elif missing:
        found.append(note("topics", f"not there yet: {', '.join(missing)}", "the first role that starts makes them"))
    if not found:
        found.append(ok("topics", f"{len(wanted)} there, with the partitions that are needed"))
    return found


def judge_clocks(apart: Mapping[str, float]) -> list[Finding]:
    """By how many seconds the wall clocks of others are ahead of this machine's."""
    far = {name: seconds for name, seconds in apart.items() if abs(seconds) > CLOCK_SECONDS}
    remedy = "set the clocks by NTP (chrony, systemd-timesyncd): events from the future are dead letters"
    if far:
        return [
            mend("clock", f"this machine's is {abs(by):.0f} s {'behind' if by > 0 else 'ahead of'} {name}'s", remedy)
            for name, by in far.items()
        ]
    if not apart:
        return [note("clock", "no other clock to compare with")]
    return [ok("clock", f"within {CLOCK_SECONDS:g} s of {', '.join(apart)}")]


def judge_newest(own_ms: float, newest_ms: float | None) -> list[Finding]:
    """The newest message of the broker: none may come from the future. None: there is no message."""
    if newest_ms is None or newest_ms <= own_ms + 1000 * CLOCK_SECONDS:
        return []
    ahead = (newest_ms - own_ms) / 1000
    text = f"the broker's newest message is dated {ahead:.0f} s ahead of this machine's clock"
    return [mend("clock", text, "set the clocks of both machines by NTP")]


def judge_event_clock(clock: EventClock, own_ms: int) -> Finding:
    if clock == EventClock():
        return ok("event clock", "event time is wall time")
    text = f"event time runs {clock.speed:g} times as fast as wall time, and is {utc(clock.at(own_ms))} now"
    remedy = "unset MILLRACE_CLOCK for a shop of real people"
    if abs(clock.at(own_ms) - own_ms) > YEAR_MS:
        return mend("event clock", text, remedy)
    return note("event clock", text, remedy)


def judge_folder(path: str, problem: str, free_bytes: int | None, topics_gib: float = 0.0) -> list[Finding]:
    """The data folder: why it cannot be written to (empty: it can), and the free disk under it. ``topics_gib``: most
    that topics of an embedded broker take there."""
    if problem:
        return [mend("data folder", f"'{path}' {problem}", "name another with --data or MILLRACE_DATA")]
    if free_bytes is None:
        return [ok("data folder", f"'{path}' can be written to")]
    free = f"'{path}' can be written to; {free_bytes / (1 << 30):,.1f} GiB of disk are free"
    if free_bytes < LEAST_BYTES:
        return [mend("data folder", free, f"make room: at least {LEAST_BYTES >> 30} GiB, or stop and move the folder")]
    if free_bytes < topics_gib * (1 << 30):
        remedy = "set MILLRACE_BROKER_GIB to less; docs/how-to/run-in-production.md says what a million page views take"
        return [note("data folder", f"{free}, topics may take {topics_gib:g} GiB", remedy)]
    if free_bytes < SCARCE_BYTES:
        return [note("data folder", free, "see docs/how-to/run-in-production.md for what a million page views take")]
    return [ok("data folder", free)]


def judge_versions(own: str, roles: Mapping[str, tuple[str, bool] | None]) -> list[Finding]:
    """The version that each role names, and whether it works; None: it should be there and gives no answer."""
    found = []
    silent = [name for name, said in roles.items() if said is None]
    if silent:
        found.append(mend("roles", f"no metrics from {', '.join(silent)}", "start them, or see DATA/logs"))
    other = {name: said[0] for name, said in roles.items() if said is not None and said[0] != own}
    if other:
        text = ", ".join(f"{name} is of version {version or 'unknown'}" for name, version in other.items())
        found.append(mend("roles", f"{text}; this is {own}", "install one version everywhere, and start those again"))
    waiting = [name for name, said in roles.items() if said is not None and not said[1]]
    if waiting:
        found.append(note("roles", f"not ready: {', '.join(waiting)}", "a scorer waits for items; see DATA/logs"))
    if roles and not silent and not other:
        found.insert(0, ok("roles", f"{', '.join(roles)}: version {own}"))
    return found


def judge_unseen(lines: Sequence[str]) -> list[Finding]:
    """What the learner's gate cannot know, or not soon, at the traffic it has; nothing where it does not say so yet."""
    return [note("gate", f"at this traffic: {line}") for line in lines]


def judge_tokens(loopback: bool, host: str, tokens: bool) -> Finding:
    """Whether other machines reach scorer and intake, and who may use them then."""
    if tokens:
        return ok("tokens", "intake and scorer ask for a token")
    if loopback:
        return ok("tokens", f"none are set, and only this machine reaches {host}")
    text = f"intake and scorer listen on {host}, and no token is set: whoever reaches them may use them"
    remedy = "set MILLRACE_TOKEN_FILE (docs/how-to/run-in-production.md), or MILLRACE_HOST=127.0.0.1"
    return mend("tokens", text, remedy)
