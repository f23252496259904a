# core
"""Messages of a shop and their answers, as frozen types.

::

    sent:      Item, ItemChange, User the catalogue and the users, with the schema's attributes
               Exposure, Action       what was seen of a page, and what was done with an item of it
    received:  Page of PlacedItem     an answer of the scorer
               Receipt of Verdict     an answer of the intake, one verdict a message
               Refusal                a refused message

Times are Unix milliseconds. Ids are 64-bit integers, or texts of 1 to 200 characters; ``7`` and ``"7"`` are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Name
TimeMs = Annotated[int, Meta(ge=1, le=32_503_680_000_000)]
Place = Annotated[int, Meta(ge=0, le=100_000)]
Value = str | int | float | bool | list[str | int | float] | None
"""An attribute: a number for a numeric field of the schema, a list for a field with several slots."""

Wanted = Mapping[str, Any]
"""Attributes with the value, or list of values, for comparison."""

ActionName = Literal["click", "collect", "cart", "purchase"]


class Item(Struct, frozen=True):
    """An item of the catalogue. ``gone`` removes it from pages, ``expires_ms`` at that time of the event clock;
    ``born_ms`` is its creation time (0: unknown)."""

    item_id: Id
    attributes: Mapping[str, Value] = {}
    born_ms: int = 0
    gone: bool = False
    expires_ms: int | UnsetType = UNSET


class ItemChange(Struct, frozen=True, omit_defaults=True):
    """New values of some attributes of an item that is there (None: it has none); all others stay. ``gone``: None
    leaves it as it is."""

    item_id: Id
    changes: Mapping[str, Value]
    gone: bool | None = None


class User(Struct, frozen=True):
    """A user, with the attributes that the schema names, and ids that the user had as a guest."""

    user_id: Id
    attributes: Mapping[str, Value] = {}
    sessions: Sequence[Id] = ()


class Exposure(Struct, frozen=True, tag_field="type", tag="exposure", omit_defaults=True):
    """What was seen of a page: ``items`` in the order shown, the first of them in slot ``offset``. If items were left
    out or moved, ``slots`` has the position of each as answered."""

    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: Id
    items: Annotated[list[Id], Meta(min_length=1, max_length=1000)]
    offset: Place = 0
    slots: list[Place] | None = None
    sent_ms: int = 0

    def __post_init__(self) -> None:
        if self.slots is not None and len(self.slots) != len(self.items):
            raise ValueError(f"{len(self.slots)} slots for {len(self.items)} items")


class Action(Struct, frozen=True):
    """An action on one item of a page. ``position`` is the item's position on the answered page."""

    type: ActionName
    event_id: Name
    request_id: Name
    ts_ms: TimeMs
    user_id: Id
    item_id: Id
    position: Place
    sent_ms: int = 0


Event = Exposure | Action
Message = Event | Item | ItemChange | User


class Reason(Struct, frozen=True):
    """A field or window key, and by how much it raised the item's logit (negative: lowered it). On pages of similar and
    popular items a measure (``vectors``, ``coclicked``: cosines; ``click_rate``) and its value."""

    input: str
    effect: float


class PlacedItem(Struct, frozen=True):
    """An item in its slot of a page.

    Attributes:
        score: the model's click probability; None: nothing was scored.
        source: the source of recall that found it; of ``recommend`` with ``explain``.
        reasons: why it is here, strongest first; of ``recommend`` with ``explain`` and for a page's first items.
    """

    item_id: Id
    position: int
    score: float | None = None
    source: str | None = None
    reasons: tuple[Reason, ...] = ()


class Page(Struct, frozen=True):
    """An answer to ``recommend``, ``similar`` or ``popular``: items, best first.

    Attributes:
        request_id: names the page in events. None: nothing was logged (``arm`` is ``lists``), so the client's
            ``exposure`` and ``click`` do nothing and return False.
        arm: ``model``, ``control`` (a random page, to measure the model against), ``logged`` (the model gave no order),
            ``lists``, or an arm of the shop's settings.
        notes: what was missing for this page, in words.
        cursor: asks for the next part of a list; None: there is none.
    """

    request_id: str | None
    user_id: Id | None
    items: tuple[PlacedItem, ...]
    model_version: int = -1
    arm: str = "lists"
    ts_ms: int = 0
    notes: tuple[str, ...] = ()
    offset: int = 0
    cursor: str | None = None
    retrieval_version: int | None = None

    def find(self, item_id: Id) -> PlacedItem | None:
        """The item on this page; None: it is not on it."""
        return next((item for item in self.items if str(item.item_id) == str(item_id)), None)

    def to_json(self) -> str:
        """The page as text, for a session or a cache, because a click often arrives at another process than the
        page."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Page:
        """The page from :meth:`to_json`. Raises ``msgspec.MsgspecError`` for anything else."""
        return msgspec.json.decode(text, type=cls)


class ItemFacts(Struct, frozen=True):
    """What the scorer knows of an item.

    Attributes:
        on_pages: False: it is gone.
        numbers: by numeric field; 0 where the item has none.
        clicks: a day, over the whole shop. click_rate: smoothed.
        coclicked: number of items that are often clicked along with it.
        vector: whether it can be found by its vector.
    """

    item_id: Id
    on_pages: bool
    born_ms: int
    numbers: Mapping[str, float]
    clicks: float
    click_rate: float
    coclicked: int
    vector: bool


class Verdict(Struct, frozen=True):
    """The result of one message."""

    status: Literal["kept", "duplicate", "refused"]
    reason: str = ""
    detail: str = ""
    note: str = ""  # of a kept one: a warning about it, or what is left to do


class Receipt(Struct, frozen=True):
    """The results of one call's messages; ``verdicts`` in their order."""

    kept: int = 0
    duplicates: int = 0
    refused: int = 0
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Receipt:
        found = tuple(verdicts)
        counts = Counter(verdict.status for verdict in found)
        return cls(counts["kept"], counts["duplicate"], counts["refused"], found)


class Refusal(Struct, frozen=True):
    """A refused message. ``message`` is its JSON, as it was sent."""

    message: bytes
    reason: str
    detail: str
