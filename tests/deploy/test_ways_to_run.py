"""Kubernetes manifests and systemd units: built and checked by their own tools, and held against what the roles are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from millrace.contracts.settings import Settings
from millrace.processes.role import ROLES
from millrace.processes.tokens import Callers
from tests.architecture import ROOT
from tests.scenes.deployed import DEPLOY

SERVING = set(ROLES) - {"simulate"}
UNIT = DEPLOY / "systemd" / "millrace@.service"


@pytest.fixture(scope="module")
def built() -> str:
    """What ``kubectl apply`` would get."""
    if shutil.which("kustomize") is None:
        pytest.skip("kustomize (Debian: kustomize) is not installed")
    done = subprocess.run(["kustomize", "build", DEPLOY / "kubernetes"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def resources(built: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built)}


def pods(resources: dict[tuple[str, str], Any]) -> dict[str, Any]:
    return {name: one["spec"] for (_, name), one in resources.items() if "template" in one.get("spec", {})}


def test_kubernetes_knows_every_field(resources: dict[tuple[str, str], Any]) -> None:
    for resource in resources.values():
        validate(resource, "1.33", strict=True)
    resources["StatefulSet", "learn"]["spec"]["replica"] = 1
    with pytest.raises(ValidationError, match="replica"):
        validate(resources["StatefulSet", "learn"], "1.33", strict=True)


def test_every_role_has_a_pod_that_is_unprivileged_bounded_and_watched(resources: dict[tuple[str, str], Any]) -> None:
    assert set(pods(resources)) == {*SERVING, "topics"}
    for name, spec in pods(resources).items():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"] == (["dev", "topics"] if name == "topics" else ["run", name])
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert name == "topics" or {"startupProbe", "livenessProbe"} <= container.keys()
        assert ("readinessProbe" in container) == (name in ("serve", "intake"))
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container.get(probe, {"httpGet": {"port": "http"}})["httpGet"]["port"] in {*ports, "http"}


def test_there_is_one_learner_and_what_can_be_drained_has_a_budget(resources: dict[tuple[str, str], Any]) -> None:
    kinds = {name: kind for (kind, name) in resources if kind in ("Deployment", "StatefulSet")}
    assert {name for name, kind in kinds.items() if kind == "StatefulSet"} == {"learn", "archive"}
    assert pods(resources)["learn"]["replicas"] == 1
    several = {name for name, spec in pods(resources).items() if spec.get("replicas", 1) > 1}
    assert several == {name for kind, name in resources if kind == "PodDisruptionBudget"}
    for kind in ("Service", "PodDisruptionBudget"):
        for (one, name), resource in resources.items():
            if one == kind:
                selector = resource["spec"]["selector"]
                labels = pods(resources)[name]["template"]["metadata"]["labels"]
                assert selector.get("matchLabels", selector).items() <= labels.items()


def test_pods_are_configured_with_settings_that_exist(resources: dict[tuple[str, str], Any]) -> None:
    (config,) = [one["data"] for (kind, _), one in resources.items() if kind == "ConfigMap"]
    assert config.keys() <= {f"MILLRACE_{name.upper()}" for name in Settings.__struct_fields__}
    assert pods(resources)["stream"]["replicas"] <= int(config["MILLRACE_PARTITIONS"])
    callers = Callers(Settings(host=config["MILLRACE_HOST"], allowed_hosts=config["MILLRACE_ALLOWED_HOSTS"]))
    for kind, name in resources:
        for end in ("", ".millrace", ".millrace.svc", ".millrace.svc.cluster.local") if kind == "Service" else ():
            assert callers.refusal("GET", [(b"host", f"{name}{end}:8720".encode())]) == "", name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze (Debian: systemd) is missing")
@pytest.mark.parametrize("role", sorted(SERVING))
def test_systemd_accepts_the_unit(role: str, tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/millrace/bin/millrace", "/bin/true")
    unit = tmp_path / f"millrace@{role}.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(text.replace("Restart=always", "Restart=alway"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "alway" in done.stderr


def test_a_learner_that_is_superseded_is_not_started_again() -> None:
    commands = (ROOT / "docs" / "reference" / "commands.md").read_text()
    (status,) = re.findall(r"\| (\d+) \| another learner has taken over", commands)
    assert f"RestartPreventExitStatus={status}\n" in UNIT.read_text()
