"""What came of an archive's exposures after their rows were written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError, SchemaError
from millrace.commands.replay.logfeatures import LabelRows, Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples
from millrace.commands.replay.sent_again import clicked_in_time
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.contracts.schema import load_schema, parse_schema
from millrace.labels import REGISTRY, LabelPolicy
from millrace.logs import LogTable, read_log
from millrace.logs.later_events import LaterEvents
from millrace.logs.sorting import of_outcomes
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.archive_rows import Archive, TopicRecord
from stream.archive.schemafile import schema_text
from tests.scenes.late_outcomes import NOW, OUTCOMES, LateStream
from tests.scenes.stream_world import DAY, HOUR, MINUTE, POLICY, T0, TEXT

NAMES = [one.name for one in OUTCOMES.outcome]


def archived(stream: LateStream, folder: Path) -> Path:
    """An archive of what a stream was sent."""
    archive = Archive(stream.schema, POLICY.waits, HOUR, 1)
    for one in stream.messages:
        archive.take(TopicRecord(one.topic, 0, one.offset, one.key, one.raw, NOW))
    archive.advance(0, NOW)
    place, cut = ArchiveFolder(folder), archive.cut()
    place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
    place.put_schema(schema_text(stream.schema, POLICY.attribution_ms / MINUTE))
    place.close()
    return folder


def outcomes(folder: Path) -> dict[str, dict[tuple[str, int], int]]:
    """By name, what the archive says of each click's outcome."""
    schema = load_schema(folder / "schema.toml")
    log = read_log(folder / "exposures", schema)
    told = Labels(log, schema, LabelRows.of(log, schema), end_ms=NOW).outcomes
    ids = list(zip(log.table["request_id"].to_pylist(), log.table["slot"].to_pylist(), strict=True))
    return {
        name: {id: int(value) for id, value in zip(ids, told[:, k].tolist(), strict=True) if value == value}
        for k, name in enumerate(NAMES)
    }


def test_an_archive_tells_the_outcomes_that_the_stream_told(tmp_path: Path) -> None:
    """Random lives: orders, purchases of a page, some before any click, and refunds. Some come twice, with their time
    or another, some as another type; others are two of one millisecond."""
    late = refunded = 0
    for seed in range(8):
        rng = random.Random(seed)
        stream = LateStream(str(tmp_path / f"stream{seed}"))
        later: list[tuple[Any, ...]] = []
        for n in range(30):
            at, user, items = T0 + n * 20 * HOUR, rng.randrange(1, 4), rng.sample((1, 2, 3), 2)
            for of in [of for of in later if of[2] < at]:
                stream.act(*of)
                later.remove(of)
            stream.page(f"r{n}", at, items, user=user)
            for position, item in enumerate(items):
                if rng.random() < 0.5:
                    stream.act("click", f"r{n}", at + MINUTE, position, item, user)
                if rng.random() < 0.3:
                    later.append(("purchase", f"r{n}", at + rng.choice((2, 47 * 60)) * MINUTE, position, item, user))
            if rng.random() < 0.6:
                user, item = rng.randrange(1, 4), rng.randrange(1, 4)
                names = rng.choice((["o"], ["o", "o"], ["o", "p"], ["o", "p", "o"]))
                for name in names:
                    stream.order(at + rng.choice((3, 3, 4)) * MINUTE, item, user, id=f"{n}{name}")
                if rng.random() < 0.5:
                    # Each is of these orders: what an earlier one had told already, no archive takes back.
                    for name in rng.choice((["r"], ["r", "r"], ["o"], ["r", "s"] if "p" in names else ["r"])):
                        stream.order(at + rng.choice((5, 5, 6)) * MINUTE, item, user, "refund", f"{n}{name}")
                    refunded += 1
                if rng.random() < 0.3:  # one of before again, dated now
                    stream.order(at + 7 * MINUTE, item, user, id=f"{n - 1}o")
        stream.until(T0 + 100 * DAY)
        folder = archived(stream, tmp_path / f"archive{seed}")
        found = outcomes(folder)
        assert {name: found[name] for name in NAMES} == {name: stream.of(name) for name in NAMES}, seed
        kept = pq.read_table(folder / "exposures")["purchase_ms"]
        late += sum(found["purchase"].values()) - (len(kept) - kept.null_count)
    assert late > 10, "most come after the row was written"
    assert refunded > 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stream = LateStream(str(tmp_path / "stream"))
    stream.page("a", T0)
    stream.act("click", "a", T0 + MINUTE)
    stream.act("purchase", "a", T0 + 2 * MINUTE)
    stream.until(T0 + DAY)
    return archived(stream, tmp_path / "archive")


