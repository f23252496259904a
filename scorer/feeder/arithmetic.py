# core
"""Which arithmetic pages are computed in: the fastest on this machine whose scores rank as float32's do.

::

    the first version ──► a page of 1,000 rows of its own embeddings ──► each arithmetic of learner/network/forward.py:
                          error   deviation of its logits from float32's, over the standard deviation of these
                          ms      processor time of the network, median of interleaved passes

The fastest whose error is at most :data:`BOUND` computes all pages of all workers. The choice is kept in the model
store, in a file for each processor, library and form of the network. The first scorer to measure writes it, and no one
replaces it: so the scorers of a shop agree to the bit on the same processor, where two fast arithmetics may be as fast.
Errors are looked at anew in the version that a scorer starts with.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from msgspec import Struct
from msgspec.structs import replace

from learner.network.backward import Workspace
from learner.network.dense import threads
from learner.network.forward import ARITHMETICS, Arithmetic, PageForward, forward_of, prepared
from learner.serving.staging import ModelWriter
from millrace.basics.errors import UNFIT, StoreError, one_line
from millrace.basics.store import AbsentError, DamagedError, Store

log = structlog.get_logger("scorer")

BOUND = 0.005
"""Most error of an arithmetic. Such a page is harder than a real one, where bfloat16's error is half as large: of 1,000
candidates' best twenty 99.8% stay. Eight bit integers had an error of .008 on real pages, and kept 99.3%."""
_PREFIX = "arithmetic-"
_ROWS, _WARM, _ROUNDS = 1000, 3, 15


class Choice(Struct, frozen=True):
    """See the module's text. ``of``: what the times depend on. ``measured``: by this scorer, or read in the store."""

    arithmetic: Arithmetic
    ms: dict[str, float]
    error: dict[str, float]
    bound: float
    measured: bool
    of: str

    def __str__(self) -> str:
        parts = [
            f"{name} {self.ms[name]:.2f} ms, error {self.error[name]:.1e}"
            for name in sorted(self.ms, key=self.ms.__getitem__)
        ]
        return f"{'; '.join(parts)}; at most {self.bound:g}"


class ArithmeticChoice:
    """The choice of one scorer, made with its first version, and again only for a network of another form.

    Args:
        clock: processor time of the calling thread, in seconds.
        store: of the models; None: the choice is not kept.
    """

    def __init__(self, clock: Callable[[], float], store: Store | None = None) -> None:
        self._clock, self._store = clock, store
        self._of = ""
        self.choice: Choice | None = None

    def __call__(self, writer: ModelWriter) -> Arithmetic:
        """In what arithmetic the readers of a loaded writer compute pages."""
        if not writer.form.paged:
            return "float32"
        of = _machine() + " " + writer.sizes()
        if self.choice is None or self._of != of:
            self._of, self.choice = of, self._choose(writer, of)
            log.info(
                f"pages are computed in {self.choice.arithmetic}", why=str(self.choice), measured=self.choice.measured
            )
        return self.choice.arithmetic

    def _choose(self, writer: ModelWriter, of: str) -> Choice:
        given, network, columns = (
            writer.example(_ROWS, np.random.default_rng(0)),
            writer.network(),
            writer.form.columns,
        )
        room, passes, logits = Workspace(), dict[Arithmetic, PageForward](), dict[str, Any]()
        with threads(1):
            for arithmetic in ARITHMETICS:
                made = forward_of(network, columns, prepared(network, columns, arithmetic))
                assert made is not None
                try:
                    logits[arithmetic] = made.page(given, room).astype(np.float64)
                    passes[arithmetic] = made
                except (RuntimeError, AttributeError) as reason:  # this library or processor has no such product
                    if arithmetic == "float32":
                        raise
                    log.warning("an arithmetic cannot be had here", arithmetic=arithmetic, error=one_line(reason))
            exact = logits["float32"]
            spread = max(float(exact.std()), 1e-9)
            error = {name: float(np.sqrt(np.mean((found - exact) ** 2))) / spread for name, found in logits.items()}
            within = [name for name in passes if name == "float32" or error[name] <= BOUND]  # errors may be NaN
            chosen = self._read(of)
            if chosen is None:
                ms = self._timed(passes, given, room)
                chosen = self._keep(Choice(min(within, key=ms.__getitem__), ms, error, BOUND, True, of))
        ms = {name: chosen.ms.get(name, float("inf")) for name in passes}
        best = chosen.arithmetic if chosen.arithmetic in within else min(within, key=ms.__getitem__)
        return replace(chosen, arithmetic=best, ms=ms, error=error, bound=BOUND)

    def _read(self, of: str) -> Choice | None:
        """The choice of this machine and form, if it is in the store. A damaged file is renamed, which is logged."""
        if self._store is None:
            return None
        try:
            return _in(self._store, _name(of))
        except AbsentError:
            return None
        except DamagedError as error:
            with suppress(StoreError):  # of a store that may only be read
                self._store.rename_damaged(_name(of), one_line(error))
            return None

    def _keep(self, mine: Choice) -> Choice:
        """The choice that is in the store from now on: this one, or that of a scorer that was faster."""
        if self._store is not None and np.isfinite(list(mine.error.values())).all():  # others say nothing of later ones
            try:
                self._store.put_first(_name(mine.of), mine)
                first = _in(self._store, _name(mine.of))
                return mine if first.ms == mine.ms else first
            except StoreError as error:
                log.warning("the choice of arithmetic cannot be kept in the store", error=one_line(error))
        return mine

    def _timed(self, passes: dict[Arithmetic, PageForward], given: Any, room: Workspace) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in passes}
        for turn in range(_WARM + _ROUNDS):
            for name, each in passes.items():  # in turn: what else the machine does meets all of them
                began = self._clock()
                each.page(given, room)
                if turn >= _WARM:
                    taken[name].append(self._clock() - began)
        return {name: 1000 * float(np.median(times)) for name, times in taken.items()}


def choices(store: Store) -> list[Choice]:
    """What scorers of a model store have chosen, on whatever processor; damaged files are left out. Raises
    StoreError."""
    found = []
    for name in store.names(_PREFIX):
        with suppress(AbsentError, DamagedError):
            found.append(_in(store, name))
    return found


def _in(store: Store, name: str) -> Choice:
    """Raises as :meth:`Store.get`."""
    head, _, _ = store.get(name)
    try:
        return replace(msgspec.json.decode(head, type=Choice), measured=False)
    except UNFIT as error:
        raise DamagedError(f"file '{name}' holds no choice of arithmetic ({error})", "it is measured anew") from None


def _name(of: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(of.encode()).hexdigest()[:16]}.choice"


def _machine() -> str:
    """This processor and this library."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    processor = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return f"{platform.machine()} {processor} torch {torch.__version__}"
