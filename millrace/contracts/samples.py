# core
"""The one type that flows: a columnar batch of labelled exposures.

::

    request   ["r1",    "r2"]            distinct pages of the batch, (R,)
    page      [ 0, 0, 0,  1, 1 ]         index into request, (B,)
    position  [ 0, 1, 2,  0, 1 ]         slot on the page   -> (request[page], position) is the sample's id
    kind      [ N, P, N,  P, C ]         negative, positive, correction (a click after its negative), ...
    outcomes  [[1 nan], ...]             (B, K) of the schema's outcomes, NaN = not known yet, or not defined
    telling   [ 0, 0, 0,  0, 0 ]         of outcomes that are told by age: its number, from 1 (labels/tellings.py)
    cat       [[.. F ids ..], ...]       (B, F) int64 feature ids, 0 = missing
    num       [[.. N numbers ..], ...]   (B, N) float32 raw statistics

The label join makes it, or replay makes it from a log; the learner learns from it, and reports read it. All columns
have the length B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics.errors import SchemaError
from millrace.contracts.events import ARMS, LAST_MS, MAX_ITEMS, MAX_OFFSET
from millrace.contracts.pagepack import Ids, Numbers, Rates, pack_ids, pack_numbers, unpack_ids, unpack_numbers

NEGATIVE, POSITIVE, CORRECTION, FOLLOW_UP, PAGE, OUTCOME = 0, 1, 2, 3, 4, 5
"""Kinds of sample. The first three label an exposure. ``FOLLOW_UP`` carries a later collect, cart or purchase of an
exposure already labelled. ``PAGE`` has such an exposure again, with its final label, to be compared with the others of
its page. ``OUTCOME`` has it again with outcomes that became known since. Each outcome of an exposure is told one time,
with a label if it is known by then, else so; or, under a policy of its own, by age: ``telling`` is above 0 then, and
``policy`` that of the outcomes."""

KIND_NAMES = ("negative", "positive", "correction", "follow_up", "page", "outcome")
"""By kind, as figures call them."""

POLICIES = ("wait", "equal-wait", "fake-negative-weighted", "es-dfm", "prompt")
"""Label policies by code. A sample says under which its label was promised, since its weight depends on that."""

SCHEMA_HEADER = "schema"
"""Name of the Kafka header of a message of ``samples``: the id of the schema whose columns it has."""

MAX_POSITION = MAX_OFFSET + MAX_ITEMS
_FORM = 5

_DTYPES: dict[str, str] = {
    "page": "<i4",
    "position": "<i4",
    "user": "<u8",
    "item": "<u8",
    "ts_ms": "<i8",
    "kind": "u1",
    "label": "<f4",
    "weight": "<f4",
    "actions": "u1",
    "cat": "<i8",
    "num": "<f4",
    "score": "<f4",
    "version": "<i8",
    "arm": "u1",
    "origin_ms": "<i8",
    "policy": "u1",
    "user_missing": "u1",
    "partition": "<u2",
    "arm_name": "<u8",
    "odds": "<f4",
    "outcomes": "<f4",
    "telling": "u1",
}
_MAYBE = ("arm_name", "odds")
"""Columns that a message may lack: nothing is said of them then."""
_PLAIN = {name: dtype for name, dtype in _DTYPES.items() if name not in ("cat", "num", "outcomes", "telling")}
_STEPS = ("page", "position")


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Labelled exposures, column by column. B rows, F categorical and N numeric features, K outcomes or none."""

    request: tuple[str, ...]
    page: NDArray[np.int32]  # (B,)
    position: NDArray[np.int32]  # (B,)
    user: NDArray[np.uint64]  # (B,) value hashes of the ids
    item: NDArray[np.uint64]  # (B,)
    ts_ms: NDArray[np.int64]  # (B,) time of the exposure
    kind: NDArray[np.uint8]  # (B,)
    label: NDArray[np.float32]  # (B,) 1 clicked, 0 not
    weight: NDArray[np.float32]  # (B,)
    actions: NDArray[np.uint8]  # (B,) bit k: action kind k (see events.ACTIONS) is known
    cat: NDArray[np.int64]  # (B, F)
    num: NDArray[np.float32]  # (B, N)
    score: NDArray[np.float32]  # (B,) probability served with, NaN when none was
    version: NDArray[np.int64]  # (B,) model version that made the page, -1 when none did
    arm: NDArray[np.uint8]  # (B,) index into events.ARMS
    origin_ms: NDArray[np.int64]  # (B,) wall time at which the labelling action was sent, 0 when none was
    policy: NDArray[np.uint8]  # (B,) code of the label policy (millrace/labels)
    user_missing: NDArray[np.uint8]  # (B,) bits of events.PROFILE_MISSING, WINDOWS_MISSING, NOT_READ; 0: all was there
    partition: NDArray[np.uint16]  # (B,) of the stream's input that the row came from
    arm_name: NDArray[np.uint64]  # (B,) value hash of the name of the page's arm; 0: not said
    odds: NDArray[np.float32]  # (B,) of the item in its slot (millrace.evidence.exploration); 0: not said
    outcomes: NDArray[np.float32]  # (B, K)
    telling: NDArray[np.uint8]  # (B,) 0: told one time

    @classmethod
    def of_rows(
        cls,
        kind: NDArray[np.uint8],
        ts_ms: NDArray[np.int64],
        cat: NDArray[np.int64],
        num: NDArray[np.float32],
        request: tuple[str, ...] = ("",),
        **columns: NDArray[Any],
    ) -> SampleBatch:
        """Rows with these kinds, times and features. By default they lie on the one page ``request``, without scores
        and actions, each with weight 1."""
        n = len(kind)
        own: dict[str, NDArray[Any]] = {name: np.zeros((n,), _DTYPES[name]) for name in _DTYPES}
        own |= {"kind": kind, "ts_ms": ts_ms, "cat": cat, "num": num, "label": (kind != NEGATIVE).astype(np.float32)}
        own |= {"weight": np.ones(n, np.float32), "score": np.full(n, np.nan, np.float32), "version": np.full(n, -1)}
        own |= {"outcomes": np.empty((n, 0), np.float32)}
        return cls(request, **{**own, **columns})

    def __len__(self) -> int:
        return len(self.label)

    @property
    def labelled(self) -> SampleBatch:
        """The batch without exposures that were sent again (``PAGE``, ``OUTCOME``)."""
        again = self.kind >= PAGE
        return self.take(~again) if again.any() else self

    @property
    def told(self) -> NDArray[np.uint64]:
        """Which outcomes each row tells. (B,) bit k: outcome k"""
        bits = np.uint64(1) << np.arange(self.outcomes.shape[1], dtype=np.uint64)
        found: NDArray[np.uint64] = (np.isfinite(self.outcomes) * bits).sum(axis=1, dtype=np.uint64)
        return found

    def ids(self) -> Iterator[tuple[str, int]]:
        """The samples' identities, in order: ``(request_id, position)``."""
        for page, position in zip(self.page.tolist(), self.position.tolist(), strict=True):
            yield self.request[page], position

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> SampleBatch:
        """A batch of the chosen ``rows`` (indices, mask or slice); ``request`` stays whole."""
        return SampleBatch(self.request, *(getattr(self, name)[rows] for name in _DTYPES))

    @classmethod
    def concat(cls, batches: Sequence[SampleBatch]) -> SampleBatch:
        """The batches one after another. At least one is needed (the feature widths come from it)."""
        if len(batches) == 1:
            return batches[0]
        request: list[str] = []
        pages = []
        for batch in batches:
            pages.append(batch.page + np.int32(len(request)))
            request.extend(batch.request)
        told = max(b.outcomes.shape[1] for b in batches)
        batches = [b if b.outcomes.shape[1] == told else b.telling_none(told) for b in batches]
        rest = (np.concatenate([getattr(b, name) for b in batches]) for name in _DTYPES if name != "page")
        return cls(tuple(request), np.concatenate(pages), *rest)

    def telling_none(self, outcomes: int) -> SampleBatch:
        """The batch with so many ``outcomes``, none of which is known."""
        return replace(self, outcomes=np.full((len(self), outcomes), np.nan, np.float32))

    def to_bytes(self, rates: Rates | None = None, says_arms: bool = True) -> bytes:
        """The MessagePack form: the request ids and each column's packed array. A column that is equal on all of each
        page is written once a page, ``cat`` and ``num`` as :mod:`millrace.contracts.pagepack` says.

        Args:
            rates: :meth:`Rates.of` the schema; None: rates are written as numbers.
            says_arms: with ``arm_name`` and ``odds``, where one is known. Without them a message is shorter.
        """
        said = says_arms and any(getattr(self, name).any() for name in _MAYBE)
        used, first, page = np.unique(self.page, return_index=True, return_inverse=True)
        columns, once = [], 0
        for c, (name, dtype) in enumerate(_PLAIN.items()):
            if name in _MAYBE and not said:
                continue
            column = np.ascontiguousarray(page if name == "page" else getattr(self, name), dtype)
            if name in _STEPS:
                column = np.diff(column, prepend=column.dtype.type(0))  # mostly 0 and 1
            elif _same(column, first, page):
                once |= 1 << c
                column = column[first]
            columns.append(memoryview(column.tobytes()))
        cat, num = pack_ids(self.cat, first, page), pack_numbers(self.num, first, page, rates)
        request = [self.request[i] for i in used.tolist()]
        known = np.ascontiguousarray(self.outcomes, "<f4").tobytes()
        plain = (_FORM, request, once, columns, cat, num)
        if self.telling.any():
            return msgspec.msgpack.encode(_ByAge(*plain, memoryview(known), memoryview(self.telling.tobytes())))
        return msgspec.msgpack.encode(_Telling(*plain, memoryview(known)) if known else _Message(*plain))

    @classmethod
    def from_bytes(cls, raw: bytes | None) -> SampleBatch:
        """The inverse of :meth:`to_bytes`; the arrays are read-only. Raises SchemaError for other bytes or None."""
        raw = raw or b""
        try:
            request, arrays = _read(raw)
            rows = len(arrays["label"])
            if any(len(a) != rows for a in arrays.values()):
                raise ValueError("columns of unequal length")
            _check(arrays, _bounds(len(request)))
        except (msgspec.MsgspecError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise SchemaError(
                f"a message of {len(raw)} bytes is not a sample batch ({error})",
                "run one version of stream and learner",
            ) from None
        return cls(tuple(request), **arrays)


class _Message(Struct, frozen=True, array_like=True):
    form: int
    request: list[str]
    once: int  # bit c: of column c (R,) values stand in the place of (B,)
    columns: list[
        memoryview
    ]  # in the order of _PLAIN, with or without _MAYBE; of page and position, the steps from row to row
    cat: Ids
    num: Numbers


class _Telling(_Message, frozen=True, array_like=True):
    outcomes: memoryview = memoryview(b"")  # absent where none is told


class _ByAge(_Telling, frozen=True, array_like=True):
    telling: memoryview = memoryview(b"")  # absent where all are told one time


def _read(raw: bytes) -> tuple[list[str], dict[str, NDArray[Any]]]:
    found = _decoder.decode(raw)
    if found.form != _FORM:
        raise ValueError(f"form {found.form}")
    if len(found.columns) not in (len(_PLAIN), len(_PLAIN) - len(_MAYBE)):
        raise ValueError(f"{len(found.columns)} columns")
    arrays = {n: np.frombuffer(column, _PLAIN[n]) for n, column in zip(_PLAIN, found.columns, strict=False)}
    for name in _STEPS:
        arrays[name] = np.cumsum(arrays[name], dtype=np.int32)
    page, pages = arrays["page"], len(found.request)
    _check(arrays, _bounds(pages)[:1])  # before it is used as an index
    page = page.astype(np.int64)
    for c, name in enumerate(_PLAIN):
        if name not in arrays:
            arrays[name] = np.zeros(len(page), _PLAIN[name])
            continue
        if not found.once >> c & 1 or name in _STEPS:
            continue
        if len(arrays[name]) != pages:
            raise ValueError(f"'{name}' has {len(arrays[name])} values for {pages} pages")
        arrays[name] = arrays[name][page]
    arrays["cat"] = unpack_ids(found.cat, pages, page).view(np.int64)
    arrays["num"] = unpack_numbers(found.num, pages, page)
    rows = len(page)
    told = np.frombuffer(found.outcomes, _DTYPES["outcomes"])
    if len(told) % max(1, rows):
        raise ValueError(f"{len(told)} outcomes of {rows} rows")
    arrays["outcomes"] = told.reshape(rows, len(told) // max(1, rows))
    arrays["telling"] = np.frombuffer(found.telling, np.uint8) if found.telling else np.zeros(rows, np.uint8)
    for array in arrays.values():
        array.flags.writeable = False
    return found.request, {name: arrays[name] for name in _DTYPES}


def _same(column: NDArray[Any], first: NDArray[np.intp], page: NDArray[np.intp]) -> bool:
    bits = column.view(f"u{column.itemsize}")
    return bool((bits == bits[first][page]).all())


def _check(arrays: dict[str, NDArray[Any]], bounds: tuple[tuple[str, int, int], ...]) -> None:
    for name, low, high in bounds:
        values = arrays[name]
        if len(values) and not low <= values.min() <= values.max() <= high:
            raise ValueError(f"a '{name}' outside of {low} to {high}")


def _bounds(requests: int) -> tuple[tuple[str, int, int], ...]:
    """Columns that index, shift or tell the time, each with the bounds that its values must keep."""
    return (
        ("page", 0, requests - 1),
        ("position", 0, MAX_POSITION),
        ("kind", 0, OUTCOME),
        ("ts_ms", 1, LAST_MS),
        ("arm", 0, len(ARMS) - 1),
        ("policy", 0, len(POLICIES) - 1),
    )


_decoder = msgspec.msgpack.Decoder(_ByAge)
assert tuple(_DTYPES) == tuple(f.name for f in fields(SampleBatch))[1:]
