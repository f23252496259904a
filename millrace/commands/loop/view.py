# shell
"""The terminal view: one table that changes in place, or a line every ten seconds when the output is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from millrace.commands.loop.status import State, alarms, count, fixed, percent, sparkline

LINE_SECONDS = 10.0
_COLOURS = {"running": "green", "starting": "yellow", "waiting": "yellow", "gave up": "red", "not started": "dim"}


def line_of(state: State) -> str:
    f = state["figures"]
    roles = [
        f"{r['name']} {r['state']}" + (f" ({r['awaits']})" if r["awaits"] else "")
        for r in state["roles"]
        if r["state"] not in ("running", "not started")
    ]
    oracle = f"oracle {fixed(f.get('oracle_auc'))} " if state["simulated"] else ""
    control = f" control {percent(f.get('ctr_control'))}" if state["control"] else ""
    parts = [
        f"{state['phase']} {state['elapsed_s']:4.0f} s" + (f" (figures {state['since']})" if state["since"] else ""),
        f"exposures {count(f.get('exposures'))} ({count(f.get('exposures_per_s'))}/s)",
        f"trained {count(f.get('trained'))}",
        f"AUC served {fixed(f.get('auc'))} {oracle}baseline {fixed(f.get('baseline_auc'))}",
        f"CTR model {percent(f.get('ctr_model'))}{control}",
        f"version {count(f.get('served_version'))}",
        f"click to served p50 {fixed(_seconds(f.get('click_to_served_p50_ms')), 2, ' s')}",
        *roles,
        *([f"gate {state['gate']['says']}"] if alarms(state) else []),
        *([state["awaits"]] if state["awaits"] else []),
    ]
    return " · ".join(parts)


def table_of(state: State, page: str) -> RenderableType:
    f = state["figures"]
    roles = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for column in ("role", "state", "restarts", "memory", "figures"):
        justify: Literal["left", "right"] = "right" if column in ("restarts", "memory") else "left"
        roles.add_column(column, justify=justify, no_wrap=column != "figures")
    for role in state["roles"]:
        colour = _COLOURS.get(role["state"], "default")
        restarts = str(role["restarts"] or "")
        state_cell, restarts_cell = Text(role["state"], style=colour), Text(restarts, style="yellow")
        roles.add_row(role["name"], state_cell, restarts_cell, role["memory"], role["says"])
    key = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    key.add_column(style="dim", no_wrap=True)
    key.add_column(no_wrap=True)
    history = state["series"]["auc"]
    key.add_row("rolling AUC", Text.assemble((fixed(f.get("auc")), "bold"), "  ", (sparkline(history), "cyan")))
    oracle = f"oracle {fixed(f.get('oracle_auc'))}, " if state["simulated"] else ""
    auc, loss, rate = f"{oracle}baseline {fixed(f.get('baseline_auc'))}", fixed(f.get("log_loss")), f.get("ctr_model")
    losses, rates = f"{loss}, calibration {fixed(f.get('calibration'), 2)}", f"model {percent(rate)}"
    if state["control"]:
        auc += f"; random pages {fixed(f.get('auc_control'))}"
        losses += f"; random pages {fixed(f.get('log_loss_control'))}, {fixed(f.get('calibration_control'), 2)}"
        rates += f", control {percent(f.get('ctr_control'))}"
    key.add_row("", auc)
    key.add_row("within pages", _order(f, state["control"]))
    key.add_row("log loss", losses)
    key.add_row("click rate", rates if state["simulated"] else f"{rates} (of settled exposures)")
    key.add_row(
        "throughput", f"{count(f.get('exposures_per_s'))} exposures/s, {count(f.get('samples_per_s'))} samples/s"
    )
    key.add_row(
        "freshness",
        f"{fixed(f.get('freshness_s'), 1, ' s')}; click to served {fixed(_seconds(f.get('click_to_served_p50_ms')), 2)}"
        f" / {fixed(_seconds(f.get('click_to_served_p99_ms')), 2)} s (p50 / p99)",
    )
    key.add_row("memory", f"{state['memory']} in all processes together")
    key.add_row("version", f"{count(f.get('served_version'))} served, {count(f.get('learner_version'))} learnt")
    if state["gate"]["says"]:
        key.add_row("gate", Text(state["gate"]["says"], style="bold red" if alarms(state) else "", no_wrap=False))
    speed = f" ({state['speed']:g}x)" if state["simulated"] else ""
    clock = time.strftime("%a %H:%M", time.gmtime((f.get("event_ms") or 0) / 1000)) if f.get("event_ms") else "–"
    awaits = [Text(), Text(state["awaits"], style="yellow")] if state["awaits"] else []
    head = Text.assemble(
        ("Millrace ", "bold"),
        f"{state['phase']}, {state['elapsed_s']:.0f} s, {clock} UTC{speed}  ",
        f"figures {state['since']}  " if state["since"] else "",
        (page, "underline"),
    )
    return Group(head, *awaits, Text(), roles, Text(), key)


def _order(f: Mapping[str, float | None], control: bool) -> str:
    """How pages are ordered: on its own pages position flatters a model, so random ones stand beside them."""
    arms = [("", "")] + [("; random pages ", "_control")] * control
    return "".join(
        f"{name}AUC {fixed(f.get(f'page_auc{arm}'))}, nDCG@10 {fixed(f.get(f'ndcg{arm}'))}"
        f" (item's rate {fixed(f.get(f'baseline_page_auc{arm}'))}, {fixed(f.get(f'baseline_ndcg{arm}'))})"
        for name, arm in arms
    )


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


class View:
    """Shows states while it is entered.

    Args:
        state: gives the state, a few times a second (terminal) or every ten seconds (pipe).
        line_seconds: between two lines in a pipe; None: :data:`LINE_SECONDS`.
    """

    def __init__(
        self, state: Callable[[], State], console: Console | None = None, line_seconds: float | None = None
    ) -> None:
        self.page = ""
        self._state = state
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._line_seconds = line_seconds
        self._live: Live | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._render, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        return table_of(self._state(), self.page)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def tick(self) -> None:
        if self._live is not None:
            self._live.refresh()
        elif time.monotonic() >= self._next_line:
            seconds = LINE_SECONDS if self._line_seconds is None else self._line_seconds
            self._next_line = time.monotonic() + seconds
            self.say(line_of(self._state()))
