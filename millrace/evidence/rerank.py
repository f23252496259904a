# core
"""What a shop may move on a page: weights, boosts, diversity and pins. :mod:`scorer.page.reranking` does it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

PAGE_LIMIT = 600
"""Items of an answer, or of a ranked list."""
MOST_FACTOR, MOST_DIVERSITY = 1000.0, 10.0
MOST_BOOSTS, MOST_PINS = 1000, 100
MOST_WEIGHT = 1e9


class Rerank(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """In the settings, of an arm, or of a request. None: as the arm has it, or the settings; they: nothing.

    ``diversity``: logits that an item loses which is just like a better one of the page. ``boosts``: by attribute and
    value, factors of the odds p / (1 - p) of a click. ``pins``: the slot of each pinned item. ``weights``: what a click
    and each outcome of the schema is worth; items are ordered by what they are worth then, in place of their score.
    """

    diversity: float | None = None
    boosts: dict[str, dict[str, float]] | None = None
    pins: dict[str, int] | None = None
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a number out of its range, two items on one slot, or too many."""
        if self.diversity is not None and not 0 <= self.diversity <= MOST_DIVERSITY:
            raise ValueError(f"diversity {self.diversity:g} is none; give logits from 0 to {MOST_DIVERSITY:g}")
        boosts, pins = self.boosts or {}, self.pins or {}
        for name, factors in boosts.items():
            for value, factor in factors.items():
                if not 1 / MOST_FACTOR <= factor <= MOST_FACTOR:  # NaN too
                    remedy = f"give a factor from {1 / MOST_FACTOR:g} to {MOST_FACTOR:g}; 'not' keeps items off a page"
                    raise ValueError(f"the boost {factor:g} of {name[:40]} '{value[:40]}' is none; {remedy}")
        for name, weight in (self.weights or {}).items():
            if not 0 <= weight <= MOST_WEIGHT:
                raise ValueError(f"the weight {weight:g} of '{name[:40]}' is none; give one from 0 to {MOST_WEIGHT:g}")
        if self.weights and not any(self.weights.values()):
            raise ValueError("all weights are 0, so nothing is worth anything; leave them out to order by clicks")
        of_slot: dict[int, str] = {}
        for item, slot in pins.items():
            if not 0 <= slot < PAGE_LIMIT:
                raise ValueError(f"item '{item[:40]}' is pinned to slot {slot}; give one from 0 to {PAGE_LIMIT - 1}")
            if slot in of_slot:
                raise ValueError(f"slot {slot} has two pins, '{of_slot[slot][:40]}' and '{item[:40]}'; leave one out")
            of_slot[slot] = item
        for what, many, most in (
            ("boosts", sum(map(len, boosts.values())), MOST_BOOSTS),
            ("pins", len(pins), MOST_PINS),
        ):
            if many > most:
                raise ValueError(f"{many} {what} are too many; give at most {most}")

    def over(self, other: Rerank) -> Rerank:
        """This where it says something, else the other."""
        own = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return replace(other, **own) if own else other
