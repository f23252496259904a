# shell
"""Bytes a second that versions of the model take, and what it costs to send the network's weights less often.

The demo's shop is played in one process (:mod:`benchmarks.wireshop`). A model learns its samples as the learner
does: micro-batches as they come, a delta each second of the wall. For each interval of dense weights there is a
follower that applies what would have been sent::

    samples ──► followers score them (log loss of what is served) ──► model learns ──► delta, each second
                                                                          rows: to all followers
                                                                          dense: to those whose interval is over

"Before" is a file as the learner wrote it once: all dense tensors whole with each delta, no compression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from benchmarks.wireshop import Shop
from learner.ranker.model import OnlineModel
from learner.serving.serving import ServingModel
from millrace.basics.merit import auc, log_loss
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.versions.image import Array, Image
from millrace.versions.modellog import encode_delta
from millrace.versions.packing import pack, unpack
from millrace.versions.versioning import Announcement

INTERVALS = (1, 2, 5, 10, 30)
"""Seconds between two deltas with dense weights."""

Say = Callable[[str], None]


class _Follower:
    """A scorer that gets dense weights every ``seconds``, and the bytes that it was sent."""

    def __init__(self, model: OnlineModel, seconds: int) -> None:
        image, _ = model.snapshot()
        self.seconds, self.model = seconds, ServingModel.of(model.schema, model.spec, image)
        self.dense: dict[str, Array] = image.dense
        self.bytes = self.dense_bytes = 0
        self.scores: list[NDArray[np.float32]] = []

    def send(self, second: int, rows: Image, dense: dict[str, Array]) -> None:
        due = second % self.seconds == 0
        image = Image(dense if due else {}, rows.tables)
        body = pack(image, self.dense)
        self.model.patch(unpack(body, self.dense))
        self.bytes += _message_bytes(body)
        if due:
            self.dense_bytes += len(body) - len(pack(rows))
            self.dense = dense


def delta_bytes(
    seconds: int = 120,
    seed: int = 0,
    speed: float = 240.0,
    intervals: Sequence[int] = INTERVALS,
    say: Say = print,
    users: int = 4000,
    days: int = 8,
) -> dict[str, Any]:
    """Measures a stretch of the demo, from an untrained model on.

    Args:
        seconds: of the wall.
        speed: event seconds a second; the demo's.
        intervals: of dense weights, in seconds; the setting's own is among them.
        users, days: as :class:`Shop` takes them.

    Returns:
        ``delta_bytes_a_second`` at the setting's interval, ``before`` (the same without any of this), ``ratio``;
        ``samples_a_second``, ``rows_a_second``; ``by_interval``: for each interval ``bytes_a_second``,
        ``dense_bytes_a_second``, and over the second half of the samples ``log_loss`` and ``auc`` of what was served.
    """
    shop, settings = Shop(seed, users, days, speed), Settings()
    model = OnlineModel(shop.schema, settings.spec(), seed)
    followers = [_Follower(model, interval) for interval in intervals]
    before = rows_sent = samples = 0
    labels: list[NDArray[np.float32]] = []
    for second in range(1, seconds + 1):
        for batch in _second(shop, second):
            samples += len(batch)
            judged = batch.take((batch.kind != CORRECTION) & (batch.kind != FOLLOW_UP))
            if len(judged):
                labels.append(judged.label)
                for follower in followers:
                    follower.scores.append(follower.model.score(judged.cat, judged.num))
            for start in range(0, len(batch), settings.batch_rows):
                model.learn(batch.take(slice(start, start + settings.batch_rows)))
        dense, rows = model.dense.changes(), model.changes(dense=False)
        before += len(save(Image(dense, rows.tables).tensors()))
        rows_sent += sum(len(t.ids) for t in rows.tables.values())
        for follower in followers:
            follower.send(second, rows, dense)
        if second % 10 == 0:
            say(f"{second} of {seconds} s, {samples} samples")
    label = np.concatenate(labels)
    half = len(label) // 2
    by_interval = {}
    for follower in followers:
        p = np.concatenate(follower.scores)[half:]
        by_interval[str(follower.seconds)] = {
            "bytes_a_second": follower.bytes / seconds,
            "dense_bytes_a_second": follower.dense_bytes / seconds,
            "log_loss": log_loss(p, label[half:]),
            "auc": auc(p, label[half:]),
        }
    chosen = by_interval[f"{settings.dense_seconds:g}"]["bytes_a_second"]
    return {
        "delta_bytes_a_second": chosen,
        "before": before / seconds,
        "ratio": chosen / (before / seconds),
        "samples_a_second": samples / seconds,
        "rows_a_second": rows_sent / seconds,
        "by_interval": by_interval,
    }


def _second(shop: Shop, second: int) -> list[SampleBatch]:
    """The samples of a second of the wall, in four micro-batches of 250 ms, as they come."""
    while shop.wall_ms < 1000 * second:
        shop.play(1)
    sent = [(one.wall_ms, one.value) for one in shop.sent if one.topic == SAMPLES]
    shop.sent.clear()
    quarters: dict[int, list[SampleBatch]] = {}
    for wall_ms, value in sent:
        assert isinstance(value, SampleBatch)
        quarters.setdefault(wall_ms // 250, []).append(value)
    return [SampleBatch.concat(batches) for batches in quarters.values()]


def _message_bytes(body: bytes) -> int:
    """Of the messages that carry a body."""
    note = Announcement(
        kind="delta", epoch=1, version=1, claimant="0" * 32, parent="0" * 64, hash="0" * 64, digest="0" * 64,
        size=len(body), schema_id="0" * 16, spec={}, event_ms=1_700_000_000_000, trained=1_000_000,
        published_ms=1_700_000_000_000,
    )  # fmt: skip
    return sum(map(len, encode_delta(note, body)))
