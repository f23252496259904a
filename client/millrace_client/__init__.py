"""The client of Millrace: send events, ask for pages. ``README.md`` beside this package shows how."""

from millrace_client.aio import AsyncMillrace
from millrace_client.errors import (
    BadAnswer,
    BadRequest,
    MillraceClientError,
    NotOnPage,
    QueueFull,
    Refused,
    TooMuch,
    Unauthorised,
    Unavailable,
)
from millrace_client.fake import AsyncFakeMillrace, FakeMillrace
from millrace_client.fakeserver import FakeServer
from millrace_client.messages import (
    Action,
    Event,
    Exposure,
    Item,
    ItemChange,
    ItemFacts,
    Page,
    PlacedItem,
    Reason,
    Receipt,
    Refusal,
    User,
    Verdict,
)
from millrace_client.options import Options
from millrace_client.sync import Millrace

__all__ = [
    "Action",
    "AsyncFakeMillrace",
    "AsyncMillrace",
    "BadAnswer",
    "BadRequest",
    "Event",
    "Exposure",
    "FakeMillrace",
    "FakeServer",
    "Item",
    "ItemChange",
    "ItemFacts",
    "Millrace",
    "MillraceClientError",
    "NotOnPage",
    "Options",
    "Page",
    "PlacedItem",
    "QueueFull",
    "Reason",
    "Receipt",
    "Refusal",
    "Refused",
    "TooMuch",
    "Unauthorised",
    "Unavailable",
    "User",
    "Verdict",
]
