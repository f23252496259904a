"""Which arm of an archive earns more."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError, SettingError, StoreError
from millrace.commands.cli.cli import app
from millrace.commands.judge.arms import ArmUsers, Exposures, decided_ms, looks, users_of
from millrace.commands.judge.judgerun import judge
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from millrace.evidence.learners import LearnsFrom, NamedLearner
from millrace.evidence.user_arms import Arm
from stream.archive.archive_columns import ArchiveColumns, SettledRow
from stream.archive.archive_folder import MAKERS, ArchiveFolder, makers_of
from tests.scenes.long_archives import peak_of, prolong

HOUR = 3_600_000
T0 = 1_772_000_000_000
SCHEMA = 'name = "s"\nfields = [{ name = "price", of = "item", kind = "numeric" }, { name = "color", of = "item" }]'


def exposures(*rows: tuple[float, int, int, str, float | None]) -> Exposures:
    """Of (hour, user, page, arm, hour of the outcome or None)."""
    hours, user, page, arm, came = zip(*rows, strict=True)
    outcome = [-1 if h is None else int(T0 + h * HOUR) for h in came]
    ts_ms = (T0 + np.array(hours) * HOUR).astype(np.int64)
    return Exposures(ts_ms, np.array(user), np.array(page), np.array(arm), np.array(outcome), np.ones(len(rows)))


@pytest.mark.parametrize("order", [1, -1])
def test_a_user_counts_from_the_first_page_to_the_horizon(order: int) -> None:
    """Whatever the order of the rows."""
    rows: list[tuple[float, int, int, str, float | None]] = [
        (0, 0, 0, "model", 0.5),
        (0, 0, 0, "model", 3.5),  # the outcome comes behind the horizon
        (1, 0, 1, "model", 1.5),
        (2, 0, 2, "model", 2.2),  # the page comes behind it
        (0.5, 1, 3, "control", None),
        (0.6, 2, 4, "model", 0.7),
        (0.7, 2, 5, "control", 0.8),  # of another arm than the first page
        (3, 3, 6, "control", 30),  # not over: no exposure is as late as its horizon
        (0, 4, 7, "logged", 0.1),  # only scored
    ]
    found = users_of(exposures(*rows[::order]), 2 * HOUR)
    assert found.arm.tolist() == ["model", "control", "model"]
    assert found.outcomes.tolist() == [2.0, 0.0, 2.0]
    assert found.pages.tolist() == [2.0, 1.0, 2.0]
    assert (found.until_ms - T0).tolist() == [2 * HOUR, 2.5 * HOUR, 2.6 * HOUR]
    assert found.waiting == 1


def crowd(
    model: float, control: float, users: int = 4000, seed: int = 0
) -> list[tuple[float, int, int, str, float | None]]:
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, int, int, str, float | None]] = []
    for user in range(users):
        hour, arm = 48 * user / users, "control" if rng.random() < 0.2 else "model"
        rate = model if arm == "model" else control
        for page in range(1 + rng.poisson(1)):
            at = hour + 0.2 * page
            rows.append((at, user, len(rows), arm, at + 0.1 if rng.random() < rate else None))
    return rows


def test_a_better_arm_is_decided_and_stays_so_and_an_equal_one_is_not() -> None:
    users = users_of(exposures(*crowd(0.3, 0.2)), 4 * HOUR)
    seen = looks(users, HOUR, True, "control")
    since = decided_ms(seen, "model")
    assert since is not None
    assert since > seen[0]["at_ms"]
    last = [row for row in seen if row["arm"] == "model"][-1]
    assert last["difference_low"] < 0.1 < last["difference_high"], "the truth is within"
    assert last["difference_low"] > 0
    equal = looks(users_of(exposures(*crowd(0.2, 0.2)), 4 * HOUR), HOUR, True, "control")
    assert decided_ms(equal, "model") is None
    assert equal[0]["low"] is None, "nothing is said of the first few users"


def test_what_was_decided_is_taken_back_when_it_is_not_any_more() -> None:
    def since(*outside: int) -> int | None:
        looks = [
            {"arm": "b", "at_ms": n, "difference_low": o, "difference_high": o + 2} for n, o in enumerate(outside, 1)
        ]
        return decided_ms(looks, "b")

    assert [since(*outside) for outside in ((-1, 1, 1), (1, -1, -3), (1, 1, -1))] == [2, 3, None]


def archive(folder: Path, rows: list[tuple[float, int, int, str, float | None]]) -> Path:
    columns = ArchiveColumns(parse_schema(SCHEMA))
    settled = []
    for hour, user, page, arm, came in rows:
        times = (None if came is None else int(T0 + came * HOUR), None, None, None)
        item = columns.pack("item", {"price": 2.5, "color": "red"})
        settled.append(
            SettledRow(
                int(T0 + hour * HOUR), f"r{page}", 0, 0, f"u{user}", "i", None, item, times, 0.1, 3, arm, "hot", None
            )
        )
    settled.append(settled[0]._replace(request="lost", arm=None, score=None, version=None))  # its page log is lost
    place = ArchiveFolder(folder)
    place.put_schema(SCHEMA)
    half = len(settled) // 2
    for part in (settled[:half], settled[half:]):
        place.write({"exposures": columns.table(part)}, {})
    place.close()
    return folder


def test_parts_tell_what_the_whole_tells_and_a_page_in_two_parts_counts_once() -> None:
    rows = exposures(*crowd(0.3, 0.2, 500), *crowd(0.3, 0.2, 500))  # each page has two rows
    rows = rows.at(np.argsort(rows.ts_ms, kind="stable"))
    whole, parts, cut = users_of(rows, 4 * HOUR), ArmUsers(4 * HOUR), np.array([0, 1, 2, 501, 502, len(rows.ts_ms)])
    for first, last in itertools.pairwise(cut):
        parts.take(rows.at(slice(first, last)))
    found = parts.found()
    assert whole.pages.sum() < len(rows.ts_ms) / 2
    for name in ("until_ms", "arm", "outcomes", "pages"):
        assert getattr(found, name).tolist() == getattr(whole, name).tolist(), name
    assert found.waiting == whole.waiting


def test_of_too_many_users_every_second_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = exposures(*crowd(0.3, 0.2, 500))
    even = users_of(rows.at(rows.user % 4 == 0), 4 * HOUR)
    monkeypatch.setattr("millrace.commands.judge.arms.MOST_USERS", 200)
    users = ArmUsers(4 * HOUR)
    for part in np.array_split(np.argsort(rows.ts_ms, kind="stable"), 7):
        users.take(rows.at(part))
    assert users.halvings == 2
    found = users.found()
    assert (found.outcomes.tolist(), found.pages.tolist()) == (even.outcomes.tolist(), even.pages.tolist())


def test_memory_does_not_grow_with_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six times as many pages, of users who are there already."""
    monkeypatch.setattr("millrace.commands.judge.archive_reader.PART_ROWS", 1000)
    monkeypatch.setattr("millrace.commands.judge.arms.MOST_PAGES", 1000)
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 3000))
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": 100 * HOUR, "by": "page"}
    judge(there, tmp_path / "warm", **spans)
    few = peak_of(lambda: judge(there, tmp_path / "few", **spans))
    prolong(there / "exposures", 6)
    assert peak_of(lambda: judge(there, tmp_path / "many", **spans)) < 1.3 * few


