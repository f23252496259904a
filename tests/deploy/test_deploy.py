"""What deploy/ says, held against what the roles are: files parse, the compose file is valid, every metric exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.dashboard import PATH, SOURCE, text
from millrace.commands.loop.scrape import scrape_file
from millrace.contracts.events import ARMS
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import TOPICS
from millrace.processes.metrics import PORTS
from millrace.processes.role import ROLES
from millrace.processes.tokens import Callers
from tests.architecture import ROOT
from tests.scenes.deployed import DEPLOY, FIRST, dashboards, expressions
from tests.scenes.exposed_metrics import MODULES, exposed, registries

README = (DEPLOY / "README.md").read_text()
YAML = sorted(p for p in DEPLOY.rglob("*") if p.suffix in (".yml", ".yaml"))
JSON = sorted(DEPLOY.rglob("*.json"))
BESIDE = "learn-challenger"  # a learner beside the first
THIRD_PARTY = {"kafka", "redis", "prometheus", "grafana"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def gauges_begun() -> dict[str, str]:
    """The gauges that roles begin with, and their values."""
    begun = {series: value for found in registries().values() for series, value in found.begun.items()}
    return {series: value for series, value in begun.items() if not series.partition("{")[0].endswith("_total")}


def label_names(series: str) -> set[str]:
    """The labels of a series that a role exposes, and those that Prometheus adds."""
    (found,) = {frozenset(r.labels[series]) for r in registries().values() if series in r.labels}
    return {*found, "job", "role"}


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("path", YAML + JSON, ids=lambda p: str(p.relative_to(DEPLOY)))
def test_files_parse(path: Path) -> None:
    text = path.read_text()
    assert (json.loads(text) if path.suffix == ".json" else [*yaml.safe_load_all(text)]) not in (None, [], [None])


@pytest.mark.slow
def test_every_metric_that_a_panel_or_rule_uses_is_exposed_by_a_role() -> None:
    used = [(where, name) for where, expr in expressions() for name in re.findall(r"\bmillrace_[a-z_]+", expr)]
    assert len(used) > 30
    unknown = sorted({f"{where} uses {name}" for where, name in used if name not in exposed()})
    assert not unknown, "\n".join(unknown)


def misnamed(where: str, expr: str) -> Iterator[str]:
    """Labels that an expression asks for and none of its series has, and values that its series never have."""
    for name, matchers in re.findall(r"\b(millrace_[a-z_]+)\{([^}]*)\}", expr):
        for label, value in re.findall(r'(\w+)[=!]~?"([^"]*)"', matchers):
            if label not in label_names(name):
                yield f"{where}: {name} has no label {label}"
            values = ROLES if label == "role" else values_begun(name, label)
            for one in value.split("|"):
                if "$" not in one and values and one not in values:
                    yield f"{where}: {label} of {name} is never {one}"
    known = set().union(*(label_names(name) for name in re.findall(r"\bmillrace_[a-z_]+", expr))) | {"le"}
    for labels in re.findall(r"\bby ?\(([^)]*)\)", expr):
        yield from (f"{where}: no series has the label {one}" for one in labels.split(", ") if one not in known)


def values_begun(name: str, label: str) -> set[str]:
    """The values of a label with which a role begins: all there are. Empty where series begin as they are needed."""
    begun = [series for found in registries().values() for series in found.begun if series.startswith(f"{name}{{")]
    return {value for series in begun for value in re.findall(rf'[{{,]{label}="([^"]*)"', series)}


def test_every_label_that_a_panel_or_rule_uses_is_one_of_its_series() -> None:
    assert list(misnamed("here", 'sum by (arm) (millrace_rolling_auc{arm="model",role="serve"})')) == []
    wrong = 'sum by (arms) (millrace_rolling_auc{arm="modell",shelf="a"}) / millrace_ready{role="learner"}'
    assert list(misnamed("here", wrong)) == [
        "here: arm of millrace_rolling_auc is never modell",
        "here: millrace_rolling_auc has no label shelf",
        "here: role of millrace_ready is never learner",
        "here: no series has the label arms",
    ]
    found = [problem for where, expr in expressions() for problem in misnamed(where, expr)]
    for name, panels in dashboards():
        for panel in panels:
            for target in panel.get("targets", []):
                known = set().union(*map(label_names, re.findall(r"\bmillrace_[a-z_]+", target["expr"])))
                found += [
                    f"{name}: {panel['title']}: the legend's {label} is no label"
                    for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))
                    if label not in known
                ]
    assert not found, "\n".join(found)


def test_the_first_of_a_kind_is_an_increase_too() -> None:
    """A series that begins with 1 has not increased. So it begins with 0, or the rule asks whether it is new."""
    begun = {series.partition("{")[0] for found in registries().values() for series in found.begun}
    rules = [(where, expr) for where, expr in expressions() if where.startswith("rules.yml") and "offset" not in expr]
    asked = [(where, name) for where, expr in rules for name in re.findall(r"increase\((millrace_[a-z_]+)", expr)]
    assert len(asked) > 4
    assert [(where, name) for where, name in asked if name not in begun] == []


def test_the_dashboard_shows_what_it_must() -> None:
    shown = " ".join(expr for _, expr in expressions())
    for name in (
        *("rolling_auc", "oracle_auc", "baseline_auc", "rolling_log_loss", "calibration", "freshness_seconds"),
        *("page_auc", "baseline_page_auc", "ndcg"),
        *("click_rate", "exposures_total", "learner_lag", "stream_lag", "click_to_served_seconds_bucket"),
        *("served_version", "dead_letters_total", "samples_trained_total", "exposures_sent_total"),
    ):
        assert f"millrace_{name}" in shown


def test_the_dashboard_opens_with_one_row_and_the_rest_is_folded() -> None:
    (shown,) = [json.loads(path.read_text())["panels"] for path in DEPLOY.rglob("*.json")]
    first, rows = [panel for panel in shown if panel["type"] != "row"], [p for p in shown if p["type"] == "row"]
    assert shown == [*first, *rows]
    assert [panel["title"] for panel in first] == FIRST
    assert {panel["gridPos"]["y"] for panel in first} == {0}
    assert sum(panel["gridPos"]["w"] for panel in first) == 24, "they fill the row"
    assert all(row["collapsed"] and row["panels"] for row in rows)
    assert len({panel["id"] for _, panels in dashboards() for panel in panels}) == len(next(dashboards())[1])


def test_errors_of_a_scorer_begin_with_0_and_the_page_names_them() -> None:
    called = re.compile(r'(?:meters\.error|\.bad|_count_error)\("([a-z_-]+)"')
    used = {kind for path in (ROOT / "scorer").rglob("*.py") for kind in called.findall(path.read_text())}
    assert len(used) > 20
    assert {*used, "redis"} == values_begun("millrace_errors_total", "what")
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    (said,) = re.findall(r"\*\*Errors by kind\*\* \(`millrace_errors_total`\): (.*)", page)
    assert {*re.findall(r"`([a-z_-]+)`", said)} == values_begun("millrace_errors_total", "what")
    (said,) = re.findall(r"`millrace_log_lost_pages_total` .* page logs that will never arrive: (.*) \|", page)
    assert {*re.findall(r"`([a-z_-]+)`", said)} == values_begun("millrace_log_lost_pages_total", "reason")


def test_what_only_the_simulator_measures_says_so_and_wakes_nobody() -> None:
    """A shop of one's own has no simulator: whatever needs one stands in a row of its own and says so; or it is one
    series of a panel, whose legend says so."""
    simulated = exposed({"simulate"}).keys() - exposed(MODULES.keys() - {"simulate"}).keys()
    assert {"millrace_oracle_auc", "millrace_page_clicks_total"} <= simulated
    needing = {where for where, expr in expressions() if any(re.search(rf"\b{name}\b", expr) for name in simulated)}
    for name, panels in dashboards():
        for panel in panels:
            asked = {t["legendFormat"]: t["expr"] for t in panel.get("targets", [])}
            own = {of for of, expr in asked.items() if any(re.search(rf"\b{name}\b", expr) for name in simulated)}
            if len(own) < len(asked) and all(of.endswith("(simulator only)") for of in own):
                needing.discard(f"{name}: {panel['title']}")
    assert needing
    for where in needing:
        assert where.endswith("(simulator only)"), where
    for _, panels in dashboards():
        row = next(panel for panel in panels if panel["title"] == "Simulator only")
        assert row["collapsed"]
        assert {f"millrace.json: {panel['title']}" for panel in row["panels"]} == needing


def test_first_panels_show_the_scores_that_pages_were_served_with() -> None:
    for _, panels in dashboards():
        for panel in panels:
            exprs = [t["expr"] for t in panel.get("targets", [])]
            for name in ("rolling_auc", "(baseline_)?(auc|page_auc|ndcg)", "rolling_log_loss", "calibration"):
                assert not [e for e in exprs if re.search(rf"millrace_{name}(?!{{arm=)", e)], "mixes the arms"
            if panel["type"] == "stat" or panel["gridPos"]["y"] < 30:
                assert "millrace_learning_" not in " ".join(exprs)


def test_the_dashboard_is_what_its_code_makes() -> None:
    assert PATH.read_text() == text(), "python -m deploy.dashboard writes it anew"
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert SOURCE.uid in {source["uid"] for source in sources}


def test_each_alert_has_its_section_in_the_run_book() -> None:
    rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"][0]["rules"]
    page = "docs/how-to/answer-an-alert.md"
    sections = re.findall(r"^### (\w+)\n\n(\S.{40,})$", (ROOT / page).read_text(), re.MULTILINE)
    assert sorted(name for name, _ in sections) == sorted(rule["alert"] for rule in rules)
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"


def test_docs_list_exactly_the_metrics_there_are() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(millrace_[a-z_]+)", text, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(exposed().values())


def test_every_metric_that_a_page_names_is_one() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *DEPLOY.glob("*.md")]
    history = {"log.md", "results.md", "CHANGELOG.md"}  # they name what there was
    known = {*exposed(), *exposed().values(), "millrace_client"}
    named = [
        (p.name, n) for p in pages if p.name not in history for n in re.findall(r"\bmillrace_[a-z_]+", p.read_text())
    ]
    assert len(named) > 100
    assert not {f"{page} names {name}" for page, name in named if name.rstrip("_") not in known and name[-1] != "_"}


def test_a_role_that_has_measured_nothing_says_so() -> None:
    """0 is a value: only what counts something may begin with it."""
    counts = {
        *("ready", "loop_timestamp_seconds", "partitions_awaited", "window_keys", "table_rows", "items", "item_keys"),
        *("served_rows", "model_waits", "model_overlays", "scorer_workers", "log_spool_bytes", "neighbours"),
        *(
            "coclick_lists",
            "intake_waiting",
            "archive_pending_exposures",
            "gate_state",
            "quarantine_rows",
            "heldout_rows",
            "compared_rows",
        ),
    }
    begun = gauges_begun()
    zero = {series.partition("{")[0] for series, value in begun.items() if value == "0.0"}
    assert zero - {"millrace_role_info"} == {f"millrace_{name}" for name in counts}
    assert {value for value in begun.values() if value != "0.0"} == {"nan"}
    assert {"millrace_oracle_auc{}", "millrace_freshness_seconds{}", "millrace_learning_auc{}"} <= begun.keys()
    assert {
        f'millrace_{name}{{arm="{arm}"}}' for name in ("rolling_auc", "calibration") for arm in ARMS
    } <= begun.keys()


# -- compose ---------------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    made: dict[str, Any] = compose()["services"]
    return made


def test_every_role_and_service_is_there() -> None:
    assert set(services()) == {*ROLES, BESIDE, *THIRD_PARTY, "topics"}
    commands = {n: s.get("command") for n, s in services().items() if n not in THIRD_PARTY}
    assert commands == {
        **{n: ["run", n] for n in ROLES},
        BESIDE: ["run", "learn", "--name", "challenger"],
        "topics": ["dev", "topics"],
    }  # subcommands of the image's entry point
    assert not [n for n, s in services().items() if "entrypoint" in s]


@pytest.mark.parametrize("name", sorted([*ROLES, BESIDE, *THIRD_PARTY, "topics"]))
def test_a_service_is_pinned_unprivileged_watched_and_on_loopback(name: str) -> None:
    service = services()[name]
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-[a-z0-9.]+)?", tag), "pin the whole version"
    uid = service["user"].split(":")[0]
    assert uid.isdigit()
    assert int(uid) > 0
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    healthy = service["healthcheck"]
    assert healthy.get("disable") is (True if name == "topics" else None)
    assert name == "topics" or healthy["test"][0] == "CMD"
    for waited, how in service.get("depends_on", {}).items():
        other = services()[waited]
        assert how["condition"] in ("service_healthy", "service_completed_successfully")
        assert how["condition"] == "service_completed_successfully" or not other["healthcheck"].get("disable")


def test_the_compose_file_is_one_by_the_specification() -> None:
    spec = pytest.importorskip("compose_spec", reason="compose-spec has wheels for Linux on x86-64 only")
    plain = yaml.dump(compose())  # YAML merge keys resolved, as Compose does before it looks
    spec.PyCompose.from_yaml(plain).to_spec()
    with pytest.raises(Exception, match="healthchek"):
        spec.PyCompose.from_yaml(plain.replace("healthcheck:", "healthchek:", 1))


def test_no_secret_stands_in_the_files() -> None:
    for path in [*YAML, *JSON, DEPLOY / "Dockerfile"]:
        assert not re.search(r"(?i)(password|secret|token|api_?key)\s*[:=]\s*(?!\{?secretName)\S", path.read_text()), (
            path
        )


def test_mounts_name_files_and_volumes_that_exist() -> None:
    volumes = set(compose()["volumes"])
    used = set()
    for service in services().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                used.add(source)
    assert used == volumes


def test_roles_are_configured_with_settings_that_exist() -> None:
    known = {f"MILLRACE_{n.upper()}" for n in Settings.__struct_fields__}
    for name in (*ROLES, BESIDE, "topics"):
        own = services()[name]["environment"]
        assert set(own) <= known
        assert own["MILLRACE_KAFKA"] == "kafka:9092"
        settings = Settings(host=own["MILLRACE_HOST"], allowed_hosts=own["MILLRACE_ALLOWED_HOSTS"].partition("$")[0])
        for at in (own["MILLRACE_SCORER"], own["MILLRACE_INTAKE"], "http://learn:8750", "http://127.0.0.1:8700"):
            assert Callers(settings).refusal("POST", [(b"host", urlsplit(at).netloc.encode())]) == "", at
        assert Callers(settings).refusal("POST", [(b"host", b"evil.example")])
        named = re.findall(r"`(MILLRACE_\w+)`", "".join(re.findall(r"^\| `M.*?\|", README, re.MULTILINE)))
        assert {"MILLRACE_SCHEMA", "MILLRACE_GATE"} <= set(named) <= set(own), "compose passes what the table offers"
        assert own["MILLRACE_GATE"] == f"${{MILLRACE_GATE:-{Settings().gate}}}"
    assert services()["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert TOPICS


def test_prometheus_asks_every_role_where_it_listens() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = {t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]}
    port = services()["stream"]["environment"]["MILLRACE_METRICS_PORT"]
    assert targets == {f"{name}:{port}" for name in (*ROLES, BESIDE)}
    for name, role in (("simulator", "simulate"), ("learners", BESIDE)):
        own = next(job for job in config["scrape_configs"] if job["job_name"] == name)
        assert own["static_configs"][0]["targets"] == [f"{role}:{port}"]


def test_no_shoppers_and_no_second_learner_come_unless_they_are_asked_for() -> None:
    optional = {name for name, service in services().items() if "profiles" in service}
    assert optional == {"simulate", BESIDE}
    needed = {other for service in services().values() for other in service.get("depends_on", {})}
    assert not optional & needed
    for told in (DEPLOY / "compose.yaml", DEPLOY / "README.md"):  # both say how the second is named
        (value,) = re.findall(r'\{"\w+": \{"model": "\w+"\}\}', told.read_text())
        assert load_settings({}, {"MILLRACE_LEARNERS": value, "MILLRACE_CONFIG": ""}).learner_roles.keys() == {BESIDE}


def test_the_scrape_file_of_a_loop_fits_the_rules_and_the_dashboard(tmp_path: Path) -> None:
    places = {role: f"http://127.0.0.1:{port}/metrics" for role, port in PORTS.items()}
    text = scrape_file(places)
    config = yaml.safe_load(text)
    shipped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert config["global"] == shipped["global"]
    labels = {
        entry["labels"]["role"]: (entry["targets"], entry["labels"]["job"])
        for job in config["scrape_configs"]
        for entry in job["static_configs"]
    }
    in_deploy = {
        entry["labels"]["role"]: job["job_name"] for job in shipped["scrape_configs"] for entry in job["static_configs"]
    }
    assert labels == {role: ([f"127.0.0.1:{port}"], in_deploy[role]) for role, port in PORTS.items()}
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for bad in ("127.0.0.1", "http://:9", ""):
        with pytest.raises(ValueError, match="host:port"):
            scrape_file({"learn": bad})


def test_the_image_runs_roles_and_holds_every_package() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}
    packages = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    )
    assert {name for name in copied if (ROOT / name).is_dir()} == packages
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2]) == ["millrace"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} <= set(ignored)


@needs_promtool
@pytest.mark.parametrize("check", [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_accepts(check: tuple[str, str]) -> None:
    done = subprocess.run(["promtool", "check", *check], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def promtool_tests(folder: Path, *tests: dict[str, Any]) -> None:
    """Runs unit tests of the rules: series by the minute in, alerts and values of expressions out."""
    path = folder / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(DEPLOY / "rules.yml")], "tests": list(tests)}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def of_role(series: str) -> str:
    """The series by its whole name, with the label that tells the role."""
    name, _, labels = series.rstrip("}").partition("{")
    name = name if name == "up" else f"millrace_{name}"
    if not labels.startswith("role="):
        labels = f'role="r"{"," if labels else ""}{labels}'
    return f"{name}{{{labels}}}"


PROMOTED_AT_0 = {"gate_last_promotion_timestamp_seconds": "0x60"}
TAUGHT = {"samples_trained_total": "0+500x60", 'quarantined_rows_total{check="auc"}': "0x60"}
LINES = {'intake_lines_total{what="events",verdict="kept"}': "0+90x30"}
NO_VALUE = " ".join(["NaN"] * 61)


def by_the_minute(series: dict[str, str]) -> dict[str, Any]:
    return {"interval": "1m", "input_series": [{"series": name, "values": values} for name, values in series.items()]}


@needs_promtool
def test_no_panel_and_no_rule_takes_what_has_no_value_for_a_figure(tmp_path: Path) -> None:
    """A loop that is ready and has measured nothing: nobody is woken, and no panel shows a number."""
    begun = gauges_begun() | {"millrace_ready{}": "1"}
    series = {
        name.replace("{", '{job="millrace",role="r",').replace(",}", "}"): NO_VALUE if value == "nan" else f"{value}x60"
        for name, value in begun.items()
        if not name.startswith("millrace_role_info")
    }
    unmeasured = {name.partition("{")[0] for name, value in begun.items() if value == "nan"}
    shown = [expr for where, expr in expressions() if not where.startswith("rules.yml")]
    empty = [expr for expr in shown if any(re.search(rf"\b{name}\b", expr) for name in unmeasured)]
    assert len(empty) > 14
    promtool_tests(
        tmp_path,
        by_the_minute(series)
        | {
            "alert_rule_test": [
                {"eval_time": "50m", "alertname": alert.removeprefix("rules.yml: "), "exp_alerts": []}
                for alert, _ in expressions()
                if alert.startswith("rules.yml: ")
            ],
            "promql_expr_test": [{"expr": expr, "eval_time": "50m", "exp_samples": []} for expr in empty],
        },
    )


FIRES: list[tuple[str, dict[str, str]]] = [
    ("RoleDown", {'up{job="millrace"}': "1x20 0x10"}),
    ("RoleNotReady", {"ready": "1x20 0x10"}),
    ("StreamResumes", {"partitions_awaited": "0x20 1740x10"}),
    ("LearnerBehind", {"learner_lag": "200+100x30"}),
    ("StreamBehind", {'stream_lag{topic="events",partition="0"}': "9000+100x30"}),
    ("DeltaGaps", {"delta_gaps_total": "0x15 1+1x10"}),
    ("BatchesSkipped", {'batches_skipped_total{reason="loss_not_finite"}': "0x25 1x5"}),
    (
        "DeadLetters",
        {
            'dead_letters_total{reason="malformed"}': "0+1x30",
            'dead_letters_total{reason="late"}': "0+1x30",
            'events_total{type="exposure"}': "0+60x30",
            'events_total{type="click"}': "0+10x30",
        },
    ),
    ("Drift", {"drift_total": "0x20 1+1x10"}),
    ("ModelStale", {"freshness_seconds": "0+60x30"}),
    # It serves, and has learnt from nothing, while the learner learns: it does not follow.
    ("ModelStale", {"freshness_seconds": NO_VALUE, "samples_trained_total": "0+500x30"}),
    ("LoopStandsStill", {"loop_timestamp_seconds": "60x30", "ready": "1x30"}),
    ("WorseThanBaseline", {'rolling_auc{arm="model"}': "0x60", 'baseline_auc{arm="model"}': "0.5x60"}),
    ("UsersNotRead", {'user_reads_total{found="store"}': "0+97x30", 'user_reads_total{found="nothing"}': "0+3x30"}),
    ("PredictionsNotFinite", {"predictions_not_finite_total": "0+1x30"}),
    ("Miscalibrated", {'calibration{arm="model"}': "1.3x30", 'served_rows{arm="model"}': "5000x30"}),
    ("Miscalibrated", {'calibration{arm="model"}': "0.7x30", 'served_rows{arm="model"}': "5000x30"}),
    ("IntakeNotReady", {'ready{role="intake"}': "0x30"}),
    (
        "IntakeTurnsAway",
        {
            'intake_requests_total{route="/events",status="200"}': "0+100x30",
            'intake_requests_total{route="/events",status="503"}': "0+5x30",
        },
    ),
    ("IntakeRefuses", LINES | {'intake_lines_total{what="events",verdict="refused"}': "0+10x30"}),
    ("ArchiveBehind", {'archive_lag{topic="events"}': "20000+100x30"}),
    ("ArchiveLost", {'archive_lost_total{topic="events"}': "0x5 3x25"}),
    # It finds out as it starts.
    ("ArchiveLost", {'archive_lost_total{topic="events"}': "_x5 3x25"}),
    ("GateRefused", {'gate_verdicts_total{check="labels",verdict="refused"}': "0x25 1x5"}),
    ("GateBlocked", {'gate_state{state="blocked"}': "0x10 1x20"}),
    ("NoPromotion", PROMOTED_AT_0 | TAUGHT),
    # Blocked from the first: whatever comes goes into quarantine.
    (
        "NoPromotion",
        PROMOTED_AT_0 | {"samples_trained_total": "9x60", 'quarantined_rows_total{check="auc"}': "0+90x60"},
    ),
    ("QuarantineGrows", {"quarantine_rows": "11000+1740x30"}),
]
"""Series that each rule must fire for, named without ``millrace_``."""


def test_each_rule_is_seen_to_fire_for_series_as_roles_expose_them() -> None:
    assert {alert for alert, _ in FIRES} == {
        where.removeprefix("rules.yml: ") for where, _ in expressions() if where.startswith("rules.yml")
    }
    for name in {name for _, series in FIRES for name in series if not name.startswith("up{")}:
        metric, _, labels = name.partition("{")
        assert {*re.findall(r'(\w+)="', labels), "job", "role"} == label_names(f"millrace_{metric}"), name


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize(("alert", "series"), FIRES)
def test_a_rule_fires_when_it_should(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"][0]["rules"]
    said = next(rule["annotations"] for rule in rules if rule["alert"] == alert)
    words = {"{{ $labels.role }}": "r", "{{ $labels.arm }}": "model", "{{ $value }}": "1740"}
    words |= {"{{ $labels.reason }}": "loss_not_finite"}
    words |= {"{{ $labels.what }}": "events", "{{ $labels.topic }}": "events", "{{ $labels.check }}": "labels"}
    words |= {"{{ $value }}": "63200"} if alert == "QuarantineGrows" else {}
    for word, value in words.items():
        said = {n: text.replace(word, value) for n, text in said.items()}
    labels = {
        "WorseThanBaseline": {"arm": "model"},
        "Miscalibrated": {"arm": "model", "role": "r"},
        "IntakeNotReady": {"role": "intake"},
        "IntakeRefuses": {"what": "events"},
        "ArchiveLost": {"topic": "events"},
        "RoleDown": {"job": "millrace", "role": "r"},
        "BatchesSkipped": {"reason": "loss_not_finite"},
        "LearnerBehind": {},
        "StreamBehind": {},
        "DeadLetters": {},
        "IntakeTurnsAway": {},
        "UsersNotRead": {},
        "ArchiveBehind": {},
        "GateRefused": {"check": "labels"},
        "GateBlocked": {"state": "blocked", "role": "r"},
    }
    fired = {"exp_labels": labels.get(alert, {"role": "r"}), "exp_annotations": said}
    at = "55m" if alert in ("WorseThanBaseline", "NoPromotion") else "30m"
    case = by_the_minute({of_role(name): values for name, values in series.items()})
    promtool_tests(tmp_path, case | {"alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": [fired]}]})


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize(
    ("alert", "series"),
    [
        # Guests are normal, and so is a read in a thousand.
        (
            "UsersNotRead",
            {
                'user_reads_total{found="store"}': "0+900x30",
                'user_reads_total{found="unknown"}': "0+99x30",
                'user_reads_total{found="nothing"}': "0+1x30",
            },
        ),
        # A simulator that ends is nobody's alarm, and a role that was started again has a minute.
        ("RoleDown", {'up{job="simulator"}': "0x30"}),
        ("RoleDown", {'up{job="millrace"}': "1x29 0x1"}),
        ("RoleNotReady", {"ready": "1x28 0x2"}),
        ("StreamResumes", {"partitions_awaited": "0x28 4x2"}),
        # What has come at once is read by and by; a few messages wait always.
        ("LearnerBehind", {"learner_lag": "9000-100x30"}),
        ("LearnerBehind", {"learner_lag": "0+8x30"}),
        ("StreamBehind", {'stream_lag{topic="events",partition="0"}': "90000-100x30"}),
        ("DeltaGaps", {"delta_gaps_total": "2x20 3x10"}),
        ("BatchesSkipped", {'batches_skipped_total{reason="loss_not_finite"}': "3x30"}),
        (
            "DeadLetters",
            {'dead_letters_total{reason="malformed"}': "0+1x30", 'events_total{type="exposure"}': "0+60x30"},
        ),
        ("Drift", {"drift_total": "0x20 1x5 2x5"}),
        ("ArchiveLost", {'archive_lost_total{topic="events"}': "3x90"}),
        ("PredictionsNotFinite", {"predictions_not_finite_total": "7x30"}),
        ("IntakeRefuses", LINES | {'intake_lines_total{what="events",verdict="refused"}': "0+2x30"}),
        ("IntakeNotReady", {'ready{role="archive"}': "0x30"}),
        ("GateRefused", {'gate_verdicts_total{check="labels",verdict="refused"}': "5x30"}),
        ("GateRefused", {'gate_verdicts_total{check="labels",verdict="unjudged"}': "0+5x30"}),
        ("GateBlocked", {'gate_state{state="probation"}': "1x30", 'gate_state{state="blocked"}': "0x30"}),
        # At night nothing comes, so nothing is there to promote; and a day's promotions come in time.
        ("NoPromotion", PROMOTED_AT_0 | dict.fromkeys(TAUGHT, "9x60")),
        ("NoPromotion", {"gate_last_promotion_timestamp_seconds": "0+60x60"} | TAUGHT),
        # A person goes through it.
        ("QuarantineGrows", {"quarantine_rows": "60000-500x60"}),
        # It has read on what had come while it was away.
        ("ArchiveBehind", {'archive_lag{topic="events"}': "60000-1000x30"}),
        ("Miscalibrated", {'calibration{arm="model"}': "1.2x30", 'served_rows{arm="model"}': "5000x30"}),
        ("Miscalibrated", {'calibration{arm="model"}': "4.6x30", 'served_rows{arm="model"}': "300x30"}),
        # Random pages tell nothing of the model's worth, and ten minutes are not over.
        ("Miscalibrated", {'calibration{arm="control"}': "2x30", 'served_rows{arm="control"}': "5000x30"}),
        ("Miscalibrated", {'calibration{arm="model"}': "1x24 2x6", 'served_rows{arm="model"}': "5000x30"}),
    ],
)
def test_a_rule_is_silent_when_it_should(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    case = by_the_minute({of_role(name): values for name, values in series.items()})
    at = {"NoPromotion": "55m", "ArchiveLost": "85m"}.get(alert, "30m")
    promtool_tests(tmp_path, case | {"alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []}]})


@needs_promtool
def test_promtool_parses_every_panel(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": expr.replace("$__rate_interval", "1m")}
        for i, (_, expr) in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
