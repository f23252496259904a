# shell
"""The end of a run: wait until nothing moves, then read the topics and compare them with what the roles say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from millrace.basics.errors import ConservationError
from millrace.commands.demo.conservation import Apart, Ledger, Offsets, Reported, check
from millrace.commands.demo.personclicks import PersonClicks
from millrace.commands.loop.host import Host
from millrace.commands.loop.monitor import Monitor, Picture
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, SAMPLES, TRUTH
from millrace.labels import Waits
from millrace.processes.kafka import first_offsets, read_all

_MOVING = (
    *("samples", "trained", "repeated", "pending", "dead_letters", "duplicates_dropped", "late", "served_rows"),
    *("held_out", "over_limit", "quarantined", "released", "rolled_back", "others", "unread"),
)
DRAIN_SECONDS = 60.0
_TRIES = 6
_STILL_MS = 2500.0
_STUCK_SECONDS = 2.5
"""A role whose main loop began no round for longer has old figures: a lag of 0 proves nothing."""


class Drained:
    """Whether every message was handled: no lag, and no figure that moved for longer than ``idle_seconds``. Only after
    that does the stream take a partition for idle and move its watermark, and the learner settle its labels.
    ``roles``: those that run and so must answer."""

    def __init__(self, monitor: Monitor, idle_seconds: float, roles: Sequence[str] = ("stream", "learn")) -> None:
        self.why = "nothing was seen yet"
        self._monitor, self._roles = monitor, roles
        self._patience_ms = (idle_seconds + 3.0) * 1000
        self._still: tuple[float | None, ...] = ()
        self._since_ms = 0
        self._read_since_ms: int | None = None

    def __call__(self) -> bool:
        picture = self._monitor.picture
        silent, lags = self._look(picture)
        still = tuple(picture.figures.get(n) for n in _MOVING)
        if still != self._still or silent or any(lags.values()):
            self._still, self._since_ms = still, picture.wall_ms
            self.why = f"{' and '.join(silent)} silent" if silent else f"lag {lags}, figures still move"
            return False
        return picture.wall_ms - self._since_ms >= self._patience_ms

    def read(self) -> bool:
        """True when every message was read and none came for a while. Labels may still be due."""
        picture = self._monitor.picture
        silent, lags = self._look(picture)
        if silent or any(lags.values()):
            self._read_since_ms = None
            self.why = f"{' and '.join(silent)} silent" if silent else f"lag {lags}"
            return False
        if self._read_since_ms is None:
            self._read_since_ms = picture.wall_ms
        return picture.wall_ms - self._read_since_ms >= _STILL_MS

    def _look(self, picture: Picture) -> tuple[list[str], dict[str, float]]:
        looked_s = picture.wall_ms / 1000
        began = {n: picture.figures.get(f"{n}_loop_s") or 0.0 for n in self._roles}
        silent = [n for n, at_s in began.items() if not picture.ready.get(n) or looked_s - at_s > _STUCK_SECONDS]
        lags = {"stream": "stream_lag", "learn": "learner_lag"}
        return silent, {lags[n]: picture.figures.get(lags[n]) or 0.0 for n in self._roles}


def read_ledger(settings: Settings, since: Offsets | None = None) -> Ledger:
    """Reads the topics' present messages into a ledger. Takes some seconds per hundred thousand exposures."""
    ledger = Ledger(settings.event_clock(), MAX_AHEAD_MS, since or {}, Waits.of(settings), settings.by_page)
    for topic, visit in (
        (DEAD_LETTERS, ledger.dead_letter_message),
        (EVENTS, ledger.event_message),
        (SAMPLES, ledger.sample_message),
        (TRUTH, ledger.truth_message),
    ):
        read_all(settings, topic, visit)
    return ledger


def forgotten(settings: Settings, since: Offsets) -> str:
    """What retention has deleted of this run, in words; empty: nothing. An account of the rest would prove nothing.
    ``since``: offsets of ``events`` at which the run begins; empty: it began with empty topics."""
    for topic in (EVENTS, SAMPLES, DEAD_LETTERS, TRUTH):
        for partition, first in sorted(first_offsets(settings, topic).items()):
            begins = since.get(partition, 0) if topic == EVENTS else first if since else 0
            if first > begins:
                return f"the first {first - begins:,} messages of '{topic}', partition {partition}"
    return ""


@dataclass(frozen=True, slots=True)
class Settlement:
    picture: Picture
    problem: ConservationError | None
    forgotten: str  # what the topics no longer hold of this run: then nothing was checked
    simulator_restarted: bool
    trained: int | None
    freshness_s: float | None  # at the end of the traffic; it grows while the loop runs dry
    ended_wall_ms: int = 0  # end of the traffic
    apart: Apart = field(default_factory=Apart)


def labels_take(settings: Settings) -> float:
    """Wall seconds from the last exposure until every label is given."""
    wait_s = Waits.of(settings).settled_ms / 1000
    return wait_s / settings.event_clock().speed + settings.idle_seconds


def settle(
    host: Host,
    dry: Drained,
    freshness_s: float | None = None,
    since: Offsets | None = None,
    ended_wall_ms: int = 0,
    person: PersonClicks | None = None,
) -> tuple[Ledger, Settlement]:
    """Reads the topics between two looks at the roles that agree, so that both speak of one moment, and checks them.
    Roles and services that die meanwhile are started again, and the topics are read again. ``person``: sent what the
    simulator does not know of."""
    settings, monitor, supervisor = host.settings, host.monitor, host.supervisor
    assert monitor is not None
    for _ in range(_TRIES):
        drained = host.wait(dry, DRAIN_SECONDS, ends_early=False)
        if not drained:
            host.say(f"not drained after {DRAIN_SECONDS:g} s: {dry.why}")
        before = monitor.look()
        ledger = host.read(lambda: read_ledger(settings, since))
        picture = monitor.look()
        if drained and all(before.figures.get(n) == picture.figures.get(n) for n in _MOVING):
            break
    restarted = supervisor.restarts.get("simulate", 0) > 0
    # A learner that was restarted learns again what its snapshot did not hold: only its versions know the exact count.
    one_life = monitor.roles["learn"].lives == 1
    trained = _whole(picture, "trained") if one_life else picture.model.get("trained")
    refused = round(monitor.roles["learn"].total("millrace_samples_refused_total"))
    for name, more in (("exposures", person.exposures), ("clicks", person.clicks)) if person is not None else ():
        if (sent := picture.figures.get(name)) is not None:
            picture.figures[name] = sent + more
    own = {n: None if restarted else _whole(picture, n) for n in ("exposures", "clicks", "malformed", "duplicates")}
    apart = Apart(**{name: _whole(picture, name) or 0 for name in Apart.__slots__})
    reported = Reported(
        pending=_whole(picture, "pending"),
        # With earlier runs' samples in the topic it reads those too, and again as the stream re-emits them: its memory
        # of ids reaches back some hours of event time, not days. So then its count proves nothing, and is not held.
        trained=None if since else trained,
        refused=refused,
        skipped=_whole(picture, "skipped") or 0,
        apart=apart,
        one_life=one_life,
        **own,
    )
    problem, gone = None, host.read(lambda: forgotten(settings, since or {}))
    try:
        if not gone:
            check(ledger, reported)
    except ConservationError as error:
        problem = error
    return ledger, Settlement(picture, problem, gone, restarted, trained, freshness_s, ended_wall_ms, apart)


def _whole(picture: Picture, name: str) -> int | None:
    value = picture.figures.get(name)
    return None if value is None else round(value)
