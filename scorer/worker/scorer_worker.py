# shell
"""A worker: one process, one event loop, one listening socket shared with the others.

It answers requests from replicas of the feeder's state (:mod:`scorer.worker.replica`), and waits for the feeder only
where the answer needs the feeder's data. It ends when the feeder does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import secrets
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn
from uuid import uuid4

import msgspec
import numpy as np
import structlog
import torch
import uvloop
from numpy.typing import NDArray

from learner.custom.ownclass import is_own
from learner.role.model_factory import model_of
from millrace.basics.errors import SettingError, one_line
from millrace.contracts.events import PageLog
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import Rerank
from millrace.processes.httpserver import config
from millrace.processes.role import calm_logs
from millrace.processes.shared import Region
from millrace.processes.tokens import AccessGate, Tokens
from millrace.processes.wall import wall_ms
from scorer.ipc.link import Handles, LinkMessage, WorkerLink
from scorer.ipc.meters import ScorerMeters
from scorer.ipc.scorer_metrics import metric_samples
from scorer.page.page_service import Serving
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.shipper import rescue
from scorer.users.user_reader import OnlineReader, connect
from scorer.worker.acceptor import WorkerServer
from scorer.worker.page_app import make_app
from scorer.worker.replica import ModelReplica, Replica, attach
from scorer.worker.request_limit import RequestLimit
from scorer.worker.scorer_warmup import warm_up

log = structlog.get_logger("scorer")

DRAIN_SECONDS = 5
END_SECONDS = 10.0
"""A worker whose feeder is gone ends after so long, whatever its loop does."""
ASK_SECONDS = 2.0
MOST_REQUESTS = 32  # in work at a worker; beyond it, one is refused at once (503)
SWITCH_SECONDS = 0.0005
"""A thread that attaches to a snapshot may delay a request by so much."""
_SECRET = secrets.randbits(63)  # made in the template, so all its workers draw the same page for the same request


def prepare(settings: Settings) -> None:
    """Runs once in the template for all workers: imports (above), compiles, and runs each function."""
    calm_logs(log_format=settings.log_format)
    structlog.contextvars.bind_contextvars(role="serve")
    torch.set_num_threads(1)
    warm_up(settings.load_schema())
    for name in ("", *settings.served_learners):
        own = settings.of_learner(name)
        if is_own(own.model):
            with contextlib.suppress(SettingError):  # the spec that counts comes with the version
                model_of(own.load_schema(), own.spec(), 0)
    gc.collect()
    gc.freeze()  # what is there now stays: it is never looked at again, and its pages stay shared


def work(settings: Settings, number: int, handles: Handles) -> NoReturn:
    """A worker's whole life, in a fork of the template; the process ends with it."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the feeder says when to end
        structlog.contextvars.bind_contextvars(worker=number)
        sys.setswitchinterval(SWITCH_SECONDS)
        ScorerWorker(settings, number, handles).run()
        status = 0
    except BaseException as error:
        log.error("worker failed", error=one_line(error), exc_info=not isinstance(error, KeyboardInterrupt))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the template's is to be cleaned up here


