"""`millrace doctor`: what it makes of what it sees, that it always ends, and that its status says whether to mend."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.gate.heldout import Heldout
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from millrace.commands.up import findings, probes
from millrace.commands.up.data_folder import SchemaNote, say_where
from millrace.commands.up.doctor import doctor, examine
from millrace.commands.up.findings import Finding
from millrace.contracts.clock import EventClock
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, ITEMS, Topic
from millrace.labels import Waits
from millrace.processes.wall import wall_ms
from tests.scenes.waiting import PATIENCE

FIELDS = '[[fields]]\nname = "{user}"\nof = "user"\n[[fields]]\nname = "{item}"\nof = "item"\n'
SHOP, MIB = shop_schema(), 1 << 20
WINDOWS = '[windows]\n[[windows.keys]]\ncolumns = ["item_id"]\n'
LOG = '[log]\ntime = "at"\nuser = "reader"\nitem = "item_id"\nlabel = "opened"\n'


def schema(user: str = "user_id", item: str = "item_id", more: str = "") -> Schema:
    return parse_schema(f'name = "shop"\n{FIELDS.format(user=user, item=item)}{more}')


def states(found: list[Finding]) -> list[str]:
    return [finding.state for finding in found]


def of(found: list[Finding], check: str) -> Finding:
    (one,) = [finding for finding in found if finding.check == check]
    return one


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this shell, no data folder of this place, no library looked for, no port of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.__struct_fields__:
        monkeypatch.delenv(f"MILLRACE_{name.upper()}", raising=False)
    monkeypatch.setattr("millrace.commands.up.doctor.check", lambda *_: None)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody listens, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def test_a_schema_that_a_live_loop_can_use() -> None:
    (found,) = findings.judge_schema(schema(more=WINDOWS))
    assert (found.state, found.check) == ("ok", "schema")
    assert "1 of user, 1 of item, 0 of context; window keys item_id" in found.text
    assert states(findings.judge_schema(shop_schema())) == ["ok"]


def test_ids_that_a_live_loop_does_not_find() -> None:
    missing = findings.judge_schema(schema(item="sku", more=WINDOWS.replace("item_id", "sku")))
    assert states(missing) == ["ok", "note"]
    assert "no field 'item_id'" in missing[1].text
    assert 'name = "item_id"' in missing[1].remedy


def test_ids_may_be_named_as_the_log_names_them() -> None:
    named = schema(user="reader", more=WINDOWS + LOG)
    assert named.ids == ("reader", "item_id")
    assert states(findings.judge_schema(named)) == ["ok"]
    missing = findings.judge_schema(schema(user="visitor", more=WINDOWS + LOG))
    assert states(missing) == ["ok", "note"]
    assert "no field 'reader'" in missing[1].text


def test_what_a_learner_grows_by_is_what_filled_objects_hold() -> None:
    """Sizes of arrays of the objects as a learner has them; those whose constants fill slowly, with smaller ones."""
    said = findings.judge_memory(SHOP)
    assert said.state == "ok"
    stated = {name: int(mib) for name, mib in re.findall(r"(?:: |, )([a-z -]+) (\d+)", said.text)}
    assert sum(stated.values()) == pytest.approx(int(re.findall(r"by (\d+) MiB", said.text)[0]), abs=2)
    layout, rng = SHOP.layout, np.random.default_rng(1)

    def batch(rows: int, name: str) -> SampleBatch:
        cat, num = rng.integers(1, 9, (rows, layout.F)), np.zeros((rows, layout.N), np.float32)
        at = np.arange(rows)
        kind, ts_ms, page = np.zeros(rows, np.uint8), np.full(rows, 1_700_000_000_000), (at // 20).astype(np.int32)
        named = tuple(f"{name} {n}" for n in range(-(-rows // 20)))
        columns = {"position": (at % 20).astype(np.int32), "score": np.full(rows, 0.5, np.float32)}
        return SampleBatch.of_rows(kind, ts_ms, cat, num, named, page=page, version=np.zeros(rows, int), **columns)

    heldout = Heldout(0.5)
    for n in range(4):
        heldout.take(batch(4000, f"held {n}"))
    assert heldout.nbytes == Heldout.most_bytes(layout.F, layout.N)
    assert stated["held-out rows"] == round(heldout.nbytes / MIB)

    for most in (5000, 2**17 * 3 // 4, 2**17 * 3 // 4 + 1, 300_000):
        repeats, largest = Repeats(3_600_000, most), 0
        for n in range(most // 2000 + 3):
            repeats.first_time(few(batch(2000, f"page {n}")))
            largest = max(largest, repeats.nbytes)
        assert 0.5 * Repeats.most_bytes(most) < largest <= Repeats.most_bytes(most)
    assert stated["ids of samples"] == round(Repeats.most_bytes() / MIB)

    served = ServedExposures(SHOP, Segments(SHOP, {}), Waits(10**9, 10**9, 0), 1000, 6000)
    model = OnlineModel(SHOP, {"model": "logistic"}, 0)
    for n in range(6):
        served.take(batch(2000, f"shown {n}"))
        served.enter(model)
    assert 0.4 * ServedExposures.most_bytes(1000, 6000) < served.nbytes <= ServedExposures.most_bytes(1000, 6000)


def few(batch: SampleBatch) -> SampleBatch:
    """Only what ids are made of."""
    return replace(batch, cat=batch.cat[:, :1], num=batch.num[:, :1])


def test_a_schema_that_counts_nothing_and_one_that_the_state_is_not_of() -> None:
    counts_nothing = findings.judge_schema(schema())
    assert states(counts_nothing) == ["ok", "note"]
    assert "windows.keys" in counts_nothing[1].remedy
    (other,) = findings.judge_schema(schema(more=WINDOWS), kept=shop_schema())
    assert other.state == "mend"
    assert shop_schema().id[:8] in other.text


@pytest.mark.parametrize(
    ("present", "running", "state", "words"),
    [
        ({"events": 4, "items": 1}, True, "ok", "2 there"),
        ({"events": 3, "items": 1}, True, "mend", "'events' has 3 partitions where 4"),
        ({"events": 4}, True, "mend", "missing: items"),
        ({}, False, "note", "not there yet: events, items"),
    ],
)
def test_topics(present: dict[str, int], running: bool, state: str, words: str) -> None:
    (found,) = findings.judge_topics(present, {"events": Topic(EVENTS, 0), "items": Topic(ITEMS, 1)}, 4, running)
    assert found.state == state
    assert words in found.text


def test_clocks() -> None:
    assert states(findings.judge_clocks({})) == ["note"]
    assert states(findings.judge_clocks({"Redis": 0.2, "the scorer": -4.9})) == ["ok"]
    slow, fast = findings.judge_clocks({"Redis": 90.0, "the scorer": -7.0, "the intake": 0.0})
    assert (slow.state, fast.state) == ("mend", "mend")
    assert slow.text == "this machine's is 90 s behind Redis's"
    assert fast.text == "this machine's is 7 s ahead of the scorer's"


def test_the_brokers_newest_message_may_be_old_but_not_of_the_future() -> None:
    assert findings.judge_newest(1e12, None) == []
    assert findings.judge_newest(1e12, 1e12 - 1e9) == []
    (found,) = findings.judge_newest(1e12, 1e12 + 60_000)
    assert found.state == "mend"
    assert "60 s ahead" in found.text


def test_the_event_clock() -> None:
    now = wall_ms()
    assert findings.judge_event_clock(EventClock(), now).state == "ok"
    assert findings.judge_event_clock(EventClock(now, now, 240.0), now).state == "note"
    assert findings.judge_event_clock(EventClock(now, 1000, 1.0), now).state == "mend"


@pytest.mark.parametrize(("free", "state"), [(None, "ok"), (100 << 30, "ok"), (5 << 30, "note"), (1 << 29, "mend")])
def test_disk(free: int | None, state: str) -> None:
    assert states(findings.judge_folder("d", "", free)) == [state]
    assert states(findings.judge_folder("d", "is not ours", free)) == ["mend"]


def test_disk_that_an_embedded_brokers_topics_may_take_and_that_is_not_there() -> None:
    assert states(findings.judge_folder("d", "", 40 << 30, 32.0)) == ["ok"]
    (found,) = findings.judge_folder("d", "", 20 << 30, 32.0)
    assert (found.state, "topics may take 32 GiB" in found.text) == ("note", True)


def test_versions_of_roles() -> None:
    assert states(findings.judge_versions("2", {"learn": ("2", True)})) == ["ok"]
    assert states(findings.judge_versions("2", {"learn": ("2", True), "serve": ("2", False)})) == ["ok", "note"]
    (other,) = findings.judge_versions("2", {"learn": ("1", True), "serve": ("2", True)})
    assert (other.state, other.text) == ("mend", "learn is of version 1; this is 2")
    (unseen,) = findings.judge_unseen(["one item: cannot be known at this traffic"])
    assert (unseen.state, unseen.text) == ("note", "at this traffic: one item: cannot be known at this traffic")
    (gone,) = findings.judge_versions("2", {"learn": None})
    assert (gone.state, gone.text) == ("mend", "no metrics from learn")


@pytest.mark.parametrize(
    ("loopback", "tokens", "state"),
    [(True, False, "ok"), (True, True, "ok"), (False, True, "ok"), (False, False, "mend")],
)
def test_tokens(loopback: bool, tokens: bool, state: str) -> None:
    assert findings.judge_tokens(loopback, "host", tokens).state == state


def test_a_folder_that_can_be_made_or_not(tmp_path: Path) -> None:
    problem, free = probes.folder(tmp_path / "not" / "there" / "yet")
    assert (problem, (free or 0) > 0) == ("", True)
    (tmp_path / "file").write_text("")
    assert probes.folder(tmp_path / "file" / "data")[0].startswith("cannot be made")


def test_nothing_to_mend_on_a_machine_where_nothing_runs_yet() -> None:
    said: list[str] = []
    assert doctor({}, say=said.append) == 0, said
    assert all(line.startswith(("ok ", "note")) for line in said)
    assert of(examine({}), "kafka").state == "note"


def test_what_must_be_mended_is_named_and_is_the_status(tmp_path: Path, silent: int) -> None:
    nowhere = "127.0.0.1:1"
    said: list[str] = []
    wrong = {
        "kafka": nowhere,
        "redis": f"redis://:secret@{nowhere}/0",
        "scorer": f"http://{nowhere}",
        "host": "::",
    }
    assert doctor(wrong, as_json=True, say=said.append) == 1
    found = {line["check"]: line for line in json.loads(said[0])}
    assert {n for n, line in found.items() if line["state"] == "mend"} == {"kafka", "redis", "scorer", "tokens"}
    assert all(found[name]["remedy"] for name in ("kafka", "redis", "scorer", "tokens"))
    assert "secret" not in said[0]


def test_a_variable_that_nothing_reads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_PORTT", "3")
    monkeypatch.setenv("MILLRACE_TOKEN", "of the client")
    (strange,) = [finding for finding in examine({}) if "nothing reads" in str(finding)]
    assert strange.state == "note"
    assert "MILLRACE_PORTT" in str(strange)
    assert "did you mean MILLRACE_PORT?" in str(strange)


def test_a_setting_or_schema_that_is_none_is_one_finding(tmp_path: Path) -> None:
    assert of(examine({"partitions": "none"}), "settings").state == "mend"
    assert of(examine({"model_spec": "{"}), "settings").state == "mend"
    missing = of(examine({"schema": str(tmp_path / "no.toml")}), "schema")
    assert missing.state == "mend"
    assert "no.toml" in missing.text
    (tmp_path / "tokens").write_text("")
    assert of(examine({"token_file": str(tmp_path / "tokens")}), "settings").state == "mend"


TRIALS = {
    'print(\'{"text": "it is fine"}\')': ("ok", "it is fine"),
    'print(\'{"problem": "it is not", "remedy": "mend it"}\')': ("mend", "it is not"),
    "raise SystemExit(3)": ("mend", "model 'mine:Model' ended the process that tried it, with status 3"),
    "import time; time.sleep(1000)": ("mend", "model 'mine:Model' was not made within 0.5 s"),
}


@pytest.mark.parametrize("code", TRIALS)
def test_the_model_that_is_named_is_tried_in_a_process_of_its_own(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here another module takes the place of learner/role/trial.py."""
    role = tmp_path / "learner" / "role"
    role.mkdir(parents=True)
    for package in (role.parent, role):
        (package / "__init__.py").touch()
    (role / "trial.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "sleep" in code:
        monkeypatch.setattr(probes, "TRIAL_SECONDS", 0.5)
        monkeypatch.setattr(probes, "PATIENCE_SECONDS", PATIENCE)  # to end a process takes long on a busy machine
    found = of(examine({"model": "mine:Model"}), "model")
    assert (found.state, found.text) == TRIALS[code]


def test_the_default_model_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "model", lambda _: {"text": "tried"})
    assert [f.check for f in examine({}) if f.check == "model"] == []
    assert of(examine({"model_spec": '{"width": 8}'}), "model").text == "tried"


