# core
"""Remembers dropped pages: which of their positions were exposed, for another lifetime. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from stream.join.joined_pages import to_bytes, to_mask


class DroppedPages:
    """Times are watermarks; they ascend from call to call, but for :meth:`set_back`."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[int, int]] = {}  # forget at, exposed; in order of dropping
        self._order: deque[tuple[int, str]] = deque()  # the same order; a page that was dropped twice is here twice

    def exposed(self, request: str) -> int | None:
        """The exposed positions of a page as a mask; None: it was not dropped."""
        found = self._pages.get(request)
        return None if found is None else found[1]

    def add(self, request: str, exposed: int, until_ms: int) -> None:
        """Adds a page that was dropped (maybe again). It is forgotten at ``until_ms``."""
        _, known = self._pages.pop(request, (0, 0))
        self._pages[request] = (until_ms, exposed | known)
        self._order.append((until_ms, request))

    def widen(self, request: str, exposed: int) -> None:
        """More positions of a dropped page are known to have been exposed."""
        until_ms, known = self._pages[request]
        self._pages[request] = (until_ms, known | exposed)

    def expire(self, now_ms: int) -> None:
        order, pages = self._order, self._pages
        while order and order[0][0] <= now_ms:
            _, request = order.popleft()
            if request in pages and pages[request][0] <= now_ms:
                del pages[request]

    def set_back(self, last_ms: int) -> None:
        """All are forgotten at ``last_ms`` at the latest."""
        self._pages = {request: (min(at, last_ms), exposed) for request, (at, exposed) in self._pages.items()}
        self._order = deque((min(at, last_ms), request) for at, request in self._order)

    def snapshot(self) -> list[tuple[str, int, bytes]]:
        """The whole state, in an order that does not depend on which of a page's timers came first."""
        pages = sorted((at, request, to_bytes(mask)) for request, (at, mask) in self._pages.items())
        return [(request, at, mask) for at, request, mask in pages]

    def resume(self, state: Iterable[tuple[str, int, bytes]]) -> None:
        for request, at, mask in state:
            self.add(request, to_mask(mask), at)
