# shell
"""The state of a run as one JSON-able dictionary: what the terminal view and the live page show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.commands.loop.answers import awaited, fast, learns, when
from millrace.commands.loop.gatestatus import VERDICTS, Gate, says
from millrace.commands.loop.monitor import Monitor, Picture, arms_of, outcomes_of
from millrace.commands.loop.series import Series
from millrace.evidence.learners import LEARNER_ROLE
from millrace.processes.supervisor import Supervisor

State = dict[str, Any]


@dataclass(slots=True)
class RunStatus:
    """The display of a run besides its figures. The owner may change it while the run goes on."""

    roles: tuple[str, ...]
    """The roles that the run starts, in the order of display."""
    control: bool = True
    """Whether some pages are random, to compare with."""
    settles_s: float = 0.0
    """Wall seconds from an exposure until its label is settled, and counts in the figures of quality."""
    awaits: str = ""
    """What the run waits for, and who can bring it; empty: nothing."""
    resumed: bool = False
    """Whether the run goes on from earlier state: its counts and figures of quality begin again."""
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether shoppers are simulated: then their true click probabilities are known."""
        return "simulate" in self.roles


BLOCKS = "▁▂▃▄▅▆▇█"


def state_of(
    phase: str,
    started_wall_ms: int,
    speed: float,
    monitor: Monitor | None,
    supervisor: Supervisor,
    notes: list[str],
    shown: RunStatus,
) -> State:
    """Everything that is shown of a run.

    Args:
        phase: starting, running, draining, auditing, stopping, done or failed.
        started_wall_ms: when the traffic began; 0 before.
        monitor: None before the roles have addresses.
    """
    picture = monitor.picture if monitor else Picture()
    series = monitor.series if monitor else Series()
    figures: dict[str, float | None] = dict(picture.figures)
    figures["exposures_per_s"] = series.rate("exposures")
    figures["samples_per_s"] = series.rate("samples")
    for arm in ("model", "control"):
        seen = figures.get(f"page_exposures_{arm}") or 0.0
        shown_rate = (figures.get(f"page_clicks_{arm}") or 0.0) / seen if seen else None
        figures[f"ctr_{arm}"] = shown_rate if shown.simulated else figures.get(f"click_rate_{arm}")
        figures[f"ctr_{arm}_recent"] = series.click_rate(arm)
    now = time.time_ns() // 1_000_000
    arms = arms_of(monitor.roles.get("archive")) if monitor else []
    settled = when(shown.settles_s, started_wall_ms, now)
    state: State = {
        "phase": phase,
        "wall_ms": now,
        "elapsed_s": (now - started_wall_ms) / 1000 if started_wall_ms else 0.0,
        "speed": speed,
        "figures": figures,
        "simulated": shown.simulated,
        "control": shown.control,
        "learns": learns(
            arms,
            figures,
            series,
            settled,
            simulated=shown.simulated,
            control=shown.control,
            archive="archive" in shown.roles,
        ),
        "fast": fast(figures, series),
        "awaited": awaited(series, settled, simulated=shown.simulated),
        "since": "since this start" if shown.resumed else "",
        "awaits": shown.awaits,
        "addresses": dict(shown.addresses),
        "roles": [_role(name, supervisor, picture, figures) for name in shown.roles],
        "memory": memory(figures.get("memory_total")),
        "dead_letters": picture.dead_letters,
        "gate": _gate(picture.gate, figures),
        "arms": arms,
        "outcomes": outcomes_of(monitor.roles.get("learn")) if monitor else [],
        "notes": notes[-8:],
        "series": series.columns(),
    }
    return state | {"stands": stands(state)}


