# core
"""Runnable examples: models of other libraries as :class:`~learner.ranker.verbs.Verbs`."""
