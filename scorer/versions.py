# core
"""Which model version follows which: what a scorer does with an announcement, decided from the notes alone.

::

    snapshot h30 ──► delta h31 ──► delta h32          the chain we are on: patch
                        └─ (learner restarted) root snapshot h31' ──► delta h32'     another chain: load its root

One learner writes, so what it published last is the truth, even when its version number is lower than ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from millrace.contracts.modelstore import Announcement

Verdict = Literal["ignore", "patch", "load", "gap"]


def order(note: Announcement) -> tuple[int, int]:
    """Sorts announcements as they were published."""
    return note.published_ms, note.version


def judge(serving: Announcement | None, note: Announcement) -> Verdict:
    """What to do with ``note`` while ``serving`` is served (None: nothing yet).

    - ``ignore``: we have it, or something newer.
    - ``patch``: a delta whose parent is what we serve.
    - ``load``: a snapshot that starts a chain, or the first thing ever.
    - ``gap``: something between it and us is missing; load the newest snapshot and the deltas after it.
    """
    if serving is None:
        return "load" if note.kind == "snapshot" else "gap"
    if note.hash == serving.hash:
        return "ignore"
    if note.kind == "delta" and note.parent == serving.hash:
        return "patch"
    if order(note) <= order(serving):
        return "ignore"
    return "load" if note.is_root else "gap"


def path_from(snapshot: Announcement, deltas: Iterable[Announcement]) -> list[Announcement]:
    """The deltas that follow ``snapshot`` one by one, as far as they are there."""
    following = {note.parent: note for note in deltas if note.version > snapshot.version}
    path: list[Announcement] = []
    head = snapshot.hash
    while head in following:
        path.append(following.pop(head))
        head = path[-1].hash
    return path
