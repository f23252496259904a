"""Live against replay: the archive of a small loop is compared with itself replayed, and each cause is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.archive.folder import Folder
from millrace.archive.forget import forget
from millrace.archive.logged import arrays
from millrace.archive.pages import Waits
from millrace.archive.rows import Archive, Record
from millrace.archive.schemafile import schema_text
from millrace.contracts.errors import LogError
from millrace.contracts.events import Impression, Item, to_json, to_msgpack
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from millrace.proofs.archived import read_archive
from millrace.proofs.causes import Cause, Compared, by_cause, compare
from millrace.proofs.lag import Near, held, own_newest, taken
from millrace.proofs.parity import verify_parity
from tests.stream_world import HOUR, MINUTE, POLICY, T0, event
from tests.test_stream_parity import FIELDS, Shop

SCHEMA = parse_schema(FIELDS)
WAITS = Waits(POLICY.attribution_ms, POLICY.disorder_ms, POLICY.lateness_ms)
NO_LAG = 1


@dataclass
class Loop:
    """A loop with two partitions, an index and an archive; its event clock is the wall's.

    Args:
        publish_ms: how often counts are published.
        late_share: of clicks that lead to a purchase after the attribution window.
        wait_ms: from the page to its exposure.
    """

    folder: Path
    publish_ms: int = NO_LAG
    late_share: float = 0.0
    wait_ms: int = 0

    def run(self, n: int = 160, seed: int = 1, features: bool = True) -> Path:
        rng = np.random.default_rng(seed)
        items = [Item(f"i{i}", {"price": 3.0 * i}, T0) for i in range(5)]
        shop, archive = Shop(items, SCHEMA), Archive(SCHEMA, WAITS, 100_000 * HOUR, 1, features)
        offsets: Counter[str] = Counter()

        def tell(topic: str, raw: bytes, user: int = -1) -> None:
            archive.take(Record(topic, 0, offsets[topic], b"", raw, T0))
            offsets[topic] += 1
            if user >= 0:
                shop.take(user, shop.log(topic, raw))

        for one in items:
            tell("items", to_json(one))
        todo: list[tuple[int, int, Any]] = []
        at = T0 + 100 * 24 * HOUR
        for page in range(n):
            at += int(rng.choice([MINUTE // 2, 3 * MINUTE, 50 * MINUTE]))
            todo.append((at, 0, page))
        published_ms = 0
        while todo:
            todo.sort(key=lambda one: one[:2])
            now_ms, _, what = todo.pop(0)
            if isinstance(what, bytes):
                tell("events", what, self._user(what))
                continue
            user, item = int(rng.integers(3)), int(rng.integers(5))
            if now_ms - published_ms >= self.publish_ms:
                shop.publish()
                published_ms = now_ms
            got, name = shop.rank(user, f"i{item}", now_ms, None), f"p{what}"
            features_of = {"keys": got.keys.astype("<u8"), "cat": got.cat.astype("<i8"), "num": got.num.astype("<f4")}
            packed: dict[str, Any] = {key: array.tobytes() for key, array in features_of.items()}
            page_log = Impression(
                name, now_ms, user, "model", 1, SCHEMA.id, [f"i{item}"], bytes(4), **packed, served_ms=now_ms
            )
            tell("impressions", to_msgpack(page_log), user)
            shown_ms = now_ms + self.wait_ms
            about: dict[str, Any] = {"user_id": user}
            raw = event("exposure", name, shown_ms, items=[f"i{item}"], offset=0, sent_ms=shown_ms, **about)
            todo.append((shown_ms, 1, raw))
            if rng.random() < 0.5:
                about |= {"item_id": f"i{item}"}
                click_ms = shown_ms + MINUTE // 4
                todo.append((click_ms, 2, self._action("click", name, click_ms, about)))
                if rng.random() < self.late_share:
                    bought_ms = shown_ms + POLICY.attribution_ms + 5 * MINUTE
                    todo.append((bought_ms, 3, self._action("purchase", name, bought_ms, about)))
        archive.advance(0, at + 100 * HOUR)
        cut, folder = archive.cut(), Folder(self.folder / "archive")
        folder.write({"events": cut.events, "exposures": cut.exposures, "features": cut.features}, cut.state)
        folder.put_schema(schema_text(SCHEMA, POLICY.attribution_ms / MINUTE))
        folder.close()
        return self.folder / "archive"

    @staticmethod
    def _action(kind: str, name: str, ts_ms: int, about: dict[str, Any]) -> bytes:
        return event(kind, name, ts_ms, position=0, sent_ms=ts_ms, **about)

    @staticmethod
    def _user(raw: bytes) -> int:
        return int(raw.split(b'"user_id":')[1][:1])


def compared(archive: Path) -> Compared:
    return compare(read_archive(archive))


def test_a_loop_without_lag_is_replayed_to_the_bit(tmp_path: Path) -> None:
    found = compared(Loop(tmp_path).run())
    assert by_cause(found) == {}
    assert len(found.num) == 160
    assert np.count_nonzero(found.num[:, SCHEMA.layout.window_start :]) > 2000


def test_features_that_were_read_at_the_pages_time_are_explained(tmp_path: Path) -> None:
    """Exposures come half a minute after their pages: some pages are followed by others before they are seen."""
    found = compared(Loop(tmp_path, wait_ms=40_000).run())
    assert set(by_cause(found)) == {Cause.PAGE_TIME}


def test_actions_after_the_attribution_window_are_explained(tmp_path: Path) -> None:
    found = compared(Loop(tmp_path, late_share=1.0).run())
    assert set(by_cause(found)) == {Cause.LATE}
    names = [SCHEMA.layout.num_names[c] for c in np.flatnonzero(found.num_cause.any(axis=0))]
    assert all("purchase" in name for name in names)


def test_feed_lag_is_explained_and_no_longer_than_it_was(tmp_path: Path) -> None:
    found = compared(Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5).run())
    causes = by_cause(found)
    assert causes[Cause.FEED_LAG] > 500
    assert set(causes) <= {Cause.FEED_LAG, Cause.LATE, Cause.MISSING}
    assert 0 < max(found.lags_ms["item"]) <= 5 * MINUTE


def plant(archive: Path, row: int, column: int, by: float) -> tuple[str, str]:
    """Changes one number of one logged row; (its name, the request)."""
    (file,) = (archive / "features").glob("*.parquet")
    table = pq.read_table(file)
    _, num = arrays(table, SCHEMA)
    num = num.copy()
    num[row, column] += np.float32(by)
    changed = pa.array([one.tobytes() for one in num], table["num"].type)
    pq.write_table(table.set_column(table.column_names.index("num"), "num", changed), file)
    return SCHEMA.layout.num_names[column], table["request_id"][row].as_py()


@pytest.mark.parametrize("name", ["item_id.click.7d", "user_id*item_id.purchase_rate.h7d", "price"])
def test_a_planted_change_of_one_feature_is_named(tmp_path: Path, name: str) -> None:
    archive = Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5, wait_ms=20_000).run()
    column = SCHEMA.layout.num_names.index(name)
    planted, request = plant(archive, 120, column, 0.25)
    report = verify_parity(tmp_path, Settings(), tmp_path / "out", progress=False)
    assert [(one["feature"], one["values"], one["request_id"]) for one in report["unexplained"]] == [
        (planted, 1, request)
    ]
    assert report["unexplained_samples"] == 1
    assert (tmp_path / "out" / "parity.json").exists()


def test_shares_rise_from_cause_to_cause(tmp_path: Path) -> None:
    Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5, wait_ms=20_000).run()
    report = verify_parity(tmp_path, Settings(), progress=False)
    shares = [report["share_equal"], *(cause["share_then_equal"] for cause in report["causes"])]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert report["unexplained"] == []


def test_an_archive_without_features_says_what_to_do(tmp_path: Path) -> None:
    archive = Loop(tmp_path).run(10, features=False)
    assert not (archive / "features").exists()
    with pytest.raises(LogError, match="MILLRACE_ARCHIVE_FEATURES"):
        read_archive(archive)


def test_a_forgotten_user_is_in_no_table(tmp_path: Path) -> None:
    archive = Loop(tmp_path).run(60)
    assert forget(archive, "1").rows > 0
    for kind in ("events", "exposures", "features"):
        (file,) = (archive / kind).glob("*.parquet")
        assert "1" not in pq.read_table(file, columns=["user_id"])["user_id"].to_pylist()


# ---------------------------------------------------------------------- which events a page lacked


def near(*events: tuple[int, int, int, int, int]) -> Near:
    """(key, action, when, partition, page) each."""
    key, act, when, partition, page = np.array(sorted(events, key=lambda e: -e[2])).T
    return Near(np.arange(len(key)), key, act, when, partition, page)


def test_partitions_are_cut_off_at_moments_of_their_own() -> None:
    one = near((0, 0, 10, 0, 1), (1, 0, 20, 1, 2), (0, 0, 30, 0, 3), (1, 0, 40, 1, 4), (0, 1, 50, 0, 5))
    lacking = np.array([[1, 1], [0, 0]])  # partition 0 from 30 on
    assert one.visible[taken(one, lacking)].tolist() == [50, 30]
    assert not taken(one, np.zeros((2, 2), np.int64)).any()


def test_a_page_whose_log_came_late_is_taken_away_whole() -> None:
    one = near(
        (0, 0, 10, 0, 1), (1, 0, 10, 0, 1), (0, 0, 20, 0, 2), (0, 0, 30, 0, 3), (1, 0, 30, 0, 3), (1, 1, 40, 0, 4)
    )
    lacking = np.array([[1, 0], [1, 1]])  # pages 4 and 1: the log of page 1 came after those of 2 and 3
    lacking_of_a_cut = taken(one, lacking)
    gone = held(one, lacking, lacking_of_a_cut)
    assert np.bincount(one.block[gone] * 2 + one.action[gone], minlength=4).tolist() == lacking.reshape(-1).tolist()


def test_each_key_by_itself_lacks_as_many_as_it_lacks() -> None:
    one = near((0, 0, 10, 0, 1), (1, 0, 20, 0, 2), (0, 0, 30, 0, 3), (1, 0, 40, 0, 4))
    assert one.visible[own_newest(one, np.array([[2], [0]]))].tolist() == [30, 10]
