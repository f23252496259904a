# core
"""The page of dead letters and warnings, made from :mod:`millrace.contracts.dead_letter_reasons`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS, DeadLetterReason

_HEAD = """# Dead letters

`millrace dev reference --out docs/` makes this page from `millrace/contracts/dead_letter_reasons.py`; do not edit it.

A message that cannot be used becomes a *dead letter*: a message on the topic `dead-letters` with the reason, a line of
detail, its place (topic, partition, offset) and the message itself. Dead letters are kept for 30 days.

```console
$ millrace data dead-letters --last 1
dead letters  exposures  reason
          12          0  bad-item: An item cannot be read, or a field of the schema cannot hold a value of it
           3         60  no-page-log: The event is about a page of which no page log came

bad-item  items, partition 0, offset 511
  bad-value: price '12,50' is no number
  {"item_id": "vase", "attributes": {"category": "home", "price": "12,50"}}
  mend: send the item again with the value corrected; what was known of it stays until then
```

- `exposures` were lost with the message. Those of `malformed`, `wrong-type` and `oversized` cannot be counted.
- A place identifies a dead letter, which may be written twice. Messages are whole up to 256 KiB, in base64 (`raw`).
- `millrace_dead_letters_total{reason}` counts them. The log has one line a minute for each reason at most.
- Send a corrected message again the way it came. An event must come while its page lives.
- `bad-page-log`, `bad-item-tiles` and `bad-samples` mean that roles have different schemas or versions.

Duplicates are no dead letters, nor are messages that the intake refused, and lost page logs.

## Reasons

"""
_WARNINGS = """
## Warnings

The message is used, but may not mean what its sender thinks. `millrace_profile_warnings_total{kind}` counts these, and
the log has one line an hour for each kind at most.

"""


def page() -> str:
    """The page as Markdown."""
    return f"{_HEAD}{_table('reason', REASONS)}{_WARNINGS}{_table('kind', WARNINGS)}"


def _table(name: str, reasons: Mapping[str, DeadLetterReason]) -> str:
    rows = "".join(f"| `{word}` | {reason.means} | {reason.mend} |\n" for word, reason in reasons.items())
    return f"| {name} | what is wrong | remedy |\n|---|---|---|\n{rows}"
