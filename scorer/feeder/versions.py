# core
"""Which model version follows which: what a scorer does with each entry of ``model.deltas``.

::

                                    delta of what we have: patch
                                   ┌──────────┐
                                   ▼          │
      ┌─ nothing ─┐ look: load  ┌─ following ─┘       a delta is missing, damaged     ┌─ waiting ─┐
      │           ├────────────►│             ├──────────────────────────────────────►│           │◄─┐ later deltas:
      └───────────┘             │             │◄──────────────────────────────────────┤           ├──┘ nothing is done
                                └─────────────┘  look: load a snapshot beyond it      └───────────┘

Versions are ordered by (epoch, number), and by nothing else. What is served never goes back in this order. A root of a
higher epoch is newer, whatever it holds: the learner that has won the epoch went back to older content, and said so.

To *look* is to ask the store for its snapshots and to load the newest that is of use. One look is due when a version
turns out to be missing, and one at each later snapshot. A snapshot that could not be loaded is not tried again. So a
lost delta costs one load, however many deltas follow it, and no failure is repeated for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from millrace.versions.clicks import ClickTimes
from millrace.versions.modellog import Bad, Claimed, Delta, Entry, Fence, Snapshot
from millrace.versions.versioning import Announcement, Place, VersionClicks

Verdict = Literal["ignore", "foreign", "fenced", "bad", "patch", "look"]

MOST_FAILED = 1000
MOST_MISSED = 1000


class Follower:
    """Follows the versions of one schema. Its caller does what :meth:`take` says, and tells how it went.

    Attributes:
        at: the version that the newest model object has; None: there is none.
        floor: the highest version that was ever served.
        waiting: why later deltas are of no use until a snapshot comes; empty: they are.
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
        """Whether what we have may be served: not less than was."""
        return self.at is not None and (self.floor is None or self.at.place >= self.floor)

    def take(self, entry: Entry) -> Verdict:
        """What to do with the next entry.

        - ``ignore``: we have it, or something newer, or it is of no use now.
        - ``foreign``, ``fenced``: it is of another schema, or of a learner that has lost its epoch. Ignored as well.
        - ``bad``: it cannot be used. Whether a version is missing now, the next delta shows.
        - ``patch``: a delta whose parent is what we have.
        - ``look``: see the module's text.
        """
        if isinstance(entry, Claimed):
            self._fence.claims(entry.claim)
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
        """Of the snapshots in the store those that are worth a load, best first."""
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
        """A delta was put on the model that we have."""
        self._reached(note)

    def loaded(self, note: Announcement) -> None:
        """A snapshot was loaded. Where it is below the floor it is not served, but patched until it reaches that."""
        self._fence.admits(note.epoch, note.claimant)
        self._reached(note)

    def failed(self, note: Announcement) -> None:
        """A snapshot cannot be loaded, and never will be."""
        self._failed[self._key(note)] = None
        while len(self._failed) > MOST_FAILED:
            del self._failed[next(iter(self._failed))]

    def refused(self, note: Announcement, why: str) -> None:
        """A delta that follows what we have cannot be used."""
        self._miss(why)
        self._remember(note)

    def torn(self, why: str) -> None:
        """The model that we have is no version any more: nothing of it may be served."""
        self.at, self.waiting = None, why

    def clicks(self) -> list[VersionClicks]:
        """The clicks that were first learnt in versions which we did not patch, and which what we have now holds. Each
        is given once."""
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
            both = VersionClicks(old.published_ms, ClickTimes.merged([old.clicks, new.clicks]))
            self._missed[:2] = [(place, both)]

    @staticmethod
    def _key(note: Announcement) -> tuple[Place, str]:
        return note.place, note.digest
