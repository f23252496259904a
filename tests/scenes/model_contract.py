"""What holds for any model, registered or of one's own. A test module runs it by a class of its own that derives from
:class:`ModelContract`, and a fixture ``make`` that gives a new model for a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from learner.custom.own import OwnModel
from learner.ranker.model import OnlineModel
from millrace.contracts.samples import FOLLOW_UP, PAGE
from tests.scenes.learning import SCHEMA, make_samples, poison
from tests.scenes.same_state import differs

Model = OnlineModel | OwnModel
Make = Callable[..., Model]
"""A new model. Args: seed (0)."""


def taught(model: Model, batches: int = 4, rows: int = 64) -> Model:
    """The model, when it has learnt the first batches."""
    for i in range(batches):
        assert model.learn(make_samples(rows, i)).rows == rows
    return model


def equal(one: Model, other: Model) -> str:
    """Empty where both have the same state."""
    return differs(one.snapshot(), other.snapshot())


class ModelContract:
    """The checks."""

    def test_first_event(self, make: Make) -> None:
        """A model that has seen nothing answers about what the schema expects, and learns from a single row."""
        model, one, prior = make(), make_samples(1, 0), SCHEMA.windows.prior_rate
        assert prior / 2 < model.score(one.cat, one.num)[0] < prior * 2
        report = model.learn(one)
        assert (report.rows, report.skipped) == (1, None)
        assert np.isfinite(model.score(one.cat, one.num)).all()

    def test_scoring_reads_only(self, make: Make) -> None:
        model = taught(make())
        model.changes()
        before, size, none = model.snapshot(), model.nbytes, model.changes()
        unseen = make_samples(200, 99, users=10_000, items=10_000)
        unseen.cat.flags.writeable = unseen.num.flags.writeable = False  # as those of a message are
        first = model.score(unseen.cat, unseen.num)
        np.testing.assert_array_equal(first, model.score(unseen.cat, unseen.num))
        assert str(first.dtype) == "float32"
        assert first.shape == (200,)
        assert differs(before, model.snapshot()) == ""
        assert model.nbytes == size
        after = model.changes()
        assert after.same_bits(none) == ""
        assert all(len(t.ids) == 0 for t in after.tables.values())

    def test_resume_goes_on_bit_for_bit(self, make: Make) -> None:
        model, again = taught(make()), make(123)  # the seed is the snapshot's
        again.learn(make_samples(30, 50))  # and what it had learnt before is gone
        again.resume(*model.snapshot())
        assert (equal(model, again), again.seed, again.newest_ms) == ("", 0, model.newest_ms)
        for i in range(10, 14):
            new_ids = make_samples(64, i, users=400, items=400)
            report = model.learn(new_ids)
            assert report.rows == 64
            assert again.learn(new_ids) == report
        assert equal(model, again) == ""
        probe = make_samples(100, 77)
        np.testing.assert_array_equal(model.score(probe.cat, probe.num), again.score(probe.cat, probe.num))

    def test_parts_of_a_snapshot_are_the_snapshot(self, make: Make) -> None:
        model, again = taught(make()), make()
        slices = model.slices(50)
        parts = [*iter(slices.next, None)]
        again.resume([*parts, slices.finish()])
        assert equal(model, again) == ""

    def test_determinism(self, make: Make) -> None:
        model = taught(make())
        assert equal(model, taught(make())) == ""
        kind = model.spec["model"]
        if kind != "logistic" and "rivermodel" not in kind:  # in linear ones is nothing random: every seed is the same
            assert equal(model, taught(make(1))) not in ("", "clock")  # the seed itself is in the clock

    def test_bad_numbers_read_as_zero_and_are_counted(self, make: Make) -> None:
        model, twin = taught(make()), taught(make())
        batch, clean = make_samples(64, 5), make_samples(64, 5)
        batch.num[3, 0], batch.num[4, 1], batch.num[5, :] = np.nan, np.inf, -np.inf
        clean.num[3, 0], clean.num[4, 1], clean.num[5, :] = 0, 0, 0
        np.testing.assert_array_equal(model.score(batch.cat, batch.num), model.score(clean.cat, clean.num))
        report = model.learn(batch)
        assert (report.bad_numbers, report.rows) == (2 + SCHEMA.layout.N, 64)
        twin.learn(clean)
        assert equal(model, twin) == ""

    def test_unusable_rows_are_refused_and_the_rest_learnt(self, make: Make) -> None:
        model, twin = taught(make()), taught(make())
        batch = poison(make_samples(64, 5), label=([0, 1, 2], [np.nan, 1.5, -1]), weight=([3, 4], [np.inf, -1]))
        report = model.learn(batch)
        assert (report.refused, report.rows) == (5, 59)
        twin.learn(batch.take(slice(5, None)))
        assert equal(model, twin) == ""

    def test_empty_one_class_and_follow_up_batches(self, make: Make) -> None:
        model, twin = taught(make()), taught(make())
        assert model.learn(make_samples(10, 0).take(slice(0, 0))).rows == 0
        for passed_over in (FOLLOW_UP, PAGE):
            report = model.learn(poison(make_samples(10, 0), kind=(slice(None), passed_over)))
            assert (report.rows, report.refused) == (0, 0)
        assert equal(model, twin) == ""
        ones = poison(make_samples(64, 5), label=(slice(None), 1.0))
        assert model.learn(ones).skipped is None
        assert len(model.score(ones.cat[:0], ones.num[:0])) == 0
