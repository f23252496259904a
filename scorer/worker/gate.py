# shell
"""A limit on requests in work at one worker: whoever comes beyond it is told at once to come again.

Without one, a burst is a queue in which every request waits for all before it, also those whose clients have gone.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from millrace.processes.tokens import refuse

RETRY_AFTER_SECONDS = 1


class Gate:
    """An ASGI application around another one, for ``limit`` requests in work; ``count_refused`` is called for each
    beyond it.

    Only POST counts and is refused: ``/healthz``, ``/readyz``, ``/metrics`` and ``/model`` are asked when there is too
    much to do, and cost little.
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
