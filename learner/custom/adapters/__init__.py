# core
"""Runnable examples: models of other libraries as :class:`~learner.ranker.interfaces.CustomModel`."""
