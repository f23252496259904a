# core
"""The label policies by name and by code.

===========================  ===========================  ===========================  =======================
policy                       a click                      an exposure without one      weights
===========================  ===========================  ===========================  =======================
``wait``                     at once                      when attribution has passed  1
``equal-wait``               when attribution has passed  when attribution has passed  1
``fake-negative-weighted``   at once, as a correction     at once                      Ktena et al. 2019
``es-dfm``                   after the observation        after the observation        Yang et al. 2021
``prompt``                   at once                      after the observation        derived in prompt.py
===========================  ===========================  ===========================  =======================

A click after its exposure was learnt as a negative is a correction, under every policy. The stream keeps a policy's
:class:`~millrace.labels.policy.Promise` with each exposure, and each sample names its policy. So one setting of the
stream decides for the learner too, and pending exposures keep their promise when the setting changes.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from millrace.contracts.samples import POLICIES
from millrace.labels.equal_wait import EqualWait
from millrace.labels.es_dfm import EsDfm
from millrace.labels.fake_negative import FakeNegativeWeighted
from millrace.labels.policy import LabelPolicy
from millrace.labels.prompt import Prompt
from millrace.labels.wait import Wait

REGISTRY = MappingProxyType({p.name: p for p in (Wait(), EqualWait(), FakeNegativeWeighted(), EsDfm(), Prompt())})

WITH_EXPOSURE = REGISTRY["equal-wait"].code
"""The policy that samples name whose label came with the exposure, as in a log: a page's come together, and are final.
"""

_BY_CODE = tuple(REGISTRY[name] for name in POLICIES)
_WEIGHING = np.array([p.weighs for p in _BY_CODE])
_ASKING = np.array([p.asks for p in _BY_CODE])
_FINAL = np.array([p.final for p in _BY_CODE])


def policy_named(name: str) -> LabelPolicy:
    """The policy of that name. Raises SettingError for an unknown name."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise SettingError(f"label policy '{name}'", f"choose one of {', '.join(REGISTRY)}") from None


def weighs(policy: NDArray[np.uint8]) -> bool:
    """Whether a sample of these policies (codes, (B,)) may weigh other than 1."""
    return bool(_WEIGHING[policy].any())


def asks(policy: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which samples of these policies (codes) have weights that depend on the delays of clicks. (B,)"""
    asking: NDArray[np.bool_] = _ASKING[policy]
    return asking


def final(policy: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which exposures of these policies (codes) get their first labels with their whole page, and final ones. (B,)"""
    found: NDArray[np.bool_] = _FINAL[policy]
    return found


def weigh(
    policy: NDArray[np.uint8], kind: NDArray[np.uint8], p: NDArray[np.float32], early: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weights of samples with these policies (codes) and kinds; see
    :meth:`~millrace.labels.policy.LabelPolicy.weights`. (B,)"""
    out = np.ones(len(kind), np.float32)
    for code in np.unique(policy).tolist():
        mine = policy == code
        out[mine] = _BY_CODE[code].weights(kind[mine], p[mine], early[mine])
    return out
