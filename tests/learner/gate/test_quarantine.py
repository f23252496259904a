"""Quarantine: what was refused is known by its place on the topic, once, until somebody decides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from learner.gate.quarantine import ENTRY_ROWS, Quarantine, QuarantineEntry, forget_user, listed
from learner.gate.verdicts import GateRefusal
from millrace.basics.durations import MINUTE_MS
from millrace.basics.errors import SchemaError, SnapshotError, StoreError
from millrace.basics.store import AbsentError, DamagedError, Store
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Span
from tests.scenes.refused_rows import rows, spans

LABELS = GateRefusal("labels", 2.4, 1.6)
TENSOR = GateRefusal("finite", float("nan"), 0.0, "dense/w")


def same(one: SampleBatch, other: SampleBatch) -> bool:
    arrays = [f.name for f in dataclasses.fields(SampleBatch) if f.name not in ("request", "page")]
    return list(one.ids()) == list(other.ids()) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name in ("num", "score")) for name in arrays
    )


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "quarantine") if request.param == "folder" else f"memory://{tmp_path.name}-q"


def three(store: Store) -> Quarantine:
    """An entry of each of three checks, refused by decisions 7, 8 and 12, of messages 1, 2 and 3."""
    kept = Quarantine(store, "s")
    for i, (n, check) in enumerate([(7, "labels"), (8, "auc"), (12, "numbers")], 1):
        kept.keep(n, GateRefusal(check, 0.0, 0.0), spans(10, i), (i, i), i)
    return kept


# -- entries -----------------------------------------------------------------------------------------------------


def test_an_entry_says_which_rows_were_refused_and_why(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(4, LABELS, spans(5), (1_003, 1_004), 7_000)
    kept.keep(5, LABELS._replace(value=3.0), spans(4, 1), (1_000, 1_008), 8_000)  # of the same check: one entry
    kept.keep(9, TENSOR, spans(2, 2), (1_090, 1_091), 9_000)
    first, second = kept.entries()
    assert first == QuarantineEntry("00000004-labels", "labels", 2.4, 1.6, "", 9, 1_000, 1_008, 7_000, "s", "")
    assert first.refusal == LABELS
    assert (second.name, second.what, second.value, second.rows) == (
        *("00000009-finite", "dense/w"),
        *(np.finfo(float).max, 2),  # JSON has no NaN
    )
    assert np.isnan(second.refusal.value)
    assert kept.spans(first.name) == [*spans(5), *spans(4, 1)], "in the order in which they were refused"
    assert kept.spans(second.name) == list(spans(2, 2))
    assert (kept.rows, kept.lost_rows) == (11, 0)


def test_another_check_or_tensor_or_cause_begins_another_entry(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    for n, refusal in enumerate([LABELS, TENSOR, TENSOR._replace(what="dense/b"), LABELS], 1):
        kept.keep(n, refusal, spans(1, n), (0, 0), 0)
    kept.close()
    kept.keep(5, LABELS, spans(1, 5), (0, 0), 0)
    assert [(e.name, e.rows) for e in kept.entries()] == [
        *(("00000001-labels", 2), ("00000002-finite", 1), ("00000003-finite", 1), ("00000005-labels", 1)),
    ]


def test_an_entry_is_no_longer_than_one_command_should_be_about(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    for n in range(1, 4):
        kept.keep(n, LABELS, spans(ENTRY_ROWS - 1, n), (n, n), n)
    assert [(e.name, e.rows) for e in kept.entries()] == [
        ("00000001-labels", 2 * (ENTRY_ROWS - 1)),  # one decision is never cut
        ("00000003-labels", ENTRY_ROWS - 1),
    ]


def test_no_rows_make_no_entry(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(1, LABELS, (), (0, 0), 1)
    assert (kept.entries(), kept.rows) == ([], 0)


def test_names_are_chosen_in_the_order_of_refusal(tmp_path: Path) -> None:
    kept = three(Store(tmp_path))
    names = [e.name for e in kept.entries()]
    assert names == ["00000007-labels", "00000008-auc", "00000012-numbers"]
    assert kept.chosen("all") == names
    assert kept.chosen([names[2], names[0], names[2]]) == [names[0], names[2]]
    with pytest.raises(AbsentError, match="no '00000009-labels'; take a name"):
        kept.chosen([names[0], "00000009-labels"])
    assert kept.remove([names[1], "00000009-labels"]) == 10, "of those that are there"
    assert kept.chosen("all") == [names[0], names[2]]
    for ask in (kept.spans, kept.read_copy):
        with pytest.raises(AbsentError, match="no '00000008-auc'"):
            ask(names[1])


def test_rows_that_join_a_removed_entry_are_in_a_new_one(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(1, LABELS, spans(3), (0, 0), 1)
    kept.remove(["00000001-labels"])
    kept.keep(2, LABELS, spans(4, 1), (0, 0), 1)
    assert [(e.name, e.rows) for e in kept.entries()] == [("00000002-labels", 4)]


def test_what_is_read_again_is_judged_again(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(1, LABELS, [Span(5, 0, 4), Span(6, 1, 3)], (0, 0), 1)
    kept.keep(2, TENSOR, [Span(7, 0, 9)], (0, 0), 1)
    kept.keep(3, LABELS, [Span(8, 0, 8)], (0, 0), 1)
    kept.keep(4, GateRefusal("auc", 0.5, 0.6), [Span(3, 2, 3)], (0, 0), 1)
    assert kept.forget_behind(6) == 2 + 9 + 8
    assert [(e.name, e.rows, kept.spans(e.name)) for e in kept.entries()] == [
        ("00000001-labels", 4, [Span(5, 0, 4)]),
        ("00000004-auc", 1, [Span(3, 2, 3)]),
    ]
    kept.keep(5, GateRefusal("auc", 0.5, 0.6), spans(1), (0, 0), 1)
    assert kept.entries()[-1].name == "00000005-auc", "what is refused then has a cause of its own"


def test_beyond_its_bound_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    whole = Quarantine(Store(tmp_path), "s")
    for first in range(4):
        whole.keep(first + 1, LABELS._replace(what=str(first)), spans(50, first), (0, 0), 1)
    kept = Quarantine(Store(tmp_path), "s", most_bytes=round(2.5 * whole._bytes / 4))
    for first in range(4):
        kept.keep(first + 1, LABELS._replace(what=str(first)), spans(50, first), (0, 0), 1)
    assert [e.what for e in whole.entries()] == ["0", "1", "2", "3"]
    assert [e.what for e in kept.entries()] == ["2", "3"]
    assert (whole.lost_rows, kept.lost_rows) == (0, 100)
    again = Quarantine(Store(tmp_path), "s")
    again.resume(kept.snapshot())
    assert again.lost_rows == 100


def test_entries_of_a_row_each_have_a_bound_too(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s", most_bytes=10_000)
    for n in range(100):
        kept.keep(n, GateRefusal("absurd", 1.0, 0.0), [Span(n, 0, 1)], (n, n), n)
        kept.close()
    assert 10 < len(kept.entries()) < 20
    assert kept.lost_rows == 100 - kept.rows


def test_entries_of_a_check_go_on_beside_others_for_ten_minutes(tmp_path: Path) -> None:
    """Late clicks of what was refused come for hours, between what else is refused and what passes."""
    kept = Quarantine(Store(tmp_path), "s")
    page = GateRefusal("page", 1.0, 0.0)
    for n in range(60):
        kept.keep(2 * n, page, spans(1, 2 * n), (0, 0), n * MINUTE_MS)
        kept.keep(2 * n + 1, LABELS, spans(1, 2 * n + 1), (0, 0), n * MINUTE_MS)
        if n % 5 == 4:
            kept.close(but=["page"])
    entries = kept.entries()
    assert [e.rows for e in entries if e.check == "page"] == [10] * 6
    assert [e.rows for e in entries if e.check == "labels"] == [5] * 12
    kept.close()
    kept.keep(200, page, spans(1, 200), (0, 0), 59 * MINUTE_MS)
    assert kept.entries()[-1].rows == 1


# -- snapshots ---------------------------------------------------------------------------------------------------


def test_a_snapshot_has_all_of_it_and_which_entry_is_open(tmp_path: Path) -> None:
    kept = three(Store(tmp_path))
    kept.keep(13, TENSOR, spans(3), (5, 6), 7)
    raw = kept.snapshot()
    again = Quarantine(Store(tmp_path), "s")
    again.resume(raw)
    assert again.entries() == kept.entries()
    assert [again.spans(e.name) for e in again.entries()] == [kept.spans(e.name) for e in kept.entries()]
    for one in (kept, again):  # who goes on from it and who made it do the same
        one.keep(14, TENSOR, spans(2, 1), (5, 6), 8)
        assert [(e.name, e.rows) for e in one.entries()[-1:]] == [("00000013-finite", 5)]
    assert again.snapshot() == kept.snapshot()
    with pytest.raises(SnapshotError, match="truncated"):
        again.resume(raw[:-1])


# -- the store ---------------------------------------------------------------------------------------------------


def test_people_see_what_there_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(Store(url, writes=False)) == [], "no learner was here yet"
    kept = three(Store(url))
    assert listed(kept.store) == []
    kept.write_list()
    assert listed(Store(url, writes=False)) == kept.entries()
    kept.remove(["00000008-auc"])
    kept.write_list()
    assert [e.name for e in listed(kept.store)] == ["00000007-labels", "00000012-numbers"]
    with monkeypatch.context() as patch:
        patch.setattr(kept.store, "put", full)
        kept.write_list()  # nothing has changed
        kept.keep(13, LABELS, spans(1), (0, 0), 1)
        with pytest.raises(StoreError, match="no space"):
            kept.write_list()
    kept.write_list()
    assert listed(kept.store) == kept.entries(), "tried again"
    kept.store.put("entries.list", {"entries": 7})
    with pytest.raises(DamagedError, match="the list of quarantine cannot be read"):
        listed(kept.store)


def full(*_: object) -> None:
    raise StoreError("no space", "make some")


def test_rows_that_the_topic_is_about_to_lose_come_back_bit_for_bit(url: str) -> None:
    kept = three(Store(url))
    with pytest.raises(AbsentError, match=r"'00000007-labels\.rows' is not in"):
        kept.read_copy("00000007-labels")
    batch = rows(10)
    kept.copy("00000007-labels", batch)
    found, lay = kept.read_copy("00000007-labels")
    assert same(found, batch)
    assert lay == kept.spans("00000007-labels")
    assert kept.copies() == {"00000007-labels"}


def test_copies_go_with_their_entry_when_nobody_goes_back_to_it(url: str) -> None:
    kept = three(Store(url))
    for name in ("00000007-labels", "00000008-auc"):
        kept.copy(name, rows(10))
    kept.remove(["00000007-labels"])
    assert kept.copies() == {"00000007-labels", "00000008-auc"}, "a restart may find the entry in its snapshot"
    kept.write_list()
    kept.remove_copies()
    assert kept.store.names() == ["00000008-auc.rows", "entries.list"]


def test_a_deleted_user_is_in_no_copy(url: str) -> None:
    kept = three(Store(url))
    whole = dataclasses.replace(rows(10), user=np.arange(10, dtype=np.uint64) // 3)  # users 0, 0, 0, 1, 1, 1, ...
    kept.copy("00000007-labels", whole)
    kept.copy("00000008-auc", dataclasses.replace(whole, user=np.full(10, 2, np.uint64)))
    kept.copy("00000012-numbers", dataclasses.replace(whole, user=np.full(10, 1, np.uint64)))
    kept.write_list()
    assert forget_user(kept.store, 1) == 13
    batch, lay = kept.read_copy("00000007-labels")
    assert same(batch, whole.take(np.array([0, 1, 2, 6, 7, 8, 9])))
    assert lay == [Span(41, 0, 3), Span(41, 6, 10)], "the others are where they were"
    assert len(kept.read_copy("00000008-auc")[0]) == 10
    assert len(kept.read_copy("00000012-numbers")[0]) == 0
    assert forget_user(kept.store, 1) == 0
    assert kept.rows == 30, "where they lay on the topic is no datum of the user's"


def test_another_schema_and_a_damaged_copy_are_refused_by_name(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "one")
    kept.keep(3, LABELS, spans(9), (0, 0), 1)
    (name,) = kept.chosen("all")
    kept.copy(name, rows(9))
    other = Quarantine(Store(tmp_path), "two")
    other.resume(kept.snapshot())
    with pytest.raises(SchemaError, match="of schema one, the learner's is two; discard them"):
        other.read_copy(name)
    path = tmp_path / f"{name}.rows"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="is damaged"):
        kept.read_copy(name)
    kept.store.put(f"{name}.rows", {"spans": []}, b"no batch")
    with pytest.raises(DamagedError, match=f"samples '{name}' in quarantine cannot be read"):
        kept.read_copy(name)
    with pytest.raises(DamagedError, match="in quarantine cannot be read"):
        forget_user(kept.store, 1)


def test_copies_of_no_entry_go(url: str) -> None:
    kept = three(Store(url))
    kept.copy("00000007-labels", rows(10))
    for file in ("00000002-labels.rows", "README"):
        kept.store.put(file, {"spans": []}, b"of another form")
    kept.write_list()
    kept.remove_copies()
    assert kept.store.names() == ["00000007-labels.rows", "README", "entries.list"]


def test_rows_that_left_an_entry_are_not_in_its_copy(tmp_path: Path) -> None:
    kept = Quarantine(Store(tmp_path), "s")
    kept.keep(1, LABELS, [Span(5, 0, 4), Span(6, 0, 4)], (0, 0), 1)
    whole = rows(8)
    kept.copy("00000001-labels", whole)
    kept.forget_behind(6)
    batch, lay = kept.read_copy("00000001-labels")
    assert lay == [Span(5, 0, 4)]
    assert same(batch, whole.take(slice(0, 4)))
