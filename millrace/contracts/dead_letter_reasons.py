# core
"""Every reason for which a message cannot be used, and every kind of warning, with its remedy.

::

    cannot be used ──► a dead letter with one of REASONS     millrace_dead_letters_total{reason}
    used, but it may not mean what its sender thinks ──► one of WARNINGS     millrace_profile_warnings_total{kind}

Dead letters, log lines, ``millrace data dead-letters`` and docs/reference/dead-letters.md all use these words. A
test checks that the code uses no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class DeadLetterReason(NamedTuple):
    """``means``: what is wrong with the message. ``mend``: what its sender can do."""

    means: str
    mend: str


REASONS: Mapping[str, DeadLetterReason] = {
    "malformed": DeadLetterReason(
        "The message is empty, is no JSON in UTF-8, or is nested deeper than 32 levels",
        "write JSON with a JSON library; Python's json.dumps writes NaN, which is none: pass allow_nan=False",
    ),
    "unknown-type": DeadLetterReason(
        "The event's `type` is none of exposure, click, collect, cart, purchase, order, refund",
        "correct `type`, or send other events elsewhere",
    ),
    "wrong-type": DeadLetterReason(
        "A field of the message is missing, or has a type or value that the message does not allow",
        "compare the message with its JSON Schema (docs/reference/schemas)",
    ),
    "oversized": DeadLetterReason(
        "The message has more than 256 KiB", "send pages of at most 1,000 items, and short attributes"
    ),
    "seconds": DeadLetterReason(
        "The event's time is before March 1973 while the event clock is not: it is in seconds",
        "multiply by 1000: ts_ms is in Unix milliseconds",
    ),
    "future": DeadLetterReason(
        "The event is dated more than an hour ahead of the event clock, or beyond what can be held",
        "date events by the event clock (MILLRACE_CLOCK) in Unix milliseconds",
    ),
    "late": DeadLetterReason(
        "The event came after its page was gone: attribution and lateness had passed",
        "send events soon after they happen, or raise MILLRACE_LATENESS_MINUTES",
    ),
    "wrong-partition": DeadLetterReason(
        "The message is about a user who belongs to another partition of its topic",
        "send events, page logs and users under the user's id as key, by Kafka's default partitioner (murmur2;"
        " librdkafka: partitioner=murmur2_random)",
    ),
    "wrong-user": DeadLetterReason(
        "The event names a page that was made for another user",
        "send with each event the user_id that its page was asked for",
    ),
    "no-page-log": DeadLetterReason(
        "The event is about a page of which no page log came",
        "take request_id from an answer of /recommend, and let the scorer log to the same broker",
    ),
    "no-exposure": DeadLetterReason(
        "The action is about a position without an exposure, or dated before it by more than MILLRACE_DISORDER_SECONDS",
        "send an exposure of what was seen before its actions, and date both by one clock",
    ),
    "wrong-item": DeadLetterReason(
        "At that position the page had another item, or it had no such position",
        "name each item's position as answered; name slots where items are shown in another order",
    ),
    "page-log-gone": DeadLetterReason(
        "The event came late for a page whose log the topic no longer holds",
        "keep the topic page_logs for longer than attribution and lateness together",
    ),
    "no-outcome": DeadLetterReason(
        "An order or a refund, while the schema has no [[outcome]] of an event",
        'declare it in the schema, as event = "purchase", or do not send such events',
    ),
    "no-click": DeadLetterReason(
        "The purchase belongs to no click of the user on the item that an [[outcome]] still waits for",
        "send clicks, and purchases within the outcome's time; those of other places are none of the page's",
    ),
    "no-purchase": DeadLetterReason(
        "The refund came, and no purchase of the item by the user that an [[outcome]] still waits for",
        "send purchases, under the ids that the pages have",
    ),
    "rows-gone": DeadLetterReason(
        "The features of the click that was bought from are gone or damaged",
        "keep the folder or bucket of the checkpoints whole",
    ),
    "bad-page-log": DeadLetterReason(
        "A page log cannot be read, or is of another schema",
        "give scorer and stream the same schema, and let nobody else write to page_logs",
    ),
    "bad-user": DeadLetterReason(
        "A user cannot be read, or a field of the schema cannot hold a value of it",
        "send the user again with the value corrected; the profile from before stays until then",
    ),
    "bad-item": DeadLetterReason(
        "An item cannot be read, a field of the schema cannot hold a value of it, or a change is of an unknown item",
        "send the item again with the value corrected; what was known of it stays until then",
    ),
    "bad-item-tiles": DeadLetterReason(
        "A message of features.items cannot be read", "let nobody but the stream write to features.items"
    ),
    "bad-samples": DeadLetterReason(
        "A message of samples cannot be read, or is of another schema",
        "give stream and learner the same schema, and let nobody else write to samples",
    ),
}
"""Reasons of dead letters."""

WARNINGS: Mapping[str, DeadLetterReason] = {
    "unknown-attribute": DeadLetterReason(
        "An attribute that the schema does not name: nothing reads it",
        "name it in [[fields]] or filters, or correct its name, or leave it out",
    ),
    "beyond-slots": DeadLetterReason(
        "A list with more values than its field has slots: the rest is left out",
        "raise the field's slots, or send the most important values first",
    ),
    "fraction": DeadLetterReason(
        "A number with a fraction in a categorical field: each different number is a category of its own",
        'give the field kind = "numeric"',
    ),
    "born-in-seconds": DeadLetterReason(
        "born_ms is before March 1973: it seems to be in seconds", "multiply by 1000: born_ms is in Unix milliseconds"
    ),
    "wrong-key": DeadLetterReason(
        "An item under another Kafka key than its id: a later message under that key replaces it in the topic",
        "send items under their id as key",
    ),
}
"""Kinds of warnings about users and items that are used."""
