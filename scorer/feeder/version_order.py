# core
"""Which model version follows which: a scorer's decision for each entry of ``model.deltas``.

::

                                    delta of what we have: patch
                                   ┌──────────┐
                                   ▼          │
      ┌─ nothing ─┐ look: load  ┌─ following ─┘       a delta is missing, damaged     ┌─ waiting ─┐
      │           ├────────────►│             ├──────────────────────────────────────►│           │◄─┐ later deltas:
      └───────────┘             │             │◄──────────────────────────────────────┤           ├──┘ nothing is done
                                └─────────────┘  look: load a snapshot beyond it      └───────────┘

Only (epoch, number) orders versions, and the served version never decreases in it. A root of a higher epoch is newer,
even if the learner that won the epoch rolled back to older content.

A *look* asks the store for its snapshots and loads the newest useful one. A look is due when a version turns out to be
missing, and at each later snapshot. A failed snapshot is not tried again. So a lost delta costs one load, however many
deltas follow, and no failure repeats for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import Bad, Claimed, Decisions, Delta, Entry, Fence, Snapshot
from millrace.versions.versioning import Announcement, Place, VersionClicks

Verdict = Literal["ignore", "foreign", "fenced", "bad", "patch", "look"]

MOST_FAILED = 1000
MOST_MISSED = 1000


class Follower:
    """Follows the versions of one schema. Its caller does what :meth:`take` says, and reports the result.

    Attributes:
        at: the version that the newest model object has; None: there is none.
        floor: the highest version that was ever served.
        waiting: why later deltas are useless until a snapshot comes; empty: they are not.
    """

    def __init__(self, schema_id: str) -> None:
        self.schema_id = schema_id
        self.at: Announcement | None = None
        self.floor: Place | None = None
        self.waiting = ""
        self._fence = Fence()
        self._failed: dict[tuple[Place, str], None] = {}
        self._missed: list[tuple[Place, VersionClicks]] = []

    @property
    def serves(self) -> bool:
        """Whether our version may be served: it is not below the floor."""
        return self.at is not None and (self.floor is None or self.at.place >= self.floor)

    def take(self, entry: Entry) -> Verdict:
        """What to do with the next entry.

        - ``ignore``: we have it or something newer, or it is useless now.
        - ``foreign``, ``fenced``: of another schema, or of a learner that has lost its epoch. Ignored as well.
        - ``bad``: unusable. The next delta shows whether a version is missing.
        - ``patch``: a delta whose parent is our version.
        - ``look``: see the module's text.
        """
        if isinstance(entry, Claimed):
            self._fence.claims(entry.claim)
            return "ignore"
        if isinstance(entry, Decisions):
            self._fence.admits(entry.note.epoch, entry.note.claimant)
            return "ignore"
        if isinstance(entry, Bad):
            old = entry.place is not None and (self._known(entry.place) or entry.place.epoch < self._fence.epoch)
            return "ignore" if old else "bad"
        note = entry.note
        if note.schema_id != self.schema_id:
            self._fence.admits(note.epoch, note.claimant)
            return "foreign"
        if not self._fence.admits(note.epoch, note.claimant):
            return "fenced"
        if isinstance(entry, Snapshot):
            return "ignore" if self._known(note.place) or self._key(note) in self._failed else "look"
        return self._delta(entry)

    def candidates(self, snapshots: Iterable[Announcement]) -> list[Announcement]:
        """The snapshots in the store that are worth a load, best first."""
        fence = self._fence
        found = [
            note
            for note in snapshots
            if note.schema_id == self.schema_id
            and self._key(note) not in self._failed
            and not self._known(note.place)
            and (note.epoch != fence.epoch or fence.claimant in ("", note.claimant))
        ]
        return sorted(found, key=lambda note: note.place, reverse=True)

    # -- how it went ------------------------------------------------------------------------------------------

    def patched(self, note: Announcement) -> None:
        """A delta was applied to our model."""
        self._reached(note)

    def loaded(self, note: Announcement) -> None:
        """A snapshot was loaded. Below the floor it is not served, but patched until it reaches the floor."""
        self._fence.admits(note.epoch, note.claimant)
        self._reached(note)

    def failed(self, note: Announcement) -> None:
        """A snapshot cannot be loaded, now or later."""
        self._failed[self._key(note)] = None
        while len(self._failed) > MOST_FAILED:
            del self._failed[next(iter(self._failed))]

    def refused(self, note: Announcement, why: str) -> None:
        """A delta that follows our version is unusable."""
        self._miss(why)
        self._remember(note)

    def torn(self, why: str) -> None:
        """Our model is in no valid version: nothing of it may be served."""
        self.at, self.waiting = None, why

    def clicks(self) -> list[VersionClicks]:
        """Clicks first learnt in versions that our model has by a load and not by a patch. Each is returned once."""
        if self.at is None:
            return []
        place = self.at.place
        found = [clicks for missed, clicks in self._missed if missed <= place]
        self._missed = [(missed, clicks) for missed, clicks in self._missed if missed > place]
        return found

    # -- within -----------------------------------------------------------------------------------------------

    def _delta(self, entry: Delta) -> Verdict:
        note = entry.note
        if self._known(note.place):
            return "ignore"
        if self.at is not None and note.parent == self.at.hash:
            return "patch"
        self._remember(note)
        if self.at is None:
            return "ignore"
        return self._miss(f"version {note.version} does not follow {self.at.version}")

    def _known(self, place: Place) -> bool:
        return self.at is not None and place <= self.at.place

    def _miss(self, why: str) -> Verdict:
        if self.at is None or self.waiting:
            return "ignore"
        self.waiting = why
        return "look"

    def _reached(self, note: Announcement) -> None:
        self.at, self.waiting = note, ""
        if self.serves:
            self.floor = note.place

    def _remember(self, note: Announcement) -> None:
        if not note.clicks.counts:
            return
        self._missed.append((note.place, VersionClicks.of(note)))
        if len(self._missed) > MOST_MISSED:  # the two oldest become one
            (_, old), (place, new) = self._missed[:2]
            both = VersionClicks(old.published_ms, ClickHistogram.merged([old.clicks, new.clicks]))
            self._missed[:2] = [(place, both)]

    @staticmethod
    def _key(note: Announcement) -> tuple[Place, str]:
        return note.place, note.digest