def test_a_class_that_roles_do_not_find_is_a_finding(tmp_path: Path) -> None:
    """Nor do they find one in the folder where the doctor is asked."""
    (tmp_path / "module_of_this_folder.py").write_text("class Model: ...\n")
    found = of(examine({"model": "module_of_this_folder:Model"}), "model")
    assert found.state == "mend"
    assert "No module named 'module_of_this_folder'" in found.text
    assert "PYTHONPATH" in found.remedy


def test_a_question_that_nobody_answers_ends() -> None:
    never = threading.Event()
    answer = probes.within(never.wait, 0.01)()
    assert (answer.value, answer.problem) == (None, "no answer within 0.01 s")
    never.set()
    assert probes.within(lambda: 7)().value == 7


def test_whoever_listens_and_says_nothing_is_a_finding(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SHORT", 0.05)
    mute = f"127.0.0.1:{silent}"
    found = examine({"kafka": mute, "redis": mute, "scorer": f"http://{mute}", "intake": f"http://{mute}"})
    assert {f.check for f in found if f.state == "mend"} == {"kafka", "redis", "scorer", "intake"}


def test_the_schema_of_the_state_is_looked_at(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    SchemaNote(f'name = "other"\n{FIELDS.format(user="user_id", item="item_id")}{WINDOWS}', "").write(data)
    found = of(examine({"data": str(data)}), "schema")
    assert (found.state, "'other'" in found.text) == ("ok", True), "where none is named, it is that of the folder"
    named = tmp_path / "named.toml"
    named.write_text(f'name = "mine"\n{FIELDS.format(user="user_id", item="item_id")}')
    found = next(f for f in examine({"data": str(data), "schema": str(named)}) if f.state == "mend")
    assert ("'mine'" in found.text, "'other'" in found.text) == (True, True)


def test_addresses_of_a_run_that_is_gone_are_not_believed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "up.lock").touch()
    say_where(data, {"pid": 1, "kafka": "127.0.0.1:1", "metrics": {"learn": "http://127.0.0.1:1/metrics"}})
    found = examine({"data": str(data)})
    assert of(found, "kafka").state == "note"
    assert not [f for f in found if f.check in ("run", "roles")]


def test_findings_are_json() -> None:
    found = [Finding("disk", "note", "little is free", "make room")]
    assert json.loads(msgspec.json.encode(found))[0]["remedy"] == "make room"
    assert str(found[0]) == "note disk: little is free; make room"
