"""A client whose connections are refused leaves them to the garbage collector, which warns of each. For the modules of
such tests: the mark :data:`LEFT`, and the fixture."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

LEFT = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Has them collected while the mark holds."""
    yield
    for _ in range(5):  # finalizers may leave more, as pytest knows
        gc.collect()
