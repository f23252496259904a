# core
"""The checks of one learner together, and a snapshot's parts as they pass them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from learner.gate.heldout import Heldout
from learner.gate.median_clock import MedianClock
from learner.gate.model_checks import unsound_part
from learner.gate.quota import USER, Quota
from learner.gate.refused_minutes import RefusedMinutes
from learner.gate.screen import Screen
from learner.gate.shift import Shift
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import SnapshotError
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.versions.image import Array, Image
from millrace.versions.modelstore import Announcement, ModelStore

GATE = "gate/"
"""Arrays of a snapshot whose names begin with it are the gate's state."""
OF_ROWS = ("absurd", "page")
"""Checks of single rows as they come."""
ASIDE = (*OF_ROWS, "loss")
"""Checks of rows that say nothing of others: what was learnt before them stays."""

QUARANTINED = "quarantined"
"""What the trainer counts refused rows as."""


@dataclass(slots=True)
class Checks:
    """What judges samples and models."""

    screen: Screen
    quota: Quota  # of what is learnt
    visitors: Quota  # of users, whatever becomes of their rows
    shift: Shift
    heldout: Heldout
    quarantine_ms: int
    clock: MedianClock = field(default_factory=MedianClock)  # of all of them
    observe: bool = False  # a refusal is only told of, unless what is refused is damaged or absurd
    minutes: RefusedMinutes = field(default_factory=RefusedMinutes)

    @classmethod
    def of(cls, settings: Settings, schema: Schema) -> Checks | None:
        """As the settings say; None: nothing is judged.

        Raises:
            SettingError: ``teach_limits`` cannot be read.
        """
        if settings.gate == "off":
            return None
        clock, limits = MedianClock(), settings.teach_limits
        screen = Screen(schema, MAX_AHEAD_MS, clock)
        return cls(
            screen,
            Quota(schema, {name: most for name, most in limits.items() if name != USER}, clock),
            Quota(schema, {name: most for name, most in limits.items() if name == USER}, clock),
            Shift(clock=clock, knows=screen.knows, usually_known=lambda: screen.usually_known),
            Heldout(settings.heldout_share, clock=clock),
            round(settings.quarantine_minutes * MINUTE_MS),
            clock,
            settings.gate == "observe",
        )

    @property
    def parts(self) -> Mapping[str, MedianClock | Screen | Quota | Shift | Heldout | RefusedMinutes]:
        """Those with a state that a snapshot keeps, by name."""
        return {
            "clock": self.clock,
            "screen": self.screen,
            "quota": self.quota,
            "visitors": self.visitors,
            "shift": self.shift,
            "heldout": self.heldout,
            "minutes": self.minutes,
        }


def sound_parts(store: ModelStore, note: Announcement) -> Iterator[tuple[Image, Mapping[str, Array]]]:
    """The parts of a snapshot, each checked. Raises SnapshotError, or as :meth:`ModelStore.read_whole`."""
    for image, training in store.read_whole(note):
        of_model = {name: array for name, array in training.items() if not name.startswith(GATE)}
        refusal = unsound_part(image, of_model)
        if refusal is not None:
            raise SnapshotError(f"snapshot {note.version} is not sound ({refusal})", "an older one is tried")
        yield image, of_model
