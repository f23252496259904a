"""Live figures of arms: those of ``millrace judge``, in bounded memory, through a restart."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from millrace.basics.errors import SettingError
from millrace.commands.judge.arms import Exposures, estimate, users_of
from millrace.contracts.events import Order, Purchase, Refund
from millrace.contracts.schema import parse_schema
from millrace.evidence.sequences import band, difference, error_each, mean_of, ratio
from stream.archive.archive_columns import ArchiveColumns, SettledRow
from stream.archive.arm_figures import MOST_ARMS, OUTCOMES, ArmFigure, ArmFigures

HOUR = 3_600_000
T0 = 1_772_000_000_000
HORIZON = 4 * HOUR


def row(ts_ms: int, user: str, arm: str | None, came_ms: int | None = None) -> SettledRow:
    """An exposure with a click, and with every second click a purchase a minute later."""
    bought_ms = None if came_ms is None or came_ms % 2 else came_ms + 60_000
    times = came_ms, None, None, bought_ms
    return SettledRow(ts_ms, "r", 0, 0, user, "i", None, None, times, 0.1, 3, arm, "hot", None)


def worth(raw: bytes | None) -> float:
    return 1.0 + int(raw or b"0") % 7


def of(outcome: str, figures: list[ArmFigure]) -> list[ArmFigure]:
    return [one for one in figures if one.outcome == outcome]


def crowd(users: int, seed: int = 0, control: float = 0.2, model: float = 0.35) -> list[SettledRow]:
    """Pages of users, in time order, over two days. Some come back after their horizon, some in another arm."""
    rng = random.Random(seed)
    rows = []
    for n in range(users):
        at, arm = T0 + rng.randrange(48 * HOUR), rng.choice(("control", "model", "model", "hits"))
        for page in range(1 + rng.randrange(4)):
            seen = at + page * rng.randrange(3 * HOUR)
            clicks = rng.random() < (control if arm == "control" else model)
            rows.append(row(seen, f"u{n}", arm, seen + rng.randrange(HOUR) if clicks else None))
        if rng.random() < 0.2:
            rows.append(row(at + 5 * HOUR, f"u{n}", "model", at + 5 * HOUR))
    rows += [row(T0, "scored", "logged", T0), row(T0, "lost", None, T0)]
    return sorted(rows, key=lambda one: one.ts_ms)


def home(one: SettledRow) -> int:
    """The partition of a user."""
    return sum(one.user.encode()) % 2


def buy_all(figures: ArmFigures, rows: list[SettledRow]) -> None:
    """Each row's purchase comes twice, of its page and as an order, under one name: it is one."""
    for one in rows:
        if (ts_ms := one.times[3]) is not None:
            item, user = str(one.ts_ms), one.user
            of_page = Purchase(event_id=item, request_id="r", ts_ms=ts_ms, user_id=user, position=0, item_id=item)
            order = Order(event_id=item, ts_ms=ts_ms, user_id=user, item_id=item)
            for event in (of_page, order):
                figures.buy(home(one), event, item.encode())


def fed(figures: ArmFigures, rows: list[SettledRow], pieces: int = 40) -> list[Any]:
    """The figures after rows that come piece by piece, in two partitions, as the archive hands them over."""
    for piece in np.array_split(np.arange(len(rows)), min(pieces, len(rows))):
        part = [rows[n] for n in piece.tolist()]
        buy_all(figures, part)
        for number in (0, 1):
            mine = [one for one in part if home(one) == number]
            figures.take(number, reversed(mine), part[-1].ts_ms)
        figures.look(part[-1].ts_ms)
    for number in (0, 1):
        figures.take(number, [], rows[-1].ts_ms + HORIZON)
    return figures.look(rows[-1].ts_ms + HORIZON)


