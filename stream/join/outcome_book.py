# core
"""Outcomes that come late: which rows still wait for one, and what has come of each.

::

    exposure, or click ──► open row ──► its hour ──► hour's end + wait: sealed, a file with the rows' features
                              ▲                      hour's end + age + wait: told, an outcome of its rows
         purchase, order, ────┘
         refund

An outcome on pages has a row for each exposure, one on clicks for each click. A row is known in memory by hashes of
its user, its item and its place (request and position); features lie on disk. Rows lie by the hour in which they
begin, so nothing is ever looked up on disk: the hour's file is read when an outcome of it is told. The book says what
is to be written and told; the worker does it before the checkpoint that covers it, as it sends samples. So a crash
repeats files and samples, with the same names and ids.

An "hour" is as long as the first age at which an outcome of its rows is told, between :data:`LEAST_MS` and an hour. The
wait for late events is the lateness, or the age, where that is shorter. So what is due after minutes is told within
minutes.

- A purchase names its page, or is an order without one: it belongs to the user's last click on the item that has come
  (the last exposure, where no outcome is on clicks), if the row's window still holds it. An event of an open row may
  come at any time until the row is told.
- A refund takes back the user's last purchase of the item that is dated no later. It counts until the row is told.
- What comes before its row, or a refund before its purchase, waits for the lateness. Then it is a dead letter.
- An event is known by its user and its id, for as long as an hour at whose rows it was noted has its file. It counts
  once: what comes under the same name is dropped, whatever its type, time or item.
- A deleted user's rows are not told, and their features are overwritten, as long as the file is there.
- An outcome is told one time, at the age ``within``, or by age (millrace/labels/tellings.py). An hour keeps the policy
  that it began with. What a row is told at an age is what came before that age, and was not taken back since.

A row takes 21 bytes of memory; when all is told, for a day, a user of an hour takes 8. R rows of an hour, K outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS, MINUTE_MS
from millrace.basics.hashing import value_hash
from millrace.contracts.events import ACTIONS, CLICK, EXPOSURE, PURCHASE, Action, Order, Refund, name_hash
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import OUTCOME, SampleBatch
from millrace.contracts.schema import Schema
from millrace.labels import policy_named
from millrace.labels.tellings import ages_ms, place_hash
from stream.join.hour_rows import DTYPES, FORGOTTEN, Aged, Hour, HourRows, UserHours
from stream.join.joined_pages import InputMessage
from stream.join.page_rows import LoggedPage, Runs, Sampled

REFUND = Refund.kind
LEAST_MS = 5 * MINUTE_MS
"""The shortest hour: 288 files a day of a partition's clicks, and as many of its exposures."""
KEPT_MS = 24 * HOUR_MS
"""A file stays for so long after all of it is told, for a worker that reads Kafka again from a while ago."""
_TAKEN_BACK = -1
_NEVER = 1 << 62
_MASK = 0xFFFFFFFF

Ids = NDArray[np.uint64]


class SealedHour(NamedTuple):
    """An hour whose rows are complete: to be written."""

    hour: Hour
    rows: SampleBatch  # (R,)


class Told(NamedTuple):
    """An outcome of an hour's rows is known: those with a value are samples now."""

    hour: Hour
    outcomes: NDArray[np.float32]  # (R, K), NaN: not told
    offsets: list[int]  # in ``events``, of what they rest on, each said one time
    telling: int = 0  # its number, of those by age
    policy: int = 0  # its code, of those


class Erased(NamedTuple):
    """Rows of a deleted user, whose features are to be overwritten."""

    hour: Hour
    who: int


@dataclass(slots=True)
class ToFiles:
    """What is to be done with hours' files: first all that is to be written, then told; removed after a checkpoint."""

    sealed: list[SealedHour] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    erased: list[Erased] = field(default_factory=list)
    removed: list[Hour] = field(default_factory=list)


class Waiting(NamedTuple):
    """An event whose row has not come, or a refund whose purchase has not."""

    kind: int
    place: int | None
    ts_ms: int
    message: InputMessage
    id: int  # by which it is known
    took: bool = False  # whether a row took it already, and one of another kind may follow


