# core
"""Samples that the stream made under another schema than the learner's, before or during a change of the schema.

A message of ``samples`` names its schema in a header, and the store knows the columns of each schema
(:mod:`millrace.contracts.schemabook`). So the learner learns them with the columns that both have.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from learner.samples.viewpoint import Viewpoint
from millrace.basics.errors import SchemaError
from millrace.contracts.carry import Carry
from millrace.contracts.samples import SCHEMA_HEADER, SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook

log = structlog.get_logger("learner")

_REMEDY = "give stream and learner one schema"


class FormerSamples:
    """Carries samples over to ``schema``. ``book`` is asked for each new schema. ``view``: of the learner."""

    def __init__(self, schema: Schema, book: SchemaBook, view: Viewpoint) -> None:
        self._schema, self._book, self._view = schema, book, view
        self._carries: dict[str, Carry | None] = {}

    def carried(self, batch: SampleBatch, headers: Iterable[tuple[str, bytes]] | None) -> SampleBatch:
        """The batch as the learner sees it, with the columns of ``schema``. Raises SchemaError where the message names
        a schema that is unknown, or has another shape, and StoreError where the store cannot be asked."""
        named = dict(headers or ()).get(SCHEMA_HEADER) or b""  # a header may be there without a value
        id = named.decode("ascii", "replace")
        if id not in ("", self._schema.id):
            batch = self._of_schema(id, batch)
        layout = self._schema.layout
        if (batch.cat.shape[1], batch.num.shape[1]) != (layout.F, layout.N):
            raise SchemaError(f"samples of {batch.cat.shape[1]} + {batch.num.shape[1]} features", _REMEDY)
        if batch.outcomes.shape[1] not in (0, len(self._schema.outcome)):
            raise SchemaError(f"samples of {batch.outcomes.shape[1]} outcomes", _REMEDY)
        return self._view.seen(batch)

    def _of_schema(self, id: str, batch: SampleBatch) -> SampleBatch:
        if id not in self._carries:
            self._carries[id] = self._find(id)
        carry = self._carries[id]
        if carry is None:
            raise SchemaError(f"samples of schema {id}, which the store does not know", _REMEDY)
        try:
            return carry.samples(batch)
        except ValueError as error:
            raise SchemaError(f"samples of schema {id}: {error}", _REMEDY) from None

    def _find(self, id: str) -> Carry | None:
        found = next((one for one in self._book.history() if one.id == id), None)
        if found is not None:
            log.warning("samples of another schema are carried over", schema=id, to=self._schema.id)
        return None if found is None else Carry(found, self._schema)
