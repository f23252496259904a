# shell
"""The client for asyncio: :class:`AsyncMillrace`."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Self

from millrace_client.connection import Connection
from millrace_client.errors import MillraceClientError
from millrace_client.messages import ItemFacts, Page, Receipt
from millrace_client.options import log


class AsyncMillrace(
    Connection[Awaitable[bool], Awaitable[Receipt], Awaitable[Page], Awaitable[None], Awaitable[ItemFacts]]
):
    """A shop's connection to Millrace, for one event loop (:class:`~millrace_client.connection.Connection`)::

    async with AsyncMillrace() as shop:
        page = await shop.recommend("u1", size=20)
        await shop.exposure(page, shown=range(8))
        await shop.click(page, page.items[2])
    """

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return work

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except MillraceClientError as problem:
            if error is None:
                raise
            log.warning("%s", problem)  # the error that is on its way says more