def purchases(folder: Path) -> list[int | None]:
    log = read_log(folder / "exposures", load_schema(folder / "schema.toml"))
    found: list[int | None] = log.table[of_outcomes("purchase_ms")].to_pylist()
    return found


def events(folder: Path, *rows: tuple[Any, ...]) -> None:
    """(type, time, user, item, page), and maybe an id and whether it was counted when its row was written."""
    names = ("type", "ts_ms", "user_id", "item_id", "request_id", "event_id", "after_row")[: len(rows[0])]
    (folder / "events").mkdir(exist_ok=True)
    table = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    pq.write_table(table, folder / "events" / "0000000099.parquet")


def test_a_refund_takes_back_what_the_row_says(folder: Path) -> None:
    assert purchases(folder)[:1] == [T0 + 2 * MINUTE]
    events(folder, ("refund", T0 + 9 * DAY, "7", "1", None))
    assert purchases(folder)[:1] == [None]
    events(folder, ("refund", T0 + 9 * DAY, "7", "1", None), ("order", T0 + 10 * DAY, "7", "1", None))
    assert purchases(folder)[:1] == [T0 + 10 * DAY], "bought again"
    events(folder, ("refund", T0 + MINUTE, "7", "1", None))
    assert purchases(folder)[:1] == [T0 + 2 * MINUTE], "a refund before it is of something else"


@pytest.mark.parametrize(
    ("names", "is_bought"),
    [("o r", False), ("o p r", True), ("o p r r", True), ("o p r s", False), ("o o r", False), ("  r", False)],
)
def test_refunds_of_one_millisecond_count_by_their_ids(folder: Path, names: str, is_bought: bool) -> None:
    """Orders o and p, refunds r and s. Where none has an id, what is the same is one."""
    kinds = {"o": "order", "p": "order", "r": "refund", "s": "refund", "": "order"}
    rows = [(kinds[one], T0 + (10 + (one in "rs")) * DAY, "7", "1", None, one or None) for one in names.split(" ")]
    own = ("refund", T0 + 3 * MINUTE, "7", "1", None, "own")  # of the page's purchase
    events(folder, own, *rows)
    assert (purchases(folder)[0] is not None) == is_bought


def test_an_event_of_nothing_that_was_shown_changes_nothing(folder: Path) -> None:
    before = purchases(folder)
    events(
        folder,
        ("purchase", T0 + DAY, "7", "2", "b"),
        ("purchase", T0 + DAY, "9", "2", "a"),
        ("purchase", T0 + DAY, "7", "2", None),
        ("purchase", T0 + DAY, None, None, None),
        ("order", T0 + DAY, "7", "3", None),
        ("refund", T0 + DAY, "7", "3", None),
    )
    assert purchases(folder) == before


def test_windows_count_what_the_stream_counted(folder: Path) -> None:
    """Also a purchase that is taken back, and a click that corrects a 0; an outcome on it is defined."""

    def counted() -> list[tuple[str, int]]:
        schema = load_schema(folder / "schema.toml")
        log: LogTable = read_log(folder / "exposures", schema)
        labels = Labels(log, schema, LabelRows.of(log, schema), end_ms=NOW)
        assert np.isfinite(labels.outcomes[:3, 0]).tolist() == labels.clicked[:3].tolist()
        actions, kinds, times = schema.windows.actions, labels.event_action.tolist(), labels.event_ms.tolist()
        return [(actions[kind], ms - T0) for kind, ms in zip(kinds, times, strict=True) if kind and ms < T0 + DAY]

    assert counted() == [("click", MINUTE), ("purchase", 2 * MINUTE)]
    events(
        folder,
        ("purchase", T0 + 9 * DAY, "7", "2", "a", "1", None),
        ("purchase", T0 + 3 * MINUTE, "7", "3", "a", "2", True),
        ("purchase", T0 + 3 * MINUTE, "7", "2", "a", "3", None),  # a dead letter of the stream
        ("click", T0 + 4 * MINUTE, "7", "2", "a", "4", True),
        ("refund", T0 + 5 * MINUTE, "7", "1", None, "5", None),
        ("refund", T0 + 5 * MINUTE, "7", "3", None, "6", None),
    )
    assert counted() == [
        ("click", MINUTE),
        ("purchase", 2 * MINUTE),
        ("purchase", 3 * MINUTE),
        ("click", 4 * MINUTE),
    ]
    assert purchases(folder)[:3] == [None, T0 + 3 * MINUTE, None]


