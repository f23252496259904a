# core
"""Finds the columns of time, user, item and label; and those of page, position, day, and times of actions.

Each candidate gets points for its values and for its name. The best one has the role if it leads by a clear margin;
otherwise the role is open, and the candidates are named. A column must be able to hold its role: a time has a value in
every row, a label is 0 and 1, an id repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.commands.guess.samplecolumns import Column, held
from millrace.commands.guess.timeformats import TimeColumn

MARGIN = 2.0
"""Points by which the first candidate must lead."""
FILLED = 0.99
"""Share of rows that must have a value of a role: a log may have some bad cells."""
FILLED_NAMED = 0.8
"""The same of a column that is called an id of the user or the item."""
_LOSES = 3.0
"""Points off for an id that fewer than :data:`FILLED` of the rows have, since the other rows are lost."""

USER = (
    "user", "uid", "userid", "visitor", "customer", "member", "viewer", "shopper", "reader", "client", "buyer",
    "reviewer", "listener", "subscriber", "uuid", "cookie", "session",
)  # fmt: skip
ITEM = (
    "item", "itemid", "iid", "article", "video", "news", "product", "movie", "sku", "goods", "photo", "song",
    "track", "book", "ad", "creative", "banner", "document", "doc", "business", "offer", "listing", "content", "post",
    "campaign", "game", "recipe", "story", "poi", "hotel", "asin", "isbn", "ean", "upc",
)  # fmt: skip
_PREFIXED = re.compile(r"^([A-Za-z]+)[-_:]?\d+$")
_ID = {"id", "ids", "key", "code", "no", "number", "index", "idx", "hash"}
_FAINT = {"uuid": 4.0, "cookie": 4.0, "session": 4.0, "campaign": 6.0, "content": 6.0, "post": 6.0, "client": 6.0}
"""Words that also name other things than a user or an item, with their points."""
LABEL = {"label": 9, "target": 9, "click": 10, "clicked": 10, "isclick": 10, "y": 7, "clk": 10, "response": 5} | {
    "conversion": 6, "converted": 6, "purchase": 5, "purchased": 5, "bought": 5, "buy": 5, "sale": 5, "like": 3,
    "liked": 3, "reward": 6, "outcome": 6,
}  # fmt: skip
ACTIONS = {"click": "click", "clicked": "click", "cart": "cart", "basket": "cart"} | {
    "collect": "collect", "favorite": "collect", "favourite": "collect", "save": "collect", "wishlist": "collect",
    "purchase": "purchase", "buy": "purchase", "order": "purchase", "conversion": "purchase", "pay": "purchase",
    "sale": "purchase", "purchased": "purchase", "bought": "purchase", "ordered": "purchase", "paid": "purchase",
    "sold": "purchase", "converted": "purchase", "carted": "cart", "collected": "collect", "saved": "collect",
    "favorited": "collect", "favourited": "collect", "wishlisted": "collect",
}  # fmt: skip
_PLACE = {"position", "pos", "slot", "rank"}
_TIME_GOOD = {"time", "timestamp", "ts", "at", "datetime", "hour", "when", "date", "dt", "day"}
_TIME_BAD = {"born", "birth", "upload", "uploaded", "publish", "published", "register", "registered", "created"} | {
    "create", "updated", "update", "release", "signup", "join", "joined", "last", "next", "previous", "expire", "end",
    *ACTIONS,
}  # fmt: skip


@dataclass
class ColumnRole:
    name: str | None = None
    why: str = ""
    candidates: tuple[str, ...] = ()


@dataclass
class Roles:
    time: ColumnRole = field(default_factory=ColumnRole)
    user: ColumnRole = field(default_factory=ColumnRole)
    item: ColumnRole = field(default_factory=ColumnRole)
    label: ColumnRole = field(default_factory=ColumnRole)
    request: ColumnRole = field(default_factory=ColumnRole)
    position: ColumnRole = field(default_factory=ColumnRole)
    day: ColumnRole = field(default_factory=ColumnRole)
    born: ColumnRole = field(default_factory=ColumnRole)
    account: ColumnRole = field(default_factory=ColumnRole)
    """An id of the user that some rows have; where it is missing, :attr:`user` is there."""
    page: tuple[str, ...] = ()
    """Columns that make the name of the page, where no column has it."""
    clock: tuple[str, ...] = ()
    """Columns with the day and the time of day, of which the time is made."""
    list_separator: str = " "
    labels: ColumnRole = field(default_factory=ColumnRole)
    """Lists: of a row with a list of candidates, 0 or 1 for each."""
    clicked: ColumnRole = field(default_factory=ColumnRole)
    """Lists: of a row with a list of candidates, those that were clicked."""
    pairs: ColumnRole = field(default_factory=ColumnRole)
    """Text ``item-label item-label`` (MIND): item and label in one."""
    actions: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        return any(role.name is not None for role in (self.pairs, self.clicked, self.labels))

    @property
    def used(self) -> set[str]:
        ones = (self.time, self.user, self.item, self.label, self.request, self.position, self.day, self.born)
        names: set[str | None] = {*self.clock}
        names |= {role.name for role in (*ones, self.account, self.clicked, self.labels, self.pairs)} | set(
            self.actions.values()
        )
        return {name for name in names if name is not None}

    @property
    def open(self) -> dict[str, ColumnRole]:
        need = {"time": self.time, "user": self.user}
        if self.pairs.name is None:
            need |= {"item": self.item}
            if not self.listed:
                need |= {"label": self.label}
        return {name: role for name, role in need.items() if role.name is None}


def free_name(name: str, taken: Sequence[str]) -> str:
    """A name for a made column, that no other has."""
    return next(one for n in range(len(taken) + 1) if (one := f"{name}_{n}" if n else name) not in taken)


def choose(scores: Mapping[str, float], whys: Mapping[str, str], least: float = 1.0) -> ColumnRole:
    ranked = sorted((name for name in scores if scores[name] >= least), key=lambda name: -scores[name])
    if not ranked:
        return ColumnRole()
    if len(ranked) > 1 and scores[ranked[0]] - scores[ranked[1]] < MARGIN:
        near = [name for name in ranked if scores[ranked[0]] - scores[name] < MARGIN]
        return ColumnRole(None, "", tuple(near[:8]))
    return ColumnRole(ranked[0], whys.get(ranked[0], ""), tuple(ranked[:8]))


# -- time ------------------------------------------------------------------------------------------------------------


def time_role(columns: Mapping[str, Column], times: Mapping[str, TimeColumn]) -> ColumnRole:
    """The time of the exposure: in every row, fine, mostly ascending, and not called the time of something else."""
    scores, whys = {}, {}
    for name, found in times.items():
        if found.there.mean() < FILLED or found.never is not None:
            continue
        tokens, ms = set(columns[name].tokens), found.ms[found.there]
        span = int(ms.max() - ms.min())
        rising = float((np.diff(ms) >= 0).mean()) if len(ms) > 1 else 1.0
        points = 1.0 + 2.0 * bool(tokens & _TIME_GOOD) - 4.0 * bool(tokens & _TIME_BAD)
        points += 3.0 * (found.grain_ms < DAY_MS) + 2.0 * (rising >= 0.95) + 0.5 * (found.grain_ms <= 60_000)
        points -= 3.0 * (span == 0)
        scores[name] = points
        whys[name] = describe(found)
    role = choose(scores, whys, 3.0)
    if role.name is None and role.candidates:  # one that is the other, rounded, is no rival
        finest = min(role.candidates, key=lambda name: times[name].grain_ms)
        if all(_rounds(times[finest], times[name]) for name in role.candidates):
            return ColumnRole(finest, whys[finest], role.candidates)
    return role


def _rounds(fine: TimeColumn, rough: TimeColumn) -> bool:
    """Whether both have the same times, up to the rougher one's grain and a zone."""
    apart = (rough.ms - fine.ms) / 3_600_000
    return bool(np.ptp(apart) <= max(rough.grain_ms, fine.grain_ms) / 3_600_000 + 1e-9)


