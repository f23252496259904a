"""An imported log is the log: the same rows, to the bit, by any schema with its rules."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from millrace.basics.atomic_files import temporary_beside
from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import read_log
from millrace.logs.imported import MANIFEST, ImportedLog
from millrace.logs.importing import import_log
from tests.scenes import small_logs
from tests.scenes.small_logs import LISTED, MS, PAGES, ROWS, plan, save, schema, traffic, written

DAY = 86_400_000


def same(folder: Path, source: Path, own: Schema) -> None:
    read, direct = read_log(folder, own), read_log(source, own)
    assert read.table.schema.names == direct.table.schema.names
    for name in direct.table.column_names:
        assert read.table[name].type == direct.table[name].type, name
        assert read.table[name].to_pylist() == direct.table[name].to_pylist(), name
    assert (read.rows_read, read.duplicates, read.skipped) == (direct.rows_read, direct.duplicates, direct.skipped)
    assert set(direct.decisions) <= set(read.decisions)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
@pytest.mark.parametrize("identity", ["", 'identity = ["at", "who", "what"]\n'])
def test_an_imported_log_is_the_log(tmp_path: Path, form: str, identity: str) -> None:
    source = save(traffic(700, seed=5), tmp_path / form)
    import_log([source], plan(identity), tmp_path / "in")
    same(tmp_path / "in", source, plan(identity))


def test_users_and_thresholds_are_settled(tmp_path: Path) -> None:
    rows = [row | {"account": row["who"] if n % 2 else None, "read": 10.0 * n} for n, row in enumerate(ROWS)]
    outcome = '[[outcome]]\nname = "long"\ncolumn = "read"\nat_least = 30\n'
    text = small_logs.TEXT.replace('user = "who"', 'user = ["account", "who"]') + outcome
    source = written(tmp_path, rows)
    import_log([source], parse_schema(text), tmp_path / "in")
    same(tmp_path / "in", source, parse_schema(text))
    assert read_log(tmp_path / "in", parse_schema(text)).table["read"].to_pylist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(SchemaError, match="imported by other rules"):
        read_log(tmp_path / "in", parse_schema(text.replace("= 30", "= 20")))


def test_another_schema_s_fields_are_there(tmp_path: Path) -> None:
    source = save(traffic(100, seed=1), tmp_path / "log.csv")
    without = schema('action_times = { click = "click_at" }\n')
    import_log([source], without, tmp_path / "in")
    text = '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n[[fields]]\nname = "shop"\nof = "item"\n'
    same(tmp_path / "in", source, schema('action_times = { click = "click_at" }\n' + text))


def test_days_are_local_and_sorted_in_small_groups(tmp_path: Path) -> None:
    rows = [row | {"at": MS + n * DAY // 2} for n, row in enumerate(ROWS)]
    made = import_log([written(tmp_path, rows[::-1])], schema(), tmp_path / "in")
    assert [(day.name, day.rows) for day in made.days] == [
        ("2022-04-24.parquet", 1), ("2022-04-25.parquet", 2), ("2022-04-26.parquet", 2), ("2022-04-27.parquet", 1)
    ]  # fmt: skip
    first = pq.read_table(tmp_path / "in" / "2022-04-25.parquet")
    assert first["ts_ms"].to_pylist() == [MS + DAY // 2, MS + DAY]


def test_pages_and_side_tables_are_imported(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text(
        "shown,since,price\n" + "".join(f"{item},{MS + 3_600_000 * n},{n}\n" for n in range(5) for item in (4, 7))
    )
    form = 'items = "shown"\nlabels = "hit"\nposition = "slot"\nrequest = "page"\n'
    field = '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n'
    join = '[[join]]\nfile = "prices.csv"\non = "shown"\nat = "since"\n'
    source = written(tmp_path / "log", [PAGES[n % 3] | {"at": MS + 60_000 * n, "who": n} for n in range(300)])
    (tmp_path / "prices.csv").rename(source.parent / "prices.csv")
    listed = parse_schema(LISTED + form + field + join)
    import_log([source], listed, tmp_path / "in")
    same(tmp_path / "in", source, listed)


def test_a_changed_rule_or_source_is_named(tmp_path: Path) -> None:
    source = written(tmp_path, ROWS, "log.csv")
    import_log([source], schema(), tmp_path / "in")
    with pytest.raises(SchemaError, match=r"imported by other rules.*time_unit = \"ms\""):
        read_log(tmp_path / "in", schema('time_unit = "s"\n'))
    assert read_log(tmp_path / "in", schema('disorder = "2h"\n')).notes == ()
    os.utime(source, (1, 1))
    assert any("has changed since it was imported" in note for note in read_log(tmp_path / "in", schema()).notes)
    source.unlink()
    assert read_log(tmp_path / "in", schema()).table.num_rows == 6


def test_what_is_broken_or_something_else_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path, ROWS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("keep me")
    with pytest.raises(LogError, match="something that is no import"):
        import_log([source], schema(), other)
    assert (other / "letter.txt").read_text() == "keep me"
    made = import_log([source], schema(), tmp_path / "in")
    (tmp_path / "in" / made.days[0].name).unlink()
    with pytest.raises(LogError, match="of an import is gone"):
        read_log(tmp_path / "in", schema())
    (tmp_path / "in" / MANIFEST).write_text("{")
    with pytest.raises(LogError, match=r"manifest.json' cannot be read"):
        read_log(tmp_path / "in", schema())
    assert msgspec.json.decode(msgspec.json.encode(made), type=ImportedLog) == made


def test_a_fault_leaves_no_import(tmp_path: Path) -> None:
    source = written(tmp_path, [*ROWS, ROWS[0] | {"clicked": 7}])
    with pytest.raises(LogError, match="has the value 7"):
        import_log([source], schema(), tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
    made = import_log([source], schema(), tmp_path / "in", skip_bad=True)
    assert (made.skipped, made.rows_read) == (1, 7)
    read = read_log(tmp_path / "in", schema())
    assert (read.skipped, read.rows_read, read.table.num_rows) == (1, 7, 6)


def test_the_next_command_maps_what_the_first_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, [*ROWS, ROWS[0] | {"clicked": 7}])
    import_log([source], schema(), tmp_path / "in", skip_bad=True)
    first = read_log(tmp_path / "in", schema())
    with monkeypatch.context() as patched:
        patched.setattr("millrace.logs.exposures.LogSource", None)  # nothing is read
        assert read_log(tmp_path / "in", schema()) == first
        with pytest.raises(TypeError):
            read_log(tmp_path / "in", schema('disorder = "2h"\n'))
    assert read_log(tmp_path / "in", schema('disorder = "2h"\n')).table == first.table
    assert len(list((tmp_path / "in").glob("rows-*.arrow"))) == 2
    import_log([source], schema(), tmp_path / "in", skip_bad=True)
    assert not list((tmp_path / "in").glob("rows-*"))


def test_an_import_that_was_killed_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while days come to their place: nobody reads what is there. And earlier: a folder of a process is left."""
    source, out = written(tmp_path, [row | {"at": MS + n * DAY} for n, row in enumerate(ROWS)]), tmp_path / "in"
    made = import_log([source], schema(), out)
    plain = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name.startswith("2022-04-26"):
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            import_log([source], schema(), out)
    assert (out / "2022-04-25.parquet").exists()
    with pytest.raises(LogError, match=r"manifest.json' cannot be read.*import the log again"):
        read_log(out, schema())
    left = temporary_beside(out / "import")
    left = left.with_name(left.name.replace(str(os.getpid()), str(2**22 + 1)))  # no process has such an id
    left.mkdir()
    (left / "unsorted.arrow").write_bytes(b"half")
    assert import_log([source], schema(), out) == made
    assert not left.exists()
    same(out, source, schema())


def test_days_of_somebody_else_stay(tmp_path: Path) -> None:
    source, out = written(tmp_path, ROWS), tmp_path / "days"
    own = written(out, ROWS, "2022-04-24.parquet")
    with pytest.raises(LogError, match="something that is no import"):
        import_log([source], schema(), out)
    assert own.exists()
