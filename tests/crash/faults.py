"""What is done to a loop under load: one list.

A fault begins, lasts for a time that is drawn, and ends by itself or because we end it. From its end on the loop has to
heal alone, but for what an operator does: a Kafka of his own is started again, and so is a learner that gave way to
another.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from millrace.commands.loop.monitor import fetch
from tests.crash.link import State
from tests.crash.loop import DISKS, CrashLoop

VICTIMS = ("stream", "learn", "serve", "worker", "template", "intake", "archive", "simulate", "redis", "broker")
"""Roles, processes of a scorer, and services."""
LATE_VICTIMS = ("stream", "learn", "redis", "broker")
BETWEEN_SECONDS = (0.0, 2.0)
STOPPED_SECONDS = (3.0, 15.0)
CUT_SECONDS = (3.0, 12.0)
STEP_SECONDS = (5.0, 600.0)
REAL_STEP_SECONDS = (5.0, 60.0)
"""At real speed: labels of events ahead are waited for as long as they are ahead."""

Ends = Callable[[], None]


class Missed(Exception):
    """What was to be struck was not there at this moment; the fault is tried again."""


class Fault(NamedTuple):
    """One fault. ``begin`` strikes, and returns what ends it and what was done in words; ``lasts``: seconds from the
    one to the other, drawn from this range. ``needs``: why it cannot be tried on a loop; empty: it can. ``late``: it
    strikes when the shop has closed, while the loop drains or its books are read."""

    kind: str
    name: str
    begin: Callable[[CrashLoop, Generator], tuple[Ends, str]]
    lasts: tuple[float, float] = (0.0, 0.0)
    needs: Callable[[CrashLoop], str] = lambda loop: ""
    late: bool = False


def _nothing() -> None:
    pass


def _kill(victims: Sequence[str]) -> Fault:
    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        for victim in victims:
            if not loop.send(signal.SIGKILL, victim):
                raise Missed(victim)
        return _nothing, ""

    return Fault("kill", f"kill {' + '.join(victims)}", begin)


def _stop(victims: Sequence[str]) -> Fault:
    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        stopped = [victim for victim in victims if loop.send(signal.SIGSTOP, victim)]

        def end() -> None:
            for victim in stopped:
                loop.send(signal.SIGCONT, victim)

        if len(stopped) < len(victims):
            end()
            raise Missed(", ".join(set(victims) - set(stopped)))
        return end, ""

    return Fault("stop", f"stop {' + '.join(victims)}", begin, STOPPED_SECONDS)


def _pair(kind: str, make: Callable[[Sequence[str]], Fault], lasts: tuple[float, float]) -> Fault:
    """Two victims at once, another pair each time."""
    pairs = list(combinations(VICTIMS, 2))

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        pair = pairs[int(draw.integers(len(pairs)))]
        end, _ = make(pair).begin(loop, draw)
        return end, " + ".join(pair)

    return Fault(kind, f"{kind} two at once", begin, lasts)


def _each() -> Fault:
    """All of them, one after the other, in an order of each time."""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        order = [VICTIMS[i] for i in draw.permutation(len(VICTIMS)).tolist()]
        struck = []
        for victim in order:
            if loop.send(signal.SIGKILL, victim):
                struck.append(victim)
            loop.wait(lambda: False, draw.uniform(*BETWEEN_SECONDS), ends_early=False)
        return _nothing, ", ".join(struck)

    return Fault("kill", "kill each in turn", begin)


def _link(name: str, state: State) -> Fault:
    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        link = loop.links[name]
        link.set(state)
        return lambda: link.set("open"), ""

    def needs(loop: CrashLoop) -> str:
        return "" if name in loop.links else "the embedded broker tells clients its own address, past any proxy"

    return Fault("link", f"link to {name} {state}", begin, CUT_SECONDS, needs)


def _disk(name: str) -> Fault:
    def needs(loop: CrashLoop) -> str:
        if name not in loop.disks.places:
            return "no disk could be mounted: that takes root, and a system that lets it"
        return "exposures wait two hours for logs that are lost" if name == "spool" and loop.pace.speed == 1.0 else ""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        return loop.disks.fill(name), ""

    return Fault("disk", f"disk full: {name}", begin, CUT_SECONDS, needs)


def _emptied() -> Fault:
    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        loop.empty_redis()
        return _nothing, ""

    return Fault("emptied", "Redis emptied", begin)


def _clock(role: str, sign: int) -> Fault:
    """The clock of one role is wrong for a while, and right again."""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        span = STEP_SECONDS if loop.pace.speed > 1 else REAL_STEP_SECONDS
        seconds = sign * round(float(np.exp(draw.uniform(*np.log(span)))), 1)
        loop.clocks.step(role, seconds)
        return lambda: loop.clocks.step(role, 0.0), f"{seconds:+g} s"

    return Fault("clock", f"clock of {role} {'ahead' if sign > 0 else 'behind'}", begin, CUT_SECONDS)


def _second_scorer() -> Fault:
    """A second scorer takes half of the requests, and is killed."""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        process, own = loop.second("serve")
        address = own.scorer.removeprefix("http://")

        def ready() -> bool:
            with suppress(OSError):
                return '"ready":true' in fetch(f"{own.scorer}/readyz", 5.0).replace(" ", "")
            return False

        loop.until(ready, "the second scorer is ready", more=lambda: loop.said("second-serve"))
        first = loop.links["serve"].targets
        loop.links["serve"].targets = (*first, address)
        loop.links["serve"].set("closed")  # so that shoppers connect anew, to both
        loop.links["serve"].set("open")

        def end() -> None:
            process.kill()
            process.wait()
            loop.links["serve"].targets = first

        return end, ""

    return Fault("second", "second scorer, killed", begin, CUT_SECONDS)


def _second_stream() -> Fault:
    """A second stream worker takes half of the partitions, and is killed."""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        process, own = loop.second("stream")

        def ready() -> bool:
            with suppress(OSError):
                return "millrace_ready 1.0" in fetch(f"http://127.0.0.1:{own.metrics_port}/metrics", 5.0)
            return False

        loop.until(ready, "the second stream worker is ready", more=lambda: loop.said("second-stream"))

        def end() -> None:
            process.kill()
            process.wait()

        return end, ""

    return Fault("second", "second stream worker, killed", begin, CUT_SECONDS)


def _second_learner() -> Fault:
    """A second learner by mistake: the first gives way. Whoever made the mistake mends it: stops the second, and starts
    the first again."""

    def begin(loop: CrashLoop, draw: Generator) -> tuple[Ends, str]:
        loop.expects_fence = True
        process, _ = loop.second("learn")

        def gave_way() -> bool:
            return loop.supervisor.roles["learn"].state == "gave up"

        loop.until(gave_way, "the first learner gives way", more=lambda: loop.said("second-learn"))

        def end() -> None:
            process.kill()
            process.wait()
            loop.expects_fence = False
            loop.start("learn")

        return end, ""

    return Fault("second", "second learner by mistake", begin, CUT_SECONDS)


def _all() -> Iterator[Fault]:
    for victim in VICTIMS:
        yield _kill((victim,))
        yield _stop((victim,))
    for victim in LATE_VICTIMS:
        yield _kill((victim,))._replace(kind="audit", name=f"kill {victim}, shop closed", late=True)
    yield _pair("kill", _kill, (0.0, 0.0))
    yield _each()
    yield _pair("stop", _stop, STOPPED_SECONDS)
    for name in ("kafka", "redis", "serve"):
        for state in ("slow", "dead", "closed"):
            yield _link(name, state)
    for name in DISKS:
        yield _disk(name)
    yield _emptied()
    for role in ("stream", "learn", "serve", "simulate"):
        yield _clock(role, 1)
        yield _clock(role, -1)
    yield _second_scorer()
    yield _second_stream()
    yield _second_learner()


FAULTS = tuple(_all())


def chosen(names: str) -> tuple[Fault, ...]:
    """The faults of some kinds or names, ``kill,Redis emptied``; empty: all. Raises ValueError where one is unknown.

    >>> [fault.name for fault in chosen("emptied,kill learn")]
    ['kill learn', 'Redis emptied']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {fault.kind for fault in FAULTS} | {fault.name for fault in FAULTS}
    for name in wanted:
        if name not in known:
            raise ValueError(f"'{name}' is no fault; there are: {', '.join(sorted(known))}")
    return tuple(fault for fault in FAULTS if not wanted or fault.kind in wanted or fault.name in wanted)
