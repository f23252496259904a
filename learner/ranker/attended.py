# core
"""Fields that are pooled by attention: where a batch's queries, slots and ages are (learner/tables/attention.py).

::

    group "w16"   columns   item_id | ... | last_clicks 0 .. 15          the query is the item's own id, and the keys
    any group     columns   ... | last_clicks_age 0 .. 15                are rows of the same table
    network.ages  (A, 9)    a learnt number for each age, of each of the A fields
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.network.models import Network
from learner.ranker.inputs import Attended, Inputs
from learner.tables import attention
from learner.tables.table import BatchIds

Floats = NDArray[np.float32]
Places = NDArray[np.int32]


class Slopes(NamedTuple):
    """Of one field, in a batch of B rows: what learning takes from :func:`learner.tables.attention.slopes`."""

    share: Floats  # (B, L)
    slope: Floats  # (B, L)


def pool(inputs: Inputs, network: Network, blocks: Sequence[BatchIds], out: Floats) -> None:
    """Puts the pooled embeddings of all such fields into their columns of ``out`` (B, >= E)."""
    for field in inputs.attended:
        block = blocks[field.group]
        query, slots = _places(field, block)
        bias = _bias(field, network, blocks)
        attention.attend(block.embedding, field.width, query, slots, bias, out, field.at)


def backward(
    inputs: Inputs, network: Network, blocks: Sequence[BatchIds], group: int, grad: Floats, at: int
) -> tuple[Slopes, ...]:
    """What :func:`spread` needs of the fields of a ``group``, whose gradients are columns of ``grad`` from ``at`` on;
    writes the gradient of their ages to where the network's points."""
    found = []
    for field in (f for f in inputs.attended if f.group == group):
        block = blocks[group]
        query, slots = _places(field, block)
        share, slope = np.empty(slots.shape, np.float32), np.empty(slots.shape, np.float32)
        bias, place = _bias(field, network, blocks), at + field.at - inputs.spans[group][0]
        attention.slopes(block.embedding, field.width, query, slots, bias, grad, place, share, slope)
        assert network.ages.grad is not None
        ages: Floats = network.ages.grad.numpy()[field.number]
        ages[:] = np.bincount(_buckets(field, blocks).ravel(), slope.ravel(), len(ages) + 1)[1:]
        found.append(Slopes(share, slope))
    return tuple(found)


def spread(
    inputs: Inputs,
    group: int,
    block: BatchIds,
    slopes: Sequence[Slopes],
    grad: Floats,
    at: int,
    factor: np.float32,
    out: Floats,
) -> None:
    """Adds the gradients of a group's rows, times ``factor``, to ``out`` (U, D)."""
    for field, found in zip((f for f in inputs.attended if f.group == group), slopes, strict=True):
        query, slots = _places(field, block)
        place = at + field.at - inputs.spans[group][0]
        attention.spread(block.embedding, query, slots, *found, grad, place, factor, out)


def _places(field: Attended, block: BatchIds) -> tuple[Places, Places]:
    """Queries (B,) and slots (B, L) as places in the block's distinct ids."""
    first = field.first
    slots = np.ascontiguousarray(block.inverse[:, first : first + field.slots])
    return np.ascontiguousarray(block.inverse[:, field.query]), slots


def _buckets(field: Attended, blocks: Sequence[BatchIds]) -> NDArray[np.intp]:
    """The bucket of each slot's age, from 1; 0: none. (B, L)"""
    block, (first, last) = blocks[field.age_group], field.age_columns
    known = np.append(field.bucket(block.ids), 0)  # EMPTY, -1, is the last one
    found: NDArray[np.intp] = known[block.inverse[:, first:last]]
    return found


def _bias(field: Attended, network: Network, blocks: Sequence[BatchIds]) -> Floats:
    return field.bias(network.ages.detach().numpy(), _buckets(field, blocks))
