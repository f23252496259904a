# core
"""What a model is, as settings: JSON-able, validated, complete. It travels with every version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from millrace.basics.errors import SettingError

Rate = Annotated[float, Meta(gt=0, le=10)]
NonNegative = Annotated[float, Meta(ge=0)]
Width = Annotated[int, Meta(ge=1, le=1024)]


class Spec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Defaults are those of Wide&ResNet without norm (docs/internals/learner.md gives the reasons)."""

    model: str = "wide_resnet"

    # the network
    width: Annotated[int, Meta(ge=1, le=256)] = 16  # of embeddings, where a field names no width of its own
    blocks: Annotated[int, Meta(ge=1, le=16)] = 2  # residual units
    hidden: tuple[Width, ...] = (128, 128)  # layers of a plain deep part; [0] is the inner width of a residual unit
    norm: Literal["batch", "renorm", "layer", "none"] = "renorm"  # of wide_resnet_bn
    placement: Literal["post", "pre", "inner"] = "inner"  # of the norm; see learner/network/models/wide_resnet.py
    momentum: Annotated[float, Meta(gt=0, le=1)] = 0.01  # of running statistics, after their start
    numerics: Literal["squash", "norm", "none"] = "squash"  # what the input layer does to numbers
    buckets: Annotated[int, Meta(ge=2, le=1000)] = 10  # quantile buckets of a number with the transform "bucket"
    bucket_width: Annotated[int, Meta(ge=1, le=256)] = 4  # of their embeddings, where the field names no width

    # the optimisers
    dense: Literal["adam", "adagrad"] = "adam"
    dense_rate: Rate = 0.001
    step_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = (
        128  # behind a step of the network; see learner/network/dense.py
    )
    products: Literal["float32", "bfloat16"] = "float32"  # of matrices, in training; see learner/network/backward.py
    averaging: Annotated[float, Meta(ge=0, lt=1)] = 0.98  # of the weights that serve; 0: the newest serve
    embedding_rate: Rate = 0.05
    embedding_scale: NonNegative = 0.05
    ftrl_alpha: Rate = 0.01
    ftrl_beta: NonNegative = 1.0
    ftrl_l1: NonNegative = 0.01
    ftrl_l2: NonNegative = 0.0

    # which samples are learnt from; see learner/ranker/sampling.py
    negative_keep: Annotated[float, Meta(gt=0, le=1)] = 1.0  # share of the negatives; predictions are corrected for it
    settled_minutes: NonNegative = 5.0  # after so long an exposure's clicks have come: the attribution window
    page_weight: NonNegative = 0.0  # of the loss within pages beside log loss; see learner/ranker/within_page.py

    # the tables
    max_rows: Annotated[int, Meta(ge=1, le=2_000_000_000)] = 4_000_000  # of each table: bounds the memory
    max_age_days: NonNegative = 60.0  # of event time without a sample; 0: for ever
    admit: Annotated[int, Meta(ge=1, le=255)] = 1  # occurrences that earn an id a row

    # the retrieval head; see learner/retrieval/retrieval.py
    retrieval_width: Annotated[int, Meta(ge=0, le=32)] = 0  # of its vectors, the bias with them; 0: there is no head
    retrieval_rate: Rate = 0.07  # of its rows
    retrieval_alpha: Rate = 0.7  # of the items' biases
    retrieval_negatives: Annotated[int, Meta(ge=2, le=16_384)] = 1024  # drawn for each micro-batch of 128 clicks

    # the guard
    max_loss: Annotated[float, Meta(gt=0)] = 20.0  # a batch whose mean loss is beyond it is refused
    loss_ratio: NonNegative = 10.0  # the same beyond so many times what is usual; 0: off. See learner/ranker/guard.py
    max_gradient: Annotated[float, Meta(gt=0)] = 1000.0  # the same for the norm of the dense gradient


def read_spec(values: Mapping[str, Any]) -> Spec:
    """A complete spec from some of its values. Raises SettingError for an unknown name or an unusable value."""
    try:
        return msgspec.convert(dict(values), Spec)
    except msgspec.ValidationError as error:
        raise SettingError(f"model spec: {error}", "correct it; docs/internals/learner.md lists the entries") from None