def judged(rows: list[SettledRow], outcome: str = "click") -> dict[str, Any]:
    """What the command says of the same rows."""
    at = 0 if outcome == "click" else 3
    rows = [one for one in rows if one.arm is not None]
    end = row(rows[-1].ts_ms + HORIZON, "the end", "none")  # everybody's horizon is over
    rows = [*rows, end]
    users = {name: n for n, name in enumerate(dict.fromkeys(one.user for one in rows))}
    found = users_of(
        Exposures(
            np.array([one.ts_ms for one in rows]),
            np.array([users[one.user] for one in rows]),
            np.arange(len(rows)),
            np.array([one.arm for one in rows]),
            np.array([-1 if (came_ms := one.times[at]) is None else came_ms for one in rows]),
            np.array([worth(str(one.ts_ms).encode()) if outcome == "value" else 1.0 for one in rows]),
        ),
        HORIZON,
    )
    return {name: estimate(found, len(found.until_ms), name, False) for name in ("control", "hits", "model")}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_they_are_what_the_command_says(outcome: str) -> None:
    rows = crowd(3000)
    found, exact = of(outcome, fed(ArmFigures(HORIZON, worth=worth), rows)), judged(rows, outcome)
    assert [one.name for one in found] == ["control", "model", "hits"]
    for one in found:
        assert one.estimate.n == exact[one.name].n > 500
        assert one.estimate == pytest.approx(exact[one.name])
        assert one.band == pytest.approx(band(exact[one.name]))
        if one.name != "control":
            assert one.more_band == pytest.approx(difference(exact[one.name], exact["control"], error_each(3)))
        if one.name != "control" and outcome == "click":
            assert one.more_band.low > 0
            assert T0 < one.since_ms < rows[-1].ts_ms
    assert found[0].since_ms == 0


def earned(*events: tuple[type[Order], float, str], one_by_one: bool = False) -> tuple[float, float]:
    """(purchases, value) after events (kind, hours, name), with a restart after each; they are counted at the end, or
    ``one_by_one`` as they come."""
    figures = ArmFigures(HORIZON, worth=worth)
    figures.take(0, [row(T0, "u", "model")], T0)
    for kind, hour, name in events:
        figures.buy(0, kind(name, round(T0 + hour * HOUR), "u", "i"), b"2")
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(figures.snapshot()), strict=False)
        figures = ArmFigures(HORIZON, worth=worth)
        figures.resume(state)
        if one_by_one:
            figures.take(0, [], round(T0 + hour * HOUR))
    figures.take(0, [], T0 + HORIZON)
    found = {one.outcome: one.estimate.value for one in figures.look(T0 + HORIZON)}
    return found.get("purchase", 0), found.get("value", 0)


def test_purchases_count_within_the_horizon_however_late_and_a_refund_takes_the_last_one_back() -> None:
    assert earned((Order, 3.9, "a"), (Order, 1, "b")) == (2, 6)
    assert earned((Order, -1, "a"), (Order, 4, "b"), (Order, 9, "c")) == (0, 0)
    assert earned((Refund, 3, "a"), (Order, 2, "b"), (Order, 1, "c")) == (1, 3)
    assert earned((Order, 2, "a"), (Refund, 1, "b"), (Order, 3, "c")) == (2, 6), "a refund before it is of another one"


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("events", "purchases"),
    [
        ([(Order, 1, "o"), (Order, 2, "o"), (Order, 3, "p")], 2),
        ([(Order, 1, "o"), (Order, 1, "p"), (Refund, 2, "r"), (Refund, 2, "r"), (Refund, 3, "r")], 1),
        ([(Order, 1, "o"), (Order, 1, "p"), (Refund, 2, "r"), (Refund, 2, "s")], 0),
        ([(Order, 1, "o"), (Refund, 2, "o")], 1),
        ([(Order, 1, "o"), (Refund, 2, "r"), (Order, 1, "o"), (Order, 3, "o")], 0),
    ],
    ids=["order twice", "refund twice", "two in a millisecond", "two types", "order again after its refund"],
)
def test_each_event_counts_once_by_its_name(
    events: list[tuple[type[Order], float, str]], purchases: int, one_by_one: bool
) -> None:
    assert earned(*events, one_by_one=one_by_one) == (purchases, 3 * purchases)


def test_equal_arms_are_not_decided_and_few_users_tell_nothing() -> None:
    found = of("click", fed(ArmFigures(HORIZON), crowd(3000, 1, control=0.35)))
    assert [one.since_ms for one in found] == [0, 0, 0]
    few = fed(ArmFigures(HORIZON), crowd(150, 2))
    assert [one.outcome for one in few] == ["click"] * 3 + ["purchase"] * 3, "nothing has a value"
    assert [np.isinf(one.band.low) for one in few] == [True] * 6
    assert [one.outcome for one in fed(ArmFigures(HORIZON), [row(T0, "u1", "model")])] == ["click"]


def test_a_restart_changes_nothing_and_other_arms_begin_anew() -> None:
    rows = crowd(1500, 3)
    whole = fed(ArmFigures(HORIZON, "a"), rows)
    first = ArmFigures(HORIZON, "a")
    half = len(rows) // 2
    buy_all(first, rows[:half])
    for number in (0, 1):
        first.take(number, [one for one in rows[:half] if home(one) == number], rows[half].ts_ms - 1)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(first.snapshot()), strict=False)
    again, other = ArmFigures(HORIZON, "a"), ArmFigures(HORIZON, "b")
    again.resume(state)
    other.resume(state)
    assert [one.estimate for one in fed(again, rows[half:])] == [one.estimate for one in whole]
    assert sum(one.estimate.n for one in other.look(T0)) == 0


