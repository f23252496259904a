# core
"""What the versions of a model that serves share (:class:`ModelForm`), and the dense side of one (:class:`Dense`).

A version's dense tensors lie one behind another in one float32 buffer, and its network is made of views of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.network.backward import Workspace
from learner.network.dense import tensors_of
from learner.network.forward import Arithmetic, PageColumns, PageForward, forward_of, has_forward
from learner.network.models import Network
from learner.network.models.norm import BOUND, EPSILON, InputNorm
from learner.network.models.spec import read_spec
from learner.ranker.inputs import TableColumns
from learner.ranker.model import build
from learner.ranker.outcome_heads import HeadInference, heads_of
from learner.ranker.step import Inference
from learner.tables.table import as_read
from millrace.contracts.schema import Schema
from millrace.versions.image import below
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import page_wide

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]
"""Arrays by flat names, passed from a writer to readers."""


@dataclass(frozen=True, slots=True)
class NumberPlan:
    """How numbers get into the network's input, so that their producer can write them there directly::

        own[:, p]     = clip((squash(v) - mean_j) * factor_j, -bound, bound)   v = num[:, columns[j]], 0 if not finite
        squash(v)     = copysign(log1p(|v|), v) where log_j, else v            p = place[j]
        same[-1 - p]  = that of one row, where p < 0: all rows have it

    P numbers are fed; ``num`` is (n, N); own and same are a :class:`~learner.network.forward.PageInput`'s.
    """

    columns: NDArray[np.int32]  # (P,)
    log: Flags  # (P,)
    mean: Floats  # (P,)
    factor: Floats  # (P,)
    bound: np.float32
    place: NDArray[np.int32]  # (P,)


@dataclass(frozen=True, slots=True)
class PagePass:
    """How a page goes through one network of a version, the click's or an outcome's: all of one form. Its logits are
    ``base + lift t`` and the network's, with the click's logits t, whose own ``lift`` is 0."""

    name: str  # that of its tables begins so
    network: Network
    forward: PageForward
    numbers: NumberPlan
    base: float
    lift: np.float32


class ModelForm:
    """What all versions of a model share: its inputs, its network without values, and each thread's working memory."""

    def __init__(self, schema: Schema, spec: Mapping[str, Any]) -> None:
        self.schema, self.spec = schema, read_spec(spec)
        self.inputs, self.network = build(schema, self.spec, 0)
        self.widths = {head + g.name: g.table_width for head in ("", *self.inputs.heads) for g in self.inputs.groups}
        """Of each table."""
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.network.eval()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(self.network).items()}
        self.size = sum(map(prod, self.shapes.values()))
        self.paged = has_forward(self.network) and not len(self.inputs.bucket_columns)
        self.own = threading.local()
        wide = page_wide(FeatureBuilder(schema))
        at = np.zeros(self.network.shape.flat, np.bool_)  # (I,) whether a column of the network is page-wide
        self.once = []
        for (start, end), group in zip(self.inputs.spans, self.inputs.groups, strict=True):
            self.once.append(self._once(group, wide.cat))
            if group.width and self.paged:
                at[start:end] = np.repeat(wide.cat[group.columns[group.starts[:-1]]], group.width)
        for field in self.inputs.attended:
            at[field.at : field.at + field.width] = False  # each item sees others of the user's last actions
        if self.paged:
            at[self.inputs.deep_columns :] = wide.num[self.inputs.plain_columns]
        self.columns = PageColumns.of(at)
        self.place = self.columns.place
        crosses = self.inputs.crosses
        most = max((len(columns) for _, columns in crosses), default=0)
        self.crossed = np.full((len(crosses), most), -1, np.int32)  # (X, most) columns of each cross
        for x, (_, columns) in enumerate(crosses):
            self.crossed[x, : len(columns)] = columns
        self.seeds = np.array([seed for seed, _ in crosses], np.uint64)  # (X,)

    def _once(self, group: TableColumns, wide: Flags) -> Flags:
        """Whether each id column of a group's table, crosses included, has one id on a page. (C,)"""
        own = group.columns < len(wide)  # others are buckets
        once = np.zeros(len(own), np.bool_)
        once[own] = wide[group.columns[own]]
        crosses = [] if group.width else [bool(wide[list(columns)].all()) for _, columns in self.inputs.crosses]
        return np.concatenate([once, np.array(crosses, np.bool_)])

    def serves(self, schema: Schema, spec: Mapping[str, Any]) -> bool:
        """Whether this is the form of models with this schema and spec."""
        return self.schema.id == schema.id and self.spec == read_spec(spec)

    def bodies(self, network: Network) -> dict[str, Network]:
        """The networks of a version by how the names of their tables begin: the click's, then those of outcomes."""
        heads = zip(self.inputs.heads, network.heads.values(), strict=True)
        return {"": network, **{name: head.body for name, head in heads}}

    @property
    def room(self) -> Workspace:
        """The working memory of this thread."""
        room: Workspace | None = getattr(self.own, "room", None)
        if room is None:
            room = self.own.room = Workspace()
        return room

    def named(self, flat: Floats) -> dict[str, Floats]:
        found, at = {}, 0
        for name, shape in self.shapes.items():
            size = prod(shape)
            found[name] = flat[at : at + size].reshape(shape)
            at += size
        return found