def test_the_command_says_which_arm_earns_more_and_since_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 3000))
    app(
        ["judge", str(there), "--out", str(tmp_path / "out"), "--horizon", "4h", "--by", "page"],
        result_action="return_value",
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"].startswith("The model's pages earn 0.")
    assert "clicks a page more than random pages" in report["verdict"]
    assert report["verdict"] in " ".join(capsys.readouterr().out.split())
    control, model = report["arms"]
    assert (control["arm"], model["arm"], control["difference"]) == ("control", "model", None)
    assert model["decided_since"]
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "bands.png").stat().st_size > 5000


def test_outcomes_count_a_number_of_the_item(tmp_path: Path) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 400))
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": 4 * HOUR}
    clicks = judge(there, tmp_path / "a", **spans)["arms"]
    worth = judge(there, tmp_path / "b", value="price", **spans)["arms"]
    assert [row["value"] for row in worth] == pytest.approx([2.5 * row["value"] for row in clicks], rel=1e-4)


def test_purchases_count_that_came_after_their_rows_were_written(tmp_path: Path) -> None:
    """Each fourth user buys two hours after the page, some by an order, and one sends it back."""
    there = archive(tmp_path / "archive", [(n / 100, n, n, ("model", "control")[n % 2], 5.0) for n in range(400)])
    sent = [("purchase" if n % 8 else "order", n, None if n % 8 == 0 else f"r{n}", 2) for n in range(0, 400, 4)]
    sent += [("click", n, f"r{n}", 1) for n in range(0, 400, 8)] + [("refund", 8, None, 3)]
    sent += [("purchase", 4, "r4", 9), ("purchase", 5, "r5", 9)]  # after the horizon
    kinds, users, pages, hours = zip(*sent, strict=True)
    ts_ms = [int(T0 + (n / 100 + hour) * HOUR) for n, hour in zip(users, hours, strict=True)]
    who = [f"u{n}" for n in users]
    table = {"type": kinds, "ts_ms": ts_ms, "user_id": who, "item_id": ["i"] * len(who), "request_id": pages}
    pq.write_table(pa.table({name: list(column) for name, column in table.items()}), there / "events" / "1.parquet")
    spans: dict[str, Any] = {"horizon_ms": 3 * HOUR, "every_ms": HOUR, "outcome": "purchase"}
    found = {row["arm"]: row for row in judge(there, tmp_path / "a", **spans)["arms"]}
    over = [n for n in range(400) if n / 100 + 3 <= 3.99]
    bought = [n for n in over if n % 4 == 0 and n != 8]
    assert found["model"]["users"] * found["model"]["value"] == pytest.approx(len(bought), rel=1e-4)
    assert not found["control"]["value"]


