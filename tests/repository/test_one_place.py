"""Clients of Kafka and Redis are made in one place each, so that none gets in another way than the settings say."""

from __future__ import annotations

import ast

from tests.architecture import FOLDERS, ROOT

CLIENTS = {
    "KafkaConsumer": "millrace/processes/kafka.py",
    "KafkaProducer": "millrace/processes/kafka.py",
    "KafkaAdminClient": "millrace/processes/kafka.py",
    "AIOKafkaProducer": "millrace/processes/async_kafka.py",
    "AIOKafkaConsumer": "nowhere: Faust makes it",
    "Redis": "millrace/connections/redis_clients.py",
    "from_url": "millrace/connections/redis_clients.py",
}
"""By the name that is called: the file that may."""


def called(tree: ast.AST) -> set[str]:
    """Names that a module calls, the last part of each."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [getattr(function, "id", getattr(function, "attr", "")) for function in functions]
    return {name for name in names if name in CLIENTS}


def test_each_client_is_made_where_its_security_is_known() -> None:
    found = {
        (name, str(path.relative_to(ROOT)))
        for top in FOLDERS
        for path in sorted((ROOT / top).rglob("*.py"))
        for name in called(ast.parse(path.read_text()))
    }
    assert {name for name, _ in found} == {*CLIENTS} - {"AIOKafkaConsumer", "KafkaConsumer", "KafkaProducer", "Redis"}
    assert [(name, file) for name, file in sorted(found) if CLIENTS[name] != file] == []


def test_a_client_that_is_made_elsewhere_is_found() -> None:
    assert called(ast.parse("import redis\nredis.asyncio.Redis.from_url('h')")) == {"from_url"}
    assert called(ast.parse("KafkaAdminClient(bootstrap_servers=[])")) == {"KafkaAdminClient"}
