"""What is shown of the gate: a refusal, why, and what serves instead, in figures, in the terminal and in a browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import generate_latest

from learner.gate.admin import Admin, Command
from millrace.basics.hashing import column_hash
from millrace.commands.demo.demorun import ROLES
from millrace.commands.loop.gatestatus import Gate, gate_of, says
from millrace.commands.loop.monitor import Monitor
from millrace.commands.loop.page import PageServer, unsent
from millrace.commands.loop.page.page_server import Titles
from millrace.commands.loop.status import RunStatus, State, state_of
from millrace.commands.loop.view import line_of
from millrace.contracts.clock import EventClock
from millrace.contracts.settings import Settings
from millrace.evidence.sequences import NOTHING, band, difference, mean_of
from millrace.processes.supervisor import Supervisor
from millrace.windows.tiles import TileStore
from stream.archive.archive_main import show_arms
from stream.archive.archive_metrics import ARM_MADE_BY
from stream.archive.arm_figures import ArmFigure
from tests.scenes import scorer_vectors
from tests.scenes.app_server import served
from tests.scenes.browser import CHROMIUM, Browser, browser
from tests.scenes.filter_world import SCHEMA, Shop
from tests.scenes.scorer_shop import NOW_MS, item, record
from tests.scenes.waiting import PATIENCE

WHY = "labels over predictions: 2.41, beyond 1.6"
TOKEN = "a-token-of-a-person"
OPEN_ALL = "document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
EXPLAIN = "document.getElementById('explain').requestSubmit()"
STANDS = "document.getElementById('stands').textContent"
REFUSED = "document.getElementById('stands').className === 'stands bad'"
AT_MS = 1_772_600_000_000  # 04:53 UTC


class Roles:
    """The answers of a loop's roles, as the monitor asks for them."""

    def __init__(self) -> None:
        self.started = 1
        self.state: str | None = "promoting"
        self.refused = self.observed = 0
        self.quarantined = self.taken_back = 0
        self.freshness_s: float | None = None
        self.says: dict[str, object] | None = {"refusal": None, "refused_ms": 0, "check": None}

    def get(self, url: str) -> str:
        if url == "http://learner/model":
            if self.says is None:
                raise ConnectionRefusedError(url)
            return json.dumps(self.says)
        if url.endswith("/model"):
            return json.dumps({"version": 57, "trained": 5, "click_to_served_ms": {}})
        said = f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {self.started}\n"
        said += "# TYPE millrace_ready gauge\nmillrace_ready 1\n"
        if url == "http://serve/metrics":
            said += "# TYPE millrace_served_version gauge\nmillrace_served_version 57\n"
            if self.freshness_s is not None:
                said += f"# TYPE millrace_freshness_seconds gauge\nmillrace_freshness_seconds {self.freshness_s}\n"
            return said
        if url != "http://learn/metrics" or self.state is None:
            return said
        said += '# TYPE millrace_outcome_rows gauge\nmillrace_outcome_rows{outcome="order"} 1234\n'
        said += '# TYPE millrace_outcome_auc gauge\nmillrace_outcome_auc{outcome="order"} .75\n'
        said += "# TYPE millrace_gate_state gauge\n"
        for name in ("promoting", "probation", "blocked", "held"):
            said += f'millrace_gate_state{{state="{name}"}} {int(name == self.state)}\n'
        verdicts = f'millrace_gate_verdicts_total{{check="labels",verdict="refused"}} {self.refused}\n'
        verdicts += f'millrace_gate_verdicts_total{{check="labels",verdict="observed"}} {self.observed}\n'
        verdicts += 'millrace_gate_verdicts_total{check="screen",verdict="passed"} 9\n'
        for name, kind, lines in (
            ("gate_verdicts", "counter", verdicts),
            ("quarantine_rows", "gauge", f"millrace_quarantine_rows {self.quarantined}\n"),
            ("samples_trained", "counter", "millrace_samples_trained_total 900\n"),
            ("samples_taken_back", "counter", f"millrace_samples_taken_back_total {self.taken_back}\n"),
            ("gate_promoted_version", "gauge", "millrace_gate_promoted_version 57\n"),
            ("model_version", "gauge", "millrace_model_version 60\n"),
        ):
            said += f"# TYPE millrace_{name} {kind}\n{lines}"
        return said

    def refuse(self) -> None:
        """The words first and the state last: the page's server may look between."""
        self.says = {"refusal": WHY, "check": "labels", "refused_ms": AT_MS}
        self.refused, self.quarantined, self.taken_back = 3, 3412, 400
        self.state = "blocked"


