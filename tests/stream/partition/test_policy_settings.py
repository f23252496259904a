"""The label policy that the settings name, through the partition; and what becomes of promises when it is changed."""

from __future__ import annotations

from typing import Any

import pytest

from millrace.basics.errors import SettingError
from millrace.contracts.samples import CORRECTION, NEGATIVE, POLICIES, POSITIVE
from millrace.contracts.settings import load_settings
from stream.partition.partition import Partition, Policy
from tests.scenes.stream_world import MINUTE, SCHEMA, T0, Log, Sum, action, exposure, page_log

SECOND = 1000
LATER = T0 + 30 * MINUTE
"""Traffic has flowed for long by then, so that no policy waits for more than it does in the end."""


def policy_of(name: str | None) -> Policy:
    return Policy.of(load_settings({"label_policy": name, "observation_seconds": 20}, environ={}))


class Shop:
    """A partition into which a page has come every minute for half an hour; only the last is looked at."""

    def __init__(self, name: str | None) -> None:
        self.partition, self.log = Partition(0, SCHEMA, policy_of(name)), Log()
        for k in range(30):
            self.page(f"old{k}", T0 + k * MINUTE)
        self.reported: list[list[tuple[int, int]]] = []

    def page(self, request: str, ts_ms: int) -> Any:
        messages = [*self.log.page_logs(page_log(request, ts_ms, [1, 2]))]
        return self.partition.take([*messages, *self.log.events(exposure(request, ts_ms, [1, 2]))], ts_ms)

    def _note(self, output: Any) -> None:
        s = output.samples
        rows = [] if s is None else zip(s.page.tolist(), s.position.tolist(), s.kind.tolist(), strict=True)
        self.reported.append(sorted((at, kind) for page, at, kind in rows if s.request[page] == "r"))

    def seen(self) -> None:
        self._note(self.page("r", LATER))

    def click(self, after_ms: int) -> None:
        event = self.log.events(action("click", "r", LATER + after_ms, 1, 2))
        self._note(self.partition.take(event, LATER + after_ms))

    def until(self, after_ms: int) -> None:
        self._note(self.partition.advance(LATER + after_ms))

    def changed_to(self, name: str) -> None:
        """Another policy from now on: the worker is started again."""
        again = Partition(0, SCHEMA, policy_of(name))
        again.resume(self.partition.snapshot().to_bytes())
        self.partition = again


BOTH = [(0, NEGATIVE), (1, NEGATIVE)]
FIRST = [(0, NEGATIVE)]

# What comes when the page is seen, when its second item is clicked 9 s later, after 21 s, and after an hour.
QUICK = {
    "wait": [[], [(1, POSITIVE)], [], FIRST],
    "equal-wait": [[], [], [], [(0, NEGATIVE), (1, POSITIVE)]],
    "fake-negative-weighted": [BOTH, [(1, CORRECTION)], [], []],
    "es-dfm": [[], [], [(0, NEGATIVE), (1, POSITIVE)], []],
    "prompt": [[], [(1, POSITIVE)], FIRST, []],
}
# The same where the click comes after 90 s, behind the 21 s.
SLOW = {
    "wait": [[], [], [(1, POSITIVE)], FIRST],
    "equal-wait": [[], [], [], [(0, NEGATIVE), (1, POSITIVE)]],
    "fake-negative-weighted": [BOTH, [], [(1, CORRECTION)], []],
    "es-dfm": [[], BOTH, [(1, CORRECTION)], []],
    "prompt": [[], BOTH, [(1, CORRECTION)], []],
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_when_a_click_and_its_neighbour_are_labelled(name: str, slow: bool) -> None:
    shop = Shop(name)
    shop.seen()
    if slow:
        shop.until(21 * SECOND)
        shop.click(90 * SECOND)
    else:
        shop.click(9 * SECOND)
        shop.until(21 * SECOND)
    shop.until(60 * MINUTE)
    assert shop.reported == (SLOW if slow else QUICK)[name]
    assert shop.partition.pending == 0


def test_by_default_a_click_is_learnt_at_once() -> None:
    assert load_settings(environ={}).label_policy == "prompt"
    shop = Shop(None)
    shop.seen()
    shop.click(2 * SECOND)
    assert shop.reported[-1] == [(1, POSITIVE)]


@pytest.mark.parametrize("before", POLICIES)
@pytest.mark.parametrize("after", POLICIES)
def test_what_is_pending_keeps_its_promise_when_the_policy_is_changed(before: str, after: str) -> None:
    """Kinds, times and the policy that samples name are those of the exposure's own time."""
    shop = Shop(before)
    shop.seen()
    shop.changed_to(after)
    shop.click(9 * SECOND)
    shop.until(21 * SECOND)
    shop.until(60 * MINUTE)
    assert shop.reported == QUICK[before]
    output = shop.page("next", LATER + 61 * MINUTE)
    total = Sum()
    total += output
    total += shop.partition.advance(LATER + 180 * MINUTE)
    assert shop.partition.pending == 0
    assert output.samples is None or set(output.samples.policy.tolist()) == {POLICIES.index(after)}


def test_samples_name_the_policy_that_promised_them() -> None:
    shop = Shop("es-dfm")
    shop.seen()
    shop.changed_to("prompt")
    samples = shop.partition.advance(LATER + 21 * SECOND).samples
    assert samples is not None
    assert set(samples.policy.tolist()) == {POLICIES.index("es-dfm")}


def test_clicks_do_not_come_alone_when_traffic_begins() -> None:
    """Under the default: a click waits with its neighbours at first, and when traffic begins again."""
    partition, log, policy = Partition(0, SCHEMA, policy_of("prompt")), Log(), policy_of("prompt")
    for start in (T0, T0 + 24 * 60 * MINUTE):
        kinds: list[int] = []
        for k in range(30):
            ts = start + k * SECOND
            page = [
                *log.page_logs(page_log(f"{start}-{k}", ts, [1, 2])),
                *log.events(exposure(f"{start}-{k}", ts, [1, 2])),
            ]
            clicked = log.events(action("click", f"{start}-{k}", ts + 1, 1, 2))
            samples = partition.take([*page, *clicked], ts + 1).samples
            kinds += [] if samples is None else samples.kind.tolist()
        assert kinds == [], "nothing is labelled in the first seconds"
        samples = partition.advance(start + 4 * policy.observation_ms + 5 * SECOND).samples
        assert samples is not None
        assert sorted(set(samples.kind.tolist())) == [NEGATIVE, POSITIVE]
        assert samples.label.mean() == 0.5
        partition.advance(start + 60 * MINUTE)


def test_a_child_process_gets_the_policy_and_no_other_is_taken() -> None:
    settings = load_settings({"label_policy": "fake-negative-weighted", "observation_seconds": 7}, environ={})
    assert load_settings(environ=settings.environment()) == settings
    with pytest.raises(SettingError, match="label_policy"):
        load_settings({"label_policy": "guess"}, environ={})
    with pytest.raises(SettingError, match="observation_seconds"):
        load_settings({"observation_seconds": 0}, environ={})
