# shell
"""The stages of a click on its way to the weights that serve: each role observes those that end with it.

::

    click ──joined──► sample ──learnt──► weights ──published──► delta ──applied──► served
           (stream)           (learner)           (learner)             (scorer)
"""

from __future__ import annotations

from millrace.processes.tally import TimesHistogram

STAGES = ("joined", "learnt", "published", "applied")

CLICK_STAGE = TimesHistogram(
    "millrace_click_stage_seconds", "Time that clicks took for a stage of their way.", "stage", STAGES
)
