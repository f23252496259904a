# shell
"""An attempt to leave a history in a store: complete at its end, or nothing.

::

    history/unfinished ──► (reading, learning) ──► history/writing ──► place after place ──► both marks are removed
        │                                              │                   │
        │ no role starts on a store with this mark     │                   └ failed: what was written is removed
        │ (millrace.processes.profiles.check_whole)    └ put if the attempt is still ours, and no loop has lived there

A killed attempt leaves its marks. With ``writing`` the next attempt removes what is there: no loop has lived in it.
With ``unfinished`` alone the attempt had written nothing. Files that are there belong to a loop that had looked before
the mark was made, and it keeps them. Of two attempts at one time the later one goes on. The other finds a mark that is
not its own before it writes the next place, and ends.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from millrace.basics.errors import SettingError, StoreError
from millrace.basics.store import AbsentError, Store
from millrace.contracts import schemabook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, SAMPLES, miscounted
from millrace.processes.kafka import make_reader, topic_ids, topics_of
from millrace.processes.profiles import MARKS, PLACE, STATE, UNFINISHED, WRITING, lived

_REMEDY = "name an empty folder"


class _Mark(msgspec.Struct):
    token: str


def check_empty(settings: Settings) -> bool:
    """Whether an attempt that did not end may have left something in the store; nothing else may be there.

    Raises:
        SettingError: a loop has lived in the store, or the broker holds events of one, or has other partitions.
        BrokerError: the broker that is named does not answer.
    """
    half = bool(_marked(settings, UNFINISHED) and _marked(settings, WRITING))
    if not half:
        _refuse_loop(settings)
    if settings.kafka:
        for topic in (EVENTS, SAMPLES):
            _refuse_topic(settings, topic)
    elif settings.data and (kept := _first_of(Path(settings.data, "broker"))):
        raise SettingError(f"'{settings.data}' is not empty: a broker has its topics there (broker/{kept})", _REMEDY)
    return half


@contextlib.contextmanager
def attempt(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Iterator[Callable[[], None]]:
    """An attempt, for as long as the context lasts. Yields a function to call before each place is written.

    When the context ends by an exception, everything written since the first call is removed.

    Raises:
        SettingError, BrokerError: as :func:`check_empty`; from the function: another attempt or a loop has the store.
        StoreError: the store cannot be read or written.
    """
    half, mark = check_empty(settings), _Mark(uuid.uuid4().hex)
    store, alone = Store(settings.place(PLACE)), False
    where = settings.store or settings.data

    def ours() -> None:
        now = _marked(settings, UNFINISHED)
        if not now:
            raise SettingError(
                f"the mark of this replay, '{PLACE}/{UNFINISHED}', is gone from '{where}': another one ended there, or"
                " somebody removed it",
                "what is there may be of both: run it again into an empty folder",
            )
        if now != mark.token:
            raise SettingError(f"another replay has begun to leave its history in '{where}'", "let that one end")

    def check() -> None:
        nonlocal alone
        ours()
        if not alone:
            _refuse_loop(settings)
            store.put(WRITING, mark)
            alone = True

    try:
        store.put(UNFINISHED, mark)  # first: another attempt that is writing sees it, and stops
        if half:
            say(f"an earlier replay did not end: what it left in '{where}' is removed")
            _clear(settings)
        yield check
        ours()
    except BaseException:
        with contextlib.suppress(StoreError):  # what cannot be removed now, the next try removes
            now = _marked(settings, UNFINISHED)
            if alone and not now:  # what is there is not whole, or of two histories
                store.put(WRITING, mark)
                store.put(UNFINISHED, mark)
            elif alone and _marked(settings, WRITING) in ("", mark.token):  # no other try has written yet
                _clear(settings)
            if now == mark.token:
                store.remove([UNFINISHED])
        raise
    store.remove([WRITING, UNFINISHED])


def _marked(settings: Settings, name: str) -> str:
    """The owner of the mark of this name in the store; empty: there is none."""
    try:
        return msgspec.json.decode(Store(settings.place(PLACE), writes=False).get(name)[0], type=_Mark).token
    except AbsentError:
        return ""


def _refuse_loop(settings: Settings) -> None:
    if found := lived(settings):
        raise SettingError(
            f"'{settings.store or settings.data}' is not empty: a loop has lived there ({found})", _REMEDY
        )


def _refuse_topic(settings: Settings, topic: str) -> None:
    if topic not in topic_ids(settings):
        return
    reader = make_reader(settings, topic)
    try:
        assigned: list[Any] = list(reader.assignment())
        ends, begins = reader.end_offsets(assigned), reader.beginning_offsets(assigned)
    finally:
        reader.close()
    name, held = settings.topic(topic), sum(ends[tp] - begins[tp] for tp in assigned)
    if held:
        raise SettingError(
            f"topic '{name}' at '{settings.kafka}' holds {held:,} messages, which would be counted once more",
            "name an empty broker, or a MILLRACE_PREFIX of its own",
        )
    for fault in miscounted(topics_of(settings), {name: len(assigned)}, settings.partitions):
        raise SettingError(*fault)


def _first_of(folder: Path) -> str:
    """The name of something in a folder; empty: it is empty, or not there."""
    try:
        return min((path.name for path in folder.iterdir()), default="")
    except OSError:
        return ""


def _clear(settings: Settings) -> None:
    """Removes all that an attempt may have written. The mark that tells of it goes last."""
    for place in (*STATE, schemabook.PLACE):
        store = Store(settings.place(place))
        store.remove(name for name in store.names(aside=True) if place != PLACE or name not in MARKS)
    Store(settings.place(PLACE)).remove([WRITING])