class Dense:
    """The dense side of one version: a buffer of all tensors, and what is derived from it."""

    def __init__(self, form: ModelForm, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.form, self.flat = form, arrays["dense"]
        tensors = {name: torch.from_numpy(array) for name, array in form.named(self.flat).items()}
        self.network = with_tensors(form.network, tensors)
        self.passes = list(self._passes(arrays))
        """The click's first; empty where none is written out."""
        forward = self.passes[0].forward if self.passes else None
        self.arithmetic: Arithmetic = "float32" if forward is None else forward.arithmetic
        exact = self.arithmetic == "float32"
        self.inference = Inference(form.inputs, self.network, form.own, None if exact else forward)
        self._heads: list[HeadInference] | None = None

    @property
    def heads(self) -> list[HeadInference]:
        """Of the schema's outcomes; made when they are first asked for."""
        if self._heads is None:
            self._heads = heads_of(self.form.inputs, self.network)
        return self._heads

    def _passes(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[PagePass]:
        heads = [(head.base, np.float32(head.lift.item())) for head in self.network.heads.values()]
        bases = [(self.form.inputs.prior_logit, np.float32(0)), *heads]
        for (name, network), base in zip(self.form.bodies(self.network).items(), bases, strict=True):
            forward = forward_of(network, self.form.columns, below(name, arrays) if name else arrays)
            if forward is not None:
                yield PagePass(name, network, forward, self._numbers(network), *base)

    def _numbers(self, network: Network) -> NumberPlan:
        inputs, scale = self.form.inputs, network.scale
        count = inputs.numbers
        log = np.zeros(count, np.bool_)
        log[inputs.log_columns] = True
        mean: Floats = np.zeros(count, np.float32)
        factor: Floats = np.ones(count, np.float32)
        bound = np.float32(np.inf)
        if isinstance(scale, InputNorm):
            mean = scale.mean.numpy()
            factor = np.reciprocal(np.sqrt(scale.var.numpy() + np.float32(EPSILON)))
            bound = np.float32(BOUND)
        columns = inputs.plain_columns.astype(np.int32)
        place = as_read(self.form.place[inputs.deep_columns :])
        return NumberPlan(columns, log, as_read(mean), as_read(factor), bound, place)


def with_tensors(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """A network of the same form with other tensors, which are not copied. Cheap: nothing is initialised."""

    def again(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
        made = module.__class__.__new__(module.__class__)
        made.__dict__ = dict(module.__dict__)
        made._parameters = {
            name: None if p is None else torch.nn.Parameter(tensors[prefix + name], requires_grad=False)
            for name, p in module._parameters.items()
        }
        made._buffers = {name: None if b is None else tensors[prefix + name] for name, b in module._buffers.items()}
        made._modules = {
            name: None if m is None else again(m, f"{prefix}{name}.") for name, m in module._modules.items()
        }
        return made

    made: Any = again(network, "")
    found: Network = made
    return found
