"""Live against replay: the archive of a small loop is compared with itself replayed; what differs is named."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.network.dense import threads
from learner.role.model_factory import model_of
from millrace.basics.clustered import gap
from millrace.basics.errors import LogError, ParityError
from millrace.commands.proofs import parity
from millrace.commands.proofs.archived import read_archive
from millrace.commands.proofs.parity import progressive, replayed, verify_parity
from millrace.commands.proofs.parityreport import MOST_GAP
from millrace.commands.replay.logsamples import LabelSettings
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.events import Item, PageLog, to_json, to_msgpack
from millrace.contracts.schema import Schema, parse_schema
from millrace.contracts.settings import Settings
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.archive_rows import Archive, TopicRecord
from stream.archive.forget import forget
from stream.archive.logged import arrays
from stream.archive.schemafile import schema_text
from tests.scenes.parity_shop import FIELDS, LAST, Shop
from tests.scenes.schemas import table
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, T0, event

CONTENT = table("[[fields]]", name="title", of="item", kind="text", bigrams=True)
CONTENT += table("[[fields]]", name="meaning", of="item", kind="vector", size=40)
SCHEMA = parse_schema(FIELDS + LAST + CONTENT)
MEANINGS: list[Any] = [[k % 7 - n * 0.37 for k in range(40)] for n in range(4)] + [""]
TITLES: list[Any] = ["Tariff talks stall, again", "", "हिन्दी 2026", "日本の旅 & café", 7.0]
COMPARED = parse_schema(
    FIELDS
    + '[[among]]\nnumber = "item_id.click_rate.7d"\n[[among]]\nnumber = "price"\n'
    + '[[among]]\nnumber = "user_id*item_id.click.h7d"\nforms = ["of_mean"]\n'
)
WAITS = POLICY.waits
NO_LAG = 1


@dataclass
class Loop:
    """A loop with two partitions, an index and an archive; its event clock is the wall's.

    Args:
        publish_ms: how often counts are published.
        late_share: of clicks that lead to a purchase after the attribution window.
        wait_ms: from the page to its exposure.
        sets: of how many pages one keeps the set of its candidates, where numbers are compared.
    """

    folder: Path
    publish_ms: int = NO_LAG
    late_share: float = 0.0
    wait_ms: int = 0
    schema: Schema = SCHEMA
    sets: int = 3

    def run(self, n: int = 160, seed: int = 1, features: bool = True) -> Path:
        rng = np.random.default_rng(seed)
        items = [Item(f"i{i}", {"price": 3.0 * i, "title": TITLES[i], "meaning": MEANINGS[i]}, T0) for i in range(5)]
        shop, archive = Shop(items, self.schema), Archive(self.schema, WAITS, 100_000 * HOUR, 1, features)
        offsets: Counter[str] = Counter()

        def send(topic: str, raw: bytes, user: int = -1) -> None:
            archive.take(TopicRecord(topic, 0, offsets[topic], b"", raw, T0))
            offsets[topic] += 1
            if user >= 0:
                shop.take(user, shop.log(topic, raw))

        for one in items:
            send("items", to_json(one))
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
                send("events", what, self._user(what))
                continue
            user, item = int(rng.integers(3)), int(rng.integers(5))
            if now_ms - published_ms >= self.publish_ms:
                shop.publish()
                published_ms = now_ms
            recalled = [str(one.item_id) for one in items] if self.schema.among else []
            got, name = shop.rank(user, f"i{item}", now_ms, None, recalled), f"p{what}"
            features_of = {"keys": got.keys.astype("<u8"), "cat": got.cat.astype("<i8"), "num": got.num.astype("<f4")}
            packed: dict[str, Any] = {key: array.tobytes() for key, array in features_of.items()}
            page_log = PageLog(
                name, now_ms, user, "model", 1, self.schema.id, [f"i{item}"], bytes(4), **packed, served_ms=now_ms
            )
            if self.schema.among and what % self.sets == 0:
                page_log = msgspec.structs.replace(page_log, among=got.among.tobytes())
            send("page_logs", to_msgpack(page_log), user)
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
        cut, folder = archive.cut(), ArchiveFolder(self.folder / "archive")
        folder.write({"events": cut.events, "exposures": cut.exposures, "features": cut.features}, cut.state)
        folder.put_schema(schema_text(self.schema, POLICY.attribution_ms / MINUTE))
        folder.close()
        return self.folder / "archive"

    @staticmethod
    def _action(kind: str, name: str, ts_ms: int, about: dict[str, Any]) -> bytes:
        return event(kind, name, ts_ms, position=0, sent_ms=ts_ms, **about)

    @staticmethod
    def _user(raw: bytes) -> int:
        return int(raw.split(b'"user_id":')[1][:1])


def differing(archive: Path) -> list[str]:
    """Names of the features that replay makes other than the loop logged them."""
    report = verify_parity(archive.parent, Settings(), progress=False)
    return [one["feature"] for one in report["differing"]]


@pytest.mark.slow
def test_a_loop_without_lag_is_replayed_to_the_bit(tmp_path: Path) -> None:
    archive = Loop(tmp_path).run()
    report = verify_parity(tmp_path, Settings(), tmp_path / "out", progress=False)
    assert report["exposures"] == report["equal"] == 160
    assert report["differing"] == []
    assert report["share_values_equal"] == 1.0
    assert report["auc_gap"] == 0.0
    assert report["auc_agrees"]
    _, num = replayed(read_archive(archive))
    assert np.count_nonzero(num[:, SCHEMA.layout.window_start :]) > 2000


def test_numbers_among_candidates_are_made_again_to_the_bit(tmp_path: Path) -> None:
    archive = Loop(tmp_path, schema=COMPARED).run()
    report = verify_parity(tmp_path, Settings(), progress=False)
    assert report["exposures"] == report["equal"] == 160
    assert report["pages_with_candidates"] == 54
    archived = read_archive(archive)
    _, num = replayed(archived)
    start = COMPARED.layout.among_start
    assert len(np.unique(num[:, start:], axis=0)) > 50
    assert num[:, start:].tobytes() == archived.logged.num[:, start:].tobytes()


def test_a_set_that_is_not_the_pages_differs(tmp_path: Path) -> None:
    archive = Loop(tmp_path, schema=COMPARED).run()
    file = next((archive / "features").glob("*.parquet"))
    table = pq.read_table(file)
    raws = table["among"].to_pylist()
    row = next(i for i, raw in enumerate(raws) if raw)
    kept = np.frombuffer(raws[row], "<f4").reshape(3, -1).copy()
    kept[1] += 1  # the prices
    raws[row] = kept.tobytes()
    pq.write_table(table.set_column(table.column_names.index("among"), "among", pa.array(raws, pa.binary())), file)
    assert set(differing(archive)) <= {"price.rank", "price.of_mean", "price.of_max"} != set()


def test_features_that_were_read_at_the_pages_time_differ(tmp_path: Path) -> None:
    """Exposures come half a minute after their pages: some pages are followed by others before they are seen."""
    names = differing(Loop(tmp_path, wait_ms=40_000).run())
    assert names
    assert "price" not in names


def test_actions_after_the_attribution_window_are_in_the_archive_as_the_stream_counted_them(tmp_path: Path) -> None:
    archive = Loop(tmp_path, late_share=1.0).run()
    (rows,), (events,) = ((archive / kind).glob("*.parquet") for kind in ("exposures", "events"))
    assert pq.read_table(rows)["purchase_ms"].null_count == 160
    assert pq.read_table(events)["after_row"].to_pylist().count(True) > 20
    assert differing(archive) == []


def test_counts_that_are_published_late_differ(tmp_path: Path) -> None:
    report = verify_parity(Loop(tmp_path, publish_ms=5 * MINUTE).run().parent, Settings(), progress=False)
    assert sum(one["values"] for one in report["differing"]) > 500
    assert report["equal"] < report["exposures"]
    assert any(one["feature"].startswith("item_id.") for one in report["differing"])


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
    """With its exposure and both values; and no other is."""
    archive = Loop(tmp_path).run()
    column = SCHEMA.layout.num_names.index(name)
    planted, request = plant(archive, 120, column, 0.25)
    report = verify_parity(tmp_path, Settings(), tmp_path / "out", progress=False)
    (one,) = report["differing"]
    assert (one["feature"], one["values"], one["request_id"]) == (planted, 1, request)
    assert one["logged"] == pytest.approx(one["replayed"] + 0.25)
    assert report["equal"] == report["exposures"] - 1
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"report.json", "run.json", "report.html", "features.png"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert planted in page
    assert request in page


def test_a_gap_of_the_auc_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer did not know the price of exposures that are clicked, and the model reads the price alone."""
    archive = Loop(tmp_path).run()
    archived = read_archive(archive)
    clicked = archived.rows.label[archived.logged.row] == 1
    hidden = {archived.name(int(row))[0] for row in archived.logged.row[clicked]}
    (file,) = (archive / "features").glob("*.parquet")
    table = pq.read_table(file)
    num = arrays(table, SCHEMA)[1].copy()
    num[[name in hidden for name in table["request_id"].to_pylist()], 0] = 0
    changed = pa.array([one.tobytes() for one in num], table["num"].type)
    pq.write_table(table.set_column(table.column_names.index("num"), "num", changed), file)
    assert SCHEMA.layout.num_names[0] == "price"
    monkeypatch.setattr(parity, "progressive", lambda archived, cat, num, *_: -num[:, 0])
    monkeypatch.setattr(parity, "gap", lambda *parts: replace(gap(*parts), half=0.0))  # of so few users it may be none
    with pytest.raises(ParityError, match=r"apart, more than 0\.001"):
        verify_parity(tmp_path, Settings(), tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["auc_gap"] < -MOST_GAP
    assert not report["auc_agrees"]
    assert report["differing"][0]["feature"] == "price"
    assert "not within 0.001" in report["verdict"]


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
    settings = Settings()
    how = LabelSettings.of(settings)
    mine = progressive(archived, *replayed(archived), settings.spec(), settings.seed, how)
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
