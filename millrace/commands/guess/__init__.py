# core
"""A schema guessed from a log: which column means what, which are features, which look like outcomes."""

from millrace.commands.guess.write import Guess, guess_schema

__all__ = ["Guess", "guess_schema"]
