# core
"""Which arithmetic pages are computed in: the fastest on this machine whose scores rank as float32's do.

::

    the first version ──► a page of 1,000 rows of its own embeddings ──► each arithmetic of learner/network/forward.py:
                          error   deviation of its logits from float32's, over the standard deviation of these
                          ms      processor time of the network, median of interleaved passes

The fastest whose error is at most :data:`BOUND` computes all pages of all workers. The choice is kept in the data
folder. Times are measured again where processor, library or the form of the network is another; errors are looked at
anew in the version that a scorer starts with.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from msgspec import Struct

from learner.network.backward import Workspace
from learner.network.dense import threads
from learner.network.forward import ARITHMETICS, Arithmetic, PageForward, forward_of, prepared
from learner.serving.staging import ModelWriter
from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import one_line

log = structlog.get_logger("scorer")

BOUND = 0.005
"""Most error of an arithmetic. Such a page is harder than a real one, where bfloat16's error is half as large: of 1,000
candidates' best twenty 99.8% stay. Eight bit integers had an error of .008 on real pages, and kept 99.3%."""
FILE = "scorer-arithmetic.json"
_ROWS, _WARM, _ROUNDS = 1000, 3, 15


class Choice(Struct, frozen=True):
    """See the module's text. ``of``: what the times depend on. ``measured``: now; otherwise they were in the folder."""

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
        data: the folder of the times; None: they are not kept.
    """

    def __init__(self, clock: Callable[[], float], data: Path | None = None) -> None:
        self._clock, self._path = clock, None if data is None else data / FILE
        self._of = ""
        self.choice: Choice | None = None

    def __call__(self, writer: ModelWriter) -> Arithmetic:
        """In what arithmetic the readers of a loaded writer compute pages."""
        if not writer.frame.paged:
            return "float32"
        of = _machine() + " " + writer.form()
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
            writer.frame.columns,
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
            kept = self._read(of, passes)
            ms = self._timed(passes, given, room) if kept is None else kept
        within = [name for name in passes if name == "float32" or error[name] <= BOUND]  # errors may be NaN
        choice = Choice(min(within, key=ms.__getitem__), ms, error, BOUND, kept is None, of)
        self._keep(choice)
        return choice

    def _read(self, of: str, passes: dict[Arithmetic, PageForward]) -> dict[str, float] | None:
        """The times of this machine and form, if they are in the folder."""
        if self._path is None:
            return None
        try:
            kept = read_choice(self._path.parent)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning(
                "the file of arithmetics cannot be read: measured anew", error=one_line(error), file=str(self._path)
            )
            return None
        return kept.ms if kept is not None and kept.of == of and kept.ms.keys() == passes.keys() else None

    def _timed(self, passes: dict[Arithmetic, PageForward], given: Any, room: Workspace) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in passes}
        for turn in range(_WARM + _ROUNDS):
            for name, each in passes.items():  # in turn: what else the machine does meets all of them
                began = self._clock()
                each.page(given, room)
                if turn >= _WARM:
                    taken[name].append(self._clock() - began)
        return {name: 1000 * float(np.median(times)) for name, times in taken.items()}

    def _keep(self, choice: Choice) -> None:
        if self._path is not None:
            try:
                write_whole(self._path, msgspec.json.encode(choice), durable=False)
            except OSError as error:
                log.warning("the file of arithmetics cannot be kept", error=one_line(error), file=str(self._path))


def read_choice(data: Path) -> Choice | None:
    """What a scorer with this data folder chose last; None: nothing yet. Raises OSError or msgspec.MsgspecError where
    the file is damaged."""
    try:
        return msgspec.json.decode((data / FILE).read_bytes(), type=Choice)
    except FileNotFoundError:
        return None


def _machine() -> str:
    """This processor and this library."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    processor = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return f"{platform.machine()} {processor} torch {torch.__version__}"
