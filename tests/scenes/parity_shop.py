"""A shop whose exposures pass through stream and scorer, so that both say which features a page had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from millrace.contracts.events import Item, to_msgpack
from millrace.contracts.online_layout import RECENT, window_field
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.schema import Schema, parse_schema
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable
from scorer.page.rank import Ranked, Ranker
from scorer.users.userrecord import KnownUser
from stream.join.join import InputMessage
from stream.partition.partition import Partition
from tests.scenes.schemas import named, of_context, of_item, of_user, table, windows_of
from tests.scenes.stream_world import HOUR, POLICY, T0, Log

FIELDS = (
    named("both kinds")
    + of_user("user_id")
    + of_item("item_id", "price:numeric")
    + of_context("bid:numeric")
    + windows_of(
        "item_id",
        "user_id item_id",
        days=[1, 7, 30],
        half_lives=[0.5, 7],
        actions=("exposure", "click", "purchase"),
        means=({"of": "price", "step": 0.01}, {"of": "bid", "step": 1, "action": "exposure"}),
        parent=("item_id",),
    )
)
EXPOSURE_AGE = of_item("exposure_age_days:numeric")
BUCKETS = of_item("exposure_age_days:numeric", transform="bucket")
LAST = of_user("last_clicks", "last_clicks_age", slots=16) + of_user("last_purchases", slots=3)
"""What a user did last; of FIELDS, which count clicks and purchases."""

LOG = table(
    "[log]",
    time="at",
    user="user_id",
    item="item_id",
    label="label",
    action_times={"click": "click_at", "purchase": "purchase_at"},
    attribution_minutes=30,
)
DAYS = "days = [1, 7, 30]\nhalf_lives = [0.5, 7]\n"
SHORT = 'lengths = ["15min", "1h", "6h", "1d", "7d"]\nhalf_lives = ["30min", 7]\n'
SHORT_FIELDS = FIELDS.replace(DAYS, SHORT)
SCHEMA = parse_schema(FIELDS + LOG)
SCHEMAS = {
    "days": SCHEMA,
    "short": parse_schema(SHORT_FIELDS + LOG),
    "exposure age": parse_schema(FIELDS + EXPOSURE_AGE + LOG),
    "short exposure age": parse_schema(SHORT_FIELDS + EXPOSURE_AGE + LOG),
    "age in 5 minutes": parse_schema('age = "5min"\n' + SHORT_FIELDS + BUCKETS + LOG),
    "last actions": parse_schema(FIELDS + LAST + LOG),
}
VALUES = [0.0, 0.004, 3.5, -2.0, 99_999.0, float("nan"), float("inf"), 1e12]


def rich(message: InputMessage, schema: Schema) -> InputMessage:
    """A page log with the columns of one of this module's schemas, and numbers of all kinds."""
    try:
        served = decode_page_log(message.raw)
    except ValueError:
        return message
    n = len(served.items)
    num = np.resize(np.array(VALUES, "<f4"), (n, schema.layout.N))
    raw = to_msgpack(msgspec.structs.replace(served, schema_id=schema.id, num=num.tobytes()))
    return message._replace(raw=raw)


class Chance:
    """A model that scores anything alike."""

    def score(self, cat: Any, num: Any) -> Any:
        return np.full(len(cat), 0.5, np.float32)


class Shop:
    """Two partitions, an index and users' records; one page an exposure, ranked before anything of it is known."""

    def __init__(self, items: list[Item], schema: Schema) -> None:
        self.builder = FeatureBuilder(schema)
        self.index = ItemIndex(self.builder)
        self.index.put([self.index.prepare(i) for i in items])
        self.items = ItemTable(self.builder)
        self.ranker = Ranker(self.builder, self.items)
        self.partitions = [Partition(p, schema, POLICY) for p in range(2)]
        self.records: dict[str, dict[bytes, bytes]] = {}
        self.log = Log()

    def rank(self, user: int, item: str, ts_ms: int, bid: float | None, recalled: Sequence[str] = ()) -> Ranked:
        """``recalled``: the items that numbers are compared with; default: the item alone."""
        known = KnownUser.of(self.builder, user, self.records.get(str(user), {}))
        self.items.follow(lambda: self.index.changes(ts_ms))
        rows, among = self.items.rows_of([item]), None
        if recalled:
            among = self.ranker.set_of(known, self.items.rows_of(recalled), ts_ms, {"bid": bid})
        return self.ranker.rank(known, rows, ts_ms, {"bid": bid}, Chance(), among=among)

    def take(self, user: int, message: InputMessage) -> None:
        self.partitions[user % 2].take([message], T0 + 100_000 * HOUR)

    def publish(self) -> None:
        for p, partition in enumerate(self.partitions):
            changes = partition.changes()
            for user, lists in changes.users:
                record = self.records.setdefault(str(user), {})
                record |= {window_field(key): blob for key, blob in lists if blob}
            for user, recent in changes.recents:
                self.records.setdefault(str(user), {})[RECENT] = recent
            self.index.put_tiles(p, changes.item_keys, changes.item_tiles)
