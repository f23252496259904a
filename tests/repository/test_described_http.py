"""Scorer and intake are asked what their published descriptions allow, and what they only just forbid: each answer is
one that is described, and none says that there is a bug."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from starlette.types import ASGIApp, Receive, Scope, Send

from scorer.worker import scorer_openapi
from stream.intake import intake_openapi
from tests.scenes.intake_desk import Intake
from tests.scenes.scorer_shop import ITEMS, OneWorker, stock


class Later:
    """An application that is made when its tests begin."""

    def __init__(self) -> None:
        self.made: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.made is not None
        await self.made(scope, receive, send)


def described(description: dict[str, Any], *left_out: str) -> Any:
    config = schemathesis.config.SchemathesisConfig.from_dict({"checks": {n: {"enabled": False} for n in left_out}})
    schema = schemathesis.openapi.from_dict(description, config=config)
    schema.app = Later()
    return schema


# No description knows a shop's attributes, or which fields exclude each other: some of what it allows is refused. And
# the intake says 200 with a refusal of the one bad message among others.
SCORER = described(scorer_openapi.description(), "positive_data_acceptance")
INTAKE = described(intake_openapi.description(), "positive_data_acceptance", "negative_data_rejection")


@schemathesis.serializer("application/x-ndjson")
def lines(_: Any, value: Any) -> bytes:
    return str(value).encode()


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory: pytest.TempPathFactory) -> None:
    worker = OneWorker(tmp_path_factory.mktemp("models"))
    worker.follow()
    stock(worker.scorer, ITEMS)
    SCORER.app.made, INTAKE.app.made = worker.app, Intake().app


@SCORER.parametrize()
def test_the_scorer_answers_as_described(case: Any) -> None:
    case.call_and_validate()


@INTAKE.parametrize()
def test_the_intake_answers_as_described(case: Any) -> None:
    case.call_and_validate()