def test_a_user_beyond_the_limit_within_the_horizon_counts_in_no_arm_through_a_restart() -> None:
    figures = ArmFigures(HORIZON)
    over = row(T0 + 1, "bot", "model", T0 + 2)._replace(over_limit=True)
    late = row(T0 + HORIZON, "kiosk", "model", T0 + HORIZON)._replace(over_limit=True)
    figures.take(0, [row(T0, "bot", "model"), over, row(T0, "ann", "model", T0), row(T0, "kiosk", "model"), late], T0)
    assert [(one.early_rows, one.early_clicks, one.left_out) for one in figures.look(T0)] == [(2, 1, 0)]
    again = ArmFigures(HORIZON)
    again.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(figures.snapshot()), strict=False))
    assert str(again.look(T0)) == str(figures.look(T0))
    again.take(0, [], T0 + HORIZON)
    (found,) = again.look(T0 + HORIZON)
    assert (found.estimate.n, found.estimate.value, found.left_out, found.early_rows) == (2, 0.5, 1, 0)


def test_one_who_gives_every_page_an_arm_of_its_own_makes_no_more_than_a_hundred() -> None:
    figures, more = ArmFigures(HORIZON), 7
    figures.take(0, [row(T0 + n, f"u{n}", f"a{n}") for n in range(MOST_ARMS + more)], T0)
    assert len(figures.look(T0, [{"late": [9, 1], "a0": [5, 2], "logged": [3, 3]}])) == MOST_ARMS
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(figures.snapshot()), strict=False)
    again = ArmFigures(HORIZON)
    again.resume(state)
    again.take(0, [row(T0 + 200, "u200", "a200")], T0 + HORIZON + 300)
    found = {one.name: one for one in again.look(T0, [{"late": [9, 1], "a0": [5, 2]}])}
    assert sum(one.estimate.n for one in found.values()) == len(found) == MOST_ARMS
    assert (found["a0"].early_rows, found["a0"].early_clicks) == (5, 2)


def test_memory_is_bounded_and_each_arm_loses_as_large_a_part() -> None:
    rows = crowd(6000, 4)
    figures = ArmFigures(HORIZON, most_users=1000)
    found = {one.name: one.estimate for one in of("click", fed(figures, rows))}
    assert len(figures._users) <= 1000
    known = Counter(one.name for one in of("click", fed(ArmFigures(HORIZON), rows)) for _ in range(one.estimate.n))
    assert sum(one.n for one in found.values()) > 1000, "what they have told stays told"
    shares = [found[name].n / known[name] for name in ("control", "model", "hits")]
    assert max(shares) - min(shares) < 0.06
    again = ArmFigures(HORIZON, most_users=1000)
    again.resume(figures.snapshot())
    before = again.look(T0)
    again.take(0, rows, rows[-1].ts_ms + HORIZON)
    assert [one.estimate for one in again.look(T0)] == [one.estimate for one in before], "nobody counts twice"


def test_sums_say_the_same_as_outcomes() -> None:
    outcomes = np.random.default_rng(0).poisson(0.3, 500)
    sums = int(outcomes.sum()), int((outcomes**2).sum())
    assert mean_of(500, *sums) == pytest.approx(ratio(outcomes))
    assert band(mean_of(300, 300 * 0.1, 300 * 0.1**2)).low == pytest.approx(0.1), "all are the same"
    assert not mean_of(0, 0, 0).said
    assert not mean_of(500, 99, 99).said
    assert mean_of(500, 101, 101).said, "each of 101 has one"


def test_a_purchase_is_worth_a_number_of_its_item() -> None:
    fields = '{ name = "color", of = "item" }, { name = "price", of = "item", kind = "numeric" }'
    columns = ArchiveColumns(parse_schema(f'name = "s"\nfields = [{fields}]'))
    price = columns.number("price")
    raws = [columns.pack("item", about) for about in ({"color": "red", "price": 2.5}, {"price": "x"}, {})]
    assert [price(raw) for raw in (*raws, None)] == [2.5, 0.0, 0.0, 0.0]
    for name in ("color", "size"):
        with pytest.raises(SettingError, match=f"'{name}' is no number of an item; choose from price"):
            columns.number(name)
