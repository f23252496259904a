# core
"""Models of other libraries under the verbs of :class:`~learner.ranker.verbs.Verbs`: examples that run, and to begin
from."""
