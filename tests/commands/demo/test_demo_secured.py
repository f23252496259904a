"""The same loop on a Kafka with SCRAM, TLS and ACLs, and a Redis with TLS and ACLs: as one rents them. A user who has
the rights that the documentation lists, and no others."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

from tests.architecture import ROOT
from tests.scenes.demo_kafka import command_lines
from tests.scenes.demo_process import demo_process, descendants
from tests.scenes.demo_report import assert_no_errors, assert_undisturbed
from tests.scenes.secured_kafka import PASSWORD, USER, secured_kafka
from tests.scenes.secured_redis import RIGHTS, SecuredRedis
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.kafka, pytest.mark.timeout(LONG)]

PREFIX = "shop."
PAGE = (ROOT / "docs" / "how-to" / "run-in-production.md").read_text()


def documented() -> list[ACL]:
    """The rights of the page's table: `| topics that begin with the prefix | Read, Write |`."""
    found = []
    rows = re.findall(r"^\| (topics|groups|the cluster)[^|]*\| ([\w, ]+)", PAGE, re.MULTILINE)
    for what, operations in rows:
        kind = {"topics": ResourceType.TOPIC, "groups": ResourceType.GROUP, "the cluster": ResourceType.CLUSTER}[what]
        named = (kind, "kafka-cluster") if what == "the cluster" else (kind, PREFIX, ACLResourcePatternType.PREFIXED)
        for operation in operations.split(", "):
            right = ACLOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation.strip()).upper()]
            found.append(ACL(f"User:{USER}", "*", right, ACLPermissionType.ALLOW, ResourcePattern(*named)))
    return found


@pytest.mark.slow
def test_a_demo_on_a_kafka_and_a_redis_as_one_rents_them(tmp_path: Path) -> None:
    assert RIGHTS in PAGE
    with secured_kafka(tmp_path / "kafka") as kafka:
        with contextlib.closing(KafkaAdminClient(bootstrap_servers=[kafka.broker.address])) as admin:
            admin.create_acls(documented())
        mine = kafka.certificates.sign("mine")
        secret = tmp_path / "secret"
        secret.write_text(f"{PASSWORD}\n")
        properties = tmp_path / "client.properties"
        properties.write_text(
            f"security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username={USER}\n"
            f"sasl.password=${{file:secret}}\nssl.ca.location={kafka.certificates.authority}\n".replace(
                "file:secret", f"file:{secret}"
            )
        )
        with SecuredRedis(tmp_path / "redis", kafka.certificates, PREFIX) as redis:
            env = {
                "MILLRACE_KAFKA": kafka.address["scram"],
                "MILLRACE_KAFKA_CLIENT": str(properties),
                "MILLRACE_REDIS": redis.url(USER, "${SHOP_REDIS}", f"&ssl_certfile={mine}&ssl_keyfile={mine}"),
                "MILLRACE_PREFIX": PREFIX,
                "SHOP_REDIS": PASSWORD,
            }
            with demo_process(tmp_path, env=env) as demo:
                demo.until_learning(3000)
                lines = command_lines(descendants(demo.process.pid))
                assert not [line for line in lines if "redis-server" in line or "millrace.broker" in line]
                assert demo.end(signal.SIGINT) == 0, demo.text()
                report = demo.report()
                assert_undisturbed(report)
                assert_no_errors(report)
                demo.until_nothing_left()
            shown = [*lines, *(path.read_text(errors="replace") for path in written(tmp_path / "data")), demo.text()]
            assert not [text for text in shown if PASSWORD in text]


def written(folder: Path) -> list[Path]:
    """What the demo says of itself: logs, reports, addresses."""
    return [path for path in folder.rglob("*") if path.suffix in (".log", ".json") and path.is_file()]