def test_pages_before_the_arms_were_changed_count_for_nothing(tmp_path: Path) -> None:
    """A user of an arm that is new has pages of another arm before."""
    before = [(n / 400, n, n, "model", None) for n in range(400)]
    after = [(10 + n / 400, n, 400 + n, ("hits", "control")[n % 2], 10.1 if n % 3 else None) for n in range(400)]
    there = archive(tmp_path / "archive", [*before, *after, (20, 999, 999, "hits", None)])
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": 4 * HOUR}
    assert [row["arm"] for row in judge(there, tmp_path / "a", baseline="model", **spans)["arms"]] == ["model"]
    found = judge(there, tmp_path / "b", since_ms=T0 + 5 * HOUR, **spans)["arms"]
    assert [(row["arm"], row["users"]) for row in found] == [("control", 200), ("hits", 200)]


def test_the_answer_says_whose_models_made_the_pages_and_that_this_was_changed(tmp_path: Path) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 120))
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": HOUR}
    found = judge(there, tmp_path / "a", **spans)
    assert (found["made_by"], "learn" in found["verdict"]) == ({}, False)
    arms = {"b": Arm("model", 0.5, learner="x")}
    how: list[LearnsFrom] = ["own", "own", "weighted"]
    for number, learns in enumerate(how):
        folder = ArchiveFolder(there)
        learners = {"x": NamedLearner("deepfm")}
        folder.put_makers(Settings(learners=learners, arms=arms, learns_from=learns).makers(), T0 - HOUR + number)
        folder.close()
    assert [note.since_ms for note in makers_of(there)] == [T0 - HOUR, T0 - HOUR + 2], "what is as before is no news"
    found = judge(there, tmp_path / "b", **spans)
    assert found["made_by"]["b"] == "learner 'x' (deepfm), which learns from all pages, weighted by their odds"
    assert f"Pages of 'model' are by {found['made_by']['model']}." in found["verdict"]
    assert "--since" not in found["verdict"]
    folder = ArchiveFolder(there)
    folder.put_makers({}, T0 + HOUR)
    folder.close()
    found = judge(there, tmp_path / "c", **spans)
    assert "Who makes the pages was changed on 2026-02-25 07:13: ask with --since" in found["verdict"]
    (there / MAKERS).write_bytes(b"rubbish")
    with pytest.raises(StoreError, match="cannot be read"):
        judge(there, tmp_path / "d", **spans)


def test_pages_that_were_only_scored_are_told_of_and_named_ones_are_an_arm(tmp_path: Path) -> None:
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": HOUR}
    rows = crowd(0.3, 0.2, 1500)
    known = judge(archive(tmp_path / "known", rows), tmp_path / "a", **spans)
    nameless = [(hour, 9000 + user, 90_000 + page, "logged", came) for hour, user, page, _, came in rows[:300]]
    found = judge(archive(tmp_path / "beside", [*rows, *nameless]), tmp_path / "b", **spans)
    assert found["arms"] == known["arms"]
    assert (known["exposures_logged"], found["exposures_logged"]) == (0, 300)
    assert "'logged'" not in known["verdict"]
    assert "300 exposures of pages that were only scored here" in found["verdict"]
    assert "`arm` in POST /score" in found["verdict"]
    own = [(hour, user, page, "editors" if arm == "control" else arm, came) for hour, user, page, arm, came in rows]
    found = judge(archive(tmp_path / "own", own), tmp_path / "c", baseline="editors", **spans)
    assert [row["value"] for row in found["arms"]] == [row["value"] for row in known["arms"]]
    assert "pages of 'editors'" in found["verdict"]
    with pytest.raises(LogError, match=r"none was seen .* 300 exposures .* `arm` in POST /score"):
        judge(archive(tmp_path / "alone", nameless), tmp_path / "d", **spans)


