# core
"""Models that are compared: their settings, and the inputs that they take."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from millrace.commands.offline.dataset import SCALED, Dataset

ORIGINAL = ("logistic", "wide_deep", "pnn_inner", "pnn_outer", "pnn_group", "deepfm", "wide_resnet", "wide_resnet_bn")
DEFAULT = "default"

INPUTS = ("raw", "scaled")
OWN: Final = "own"
"""Inputs by the schema's own transforms, as in a live loop."""
KINDS = (*INPUTS, OWN)


def spec_of(model: str | type[Any]) -> dict[str, Any]:
    """The settings of a compared model.

    The original's models take their numbers unscaled and without a guard: they learn even a batch that harms them, as
    in the original. Its "batch norm" is that of Ioffe and Szegedy after each residual unit's addition. ``default`` is
    what Millrace starts with. A user's own model has no counterpart in the original, and runs as in ``replay`` and the
    learner.
    """
    if model == DEFAULT:
        return {}
    if settings_of(model) == "default":
        return {"model": model}
    plain = {"numerics": "none", "norm": "batch", "placement": "post", "momentum": 0.1, "averaging": 0.0}
    unguarded = {"max_loss": 1e30, "max_gradient": 1e30, "loss_ratio": 0.0}
    return {"model": model} | plain | unguarded


def settings_of(model: str | type[Any]) -> str:
    """Whose settings :func:`spec_of` gives a model: "original" or "default"."""
    return "original" if model in ORIGINAL else "default"


def input_of(data: Dataset, kind: str, name: Literal["num", "frozen", "day_old"] = "num") -> NDArray[np.float32] | None:
    """One of a dataset's inputs (n, N) in the kind that a model takes; None where the dataset lacks it. A schema's
    transforms are the model's own work, so "own" are the plain numbers too; :data:`SCALED` names the scaled ones."""
    plain: NDArray[np.float32] | None = getattr(data, name)
    if plain is None or kind != "scaled":
        return plain
    mapped: NDArray[np.float32] = np.load(data.folder / SCALED[name], mmap_mode="r")
    return mapped
