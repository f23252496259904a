"""Live against replay: the archive of a small loop is compared with itself replayed, and each cause is found."""

from __future__ import annotations

import contextlib
import html
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial import distance

from commands.proofs import lag, parity
from commands.proofs.archived import read_archive
from commands.proofs.causes import Cause, Compared, by_cause, compare
from commands.proofs.lag import Near, held, own_newest, taken
from commands.proofs.parity import progressive, verify_parity
from commands.proofs.parityreport import MOST_GAP, TEXTS, main_step, verdict_of
from commands.proofs.views import Events
from commands.replay.known import LabelSettings
from commands.replay.run import run_log
from learner.network.dense import threads
from learner.role.making import model_of
from millrace.basics.errors import LogError, ParityError
from millrace.contracts.events import Impression, Item, to_json, to_msgpack
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from stream.archive.folder import Folder
from stream.archive.forget import forget
from stream.archive.logged import arrays
from stream.archive.rows import Archive, Record
from stream.archive.schemafile import schema_text
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, T0, event
from tests.stream.partition.test_stream_parity import FIELDS, Shop

SCHEMA = parse_schema(FIELDS)
WAITS = POLICY.waits
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


@pytest.mark.slow
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
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "report.json",
        "run.json",
        "report.html",
        "causes.png",
    }


def test_shares_rise_from_cause_to_cause(tmp_path: Path) -> None:
    Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5, wait_ms=20_000).run()
    report = verify_parity(tmp_path, Settings(), progress=False)
    shares = [report["share_equal"], *(cause["share_then_equal"] for cause in report["causes"])]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert report["unexplained"] == []


