# core
"""What a learner decides, as records whose numbers never change.

A model is a fold: a snapshot, the decisions behind it in order, and the samples that were read before each. Wall time
decides where micro-batches end, and checks decide what is learnt. Both are facts once they are here: who learns again
obeys them, and judges nothing again. ::

    snapshot 41 ─┬─ 42 Learnt ─ 43 Learnt ─ 44 Passed ─ 45 Saved ───┬─ 46 Learnt ─ 47 Refused ─ 48 WentBack(44) ─
      (has 1..41)└──────────── in the message of a delta ───────────┘

Numbers rise over the whole life of a store. A process that goes on begins with :class:`Began`: what another had decided
behind that place, and could not be done again, is void. What is decided is durable before anybody sees what follows
from it: decisions travel in the message of the delta that they led to (:mod:`millrace.versions.modellog`), or in one of
their own. A snapshot names the newest decision that it has, and a file beside it those since the snapshot before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from millrace.basics.errors import UNFIT, SnapshotError

Row = Annotated[int, Meta(ge=0, le=1 << 20)]
"""A message of ``samples`` has fewer rows: some take more than ten bytes, and the largest message has ten megabytes."""


class Span(NamedTuple):
    """Rows ``first`` to ``stop`` (not included) of one message of ``samples``."""

    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    first: Row
    stop: Row


class Began(Struct, frozen=True, array_like=True, tag="began"):
    """A process goes on behind decision ``after``. Those between it and this one are void."""

    after: int


class Learnt(Struct, frozen=True, array_like=True, tag="learnt"):
    """A micro-batch was given to the model."""

    spans: tuple[Span, ...]
    rows: int = -1  # how many it learnt, 0 of a batch that it refused; -1: not known
    of: str = ""  # the entry of quarantine that is released by it
    ends: bool = False  # these are the entry's last rows
    aside: tuple[Span, ...] = ()  # rows that came with them, were judged with them, and went to quarantine


class Passed(Struct, frozen=True, array_like=True, tag="passed"):
    """A whole stretch passed the checks: it is promoted."""


class Saved(Struct, frozen=True, array_like=True, tag="saved"):
    """A snapshot is made of the state up to here. ``judged``: it passed on held-out pages."""

    judged: bool = False


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """A check refused rows (no ``spans``: the model as it was). They are in quarantine. ``back``: the decision that the
    model has to go back to; -1: it stays as it is."""

    spans: tuple[Span, ...]
    check: str
    value: float
    bound: float
    what: str = ""
    back: int = -1


class WentBack(Struct, frozen=True, array_like=True, tag="went_back"):
    """After the newest refusal the model became what it was behind decision ``to``. What it had learnt since is in
    quarantine."""

    to: int


class HeldBack(Struct, frozen=True, array_like=True, tag="held"):
    """Nothing newer is published until somebody promotes."""

    by: str


class Promoted(Struct, frozen=True, array_like=True, tag="promoted"):
    """A hold ended."""

    by: str


class Rebased(Struct, frozen=True, array_like=True, tag="rebased"):
    """The model as it is is what later ones are compared with: bounds begin anew."""

    by: str


class Released(Struct, frozen=True, array_like=True, tag="released"):
    """Entries of quarantine are to be learnt."""

    names: tuple[str, ...]
    by: str


class Discarded(Struct, frozen=True, array_like=True, tag="discarded"):
    """Entries of quarantine are gone for good."""

    names: tuple[str, ...]
    by: str


class RolledBack(Struct, frozen=True, array_like=True, tag="rolled_back"):
    """The model became a snapshot of this store. ``by`` "gate": no newer one gives a sound model."""

    epoch: int
    version: int
    by: str


class Adopted(Struct, frozen=True, array_like=True, tag="adopted"):
    """The model became one that was learnt elsewhere: in a shadow, or by a repair."""

    epoch: int
    version: int
    source: str
    by: str


Decision = (
    Began
    | Learnt
    | Passed
    | Saved
    | Refused
    | WentBack
    | HeldBack
    | Promoted
    | Rebased
    | Released
    | Discarded
    | RolledBack
    | Adopted
)


class Decided(Struct, frozen=True, array_like=True):
    """A decision and its number. ``ms``: event time. ``read``: samples before this offset had been read. What was
    repeated in them, held out or beyond a limit is computed again when they are read again."""

    n: int
    ms: int
    what: Decision
    read: int = 0


class LogPart(NamedTuple):
    """Decisions that follow one another. ``log``: of which log; a store has one, from its first version on."""

    log: str
    decided: list[Decided]


def encode_decisions(log: str, decided: Iterable[Decided]) -> bytes:
    """Decisions as they travel and lie in the store. A span takes some ten bytes."""
    return msgspec.msgpack.encode((log, list(decided)))


def decode_decisions(raw: bytes | memoryview) -> LogPart:
    """The inverse of :func:`encode_decisions`. Raises SnapshotError where they cannot be read."""
    try:
        return _decoder.decode(raw)
    except UNFIT as error:
        raise SnapshotError(f"a log of decisions cannot be read ({error})", "it is passed over") from None


_decoder: msgspec.msgpack.Decoder[LogPart] = msgspec.msgpack.Decoder(LogPart)


def in_force(decided: Iterable[Decided], after: int) -> tuple[list[Decided], list[Decided]]:
    """What led on from decision ``after``, in order; and what was decided behind a gap, where a message was lost. Some
    may come twice, in any order.

    >>> log = [Decided(n, 0, Passed()) for n in (5, 4, 4, 3, 7)]
    >>> [[d.n for d in part] for part in in_force(log, after=3)]
    [[4, 5], [7]]
    >>> [[d.n for d in part] for part in in_force([*log, Decided(9, 0, Began(4))], after=3)]
    [[4, 9], []]
    """
    found: list[Decided] = []
    behind_gap: list[Decided] = []
    known = {each.n: each for each in decided if each.n > after}
    for n in sorted(known):
        each = known[n]
        newest = found[-1].n if found else after
        if isinstance(each.what, Began):
            for part in (found, behind_gap):
                while part and part[-1].n > each.what.after:
                    part.pop()
            newest = found[-1].n if found else after
            follows = newest == each.what.after
        else:
            follows = n == newest + 1
        (found if follows and not behind_gap else behind_gap).append(each)
    return found, behind_gap
