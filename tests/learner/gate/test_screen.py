"""Samples are judged by the stream's own clean past: what is refused, how soon, and what must not be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from experiments.safety.poisons import user_side
from learner.gate import screen as screens
from learner.gate.screen import WARM_CLICKS, WARM_ROWS
from learner.gate.screenkernels import BINS, LONG_MS, ROWS, VISITS
from millrace.contracts.events import PROFILE_MISSING, WINDOWS_MISSING
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import parse_schema
from millrace.versions.image import Array
from tests.scenes.learning import SCHEMA, START_MS
from tests.scenes.schemas import named, of_item, of_user, windows_of
from tests.scenes.screened_stream import DAY_MS, HOUR_MS, LAYOUT, Scored, Screen, Stream, labelled, learn, warm

Poison = Callable[[SampleBatch, np.random.Generator], SampleBatch]


def without_ids(*fields: str) -> Poison:
    def poison(batch: SampleBatch, rng: np.random.Generator) -> SampleBatch:
        cat = batch.cat.copy()
        cat[:, [name in fields for name in LAYOUT.cat_names]] = 0
        return replace(batch, cat=cat)

    return poison


def without_numbers(value: float, first: int = 0, stop: int | None = None) -> Poison:
    def poison(batch: SampleBatch, rng: np.random.Generator) -> SampleBatch:
        num = batch.num.copy()
        num[:, first:stop] = value
        return replace(batch, num=num)

    return poison


def flipped(batch: SampleBatch, rng: np.random.Generator) -> SampleBatch:
    return labelled(batch, 1 - batch.label)


POISONS: dict[str, tuple[Poison, str, str]] = {
    "flips": (flipped, "labels", ""),
    "ones": (lambda b, rng: labelled(b, np.ones(len(b))), "labels", ""),
    "half are flipped": (lambda b, rng: labelled(b, np.abs(b.label - (rng.random(len(b)) < 0.5))), "labels", ""),
    "zeros": (without_numbers(0.0), "numbers", "plain numbers of the item"),
    "not a number": (without_numbers(float("nan")), "numbers", "plain numbers of the item"),
    "no windows": (without_numbers(0.0, 1), "numbers", "windows of item_id"),
    "no user side": (without_ids("user_id"), "fields", "user side"),
    "no category": (without_ids("category"), "fields", "category"),
}


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("size", [128, 512])
def test_refuses_the_first_poisoned_batch(name: str, size: int) -> None:
    poison, check, what = POISONS[name]
    screen, stream = warm()
    batch, p = stream.batch(size)
    found = screen.look(poison(batch, stream.rng), p)
    assert found is not None
    assert (found.check, found.what) == (check, what)


@pytest.mark.parametrize("name", POISONS)
def test_refuses_small_batches_before_they_add_up_to_128_rows_or_20_visits(name: str) -> None:
    poison, check, _ = POISONS[name]
    screen, stream = warm()
    learn(screen, stream.batches(300, 4))
    passed = 0
    for batch, p in stream.batches(400, 4):
        bad = poison(batch, stream.rng)
        if screen.look(bad, p) is None:
            screen.learnt(bad, p)
            passed += len(batch)
    assert passed < (128 if check in ("labels", "auc") else 200)


USER_SCHEMA = parse_schema(
    named("readers")
    + of_user("user_id", "region", "age:numeric")
    + of_item("item_id", "price:numeric")
    + windows_of("user_id", "item_id", "user_id item_id", days=[1, 7])
)
USER_CAT, USER_NUM = user_side(USER_SCHEMA)
WINDOW_COLUMNS = [c for c in USER_NUM if c >= USER_SCHEMA.layout.window_start]


class Readers:
    """A small shop's samples: three pages of thirty rows a second, in visits of five pages.

    Args:
        spread: by how much visitors differ in what they click, as a deviation of logits, which the model knows.
    """

    def __init__(self, seed: int, spread: float = 0.0) -> None:
        self.rng, self.ts_ms, self.reading = np.random.default_rng(seed), START_MS, np.empty(0, np.int64)
        self.level = np.random.default_rng(seed + 100).normal(0, spread, 501)

    def page(self) -> Scored:
        """The next page, of which everything is there."""
        rng, layout = self.rng, USER_SCHEMA.layout
        if len(self.reading) < 60:
            self.reading = rng.permutation(np.append(self.reading, np.repeat(rng.integers(1, 501, 30), 5)))
        user, self.reading, self.ts_ms = int(self.reading[0]), self.reading[1:], self.ts_ms + 333
        t = -2.2 + self.level[user] + rng.normal(0, 1.2, 30)
        p = (1 / (1 + np.exp(-t))).astype(np.float32)
        kind = np.where(rng.random(30) < p, POSITIVE, NEGATIVE).astype(np.uint8)
        num = (rng.random((30, layout.N)) < 0.9).astype(np.float32)
        cat = np.ones((30, layout.F), np.int64)
        users = np.full(30, user, np.uint64)
        return SampleBatch.of_rows(kind, np.full(30, self.ts_ms), cat, num, user=users), p

    def pages(self, n: int, lacks: Callable[[int], int] = lambda user: 0) -> Iterator[Scored]:
        """Pages that were made without what ``lacks`` says, by user."""
        for _ in range(n):
            page, p = self.page()
            yield without(page, lacks(int(page.user[0]))), p


def without(page: SampleBatch, lacks: int, told: bool = True) -> SampleBatch:
    """The page without its user's profile or windows; ``told``: its log says so."""
    cat, num = page.cat.copy(), page.num.copy()
    if lacks & PROFILE_MISSING:
        cat[:, USER_CAT[1:]] = 0
        num[:, [c for c in USER_NUM if c not in WINDOW_COLUMNS]] = 0
    if lacks & WINDOWS_MISSING:
        num[:, WINDOW_COLUMNS] = 0
    return replace(page, cat=cat, num=num, user_missing=np.full(len(page), lacks * told, np.uint8))


