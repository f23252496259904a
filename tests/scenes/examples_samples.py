"""Small made samples in the forms of the public logs that ``examples/`` describes: same files, columns, types, holes.

The values are made up, from a seed; nothing of a data set is in here. Clicks depend on the item, so that a model has
something to learn. Each writer takes an empty folder and returns the log's path.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rng = np.random.Generator
DAY_S = 86_400
ROWS = 900
USERS, ITEMS = 60, 40


def _times(rng: Rng, rows: int, days: float, start: datetime) -> list[datetime]:
    seconds = np.sort(rng.integers(0, int(days * DAY_S), rows))
    return [start + timedelta(seconds=int(s)) for s in seconds]


def _liked(rng: Rng, items: Iterable[int], rate: float = 0.3) -> np.ndarray:
    quality = np.random.default_rng(5).random(ITEMS) * 2 * rate
    return (rng.random(len(of := list(items))) < quality[of]).astype(int)


def _write(path: Path, rows: Iterable[Sequence[object]], separator: str, header: Sequence[str] | None = None) -> Path:
    lines = [separator.join(map(str, row)) for row in ([header] if header else [])] + [
        separator.join("" if cell is None else str(cell) for cell in row) for row in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _hex(rng: Rng, values: int, digits: int = 8) -> list[str]:
    return [
        f"{int(v):0{digits}x}" for v in rng.integers(0, 16**digits, values, dtype=np.int64 if digits < 16 else None)
    ]


def kuairand(folder: Path, rng: Rng) -> Path:
    """One Parquet file with outcomes in it, tables of users and videos beside it; exact copies of rows."""
    start = datetime(2022, 4, 24, 16, 30, tzinfo=UTC)
    times = _times(rng, ROWS, 5, start)
    videos = rng.integers(0, ITEMS, ROWS)
    clicks = _liked(rng, videos, 0.4)
    ms = [int(t.timestamp() * 1000) for t in times]
    log = pa.table(
        {
            "user_id": rng.integers(0, USERS, ROWS),
            "video_id": videos,
            "date": [int((t + timedelta(hours=8)).strftime("%Y%m%d")) for t in times],
            "hourmin": pa.array([int((t + timedelta(hours=8)).strftime("%H00")) for t in times], pa.int32()),
            "time_ms": ms,
            "is_click": clicks,
            "is_like": clicks * (rng.random(ROWS) < 0.05),
            "long_view": clicks * (rng.random(ROWS) < 0.6),
            "play_time_ms": np.where(clicks == 1, rng.integers(4_000, 90_000, ROWS), rng.integers(0, 2_500, ROWS)),
            "duration_ms": (videos + 3) * 1000,
            "tab": rng.integers(0, 5, ROWS),
            "author_id": videos % 17 + 7_000_000,
            "tag": [("39", "11,4", "unknown")[v % 3] for v in videos],
            "video_duration": (videos + 3) * 1000.0,
        }
    )
    pq.write_table(pa.concat_tables([log, log.slice(0, 30)]), folder / "log.parquet")
    numbers = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
    flags = ["is_lowactive_period", "is_live_streamer", "is_video_author"]
    header = ["user_id", "user_active_degree", *flags]
    header += [name for n in numbers for name in (n, f"{n}_range")] + [f"onehot_feat{i}" for i in range(18)]
    rows = []
    for user in range(USERS):
        counts = [cell for n in range(4) for cell in (int(user * 7**n), f"({n},{n + 250}]")]
        rows.append(
            [
                user,
                "full_active",
                0,
                user % 2,
                1,
                *counts,
                *[(user + i) % 3 for i in range(17)],
                None if user % 3 else 1.0,
            ]
        )
    with (folder / "user_features_pure.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    header = ["video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration"]
    header += ["server_width", "server_height", "music_id", "music_type", "tag"]
    with (folder / "video_features_basic_pure.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for v in range(ITEMS):
            own = [v, v % 17 + 7_000_000, "NORMAL", "2022-04-10", "LongImport", 0.0, (v + 3) * 1000.0]
            writer.writerow([*own, 720.0, 1280.0, 9_155_697_141 + v, 9.0, ("39", "11,4", "unknown")[v % 3]])
    return folder / "log.parquet"


def ebnerd(folder: Path, rng: Rng) -> Path:
    """Pages with lists of articles in view and of those clicked; no article on the front page; users hardly known. A
    larger file beside it has what each user had read before, some hundred times and articles each."""
    pages = ROWS // 6
    shown = [rng.choice(ITEMS, size=int(rng.integers(5, 9)), replace=False) for _ in range(pages)]
    clicked = [[int(s[0])] if not (on := s[_liked(rng, s) == 1]).size else on[:1].tolist() for s in shown]
    front = rng.random(pages) < 0.7
    table = pa.table(
        {
            "impression_id": pa.array(np.arange(pages) + 48_401, pa.uint32()),
            "article_id": pa.array(rng.integers(0, ITEMS, pages) + 9_774_000, pa.int32(), mask=front),
            "impression_time": pa.array(
                _times(rng, pages, 7, datetime(2023, 5, 18, 5, 0)),  # noqa: DTZ001 - the file's times have no zone
                pa.timestamp("us"),
            ),
            "read_time": pa.array(rng.integers(0, 200, pages), pa.float32()),
            "scroll_percentage": pa.array(rng.integers(9, 100, pages), pa.float32(), mask=front),
            "device_type": pa.array(rng.integers(1, 4, pages), pa.int8()),
            "article_ids_inview": pa.array([(s + 9_774_000).tolist() for s in shown], pa.list_(pa.int32())),
            "article_ids_clicked": pa.array([[c + 9_774_000 for c in one] for one in clicked], pa.list_(pa.int32())),
            "user_id": pa.array(rng.integers(0, USERS, pages) + 22_000, pa.uint32()),
            "is_sso_user": rng.random(pages) < 0.2,
            "gender": pa.array(rng.integers(0, 2, pages), pa.float64(), mask=rng.random(pages) < 0.9),
            "postcode": pa.array(rng.integers(0, 5, pages), pa.float64(), mask=rng.random(pages) < 0.95),
            "age": pa.array(rng.integers(2, 7, pages) * 10, pa.float64(), mask=rng.random(pages) < 0.95),
            "is_subscriber": rng.random(pages) < 0.1,
            "session_id": pa.array(rng.integers(1, 60, pages), pa.uint32()),
            "next_read_time": pa.array(rng.integers(0, 200, pages), pa.float32()),
            "next_scroll_percentage": pa.array(rng.integers(0, 100, pages), pa.float32(), mask=front),
        }
    )
    pq.write_table(table, folder / "behaviors.parquet")
    read = rng.integers(60, 131, USERS).tolist()
    past = {
        "user_id": pa.array(np.arange(USERS) + 22_000, pa.uint32()),
        "impression_time_fixed": pa.array(
            [_times(rng, n, 21, datetime(2023, 4, 27)) for n in read],  # noqa: DTZ001 - as above
            pa.list_(pa.timestamp("us")),
        ),
        "scroll_percentage_fixed": pa.array([rng.random(n) * 100 for n in read], pa.list_(pa.float32())),
        "article_id_fixed": pa.array([rng.integers(0, ITEMS, n) + 9_774_000 for n in read], pa.list_(pa.int32())),
        "read_time_fixed": pa.array([rng.random(n) * 200 for n in read], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(past), folder / "history.parquet")
    return folder / "behaviors.parquet"


def mind(folder: Path, rng: Rng) -> Path:
    """A row a page, tabs, no header line, American times, histories that may be empty; news with JSON in a column."""
    pages = ROWS // 6
    rows: list[list[object]] = []
    for i, time in enumerate(_times(rng, pages, 6, datetime(2019, 11, 9, tzinfo=UTC))):
        shown = rng.choice(ITEMS, size=int(rng.integers(2, 10)), replace=False)
        likes = _liked(rng, shown)
        user = int(rng.integers(0, USERS))
        pairs = " ".join(f"N{1000 + s}-{x}" for s, x in zip(shown, likes, strict=True))
        history = "" if user % 7 == 0 else " ".join(f"N{1000 + (user * k) % ITEMS}" for k in range(1, 5))
        hour = f"{time.month}/{time.day}/{time.year} {time.hour % 12 or 12}:{time:%M:%S %p}"
        rows.append([i + 1, f"U{13_000 + user}", hour, history, pairs])
    order = rng.permutation(pages)  # the file is not in the order of time
    _write(folder / "behaviors.tsv", [rows[i] for i in order], "\t")
    news = [
        [
            f"N{1000 + i}",
            ("news", "sports")[i % 2],
            f"sub{i % 5}",
            (f"Title {i}", f'"Title {i} opens a quote', f'{i} of "these"', f"Title {i}")[i % 4],
            "",
            f"https://example.org/{i}",
            "[]",
            "[]",
        ]
        for i in range(ITEMS)
    ]
    _write(folder / "news.tsv", news, "\t")
    return folder / "behaviors.tsv"


def _ratings(rng: Rng) -> list[list[int]]:
    users, items = np.divmod(rng.choice(USERS * ITEMS, ROWS, replace=False), ITEMS)
    stars = 2 + 2 * _liked(rng, items, 0.5) + rng.integers(0, 2, ROWS)
    at = [int(t.timestamp()) for t in _times(rng, ROWS, 60, datetime(1997, 9, 20, tzinfo=UTC))]
    rows = [list(map(int, row)) for row in zip(users + 1, items + 1, stars, at, strict=True)]
    return [rows[i] for i in rng.permutation(ROWS)]


def movielens(folder: Path, rng: Rng) -> Path:
    """100K: tabs in the ratings, pipes and Latin-1 in the tables, no header lines."""
    _write(folder / "u.data", _ratings(rng), "\t")
    _write(folder / "u.user", [[u, 20 + u % 40, "MF"[u % 2], "writer", "85711"] for u in range(1, USERS + 1)], "|")
    films = []
    for i in range(1, ITEMS + 1):
        flags = [int(g in (i % 19, 8)) for g in range(19)]
        films.append([i, f"Misérables, Les ({1990 + i % 9})", "01-Jan-1995", "", "http://us.imdb.com/x", *flags])
    text = "\n".join("|".join(map(str, film)) for film in films) + "\n"
    (folder / "u.item").write_bytes(text.encode("latin-1"))
    return folder / "u.data"


def movielens_1m(folder: Path, rng: Rng) -> Path:
    """1M: two colons between the columns, Latin-1 titles, genres in one text."""
    _write(folder / "ratings.dat", _ratings(rng), "::")
    _write(folder / "users.dat", [[u, "MF"[u % 2], 25, u % 21, "48067"] for u in range(1, USERS + 1)], "::")
    films = [f"{i}::Amélie: the {i}th (1995)::{('Drama', 'Action|Comedy')[i % 2]}" for i in range(1, ITEMS + 1)]
    (folder / "movies.dat").write_bytes(("\n".join(films) + "\n").encode("latin-1"))
    return folder / "ratings.dat"


def criteo_conversion(folder: Path, rng: Rng) -> Path:
    """Seconds from 0, a time of sale or nothing, 8 whole numbers and 9 hashes with holes, no header line."""
    seconds = np.sort(rng.integers(0, 6 * DAY_S, ROWS))
    kinds = rng.integers(0, ITEMS, ROWS)
    sales = _liked(rng, kinds)
    hashes = [_hex(rng, ITEMS) for _ in range(9)]
    rows: list[list[object]] = []
    for i in range(ROWS):
        sold = int(seconds[i] + rng.exponential(DAY_S / 2)) if sales[i] else None
        counts = [None if rng.random() < 0.2 else int(rng.geometric(0.05)) for _ in range(8)]
        names = [hashes[c][kinds[i] if c < 3 else int(rng.integers(0, ITEMS))] for c in range(9)]
        rows.append([seconds[i], sold, *counts, *[None if rng.random() < 0.1 else n for n in names]])
    return _write(folder / "data.txt", rows, "\t")


def criteo_attribution(folder: Path, rng: Rng) -> Path:
    """Seconds from 0, a header line, tabs; -1 where there was no sale; the columns after it are outcomes."""
    header = ["timestamp", "uid", "campaign", "conversion", "conversion_timestamp", "conversion_id", "attribution"]
    header += ["click", "click_pos", "click_nb", "cost", "cpo", "time_since_last_click"]
    header += [f"cat{i}" for i in range(1, 10)]
    seconds = np.sort(rng.integers(0, 6 * DAY_S, ROWS))
    items = rng.integers(0, ITEMS, ROWS)
    clicks = _liked(rng, items, 0.4)
    rows: list[list[object]] = []
    for i in range(ROWS):
        sold = bool(rng.random() < (0.2 if clicks[i] else 0.02))
        path = [int(seconds[i]) + 5000, 900 + i, int(sold and clicks[i])] if sold else [-1, -1, 0]
        clicked = [int(clicks[i]), 0 if sold and clicks[i] else -1, 1 if sold and clicks[i] else -1]
        money = [f"{rng.random() * 1e-4:.6g}", "0.3", int(rng.integers(-1, 90_000))]
        kinds = [30_000_000 + (int(items[i]) * k) % 50 for k in range(1, 10)]
        rows.append(
            [seconds[i], int(rng.integers(0, USERS)), 10_000 + items[i], int(sold), *path, *clicked, *money, *kinds]
        )
    return _write(folder / "criteo_attribution_dataset.tsv", rows, "\t", header)


def criteo_display(folder: Path, rng: Rng) -> Path:
    """No times, no header line: the label, 13 whole numbers (some below 0) and 26 hashes, with holes."""
    kinds = rng.integers(0, ITEMS, ROWS)
    clicks = _liked(rng, kinds)
    hashes = [_hex(rng, ITEMS) for _ in range(26)]
    rows: list[list[object]] = []
    for i in range(ROWS):
        counts = [None if rng.random() < 0.2 else int(rng.geometric(0.02)) - 2 for _ in range(13)]
        names = [hashes[c][kinds[i] if c in (1, 7) else int(rng.integers(0, ITEMS))] for c in range(26)]
        rows.append([clicks[i], *counts, *[None if rng.random() < 0.1 else n for n in names]])
    return _write(folder / "train.txt", rows, "\t")


def avazu(folder: Path, rng: Rng) -> Path:
    """Hours in digits, ids beyond 64 bits, hashes that may be all digits."""
    header = [
        "id",
        "click",
        "hour",
        "C1",
        "banner_pos",
        "site_id",
        "site_domain",
        "site_category",
        "app_id",
        "app_domain",
    ]
    header += ["app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type"]
    header += [f"C{i}" for i in range(14, 22)]
    items = rng.integers(0, ITEMS, ROWS)
    clicks = _liked(rng, items)
    devices = [(a, b) for a, b in zip(_hex(rng, USERS), _hex(rng, USERS), strict=True)]
    sites = _hex(rng, 12)
    rows: list[list[object]] = []
    for i, time in enumerate(_times(rng, ROWS, 3, datetime(2014, 10, 21, tzinfo=UTC))):
        ip, model = devices[int(rng.integers(0, USERS))]
        names = [sites[int(rng.integers(0, 12))] for _ in range(7)]
        own = [15_700 + items[i], 320, 50, 1700 + items[i] % 9, 0, 35, -1, 79]
        # Neighbours beyond 2^63 that one float would make one.
        rows.append(
            [10_000_949_271_186_029_916 + i, clicks[i], f"{time:%y%m%d%H}", 1005, i % 2, *names, ip, model, 1, 0, *own]
        )
    return _write(folder / "train.csv", rows, ",", header)


def open_bandit(folder: Path, rng: Rng) -> Path:
    """A first column without a name, times with microseconds and a zone, rare clicks, affinities to all items."""
    features, affinities = [f"user_feature_{i}" for i in range(4)], [f"user-item_affinity_{i}" for i in range(ITEMS)]
    header = ["", "timestamp", "item_id", "position", "click", "propensity_score", *features, *affinities]
    items = rng.integers(0, ITEMS, ROWS)
    clicks = _liked(rng, items, 0.05)
    hashes = _hex(rng, 12, 15)
    rows: list[list[object]] = []
    for i, time in enumerate(_times(rng, ROWS, 7, datetime(2019, 11, 24, tzinfo=UTC))):
        at = f"{time:%Y-%m-%d %H:%M:%S}.{i:06d}+00:00"
        names = [hashes[int(rng.integers(0, 12))] for _ in range(4)]
        rows.append([i, at, items[i], int(rng.integers(1, 4)), clicks[i], 0.0125, *names, *[0.0] * ITEMS])
    _write(folder / "all.csv", rows, ",", header)
    context = [[i, i, f"{rng.normal():.6f}", hashes[i % 7], hashes[i % 5], hashes[i % 3]] for i in range(ITEMS)]
    names = ["", "item_id", *[f"item_feature_{i}" for i in range(4)]]
    _write(folder / "item_context.csv", context, ",", names)
    return folder / "all.csv"


SAMPLES: dict[str, tuple[str, Callable[[Path, Rng], Path]]] = {
    "kuairand": ("kuairand/schema.toml", kuairand),
    "ebnerd": ("ebnerd/schema.toml", ebnerd),
    "mind": ("mind/schema.toml", mind),
    "movielens-100k": ("movielens/schema.toml", movielens),
    "movielens-1m": ("movielens/schema-1m.toml", movielens_1m),
    "criteo-conversion": ("criteo-conversion/schema.toml", criteo_conversion),
    "criteo-attribution": ("criteo-conversion/schema-attribution.toml", criteo_attribution),
    "criteo-display": ("criteo-display/schema.toml", criteo_display),
    "avazu": ("avazu/schema.toml", avazu),
    "open-bandit": ("open-bandit/schema.toml", open_bandit),
}
"""Name -> (its schema in ``examples/``, the writer of a sample)."""
