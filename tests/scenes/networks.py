"""Small networks of every kind."""

from __future__ import annotations

from typing import Any

import torch

from learner.network.models import Shape, network_of
from learner.network.models.base import Network
from learner.network.models.spec import read_spec

SHAPE = Shape(((3, 4), (2, 3)), 5)
WIDTH, NUMBERS = SHAPE.flat, SHAPE.numbers
SPECS: dict[str, dict[str, Any]] = {
    "wide_deep": {"model": "wide_deep", "hidden": [24, 17]},
    "wide_deep-none": {"model": "wide_deep", "hidden": []},
    "wide_resnet": {"model": "wide_resnet"},
    "wide_resnet-pre": {"model": "wide_resnet", "placement": "pre"},
}
SPECS |= {
    f"{norm}-{placement}": {"model": "wide_resnet_bn", "norm": norm, "placement": placement}
    for norm in ("batch", "renorm", "none")
    for placement in ("post", "pre", "inner")
}


def network(spec: dict[str, Any], seed: int = 0) -> Network:
    full = read_spec({"numerics": "none", "hidden": [24], "momentum": 0.1, **spec})
    torch.manual_seed(seed)
    made = network_of(full.model)(SHAPE, full)
    with torch.no_grad():  # away from the start, where a mistake in gamma or beta would not show
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made