def stands(state: State) -> dict[str, str]:
    """How a run stands, in one sentence: that all is well, or the worst thing that is not.

    The sentence has no figure that changes while nothing happens, so a screen reader says it when something does.

    Returns:
        ``mood``: good, bad, or empty for what passes by itself or waits for a person; and ``says``.
    """
    roles, gate, phase = state["roles"], state["gate"], state["phase"]
    by_state = {role["state"]: role for role in reversed(roles)}
    broken = state["figures"].get("not_finite")
    if phase == "failed":
        return {"mood": "bad", "says": f"The run failed. {' '.join(state['notes'][-1:])}".strip()}
    if lost := by_state.get("gave up"):
        return {"mood": "bad", "says": f"{lost['name']} ended too often and is not started again; see its log."}
    if phase not in ("starting", "running"):
        return {"mood": "", "says": f"The run is {phase}."}
    if down := by_state.get("waiting") or by_state.get("stopped"):
        restarts = f", restart {down['restarts'] + 1}" if down["state"] == "waiting" else ""
        return {"mood": "bad", "says": f"{down['name']} is down{restarts}; see its log. The others go on."}
    if broken:
        return {
            "mood": "bad",
            "says": f"{count(broken)} predictions of the learner are no finite numbers; see its log.",
        }
    if alarms(state):
        return {"mood": "" if gate["state"] == "held" else "bad", "says": f"The gate: {gate['says']}."}
    if state["awaits"]:
        return {"mood": "", "says": state["awaits"]}
    late = [role for role in roles if role["state"] != "running"]
    if late or phase == "starting":
        why = [role["awaits"] or ("it ended and was started again" if role["restarts"] else "") for role in late]
        names = [role["name"] + (f" ({of})" if of else "") for role, of in zip(late, why, strict=True)]
        return {"mood": "", "says": f"Not ready yet: {', '.join(names) or 'the shop'}."}
    judged = "" if gate["state"] is None else " and the gate lets new versions serve"
    return {"mood": "good", "says": f"All is well: all {len(roles)} roles work{judged}."}


def alarms(state: State) -> bool:
    """Whether the newest version does not serve."""
    return state["gate"]["state"] not in (None, "promoting")


def _gate(gate: Gate, figures: Mapping[str, float | None]) -> dict[str, object]:
    verdicts = {kind: getattr(gate, kind) for kind in VERDICTS}
    checks = sorted({check for counts in verdicts.values() for check in counts})
    return {
        "state": gate.state,
        "check": gate.check,
        "why": gate.why,
        "says": says(gate, figures),
        "refused_ms": gate.refused_ms,
        "unseen": list(gate.unseen),
        "history": list(gate.history),
        "verdicts": [
            {"check": check} | {name: counts.get(check, 0) for name, counts in verdicts.items()} for check in checks
        ],
    }


def _role(
    name: str, supervisor: Supervisor, picture: Picture, figures: Mapping[str, float | None]
) -> dict[str, object]:
    role = supervisor.roles.get(name)
    state: str = role.state if role else "not started"
    if state == "running" and not picture.ready.get(name):
        state = "starting"
    n = figures.get("partitions_awaited") if (name, state) == ("stream", "starting") else None
    awaits = f"reads the states of its partitions, {count(n)} to go" if n else ""
    return {
        "name": name,
        "state": state,
        "pid": role.pid if role else None,
        "restarts": role.restarts if role else 0,
        "memory": memory(figures.get(f"memory_{name}")),
        "awaits": awaits,
        "says": awaits or _says(name, figures),
    }


def _says(name: str, f: Mapping[str, float | None]) -> str:
    if name == "simulate":
        return f"{count(f.get('exposures'))} exposures, {count(f.get('clicks'))} clicks"
    if name == "stream":
        return (
            f"{count(f.get('samples'))} samples, {count(f.get('pending'))} pending,"
            f" {count(f.get('dead_letters'))} dead letters, lag {count(f.get('stream_lag'))}"
        )
    if name == "learn":
        return (
            f"{count(f.get('trained'))} trained, {count(f.get('table_rows'))} rows, lag {count(f.get('learner_lag'))}"
            + (f", {count(f.get('not_finite'))} PREDICTIONS NOT FINITE" if f.get("not_finite") else "")
        )
    if name == "intake":
        return f"{count(f.get('intake_kept'))} messages kept, {count(f.get('intake_refused'))} refused"
    if name == "archive":
        return f"{count(f.get('archived'))} rows written"
    if name.startswith(LEARNER_ROLE):
        own, first = (fixed(f.get(f"{name}_auc_{of}")) for of in ("own", "first"))
        return f"{count(f.get(f'{name}_trained'))} trained, AUC {own}, the first's {first} on held-out pages"
    users = f"users not read {percent(f.get('unread_share'))}, unknown {percent(f.get('unknown_share'))}"
    return f"{count(f.get('requests'))} requests, {count(f.get('versions_served'))} versions served, {users}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def memory(value: float | None) -> str:
    return "–" if value is None else f"{value / (1 << 20):,.0f}\N{NO-BREAK SPACE}MiB"


def fixed(value: float | None, digits: int = 3, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.2f}%"


def sparkline(values: list[float | None], width: int = 40) -> str:
    """The last ``width`` known values as block characters between their own minimum and maximum."""
    known = [v for v in values if v is not None]
    if len(known) > width:  # thin the points, so that the whole run is shown
        step = len(known) / width
        known = [known[int(i * step)] for i in range(width - 1)] + [known[-1]]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(BLOCKS[min(int((v - low) / span * len(BLOCKS)), len(BLOCKS) - 1)] for v in known)