class ScorerWorker:
    def __init__(self, settings: Settings, number: int, handles: Handles) -> None:
        self.settings, self.schema = settings, settings.load_schema()
        self._listener = socket.socket(fileno=handles.listener)
        self._end = socket.socket(fileno=handles.link)
        shares = Region.of_fd(handles.shares)
        self._number, self._shares = number, shares.array((shares.size // 8,), np.int64)
        ring = Region.of_fd(handles.ring)
        self._ring_file = ring.fd
        self._memory = ring.array((ring.size,), np.uint8)
        self._ring = RingWriter(self._memory, handles.bell)
        self._orphaned = False
        self.meters = ScorerMeters()
        self._link = WorkerLink(self._end, self._received, self._ended)
        self._asked: dict[int, asyncio.Future[LinkMessage]] = {}
        self._numbers = 0
        self._attaching = ThreadPoolExecutor(1, "attach")
        self._server: WorkerServer | None = None
        self._was_ready = self._has_all = False
        self._open = asyncio.Event()

    def run(self) -> None:
        """Answers requests until the feeder ends it, or is gone."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())
        if self._orphaned and self._feeder_is_gone():
            rescue(self.settings, self.schema, RingReader(self._memory), self.meters.lost)

    def _feeder_is_gone(self) -> bool:
        """Whether nobody reads our page logs any more. A living feeder holds a lock on their memory."""
        try:
            fcntl.lockf(self._ring_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    async def _run(self) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        store = OnlineReader(connect(settings), self.meters.fallback, settings.redis_seconds, prefix=settings.prefix)
        await store.open()
        self.serving = Serving(
            settings,
            self.schema,
            settings.event_clock(),
            store,
            self._log,
            self.meters,
            wall_ms,
            lambda: uuid4().hex,
            self.ask_counts,
            _SECRET,
        )
        self._replicas: dict[str, ModelReplica] = {
            name: ModelReplica(self.serving.of(name), partial(self._attach, name), partial(self._serves, name))
            for name in settings.served_learners
        }
        self._replicas[""] = Replica(self.serving, partial(self._attach, ""), partial(self._serves, ""))
        gate = RequestLimit(make_app(self.serving, self.meters, self), MOST_REQUESTS, self.meters.refused)
        app = AccessGate(gate, Tokens.of(settings), settings, self.meters.unauthorized)
        self._server = WorkerServer(config(app, DRAIN_SECONDS), self._listener, self._shares, self._number)
        self._link.start(loop)
        self._link.send("hello")
        gc.collect()
        gc.freeze()
        try:
            await self._open.wait()
            await self._server.serve()
        finally:
            self._link.send("measured", metric_samples())
            await store.close()
            self._attaching.shutdown(wait=False, cancel_futures=True)
            self._link.close()

    # -- the feeder -------------------------------------------------------------------------------------------

    def _received(self, message: LinkMessage) -> None:
        try:
            self._take(message)
        except Exception as error:  # what it would have changed is missing from now on: another worker starts whole
            log.error("worker cannot take a message", kind=message.kind, error=one_line(error), exc_info=True)
            os._exit(1)

    def _take(self, message: LinkMessage) -> None:
        if message.kind == "answer":
            future = self._asked.pop(message.facts["ask"], None)
            if future is not None and not future.done():
                future.set_result(message)
        elif message.kind == "measure":
            self._link.send("measured", metric_samples())
        elif message.kind == "end":
            self._stop()
        elif message.kind == "rerank":
            self.serving.rerank_by(msgspec.convert(message.facts, Rerank))
        elif message.kind == "all":
            self._has_all = True
            self._report_ready()
        else:
            self._replicas[(message.facts or {}).get("learner", "")].take(message)
            self._report_ready()

    def _report_ready(self) -> None:
        """Accepts connections once the worker has all that the feeder had at its start. Until then the other workers
        accept, or the stand-in says when to ask again (scorer/worker/door.py)."""
        ready = not self.serving.not_ready()
        first = [each for each in self._replicas.values() if each.attaching and each.model is None]
        if self._has_all and not first and (ready or not self._replicas[""].attaching):
            self._open.set()
        if ready != self._was_ready:
            self._was_ready = ready
            self._link.send("ready", ready)

    def _ended(self) -> None:
        self._orphaned = True
        threading.Thread(target=_end_for_sure, daemon=True).start()
        self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._open.set()

    def _serves(self, learner: str, number: int) -> None:
        self._link.send("serves", [learner, number])

    def _attach(self, learner: str, message: LinkMessage) -> None:
        replica, named = self._replicas[learner], self.settings.of_learner(learner).model
        loop, like, most = asyncio.get_running_loop(), replica.model, self.serving.arms.candidates

        def work() -> Any:
            for region in message.regions:
                region.populate()
            return attach(self.schema, message, most, like, named)

        def done(future: Any) -> None:
            before = [replica.held.model, replica.held.retrieval]
            try:
                replica.attached(message, future.result())
                with contextlib.suppress(RuntimeError):  # the worker ends
                    # Memory of a million rows takes some ms to be let go, which no request should wait for.
                    self._attaching.submit(before.clear)
                self._report_ready()
            except Exception as error:
                if message.kind == "retrieval":  # recall goes on with what it has
                    replica.failed(message)
                    self.meters.error("retrieval")
                    log.error("worker cannot take up vectors of items", error=one_line(error), exc_info=True)
                    return
                # A worker without the current model is useless.
                log.error("worker cannot attach to the model", error=one_line(error), exc_info=True)
                os._exit(1)

        self._attaching.submit(work).add_done_callback(
            lambda future: None if future.cancelled() else loop.call_soon_threadsafe(done, future)
        )

    # -- what only the feeder knows ---------------------------------------------------------------------------

    async def _ask(self, what: str, facts: Any = None, arrays: Any = None) -> LinkMessage | None:
        self._numbers += 1
        number = self._numbers
        future: asyncio.Future[LinkMessage] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._link.send("ask", {"ask": number, "what": what, "facts": facts}, arrays)
            return await asyncio.wait_for(future, ASK_SECONDS)
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    async def ask_counts(self, rows: NDArray[np.intp], ts_ms: int) -> NDArray[Any] | None:
        """Exact item-side counts of ``rows`` at ``ts_ms``; None: not available."""
        answer = await self._ask("counts", {"ts_ms": ts_ms, "rows": rows.astype("<i4").tobytes()})
        return None if answer is None else answer.arrays.get("counts")

    async def model(self) -> dict[str, Any] | None:
        """The body of GET /model; None: the feeder did not answer."""
        answer = await self._ask("model")
        return None if answer is None else answer.facts["answer"]

    async def metrics(self) -> bytes | None:
        """The body of GET /metrics; None: the feeder did not answer."""
        answer = await self._ask("metrics")
        return None if answer is None else answer.facts["answer"]

    # -- within -----------------------------------------------------------------------------------------------

    def _log(self, page: PageLog) -> bool:
        return self._ring.put(page)


def _end_for_sure() -> None:
    threading.Event().wait(END_SECONDS)
    os._exit(1)
