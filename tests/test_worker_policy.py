"""The label policy that the settings name, through the partition."""

from __future__ import annotations

import pytest

from millrace.contracts.errors import SettingError
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.contracts.settings import load_settings
from stream.partition import Partition, Policy
from tests.stream_world import MINUTE, SCHEMA, T0, Log, action, exposure, impression


def kinds(policy: str | None, *, after_click: bool) -> list[list[int]]:
    """Kinds of the samples of a page of two whose second item is clicked: at the exposure, at the click, at last."""
    settings = load_settings({"label_policy": policy}, environ={})
    partition, log = Partition(0, SCHEMA, Policy.of(settings)), Log()
    first = [*log.impressions(impression("r", T0, [1, 2])), *log.events(exposure("r", T0 + 1, [1, 2]))]
    steps = [partition.take(first, T0 + MINUTE)]
    if after_click:
        steps.append(partition.take(log.events(action("click", "r", T0 + MINUTE, 1, 2)), T0 + MINUTE))
    steps.append(partition.advance(T0 + 60 * MINUTE))
    assert partition.pending == 0
    return [[] if s.samples is None else s.samples.kind.tolist() for s in steps]


def test_by_default_a_label_waits() -> None:
    assert kinds(None, after_click=True) == [[], [POSITIVE], [NEGATIVE]]
    assert kinds("wait", after_click=False) == [[], [NEGATIVE, NEGATIVE]]


def test_fake_negatives_come_at_once_and_a_click_corrects() -> None:
    assert kinds("fake-negative-weighted", after_click=True) == [[NEGATIVE, NEGATIVE], [CORRECTION], []]
    assert kinds("fake-negative-weighted", after_click=False) == [[NEGATIVE, NEGATIVE], []]


def test_a_child_process_gets_the_policy_and_no_other_is_taken() -> None:
    settings = load_settings({"label_policy": "fake-negative-weighted"}, environ={})
    assert load_settings(environ=settings.environment()) == settings
    with pytest.raises(SettingError, match="label_policy"):
        load_settings({"label_policy": "guess"}, environ={})
