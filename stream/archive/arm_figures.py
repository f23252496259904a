# core
"""Outcomes a user by arm, live: what ``millrace judge`` reads out of the archive, kept up to date in a few numbers.

::

    settled exposures, ─► users whose horizon runs: the arm of ─► over: users, sums and squares of the arm;
    their purchases       the first page, clicks, purchases       the user's hash, so that he counts once

The rules are those of the command: the arm is that of the first page, a user counts for the same span from it on, and
once. Bands are those of :mod:`millrace.evidence.sequences`, so they hold at every look. Purchases count however late
they come, and all of a user's: whether an order's item was clicked before is not looked up. A refund takes back the
last purchase of the item. Each event counts once: ids are kept until the user's horizon is over.

Before the first horizon is over, and for what came since, the figures tell how many of the exposures have a click
*early*: of users whose horizon runs, and of exposures that wait for their label, whose clicks may still come. A user
with an exposure beyond the training limit within the horizon counts for nothing (:mod:`stream.archive.archive_pages`).

Memory is bounded. Where more than :data:`MOST_USERS` would be known, those whose hash ends on the wrong bit are
forgotten and no longer counted: half of all users, whatever their arm. What they have told already stays told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from millrace.basics.hashing import value_hash
from millrace.contracts.events import CLICK, CONTROL, LOGGED, MODEL, Order, Purchase, Refund, name_hash
from millrace.evidence.sequences import NOTHING, Band, Estimate, band, difference, error_each, mean_of
from stream.archive.archive_columns import SettledRow

MOST_USERS = 1 << 18
MOST_ARMS = 100
"""Arms that are counted: whoever logs a page by ``/score`` names its arm."""
OUTCOMES = "click", "purchase", "value"
"""Clicks, purchases, what these are worth."""


class ArmFigure(NamedTuple):
    """What is known of an outcome in an arm."""

    name: str
    outcome: str
    estimate: Estimate  # of outcomes a user
    band: Band
    more: float  # than the first arm; NaN of the first itself
    more_band: Band
    since_ms: int  # event time from which on 0 is outside of `more_band`; 0: it is inside
    early_rows: int = 0  # exposures whose label, or whose user's horizon, is not over
    early_clicks: int = 0  # of them so many have a click by now
    left_out: int = 0  # users who were beyond the training limit


class _Bought(NamedTuple):
    """A purchase, or a refund of one."""

    ts_ms: int
    refund: bool
    user: int
    item: int
    worth: float
    id: int


class _User:
    __slots__ = ("arm", "bought", "clicks", "over", "rows", "until_ms")

    def __init__(
        self,
        arm: str,
        until_ms: int,
        clicks: int = 0,
        bought: Iterable[tuple[Any, ...]] = (),
        rows: int = 0,
        over: bool = False,
    ) -> None:
        self.arm, self.until_ms, self.clicks, self.rows, self.over = arm, until_ms, clicks, rows, over
        self.bought: dict[int, tuple[int, int, float]] = {id: (at, of, worth) for id, at, of, worth in bought}
        """By the event's hash: time, item, worth; item 0: a refund, or taken back."""

    def buy(self, one: _Bought) -> None:
        if one.id in self.bought:
            return
        self.bought[one.id] = one.ts_ms, 0 if one.refund else one.item, one.worth
        own = [(ts_ms, id) for id, (ts_ms, item, _) in self.bought.items() if item == one.item and ts_ms <= one.ts_ms]
        if one.refund and own:
            self.bought[max(own)[1]] = 0, 0, 0.0

    @property
    def came(self) -> tuple[float, float, float]:
        """By outcome."""
        worths = [worth for _, item, worth in self.bought.values() if item]
        return self.clicks, len(worths), sum(worths)


