# core
"""What can go wrong between a shop and Millrace: one line each, with the value and the remedy.

::

    MillraceClientError
    ├── BadRequest     400, 404, 413: the request is wrong, and would be wrong again
    ├── Unauthorised   401: the token is missing or wrong
    ├── Refused        some messages were not taken; ``refusals`` has each with its reason
    ├── TooMuch        429: too many messages wait there; ``retry_after_s`` says for how long
    ├── Unavailable    503, no connection, no answer in time
    ├── BadAnswer      an answer that is not Millrace's (a proxy's page, say)
    ├── QueueFull      more events wait here than may; raised with ``when_full="raise"`` only
    └── NotOnPage      a click or exposure of an item that the page does not have
"""

from __future__ import annotations

from collections.abc import Sequence

from millrace_client.messages import Refusal


class MillraceClientError(Exception):
    """Base of every expected failure. ``problem`` is what is wrong, with the offending value in it; ``remedy`` what the
    reader can do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.problem}; {self.remedy}")


class BadRequest(MillraceClientError):
    """The request as a whole cannot be used. The same request would fail again."""


class Unauthorised(MillraceClientError):
    """The token is missing or wrong."""


class BadAnswer(MillraceClientError):
    """Something answered that does not speak as Millrace does."""


class NotOnPage(MillraceClientError):
    """An item that the page does not have, or a position twice."""


class QueueFull(MillraceClientError):
    """As many events wait to be sent as may wait. This event was not taken."""


class _Later(MillraceClientError):
    """A failure that goes by. ``retry_after_s``: after so many seconds the other side wants to be asked again; None: it
    did not say."""

    def __init__(self, problem: str, remedy: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem, remedy)
        self.retry_after_s = retry_after_s


class TooMuch(_Later):
    """Too many messages wait at the intake (429)."""


class Unavailable(_Later):
    """Nothing answers, or what answers is not ready (503)."""


class Refused(MillraceClientError):
    """Some messages were not taken, each of which is in ``refusals`` with the reason; all others were."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        first = self.refusals[0]
        super().__init__(
            f"{len(self.refusals)} messages were refused, the first with {first.reason!r}: {first.detail}",
            "mend them and send them again; all others were kept",
        )
