# shell
"""A limit on concurrent requests of one worker; requests beyond it are refused at once.

Without a limit, each request of a burst waits for all before it, even those whose clients have gone.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from millrace.processes.tokens import refuse

RETRY_AFTER_SECONDS = 1


class RequestLimit:
    """ASGI middleware for ``limit`` concurrent requests; calls ``count_refused`` for each beyond it.

    Only POST counts and is refused: ``/healthz``, ``/readyz``, ``/metrics`` and ``/model`` matter under overload and
    are cheap.
    """

    def __init__(self, app: ASGIApp, limit: int, count_refused: Callable[[], None]) -> None:
        self._app, self._limit, self._count_refused = app, limit, count_refused
        self.in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self.in_work >= self._limit:
            self._count_refused()
            error = (
                f"{self._limit} requests are in work; ask again in a second, or start more workers (MILLRACE_WORKERS)"
            )
            await refuse(send, 503, error, (b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
            return
        self.in_work += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.in_work -= 1
