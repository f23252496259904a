# core
"""Errors that a person reads: one line that names the offending value and the remedy.

Every expected failure is a :class:`MillraceError`. The command line prints its line and exits with a status of
:data:`EXIT_CODES`, so a traceback always means a bug.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect


class MillraceError(Exception):
    """Base of every expected failure: the problem, with the offending value in it, and the remedy for the reader."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.problem}; {self.remedy}")

    def __reduce__(self) -> tuple[type[MillraceError], tuple[str, str]]:
        # Made again from both parts: without this, an error raised in a worker process breaks the whole pool.
        return type(self), (self.problem, self.remedy)


class SettingError(MillraceError):
    """A setting (environment, file or flag) has an unusable value."""


class SchemaError(MillraceError):
    """A schema file is not valid, or names something that its log does not have."""


class LogError(MillraceError):
    """A log file cannot be read as the schema says."""


class BrokerError(MillraceError):
    """The Kafka broker cannot be reached or refuses what a role needs."""


class StoreError(MillraceError):
    """Redis, a checkpoint folder or the model store cannot be used."""


class PortError(MillraceError):
    """The port of a server is taken."""


class ServiceError(MillraceError):
    """An embedded service or a role did not start, or ended when it should not have."""


class SnapshotError(MillraceError):
    """A model file is damaged, of another schema, or does not follow its parent."""


class FencedError(MillraceError):
    """Another learner has taken over. The supervisor must not start this one again (:data:`FENCED_STATUS`)."""


class ClockError(MillraceError):
    """The event clock is behind a saved state."""


class ConservationError(MillraceError):
    """Exposures went missing or were counted twice between two ends of the loop."""


class LeakError(MillraceError):
    """A replay saw something before it happened."""


class ParityError(MillraceError):
    """The replay of an archive gives another AUC than the live loop's log."""


UNFIT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What code raises that is given a file's content in another form than it was written for. Errors of msgspec, numpy and
of decoding text are ValueErrors; torch's, and RecursionError, are RuntimeErrors. Readers of files make an error of ours
of it: a seal shows damage, and not what a wrong writer wrote."""

FENCED_STATUS = 3
"""Exit status of a fenced process: after a restart it would only fence the other one in turn."""
USAGE_STATUS = 2
EXIT_CODES = {
    0: "done",
    1: "an expected failure, named in one line; or a check that found something",
    USAGE_STATUS: "a wrong command or flag, named in one line",
    FENCED_STATUS: "another learner has taken over: do not start this one again",
    130: "ended by Ctrl-C before its work had begun, or by a second one",
    143: "a demo that SIGTERM ended",
}
"""Meaning of each exit status."""


def one_line(error: BaseException) -> str:
    """An error as one log line: the text of an expected error; for others, with the type."""
    text = str(error) if isinstance(error, MillraceError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


_NO_CHOICE = re.compile(r"^Invalid enum value .* - at `\$(.*)`$")


def invalid(error: msgspec.ValidationError, kind: type) -> str:
    """The reason why a value is not of ``kind``; for a wrong word, with the allowed ones.

    >>> from typing import Literal
    >>> Field = msgspec.defstruct("Field", [("of", Literal["item", "user"])])
    >>> try:
    ...     msgspec.convert({"of": "itm"}, Field)
    ... except msgspec.ValidationError as error:
    ...     print(invalid(error, Field))
    Invalid enum value 'itm' - at `$.of`: use item or user
    """
    found = _NO_CHOICE.match(str(error))
    if found is None:
        return str(error)
    at: list[Any] = [inspect.type_info(kind)]
    for step in re.findall(r"\.\w+|\[.*?\]", found[1]):
        inner = [one for kind in at for one in (kind.types if isinstance(kind, inspect.UnionType) else [kind])]
        if step.startswith("."):
            at = [f.type for kind in inner for f in getattr(kind, "fields", ()) if f.encode_name == step[1:]]
        else:
            at = [getattr(kind, name) for kind in inner for name in ("item_type", "value_type") if hasattr(kind, name)]
    words = [str(v) for kind in at if isinstance(kind, inspect.LiteralType) for v in kind.values]
    return f"{error}: use {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else str(error)
