# shell
"""A shop's operations, for both clients, which differ only in how a call is awaited.

::

    exposure, click ... ──► Waiting ──► sender task ──► POST /events        (batches; retried until they are accepted)
    put_items, put_users, delete_* ────────────────────► POST, DELETE       (at once; retried for patience_s)
    recommend, similar, popular, item ─────────────────► POST /recommend... (retried within page_s)

    public method ──► coroutine ──► _do ──► AsyncMillrace: the coroutine itself
                                        └─► Millrace: its result, from a loop in a thread of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Generic, TypeVar, Unpack

import httpx

from millrace_client.calls import (
    Answer,
    Call,
    Kind,
    Limits,
    failure_of,
    limits,
    line_of,
    parts,
    read_answer,
    read_receipt,
    refusals,
)
from millrace_client.errors import QueueFull, Refused, TooMuch, Unavailable
from millrace_client.events import Shown, action_of, exposure_of
from millrace_client.messages import (
    ActionName,
    Event,
    Id,
    Item,
    ItemChange,
    ItemFacts,
    Page,
    PlacedItem,
    Receipt,
    Refusal,
    User,
)
from millrace_client.options import CLOSE_S, Options, Troubles, addresses, expected, unsent
from millrace_client.waiting import FIRST_PAUSE_S, Tries, Waiting

Truth = TypeVar("Truth")
Received = TypeVar("Received")
Made = TypeVar("Made")
Nothing = TypeVar("Nothing")
Known = TypeVar("Known")
T = TypeVar("T")


class Requests:
    """Sends requests with retries."""

    def __init__(self, options: Options, transport: httpx.AsyncBaseTransport | None, first_pause_s: float) -> None:
        self.closed = False
        self._options, self._first_pause_s = options, first_pause_s
        # No proxy from the environment: httpx would use it for loopback addresses too.
        self._http = httpx.AsyncClient(transport=transport, timeout=options.timeout_s, trust_env=False)

    async def close(self) -> None:
        self.closed = True
        await self._http.aclose()

    async def patiently(self, call: Call) -> Answer:
        """An answer that is neither 429 nor 5xx, within ``patience_s``."""
        tries = self.tries(self._options.patience_s)
        while True:
            try:
                answer = await self.ask(call)
                if answer.status == 429 or answer.status >= 500:
                    raise failure_of(call, answer)
                return answer
            except (TooMuch, Unavailable) as error:
                await self.pause(tries, error)

    def tries(self, seconds: float | None) -> Tries:
        """The retries within so many seconds; None: for ever."""
        until_s = None if seconds is None else time.monotonic() + seconds
        return Tries(until_s, random.random, self._first_pause_s)

    async def pause(self, tries: Tries, error: TooMuch | Unavailable) -> None:
        """Waits before the next try. Raises the error when there is no time for one."""
        pause_s = tries.pause_s(error, time.monotonic())
        if pause_s is None or self.closed:
            raise error
        await asyncio.sleep(pause_s)

    async def ask(self, call: Call, tries: Tries | None = None) -> Answer:
        """Sends one request, without a retry. Raises Unavailable when nothing answers in time."""
        if self.closed:
            raise Unavailable("the client is closed", "make a new one")
        left_s = self._options.timeout_s
        if tries is not None and tries.until_s is not None:
            left_s = max(0.001, tries.until_s - time.monotonic())
        try:
            answer = await self._http.request(
                call.method, call.url, content=call.body, headers=call.headers, timeout=left_s
            )
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise Unavailable(
                f"{call.method} {call.url} was not answered: {said}", "see whether it runs there"
            ) from error
        return Answer(answer.status_code, answer.content, {k.lower(): v for k, v in answer.headers.items()})


class Connection(ABC, Generic[Truth, Received, Made, Nothing, Known]):
    """A shop's connection to Millrace, as :class:`~millrace_client.Millrace` and its asynchronous form have it.

    Events (:meth:`exposure`, :meth:`click` ...) are queued, sent in batches, and retried until the intake has stored
    them. Each has an id, so none counts twice. :meth:`flush` waits for them. ``refused`` has refused events with the
    reasons. A process that ends without :meth:`close` loses queued events.

    Args:
        intake, scorer: URLs of the two servers. None: MILLRACE_INTAKE and MILLRACE_SCORER of the environment, or where
            ``millrace up`` answers.
        token: the bearer token, if the servers need one. None: MILLRACE_TOKEN of the environment, or none.
        options: see :class:`~millrace_client.options.Options`.
        transport: an asynchronous httpx transport, for a proxy, certificates of your own, or a test.
    """

    def __init__(
        self,
        intake: str | None = None,
        scorer: str | None = None,
        token: str | None = None,
        options: Options | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._options = options or Options()
        self._addresses = addresses(intake, scorer, token)
        self._requests = Requests(self._options, transport, first_pause_s)
        self._waiting = Waiting(self._options.queue_size, self._options.batch_size, self._options.batch_seconds)
        self._troubles = Troubles(self._options.on_refused)
        self._changed = asyncio.Event()  # set, and replaced, at each change of what waits
        self._ending = False  # nothing new is taken; what waits is still sent
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a public method returns for its coroutine."""

    # -- the catalogue and the people ------------------------------------------------------------------------------

    def put_items(self, items: Iterable[Item | ItemChange]) -> Received:
        """Sends new items, and changes of some. Returns when they are stored.

        Raises:
            Refused: some were refused; all others are stored.
            MillraceClientError: any other failure; some may be stored. Sending all again is safe.
        """
        return self._do(self._send_all("items", map(line_of, items)))  # type: ignore[no-any-return]

    def put_users(self, users: Iterable[User]) -> Received:
        """Sends users, as :meth:`put_items`."""
        return self._do(self._send_all("users", map(line_of, users)))  # type: ignore[no-any-return]

    def delete_item(self, item_id: Id) -> Received:
        """Removes an item from the catalogue. Returns when the deletion is stored."""
        return self._do(self._delete("items", item_id))  # type: ignore[no-any-return]

    def delete_user(self, user_id: Id) -> Received:
        """Deletes a user's data. Returns when the deletion is stored."""
        return self._do(self._delete("users", user_id))  # type: ignore[no-any-return]

    # -- pages -----------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user_id: Id,
        size: int | None = None,
        *,
        rerank: Mapping[str, Any] | None = None,
        explain: bool = False,
        list_size: int | None = None,
        cursor: str | None = None,
        **asked: Unpack[Limits],
    ) -> Made:
        """The best items for a user, best first.

        Args:
            size: items wanted; None: as many as a page may have.
            rerank: ``diversity``, ``boosts`` and ``pins``, in place of those of the settings.
            explain: add the source of each item and the reasons for its score.
            list_size: rank so many and hand out ``size`` at a time (``list`` of the HTTP API).
            cursor: the next part of a list, from the page before.
            asked: see :class:`~millrace_client.calls.Limits`.

        Raises:
            BadRequest, Unauthorised: the request or the token is wrong.
            Unavailable: there is no page within ``page_s``. Show your own order meanwhile.
        """
        own: dict[str, Any] = {"user_id": user_id, "size": size, "explain": explain, "list": list_size}
        own |= {"cursor": cursor, "rerank": rerank}
        return self._page("recommend", own, asked)

    def similar(
        self, item_id: Id, size: int | None = None, *, user_id: Id | None = None, **asked: Unpack[Limits]
    ) -> Made:
        """Items like one item, most similar first, with the reasons. Raises as :meth:`recommend`.

        Args:
            user_id: whose page it is; only then can events of it be reported, and learnt from.
            size, asked: as of :meth:`recommend`.
        """
        return self._page("similar", {"item_id": item_id, "user_id": user_id, "size": size}, asked)

    def popular(self, size: int | None = None, *, user_id: Id | None = None, **asked: Unpack[Limits]) -> Made:
        """The items with the highest click rates; with ``only``, of a group. As :meth:`similar`."""
        return self._page("popular", {"user_id": user_id, "size": size}, asked)

    def item(self, item_id: Id) -> Known:
        """What the scorer knows of an item. Raises BadRequest (404) for an unknown one, and as :meth:`recommend`."""
        return self._do(self._answer(self._addresses.item(item_id), ItemFacts))  # type: ignore[no-any-return]

    def ready(self) -> Truth:
        """Whether intake and scorer answer, and the scorer has a model and items."""
        return self._do(self._ready())  # type: ignore[no-any-return]

    # -- events ----------------------------------------------------------------------------------------------------

    def exposure(
        self, page: Page, shown: Shown | None = None, *, at: int | None = None, ts_ms: int | None = None
    ) -> Truth:
        """Reports which items of a page were seen.

        Args:
            shown: items of the page, or their positions, in the order shown. None: all, as answered.
            at: the slot of the first shown item. None: its slot on the page if the items are consecutive there, else 0.
            ts_ms: when it was seen, in Unix ms of the event clock; None: now.

        Returns:
            Whether there was something to report. A page made of lists has nothing (``request_id`` is None).

        Raises:
            NotOnPage: an item that the page does not have.
            BadRequest: ``ts_ms`` is before the page was made.
            QueueFull: with ``when_full="raise"``, or the client is closed.
        """
        return self._report(exposure_of(page, shown, at, uuid.uuid4().hex, _now_ms(), ts_ms))

    def click(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> Truth:
        """Reports a click on an item of a page, or on the item with this id. Returns and raises as :meth:`exposure`."""
        return self._act("click", page, item, ts_ms)

    def collect(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> Truth:
        """Reports that an item was put on a wish list. As :meth:`click`."""
        return self._act("collect", page, item, ts_ms)

    def cart(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> Truth:
        """Reports that an item was put into the cart. As :meth:`click`."""
        return self._act("cart", page, item, ts_ms)

    def purchase(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> Truth:
        """Reports that an item was bought. As :meth:`click`."""
        return self._act("purchase", page, item, ts_ms)

    @property
    def waiting(self) -> int:
        """Events that are not yet known to be stored."""
        return len(self._waiting)

    @property
    def refused(self) -> list[Refusal]:
        """The newest 1,000 refused events, with their reasons."""
        return list(self._troubles.refused.copy())

    @property
    def refused_total(self) -> int:
        """Refused events since the start."""
        return self._troubles.refused_total

    # -- the end ---------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> Nothing:
        """Waits until every event so far is stored, or refused and in ``refused``. ``timeout_s``: seconds; None:
        ``patience_s``.

        Raises:
            TooMuch, Unavailable: some are not stored yet. They stay in the queue, and retries go on.
            MillraceClientError: events since the last flush were given up (wrong token, wrong address).
        """
        return self._do(self._flush(self._options.patience_s if timeout_s is None else timeout_s))  # type: ignore[no-any-return]

    def close(self, timeout_s: float = CLOSE_S) -> Nothing:
        """Flushes, and ends the sender and the connections. Raises as :meth:`flush`; then the events are lost."""
        return self._do(self._close(timeout_s))  # type: ignore[no-any-return]

    # -- inside, on the loop ---------------------------------------------------------------------------------------

    def _act(self, name: ActionName, page: Page, item: PlacedItem | Id, ts_ms: int | None) -> Truth:
        return self._report(action_of(name, page, item, uuid.uuid4().hex, _now_ms(), ts_ms))

    def _page(self, path: str, own: dict[str, Any], asked: Limits) -> Made:
        call = self._addresses.page(path, own | limits(asked))
        return self._do(self._answer(call, Page, user_id=own["user_id"]))  # type: ignore[no-any-return]

    def _report(self, event: Event | None) -> Truth:
        return self._do(self._enqueue(event))  # type: ignore[no-any-return]

    async def _enqueue(self, event: Event | None) -> bool:
        while event is not None and self._waiting.full and not self._ending and self._options.when_full == "block":
            await self._changed.wait()
        return self._put(event)

    def _put(self, event: Event | None) -> bool:
        """Queues an event, without waiting."""
        if event is None:
            return False
        line = line_of(event)
        if self._ending:
            raise QueueFull("the client is closed", "make a new one")
        if self._waiting.full:
            raise QueueFull(f"{len(self._waiting)} events wait to be sent", "send more slowly, or raise queue_size")
        self._waiting.add(line, time.monotonic())
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="millrace-client")
        self._notify()
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        """The sender's task: batches one after the other, so events stay in order. :meth:`close` cancels it."""
        while True:
            while (due_s := self._waiting.due_s(time.monotonic())) != 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_s):
                        await self._changed.wait()
            await self._deliver(self._waiting.take())
            self._waiting.settle()
            self._notify()

    async def _deliver(self, lines: list[bytes]) -> None:
        """Sends a batch until it is stored or given up."""
        tries = self._requests.tries(None)
        call = self._addresses.post("events", lines)
        while True:
            try:
                receipt = read_receipt(call, await self._requests.ask(call), lines)
            except (TooMuch, Unavailable) as error:
                self._troubles.latest = error
                self._troubles.say(f"{len(lines)} events wait: {error}", time.monotonic())
                await asyncio.sleep(tries.pause_s(error, time.monotonic()) or 0.0)
            except Exception as error:
                self._troubles.latest = None
                self._troubles.hand_back(lines, expected(error), time.monotonic())
                return
            else:
                self._troubles.latest = None
                self._troubles.refuse(refusals(lines, receipt), time.monotonic())
                return

    async def _flush(self, timeout_s: float) -> None:
        mark = self._waiting.hurry()
        self._notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._waiting.settled < mark:
                    await self._changed.wait()
        failed, self._troubles.failed = self._troubles.failed, None
        if self._waiting.settled < mark:
            raise unsent(mark - self._waiting.settled, self._troubles.latest)
        if failed is not None:
            raise failed

    async def _close(self, timeout_s: float) -> None:
        if self._requests.closed:
            return
        self._ending = True
        self._notify()
        try:
            await self._flush(timeout_s)
        finally:
            self._requests.closed = True
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            await self._requests.close()

    async def _send_all(self, kind: Kind, lines: Iterable[bytes]) -> Receipt:
        receipts, refused = [], []
        for part in parts(lines):
            call = self._addresses.post(kind, part)
            receipt = read_receipt(call, await self._requests.patiently(call), part)
            receipts.append(receipt)
            refused += refusals(part, receipt)
        if refused:
            raise Refused(refused)
        return Receipt.of(verdict for receipt in receipts for verdict in receipt.verdicts)

    async def _delete(self, kind: Kind, identifier: Id) -> Receipt:
        call = self._addresses.delete(kind, identifier)
        receipt = read_receipt(call, await self._requests.patiently(call))
        refused = refusals([str(identifier).encode()] * len(receipt.verdicts), receipt)
        if refused:
            raise Refused(refused)
        return receipt

    async def _answer(self, call: Call, kind: type[T], **known: Any) -> T:
        tries = self._requests.tries(self._options.page_s)
        while True:
            try:
                return read_answer(call, await self._requests.ask(call, tries), kind, **known)
            except Unavailable as error:
                await self._requests.pause(tries, error)

    async def _ready(self) -> bool:
        try:
            return all([(await self._requests.ask(call)).status == 200 for call in self._addresses.ready()])
        except Unavailable:
            return False


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
