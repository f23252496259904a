# shell
"""The client for threads: :class:`Millrace`.

::

    exposure, click ... ──► Waiting ──► sender thread ──► POST /events        (batches; tried again until they are kept)
    put_items, put_users, delete_* ──────────────────────► POST, DELETE       (at once; tried again for patience_s)
    recommend ───────────────────────────────────────────► POST /recommend    (tried again within page_s)
"""

from __future__ import annotations

import atexit
import os
import random
import threading
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


class Millrace:
    """A shop's connection to Millrace, for any number of threads.

    Events (:meth:`exposure`, :meth:`click` ...) return at once and are sent in batches by a thread of the client's own.
    They are tried again until they are kept: each has an id, so that none counts twice. :meth:`flush` waits for them.
    Whatever is not taken is in ``refused``, with its reason. Make one client a process, after a fork, and close it::

        with Millrace() as shop:
            page = shop.recommend("u1", size=20, only={"in_stock": True})
            shop.exposure(page, shown=range(8))
            shop.click(page, page.items[2])

    Args:
        intake, scorer: URLs of the two doors. None: MILLRACE_INTAKE and MILLRACE_SCORER of the environment, or where
            ``millrace up`` answers.
        token: the bearer token, where the servers want one. None: MILLRACE_TOKEN of the environment, or none.
        options: how it behaves (:class:`~millrace_client.options.Options`).
        transport: an httpx transport, for a proxy, certificates of your own, or a test.
    """

    def __init__(
        self,
        intake: str | None = None,
        scorer: str | None = None,
        token: str | None = None,
        options: Options | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._options = options or Options()
        self._first_pause_s = first_pause_s
        self._pid = os.getpid()
        self._addresses = addresses(intake, scorer, token)
        # Not by the environment's proxy: that would be asked for loopback addresses too.
        self._http = httpx.Client(transport=transport, timeout=self._options.timeout_s, trust_env=False)
        self._waiting = Waiting(self._options.queue_size, self._options.batch_size, self._options.batch_seconds)
        self._troubles = Troubles(self._options.on_refused)
        self._change = threading.Condition()
        self._ending = False  # nothing new is taken; what waits is still sent
        self._abort = threading.Event()  # nothing more is sent
        self._thread: threading.Thread | None = None

    # -- the catalogue and the people ------------------------------------------------------------------------------

    def put_items(self, items: Iterable[Item]) -> Receipt:
        """Sends items, new or changed. Returns when they are kept.

        Raises:
            Refused: some were not taken; all others are kept.
            MillraceClientError: any of the others; what was sent before may be kept. Sending all again is safe.
        """
        return self._send_all("items", map(line_of, items))

    def put_users(self, users: Iterable[User]) -> Receipt:
        """Sends users, as :meth:`put_items`."""
        return self._send_all("users", map(line_of, users))

    def delete_item(self, item_id: Id) -> Receipt:
        """Takes an item out of the catalogue. Returns when that is kept."""
        return self._delete("items", item_id)

    def delete_user(self, user_id: Id) -> Receipt:
        """Has a user's data forgotten. Returns when that is kept."""
        return self._delete("users", user_id)

    # -- pages -----------------------------------------------------------------------------------------------------

    def recommend(
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
        """The best items for a user, best first.

        Args:
            size: items wanted; None: as many as a page may have.
            context: values of the schema's context fields.
            exclude: ids that must not come.
            only, without: item attributes; every one of ``only`` must hold and none of ``without`` may. A list of
                values stands for any of them.
            caps: attribute -> items of the page that may have the same value of it.
            hide: what this user did: ``bought``, ``clicked``, ``seen``.
            explain: say of each item where it was found and what spoke for it.
            list_size: rank so many and hand out ``size`` at a time (``list`` of the HTTP API).
            cursor: the next part of a list, as the page before named it.

        Raises:
            BadRequest, Unauthorised: the request or the token is wrong.
            Unavailable: there is no page within ``page_s``: show your own order meanwhile.
        """
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
                return read_page(call, self._ask(call, tries), user_id)
            except Unavailable as error:
                self._pause(tries, error)

    def ready(self) -> bool:
        """Whether intake and scorer answer, and the scorer has a model and items."""
        try:
            return all(self._ask(call).status == 200 for call in self._addresses.ready())
        except Unavailable:
            return False

    # -- events ----------------------------------------------------------------------------------------------------

    def exposure(
        self, page: Page, shown: Shown | None = None, *, at: int | None = None, ts_ms: int | None = None
    ) -> bool:
        """Reports what was seen of a page.

        Args:
            shown: items of the page, or their positions, in the order shown. None: all, as answered.
            at: the slot in which the first was shown. None: where the page put them if they follow one another there,
                else 0.
            ts_ms: when it was seen, in Unix ms of the event clock; None: now.

        Returns:
            Whether there was something to report. A page made of lists has nothing (``request_id`` is None).

        Raises:
            NotOnPage: an item that the page does not have.
            BadRequest: ``ts_ms`` is before the page was made.
            QueueFull: with ``when_full="raise"``.
        """
        return self._enqueue(exposure_of(page, shown, at, uuid.uuid4().hex, _now_ms(), ts_ms))

    def click(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports a click on an item of a page, or on the item with this id. As :meth:`exposure`."""
        return self._act("click", page, item, ts_ms)

    def collect(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was put on a wish list. As :meth:`click`."""
        return self._act("collect", page, item, ts_ms)

    def cart(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was put into the cart. As :meth:`click`."""
        return self._act("cart", page, item, ts_ms)

    def purchase(self, page: Page, item: PlacedItem | Id, *, ts_ms: int | None = None) -> bool:
        """Reports that an item was bought. As :meth:`click`."""
        return self._act("purchase", page, item, ts_ms)

    @property
    def waiting(self) -> int:
        """Events that are not yet known to be kept."""
        return len(self._waiting)

    @property
    def refused(self) -> list[Refusal]:
        """The newest 1,000 events that were not taken, with the reason of each."""
        return list(self._troubles.refused.copy())

    @property
    def refused_total(self) -> int:
        """Events that were not taken, since the start."""
        return self._troubles.refused_total

    # -- the end ---------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until every event reported so far is kept, or refused and in ``refused``.

        Args:
            timeout_s: seconds; None: ``patience_s``.

        Raises:
            TooMuch, Unavailable: some are not kept yet. They still wait, and are tried again.
            MillraceClientError: events since the last flush were handed back (wrong token, wrong address).
        """
        timeout_s = self._options.patience_s if timeout_s is None else timeout_s
        with self._change:
            mark = self._waiting.hurry()
            self._change.notify_all()
            through = self._change.wait_for(lambda: self._waiting.settled >= mark, timeout_s)
            failed, self._troubles.failed = self._troubles.failed, None
            if not through:
                raise unsent(mark - self._waiting.settled, self._troubles.latest)
        if failed is not None:
            raise failed

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flushes, and ends the thread and the connections. Raises as :meth:`flush`; then the events are lost."""
        if self._abort.is_set():
            return
        with self._change:
            self._ending = True
            self._change.notify_all()
        try:
            self.flush(timeout_s)
        finally:
            self._abort.set()
            with self._change:
                self._change.notify_all()
            if self._thread is not None:
                self._thread.join()
            self._http.close()
            atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.close()
        except MillraceClientError as problem:
            if error is None:
                raise
            log.warning("%s", problem)  # the error that is on its way says more

    # -- inside ----------------------------------------------------------------------------------------------------

    def _act(self, name: ActionName, page: Page, item: PlacedItem | Id, ts_ms: int | None) -> bool:
        return self._enqueue(action_of(name, page, item, uuid.uuid4().hex, _now_ms(), ts_ms))

    def _enqueue(self, event: Event | None) -> bool:
        if event is None:
            return False
        if os.getpid() != self._pid:
            raise MillraceClientError("this client was made before the process forked", "make one after the fork")
        line = line_of(event)
        with self._change:
            while self._waiting.full and not self._ending:
                # A callback runs in the sender's thread, which alone makes room: it cannot wait for itself.
                if self._options.when_full == "raise" or threading.current_thread() is self._thread:
                    raise QueueFull(
                        f"{len(self._waiting)} events wait to be sent", "send more slowly, or raise queue_size"
                    )
                self._change.wait()
            if self._ending:
                raise QueueFull("the client is closed", "make a new one")
            self._waiting.add(line, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="millrace-client", daemon=True)
                self._thread.start()
                atexit.register(self._at_exit)
            self._change.notify_all()
        return True

    def _run(self) -> None:
        """The sender's thread: batches, one after the other, so that events stay in order."""
        while True:
            with self._change:
                while (due_s := self._waiting.due_s(time.monotonic())) != 0:
                    if self._abort.is_set():
                        return
                    self._change.wait(due_s)
                lines = self._waiting.take()
            through = self._deliver(lines)
            with self._change:
                if through:
                    self._waiting.settle()
                else:
                    self._waiting.put_back()
                self._change.notify_all()
            if not through:
                return

    def _deliver(self, lines: list[bytes]) -> bool:
        """Sends a batch until it is kept or handed back; False: the client was closed before."""
        tries = Tries(None, random.random, self._first_pause_s)
        call = self._addresses.post("events", lines)
        while not self._abort.is_set():
            try:
                receipt = read_receipt(call, self._ask(call), lines)
            except (TooMuch, Unavailable) as error:
                self._troubles.latest = error
                self._troubles.say(f"{len(lines)} events wait: {error}", time.monotonic())
                self._abort.wait(tries.pause_s(error, time.monotonic()))
            except Exception as error:
                self._troubles.latest = None
                self._troubles.hand_back(lines, expected(error), time.monotonic())
                return True
            else:
                self._troubles.latest = None
                self._troubles.refuse(refusals(lines, receipt), time.monotonic())
                return True
        return False

    def _send_all(self, kind: Kind, lines: Iterable[bytes]) -> Receipt:
        receipts, refused = [], []
        for part in parts(lines):
            call = self._addresses.post(kind, part)
            receipt = read_receipt(call, self._patiently(call), part)
            receipts.append(receipt)
            refused += refusals(part, receipt)
        if refused:
            raise Refused(refused)
        return Receipt.of(verdict for receipt in receipts for verdict in receipt.verdicts)

    def _delete(self, kind: Kind, identifier: Id) -> Receipt:
        call = self._addresses.delete(kind, identifier)
        receipt = read_receipt(call, self._patiently(call))
        refused = refusals([str(identifier).encode()] * len(receipt.verdicts), receipt)
        if refused:
            raise Refused(refused)
        return receipt

    def _patiently(self, call: Call) -> Answer:
        """An answer that is neither 429 nor 5xx, within ``patience_s``."""
        tries = self._tries(self._options.patience_s)
        while True:
            try:
                answer = self._ask(call)
                if answer.status == 429 or answer.status >= 500:
                    raise failure_of(call, answer)
                return answer
            except (TooMuch, Unavailable) as error:
                self._pause(tries, error)

    def _tries(self, seconds: float) -> Tries:
        return Tries(time.monotonic() + seconds, random.random, self._first_pause_s)

    def _pause(self, tries: Tries, error: TooMuch | Unavailable) -> None:
        """Waits before the next try. Raises the error when there is no time for one."""
        pause_s = tries.pause_s(error, time.monotonic())
        if pause_s is None:
            raise error
        time.sleep(pause_s)

    def _ask(self, call: Call, tries: Tries | None = None) -> Answer:
        """Sends one request, once. Raises Unavailable when nothing answers in time."""
        if self._abort.is_set():
            raise Unavailable("the client is closed", "make a new one")
        left_s = self._options.timeout_s
        if tries is not None and tries.until_s is not None:
            left_s = max(0.001, tries.until_s - time.monotonic())
        try:
            answer = self._http.request(call.method, call.url, content=call.body, headers=call.headers, timeout=left_s)
        except httpx.HTTPError as error:
            raise no_answer(call, error) from error
        return Answer(answer.status_code, answer.content, {k.lower(): v for k, v in answer.headers.items()})

    def _at_exit(self) -> None:
        """A program ends that did not close its client: what waits is sent, or said to be lost."""
        try:
            self.close()
        except MillraceClientError as error:
            log.warning("%s", error)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