NOBODY = PROFILE_MISSING | WINDOWS_MISSING


def read(seed: int = 0) -> tuple[Screen, Readers]:
    """A screen that has met some hours of a small shop."""
    screen, readers = Screen(USER_SCHEMA, HOUR_MS), Readers(seed)
    assert learn(screen, readers.pages(1500)) == []
    assert screen.warm
    return screen, readers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lacks",
    [
        pytest.param(lambda user: NOBODY if user % 30 == 0 else 0, id="guests"),
        pytest.param(lambda user: NOBODY, id="Redis is away"),
        pytest.param(lambda user: PROFILE_MISSING if user % 2 else NOBODY, id="windows come back first"),
    ],
)
def test_what_a_page_says_was_not_there_is_no_poison(lacks: Callable[[int], int], seed: int) -> None:
    screen, readers = read(seed)
    assert learn(screen, readers.pages(600, lacks)) == []
    assert learn(screen, readers.pages(100)) == []


@pytest.mark.parametrize("seed", range(3))
def test_one_visitor_of_many_pages_tells_no_more_than_one(seed: int) -> None:
    """A heavy reader whose windows are gone, and no page log says so."""
    screen, readers = read(seed)
    gone = []
    for page, p in readers.pages(300):
        gone.append((page, p))
        again = without(replace(page, user=np.full(30, 7, np.uint64)), NOBODY, told=False)
        gone.append((again, p))
    assert learn(screen, iter(gone)) == []


@pytest.mark.parametrize("lacks", [NOBODY, PROFILE_MISSING, WINDOWS_MISSING])
def test_a_missing_user_without_a_word_is_refused_within_a_minute(lacks: int) -> None:
    """At three pages a second, where the reader of five pages counts as one."""
    screen, readers = read()
    refused = learn(screen, ((without(page, lacks, told=False), p) for page, p in readers.pages(180)))
    assert refused
    assert {r.check for r in refused} <= {"numbers", "fields"}


def test_refuses_labels_that_follow_nothing() -> None:
    screen, stream = warm()
    passed = 0
    for batch, p in stream.batches(12_800, 128):
        if screen.look(labelled(batch, stream.rng.permutation(batch.label)), p) is None:
            passed += len(batch)
    assert passed < 4096


def test_refuses_when_clicks_stop() -> None:
    screen, stream = warm()
    refused = learn(screen, ((labelled(b, np.zeros(len(b))), p) for b, p in stream.batches(2048, 128)))
    assert {r.check for r in refused} == {"labels"}
    assert all(r.value < r.bound for r in refused)


@pytest.mark.parametrize("pause_minutes", [0, 4, 6, 60])
def test_behind_a_pause_clicks_that_come_late_are_not_missed_for_as_long(pause_minutes: int) -> None:
    """A page a second. Where nothing was shown for five minutes, too few clicks are no fault in the next five."""
    screen, stream = warm()
    stream.rows += pause_minutes * 600
    began_ms, passed = screen.clock.now_ms + pause_minutes * 60_000, 0
    for batch, p in stream.batches(6400, 128):
        few = batch.label * (stream.rng.random(len(batch)) < 0.1)
        if screen.look(labelled(batch, few), p) is None:
            screen.learnt(batch, p)
            passed = screen.clock.now_ms - began_ms
    assert (290_000 < passed < 330_000) if pause_minutes > 5 else passed < 120_000


