# shell
"""``[serving.rerank]`` of the settings file, read again when the file changes: all workers re-rank by it from then on,
and so do those that start later.

A file that cannot be used is refused with a log line, and what was used goes on. Arms keep what they say themselves.
Everything else in the file counts from the next start on. Where a variable or a flag sets ``rerank``, the file is not
looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from millrace.basics.errors import SettingError
from millrace.connections.secrets import stamp
from millrace.contracts.settings import Settings, rerank_of
from scorer.feeder.primary import Primary, check_rerank
from scorer.ipc.link import Packet, Receiver

log = structlog.get_logger("scorer")


class RerankFile:
    """One thread looks; any adds workers."""

    def __init__(self, primary: Primary, count_error: Callable[[str], None]) -> None:
        settings: Settings = primary.settings
        self._schema, self._file, self._used = primary.schema, settings.rerank_file, settings.rerank
        self._count_error = count_error
        self._stamp: Any = ()  # as it was read last: this process may have been started with what the file said before
        self._seen: Any = ()  # at the last look
        self._packet: Packet | None = None

    def look(self, broadcast: Callable[[Packet], None]) -> None:
        """Reads the file if it has changed, and not since the last look: while it is written it may be empty, which
        says that nothing is re-ranked. ``broadcast``: sends to all workers."""
        now = stamp([self._file]) if self._file else self._stamp
        settled, self._seen = now == self._seen, now
        if now == self._stamp or not settled:
            return
        self._stamp = now
        try:
            rerank = rerank_of(self._file)
            check_rerank(self._schema, rerank)
        except SettingError as error:
            self._count_error("settings")
            log.error(
                "the settings file has changed and cannot be used; pages are re-ranked as before", error=str(error)
            )
            return
        if rerank != self._used:
            self._used, self._packet = rerank, Packet("rerank", msgspec.to_builtins(rerank))
            broadcast(self._packet)
            log.info("pages are re-ranked as the settings file says now", file=self._file)

    def add(self, worker: Receiver) -> None:
        """It gets what is used now, if that is not what it was started with."""
        if self._packet is not None:
            worker.put(self._packet)

    def remove(self, worker: Receiver) -> None:
        pass
