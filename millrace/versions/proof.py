# core
"""The proof that scorers serve what was learnt: each snapshot plus the deltas after it is the next, bit for bit.

Retention keeps the deltas of the newest two snapshots, so their proof is always possible. Older snapshots serve a
rollback: a pair without its deltas is skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from millrace.basics.errors import SnapshotError, StoreError
from millrace.versions.image import split
from millrace.versions.modelstore import Announcement, ModelStore, chain
from millrace.versions.packing import unpack
from millrace.versions.versioning import Place


@dataclass(frozen=True, slots=True)
class Proof:
    """``base`` and its ``deltas`` equal the ``target``; ``heads`` of them carried the retrieval head."""

    base: Place
    target: Place
    deltas: int
    rows: int
    heads: int = 0


@dataclass(frozen=True, slots=True)
class Unproved:
    """The way from ``base`` to ``target`` cannot be proved: deltas are ``missing``, or a file is damaged."""

    base: Place
    target: Place
    missing: tuple[int, ...]
    why: str


@dataclass(slots=True)
class Findings:
    """What :func:`prove` found."""

    proofs: list[Proof] = field(default_factory=list)
    unproved: list[Unproved] = field(default_factory=list)


def prove(store: ModelStore, bodies: Mapping[Place, bytes]) -> Findings:
    """Proves what can be proved of the snapshots in a store. ``bodies``: of the deltas on the topic.

    Raises:
        SnapshotError: a chain does not end in its snapshot; the error names the tensor that differs.
        StoreError: the store cannot be read.
    """
    found, snapshots = Findings(), store.snapshots()[::-1]
    for base, target in pairwise(snapshots):
        if target.is_root or target.epoch != base.epoch:
            continue  # another learner, or the same one after a restart: nothing led from one to the other
        numbers = range(base.version + 1, target.version + 1)
        missing = tuple(n for n in numbers if Place(base.epoch, n) not in bodies)
        if missing and target is not snapshots[-1]:
            continue
        if missing:
            found.unproved.append(Unproved(base.place, target.place, missing, "are no longer there"))
            continue
        try:
            rows, heads = _follow(store, base, target, [bodies[Place(base.epoch, n)] for n in numbers])
        except StoreError as error:
            found.unproved.append(Unproved(base.place, target.place, (), error.problem))
            continue
        found.proofs.append(Proof(base.place, target.place, len(numbers), rows, heads))
    return found


def _follow(store: ModelStore, base: Announcement, target: Announcement, bodies: list[bytes]) -> tuple[int, int]:
    """Checks one pair. Returns the target's rows, and how many deltas carried the retrieval head."""
    state, own, heads = store.read(base), base.hash, 0
    for body in bodies:
        own = chain(own, hashlib.sha256(body).hexdigest())
        delta = unpack(body, state.dense)
        heads += bool(split(delta)[1].tables)
        state = state.apply(delta)
    differs = "hash" if own != target.hash else state.same_bits(store.read(target))
    if differs:
        raise SnapshotError(
            f"snapshot {base.version} plus deltas differs from snapshot {target.version} in '{differs}'",
            "do not serve from this store; start the learner with an empty one",
        )
    return sum(len(t.ids) for t in state.tables.values()), heads
