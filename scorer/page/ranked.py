# core
"""Ranked lists that are handed out in parts, and the cursors that name the next part.

::

    /recommend size 20, list 600 ──► 600 items ranked; 0-19 handed out ──► cursor "5b1c.20.20.600"
    /recommend size 20, cursor  ───► 20-39 scored again and handed out ──► cursor "5b1c.40.40.600"

A list holds item ids in order, their sources, and the set that numbers are compared with
(:mod:`millrace.windows.among_kernels`). Each part gets its features and scores when it is handed out, so the rest costs
only its ids and is never logged. Lists stay for five minutes in this worker's memory, and in the online store for other
workers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from millrace.contracts.events import SOURCES, Id, Name, TimeOrNever, WireId
from millrace.contracts.online_layout import ranked_key
from scorer.page.page_wire import Filters, RequestError
from scorer.page.reranking import COLUMNS, NO_ODDS, PlacedItems
from scorer.users.userrecord import UserStore

_ASKED = SOURCES.index("asked")
LIST_SECONDS = 300.0  # how long a ranked list is kept, to be handed out in parts
MEMORY_BYTES = 16 << 20
"""Memory of a worker for lists, some thousand. Older ones are read from the store."""


class Cursor(NamedTuple):
    """Where the next part of a list begins: its text is ``{list}.{at}.{slot}.{length}``.

    >>> Cursor.of("5b1c.23.20.600", 600)
    Cursor(list_id='5b1c', at=23, slot=20, length=600)
    """

    list_id: str
    at: int  # in the list
    slot: int  # how many were handed out before; fewer than ``at`` when some were gone by then
    length: int  # of the list as asked for

    @property
    def text(self) -> str:
        return f"{self.list_id}.{self.at}.{self.slot}.{self.length}"

    @classmethod
    def of(cls, text: str, limit: int) -> Cursor:
        """Parses :attr:`text`. ``limit``: the longest list. Raises RequestError for an invalid cursor."""
        list_id, *numbers = text.rsplit(".", 3)
        if list_id and len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) < 8 for n in numbers):
            at, slot, length = map(int, numbers)
            if 0 <= slot <= at and 1 <= length <= limit:
                return cls(list_id, at, slot, length)
        raise RequestError(f"cursor {text[:60]!r} is none", "send it as it was answered, or ask without one")


class RankedList(Struct, frozen=True, array_like=True):
    request_id: Name
    user_id: WireId
    arm: str
    made_ms: TimeOrNever  # wall time
    context: dict[str, Any]
    items: list[Id]  # best first
    sources: bytes = b""  # (n,) codes of where recall found them; empty: not recorded
    retrieval: int = -1  # the retrieval version that recall looked with; -1: none
    filters: Filters | None = None  # that hold for every part
    among: bytes = b""  # (G, m) float32: the set of candidates that every part is measured against
    odds: bytes = b""  # (n,) float32 of each item in its place of the list as it was drawn; empty: not said
    ranking: bytes = b""  # (n, 4) float32 of :mod:`scorer.page.reranking`; empty: they were ordered by their scores

    def of(self, places: NDArray[np.intp]) -> RankedList:
        """The list with only the items at ``places``, in this order."""
        items = [self.items[place] for place in places.tolist()]
        placed, sources = self.placed(places, places), self.sources_of(places)
        return replace(self, items=items, sources=sources, odds=placed.odds.tobytes(), ranking=placed.ranking_bytes)

    def set_of(self, numbers: int) -> NDArray[np.float32] | None:
        """The set of candidates, (G, m); None where the list has none, or one of another schema."""
        if not numbers or not self.among or len(self.among) % (4 * numbers):
            return None
        return np.frombuffer(self.among, np.float32).reshape(numbers, -1).copy()  # kernels are compiled for such arrays

    def placed(self, order: NDArray[np.intp], places: NDArray[np.intp]) -> PlacedItems:
        """The scored items ``order``, which are the list's at ``places``. Odds are given all above them in the list."""
        odds, n = np.frombuffer(self.odds, np.float32), len(self.items)
        ranking = (
            np.frombuffer(self.ranking, np.float32).reshape(n, COLUMNS)[places]
            if len(self.ranking) == 4 * COLUMNS * n
            else None
        )
        return PlacedItems(order, odds[places] if len(odds) == n else NO_ODDS, ranking)

    def sources_of(self, places: NDArray[np.intp]) -> bytes:
        """Source codes of the items at ``places``; ``asked`` where they were not recorded."""
        codes = self.sources if len(self.sources) == len(self.items) else b"\xff" * len(self.items)
        return bytes(code if (code := codes[place]) < len(SOURCES) else _ASKED for place in places.tolist())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RankedList).decode


class RankedLists:
    """The lists of one worker, each kept for ``seconds``. ``count_error`` receives ``ranked`` for an unreadable list in
    the store."""

    def __init__(
        self, store: UserStore, seconds: float, wall: Callable[[], int], count_error: Callable[[str], None]
    ) -> None:
        self._store, self._seconds, self._wall, self._count_error = store, seconds, wall, count_error
        self._here: OrderedDict[str, bytes] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._here)

    async def put(self, list_id: str, ranked: RankedList) -> None:
        raw = _encode(ranked)
        self._hold(list_id, raw)
        await self._store.keep(ranked_key(list_id), raw, self._seconds)

    async def get(self, list_id: str) -> RankedList | None:
        """The list of this id. None: expired or unknown."""
        raw = self._here.get(list_id)
        fresh = raw is None
        if raw is None:
            raw = await self._store.kept(ranked_key(list_id))
        if raw is None:
            return None
        try:
            found = _decode(raw)
        except msgspec.MsgspecError:
            self._count_error("ranked")
            return None
        if self._wall() >= found.made_ms + 1000 * self._seconds:
            self._drop(list_id)
            return None
        if fresh:
            self._hold(list_id, raw)
        return found

    def _hold(self, list_id: str, raw: bytes) -> None:
        self._drop(list_id)
        self._here[list_id] = raw
        self.bytes += len(raw)
        while self.bytes > MEMORY_BYTES:
            self._drop(next(iter(self._here)))

    def _drop(self, list_id: str) -> None:
        self.bytes -= len(self._here.pop(list_id, b""))
