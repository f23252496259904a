# shell
"""A day at ten times the default rate through a partition: memory must end as it was after the first quarter.

2.3 million exposures over 24 hours of event time, in pages of 20 with a tenth clicked, made chunk by chunk as they
are taken, so that the stream itself takes no memory. The partition sweeps its windows and hands out its changes as the
worker has it do, and is checkpointed each hour. State grows for as long as the longest window is and is steady then:
so as many days and one more, at the same rate over the same users and items, are counted beforehand, and what goes out
of the windows under way is as much as what comes in.

RSS is read from ``/proc`` at the end of each hour of event time; the figure is the most in the last quarter over the
most in the first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from benchmarks.runner import Figure, figure
from benchmarks.stream import HOUR, OFTEN, PAGE, T0, TAKE, history, make
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.processes.memory import measured_bytes
from stream.partition.checkpoint import CheckpointStore
from stream.partition.partition import Partition, Policy

EXPOSURES = 2_304_000
HOURS = 24
USERS, ITEMS = 4_000, 5_000

Say = Callable[[str], None]


class Shop:
    """A partition that is fed hour after hour."""

    def __init__(self, schema: Schema, pages: int, users: int, items: int) -> None:
        self.schema, self.pages, self.users, self.items = schema, pages, users, items
        self.partition = Partition(0, schema, Policy.of(Settings()))
        self.samples = self.hour = self._turn = 0

    def remember(self, days: int) -> None:
        """Counts the days before ``T0`` in the windows, at the same rate; sweeps at the end of each."""
        windows, per_day = self.partition.windows, self.pages * PAGE * 24
        for day in range(days, 0, -1):
            end_ms = T0 - (day - 1) * 24 * HOUR
            windows.add(*history(self.schema, per_day, self.users, self.items, seed=-day % 1000, days=1, end_ms=end_ms))
            windows.expire(end_ms)

    def play(self) -> None:
        """One hour of event time: take, publish. Requests and offsets follow those of the hour before."""
        made = make(
            self.schema, self.pages, self.users, self.items, 1, seed=self.hour, start_ms=T0 + self.hour * HOUR,
            first=self.hour * self.pages, offsets=self.partition.offsets,
        )  # fmt: skip
        self.hour += 1
        for start in range(0, len(made.messages), TAKE):
            output = self.partition.take(made.messages[start : start + TAKE], 1 << 60)
            self.samples += 0 if output.samples is None else len(output.samples)
            self._turn += 1
            if self._turn % OFTEN == 0:
                self.partition.changes()
        self.partition.changes()


def run(out_dir: Path, progress: Say = print) -> list[Figure]:
    """Memory in the first and last quarter of the day, and what there was to hold."""
    shop = Shop(shop_schema(), EXPOSURES // HOURS // PAGE, USERS, ITEMS)
    days = shop.schema.windows.days[-1] + 1
    progress(f"counting {days} days, the longest window and a day")
    shop.remember(days)
    for _ in range(2):  # pages live for some minutes, ids are remembered for as long again
        shop.play()
    store = CheckpointStore(out_dir / "soak-checkpoints")
    line = store.load(Partition(0, shop.schema, Policy.of(Settings()))).line
    before = shop.samples
    used, keys, size = [], [], 0
    for hour in range(HOURS):
        shop.play()
        line.write([], shop.partition.snapshot())
        size = line.base_bytes
        gc.collect()
        used.append(measured_bytes())
        keys.append(shop.partition.window_keys)
        progress(f"hour {hour + 1} of {HOURS}: {used[-1] >> 20} MiB, {keys[-1]} keys")
    first, last = max(used[: HOURS // 4]), max(used[-HOURS // 4 :])
    return [
        figure("soak_rss_first_quarter", first, "bytes"),
        figure("soak_rss_end", last, "bytes", "soak_rss_first_quarter", last / first),
        figure("soak_keys_end", keys[-1], "keys", "the first quarter's", keys[-1] / max(keys[: HOURS // 4])),
        figure("soak_samples", shop.samples - before, "samples"),
        figure("soak_checkpoint_bytes", size, "bytes"),
    ]
