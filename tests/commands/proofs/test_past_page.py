"""A page of the past is explained from its log, or from the archive; what is not known is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from learner.ranker.model import OnlineModel
from millrace.basics.errors import LogError
from millrace.commands.proofs import past_page as module
from millrace.commands.proofs.past_page import past_page, print_page
from millrace.contracts.events import PageLog, to_msgpack
from millrace.contracts.settings import Settings
from millrace.versions.modelstore import ModelStore, Place
from stream.archive.schemafile import schema_text
from tests.scenes.judged_archive import SCHEMA, archive_of, cat_of, store_of
from tests.scenes.learning import SCHEMA as SHOP
from tests.scenes.learning import make_samples
from tests.scenes.small_snapshot import META


@pytest.fixture
def loop(tmp_path: Path) -> Settings:
    """Forty pages of five items, archived with features, and a model that has learnt which items are clicked."""
    archive_of(tmp_path / "archive", 40)
    store_of(tmp_path / "models")
    return Settings(data=str(tmp_path), schema=str(tmp_path / "archive" / "schema.toml"))


def archived(loop: Settings) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(loop.data) / "archive" / "exposures").to_pylist()
    return rows


def test_the_archive_has_items_scores_clicks_and_reasons(loop: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    rows = archived(loop)
    name = rows[0]["request_id"]
    own = sorted((row for row in rows if row["request_id"] == name), key=lambda row: row["position"])
    page = past_page(loop, name)
    assert [(one["item_id"], one["score"], one["clicked"], one["source"]) for one in page["items"]] == [
        (row["item_id"], row["score"], row["label"], row["source"]) for row in own
    ]
    assert (page["user_id"], page["arm"], page["model_version"]) == (
        own[0]["user_id"], own[0]["arm"], own[0]["model_version"],
    )  # fmt: skip
    # Only the item's id differs between the rows: whatever lifts one above another is that.
    assert {reason["input"] for item in page["items"] for reason in item["reasons"]} == {"item_id"}
    assert any("version 5" in note for note in page["notes"])
    print_page(page)
    said = capsys.readouterr().out
    assert f"'{name}'" in said
    assert "item_id +" in said or "item_id -" in said


def test_the_page_log_is_read_where_there_is_no_archive_yet(loop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.array([7, 0, 3])
    num = np.full((3, SCHEMA.layout.N), 2.0, np.float32)
    log = PageLog(
        "new", 1, "ann", "model", 9, SCHEMA.id, [int(i) for i in items],
        np.array([0.5, 0.4, 0.3], "<f4").tobytes(), b"", cat_of(items).tobytes(), num.tobytes(),
        sources=bytes([1, 4, 4]), odds=np.array([1.0, 0.5, 0.5], "<f4").tobytes(),
    )  # fmt: skip
    other = msgspec.structs.replace(log, request_id="newer", items=[1, 2, 4])

    def read_all(_: Settings, topic: str, visit: Any) -> int:
        assert topic == "page_logs"
        for raw in (b"new, but no page log", None, to_msgpack(other), to_msgpack(log)):
            visit(SimpleNamespace(value=raw))
        return 4

    monkeypatch.setattr(module, "read_all", read_all)
    page = past_page(msgspec.structs.replace(loop, kafka="here:1"), "new")
    assert [one["item_id"] for one in page["items"]] == [7, 0, 3]
    assert [one["source"] for one in page["items"]] == ["vectors", "hot", "hot"]
    assert [one["propensity"] for one in page["items"]] == [1.0, 0.5, 0.5]
    assert {one["clicked"] for one in page["items"]} == {None}
    effects = [one["reasons"][0]["effect"] for one in page["items"]]
    assert effects[0] > effects[2] > effects[1], "item 7 is clicked most, item 0 least"
    assert page["notes"][0] == (
        "not archived yet, so what was clicked is not known: this page of 1970-01-01 00:00 UTC will be 1 min after"
        " event time 1970-01-01 00:06 UTC, unless the archive is off"
    )
    assert page["notes"][-1].endswith(
        "orders 67% of the items' pairs as the page's scores do, so they do not explain this page"
    )


def test_a_model_with_a_retrieval_head_gives_reasons_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.toml").write_text(schema_text(SHOP, 30.0))
    model = OnlineModel(SHOP, {"model": "wide_deep", "hidden": [8], "retrieval_width": 8}, 0)
    for seed in range(4):
        model.learn(make_samples(256, seed))
    store, meta = ModelStore(tmp_path / "models"), META | {"schema_id": SHOP.id, "spec": model.spec}
    for version in (3, 30):
        part = store.write_part(Place(1, version), 0, *model.snapshot())
        store.write_manifest([part], epoch=1, version=version, **meta)
    seen = make_samples(256, 9)
    log = PageLog(
        "p", 1, "ann", "model", 4, SHOP.id, [1, 2, 3], np.zeros(3, "<f4").tobytes(), b"",
        seen.cat[:3].astype("<i8").tobytes(), seen.num[:3].astype("<f4").tobytes(),
    )  # fmt: skip

    def read_all(_: Settings, __: str, visit: Any) -> int:
        visit(SimpleNamespace(value=to_msgpack(log)))
        return 1

    monkeypatch.setattr(module, "read_all", read_all)
    page = past_page(Settings(data=str(tmp_path), schema=str(tmp_path / "shop.toml"), kafka="here:1"), "p")
    assert all(one["reasons"] for one in page["items"])
    assert page["notes"][-1] == "reasons are by version 3, the nearest to the page's that is kept"


def test_without_features_there_are_no_reasons_and_it_says_so(tmp_path: Path) -> None:
    archive_of(tmp_path / "archive", 10, features=False)
    settings = Settings(data=str(tmp_path), schema=str(tmp_path / "archive" / "schema.toml"))
    page = past_page(settings, archived(settings)[0]["request_id"])
    assert len(page["items"]) == 5
    assert not any("reasons" in one for one in page["items"])
    assert any("no reasons: the features" in note for note in page["notes"])


def test_a_page_that_nobody_has_is_one_line(loop: Settings) -> None:
    with pytest.raises(LogError, match=r"no page 'nobody' is in the archive.*no broker is known"):
        past_page(loop, "nobody")
