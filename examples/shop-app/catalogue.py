# core
"""The products of a made-up shop: a name, a category, a price and a colour each, the same ones every time."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from millrace_client import Item

CATEGORIES = {
    "mugs": (6, 30),
    "lamps": (20, 160),
    "chairs": (40, 400),
    "shoes": (25, 180),
    "plants": (5, 60),
    "books": (8, 45),
    "clocks": (15, 120),
    "bags": (15, 140),
}
"""Category -> its lowest and its highest price, in euros."""
COLOURS = {
    "Brick": "#b4472f",
    "Ochre": "#c98a1b",
    "Moss": "#5f7a3a",
    "Teal": "#1f7a78",
    "Ink": "#2f4b7c",
    "Plum": "#7d3c6b",
    "Sand": "#b79b74",
    "Slate": "#56616b",
}
STYLES = ("small", "tall", "plain", "striped", "round", "slim", "wide", "classic", "second-hand", "everyday")


@dataclass(frozen=True, slots=True)
class Product:
    """One thing that the shop sells. Title and colour are the shop's own; Millrace gets the rest."""

    item_id: str
    title: str
    category: str
    price: float
    colour: str
    in_stock: bool

    @property
    def item(self) -> Item:
        """As it is sent to Millrace: the attributes that schema.toml names."""
        return Item(self.item_id, {"category": self.category, "price": self.price, "in_stock": self.in_stock})


def make(n: int = 120, seed: int = 0) -> dict[str, Product]:
    """``n`` things by id, evenly over the categories, every twelfth sold out."""
    dice = Random(seed)  # noqa: S311 - products, not secrets
    products = {}
    for number in range(n):
        category = list(CATEGORIES)[number % len(CATEGORIES)]
        low, high = CATEGORIES[category]
        colour = dice.choice(list(COLOURS))
        price = round(low * (high / low) ** dice.random()) - 0.05
        title = f"{colour} {category.removesuffix('s')}, {dice.choice(STYLES)}"
        products[f"g{number}"] = Product(f"g{number}", title, category, price, COLOURS[colour], dice.randrange(12) > 0)
    return products
