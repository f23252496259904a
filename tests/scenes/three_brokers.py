"""Apache Kafka of three brokers, each a controller too: what they hold is on all three, and two are enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from millrace.processes.services import free_port
from tests.scenes.demo_kafka import ApacheKafka

_NODE = """
node.id={number}
controller.quorum.voters={voters}
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
broker.session.timeout.ms=6000
"""


@contextmanager
def three_brokers(folder: Path) -> Iterator[dict[int, ApacheKafka]]:
    """The nodes, by number."""
    folder.mkdir()
    controllers = {number: free_port() for number in (1, 2, 3)}
    voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in controllers.items())
    nodes = {
        number: ApacheKafka(
            folder / str(number), controller=port, more=_NODE.format(number=number, voters=voters), heap_mib=256
        )
        for number, port in controllers.items()
    }
    with ExitStack() as stack:
        for node in nodes.values():
            stack.callback(node.kill)
            node.format()
            node.launch()
        for node in nodes.values():
            node.await_answer()
        yield nodes