def test_the_auc_gap_goes_with_the_cause_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside differences of other causes, the scorer did not know the price of exposures that are clicked, and the
    model reads the price and nothing else."""
    archive = Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5, wait_ms=20_000).run()
    archived = read_archive(archive)
    clicked = archived.rows.label[archived.pages.row] == 1
    named = archived.log.table["request_id"].take(pa.array(archived.pages.row)).to_pylist()
    (file,) = (archive / "features").glob("*.parquet")
    table = pq.read_table(file)
    num = arrays(table, SCHEMA)[1].copy()
    hidden = {name for name, one in zip(named, clicked, strict=True) if one}
    num[[name in hidden for name in table["request_id"].to_pylist()], 0] = 0
    changed = pa.array([one.tobytes() for one in num], table["num"].type)
    pq.write_table(table.set_column(table.column_names.index("num"), "num", changed), file)
    assert SCHEMA.layout.num_names[0] == "price"
    monkeypatch.setattr(parity, "progressive", lambda archived, cat, num, *_: -num[:, 0])
    out = tmp_path / "out"
    with contextlib.suppress(ParityError):  # of so few users the interval may say nothing
        verify_parity(tmp_path, Settings(), out, progress=False)
    report = json.loads((out / "report.json").read_text())
    assert {cause["cause"] for cause in report["causes"]} > {"missing", "feed_lag", "late"}
    step = main_step(report)
    assert step is not None
    assert step == (report["auc_gap"], 0.0, TEXTS[Cause.MISSING])
    assert report["auc_gap"] < -MOST_GAP
    page = (out / "report.html").read_text()
    assert all(html.escape(text) in page for text in (report["verdict"], f"Most of that goes with '{step[2]}'"))


def test_what_has_no_cause_is_as_logged(tmp_path: Path) -> None:
    """So with the values of all causes as logged, the model learns from the logged features."""
    archived = read_archive(Loop(tmp_path, publish_ms=5 * MINUTE, late_share=0.5, wait_ms=20_000).run())
    found, pages = compare(archived), archived.pages
    num = np.where(found.num_cause > Cause.REPLAY, pages.num, found.num)
    assert np.count_nonzero(num != found.num) > 0
    assert num.tobytes() == np.ascontiguousarray(pages.num).tobytes()
    assert (np.where(found.cat_cause > Cause.REPLAY, pages.cat, found.cat) == pages.cat).all()


@pytest.mark.parametrize(("left", "said"), [([0.02, 0.008, 0.0], "Most"), ([0.02, 0.012, 0.005], "The greatest part")])
def test_most_of_a_gap_is_more_than_half_of_it(left: list[float], said: str) -> None:
    causes = [
        {"auc_gap_then": gap, "text": cause.name} for gap, cause in zip([*left[1:], 0.0], list(Cause)[1:], strict=False)
    ]
    report = {"samples": 9, "unexplained_samples": 0, "unexplained_values": 0, "share_equal": 0.5}
    report |= {"auc_gap": left[0], "auc_gap_half": 0.001, "auc_agrees": False, "auc_replayed": 0.7, "auc_logged": 0.6}
    assert f"{said} of that goes with 'POSITION'" in verdict_of(report | {"causes": causes})


def test_without_a_click_there_is_no_auc(tmp_path: Path) -> None:
    archive = Loop(tmp_path).run(40)
    (file,) = (archive / "exposures").glob("*.parquet")
    table = pq.read_table(file)
    for name, none in (
        ("label", pa.array([0] * len(table), pa.int8())),
        ("click_ms", pa.nulls(len(table), pa.int64())),
    ):
        table = table.set_column(table.column_names.index(name), name, none)
    pq.write_table(table, file)
    report = verify_parity(tmp_path, Settings(), tmp_path / "out", progress=False)
    assert report["auc_gap"] is None
    assert "no AUC to compare" in (tmp_path / "out" / "report.html").read_text()


def test_parity_learns_as_replay_does(tmp_path: Path) -> None:
    """The scores on replayed features are those of a replay of the archive, to the bit."""
    archived = read_archive(Loop(tmp_path, publish_ms=5 * MINUTE).run())
    found, settings = compare(archived), Settings()
    how = LabelSettings.of(settings)
    mine = progressive(archived, found.cat, found.num, settings.spec(), settings.seed, how)
    with threads(1):
        model = model_of(archived.schema, settings.spec(), settings.seed)
        theirs = run_log(archived.log, archived.schema, model, 256, lambda _: None, None, how)
    assert len(mine) == len(theirs)
    assert (mine == theirs).all()


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
    return Near(np.arange(len(key)), key, act, when, partition, when, page)


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


@pytest.mark.parametrize("seed", range(12))
def test_cuts_that_explain_all_counts_are_found(seed: int) -> None:
    """Two keys, two actions, three partitions that are each cut off somewhere."""
    rng = np.random.default_rng(seed)
    when = rng.permutation(90)
    one = near(*((*rng.integers(0, 2, 2).tolist(), int(t), int(rng.integers(3)), int(t)) for t in when))
    cuts = rng.integers(20, 90, 3)
    true = one.visible >= cuts[one.partition]
    lacking = np.bincount(one.block[true] * 2 + one.action[true], minlength=4)
    gone = taken(one, lacking.reshape(2, 2))
    assert np.bincount(one.block[gone] * 2 + one.action[gone], minlength=4).tolist() == lacking.tolist()
    for p in range(3):  # the newest of each partition, and no others
        mine = gone[one.partition == p]
        assert mine[: mine.sum()].all()


def test_a_count_without_an_event_near_starts_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved_in_pairs(*_: Any) -> Any:
        raise AssertionError("no cut can mend it")

    monkeypatch.setattr(lag, "_moved_in_pairs", moved_in_pairs)
    one = near((0, 0, 10, 0, 1), (1, 0, 20, 1, 2), (0, 0, 30, 0, 3))
    gone = taken(one, np.array([[1, 0], [0, 7]]))  # (1, 1) has no event near
    assert one.visible[gone].tolist() == [30]
    with pytest.raises(AssertionError, match="no cut"):
        taken(one, np.array([[1, 0], [7, 0]]))


@pytest.mark.parametrize("most", [50, 5_000, 500_000])
def test_a_search_over_many_partitions_is_bounded(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Nine partitions and a loss that no cuts explain: so many counts are compared at most, and none is worse."""
    rng, compared = np.random.default_rng(3), 0
    when = rng.permutation(400)
    one = near(*((int(rng.integers(4)), int(rng.integers(2)), int(t), int(rng.integers(9)), int(t)) for t in when))
    cell = one.block * 2 + one.action
    true = (one.visible >= rng.integers(300, 400, 9)[one.partition]) ^ (rng.random(400) < 0.1)
    lacking = np.bincount(cell[true], minlength=8)
    whole = distance.cdist

    def counting(a: Any, b: Any, how: str) -> Any:
        nonlocal compared
        compared += len(a) * b.size
        return whole(a, b, how)

    def wrong(gone: Any) -> int:
        return int(np.abs(lacking - np.bincount(cell[gone], minlength=8)).sum())

    monkeypatch.setattr(lag, "cdist", counting)
    monkeypatch.setattr(lag, "MOST_DIFFERENCES", most * 8 * 8 * 9)
    gone = taken(one, lacking.reshape(4, 2))
    assert 0 < compared <= most * 8 * 8 * 9
    monkeypatch.setattr(lag, "_moved_in_pairs", lambda near, cell, left, gone: gone)
    assert wrong(gone) <= wrong(taken(one, lacking.reshape(4, 2)))


def test_a_keys_newest_events_are_those_before_the_page() -> None:
    """Against a plain look at all events."""
    rng = np.random.default_rng(5)
    visible = np.sort(rng.integers(0, 3 * lag.HORIZON_MS, 200))
    keys = rng.integers(0, 5, (200, 2)).astype(np.uint64)
    zeros = np.zeros(200, np.intp)
    events = Events(visible, visible, zeros.astype(np.uint8), keys, np.zeros((200, 0), np.uint32))
    by_key = lag.KeyEvents(events, zeros.astype(np.int64), np.arange(200), zeros, SCHEMA.windows)
    for key, asked in zip(rng.integers(1, 6, 60).tolist(), rng.choice(visible, 60).tolist(), strict=True):
        mine = [e for e in range(200) for k in keys[e].tolist() if k == key]
        before = [e for e in mine if asked - lag.HORIZON_MS <= visible[e] < asked]
        after = [e for e in mine if visible[e] >= asked][:7]
        assert [found.tolist() for found in by_key.around(key, asked, 7)] == [before, after]
