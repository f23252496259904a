"""Fills numba's caches: ``python -m tests.repository.warm``. In a fresh clone a core compiles for half a minute, in
each of two processes; later, nothing is compiled. Otherwise pytest-xdist's workers, and the roles that they start,
would compile the same functions at the same time.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from learner.gate import screen
from learner.ranker.model import OnlineModel
from learner.role.learner_warmup import warm_up as warm_learner
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from scorer.worker.scorer_warmup import warm_up as warm_scorer
from stream.partition.partition import Policy
from stream.worker.stream_warmup import warm_up as warm_stream


def stream() -> None:
    warm_stream(shop_schema(), Policy.of(Settings()))
    screen.warm_up()


def models() -> None:
    schema = shop_schema()
    warm_learner(OnlineModel(schema, {"retrieval_width": 8}, 0))
    warm_scorer(schema)


if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        for running in [processes.submit(part) for part in (stream, models)]:
            running.result()
