"""A scorer whose workers take versions up when a test says so."""

from __future__ import annotations

from typing import Any

import numpy as np

from scorer.ipc.link import Packet
from scorer.worker.replica import Replica, attach
from tests.scenes.scorer_feeder import Whole, delivered
from tests.scenes.scorer_shop import LAYOUT, serving


class Slow:
    """A second worker, which takes its messages when it is told to."""

    def __init__(self, whole: Whole) -> None:
        self.whole, self.packets = whole, list[Packet]()
        self.serving, _, _ = serving(settings=whole.settings)
        self.replica = Replica(self.serving, self._attach, lambda number: whole.host.serves(self, number))
        whole.host.add(self)

    def put(self, packet: Packet) -> None:
        self.packets.append(packet)

    def take(self, most: int = 1000) -> None:
        some, self.packets = self.packets[:most], self.packets[most:]
        for packet in some:
            self.replica.take(delivered(packet))

    def _attach(self, message: Any) -> None:
        self.replica.attached(message, attach(self.serving.schema, message, 4))

    def scores(self) -> Any:
        assert self.serving.model is not None
        rng = np.random.default_rng(0)
        cat = rng.integers(1, 100, (20, LAYOUT.F))
        return self.serving.model.score(cat, rng.random((20, LAYOUT.N), np.float32)).tolist()
