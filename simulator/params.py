# core
"""The parameters of worlds, fixed before any model is compared; ``docs/internals/simulator.md`` gives the reasons.

Effects are in log-odds of "a click, given that the shopper looks".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from millrace.basics.durations import HOUR_MS

UTC_OFFSET_MS = 8 * HOUR_MS
D = 8  # dimensions of taste
PAGE = 20  # items a page of the shop: about four screens of a telephone


@dataclass(frozen=True, slots=True)
class Params:
    # People
    daily_share: float = 1 / 3  # of the population that comes on a day
    business_share: float = 0.7
    regions: int = 8
    # How much they look: some only pass the feed; the exposures a day of the others are log-normal
    exposures: float = 57.5  # mean of all: 230,000 exposures / 4,000 users
    passing: float = 0.35  # share of user-days
    passing_exposures: float = 5.0  # mean, geometric: a screen or two
    depth_user: float = 0.7  # deviation between users of the log of exposures
    depth_day: float = 0.6  # and between days of one user
    depth_most: int = 600  # the feed ends there
    page_sizes: tuple[int, int] = (PAGE, PAGE)  # items a page, from the least to the most, log-uniform
    view_least: int = 1  # items of a page that are looked through at least
    # Catalogue
    parents: int = 12
    categories: int = 60
    shops: int = 400
    births: int = 160  # new items a day
    life_days: float = 30.0  # median
    life_spread: float = 0.7
    life_least: int = 3
    life_most: int = 120
    # What makes a click
    click_rate: float = 0.1  # mean over the previous recommender's pages; the intercept is solved for it
    propensity: float = 0.6  # deviation between users
    mood: float = 0.6  # and between days of one user
    quality: float = 0.4  # between items
    shop_quality: float = 0.25  # between shops
    fad: float = 0.35  # mean height of an item's fashion
    stale: float = 0.4  # lost over an item's life
    season: float = 0.25  # deviation of a category's season
    taste: float = 0.7  # of the inner product of two unit-variance vectors
    price: float = 0.12  # lost a squared unit of distance from one's price level
    bulk_business: float = 0.15  # gained a natural log of the minimum order
    bulk_consumer: float = -0.25
    mission: float = 1.0  # gained in the category of the shopper's errand
    mission_parent: float = 0.4  # gained elsewhere under the same parent
    fresh: float = 0.0  # gained by an item that is born now
    fresh_hours: float = 6.0  # and halved in such a time
    tire: float = 0.0  # lost a natural log of 1 + the pages' worth of items seen before in the session
    crowd: float = 0.0  # lost a natural log of the page's items over those of a page of the shop
    filler_share: float = 0.0  # of new items that are filler
    filler_loss: float = 0.0  # lost by filler
    # Where the variance of taste comes from (sums to 1)
    segment_part: float = 0.35
    personal_part: float = 0.35
    drift_part: float = 0.30
    parent_part: float = 0.3
    category_part: float = 0.4
    item_part: float = 0.3
    # Looking: the chance that position k is looked at, (1 + k / look_half) ** -look_power
    look_half: float = 6.0
    look_power: float = 0.35
    # Times
    glance_ms: float = 1500.0  # an item, scrolling
    click_median_ms: float = 9000.0
    click_spread: float = 1.1
    cart_median_ms: float = 60_000.0
    cart_spread: float = 1.0
    purchase_median_ms: float = 420_000.0
    purchase_spread: float = 1.0
    horizon_ms: int = 2 * HOUR_MS  # actions later than this after the exposure are not attributed to it
    # After a click: business, consumer
    collect_rate: tuple[float, float] = (0.10, 0.08)
    cart_rate: tuple[float, float] = (0.16, 0.10)
    purchase_rate: tuple[float, float] = (0.40, 0.30)  # of those in the cart
    # Orders, which come later (simulator/late_orders.py)
    order_rate: float = 0.0  # of clicks, at mean liking, purse and price; 0: there are none
    order_item: float = 0.8  # deviation between items, of log-odds
    order_user: float = 0.6  # between users
    order_dear: float = 0.5  # lost a unit of price above one's level
    order_median_ms: float = 24.0 * HOUR_MS
    order_spread: float = 1.8
    return_rate: float = 0.1  # of orders
    # The previous recommender: shares of a page
    page_popular: float = 0.4
    page_preferred: float = 0.4  # the rest is random
    page_filler: float = 0.0  # before all that, share of filler on pages longer than those of the shop


DEFAULT = Params()

FEED = replace(
    DEFAULT,
    exposures=80.0,
    page_sizes=(5, 100),
    view_least=5,
    births=800,
    life_days=1.5,
    life_spread=0.4,
    life_least=1,
    life_most=5,
    fad=0.0,
    stale=0.0,
    fresh=2.0,
    tire=0.4,
)
"""News and posts: items age in hours, users tire, a page is the 5 to 100 items that came into view."""

CONFOUNDED = replace(FEED, crowd=1.0, filler_share=0.05, filler_loss=1.5, page_filler=0.5)
"""A feed whose long pages hold items that are shown often and clicked rarely. Who looks through a page picks about one
item, however long it is (``crowd``). Half of a long page is of a few items that few like. So an item's counts say more
about the pages it stood on than about itself."""

ORDERS = replace(DEFAULT, order_rate=0.08, purchase_rate=(0.0, 0.0))
"""The shop, where goods are ordered within 30 days of the click in place of some minutes, and some are returned."""

WORLDS: Mapping[str, Params] = {"shop": DEFAULT, "feed": FEED, "confounded": CONFOUNDED, "orders": ORDERS}
