# core
"""The archive's schema file: the live schema, with a ``[log]`` for its exposures. Pure.

::

    name, utc_offset, ... │ [windows] │ [log] time, user, item, label, ... │ [[fields]] ...

``[[join]]`` is left out, since attributes are in the rows; columns of outcomes are not in them. :attr:`Schema.id` is
the live one's, so a model that learnt from the archive fits the loop.
"""

from __future__ import annotations

import msgspec

from millrace.contracts.events import ACTIONS
from millrace.contracts.logforms import LogColumns
from millrace.contracts.schema import Schema
from stream.archive.archive_columns import TIMES, ArchiveColumns


def schema_text(schema: Schema, attribution_minutes: float) -> str:
    columns = ArchiveColumns(schema)
    own = columns.own
    log = LogColumns(
        time=own["time_ms"],
        user=columns.user,
        item=columns.item,
        label=own["label"],
        identity=(own["request_id"], own["position"], columns.user),  # two users' pages may have one name
        request=own["request_id"],
        position=own["slot"],
        action_times={action: own[name] for action, name in zip(ACTIONS[1:], TIMES, strict=True)},
        attribution_minutes=attribution_minutes,
        events="../events",
    )
    outcomes = [msgspec.structs.replace(one, column=one.column and "") for one in schema.outcome]
    return (
        "# Made by `millrace run archive` of the schema of the loop. It changes with the first file that has it.\n"
        + msgspec.structs.replace(schema, log=log, join=(), outcome=tuple(outcomes)).text
    )