@pytest.fixture
def roles() -> Roles:
    return Roles()


@pytest.fixture
def look(roles: Roles, tmp_path: Path) -> Callable[[], State]:
    targets = {n: f"http://{n}/metrics" for n in ROLES}
    monitor = Monitor(targets, "http://serve", EventClock(), roles.get, learner="http://learner")

    def state() -> State:
        monitor.look()
        return state_of("running", 1, 240.0, monitor, Supervisor(tmp_path), [], RunStatus(ROLES))

    return state


def test_a_refusal_its_reason_and_what_serves_instead_are_said(roles: Roles, look: Callable[[], State]) -> None:
    assert look()["gate"]["says"] == "every version was promoted"
    assert "gate" not in line_of(look())
    assert look()["gate"]["unseen"] == []
    roles.says = {"refusal": None, "unseen": ["one item: cannot be known at this traffic"]}
    assert look()["gate"]["unseen"] == ["one item: cannot be known at this traffic"]
    roles.refuse()
    state = look()
    said = (
        f"refused at 04:53 UTC: {WHY}. Version 57 serves instead: samples are refused and kept in quarantine; "
        "nothing newer is served; 3,412 samples in quarantine"
    )
    assert state["gate"]["says"] == said
    assert f"gate {said}" in line_of(state)
    assert (state["gate"]["state"], state["gate"]["check"]) == ("blocked", "labels")
    assert {"check": "labels", "passed": 0, "refused": 3, "observed": 0, "unjudged": 0} in state["gate"]["verdicts"]
    assert {"check": "screen", "passed": 9, "refused": 0, "observed": 0, "unjudged": 0} in state["gate"]["verdicts"]
    assert state["figures"]["trained"] == 500, "what a rollback took out is not learnt"
    roles.state = "promoting"
    assert look()["gate"]["says"] == f"promotes; refused last at 04:53 UTC: {WHY}; 3,412 samples in quarantine"


def test_what_is_only_observed_is_said_and_is_no_alarm(roles: Roles, look: Callable[[], State]) -> None:
    roles.says = {"refusal": None, "refused_ms": 0, "check": None, "observes": True, "observed": None}
    assert look()["gate"]["says"] == "every version was promoted; it only observes"
    roles.says["observed"], roles.observed = WHY, 3
    state = look()
    assert state["gate"]["says"] == f"only observes; it would have refused 3 times, last: {WHY}"
    assert {"check": "labels", "passed": 0, "refused": 0, "observed": 3, "unjudged": 0} in state["gate"]["verdicts"]
    assert "gate" not in line_of(state)


def test_without_the_learners_words_the_check_is_named(roles: Roles, look: Callable[[], State]) -> None:
    look()
    roles.refuse()
    roles.says = None
    assert look()["gate"]["says"].startswith("refused: check 'labels'. Version 57 serves instead")


def test_a_learner_that_was_restarted_takes_no_refusal_back(roles: Roles, look: Callable[[], State]) -> None:
    roles.refuse()
    look()
    roles.started, roles.refused, roles.state = 2, 0, "promoting"
    roles.says = {"refusal": None, "refused_ms": 0, "check": None}
    gate = look()["gate"]
    assert (gate["why"], gate["refused_ms"]) == (WHY, AT_MS)


def test_a_learner_without_a_gate_says_nothing_of_one(roles: Roles, look: Callable[[], State]) -> None:
    roles.state = None
    state = look()
    assert (state["gate"]["state"], state["gate"]["says"]) == (None, "")
    assert "gate" not in line_of(state)


