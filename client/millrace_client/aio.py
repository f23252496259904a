# shell
"""The client for asyncio: :class:`AsyncMillrace`. It decides as :mod:`millrace_client.sync` does.

::

    exposure, click ... ──► Waiting ──► sender task ──► POST /events        (batches; tried again until they are kept)
    put_items, put_users, delete_* ────────────────────► POST, DELETE       (at once; tried again for patience_s)
    recommend ─────────────────────────────────────────► POST /recommend    (tried again within page_s)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from millrace_client.calls import (
    Answer,
    Call,
    Hidden,
    Kind,
    failure_of,
    line_of,
    no_answer,
    parts,
    read_page,
    read_receipt,
    refusals,
)
from millrace_client.errors import MillraceClientError, QueueFull, Refused, TooMuch, Unavailable
from millrace_client.events import Shown, action_of, exposure_of
from millrace_client.messages import ActionName, Event, Id, Item, Page, PlacedItem, Receipt, Refusal, User, Wanted
from millrace_client.options import CLOSE_S, Options, Troubles, addresses, expected, log, unsent
from millrace_client.waiting import FIRST_PAUSE_S, Tries, Waiting


class AsyncMillrace:
    """A shop's connection to Millrace, for one event loop; every method is that of :class:`~millrace_client.Millrace`.

    Events return as soon as they are queued (they wait for room with ``when_full="block"``)::

        async with AsyncMillrace() as shop:
            page = await shop.recommend("u1", size=20)
            await shop.exposure(page, shown=range(8))
            await shop.click(page, page.items[2])

    A program that ends without :meth:`close` loses what waits.
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
        self._first_pause_s = first_pause_s
        self._addresses = addresses(intake, scorer, token)
        self._http = httpx.AsyncClient(transport=transport, timeout=self._options.timeout_s, trust_env=False)
        self._waiting = Waiting(self._options.queue_size, self._options.batch_size, self._options.batch_seconds)
        self._troubles = Troubles(self._options.on_refused)
        self._change = asyncio.Condition()
        self._ending = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    # -- the catalogue and the people ------------------------------------------------------------------------------

    async def put_items(self, items: Iterable[Item]) -> Receipt:
        """Sends items, new or changed. Returns when they are kept."""
        return await self._send_all("items", map(line_of, items))

    async def put_users(self, users: Iterable[User]) -> Receipt:
        """Sends users, new or changed. Returns when they are kept."""
        return await self._send_all("users", map(line_of, users))

    async def delete_item(self, item_id: Id) -> Receipt:
        """Takes an item out of the catalogue."""
        return await self._delete("items", item_id)

    async def delete_user(self, user_id: Id) -> Receipt:
        """Has a user's data forgotten."""
        return await self._delete("users", user_id)

    # -- pages -----------------------------------------------------------------------------------------------------

    async def recommend(
        self,
        user_id: Id,
        size: int | None = None,
        *,
        context: Mapping[str, Any] | None = None,
        exclude: Iterable[Id] = (),
        only: Wanted | None = None,
        without: Wanted | None = None,
        caps: Mapping[str, int] | None = None,
        hide: Collection[Hidden] = (),
        explain: bool = False,
        list_size: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """The best items for a user, best first. Arguments and errors are those of ``Millrace.recommend``."""
        call = self._addresses.recommend(
            user_id,
            size,
            context=context,
            exclude=exclude,
            only=only,
            without=without,
            caps=caps,
            hide=hide,
            explain=explain,
            list_size=list_size,
            cursor=cursor,
        )
        tries = self._tries(self._options.page_s)
        while True:
            try:
                return read_page(call, await self._ask(call, tries), user_id)
            except Unavailable as error:
                await self._pause(tries, error)

    async def ready(self) -> bool:
        """Whether intake and scorer answer, and the scorer has a model and items."""
        try:
            return all([(await self._ask(call)).status == 200 for call in self._addresses.ready()])
        except Unavailable:
            return False

    # -- events ----------------------------------------------------------------------------------------------------

    async def exposure(
        self, page: Page, shown: Shown | None = None, *, at: int | None = None, ts_ms: int | None = None
    ) -> bool:
        """Reports what was seen of a page, as ``Millrace.exposure``."""
        return await self._enqueue(exposure_of(page, shown, at, uuid.uuid4().hex, _now_ms(), ts_ms))

    async def click(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports a click on an item of a page, or on the item with this id."""
        return await self._act("click", page, item, ts_ms)

    async def collect(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was put on a wish list."""
        return await self._act("collect", page, item, ts_ms)

    async def cart(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was put into the cart."""
        return await self._act("cart", page, item, ts_ms)

    async def purchase(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was bought."""
        return await self._act("purchase", page, item, ts_ms)

    @property
    def waiting(self) -> int:
        """Events that are not yet known to be kept."""
        return len(self._waiting)

    @property
    def refused(self) -> list[Refusal]:
        """The newest 1,000 events that were not taken, with the reason of each."""
        return list(self._troubles.refused)

    @property
    def refused_total(self) -> int:
        """Events that were not taken, since the start."""
        return self._troubles.refused_total

    # -- the end ---------------------------------------------------------------------------------------------------

    async def flush(self, timeout_s: float | None = None) -> None:
        """Waits until every event reported so far is kept, or refused. Raises as ``Millrace.flush``."""
        timeout_s = self._options.patience_s if timeout_s is None else timeout_s
        through = True
        async with self._change:
            mark = self._waiting.hurry()
            self._change.notify_all()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._change.wait_for(lambda: self._waiting.settled >= mark)
            except TimeoutError:
                through = False
            failed, self._troubles.failed = self._troubles.failed, None
        if not through:
            raise unsent(mark - self._waiting.settled, self._troubles.latest)
        if failed is not None:
            raise failed

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flushes, and ends the task and the connections. Raises as :meth:`flush`; then the events are lost."""
        if self._closed:
            return
        async with self._change:
            self._ending = True
            self._change.notify_all()
        try:
            await self.flush(timeout_s)
        finally:
            self._closed = True
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            await self._http.aclose()

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

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _act(self, name: ActionName, page: Page, item: PlacedItem | Id, ts_ms: int | None) -> bool:
        return await self._enqueue(action_of(name, page, item, uuid.uuid4().hex, _now_ms(), ts_ms))

    async def _enqueue(self, event: Event | None) -> bool:
        if event is None:
            return False
        line = line_of(event)
        async with self._change:
            while self._waiting.full and not self._ending:
                if self._options.when_full == "raise":
                    raise QueueFull(
                        f"{len(self._waiting)} events wait to be sent", "send more slowly, or raise queue_size"
                    )
                await self._change.wait()
            if self._ending:
                raise QueueFull("the client is closed", "make a new one")
            self._waiting.add(line, time.monotonic())
            if self._task is None:
                self._task = asyncio.create_task(self._run(), name="millrace-client")
            self._change.notify_all()
        return True

    async def _run(self) -> None:
        """The sender's task: batches, one after the other, so that events stay in order. :meth:`close` cancels it."""
        while True:
            async with self._change:
                while (due_s := self._waiting.due_s(time.monotonic())) != 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(due_s):
                            await self._change.wait()
                lines = self._waiting.take()
            await self._deliver(lines)
            async with self._change:
                self._waiting.settle()
                self._change.notify_all()

    async def _deliver(self, lines: list[bytes]) -> None:
        """Sends a batch until it is kept or handed back."""
        tries = Tries(None, random.random, self._first_pause_s)
        call = self._addresses.post("events", lines)
        while True:
            try:
                receipt = read_receipt(call, await self._ask(call), lines)
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

    async def _send_all(self, kind: Kind, lines: Iterable[bytes]) -> Receipt:
        receipts, refused = [], []
        for part in parts(lines):
            call = self._addresses.post(kind, part)
            receipt = read_receipt(call, await self._patiently(call), part)
            receipts.append(receipt)
            refused += refusals(part, receipt)
        if refused:
            raise Refused(refused)
        return Receipt.of(verdict for receipt in receipts for verdict in receipt.verdicts)

    async def _delete(self, kind: Kind, identifier: Id) -> Receipt:
        call = self._addresses.delete(kind, identifier)
        receipt = read_receipt(call, await self._patiently(call))
        refused = refusals([str(identifier).encode()] * len(receipt.verdicts), receipt)
        if refused:
            raise Refused(refused)
        return receipt

    async def _patiently(self, call: Call) -> Answer:
        """An answer that is neither 429 nor 5xx, within ``patience_s``."""
        tries = self._tries(self._options.patience_s)
        while True:
            try:
                answer = await self._ask(call)
                if answer.status == 429 or answer.status >= 500:
                    raise failure_of(call, answer)
                return answer
            except (TooMuch, Unavailable) as error:
                await self._pause(tries, error)

    def _tries(self, seconds: float) -> Tries:
        return Tries(time.monotonic() + seconds, random.random, self._first_pause_s)

    async def _pause(self, tries: Tries, error: TooMuch | Unavailable) -> None:
        """Waits before the next try. Raises the error when there is no time for one."""
        pause_s = tries.pause_s(error, time.monotonic())
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)

    async def _ask(self, call: Call, tries: Tries | None = None) -> Answer:
        """Sends one request, once. Raises Unavailable when nothing answers in time."""
        if self._closed:
            raise Unavailable("the client is closed", "make a new one")
        left_s = self._options.timeout_s
        if tries is not None and tries.until_s is not None:
            left_s = max(0.001, tries.until_s - time.monotonic())
        try:
            answer = await self._http.request(
                call.method, call.url, content=call.body, headers=call.headers, timeout=left_s
            )
        except httpx.HTTPError as error:
            raise no_answer(call, error) from error
        return Answer(answer.status_code, answer.content, {k.lower(): v for k, v in answer.headers.items()})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
