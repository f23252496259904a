"""How much property tests explore: in the quick tier (``make test``) a quarter of their examples, elsewhere all."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

QUICK = "MILLRACE_TEST_QUICK" in os.environ


def examples(full: int, **more: Any) -> settings:
    """A property test's settings.

    Args:
        full: how many examples are drawn by ``make test TIER=all`` and ``make explore``.
        more: other settings of Hypothesis.
    """
    return settings(max_examples=max(1, full // 4) if QUICK else full, **more)