@pytest.mark.parametrize(
    ("page_seconds", "read_at_once", "hours"),
    [(360, 10, 0), (10, 2000, 0), (40, 900, 10)],
    ids=["a page in six minutes", "a backlog", "a backlog of partitions in turn"],
)
def test_few_pages_and_a_backlog_are_no_pause(page_seconds: int, read_at_once: int, hours: int) -> None:
    """Clicks are lost for good. ``hours``: of a partition, of which the next one has them again; 0: there is one."""
    screen, stream = warm()
    began_ms, passed = screen.clock.now_ms, 0
    for read in range(3600 // read_at_once):
        rows, p = stream.batch(read_at_once)
        page = np.arange(read_at_once) // 10 + (0 if hours else read * read_at_once // 10)
        ts_ms = began_ms + page * page_seconds * 1000 + read // 4 * hours * HOUR_MS
        rows = replace(labelled(rows, np.zeros(len(rows))), ts_ms=ts_ms)
        screen.clock.meet(rows)
        for start in range(0, read_at_once, 128):
            part = slice(start, start + 128)
            passed += len(p[part]) * (screens.Screen.look(screen, rows.take(part), p[part]) is None)
    assert passed < 300


def test_behind_a_pause_what_is_clicked_too_often_is_refused() -> None:
    screen, stream = warm()
    stream.rows += 36_000
    batch, p = stream.batch(512)
    refusal = screen.look(labelled(batch, np.ones(512)), p)
    assert refusal is not None
    assert refusal.check == "labels"


WAITS_MS = 10_000  # an exposure, to be clicked
STOPS = (4500, 5000, 5500)  # pages of a stream behind one; the first is long behind the warm-up


def with_stops(page_ms: int, size: int, stop_ms: int, label: float | None = None) -> Iterator[Scored]:
    """Pages whose clicks come at once, and the rest when they waited. For a while before each page of :data:`STOPS`
    none are shown, and nothing comes. ``label``: of all rows behind the last one."""
    rows, p = Stream(0).batch(10 * 7000)
    page = np.arange(len(rows)) // 10
    if label is not None:
        rows = labelled(rows, np.where(page >= STOPS[-1], label, rows.label))
    shown_ms = START_MS + page * page_ms + stop_ms * np.searchsorted(STOPS, page, side="right")
    comes_ms = shown_ms + np.where(rows.label > 0, 0, WAITS_MS)
    for stop in STOPS:
        resumes_ms = shown_ms[10 * stop]
        comes_ms[(comes_ms > resumes_ms - stop_ms) & (comes_ms < resumes_ms)] = resumes_ms
    order = np.argsort(comes_ms, kind="stable")
    coming, p = replace(rows, ts_ms=shown_ms).take(order), p[order]
    for first in range(0, len(p), size):
        part = slice(first, first + size)
        yield coming.take(part), p[part]


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("stop_s", [0, 9, 30, 80, 280])
def test_behind_a_stop_clicks_come_alone_and_are_no_fault(stop_s: int, size: int) -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    assert learn(screen, with_stops(100, size, stop_s * 1000)) == []
    assert screen.warm


def at_the_last_stop(page_ms: int, size: int, label: float | None = None) -> tuple[Screen, list[Scored]]:
    """A screen that has met a stream until a stop of 80 s, and what comes behind it."""
    coming, shown_ms = list(with_stops(page_ms, size, 80_000, label)), START_MS + STOPS[-1] * page_ms + 3 * 80_000
    first = next(i for i, (batch, _) in enumerate(coming) if batch.ts_ms.max() >= shown_ms)
    screen = Screen(SCHEMA, HOUR_MS)
    assert learn(screen, iter(coming[:first])) == []
    assert screen.warm
    return screen, coming[first:]


@pytest.mark.parametrize(("page_ms", "size"), [(100, 512), (100, 64), (1000, 16), (60_000, 16)])
@pytest.mark.parametrize("label", [0, 1])
def test_behind_a_stop_what_all_click_or_nobody_is_refused(label: float, page_ms: int, size: int) -> None:
    screen, coming = at_the_last_stop(page_ms, size, label)
    passed = sum(len(batch) for batch, p in coming if screen.look(batch, p) is None)
    assert passed < 600 + (1 - label) * 10 * 1.5 * LONG_MS / page_ms


@pytest.mark.parametrize("clock_s", [-3600, -300, -30, 0, 30, 240, 3600])
@pytest.mark.parametrize("page_ms", [50, 100])
def test_half_a_minute_of_lost_clicks_is_refused_whatever_clocks_of_some_say(clock_s: int, page_ms: int) -> None:
    screen, coming = at_the_last_stop(page_ms, 64, 0)
    ahead = [replace(b, ts_ms=b.ts_ms + 1000 * clock_s * (b.user % 5 == 0).astype(np.int64)) for b, _ in coming]
    passed = sum(len(b) for b, (_, p) in zip(ahead, coming, strict=True) if screen.look(b, p) is None)
    assert passed < 10 * 1.5 * LONG_MS / page_ms


@pytest.mark.parametrize("page_ms", [50, 100])
def test_eight_times_as_many_clicks_that_rank_as_ever_are_refused_before_they_are_usual(page_ms: int) -> None:
    screen, coming = at_the_last_stop(page_ms, 64)
    rng = np.random.default_rng(1)
    more = [(labelled(b, rng.random(len(b)) < 8 * p), p) for b, p in coming]
    assert len(learn(screen, iter(more))) > len(more) / 2


@pytest.mark.parametrize("clock_s", [-3600, -300, -30, 0, 5, 60, 3600])
def test_behind_a_stop_bots_who_click_everything_are_refused_whatever_their_clock_says(clock_s: int) -> None:
    screen, coming = at_the_last_stop(100, 64)
    passed = 0
    for batch, p in coming:
        bot = np.arange(len(batch)) % 3 == 0
        mixed = replace(labelled(batch, batch.label + bot > 0), ts_ms=batch.ts_ms + 1000 * clock_s * bot)
        passed += len(batch) * (screen.look(mixed, p) is None)
    assert passed < 1000


@pytest.mark.parametrize("size", [1, 17, 128, 512])
def test_passes_a_clean_stream(size: int) -> None:
    screen, stream = warm(size=512)
    assert learn(screen, stream.batches(40 * min(size, 256) + 2000, size)) == []


def test_judges_nothing_but_finiteness_before_it_is_warm() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    learn(screen, stream.batches(WARM_ROWS // 2, 512))
    for poison, _, _ in POISONS.values():
        batch, p = stream.batch(512)
        assert screen.look(poison(batch, stream.rng), p) is None
    p[3] = np.nan
    found = screen.look(batch, p)
    assert found is not None
    assert (found.check, found.value) == ("finite", 1)


def test_few_clicks_are_no_past() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0, base=-7.0)
    learn(screen, stream.batches(2 * WARM_ROWS, 512))
    assert screen.snapshot()["promoted"][1] < WARM_CLICKS
    assert not screen.warm


def test_what_is_not_promoted_is_no_past() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    for batch, p in stream.batches(2 * WARM_ROWS, 512):
        screen.look(batch, p)
        screen.learnt(batch, p)
    assert not screen.warm
    screen.promoted()
    assert screen.warm


def test_what_went_back_never_happened() -> None:
    screen, stream = warm()
    before = screen.snapshot()
    for batch, p in stream.batches(1500, 100):
        screen.look(batch, p)
        screen.learnt(batch, p)
    screen.went_back()
    screen.promoted()
    after = screen.snapshot()
    assert all(np.array_equal(after[name], before[name]) for name in ("past", "promoted", "stretch"))


def test_clean_rows_pass_soon_after_poison() -> None:
    screen, stream = warm()
    assert len(learn(screen, ((flipped(b, stream.rng), p) for b, p in stream.batches(12_800, 128)))) == 100
    learn(screen, stream.batches(4096 + 128, 128))
    assert learn(screen, stream.batches(12_800, 128)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("released", [False, True], ids=["some hours later", "bounds have just begun anew"])
def test_a_broken_tracker_is_told_from_the_quiet_around_it_and_no_clean_row_behind_it_is_refused(
    released: bool, seed: int
) -> None:
    """No clicks for five minutes at three pages a second, a batch each second; before and behind it a quiet hour, in
    which readers click half as much."""
    screen, readers = read(seed)
    if released:
        screen.rebase()

    def seconds(n: int, silent: bool) -> Iterator[Scored]:
        for _ in range(n):
            pages = list(readers.pages(3))
            batch, p = SampleBatch.concat([page for page, _ in pages]), np.concatenate([p for _, p in pages])
            quiet = (batch.label > 0) & (readers.rng.random(len(batch)) < 0.5)
            yield labelled(batch, quiet & (not silent)), p

    assert learn(screen, seconds(60, silent=False)) == []
    refused = learn(screen, seconds(300, silent=True))
    assert len(refused) > 240, "it is told within a minute"
    assert {r.check for r in refused} == {"labels"}
    screen.went_back()  # of the rows before it was told, those of the open stretch
    assert learn(screen, seconds(600, silent=False)) == []


def test_a_few_items_on_the_first_place_tell_no_more_than_few_items() -> None:
    """Each visitor's first row is of one of three new items, of which nothing was counted yet."""
    screen, stream = warm(1)

    def with_items(rows: int, new: bool) -> Iterator[Scored]:
        for batch, p in stream.batches(rows, 100):
            item, num = stream.rng.integers(100, 2000, 100).astype(np.uint64), batch.num.copy()
            if new:
                first = np.flatnonzero(np.diff(batch.user, prepend=0))  # rows of their visitors
                item[first] = stream.rng.integers(1, 4, len(first))
                num[first, LAYOUT.window_start :] = 0
            yield replace(batch, item=item, num=num), p

    assert learn(screen, with_items(40_000, new=False)) == []
    assert learn(screen, with_items(5000, new=True)) == []
    screen, stream = warm(1)
    assert learn(screen, with_items(40_000, new=False)) == []
    gone = ((without_numbers(0.0, 1)(b, stream.rng), p) for b, p in with_items(1000, new=False))
    assert learn(screen, gone)[0].what == "windows of item_id"


def test_rows_that_come_doubled_tell_no_more_than_once() -> None:
    """As many rows again, of the same visitors: shares are as sure as they were."""
    screen, stream = warm()
    twin = Screen(SCHEMA, HOUR_MS)
    twin.resume(screen.snapshot())
    batch, p = stream.batch(100)
    both = SampleBatch.concat([batch, batch])
    screen.look(batch, p)
    twin.look(both, np.concatenate([p, p]))
    once, doubled = screen._windows.block, twin._windows.block
    assert doubled[ROWS] == 2 * once[ROWS]
    assert (doubled[VISITS : -2 * BINS] == once[VISITS : -2 * BINS]).all()


@pytest.mark.parametrize(("rate", "least", "most"), [(1.0, 30, 50), (100.0, 16_384 / 6000, 18_432 / 6000)])
def test_a_warm_up_is_of_rows_or_of_half_an_hour(rate: float, least: float, most: float) -> None:
    """At a row a second 16,384 rows are four and a half hours."""
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    size, promoted, rows = (16, 304, 0) if rate == 1.0 else (512, 2048, 0)
    while not screen.warm:
        batch, p = stream.batch(size)
        ts_ms = START_MS + ((batch.ts_ms - START_MS) / (rate / 10)).astype(np.int64)
        batch = replace(batch, ts_ms=ts_ms)
        assert screen.look(batch, p) is None
        screen.learnt(batch, p)
        rows += size
        if rows % promoted == 0:
            screen.promoted()
    minutes = rows / rate / 60
    assert least <= minutes <= most
    bad = [stream.batch(size) for _ in range(512 // size)]
    assert any(screen.look(flipped(b, stream.rng), p) for b, p in bad)


def test_a_sale_passes_and_as_many_random_clicks_do_not() -> None:
    """The model does not follow here, as it does in truth, so the sale stays as it was when it began."""
    screen, stream = warm()
    stream.rate = 2.2
    batches = list(stream.batches(4096, 128))
    ratio = sum(b.label.sum() for b, _ in batches) / sum(p.sum() for _, p in batches)
    assert 1.6 < ratio < 3
    assert learn(screen, iter(batches)) == []
    screen, stream = warm()
    extra = []
    for batch, p in stream.batches(4096, 128):
        clicks = (batch.label > 0) | (stream.rng.random(len(p)) < 0.1)
        extra.append((labelled(batch, clicks), p))
    assert sum(b.label.sum() for b, _ in extra) / sum(p.sum() for _, p in extra) < 3
    assert {r.check for r in learn(screen, iter(extra))} == {"labels"}


def test_no_click_at_all_is_the_world_once_it_was_refused_for_the_stated_time() -> None:
    """A shop that sends no clicks any more: behind a rebase, by which its rows are the world, they are learnt."""
    screen, stream = warm()

    def without_clicks(rows: int) -> Iterator[Scored]:
        return ((labelled(batch, np.zeros(len(batch))), p) for batch, p in stream.batches(rows, 128))

    assert learn(screen, without_clicks(4096))
    screen.rebase()
    assert learn(screen, without_clicks(8192)) == []
    screen, stream = warm()
    assert learn(screen, ((flipped(batch, stream.rng), p) for batch, p in stream.batches(1024, 128)))
    screen.rebase()
    assert learn(screen, without_clicks(4096)), "labels that were refused for being too many say nothing of silence"


def test_labels_that_are_broken_too_are_told_beside_numbers() -> None:
    screen, stream = warm()
    (one, p), (other, q) = stream.batches(1024, 512)
    first = screen.look(without_numbers(0.0)(one, stream.rng), p)
    second = screen.look(labelled(without_numbers(0.0)(other, stream.rng), np.zeros(512)), q)
    assert first is not None
    assert second is not None
    assert (first.check, first.what) == ("numbers", "plain numbers of the item")
    assert (second.check, second.what) == ("numbers", "plain numbers of the item (labels too)")


def with_items(
    stream: Stream, rows: int, catalogue: int, met: dict[int, int], lost: bool = False, goods: int = 500
) -> Iterator[Scored]:
    """Pages of goods; windows of one that was first shown less than five minutes ago, 3,000 rows, are empty, and of all
    where they are ``lost``."""
    ids = np.random.default_rng(catalogue).integers(1, 1 << 63, goods)
    for batch, p in stream.batches(rows, 64):
        item = stream.rng.choice(ids, 64)
        num = batch.num.copy()
        num[[lost or stream.rows < met.setdefault(int(i), stream.rows) + 3000 for i in item], 1:] = 0
        yield replace(batch, item=item.astype(np.uint64), num=num), p


@pytest.mark.parametrize("seconds", range(0, 1800, 300))  # since items became known
def test_a_new_catalogue_is_no_poison_and_lost_windows_of_items_are(seconds: int) -> None:
    screen, stream, met = Screen(SCHEMA, HOUR_MS), Stream(0), dict[int, int]()
    assert learn(screen, with_items(stream, 36_000 + 10 * seconds, 1, met)) == []
    assert screen.warm
    assert learn(screen, with_items(stream, 36_864, 2, met)) == []
    refused = learn(screen, with_items(stream, 1024, 2, met, lost=True))
    assert refused
    assert {one.what for one in refused} == {"windows of item_id"}


@pytest.mark.parametrize("goods", [500, 30_000])
def test_labels_of_a_new_catalogue_tell_nothing_until_the_model_may_know_them(goods: int) -> None:
    """By hash, one row in a hundred of many goods seems known."""
    screen, stream, met = Screen(SCHEMA, HOUR_MS), Stream(0), dict[int, int]()
    assert learn(screen, with_items(stream, 60_000, 1, met, goods=goods)) == []
    ignorant = np.full(64, 0.01, np.float32)  # a seventh of what is clicked, of all goods alike
    assert learn(screen, ((b, ignorant) for b, _ in with_items(stream, 16_384, 2, met, goods=goods))) == []
    assert learn(screen, with_items(stream, 40_000, 2, met, goods=goods)) == []
    refused = learn(screen, ((flipped(b, stream.rng), p) for b, p in with_items(stream, 1024, 2, met, goods=goods)))
    assert "labels" in {one.check for one in refused}


def test_late_clicks_on_goods_that_are_gone_are_no_poison() -> None:
    """Nothing is predicted beside them any more."""
    screen, stream, met = Screen(SCHEMA, HOUR_MS), Stream(0), dict[int, int]()

    def late_after(batches: Iterator[Scored], behind: deque[SampleBatch]) -> Iterator[Scored]:
        """Three clicks of 64 rows come 64 batches later."""
        for batch, p in batches:
            behind.append(batch)
            late = labelled(behind[0].take(slice(0, 3)), np.ones(3))
            late = replace(late, kind=np.full(3, CORRECTION, np.uint8))
            yield SampleBatch.concat([batch, late]), np.concatenate([p, p[:3]])

    behind = deque[SampleBatch](maxlen=64)
    assert learn(screen, late_after(with_items(stream, 60_000, 1, met), behind)) == []
    assert learn(screen, late_after(with_items(stream, 60_000, 2, met), behind)) == []


def test_where_hardly_an_item_comes_twice_labels_of_new_ones_tell_from_the_third_hour_on() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)

    def rows(n: int) -> Iterator[Scored]:
        for batch, p in stream.batches(n, 512):
            yield replace(batch, item=stream.rng.integers(1, 1 << 63, 512).astype(np.uint64)), p

    assert learn(screen, rows(40_960)) == []
    assert not screen.knows(np.arange(1, 9, dtype=np.uint64)).any()
    assert learn(screen, rows(72_000)) == []
    refused = learn(screen, ((flipped(b, stream.rng), p) for b, p in rows(1024)))
    assert "labels" in {one.check for one in refused}


def test_a_new_catalogue_is_no_poison_where_some_of_it_seems_known() -> None:
    """By hash: one row in a hundred, and so one visit in ten has such a row."""
    screen, stream, met = Screen(SCHEMA, HOUR_MS), Stream(0), dict[int, int]()
    assert learn(screen, with_items(stream, 60_000, 1, met, goods=30_000)) == []
    assert learn(screen, with_items(stream, 16_384, 2, met, goods=30_000)) == []


def test_a_changed_world_is_normal_after_a_rebase() -> None:
    screen, stream = warm()
    before = stream.rate
    stream.rate = 8.0
    assert learn(screen, stream.batches(2048, 128))
    screen.rebase()
    assert not screen.warm
    assert learn(screen, stream.batches(2 * WARM_ROWS, 512)) == []
    assert learn(screen, stream.batches(4096, 128)) == []
    stream.rate = before
    assert {r.check for r in learn(screen, stream.batches(2048, 128))} == {"labels"}


def test_rows_from_before_a_rebase_are_in_no_window_behind_it() -> None:
    """At a row a second a warm-up is of fewer rows than a window."""
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)

    def a_row_a_second(rows: int, poison: Poison) -> list[str]:
        found = []
        for n in range(rows // 16):
            batch, p = stream.batch(16)
            batch = poison(batch, stream.rng)
            batch = replace(batch, ts_ms=START_MS + (batch.ts_ms - START_MS) * 10)
            refusal = screen.look(batch, p)
            screen.learnt(batch, p)
            if n % 19 == 18:
                screen.promoted()
            found += [refusal.check] if refusal else []
        return found

    assert a_row_a_second(4096, without_ids("category")) == []
    assert screen.warm
    screen.rebase()
    assert a_row_a_second(3200, without_ids()) == []
    assert screen.warm


def with_corrections(stream: Stream, rows: int, size: int) -> Iterator[Scored]:
    """Each exposure is a negative first, and a click a second sample, 200 rows later."""
    batch, p = stream.batch(rows)
    clicks = np.flatnonzero(batch.label > 0)
    row = np.concatenate([np.arange(rows), clicks])
    corrects = np.arange(len(row)) >= rows
    order = np.argsort(row + 200 * corrects, kind="stable")
    row, corrects = row[order], corrects[order]
    both = replace(
        batch.take(row),
        kind=np.where(corrects, CORRECTION, NEGATIVE).astype(np.uint8),
        label=corrects.astype(np.float32),
    )
    for first in range(0, len(row), size):
        part = slice(first, first + size)
        yield both.take(part), p[row][part]


def test_corrections_count_once() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    assert learn(screen, with_corrections(stream, 50_000, 128)) == []
    assert screen.warm
    batch, p = stream.batch(128)
    found = screen.look(flipped(batch, stream.rng), p)
    assert found is not None


def test_few_corrections_alone_tell_nothing() -> None:
    """Under load micro-batches have some rows, and there is nothing that corrections alone can be compared with."""
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    learn(screen, with_corrections(stream, 50_000, 128))
    batch, p = stream.batch(400)
    alone = batch.take(batch.label > 0)
    alone.kind[:] = CORRECTION
    for size in (1, 3, len(alone) - 4):
        assert screen.look(alone.take(slice(0, size)), p[batch.label > 0][:size]) is None


def in_lumps(stream: Stream, rows: int) -> Iterator[Scored]:
    """Clicks come at once and the others up to 400 rows later, in lumps: what is usual is not what is independent."""
    waiting: list[Scored] = []
    for i, (batch, p) in enumerate(stream.batches(rows, 100)):
        clicked = batch.label > 0
        waiting.append((batch.take(~clicked), p[~clicked]))
        yield batch.take(clicked), p[clicked]
        if i % 4 == 3:
            yield from waiting
            waiting = []


def clicks_first(pages: Iterator[Scored], later: int) -> Iterator[Scored]:
    """Clicks come at once, the others of a page when so many more pages were seen: those of other visitors."""
    waiting: deque[Scored] = deque()
    for batch, p in pages:
        clicked = batch.label > 0
        waiting.append((batch.take(~clicked), p[~clicked]))
        yield batch.take(clicked), p[clicked]
        if len(waiting) > later:
            yield waiting.popleft()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_clicks_of_few_visitors_beside_what_others_passed_over_tell_no_auc(seed: int) -> None:
    """A visitor who clicks little clicks just now, and what comes of ten seconds ago is of one who clicks much."""
    screen, readers = Screen(USER_SCHEMA, HOUR_MS), Readers(seed, spread=1.5)
    assert learn(screen, clicks_first(readers.pages(5000), later=30)) == []
    assert screen.warm


def test_lumps_are_usual_where_they_are_usual() -> None:
    screen, stream = Screen(SCHEMA, HOUR_MS), Stream(0)
    assert learn(screen, in_lumps(stream, 80_000)) == []
    assert screen.warm
    refused = learn(screen, ((flipped(b, stream.rng), p) for b, p in stream.batches(5120, 512)))
    assert len(refused) == 10


def test_goes_on_from_a_snapshot_to_the_bit() -> None:
    screen, stream = warm()
    learn(screen, stream.batches(1000, 30))
    other = Screen(SCHEMA, HOUR_MS)
    other.resume(screen.snapshot())
    other.clock.resume(screen.clock.snapshot())
    coming = list(stream.batches(3000, 30))
    coming += [(flipped(b, stream.rng), p) for b, p in stream.batches(600, 30)]
    for each in (screen, other):
        each.absurd(coming[0][0])
    assert learn(screen, iter(coming)) == learn(other, iter(coming)) != []
    assert same(screen.snapshot(), other.snapshot())
    other.resume({})
    assert same(other.snapshot(), Screen(SCHEMA, HOUR_MS).snapshot())


def test_a_state_of_other_columns_is_a_fresh_start() -> None:
    schema = parse_schema('name = "other"\n[[fields]]\nname = "item_id"\nof = "item"\n')
    other = Screen(schema, HOUR_MS)
    other.resume(warm()[0].snapshot())
    assert same(other.snapshot(), Screen(schema, HOUR_MS).snapshot())


def test_a_snapshot_stays_as_it_was() -> None:
    screen, stream = warm()
    before = screen.snapshot()
    kept = {name: array.copy() for name, array in before.items()}
    learn(screen, stream.batches(4000, 128))
    assert same(before, kept)
    assert not same(screen.snapshot(), kept)


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# -- absurd rows ---------------------------------------------------------------------------------------------


def shown_at(*ts_ms: int) -> SampleBatch:
    n = len(ts_ms)
    return SampleBatch.of_rows(
        np.zeros(n, np.uint8),
        np.array(ts_ms, np.int64),
        np.ones((n, LAYOUT.F), np.int64),
        np.ones((n, LAYOUT.N), np.float32),
    )


def test_a_date_far_ahead_is_absurd() -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    times = [START_MS + 1000 * i for i in range(20)]
    times[7] += 100 * DAY_MS
    assert np.flatnonzero(screen.absurd(shown_at(*times))).tolist() == [7]
    assert screen.absurd(shown_at(START_MS + 100 * DAY_MS)).tolist() == [True]
    assert screen.absurd(shown_at(START_MS + 30_000)).tolist() == [False]
    assert START_MS <= screen.clock.now_ms <= START_MS + 30_000


def test_an_absurd_first_row_is_not_the_measure_of_what_follows() -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    screen.absurd(shown_at(START_MS + 100 * DAY_MS))  # nothing to compare it with
    assert not screen.absurd(shown_at(START_MS, START_MS + 1, START_MS + 2)).any()
    assert screen.absurd(shown_at(START_MS + 100 * DAY_MS)).tolist() == [True]


def test_a_quiet_night_is_not_absurd() -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    screen.absurd(shown_at(*[START_MS + 1000 * i for i in range(20)]))
    assert not screen.absurd(shown_at(START_MS + 10 * HOUR_MS)).any()


def test_after_a_long_stop_few_pages_are_taken_for_absurd() -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    screen.absurd(shown_at(*[START_MS + 1000 * i for i in range(20)]))
    later = START_MS + 30 * DAY_MS
    refused = [bool(screen.absurd(shown_at(later + 1000 * i)).any()) for i in range(30)]
    assert sum(refused) <= 8
    assert not any(refused[8:])


@pytest.mark.parametrize(
    ("column", "value", "absurd"),
    [
        ("label", 1.5, True),
        ("label", -0.1, True),
        ("label", np.nan, True),
        ("label", 0.5, False),
        ("weight", 0.0, True),
        ("weight", np.inf, True),
        ("weight", np.nan, True),
        ("weight", 3.0, False),
    ],
)
def test_labels_and_weights_that_cannot_be(column: str, value: float, absurd: bool) -> None:
    batch = shown_at(START_MS, START_MS)
    getattr(batch, column)[1] = value
    assert Screen(SCHEMA, HOUR_MS).absurd(batch).tolist() == [False, absurd]
    follow_up = replace(batch, kind=np.full(2, FOLLOW_UP, np.uint8))  # its label means nothing
    assert not Screen(SCHEMA, HOUR_MS).absurd(follow_up).any()


@pytest.mark.parametrize(
    ("value", "absurd"), [(1e31, True), (-1e31, True), (1e29, False), (np.inf, False), (np.nan, False)]
)
def test_numbers_out_of_all_bounds(value: float, absurd: bool) -> None:
    """What is not finite is read as 0, and counted as such by the model."""
    batch = shown_at(START_MS, START_MS, START_MS)
    batch.num[1, 2] = value
    batch.num[2, 0] = np.nan
    assert Screen(SCHEMA, HOUR_MS).absurd(batch).tolist() == [False, absurd, False]


def test_nothing_is_absurd_of_nothing() -> None:
    screen = Screen(SCHEMA, HOUR_MS)
    assert screen.absurd(shown_at()).tolist() == []
    assert screen.look(shown_at(), np.empty(0, np.float32)) is None
    assert screen.clock.now_ms == 0
