# core
"""The base of all models: a dense network over the values from the sparse tables. One registry of all models.

logit = wide (sum of the wide weights of all ids, by FTRL; the tables') + dense(embeddings, numbers) (the network's)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from learner.network.models.delays import SIZE
from learner.network.models.norm import InputNorm, make_norm
from learner.network.models.spec import Spec
from millrace.basics.errors import SettingError
from millrace.windows.lastactions import AGE_BUCKETS


@dataclass(frozen=True, slots=True)
class Shape:
    """The inputs of a network. ``groups``: (F, D) of each embedding width, widest first; N ``numbers``; and how many
    numbers come as ``buckets`` instead (they are among the fields of ``groups``)."""

    groups: tuple[tuple[int, int], ...]
    numbers: int
    buckets: int = 0
    attended: int = 0  # fields that are pooled by attention (learner/tables/attention.py)

    @property
    def flat(self) -> int:
        return sum(f * d for f, d in self.groups) + self.numbers


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a network's inputs, so that another network with other inputs can take over what it learnt.
    Snapshots keep them. ``fields``: names of each group's fields, in the order of ``Shape.groups``."""

    fields: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    numbers: tuple[str, ...]
    buckets: tuple[str, ...]  # numbers that come as fields
    wide: tuple[str, ...] = ()  # fields and crosses ("a*b") with wide weights only
    attended: tuple[str, ...] = ()  # fields that are pooled by attention
    outcomes: tuple[str, ...] = ()  # predicted beside the click

    @property
    def flat(self) -> list[str]:
        groups = zip(self.fields, self.widths, strict=True)
        return [f"{f}[{d}]" for names, width in groups for f in names for d in range(width)] + list(self.numbers)

    @property
    def pairs(self) -> list[str]:
        """A name for each pair of fields of one group, group by group, in the order of InnerProducts."""
        return [pair(a, b) for names in self.fields for i, a in enumerate(names) for b in names[i + 1 :]]

    @property
    def shape(self) -> Shape:
        groups = tuple((len(names), width) for names, width in zip(self.fields, self.widths, strict=True))
        return Shape(groups, len(self.numbers), len(self.buckets), len(self.attended))


def pair(a: str, b: str) -> str:
    """The name of a product of two fields, independent of their order."""
    return " x ".join(sorted((a, b)))


Axes = dict[str, tuple[list[str] | None, ...]]
"""By tensor: the names of the places along each axis; None marks an axis that does not depend on the inputs."""


class Network(nn.Module):
    """Base of all dense parts. ``forward(embeddings, numbers)`` takes one (B, F, D) tensor for each width of
    ``shape.groups`` and the scaled numbers (B, N). It returns the dense part's logits (B,). In training mode its
    normalisation uses and updates statistics. In evaluation mode it must not write anything."""

    delays: Tensor  # (SIZE,) weights of the model of click delays (delays.py); set and published as edges are
    ages: nn.Parameter  # (attended, A) a number for each age of a last action, used where embeddings are pooled
    edges: Tensor  # (C, Q - 1) where quantile buckets end; infinite: not known yet. The learner sets and publishes it

    name: ClassVar[str]
    deep: ClassVar[bool] = True  # False: fields have wide weights only
    own_widths: ClassVar[bool] = True  # False: all fields must have one embedding width

    def __init__(self, shape: Shape, spec: Spec) -> None:
        super().__init__()
        self.shape = shape
        scale = shape.numbers and spec.numerics != "none"
        self.scale = InputNorm(shape.numbers, spec.momentum) if scale else nn.Identity()
        self.register_buffer("delays", torch.zeros(SIZE))
        if shape.attended:
            self.ages = nn.Parameter(torch.zeros(shape.attended, AGE_BUCKETS))
        if shape.buckets:
            self.register_buffer("edges", torch.full((shape.buckets, spec.buckets - 1), torch.inf))

    @property
    def heads(self) -> dict[str, Head]:
        """By outcome, in the schema's order. They are no part of ``forward``."""
        found = self._modules.get("outcomes")
        return {} if found is None else {name: head for name, head in found.named_children() if isinstance(head, Head)}

    def axes(self, columns: Columns) -> Axes:
        """Names along the axes of the tensors whose extent depends on the inputs. A model adds its own."""
        found: Axes = {}
        if isinstance(self.scale, InputNorm):
            found |= {"scale.mean": (list(columns.numbers),), "scale.var": (list(columns.numbers),)}
        if columns.buckets:
            found["edges"] = (list(columns.buckets), None)
        if columns.attended:
            found["ages"] = (list(columns.attended), None)
        for name, head in self.heads.items():
            found |= {f"outcomes.{name}.body.{n}": axes for n, axes in head.body.axes(columns).items()}
        return found

    def known_as(self, columns: Columns) -> dict[str, str]:
        """Lasting names of tensors whose own name depends on their place: another network may place them elsewhere."""
        return {}

    def flat(self, embeddings: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """All inputs side by side. (B, sum F D + N)"""
        parts = [e.flatten(1) for e in embeddings]
        if self.shape.numbers:
            parts.append(self.scale(numbers))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Deep(nn.Module):
    """Plain hidden layers and a logit: ``a_{l+1} = ReLU(W_l a_l + b_l)``, ``logit = w a_L + b``. (B, I) -> (B,)"""

    def __init__(self, inputs: int, spec: Spec, norm: str = "none") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for hidden in spec.hidden:
            layers += [nn.Linear(inputs, hidden)]
            if norm != "none":
                layers += [make_norm(norm, hidden, spec.momentum)]
            layers += [nn.ReLU(inplace=True)]
            inputs = hidden
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(inputs, 1)

    def axes(self, inputs: list[str]) -> Axes:
        """Names along the axes of the layer that sees the inputs, for a ``deep_part``."""
        return {f"deep_part.{'layers.0' if len(self.layers) else 'out'}.weight": (None, inputs)}

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.out(self.layers(x))
        return logit.squeeze(1)


class Head(nn.Module):
    """The network of an outcome, ``z = base + lift t + body(embeddings, numbers) + wide`` (learner/ranker has more).

    ``seen`` (2,): known labels, and those that were 1. They begin as ten with one, so that ``base``, the logit of their
    share, is known before anything is learnt.
    """

    seen: Tensor

    def __init__(self, body: Network) -> None:
        super().__init__()
        self.body = body
        self.lift = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.tensor([10.0, 1.0]))

    @property
    def base(self) -> float:
        known, ones = self.seen.tolist()
        return math.log(ones / (known - ones)) if 0 < ones < known else 0.0


REGISTRY: dict[str, type[Network]] = {}

N = TypeVar("N", bound=type[Network])


def register(name: str) -> Callable[[N], N]:
    def enter(network: N) -> N:
        network.name = name
        REGISTRY[name] = network
        return network

    return enter


def network_of(name: str) -> type[Network]:
    """The registered network called ``name``. Raises SettingError where there is none."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise SettingError(f"unknown model '{name}'", f"use one of {', '.join(sorted(REGISTRY))}") from None
