"""Events in whatever order they come, drawn by Hypothesis, and a policy under which much comes late."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from stream.join.join import InputMessage
from tests.scenes.stream_world import HOUR, KINDS, MINUTE, POLICY, T0, Log, action, exposure, page_log

NOW = T0 + 1000 * HOUR
"""The event clock of these tests: nothing is from the future unless it says so."""


REMEMBERED = 2 * POLICY.life_ms - 5 * MINUTE
"""A duplicate that comes later than this is told from a new exposure no more; both are dead letters."""


Arriving = tuple[int, str, bytes]  # when, topic, message
page = st.fixed_dictionaries(
    {
        "gap": st.one_of(st.integers(0, 5 * MINUTE), st.sampled_from([0, 31 * MINUTE, 55 * MINUTE, 26 * HOUR])),
        "n": st.integers(1, 9),
        "cut": st.integers(0, 9),  # two exposure messages
        "exposed": st.sampled_from(["yes", "yes", "yes", "no", "half", "other item"]),
        "shown": st.one_of(st.none(), st.integers(0, 2**32)),  # how the client lays it out; None: as answered
        "stranger": st.sampled_from(
            [0, 0, 0, 1, 2, 3]
        ),  # 1: another user says what was seen; 2: what was done; 3: says so too
        "served": st.sampled_from([0, 0, 0, 40 * MINUTE, None]),  # delay of the page log
        "actions": st.lists(
            st.tuples(
                st.integers(1, 4),
                st.integers(0, 9),  # position, perhaps beyond the page
                st.one_of(
                    st.integers(-1000, 10 * MINUTE),
                    st.integers(0, 60 * MINUTE),
                    st.sampled_from([30 * MINUTE, -2 * MINUTE]),
                ),
                st.booleans(),  # names the right item
            ),
            max_size=6,
        ),
    }
)


def events_of(pages: list[dict[str, Any]]) -> list[tuple[int, Arriving]]:
    """(time stamp, arriving in order). Each action identity occurs once."""
    out: list[tuple[int, Arriving]] = []
    t = T0
    for i, p in enumerate(pages):
        t += p["gap"]
        request, items = f"r{i}", [(i + k) % 12 + 1 for k in range(p["n"])]
        seen_by, done_by = (i % 3 + (p["stranger"] == who) for who in (1, 2))
        if p["served"] is not None:
            out.append((t, (t + p["served"], "page_logs", page_log(request, t, items, user=i % 3))))
        shown = list(items)
        if p["exposed"] == "other item":
            shown[0] = 99
        if p["exposed"] == "half":
            shown = shown[: (len(shown) + 1) // 2]
        cut = p["cut"]
        for offset, part in ((0, shown[:cut]), (cut, shown[cut:])):
            if part and p["exposed"] != "no":
                seen: dict[str, Any] = {"items": part}
                if p["shown"] is not None:  # some of the items, in another order
                    rng = random.Random(p["shown"])
                    slots = rng.sample(range(offset, offset + len(part)), rng.randint(1, len(part)))
                    seen = {"items": [shown[slot] for slot in slots], "slots": slots}
                out.append((t, (t, "events", exposure(request, t, offset=offset, user_id=seen_by, **seen))))
        done = set()
        for kind, position, after, right in p["actions"]:
            if (kind, position) not in done:
                done.add((kind, position))
                item = items[position] if right and position < len(items) else 77
                raw = action(KINDS[kind], request, max(1, t + after), position, item, user_id=done_by)
                out.append((t + after, (t + after, "events", raw)))
                if p["stranger"] == 3:  # the same is said by two users
                    raw = action(KINDS[kind], request, max(1, t + after), position, item, user_id=done_by + 1)
                    out.append((t + after, (t + after, "events", raw)))
    return out


@st.composite
def arrivals(draw: Any, wild: bool, clocked: bool = False) -> list[InputMessage]:
    """Messages in the order of arrival. Not wild: within the disorder, but for page logs. Wild: anything goes.
    Clocked: each says when it came, and some are dated ahead of that."""
    made = events_of(draw(st.lists(page, min_size=1, max_size=12)))
    rng = random.Random(draw(st.integers(0, 2**32)))
    queue: list[Arriving] = []
    for _, (when, topic, raw) in made:
        queue.append((when + rng.randrange(POLICY.disorder_ms), topic, raw))
        if rng.random() < 0.2:  # a duplicate
            delay = rng.choice([POLICY.disorder_ms, REMEMBERED]) if wild else POLICY.disorder_ms
            queue.append((when + rng.randrange(delay), topic, raw))
        if wild and rng.random() < 0.1:  # late: this instance comes again much later, or only then
            queue[-1] = (when + rng.randrange(REMEMBERED), topic, raw)
        if clocked and rng.random() < 0.2:
            queue[-1] = (when - rng.randrange(2 * POLICY.ahead_ms), topic, raw)
    if wild:
        first = min((q[0] for q in queue), default=T0)
        bad = (b"{", b"[]", b'{"type":"view"}', exposure("f", NOW + 2 * HOUR, [1, 2]), b"\xff" * 20)
        queue += [(first + rng.randrange(HOUR), "events", raw) for raw in bad]
        queue.append((first, "page_logs", b"\xc1"))
    queue.sort(key=lambda q: q[0])
    log = Log()
    return [log(topic, raw)._replace(clock_ms=when if clocked else None) for when, topic, raw in queue]


SETTLED = replace(POLICY, attribution_ms=5 * MINUTE, lateness_ms=60 * MINUTE)
"""Attribution is short beside lateness, so that much comes for settled pages."""
