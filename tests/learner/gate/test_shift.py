"""Shift: a look without labels. What moves a model as its own past did passes, what moves it more does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.gate.shift import WARM_LOOKS, Shift
from learner.gate.verdicts import GateRefusal
from millrace.basics.durations import HOUR_MS
from tests.learner.gate.plain_model import START_MS, Plain, rows

STRETCH = 2048


def stretch(shift: Shift, model: Any, number: int, n: int = STRETCH, minutes: float = 1.0) -> GateRefusal | None:
    """A stretch is learnt, and looked at; the model is as the test has made it."""
    shift.clock.now_ms = START_MS + round(number * minutes * 60_000)
    shift.meet(rows(n, number))
    shift.learnt(n)
    assert shift.due == (n >= STRETCH)
    return shift.look(model)


def warm(moves: float = 0.01, minutes: float = 1.0) -> tuple[Shift, Plain, int]:
    """A shift that knows its stream, whose model goes up and down by ``moves``."""
    shift, model, number = Shift(), Plain(), 0
    while not shift.armed:
        number += 1
        model.bias = -1 + moves * (number % 2)
        assert stretch(shift, model, number, minutes=minutes) is None
        shift.promoted(model)
        assert number < 50
    return shift, model, number


def test_the_figure_is_that_of_the_formula() -> None:
    shift, model, number = warm(moves=0.0)
    assert stretch(shift, model, number + 1) is None
    assert shift.figure == 0.0
    model.bias += 0.02
    assert shift.look(model) is None
    assert shift.figure == pytest.approx(0.02, abs=1e-5)
    model.slope += 0.04  # of standard normal numbers: the mean size is .8 of it, for 256 rows about
    assert shift.look(model) is None
    assert 0.03 < shift.figure < 0.05


@pytest.mark.parametrize("change", [{"bias": 0.3}, {"slope": 0.3}])
def test_a_move_is_refused(change: dict[str, float]) -> None:
    shift, model, number = warm()
    for name, by in change.items():
        setattr(model, name, getattr(model, name) + by)
    refusal = stretch(shift, model, number + 1)
    assert refusal is not None
    assert refusal.check == "shift"
    assert refusal.value > refusal.bound


def test_a_longer_stretch_may_have_moved_further() -> None:
    shift, model, number = warm()
    model.bias += 0.32
    assert stretch(shift, model, number + 1) is not None
    shift.learnt(3 * STRETCH)
    assert shift.look(model) is None


def test_a_young_model_moves_as_it_will_and_its_past_is_its_measure() -> None:
    shift, model = Shift(), Plain()
    for number in range(1, 40):
        model.bias = -1 + 0.4 * (number % 2)  # the plain bound is .2
        assert stretch(shift, model, number) is None
        shift.promoted(model)
    assert shift.armed
    model.bias += 1.6
    assert stretch(shift, model, 40) is not None
    for number in range(41, 41 + 2 * WARM_LOOKS):  # it has calmed down
        model.bias = -1.0
        stretch(shift, model, number)
        shift.promoted(model)
    model.bias += 0.4
    assert stretch(shift, model, 99) is not None


def test_rows_of_items_that_are_not_known_are_no_reference_and_a_stretch_of_them_is_not_judged() -> None:
    shift, model, number = warm()
    known = {7}
    shift.knows = lambda item: np.isin(item, list(known))

    def learn(new: float) -> GateRefusal | None:
        batch = rows(STRETCH, number)
        items = np.where(np.arange(STRETCH) % 64 < 64 * new, 8, 7).astype(np.uint64)
        batch.num[:] = (items == 8)[:, None]
        shift.meet(replace(batch, item=items))
        shift.learnt(STRETCH)
        return shift.look(model)

    model.bias += 1
    assert learn(new=0.5) is not None
    shift.went_back()
    assert learn(new=1.0) is None
    usual = shift.bound
    shift.promoted(model)
    assert (shift.snapshot()["newest/num"][-1] != 1).all()
    shift.learnt(STRETCH)
    assert shift.bound == usual, "what was not judged tells of nothing usual"
    known.add(8)
    assert learn(new=1.0) is None
    shift.promoted(model)
    assert (shift.snapshot()["newest/num"][-1] == 1).all()
    model.bias += 1
    assert learn(new=1.0) is not None


@pytest.mark.parametrize("n", [256, STRETCH])
def test_a_shop_that_always_shows_much_that_is_new_is_judged_all_the_time(n: int) -> None:
    """Not only in stretches that chance fills with known goods. Of pages that are held out all go in the others."""
    shift, model, rng = (
        Shift(knows=lambda item: item == 7, usually_known=lambda: 0.55),
        Plain(),
        np.random.default_rng(0),
    )

    def of_new_items(share: float) -> bool:
        shift.clock.now_ms += 60_000
        shift.meet(replace(rows(n, 0), item=np.where(rng.random(n) < share, 8, 7).astype(np.uint64)))
        shift.learnt(n)
        shift.promoted(model)
        return shift.of_new_items

    assert not any(of_new_items(0.45) for _ in range(1000))
    told = [(of_new_items(0.97), shift.goods_gone) for _ in range(25)]
    assert told == [(True, minutes >= 20) for minutes in range(25)], "a new catalogue"
    assert not of_new_items(0.45)
    assert not shift.goods_gone
    assert of_new_items(0.97)
    assert not shift.goods_gone, "some minutes of rare goods"


def lived(rows_a_second: float, hours: float) -> tuple[Shift, float, list[float]]:
    """A shift through some hours of steady traffic; hours until it is armed, and minutes of each stretch."""
    shift, model, armed, began, stretches = Shift(), Plain(), float("inf"), 0.0, []
    size = 8 if rows_a_second < 20 else 512
    for number in range(int(hours * 3600 * rows_a_second / size)):
        at = number * size / rows_a_second
        shift.clock.now_ms = START_MS + round(1000 * at)
        shift.meet(rows(size, number))
        shift.learnt(size)
        if shift.due:
            model.bias = -1 + 0.01 * (number % 2)
            assert shift.look(model) is None
            shift.promoted(model)
            stretches.append((at - began) / 60)
            began = at
        if shift.armed and armed == float("inf"):
            armed = at / 3600
    return shift, armed, stretches


def test_at_a_row_a_second_it_is_armed_within_an_hour_and_a_stretch_is_of_minutes() -> None:
    """By rows alone it was armed after twelve hours, and a stretch was of 34 minutes."""
    _, armed, stretches = lived(rows_a_second=1, hours=2)
    assert armed < 1.0
    assert max(stretches) < 7


def test_at_a_hundred_rows_a_second_rows_end_a_stretch_and_arm_it() -> None:
    shift, armed, stretches = lived(rows_a_second=100, hours=0.2)
    assert 16 * 2048 < armed * 3600 * 100 < 20 * 2048
    assert max(stretches[1:]) * 6000 == pytest.approx(2048, abs=1)
    assert len(shift._past) == WARM_LOOKS


def test_at_night_a_stretch_waits_for_rows() -> None:
    """A row in ten seconds: five minutes have 30 rows, which would tell of one page or two."""
    _, armed, stretches = lived(rows_a_second=0.1, hours=6)
    assert min(stretches[1:]) * 6 == pytest.approx(256, abs=8)
    assert armed == float("inf")


def test_a_short_stretch_may_not_have_moved_further_than_usual_for_one() -> None:
    """Where the plain bounds do not hold, as in a young model: what is usual is told by the root of its rows."""
    shift, *_ = warm(moves=0.2)
    whole = 3 * 0.2
    assert shift.bound == pytest.approx(whole * (256 / STRETCH) ** 0.5, rel=0.01)
    shift.learnt(STRETCH)
    assert shift.bound == pytest.approx(whole, rel=0.01)
    shift.learnt(3 * STRETCH)
    assert shift.bound == pytest.approx(2 * whole, rel=0.01)


class Growing(Plain):
    """A model whose newest rows are pinned by what it learns of them: ``bias`` is what it says of rows as they are now,
    and of those of an earlier time it says more and more, by ``old`` for each ``step``."""

    def __init__(self) -> None:
        super().__init__()
        self.old, self.step = 0.0, 0

    def score(self, cat: Any, num: Any) -> Any:
        self.scored += len(cat)
        logit = self.bias + self.old * (self.step - num[:, 0])
        return (1 / (1 + np.exp(-logit))).astype(np.float32)


def test_rows_of_an_earlier_time_are_no_measure_of_a_step() -> None:
    """As in a young shop, whose window counts grow: each stretch has rows such as there were none before."""
    shift, model = Shift(), Growing()
    refused = []
    for number in range(1, 60):
        if number == 40:
            model.old = 0.02  # from now on
        model.step, model.newest_ms = number, START_MS + number * 120_000
        batch = rows(STRETCH, number)
        batch.num[:] = number
        shift.meet(batch)
        shift.learnt(STRETCH)
        refusal = shift.look(model)
        refused += [refusal] if refusal is not None and refusal.check == "shift" else []
        shift.promoted(model)
    assert shift.armed
    assert refused == []


def test_few_visitors_move_a_model_by_fits_and_starts() -> None:
    """Three steps of four are small, and a median tells of no others; the fourth is as usual as they are."""
    shift, model, number = Shift(), Plain(), 0
    steps = (0.02, -0.02, 0.02, -0.07, -0.02, 0.02, -0.02, 0.07)
    for number in range(1, 60):
        model.bias += steps[number % 8]
        assert stretch(shift, model, number) is None
        shift.promoted(model)
    model.bias = 1.0
    assert stretch(shift, model, number + 1) is not None


def test_logits_that_are_not_finite_are_refused_before_there_is_a_past() -> None:
    shift, model = Shift(), Plain()
    number = 0
    while np.isnan(shift.figure):
        number += 1
        assert stretch(shift, model, number) is None
        shift.promoted(model)
    assert not shift.armed
    model.bias = float("nan")
    refusal = stretch(shift, model, number + 1)
    assert refusal is not None
    assert refusal.check == "finite"


def test_what_was_met_on_a_way_that_was_gone_back_is_no_reference() -> None:
    shift, model, _number = warm(minutes=5.0)
    poisoned = rows(64 * STRETCH, 1)
    poisoned.num[:] = 1e6
    shift.meet(poisoned)
    shift.went_back()
    assert not shift.due
    shift.clock.now_ms += 2 * HOUR_MS
    shift.learnt(STRETCH)
    assert shift.look(model) is None
    shift.promoted(model)
    assert float(shift.snapshot()["newest/num"].max()) < 100


def test_a_rebase_makes_any_state_the_measure() -> None:
    shift, model, number = warm()
    model.bias, model.slope = 3.0, -2.0
    assert stretch(shift, model, number + 1) is not None
    shift.rebase(model)
    assert not shift.due
    assert stretch(shift, model, number + 2) is None
    assert shift.figure == 0.0


def test_it_goes_on_from_a_snapshot_as_if_it_were_the_same() -> None:
    shift, model, number = warm()
    stretch(shift, model, number + 1, n=700)
    twin = Shift(clock=shift.clock)
    twin.resume({name: array.copy() for name, array in shift.snapshot().items()})
    model.bias += 0.03
    for step in range(2, 60):
        model.slope += 0.003 * (step % 5)
        first, second = (stretch(s, model, number + step, minutes=3.0) for s in (shift, twin))
        assert first == second
        assert shift.figure == twin.figure
        for s in (shift, twin):
            s.went_back() if first else s.promoted(model)
    assert all(np.array_equal(a, twin.snapshot()[n]) for n, a in shift.snapshot().items())
    Shift().resume({})  # of a process that had no gate


def test_a_stretch_costs_twice_the_rows_and_memory_has_a_bound() -> None:
    shift, model, number = warm()
    for step in range(1, 33):  # all rows of the mark are there
        stretch(shift, model, number + step, minutes=5.0)
        shift.promoted(model)
    model.scored, number = 0, number + 300
    for step in range(1, 11):
        stretch(shift, model, number + step, minutes=0.1)
        shift.promoted(model)
    assert model.scored == 20 * shift.rows
    for step in range(500):  # a person holds, and nothing is promoted
        shift.meet(rows(STRETCH, step))
    assert sum(len(cat) for cat, _ in shift._met.parts) < 2 * shift.rows
