# shell
"""A Millrace in memory, for a shop's own tests: :class:`FakeMillrace` and :class:`AsyncFakeMillrace`.

Both are the real clients, with the batching, retries and errors of production; only the server is fake::

    FakeMillrace ── Millrace ── httpx.MockTransport ──► FakeServer: items, users, events, pages (fakeserver)
"""

from __future__ import annotations

import httpx

from millrace_client.aio import AsyncMillrace
from millrace_client.calls import Answer, Call
from millrace_client.fakeserver import FakeServer
from millrace_client.messages import Action, Event, Exposure, Item, User
from millrace_client.options import INTAKE, SCORER, Options
from millrace_client.sync import Millrace

QUICK = Options(batch_seconds=0.0, patience_s=5.0, page_s=1.0)
FIRST_PAUSE_S = 0.001
"""Retries in tests need no pause."""


class FakeMillrace(Millrace):
    """A :class:`Millrace` without servers. Pages are simple: the most clicked items first, then the newest.

    >>> with FakeMillrace() as shop:
    ...     _ = shop.put_items([Item("7", {"category": "shoes"}), Item("8", {"category": "hats"})])
    ...     page = shop.recommend("u1", size=2, only={"category": "shoes"})
    ...     _ = shop.click(page, "7")
    ...     [(type(event).__name__, event.position) for event in shop.clicks]
    [('Action', 0)]

    ``server`` is what stands behind it; ``server.fail(503, times=2)`` makes its next answers fail.
    """

    def __init__(self, options: Options = QUICK, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()
        super().__init__(
            INTAKE, SCORER, options=options, transport=_transport(self.server), first_pause_s=FIRST_PAUSE_S
        )

    @property
    def items(self) -> dict[str, Item]:
        """The catalogue as it was sent, by the ids' text."""
        return self.server.items

    @property
    def users(self) -> dict[str, User]:
        """The users as they were sent, by the ids' text."""
        return self.server.users

    @property
    def events(self) -> list[Event]:
        """Every event reported so far, in order."""
        self.flush()
        return list(self.server.events)

    @property
    def exposures(self) -> list[Exposure]:
        return [event for event in self.events if isinstance(event, Exposure)]

    @property
    def clicks(self) -> list[Action]:
        return [event for event in self.events if isinstance(event, Action) and event.type == "click"]


class AsyncFakeMillrace(AsyncMillrace):
    """An :class:`AsyncMillrace` without servers. ``await shop.flush()``, then look at ``shop.server``."""

    def __init__(self, options: Options = QUICK, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()
        super().__init__(
            INTAKE, SCORER, options=options, transport=_transport(self.server), first_pause_s=FIRST_PAUSE_S
        )


def _transport(server: FakeServer) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        try:
            answer: Answer = server.answer(Call(request.method, str(request.url), request.content))
        except ConnectionError as error:
            raise httpx.ConnectError(str(error), request=request) from None
        return httpx.Response(answer.status, content=answer.body, headers=dict(answer.headers))

    return httpx.MockTransport(handle)
