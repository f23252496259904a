# shell
"""Where a replay of an imported log is, so that after a kill it goes on there.

Every two minutes the model is written to a folder in the report's, with the number of steps it has learnt. Scores lie
there in mapped files. The next run of the same replay makes the features of these steps again, for windows and samples
follow from them; it neither scores nor learns them. Scores behind that place are written a second time, and are the
same.

A replay is the same if log, schema, model, seed and settings are, on the same kind of processor.
"""

from __future__ import annotations

import shutil
import time
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from learner.ranker.model import OnlineModel
from millrace.basics.errors import SnapshotError, StoreError, one_line
from millrace.basics.store import Sealed
from millrace.versions.modelstore import ModelStore, Place

log = structlog.get_logger("replay")

EVERY_S = 120.0
"""Between two times that a replay is kept."""


class KeptReplay:
    """A run of ``model``, kept in ``folder``.

    Args:
        same: what makes a replay the same, JSON-able.

    Attributes:
        steps: how many of them ``model``, which is replaced by the kept one, has learnt.
    """

    def __init__(self, folder: Path, model: OnlineModel, same: object) -> None:
        self._folder, self._model = folder, model
        capability = torch.backends.cpu.get_cpu_capability()
        self._same = sha256(msgspec.json.encode([same, capability])).hexdigest()
        self._store = ModelStore(folder)
        self._arrays: list[np.memmap[tuple[int, ...], np.dtype[np.float32]]] = []
        self._due_s = time.monotonic() + EVERY_S
        note = self._store.latest()
        self.steps = 0
        if note is not None and note.extra.get("same") == self._same:
            try:
                model.resume(self._store.read_whole(note))
            except (StoreError, SnapshotError) as error:
                log.warning("the replay begins anew: what was kept of it cannot be read", error=one_line(error))
            else:
                self.steps = note.version
                return
        self.remove()
        self._store = ModelStore(folder)

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of the run, NaN where nothing was written."""
        file = self._folder / f"{name}.npy"
        mode = "r+" if self.steps else "w+"
        found = np.lib.format.open_memmap(file, mode, np.float32, shape)
        if not self.steps:
            found[:] = np.nan
        self._arrays.append(found)
        return found

    def look(self, steps: int) -> None:
        """Keeps the model behind so many steps, if it is time. Everything that these score must be there."""
        if time.monotonic() < self._due_s:
            return
        try:
            self._keep(steps)
        except (StoreError, OSError) as error:
            log.warning("the replay cannot be kept, and goes on", error=one_line(error))
        self._due_s = time.monotonic() + EVERY_S

    def _keep(self, steps: int) -> None:
        for array in self._arrays:
            array.flush()
        place, slices = Place(0, steps), self._model.slices()
        parts: list[tuple[Sealed, Sealed]] = []
        while (part := slices.next()) is not None:
            parts.append(self._store.write_part(place, len(parts), *part))
        parts.append(self._store.write_part(place, len(parts), *slices.finish()))
        self._store.write_manifest(
            parts, epoch=0, version=steps, claimant="replay", schema_id=self._model.schema.id, spec=self._model.spec,
            event_ms=self._model.newest_ms, trained=0, published_ms=0, extra={"same": self._same},
        )  # fmt: skip
        self._store.prune(keep=1)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