def describe(times: TimeColumn) -> str:
    if times.format:
        return f"times written as {times.format}"
    if times.unit:
        return {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[
            times.unit
        ] + " of 1970"
    return "times"


def day_role(
    columns: Mapping[str, Column], times: Mapping[str, TimeColumn], time: str
) -> tuple[ColumnRole, int | None]:
    """(a column that names the local day, the offset of local time in hours that makes it agree with the time)."""
    ms = times[time].ms
    for name, found in times.items():
        if name == time or found.grain_ms != DAY_MS or set(columns[name].tokens) & _TIME_BAD:
            continue
        there = found.there
        if there.mean() < FILLED:
            continue
        days, own = found.ms[there] // DAY_MS, ms[there]
        agree = {h: float(((own + h * 3_600_000) // DAY_MS == days).mean()) for h in range(-12, 15)}
        best = max(agree, key=lambda h: (agree[h], h == 0))  # a few rows of midnight may be on the other side
        if agree[best] >= 0.98:
            alike = [h for h in agree if agree[h] == agree[best]]
            best = 0 if 0 in alike else alike[len(alike) // 2]
            where = f"{best:+03d}:00" if len(alike) == 1 else f"between {alike[0]:+03d}:00 and {alike[-1]:+03d}:00"
            return ColumnRole(name, f"the local day, {where} from UTC ({agree[best]:.2%} of rows agree)"), best
    return ColumnRole(), None


# -- ids and label ---------------------------------------------------------------------------------------------------


def _id_points(column: Column, words: Iterable[str]) -> float:
    """Points for a name made of the words: ``user_id``, ``user``, ``uid``; fewer beside other words."""
    tokens = [t for t in column.tokens if t not in ("anonymous", "anon", "hashed", "masked", "encrypted")]
    joined = "".join(tokens)
    for word in words:
        if joined in (word, f"{word}id", f"{word}s", f"{word}ids", f"{word}key", f"{word}code", f"{word}idx"):
            return _FAINT.get(word, 8.0)
        rest = set(tokens) - _ID - {word, f"{word}s"}
        if word in tokens and len(rest) < len(tokens) - 1 and set(tokens) & _ID:
            return 5.0 - len(rest)
    return 3.0 if tokens and tokens[-1] in words and tokens[-1] not in _FAINT else 0.0  # displayed_article


def _prefix_points(column: Column, words: tuple[str, ...]) -> float:
    """Points for ids that begin with a word or its first letter: ``U81994`` among users, ``user-7``."""
    if not column.is_text:
        return 0.0
    texts = [text for text in column.values.slice(0, 1000).to_pylist() if text]
    begins = {found[1].lower() if (found := _PREFIXED.match(text)) else "" for text in texts}
    return 5.0 if len(begins) == 1 and begins & {*words, words[0][0]} else 0.0


def could_be_id(column: Column, least: float = FILLED) -> bool:
    """A column with values in this share of the rows, several of them, some repeated; no number with a fraction, no
    time, no list."""
    if column.is_list or column.is_temporal or column.filled < least or column.distinct < 3:
        return False
    if column.is_numeric and not column.is_whole:
        return False
    if column.is_text and pc.mean(pc.utf8_length(column.data)).as_py() > 64:
        return False
    return bool(column.distinct < len(column.codes))


def id_role(
    columns: Mapping[str, Column],
    words: tuple[str, ...],
    taken: set[str],
    unlikely: set[str],
    unnamed: bool,
    others: tuple[str, ...] = (),
) -> ColumnRole:
    """The id of the user or the item: by its name, or (``unnamed``) the only column that could be one. ``others``:
    words of the other id: a column called so is none for this one. ``unlikely`` columns are one by their name only."""
    scores, whys = {}, {}
    called = {name: c for name, c in columns.items() if name not in taken and could_be_id(c, FILLED_NAMED)}
    fit = {name: c for name, c in called.items() if could_be_id(c) and not c.is_binary}
    for name, column in called.items():
        named = _id_points(column, words)
        how = "by its name"
        if not named and unnamed and name in fit and column.distinct >= 10:
            named, how = _prefix_points(column, words), f"by its values, such as {column.value(0)!r:.20}"
        points = named + min(np.log10(column.distinct), 3.0) / 3
        if points >= 3.0 and (named > 3.0 or (named and name in fit)):
            scores[name] = points - _LOSES * (column.filled < FILLED)
            whys[name] = f"{how}; {column.distinct:,} of them in the sample"
    role = choose(scores, whys)
    if role.name is None and not role.candidates:
        rest = [n for n, c in fit.items() if not _id_points(c, others) and 10 <= c.distinct <= 0.9 * len(c.codes)]
        rest = [n for n in rest if n not in unlikely and not fit[n].is_wordy]
        if unnamed and len(rest) == 1:
            return ColumnRole(
                rest[0], f"the only column that could be one; {fit[rest[0]].distinct:,} of them in the sample"
            )
        role.candidates = tuple(sorted(rest, key=lambda n: -fit[n].distinct)[:8])
    return role


def ids_of_pages(
    user: ColumnRole, item: ColumnRole, columns: Mapping[str, Column], time: NDArray[np.int64]
) -> tuple[ColumnRole, ColumnRole]:
    """(user, item), of several candidates for one of them: rows of one page have one time and user, and items that
    differ. What has one time only is the page; what follows from another candidate for the item is its attribute."""
    names = {*user.candidates, *item.candidates} | ({user.name} if user.name else set())
    together = {n: same_page(columns[n], time).mean() for n in names}
    most = max(together.values(), default=0.0)
    if most * len(time) < 50 or most < 0.2:
        return user, item
    if item.name is None:
        apart = [n for n in item.candidates if together[n] <= 0.05]
        finest = [n for n in apart if not any(_follows(columns[n], columns[o]) and not _follows(columns[o], columns[n])
                                              for o in apart)]  # fmt: skip
        item = _narrowed(item, finest, "the candidate that differs within a page")
    if user.name is None:
        along = [n for n in user.candidates if together[n] >= 0.98 * most and n != item.name]
        lasting = [n for n in along if (held(Column(n, pa.chunked_array([time])), columns[n].codes)).within > 0.01]
        user = _narrowed(user, lasting, "the candidate that rows of one time share")
    return user, item


def same_page(user: Column, time: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n - 1,) of rows by user and time: whether a row has those of the row before."""
    order = np.lexsort((time, user.codes))
    same: NDArray[np.bool_] = (np.diff(user.codes[order]) == 0) & (np.diff(time[order]) == 0)
    return same


def _follows(one: Column, other: Column) -> bool:
    return one is not other and held(one, other.codes).is_attribute


def _narrowed(role: ColumnRole, fit: list[str], why: str) -> ColumnRole:
    if not fit:
        return role
    return ColumnRole(fit[0], why) if len(fit) == 1 else ColumnRole(None, "", tuple(fit))


def label_role(columns: Mapping[str, Column], attributes: set[str], taken: set[str]) -> ColumnRole:
    """A column of 0 and 1 that is no attribute of user or item, by its name; or the only one there is."""
    fit = {
        n: c for n, c in columns.items() if c.is_binary and n not in attributes | taken and not set(c.tokens) & _PLACE
    }
    scores, whys = {}, {}
    for name, column in fit.items():
        points = max((LABEL.get(token, 0) for token in (*column.tokens, "".join(column.tokens))), default=0)
        scores[name] = points - 0.5 * max(len(set(column.tokens) - {"is", "label"}) - 1, 0)
        whys[name] = f"0 and 1; {np.nanmean(column.flags):.2%} are 1"
    role = choose({n: s for n, s in scores.items() if s > 0}, whys, 2.5)
    if role.name is None and not role.candidates:
        if len(fit) == 1:
            only = next(iter(fit))
            return ColumnRole(only, f"the only column of 0 and 1 in which it changes from row to row; {whys[only]}")
        ones = {n: c.flags == 1 for n, c in fit.items()}
        whole = [n for n in fit if ones[n].mean() < 0.5 and not any((one & ~ones[n]).any() for one in ones.values())]
        if len(whole) == 1:
            return ColumnRole(whole[0], f"others of 0 and 1 come only with it; {whys[whole[0]]}", tuple(fit))
        role.candidates = tuple(fit)
    return role


def account_role(columns: Mapping[str, Column], user: ColumnRole, taken: set[str]) -> tuple[ColumnRole, ColumnRole]:
    """(another id of the user, which some rows lack; the one of the rows that lack it).

    Each user has one and nearly each has another, and now and then a user's rows lack it, as before a login; an
    attribute lacks for all of a user's rows. Or one of the two is called a user's id, and just those rows have one that
    lack the other.
    """
    some = {n: c for n, c in columns.items()
            if n not in taken and c.filled < FILLED and could_be_id(c, 0.05) and not c.is_wordy}  # fmt: skip
    why = "{:.1%} of rows have the first; the others have the second"
    if user.name is not None and columns[user.name].filled >= FILLED:
        whole = columns[user.name]
        for name, column in some.items():
            users = np.unique(whole.codes[column.there])
            lacking = 1 - column.there[np.isin(whole.codes, users)].mean()
            if column.distinct < max(10, len(users) / 2) or lacking < 0.05:
                continue
            if held(column, whole.codes).is_attribute:
                return ColumnRole(name, why.format(column.filled)), user
    for name in (n for n, c in some.items() if _id_points(c, USER) > 0):
        for other, column in some.items():
            if other != name and (columns[name].there ^ column.there).mean() >= FILLED:
                return ColumnRole(name, why.format(columns[name].filled)), ColumnRole(other)
    return ColumnRole(), user
