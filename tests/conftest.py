"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says nothing on a machine where other things run; CI draws the same examples each time.
settings.register_profile("millrace", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("millrace")
