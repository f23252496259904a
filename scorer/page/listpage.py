# core
"""A page from the shop's lists in Redis, while the scorer's own index or model is not ready.

::

    hot      50%   hot items of the whole shop                   list:hot
    liked    40%   hot items of the groups this user clicks in   list:hot:{column}:{value}
    new      10%   items born last                               list:new

Nothing is scored, so there are no features to log and the learner learns nothing from the page. Its answer has no
request id, because events with one would find nothing to join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from millrace.basics.errors import StoreError
from millrace.basics.hashing import U64
from millrace.contracts.events import Id
from millrace.contracts.online_layout import HOT, NEW, hot_in, values_listed
from millrace.windows.affinity import preferences, taste_columns
from millrace.windows.features import FeatureBuilder
from scorer.page import page_wire
from scorer.page.page_wire import Filters, RequestError
from scorer.users.userrecord import KnownUser, Meters, UserStore, look_up

Passing = Callable[[Filters, KnownUser, int, Sequence[Id]], list[Id]]
LISTS = "lists"
LIKED, NEWEST = 0.4, 0.1
GROUPS = 12
"""Limit of the groups of a user."""


def not_ready(reason: str) -> RequestError:
    """503 with the reason, ``problem; remedy``."""
    problem, _, remedy = reason.partition("; ")
    return RequestError(problem, remedy, 503)


class ListPages:
    def __init__(self, store: UserStore, builder: FeatureBuilder, meters: Meters, passing: Passing) -> None:
        self._store, self._builder, self._meters, self._passing = store, builder, meters, passing

    async def page(
        self,
        user_id: Id,
        size: int,
        ts_ms: int,
        reason: str,
        filters: Filters | None = None,
        session: Id | None = None,
    ) -> page_wire.RecommendAnswer:
        """A page of the shop's lists, which is not logged.

        Args:
            reason: why no page can be ranked.
            filters: lists have no attributes, so only ids can be excluded.

        Raises RequestError: 503 with the ``reason``, when there are no lists, no store, or nothing left of the lists;
        also for filters by attributes.
        """
        if filters is not None and (filters.only or filters.without or filters.caps):
            raise not_ready(f"no filters by attributes yet ({filters}), since there is {reason}")
        listed = await self._store.list_keys()
        if not listed:
            raise not_ready(reason)
        user, notes = await look_up(self._store, self._builder, self._meters, user_id, session)
        liked = self._liked(user, listed, ts_ms)
        found = await self._store.lists([HOT, *liked, NEW])
        if found and filters is not None:
            found = [[str(i) for i in self._passing(filters, user, ts_ms, ids)] for ids in found]
        items = mixed(size, found[0], found[1:-1], found[-1]) if found else []
        if not items:
            raise not_ready(reason)
        self._meters.list_page()
        made = f"made of the shop's lists, since there is {reason.split(';')[0]}: report no events of this page"
        placed = [page_wire.PlacedItem(item, position, None) for position, item in enumerate(items)]
        return page_wire.RecommendAnswer(None, -1, LISTS, ts_ms, placed, [made, *notes])

    def _liked(self, user: KnownUser, listed: Sequence[str], ts_ms: int) -> list[str]:
        try:
            return liked_lists(self._builder, listed, user.columns, user.tiles, ts_ms)
        except StoreError:  # the page goes without this user's affinities
            self._meters.error("tiles")
            return []


def liked_lists(
    builder: FeatureBuilder,
    listed: Sequence[str],
    user: Mapping[str, U64],
    record: Mapping[bytes, bytes],
    ts_ms: int,
) -> list[str]:
    """Names of the lists of hot items in the user's groups, highest affinity first.

    ``listed``: keys of the existing lists. ``user``: the user's columns, of (1,) hashes. ``record``: the user's hash in
    the online store. ``ts_ms``: event time, after the newest event. Raises StoreError for a damaged tile list in
    ``record``.
    """
    liked: list[tuple[float, str]] = []
    for column in taste_columns(builder):
        values = values_listed(listed, column)
        if values:
            found = preferences(builder, column, values, user, record, ts_ms)
            liked += [(affinity, hot_in(column, str(value))) for value, affinity in found]
    liked.sort(key=lambda group: -group[0])
    return [name for _, name in liked[:GROUPS]]


def mixed(size: int, hot: Sequence[str], liked: Sequence[Sequence[str]], new: Sequence[str]) -> list[str]:
    """At most ``size`` distinct item ids: hot ones first, then liked ones, then new ones. Where these are too few, the
    rest of the lists fills the page in the same order.

    Args:
        hot: hot items of the shop, hottest first.
        liked: hot items of each group that the user likes, best group first.
        new: items, newest first.

    >>> mixed(10, list("abcdefgh"), [["x", "a"], ["y", "z"]], ["n", "m"])
    ['a', 'b', 'c', 'd', 'e', 'x', 'y', 'z', 'n', 'f']
    >>> mixed(5, ["a"], [], ["n", "a", "m"])
    ['a', 'n', 'm']
    """
    taste = list(dict.fromkeys(_in_turn(liked)))
    newest = new[: round(NEWEST * size)]
    affinities = taste[: round(LIKED * size)]
    hottest = hot[: size - len(newest) - len(affinities)]
    chosen = dict.fromkeys(chain(hottest, affinities, newest))
    for item in chain(hot, taste, new):
        if len(chosen) >= size:
            break
        chosen[item] = None
    return list(chosen)[:size]


def _in_turn(groups: Iterable[Sequence[str]]) -> list[str]:
    """The first of each group, then the second of each, and so on."""
    rest = [list(group) for group in groups]
    longest = max(map(len, rest), default=0)
    return [group[i] for i in range(longest) for group in rest if i < len(group)]