def test_what_cannot_be_said_is_said(tmp_path: Path) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 120))
    found = judge(there, tmp_path / "out", horizon_ms=4 * HOUR, every_ms=HOUR)
    assert "not enough yet. Each arm needs 100 effective users" in found["verdict"]
    alone = archive(tmp_path / "alone", [row for row in crowd(0.3, 0.2, 120) if row[3] == "model"])
    assert (
        "nothing to compare"
        in judge(alone, tmp_path / "o", horizon_ms=HOUR, every_ms=HOUR, baseline="model")["verdict"]
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"horizon_ms": 0}, "above 0"),
        ({"every_ms": 0}, "above 0"),
        ({"baseline": "popular"}, "'popular'; choose from control, model"),
        ({"value": "color"}, "'color' is no number of an item; choose from price"),
        ({"value": "nothing"}, "'nothing' is no number"),
        ({"horizon_ms": 1000 * HOUR}, "none was seen for"),
    ],
)
def test_a_wrong_question_is_one_line(tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 120))
    spans: dict[str, Any] = {"horizon_ms": HOUR, "every_ms": HOUR}
    with pytest.raises((SettingError, LogError)) as caught:
        judge(there, tmp_path / "out", **(spans | asked))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="holds no archived exposures"):
        judge(tmp_path, tmp_path / "out", horizon_ms=HOUR, every_ms=HOUR)


def test_one_user_or_one_moment_is_one_look(tmp_path: Path) -> None:
    together: list[tuple[float, int, int, str, float | None]] = [
        *((0.0, user, user, "model" if user % 2 else "control", None) for user in range(6)),
        (9.0, 7, 7, "model", None),
    ]
    for rows in (together, together[-2:]):
        there = archive(tmp_path / str(len(rows)), rows)
        asked = {"horizon_ms": HOUR, "every_ms": HOUR, "baseline": "model" if len(rows) == 2 else "control"}
        assert judge(there, tmp_path / "out", **asked)["verdict"]  # type: ignore[arg-type]


def test_files_of_an_earlier_schema_are_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    there = archive(tmp_path / "archive", crowd(0.3, 0.2, 400))
    spans: dict[str, Any] = {"horizon_ms": 4 * HOUR, "every_ms": 4 * HOUR}
    whole = judge(there, tmp_path / "out", **spans)["arms"]
    older = there / "exposures" / "0000000001.parquet"
    table = pq.read_table(older)
    pq.write_table(table.drop_columns(["price", "odds"]).select([*table.column_names[1:4], table.column_names[0]]
                   + [n for n in table.column_names[4:] if n not in ("price", "odds")]), older)  # fmt: skip
    assert judge(there, tmp_path / "out", **spans)["arms"] == whole
    assert judge(there, tmp_path / "out", value="price", **spans)["arms"][0]["value"] < 2.5 * whole[0]["value"]
    named = SCHEMA.replace(
        '"color"', '"arm"'
    )  # a field takes the archive's own name: its column has another from then on
    (there / "schema.toml").write_text(named)
    assert judge(there, tmp_path / "out", **spans)["arms"] == whole
    older.write_bytes(b"")
    with pytest.raises(LogError, match=r"0000000001\.parquet' cannot be read"):
        judge(there, tmp_path / "out", **spans)


def test_a_few_large_prices_are_not_enough() -> None:
    rows = exposures(*crowd(0.3, 0.2, 4000))
    dear = users_of(rows._replace(value=np.where(rows.user % 100 == 7, 100.0, 1.0)), 4 * HOUR)
    told = looks(dear, HOUR, False, "control")
    assert min(sum(row["arm"] == name for row in told) for name in ("control", "model")) > 40
    assert all(row["difference_low"] is None for row in told)


def test_of_more_arms_each_difference_has_less_of_the_error() -> None:
    rows = exposures(*crowd(0.3, 0.2))
    two, rest = looks(users_of(rows, 4 * HOUR), HOUR, True, "control")[-1], rows.user % 7 == 0
    more = rows._replace(arm=np.where(rest & (rows.arm == "model"), "x", rows.arm))
    last = {row["arm"]: row for row in looks(users_of(more, 4 * HOUR), HOUR, True, "control")[-3:]}
    found = last["model"]
    assert found["difference_high"] - found["difference_low"] > 1.05 * (two["difference_high"] - two["difference_low"])


def test_tiny_values_are_decided_like_large_ones() -> None:
    rows = exposures(*crowd(0.3, 0.2))
    since = decided_ms(looks(users_of(rows, 4 * HOUR), HOUR, True, "control"), "model")
    tiny = users_of(rows._replace(value=rows.value * 1e-9), 4 * HOUR)
    assert decided_ms(looks(tiny, HOUR, True, "control"), "model") == since