def test_a_click_that_corrected_a_0_is_a_correction_in_replay(tmp_path: Path) -> None:
    """Of four exposures the first is clicked in time, and the last never. The second's click is beyond the window, the
    third's comes when its label was given."""
    stream = LateStream(str(tmp_path / "stream"))
    stream.page("a", T0, [1, 2, 3, 4])
    stream.act("click", "a", T0 + MINUTE, 0, 1)
    stream.until(T0 + 40 * MINUTE)
    stream.act("click", "a", T0 + 35 * MINUTE, 1, 2)
    stream.act("click", "a", T0 + 2 * MINUTE, 2, 3)
    stream.until(T0 + DAY)
    folder = archived(stream, tmp_path / "archive")
    schema = load_schema(folder / "schema.toml")
    log = read_log(folder / "exposures", schema)
    assert log.table["label"].to_pylist()[:4] == [1, 0, 0, 0]
    assert not log.decisions
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)

    def of(policy: LabelPolicy | None) -> list[tuple[int, int, float]]:
        made = KnownSamples.of(rows.ts_ms, labels, policy).take(slice(None))
        every = zip(made.row.tolist(), made.kind.tolist(), ((made.known_ms - T0) / MINUTE).tolist(), strict=True)
        return [one for one in every if one[0] < 4]

    late = [(0, POSITIVE, 1), *[(row, NEGATIVE, 30) for row in (1, 2, 3)], (2, CORRECTION, 30), (1, CORRECTION, 35)]
    assert of(REGISTRY["wait"]) == late
    at_once = [(row, NEGATIVE, 0) for row in range(4)] + [(0, CORRECTION, 1), (2, CORRECTION, 2), (1, CORRECTION, 35)]
    assert of(REGISTRY["fake-negative-weighted"]) == at_once
    assert of(None) == [(0, POSITIVE, 0), *[(row, NEGATIVE, 0) for row in (1, 2, 3)]]
    assert clicked_in_time(rows.ts_ms, labels)[:4].tolist() == [True, False, False, False]


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"type": ["purchase"]}), folder / "events" / "0000000099.parquet")
    with pytest.raises(LogError, match=r"0000000099.parquet' has no column 'ts_ms'"):
        purchases(folder)
    (folder / "events" / "0000000099.parquet").write_bytes(b"torn")
    with pytest.raises(LogError, match=r"0000000099.parquet' cannot be read"):
        purchases(folder)
    (folder / "events").rename(tmp_path / "away")
    with pytest.raises(LogError, match=r"'../events' is not beside the log .*drop the schema's log.events"):
        purchases(folder)
    with pytest.raises(SchemaError, match=r"log.events without log.request"):
        parse_schema(TEXT + '[log]\ntime = "t"\nuser = "u"\nitem = "i"\nlabel = "l"\nevents = "e"\n')


def test_every_archive_names_its_events() -> None:
    assert 'events = "../events"' in schema_text(parse_schema(TEXT), 10)


def test_no_event_at_all(tmp_path: Path) -> None:
    events(tmp_path, ("click", T0, "7", "1", "a"))
    own = pa.array([T0, None], pa.int64())
    found = LaterEvents(tmp_path / "events", ["purchase", "cart"])
    row = pa.array(["7", "7"]), pa.array(["a", "a"]), pa.array(["1", "2"])
    assert found.times("purchase", own, *row).to_pylist() == found.times("cart", own, *row).to_pylist() == [T0, None]
