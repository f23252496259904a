"""What the live page answers first: in words where no band is known, and what is awaited where nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from millrace.commands.loop.answers import NO_BAND, Figures, awaited, fast, learns
from millrace.commands.loop.series import Series

KNOWN = {"ctr_model": 0.19, "ctr_control": 0.05, "served_rows": 10_000.0, "served_rows_control": 4000.0}
EARLY = "too early to tell"
SETTLED = "in about 6 minutes, at 14:32 UTC"


def arm(name: str, mean: float | None, *more: float | None) -> dict[str, Any]:
    bounds = dict(zip(("more_estimate", "more_low", "more_high"), more or (None,) * 3, strict=True))
    return {"outcome": "click", "arm": name, "mean_estimate": mean, **bounds}


def answer(
    arms: list[dict[str, Any]], figures: Figures, series: Series | None = None, **shown: bool
) -> tuple[str, str]:
    known = {"simulated": False, "control": True, "archive": True, **shown}
    found = learns(arms, figures, series or Series(), SETTLED, **known)
    return found["value"], found["says"]


MUCH = "3.8 times the clicks of random ones"
RATES = "The model's pages are clicked at 19.0%, random ones at 5.0%."


@pytest.mark.parametrize(
    ("bounds", "value", "said"),
    [
        ((0.14, 0.1, 0.2), MUCH, "That is +0.14 clicks a user (+0.10 to +0.20 with 95%)."),
        ((0.14, -0.1, 0.2), EARLY, "That is +0.14 clicks a user (-0.10 to +0.20 with 95%)."),
        ((-0.14, -0.2, -0.1), MUCH, "That is -0.14 clicks a user (-0.20 to -0.10 with 95%)."),
        ((), MUCH, "A band comes when enough users' horizons are over."),
    ],
)
def test_the_gain_over_random_pages_has_the_band_of_the_archive(
    bounds: tuple[float, ...], value: str, said: str
) -> None:
    arms = [arm("control", 0.2), arm("model", 0.34, *bounds), arm("hits", 0.3, 9, 8, 10)]
    assert answer(arms, KNOWN) == (value, f"{RATES} {said}")


def test_without_an_archive_the_gain_is_said_without_a_band() -> None:
    assert answer([], KNOWN, archive=False) == (MUCH, f"{RATES} {NO_BAND}")


def test_few_clicks_promise_nothing() -> None:
    """400 random pages have 20 clicks: fewer than anything is said of."""
    few = KNOWN | {"served_rows_control": 400.0}
    assert answer([], few, archive=False) == (EARLY, f"{RATES} {NO_BAND}")
    close = KNOWN | {"ctr_model": 0.06}
    assert answer([], close, archive=False)[0] == EARLY


def test_a_model_that_is_worse_is_not_praised() -> None:
    value, _ = answer([], KNOWN | {"ctr_model": 0.025})
    assert value == "only 0.50 of the clicks of random ones"


def test_where_no_page_is_random_another_arm_is_compared_with_and_the_band_is_turned_round() -> None:
    """The archive compares with its first arm, here the model's."""
    arms = [arm("model", 1.5), arm("hits", 1.0, -0.5, -0.8, -0.2)]
    value, said = answer(arms, {"ctr_model": 0.19, "ctr_control": None}, control=False)
    assert value == "1.5 times the clicks of those of arm hits"
    assert said == (
        "A user clicks 1.50 times on the model's pages, 1.00 on those of arm hits."
        " That is +0.50 clicks a user (+0.20 to +0.80 with 95%)."
    )


def test_a_rate_alone_says_what_it_lacks() -> None:
    alone = {"ctr_model": 0.19, "ctr_control": None}
    assert answer([], alone)[1].endswith("No click on a random page is known yet.")
    assert answer([], alone, control=False)[1].endswith("No page is random, to compare with.")


def test_before_anything_is_known_it_is_said_what_is_awaited_and_when() -> None:
    nothing = ("", f"No click is known yet. Click rates come {SETTLED}.")
    assert answer([], {}) == nothing
    assert answer([arm("control", None), arm("model", None)], {}) == nothing
    assert answer([], {}, simulated=True)[1].endswith("Click rates come with the first pages.")
    assert awaited(Series(), SETTLED, simulated=True).startswith("Awaited: click rate with the first pages;")
    said = awaited(Series(), SETTLED, simulated=False)
    assert said == (
        f"Awaited: click rate {SETTLED}; rolling AUC, AUC of a page, log loss and calibration {SETTLED};"
        " click to served with the first click that is learnt; freshness with the first version that learnt."
    )


def test_what_was_known_last_stays_and_says_of_when_it_is() -> None:
    series = Series()
    figures = dict.fromkeys(("auc", "freshness_s"), 1.0) | {"click_to_served_p50_ms": 500.0}
    series.add(3_600_000, 1, {"click_rate_model": 0.19, "click_rate_control": 0.05} | KNOWN | figures)
    series.add(3_601_000, 2, {})
    value, said = answer([], {"ctr_model": None, "ctr_control": None}, series, archive=False)
    assert value == MUCH
    assert "random ones at 5.0% (as of 01:00 UTC)." in said
    assert fast({}, series)["says"] == "is the median from a click to the weights that serve (as of 01:00 UTC)."
    assert awaited(series, SETTLED, simulated=False) == ""


def test_how_fast_is_of_the_newest_clicks_and_their_stages() -> None:
    figures = {
        "click_to_served_p50_ms": 530.0,
        "click_to_served_p99_ms": 1070.0,
        "clicks_served": 7.0,
        "click_stage_ms_joined": 166.0,
        "click_stage_ms_applied": 67.0,
    }
    found = fast(figures, Series())
    assert (found["value"], found["clicks"]) == ("0.53 s", 7.0)
    assert (
        found["says"] == "is the median from a click to the weights that serve; 99 of 100 clicks take at most 1.07 s."
    )
    assert [(stage["name"], stage["ms"]) for stage in found["stages"]] == [
        ("joined", 166.0),
        ("learnt", None),
        ("published", None),
        ("applied", 67.0),
    ]
    assert fast({}, Series())["value"] == ""
