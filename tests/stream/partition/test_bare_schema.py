"""A schema without numbers and without windows: three lines a field, as a shop begins. It is joined like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from millrace.basics.hashing import value_hash
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from stream.partition.partition import Partition
from tests.scenes.schemas import named, of_item, of_user
from tests.scenes.stream_world import POLICY, Log, action, exposure, page_log

T0 = 1_700_000_000_000


BARE = named("bare") + of_user("user_id") + of_item("item_id")
NUMBERS = named("numbers") + of_user("age:numeric")


@pytest.mark.parametrize("schema", [parse_schema(BARE), parse_schema(NUMBERS)], ids=lambda schema: schema.name)
def test_samples_of_a_schema_without_numbers_or_without_categories(schema: Schema) -> None:
    layout, items = schema.layout, [11, 12, 13]
    arrays: dict[str, Any] = {
        "schema_id": schema.id,
        "keys": b"",
        "cat": np.array([[value_hash(i)] * layout.F for i in items], np.uint64).astype("<u8").tobytes(),
        "num": np.full((len(items), layout.N), 2.5, "<f4").tobytes(),
    }
    log, partition = Log(), Partition(0, schema, POLICY)
    messages = log.page_logs(page_log("p", T0, items, **arrays))
    messages += log.events(exposure("p", T0, items), action("click", "p", T0 + 1000, 1, 12))
    late = log.events(exposure("q", T0 + 10 * POLICY.attribution_ms, items))
    batches = [
        partition.take(messages, T0 + 2000).samples,
        partition.take(late, T0 + 10 * POLICY.attribution_ms).samples,
    ]
    whole = SampleBatch.concat([batch for batch in batches if batch is not None])
    assert len(whole) == len(items)
    assert (whole.cat.shape, whole.num.shape) == ((len(items), layout.F), (len(items), layout.N))
    assert sorted(whole.position[whole.label == 1].tolist()) == [1]
    sent = SampleBatch.from_bytes(whole.to_bytes())
    assert (sent.cat.shape, sent.num.shape) == (whole.cat.shape, whole.num.shape)
