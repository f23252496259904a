# core
"""The shop's users: attributes, frequency of visits, taste and its drift.

Everything is a function of the seed, and for changes of the local day, never of the items shown. Interests drift as a
stationary Gaussian process, a sum of cosines with random frequencies (random Fourier features, Rahimi and Recht 2007),
so a day is computed without the days before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.events import User
from simulator.dice import F64, even_normal, even_uniform, generator, uniform
from simulator.params import D, Params

I64 = NDArray[np.int64]
WAVES = 3
AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("f", "m")
HOUSEHOLDS = ("single", "couple", "family")


@dataclass(frozen=True)
class Shoppers:
    """N users, arrays by index. An absent attribute has the code -1."""

    seed: int
    business: NDArray[np.bool_]  # (N,)
    seller: I64  # (N,) 0, 1; -1 for consumers
    region: I64  # (N,)
    age: I64  # (N,) -1 for business buyers, as are gender and household
    gender: I64
    household: I64
    daily: F64  # (N,) chance of coming on a day
    depth: F64  # (N,) deviate of how much one looks
    propensity: F64  # (N,) deviate of how readily one clicks
    price_level: F64  # (N,) preferred price, in deviations from the category's usual one
    settled: F64  # (N, D) taste that stays
    wave: F64  # (N, WAVES, D, 2) frequency in radians a day, phase
    mission_days: I64  # (N,) how long an errand lasts
    mission_shift: I64  # (N,)

    @property
    def n(self) -> int:
        return len(self.business)

    def drift(self, day: int) -> F64:
        """The drifting part of taste on a local day. (N, D), unit variance over time"""
        angle = self.wave[..., 0] * day + self.wave[..., 1]
        out: F64 = np.sqrt(2.0 / WAVES) * np.cos(angle).sum(axis=1)
        return out

    def mission(self, day: int, preference: F64) -> I64:
        """The category of each user's errand on a day, drawn by the cumulative ``preference`` (N, C). (N,)"""
        errand = (day + self.mission_shift) // self.mission_days
        throw = uniform(self.seed, "mission", np.arange(self.n), errand)
        out: I64 = (preference < throw[:, None]).sum(axis=1)
        return out

    def user(self, index: int) -> User:
        """The user as a message of the ``users`` topic. Absent attributes are left out, not null."""
        if self.business[index]:
            attributes: dict[str, str | int | float | bool | list[str | int | float] | None] = {
                "kind": "business",
                "seller": bool(self.seller[index]),
                "region": f"r{self.region[index]}",
            }
        else:
            attributes = {
                "kind": "consumer",
                "region": f"r{self.region[index]}",
                "age_band": AGES[self.age[index]],
                "gender": GENDERS[self.gender[index]],
                "household": HOUSEHOLDS[self.household[index]],
            }
        return User(index + 1, attributes)


def make_shoppers(seed: int, daily_users: int, p: Params) -> Shoppers:
    """A population of which ``daily_users`` come on an average day."""
    n = max(1, round(daily_users / p.daily_share))
    rng = generator(seed, "shoppers")
    business = even_uniform(rng, n) < p.business_share
    none = np.full(n, -1)
    seller = np.where(business, (rng.random(n) < 0.4).astype(np.int64), none)
    region = rng.choice(p.regions, n, p=_falling(p.regions))
    age = np.where(business, none, rng.choice(len(AGES), n, p=(0.2, 0.35, 0.25, 0.13, 0.07)))
    gender = np.where(business, none, rng.choice(len(GENDERS), n, p=(0.6, 0.4)))
    household = np.where(business, none, rng.choice(len(HOUSEHOLDS), n, p=(0.35, 0.25, 0.4)))

    # A segment's taste is the sum of a vector for each attribute value, scaled to unit variance.
    parts = [(business.astype(np.int64), 2, 0.8), (region, p.regions, 0.3)]
    parts += [(seller, 2, 0.5), (age, len(AGES), 0.5), (gender, 2, 0.6), (household, len(HOUSEHOLDS), 0.4)]
    segment = np.zeros((n, D))
    for code, count, weight in parts:
        vectors = rng.standard_normal((count, D)) * weight
        segment += np.where(code[:, None] >= 0, vectors[code], 0.0)
    segment -= segment.mean(axis=0)
    segment /= np.sqrt((segment**2).mean()) or 1.0
    settled = np.sqrt(p.segment_part) * segment + np.sqrt(p.personal_part) * rng.standard_normal((n, D))

    period_days = np.exp(rng.uniform(np.log(15), np.log(90), (n, WAVES, D)))
    wave = np.stack([2 * np.pi / period_days, rng.uniform(0, 2 * np.pi, (n, WAVES, D))], axis=-1)
    return Shoppers(
        seed=seed,
        business=business,
        seller=seller,
        region=region,
        age=age,
        gender=gender,
        household=household,
        # Beta(1, 2): mean a third, most come seldom, a few daily; its inverse distribution is closed.
        daily=(1.0 - np.sqrt(1.0 - even_uniform(rng, n))) * (p.daily_share * 3.0),
        depth=even_normal(rng, n),
        propensity=even_normal(rng, n),
        price_level=np.where(business, -0.5, 0.3) + 0.8 * even_normal(rng, n),
        settled=settled,
        wave=wave,
        mission_days=rng.integers(1, 8, n),
        mission_shift=rng.integers(0, 1000, n),
    )


def _falling(n: int) -> F64:
    weight = 1.0 / np.arange(1, n + 1)
    out: F64 = weight / weight.sum()
    return out