def test_a_person_who_holds_is_no_refusal() -> None:
    held = Gate("held")
    assert says(held, {"served_version": 7.0}) == "version 7 serves: a person holds what is served; learning goes on"
    assert says(gate_of({"held": 1.0}, {"refused": {"auc": 0}}, {}, Gate()), {}).startswith(
        "the version promoted last serves"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_a_browser_shows_the_refusal_while_it_lasts(roles: Roles, look: Callable[[], State], tmp_path: Path) -> None:
    with opened(look, tmp_path) as tab:
        tab.until("document.getElementById('gate-state').textContent === 'promoting'")
        tab.evaluate(OPEN_ALL)
        assert tab.evaluate(STANDS) == "Not ready yet: simulate, stream, learn, serve."
        roles.refuse()
        tab.until(REFUSED)
        said = tab.evaluate(STANDS)
        assert WHY in said
        assert "Version 57 serves instead" in said
        rows = tab.evaluate("[...document.querySelectorAll('#verdicts tbody tr')].map((r) => r.innerText)")
        assert [row.split() for row in rows] == [["labels", "0", "3", "0", "0"], ["screen", "9", "0", "0", "0"]]
        figures = tab.evaluate("document.getElementById('gate-figures').innerText").split()
        assert {"57", "3,412"} <= set(figures)
        told = tab.evaluate("document.querySelector('#outcomes tbody').innerText").split()
        assert told == ["order", "1,234", "0.7500", "–", "–"]
        roles.state = "promoting"
        tab.until(f"!({REFUSED})")
        assert WHY in tab.evaluate("document.getElementById('gate-says').innerText"), "it can be read afterwards"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_what_is_not_known_yet_is_awaited_in_words_and_no_box_is_empty(
    roles: Roles, look: Callable[[], State], tmp_path: Path
) -> None:
    drawn = "[...document.querySelectorAll('.chart')].filter((one) => one.offsetParent).map((one) => one.id)"
    awaited = "document.getElementById('awaited').textContent"
    with opened(look, tmp_path) as tab:
        tab.until(f"{awaited} !== ''")
        assert tab.evaluate(awaited).startswith("Awaited: click rate with the first pages; rolling AUC")
        assert tab.evaluate("document.getElementById('learns-value').textContent") == ""
        assert "with the first pages" in tab.evaluate("document.getElementById('learns-says').textContent")
        tab.evaluate(OPEN_ALL)
        said = tab.evaluate("[...document.querySelectorAll('main dd, main .value')].map((one) => one.innerText)")
        assert [one for one in said if one.startswith("–")] == [], "a row of dashes tells nothing"
        roles.freshness_s = 1.5
        tab.until(f"!{awaited}.includes('freshness')")
        tab.until(f"{drawn}.length > 0")
        assert tab.evaluate(drawn) == ["c-fresh"]
        assert tab.evaluate("document.querySelectorAll('#c-fresh circle').length") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_small_charts_have_one_height_and_what_roles_do_has_a_phones_whole_width(
    look: Callable[[], State], tmp_path: Path
) -> None:
    heights = """[...document.querySelectorAll('.grid .card')].map((one) => { one.hidden = false; return one; })
      .map((one) => one.querySelector('.chart').offsetHeight)"""
    widths = (
        "[...document.querySelectorAll('#role-list li')].map((one) => [one.lastChild.offsetWidth, one.offsetWidth])"
    )
    with opened(look, tmp_path) as tab:
        tab.until("document.querySelectorAll('#role-list li').length === 4")
        tab.evaluate(OPEN_ALL)
        for width in (1280, 390):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            found = tab.evaluate(heights)
            assert len(found) > 1
            assert len(set(found)) == 1
            assert found[0] > 0
        for says, whole in tab.evaluate(widths):
            assert says == whole


@contextmanager
def opened(
    look: Callable[[], State],
    folder: Path,
    at: Callable[[str], str] = lambda _: "",
    titles: Titles = lambda _: {},
) -> Iterator[Browser]:
    """The page in a browser."""
    page = PageServer(look, 0, at, titles=titles)
    try:
        with browser(folder) as tab:
            tab.go(page.url)
            yield tab
    finally:
        page.stop()


def unfold(tab: Browser, name: str) -> None:
    """Opens the details of a topic by keyboard."""
    tab.tab_to(f"open-{name}")
    tab.press("Enter", "\r")
    tab.until(f"document.getElementById('{name}').open")


def ask(page: PageServer, path: str, body: bytes = b"{}", token: str = TOKEN) -> tuple[int, str]:
    connection = HTTPConnection(urlsplit(page.url).netloc, timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Admin]:
    token = tmp_path / "tokens"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    admin = Admin(Settings(data=str(tmp_path), admin_port=0, admin_token_file=str(token)), dict)
    yield admin
    admin.close()


@pytest.fixture
def asked(door: Admin) -> Iterator[list[Command]]:
    """What a learner was asked, and did."""
    done: list[Command] = []
    over = threading.Event()

    def learn() -> None:
        while not over.wait(0.01):
            if (command := door.next()) is not None:
                done.append(command)
                command.answer({"version": 57})

    learner = threading.Thread(target=learn)
    learner.start()
    yield done
    over.set()
    learner.join()


def test_a_command_goes_to_the_learner_with_the_persons_token_and_no_other(
    look: Callable[[], State], door: Admin, asked: list[Command]
) -> None:
    page = PageServer(look, 0, lambda _: door.url)
    try:
        assert ask(page, "/model/hold") == (200, '{"version":57}')
        assert ask(page, "/model/rollback", b'{"version": 42}') == (200, '{"version":57}')
        assert [(one.name, one.args) for one in asked] == [("hold", {}), ("rollback", {"version": 42})]
        assert ask(page, "/model/hold", token="a guess")[0] == 401
        assert ask(page, "/model/rollback", b'{"version": "old"}')[0] == 400
        assert ask(page, "/model/hold", b" " * 5000)[0] == 413
        assert ask(page, "/model/adopt")[0] == 404
        assert len(asked) == 2
        assert ask(page, "/titles", b'[7, "mug"]') == (200, "{}")
        assert ask(page, "/titles", b'{"a": 1}')[0] == 400
        assert ask(page, "/titles", b"[" + b"7," * 600 + b"7]")[0] == 413
        status, said = ask(page, "/click", b'{"request_id": "p"}')
        assert (status, "no event, but in a demo" in said) == (403, True)
    finally:
        page.stop()


@pytest.mark.parametrize("learner", ["", "http://127.0.0.1:9"])
def test_where_no_learner_answers_it_is_said(look: Callable[[], State], learner: str) -> None:
    page = PageServer(look, 0, lambda _: learner)
    try:
        status, said = ask(page, "/model/hold")
        assert (status, "the learner does not answer" in said) == (503, True)
    finally:
        page.stop()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_the_model_is_commanded_by_keyboard(
    look: Callable[[], State], door: Admin, asked: list[Command], tmp_path: Path
) -> None:
    with opened(look, tmp_path, lambda _: door.url) as tab:
        tab.until("!document.getElementById('gate').hidden")
        unfold(tab, "gate")
        tab.tab_to("token")
        tab.call("Input.insertText", text=TOKEN)
        for number, name in enumerate(("hold", "promote", "rollback"), 1):
            tab.tab_to(name)
            tab.press("Enter", "\r")
            tab.until(f"document.getElementById('answer').innerText === '{name}: done. version 57'")
            assert [one.name for one in asked][number - 1 :] == [name]
            assert tab.evaluate("document.activeElement.value") == name, "the focus stays"
        tab.tab_to("version")
        tab.call("Input.insertText", text="42")
        tab.evaluate("document.querySelector('[value=rollback]').click()")
        tab.until("!document.querySelector('[value=rollback]').disabled")
        assert asked[-1].args == {"version": 42}
        tab.evaluate("document.getElementById('token').value = 'a guess'")
        tab.evaluate("document.querySelector('[value=hold]').click()")
        tab.until("document.getElementById('answer').innerText.includes('the token is none that is known here')")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_a_page_is_explained_item_by_item_by_keyboard(look: Callable[[], State], tmp_path: Path) -> None:
    """The real scorer's page, beside what the scorer answers to the same question."""
    shop = Shop([item(n, f"c{n % 4}") for n in range(30)])
    where: list[str] = []
    cells = "[...document.querySelectorAll('#reasons tbody tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    said = "document.getElementById('explained').innerText"
    page = opened(
        look,
        tmp_path,
        lambda role: where[0] if role == "scorer" and where else "",
        lambda ids: {str(ids[0]): "Mug"},
    )
    with page as tab, served(shop.app) as url:
        unfold(tab, "explaining")
        tab.tab_to("user")
        tab.call("Input.insertText", text="ann")
        tab.press("Enter", "\r")
        tab.until(f"{said} !== ''")
        assert "this loop has no scorer" in tab.evaluate(said)
        where.append(url)
        tab.tab_to("ann")
        for _ in range(2):
            tab.press("Tab")
        assert tab.evaluate("document.activeElement.innerText") == "Show page"
        tab.press("Enter", "\r")
        tab.until(f"{said}.startsWith('arm model, version 7, 10 items')")
        tab.until("document.querySelector('#reasons tbody td:nth-child(2)').innerText === 'Mug'")
        shown = tab.evaluate(cells)
        asked = shop.ask(size=10, explain=True)["items"]
        assert len(shop.sent) == 1, "only what was asked for here: nobody is shown what the page asks for"
        ids = [str(one["item_id"]) for one in asked]
        assert [row[1] for row in shown] == ["Mug", *ids[1:]], "an item without a title has its id"
        assert [row[0] for row in shown] == [str(one["position"]) for one in asked]
        assert [row[5:] for row in shown] == [
            [f"{one['score']:.4f}", one["source"], str(one["item_id"])] for one in asked
        ]
        assert not tab.evaluate("document.getElementById('why').hidden")


class Liking:
    """A model by which an item is the better, the more of its category the user has clicked."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        names = SCHEMA.layout.num_names
        liked = num[:, names.index("user_id*category.click.1d")]
        return (0.2 + 0.1 * liked - 1e-4 * num[:, names.index("price")]).astype(np.float32)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
@pytest.mark.parametrize("simulated", [False, True])
def test_a_page_changes_by_a_click(roles: Roles, tmp_path: Path, simulated: bool) -> None:
    """By keyboard: a user, his page, an item. In a demo the click is sent; elsewhere it is a what-if and nothing is."""
    shop = Shop([item(n, f"c{n % 4}", attributes={"price": float(n)}) for n in range(10)])
    shop.scorer.install(scorer_vectors.note(7), Liking())
    kinds = ROLES if simulated else ROLES[1:]
    state = state_of("running", 1, 1.0, None, Supervisor(tmp_path), [], RunStatus(kinds))
    sent: list[dict[str, Any]] = []

    def send(body: bytes) -> tuple[int, bytes]:
        """As a loop, it counts the click."""
        sent.append(json.loads(body))
        shop.scorer.install(scorer_vectors.note(8), Liking())
        key = shop.builder.keys({"user_id": column_hash(["ann"]), "category": column_hash(["c2"])}, 1)
        store = TileStore.of(shop.schema.windows)
        own = key[0, [SCHEMA.layout.key_names.index("user_id*category")]]
        store.add(own, np.array([NOW_MS - 1]), np.array([1]))
        shop.users.records["ann"] = record(own, store)
        return 200, b"{}"

    lines = "[...document.querySelectorAll('#reasons tbody tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    said = "document.getElementById('explained').innerText"
    with served(shop.app) as scorer:
        page = PageServer(lambda: state, 0, lambda _: scorer, send=send if simulated else unsent, users=lambda: ["ann"])
        try:
            with browser(tmp_path) as tab:
                tab.go(page.url)
                tab.until("document.getElementById('watch-note').innerText !== ''")
                unfold(tab, "explaining")
                tab.until("document.querySelectorAll('#watchable button').length === 1")
                tab.tab_to("user")
                for _ in range(3):
                    tab.press("Tab")
                assert tab.evaluate("document.activeElement.innerText") == "ann"
                tab.press("Enter", "\r")
                tab.until("document.querySelectorAll('#reasons tbody button').length === 10")
                assert [row[1] for row in tab.evaluate(lines)] == [str(n) for n in range(10)]
                tab.tab_to("item-6")
                tab.press("Enter", "\r")
                tab.until(f"/ of 10 places /.test({said})")
                shown = tab.evaluate(lines)
                assert [row[1] for row in shown] == ["2", "6", "0", "1", "3", "4", "5", "7", "8", "9"]
                assert [row[2] for row in shown[:3]] == ["▲ from 2", "▲ from 6", "▼ from 0"]
                assert [row[2] for row in shown[-3:]] == ["", "", ""]
                assert shown[0][3].startswith("user_id*category ")
                assert tab.evaluate("document.activeElement.value") == "item-6", "the focus stays"
                text = tab.evaluate(said)
                if not simulated:
                    assert_readable(tab)
        finally:
            page.stop()
    if not simulated:
        assert text == "If ann clicked 6, 7 of 10 places would change. No event was sent, nothing was learnt"
        assert (sent, shop.sent) == ([], [])
        return
    assert "s after the click on 6, 7 of 10 places changed. By this click alone: 7;" in text
    assert text.endswith("version 7 became 8")
    (click,), (logged,) = sent, shop.sent
    assert (click["request_id"], click["items"], click["position"]) == (logged.request_id, logged.items, 6)
    assert (click["user_id"], click["ts_ms"]) == ("ann", logged.ts_ms)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found to look at the page with: install chromium")
def test_everybody_can_read_the_page(roles: Roles, look: Callable[[], State], tmp_path: Path) -> None:
    shop = Shop([item(n, f"c{n % 4}") for n in range(30)])
    where: list[str] = []
    with opened(look, tmp_path, lambda _: where[0]) as tab, served(shop.app) as url:
        where.append(url)
        roles.refuse()
        tab.until(REFUSED)
        tab.evaluate(OPEN_ALL)
        tab.evaluate("document.getElementById('user').value = 'ann'")
        tab.evaluate(EXPLAIN)
        tab.until("!document.getElementById('why').hidden")
        assert_readable(tab)


def assert_readable(tab: Browser) -> None:
    """axe-core finds nothing, wide and narrow, by day and by night, and nothing is wider than a phone."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    tab.evaluate(f"(() => {{ {axe} }})()")
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        found = tab.evaluate("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))")
        assert found == [], f"{width} {scheme}"


# -- Figures of arms on their way: the archive's gauges, the state of a run, the page ----------------------------------


def test_a_run_shows_what_the_archive_counts_and_nothing_where_too_little_is_known(tmp_path: Path) -> None:
    control, model, few = mean_of(2700, 270, 360), mean_of(12000, 2700, 4200), mean_of(20, 4, 4)
    more = difference(model, control)
    assert more.decided
    show_arms(
        [
            ArmFigure("control", "click", control, band(control), float("nan"), NOTHING, 0),
            ArmFigure("model", "click", model, band(model), model.value - control.value, more, 1_772_000_000_000),
            ArmFigure("hits", "click", few, band(few), few.value - control.value, difference(few, control), 0),
            ArmFigure("new", "click", mean_of(0, 0, 0), NOTHING, float("nan"), NOTHING, 0, 40, 10, 2),
        ]
    )
    ARM_MADE_BY.labels("model", "the first learner").set(1)
    text = generate_latest().decode()
    roles = ("archive", "stream")
    monitor = Monitor({n: f"http://{n}/metrics" for n in roles}, "http://serve", EventClock(), lambda url: text)
    monitor.look()
    state = state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(roles))
    assert json.loads(json.dumps(state)) == state
    first, second, third, fourth = state["arms"]
    assert [row["arm"] for row in state["arms"]] == ["control", "model", "hits", "new"]
    assert {row["outcome"] for row in state["arms"]} == {"click"}
    assert [row["made_by"] for row in state["arms"]] == ["", "the first learner", "", ""]
    assert (first["users"], first["mean_estimate"]) == (2700, pytest.approx(0.1))
    assert first["mean_low"] < 0.1 < first["mean_high"]
    assert [first[f"more_{bound}"] for bound in ("estimate", "low", "high")] == [None] * 3
    assert (second["more_estimate"], second["more_low"]) == (pytest.approx(0.125), pytest.approx(more.low))
    assert second["since_ms"] == 1_772_000_000_000
    assert [row["settled"] for row in state["arms"]] == [True, True, True, False]
    assert [row["early_click_rate"] for row in state["arms"]] == [None, None, None, 0.25]
    assert (fourth["users"], fourth["mean_estimate"], fourth["early_rows"], fourth["left_out"]) == (0, None, 40, 2)
    assert (third["users"], third["mean_low"], third["more_high"], third["since_ms"]) == (20, None, None, 0)


def test_a_run_without_an_archive_has_no_arms(tmp_path: Path) -> None:
    monitor = Monitor({"stream": "http://stream/metrics"}, "http://serve", EventClock(), lambda url: "")
    assert state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(("stream",)))["arms"] == []