class ArmFigures:
    """Of all partitions; a user is in one of them.

    Args:
        horizon_ms: for how long a user counts.
        declared: the arms as the settings have them. Where a state is of others, all users begin anew.
        worth: of a purchase, by the item's packed attributes.
    """

    def __init__(
        self,
        horizon_ms: int,
        declared: str = "",
        worth: Callable[[bytes | None], float] | None = None,
        most_users: int = MOST_USERS,
    ) -> None:
        self._horizon_ms, self._declared, self._worth, self._most = horizon_ms, declared, worth, most_users
        self._users: dict[int, _User | None] = {}  # by hash; None: the horizon is over
        self._bought: dict[int, dict[int, _Bought]] = {}  # by partition and hash: later than the settled exposures
        self._due: dict[int, deque[int]] = {}  # by partition, in the order in which they came
        self._sums: dict[str, list[tuple[int, float, float]]] = {}  # by arm, of each outcome: as `mean_of` wants
        self._since: dict[str, int] = {}  # by outcome and arm
        self._left_out: dict[str, int] = {}  # by arm: users beyond the training limit
        self._arms = set[str]()
        self._halvings = 0

    def buy(self, partition: int, event: Purchase | Order, item_raw: bytes | None) -> None:
        """Takes a purchase, an order or a refund. ``item_raw``: the item's packed attributes."""
        worth = self._worth(item_raw) if self._worth else 0.0
        refund, user, item = isinstance(event, Refund), value_hash(event.user_id), value_hash(event.item_id)
        one = _Bought(event.ts_ms, refund, user, item, worth, name_hash(event))
        self._bought.setdefault(partition, {}).setdefault(one.id, one)

    def take(self, partition: int, rows: Iterable[SettledRow], settled_ms: int) -> None:
        """Counts settled exposures of a partition, all whose time is at most ``settled_ms`` and some of later times."""
        due = self._due.setdefault(partition, deque())
        for row in sorted(rows, key=lambda row: row.ts_ms):
            if row.arm is None or not self._counts(row.arm):
                continue
            name = value_hash(row.user)
            if name & ((1 << self._halvings) - 1):
                continue
            if name not in self._users:
                self._users[name] = _User(row.arm, row.ts_ms + self._horizon_ms)
                due.append(name)
            user = self._users[name]
            if user is not None and row.ts_ms < user.until_ms:
                click_ms = row.times[CLICK - 1]
                user.clicks += click_ms is not None and click_ms < user.until_ms
                user.rows += 1
                user.over |= row.over_limit
        bought = self._bought.get(partition, {})
        for one in sorted(one for one in bought.values() if one.ts_ms <= settled_ms):
            del bought[one.id]
            user = self._users.get(one.user)
            if user is not None and user.until_ms - self._horizon_ms <= one.ts_ms < user.until_ms:
                user.buy(one)
        while due:
            user = self._users.get(due[0])
            if user is not None and user.until_ms > settled_ms:
                break
            if user is not None and user.over:
                self._left_out[user.arm] = self._left_out.get(user.arm, 0) + 1
            elif user is not None:
                sums = self._sums.get(user.arm, [(0, 0, 0)] * len(OUTCOMES))
                self._sums[user.arm] = [
                    (n + 1, total + c, squares + c * c) for (n, total, squares), c in zip(sums, user.came, strict=True)
                ]
            if user is not None:
                self._users[due[0]] = None
            due.popleft()
        while len(self._users) > self._most:
            self._halvings += 1
            odd = (1 << self._halvings) - 1
            self._users = {name: user for name, user in self._users.items() if not name & odd}

    def look(self, now_ms: int, waiting: Iterable[Mapping[str, Sequence[int]]] = ()) -> list[ArmFigure]:
        """The figures at the event time ``now_ms``, outcome by outcome: of random pages first, else of the model's; the
        others follow. An outcome that never came is left out, clicks never. ``waiting``: exposures by arm that are not
        settled, and how many have a click."""
        early = Counter[tuple[str, bool]]()  # exposures, and clicks, by arm
        for user in self._users.values():
            if user is not None and not user.over:
                early[user.arm, False] += user.rows
                early[user.arm, True] += user.clicks
        for arm, (rows, clicks) in (one for of in waiting for one in of.items() if self._counts(one[0])):
            early[arm, False] += rows
            early[arm, True] += clicks
        names = sorted(self._arms, key=lambda name: (name != CONTROL, name != MODEL, name))
        all_sums = {name: self._sums.get(name, [(0, 0, 0)] * len(OUTCOMES)) for name in names}
        figures: list[ArmFigure] = []
        for k, outcome in enumerate(OUTCOMES):
            if k and not any(all_sums[name][k][1] for name in names):
                continue
            found = {name: mean_of(*all_sums[name][k]) for name in names}
            for name, one in found.items():
                more, gap, key = float("nan"), NOTHING, f"{outcome} {name}"
                if name != names[0]:
                    more = one.value - found[names[0]].value
                    gap = difference(one, found[names[0]], error_each(len(names)))
                self._since[key] = (self._since.get(key) or now_ms) if gap.decided else 0
                beside = early[name, False], early[name, True], self._left_out.get(name, 0)
                figures.append(ArmFigure(name, outcome, one, band(one), more, gap, self._since[key], *beside))
        return figures

    def _counts(self, arm: str) -> bool:
        """Whether it is an arm: none without a name, nor one more than :data:`MOST_ARMS`."""
        if arm != LOGGED and len(self._arms) < MOST_ARMS:
            self._arms.add(arm)
        return arm in self._arms

    def snapshot(self) -> Any:
        """The whole state, as plain values."""
        over = np.array([name for name, user in self._users.items() if user is None], np.uint64)
        open_ones = [
            (name, u.arm, u.until_ms, u.clicks, [(id, *rest) for id, rest in u.bought.items()], u.rows, u.over)
            for name, u in self._users.items()
            if u is not None
        ]
        bought = {partition: sorted(ones.values()) for partition, ones in self._bought.items()}
        due = {partition: list(names) for partition, names in self._due.items()}
        kept = self._horizon_ms, self._declared
        sums = dict(self._sums), dict(self._since)
        return kept, over.tobytes(), open_ones, due, *sums, self._halvings, bought, dict(self._left_out)

    def resume(self, state: Any) -> None:
        """Restores what :meth:`snapshot` gave; nothing where the arms or the horizon were others."""
        kept, over, open_ones, due, sums, since, halvings, bought, left_out = state
        if tuple(kept) != (self._horizon_ms, self._declared):
            return
        self._users = dict.fromkeys(np.frombuffer(over, np.uint64).tolist())
        self._users |= {name: _User(*rest) for name, *rest in open_ones}
        self._bought = {of: {one.id: one for one in map(_Bought._make, ones)} for of, ones in bought.items()}
        self._due = {partition: deque(names) for partition, names in due.items()}
        self._sums = {name: [tuple(of) for of in each] for name, each in sums.items()}
        self._since, self._halvings = dict(since), halvings
        self._left_out = dict(left_out)
        self._arms = {*self._sums, *self._left_out, *(user.arm for user in self._users.values() if user is not None)}