class Dropped(NamedTuple):
    """An event that waited in vain."""

    reason: str
    detail: str
    message: InputMessage


class OutcomeBook:
    """The open rows of one partition. Reads no clock; :meth:`expire` moves its time.

    Args:
        schema: with outcomes of events.
        shape: (F, N, K) of page logs.
        late_ms: how late an event may come.
    """

    def __init__(self, schema: Schema, shape: tuple[int, int, int], late_ms: int) -> None:
        self._shape, self._late_ms = shape, late_ms
        self._names = [one.name for one in schema.outcome]
        self._outcomes = [one for one in schema.outcome if one.event is not None]
        self._known = [(one.name, one.event, one.on) for one in self._outcomes]
        self._of = {on: [one for one in self._outcomes if one.on == on] for on in ("page", "click")}
        self.kinds = {on: {ACTIONS.index(one.event or "") for one in of} for on, of in self._of.items() if of}
        self._longest = {on: max(one.within_ms for one in self._of[on]) for on in self.kinds}
        first_ms = {on: min(ages_ms(policy_named(o.told), o.within_ms)[0] for o in self._of[on]) for on in self.kinds}
        self._span_ms = {on: max(LEAST_MS, min(HOUR_MS, first)) for on, first in first_ms.items()}
        self._hours: dict[Hour, HourRows] = {}
        self._unsealed, self._sealed = set[Hour](), UserHours()
        self._sealed_to = dict.fromkeys(self.kinds, 0)  # the end of the last one (ms)
        self._waiting: dict[tuple[int, int], list[Waiting]] = {}
        self._next_ms = _NEVER

    def __len__(self) -> int:
        return sum(len(one.who) for one in self._hours.values())

    @property
    def due_ms(self) -> int | None:
        """The watermark at which something is due; None: nothing waits."""
        return self._next_ms if self._next_ms < _NEVER else None

    def takes(self, kind: int) -> bool:
        return any(kind in kinds for kinds in self.kinds.values())

    def knows(self, event: Action | Order) -> bool:
        """Whether the event was noted before, or waits."""
        id, who, what = name_hash(event), value_hash(event.user_id), value_hash(event.item_id) & _MASK
        return self._is_noted(id) or any(one.id == id for one in self._waiting.get((who, what), ()))

    # ------------------------------------------------------------------ what comes in

    def open(self, on: str, request: str, runs: Runs, page: LoggedPage, base_ms: int, ts_ms: int, policy: int) -> None:
        """Exposures at these positions of a page (``on`` pages), or a click of one, begin to wait, if an outcome is of
        such. ``base_ms``: from when on; ``ts_ms``: of the exposure."""
        if on not in self.kinds:
            return
        span_ms = self._span_ms[on]
        hour = (on, max((base_ms // span_ms + 1) * span_ms, self._sealed_to[on] + span_ms))
        rows = self._hours.get(hour)
        if rows is None:
            self._unsealed.add(hour)
            rows = self._hours[hour] = HourRows.new(
                {one.name: Aged.of(one.told, one.within_ms) for one in self._of[on] if one.told != "wait"}
            )
            rows.due_ms = self._due(hour, rows)
            self._next_ms = min(self._next_ms, rows.due_ms)
        positions = [position for first, end in runs for position in range(first, end)]
        what = [int.from_bytes(page.item[8 * at : 8 * at + 4], "little") for at in positions]
        place = [place_hash(request, position) for position in positions]
        rows.add(page.user, what, place, max(base_ms - hour[1], FORGOTTEN + 1))
        actions = 1 << EXPOSURE | (1 << CLICK if on == "click" else 0)
        rows.recent.append(Sampled(request, page, ts_ms, runs, len(positions), OUTCOME, actions, 0, policy))
        rows.collect(self._shape)
        if self._waiting:
            for one in what:
                self._look_again(page.user, one)

    def act(self, event: Action, message: InputMessage, waits: bool) -> bool:
        """An action that names its page. Returns whether a row took it, or, if it ``waits``, will be waited for."""
        if not self.takes(event.kind):
            return False
        who, what = value_hash(event.user_id), value_hash(event.item_id) & _MASK
        one = Waiting(event.kind, place_hash(event.request_id, event.position), event.ts_ms, message, name_hash(event))
        took, whole = self._note(who, what, one)
        if waits and not whole:
            self._wait(who, what, one._replace(took=took))
        return took or waits

    def order(self, event: Order, message: InputMessage) -> None:
        """A purchase that names no page, or a refund."""
        who, what = value_hash(event.user_id), value_hash(event.item_id) & _MASK
        kind = REFUND if isinstance(event, Refund) else PURCHASE
        one = Waiting(kind, None, event.ts_ms, message, name_hash(event))
        if not self._note(who, what, one)[0]:
            self._wait(who, what, one)

    def forget(self, who: int, files: ToFiles) -> None:
        """Closes all rows of a user."""
        for hour, rows in self._hours.items():
            gone = rows.of_user(who)
            if rows.sealed and gone:
                files.erased.append(Erased(hour, who))
                if not self._untold(hour[0], rows):
                    continue
                rows.base = rows.base.copy()  # after a restart it is read-only
            for row in gone:
                rows.base[row] = FORGOTTEN
            rows.acts = {(row, kind): at for (row, kind), at in rows.acts.items() if row not in gone}

    def expire(self, now_ms: int, files: ToFiles) -> Iterator[Dropped]:
        """Does what is due at this watermark."""
        if now_ms < self._next_ms:
            return
        yield from self._give_up(now_ms)
        while True:
            due_ms, hour = min(((rows.due_ms, h) for h, rows in self._hours.items()), default=(_NEVER, ("", 0)))
            if due_ms > now_ms:
                break
            rows = self._hours[hour]
            if not rows.sealed:
                self._sealed_to[hour[0]] = max(self._sealed_to[hour[0]], hour[1])
                batch = rows.seal(self._shape)
                self._unsealed.remove(hour)
                if len(batch):
                    files.sealed.append(SealedHour(hour, batch))
                    self._sealed.add(hour, self._hours)
                else:
                    del self._hours[hour]
            elif left := self._untold(hour[0], rows):
                first = min(map(rows.next_telling, left))
                self._tell(hour, rows, [one for one in left if rows.next_telling(one) == first], first, files)
            else:
                files.removed.append(hour)
                self._sealed.remove(hour)
                del self._hours[hour]
            rows.due_ms = self._due(hour, rows)
        waiting = [one.ts_ms + self._late_ms + 1 for events in self._waiting.values() for one in events]
        self._next_ms = min([due_ms, *waiting])

    # ------------------------------------------------------------------ rules

    def _untold(self, on: str, rows: HourRows) -> list[OutcomeRule]:
        return [one for one in self._of[on] if one.name not in rows.told]

    def _due(self, hour: Hour, rows: HourRows) -> int:
        """The watermark at which something is to be done with an hour."""
        on, ends_ms = hour
        ages = [rows.next_telling(one)[0] for one in self._untold(on, rows)]
        if rows.sealed and not ages:
            return ends_ms + self._known_at(self._longest[on]) + KEPT_MS
        age_ms = min(ages, default=0)
        return ends_ms + self._known_at(age_ms) - (0 if rows.sealed else age_ms)

    def _known_at(self, age_ms: int) -> int:
        """How long after an hour's end its rows are told at this age. It rises with the age."""
        return age_ms + min(self._late_ms, age_ms)

    def _is_noted(self, id: int) -> bool:
        return any(id in rows.ids for rows in self._hours.values())

    def _rows_of(self, on: str, who: int, what: int) -> Iterator[tuple[int, HourRows, int]]:
        """(begin in ms, hour, row) of the open rows of a user and an item."""
        for hour in (*self._unsealed, *self._sealed.of(who)):
            rows = self._hours[hour]
            if hour[0] == on and (not rows.sealed or self._untold(on, rows)):
                for row in rows.mine(who, what):
                    yield hour[1] + int(rows.base[row]), rows, row

    def _note(self, who: int, what: int, one: Waiting) -> tuple[bool, bool]:
        """Notes an event at its rows. Returns whether there is one, and one of each kind, or it was noted before."""
        if not one.took and self._is_noted(one.id):
            return True, True
        if one.kind == REFUND:
            return (self._take_back(who, what, one),) * 2
        place = one.place
        if place is None:
            on = "click" if "click" in self.kinds else "page"
            before = [found for found in self._rows_of(on, who, what) if found[0] <= one.ts_ms]
            if not before:
                return False, False
            _, rows, row = max(before, key=lambda found: found[0])
            place = int(rows.place[row])
        took, whole = False, True
        for on, kinds in self.kinds.items():
            if one.kind not in kinds:
                continue
            here = False
            longest = max(o.within_ms for o in self._of[on] if ACTIONS[one.kind] == o.event)
            for base_ms, rows, row in self._rows_of(on, who, what):
                if rows.place[row] == place and one.ts_ms < base_ms + longest:
                    rows.acts.setdefault((row, one.kind), {}).setdefault(one.id, (one.ts_ms, one.message.offset))
                    rows.ids.add(one.id)
                    here = True
            took, whole = took or here, whole and here
        if took and (who, what) in self._waiting:
            self._look_again(who, what)
        return took, whole

    def _take_back(self, who: int, what: int, one: Waiting) -> bool:
        bought = [
            (*act, id, rows, acts)
            for on in self.kinds
            for _, rows, row in self._rows_of(on, who, what)
            if (acts := rows.acts.get((row, PURCHASE))) is not None
            for id, act in acts.items()
            if act[0] <= one.ts_ms and act[1] != _TAKEN_BACK
        ]
        if not bought:
            return False
        ts_ms, _, last, *_ = max(bought, key=lambda found: found[:2])
        for *_, id, rows, acts in bought:
            if id == last:
                acts[id] = ts_ms, _TAKEN_BACK
                rows.ids.add(one.id)
        return True

    def _wait(self, who: int, what: int, one: Waiting) -> None:
        waiting = self._waiting.setdefault((who, what), [])
        if all(one.id != other.id for other in waiting):
            self._next_ms = min(self._next_ms, one.ts_ms + self._late_ms + 1)
            waiting.append(one)

    def _look_again(self, who: int, what: int) -> None:
        left = self._waiting.pop((who, what), None)
        if left:
            left = [one for one in left if not self._note(who, what, one)[one.place is not None]]
        if left:
            self._waiting.setdefault((who, what), []).extend(left)

    def _give_up(self, now_ms: int) -> Iterator[Dropped]:
        for key, events in list(self._waiting.items()):
            for one in [e for e in events if e.ts_ms + self._late_ms < now_ms]:
                events.remove(one)
                if one.took:
                    continue
                if one.kind == REFUND:
                    yield Dropped("no-purchase", "no open purchase of the item by the user is as old", one.message)
                else:
                    yield Dropped("no-click", "no open click of the user on the item holds it", one.message)
            if not events:
                del self._waiting[key]

    def _tell(
        self, hour: Hour, rows: HourRows, outcomes: list[OutcomeRule], telling: tuple[int, int, str], files: ToFiles
    ) -> None:
        """``telling``: the one of these outcomes that is next."""
        age_ms, number, policy = telling
        told = np.full((len(rows.who), len(self._names)), np.nan, np.float32)
        offsets = set[int]()
        for one in outcomes:
            value, kept = told[:, self._names.index(one.name)], self._came(hour, rows, one, age_ms)
            came = np.zeros(len(rows.who), np.bool_)
            came[list(kept)] = True
            aged = rows.aged.get(one.name)
            value[:] = came if aged is None else aged.tell(came, rows.place)
            if aged is None or aged.is_over:
                rows.told.add(one.name)
            offsets.update(offset for row, at in kept.items() if value[row] > 0 for offset in at)
        told[rows.base == FORGOTTEN] = np.nan
        if self._untold(hour[0], rows):
            if not number:
                offsets.clear()  # others say them
        else:
            rows.acts, rows.aged = {}, {}
            rows.who = np.unique(rows.who[rows.base != FORGOTTEN])  # a deletion still asks for them
            rows.what, rows.place, rows.base = (np.empty(0, dtype) for dtype in DTYPES[1:])
        if np.isfinite(told).any():
            files.told.append(Told(hour, told, sorted(offsets), number, policy_named(policy).code))

    def _came(self, hour: Hour, rows: HourRows, one: OutcomeRule, age_ms: int) -> dict[int, list[int]]:
        """By row, the offsets of what came of an outcome before the row had this age, and was not taken back."""
        found = {}
        for (row, kind), at in rows.acts.items():
            if ACTIONS[kind] == one.event:
                ends = hour[1] + int(rows.base[row]) + age_ms
                if kept := [offset for ts_ms, offset in at.values() if ts_ms < ends and offset != _TAKEN_BACK]:
                    found[row] = kept
        return found

    # ------------------------------------------------------------------ state

    def snapshot(self) -> tuple[Any, ...]:
        """The whole state as plain values that do not change afterwards."""
        hours = [
            (
                *hour,
                rows.sealed,
                *(
                    np.asarray(a, dtype).tobytes()
                    for a, dtype in zip((rows.who, rows.what, rows.place, rows.base), DTYPES, strict=True)
                ),
                sorted(rows.told),
                [(*key, [(id, *act) for id, act in at.items()]) for key, at in rows.acts.items()],
                sorted(rows.ids),
                None if rows.sealed else rows.rows(self._shape).to_bytes(),
                [
                    (name, one.policy, one.ages_ms[-1], one.told, list(one.stands.items()))
                    for name, one in rows.aged.items()
                ],
            )
            for hour, rows in self._hours.items()
        ]
        waiting = [(*key, list(events)) for key, events in self._waiting.items()]
        return hours, dict(self._sealed_to), waiting, self._next_ms, self._known

    def resume(self, state: Any, carried: Callable[[SampleBatch], SampleBatch]) -> None:
        """The inverse of :meth:`snapshot`. ``carried``: takes rows to the present schema."""
        hours, sealed_to, waiting, self._next_ms, known = state
        self._sealed_to |= {on: ms for on, ms in sealed_to.items() if on in self.kinds}
        # Nothing was noted for other outcomes: of rows that are there, nobody knows them.
        new = {one[0] for one in self._known if list(one) not in [list(old) for old in known]}
        for on, hour, sealed, *packed, told, acts, ids, raw, aged in hours:
            if on not in self.kinds:
                continue  # its outcomes are no longer declared
            arrays = (np.frombuffer(c, dtype) for c, dtype in zip(packed, DTYPES, strict=True))
            who, what, place, base = arrays if sealed else (a.tolist() for a in arrays)
            rows = HourRows(who, what, place, base, sealed, told=set(told) | new, ids=set(ids))
            for row, user in enumerate([] if sealed else who):
                rows.by_user.setdefault(user, []).append(row)
            for name, policy, within_ms, number, stands in aged:
                rows.aged[name] = Aged.of(policy, within_ms)
                rows.aged[name].told, rows.aged[name].stands = number, dict(map(tuple, stands))
            rows.acts = {(row, kind): {id: (ts_ms, offset) for id, ts_ms, offset in at} for row, kind, at in acts}
            if raw is not None:
                rows.chunks = [carried(SampleBatch.from_bytes(raw))]
            rows.due_ms = self._due((on, hour), rows)
            self._hours[on, hour] = rows
            if sealed:
                self._sealed.add((on, hour), self._hours)
            else:
                self._unsealed.add((on, hour))
        for who, what, events in waiting:
            self._waiting[who, what] = [Waiting(k, at, ts, InputMessage(*of), *rest) for k, at, ts, of, *rest in events]


def book_of(schema: Schema, shape: tuple[int, int, int], late_ms: int) -> OutcomeBook | None:
    """None: the schema has no outcome of an event."""
    return OutcomeBook(schema, shape, late_ms) if any(one.event for one in schema.outcome) else None
