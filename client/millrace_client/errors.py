# core
"""Expected failures between a shop and Millrace: one line each, with the value and the remedy.

::

    MillraceClientError
    ├── BadRequest     400, 404, 413: the request is wrong, and would be wrong again
    ├── Unauthorised   401: the token is missing or wrong
    ├── Refused        some messages were refused; ``refusals`` has each with its reason
    ├── TooMuch        429: too many messages wait there; ``retry_after_s`` says for how long
    ├── Unavailable    503, no connection, no answer in time
    ├── BadAnswer      an answer that is not Millrace's (a proxy's page, say)
    ├── QueueFull      this client's queue is full; raised with ``when_full="raise"`` only
    └── NotOnPage      a click or exposure of an item that the page does not have
"""

from __future__ import annotations

from collections.abc import Sequence

from millrace_client.messages import Refusal


class MillraceClientError(Exception):
    """Base of every expected failure: ``problem``, with the offending value, and the reader's ``remedy``."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.problem}; {self.remedy}")


class BadRequest(MillraceClientError):
    """The request as a whole is invalid. The same request would fail again."""


class Unauthorised(MillraceClientError):
    """The token is missing or wrong."""


class BadAnswer(MillraceClientError):
    """The answer is not Millrace's."""


class NotOnPage(MillraceClientError):
    """An item that the page does not have, or a position twice."""


class QueueFull(MillraceClientError):
    """The queue is full. This event was not queued."""


class _Later(MillraceClientError):
    """A temporary failure. ``retry_after_s``: seconds until the server wants another try; None: it did not say."""

    def __init__(self, problem: str, remedy: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem, remedy)
        self.retry_after_s = retry_after_s


class TooMuch(_Later):
    """Too many messages wait at the intake (429)."""


class Unavailable(_Later):
    """Nothing answers, or what answers is not ready (503)."""


class Refused(MillraceClientError):
    """Some messages were refused; ``refusals`` has each with its reason. All others were stored."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        first = self.refusals[0]
        super().__init__(
            f"{len(self.refusals)} messages were refused, the first with {first.reason!r}: {first.detail}",
            "mend them and send them again; all others were kept",
        )
