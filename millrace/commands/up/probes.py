# shell
"""The questions of `millrace doctor`. Every question ends in any case: that of a model within a minute (its imports
may take long), all others within seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import redis
from kafka import TopicPartition
from kafka.errors import KafkaError
from redis.backoff import NoBackoff
from redis.retry import Retry

from millrace.basics.errors import MillraceError, one_line
from millrace.commands.loop.monitor import RoleMetrics, fetch
from millrace.connections.redis_clients import redis_client, store_error
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import listens, make_admin, make_reader
from millrace.processes.supervisor import PYTHON

PATIENCE_SECONDS = 10.0
"""For one question; several run together."""
TRIAL_SECONDS = 60.0
"""For a model, with its imports. Callers wait longer, since its process must begin and end."""
SHORT = 3.0
LIBRARIES = ("aiokafka", "faust-streaming", "kafka-python", "msgspec", "numba", "numpy", "pyarrow", "redis", "torch")

T = TypeVar("T")


class ProbeResult(msgspec.Struct, Generic[T], frozen=True):
    """The answer to a question: a value, or the reason why there is none."""

    value: T | None = None
    problem: str = ""
    remedy: str = ""


def within(question: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> Callable[[], ProbeResult[T]]:
    """Asks in a thread of its own. The returned function waits for the answer, at most ``seconds`` from now."""
    got: list[ProbeResult[T]] = []

    def ask() -> None:
        try:
            got.append(ProbeResult(question()))
        except MillraceError as error:
            got.append(ProbeResult(None, error.problem, error.remedy))
        except (OSError, KafkaError, ValueError, HTTPException) as error:
            got.append(ProbeResult(None, one_line(error)))

    thread = threading.Thread(target=ask, name="doctor", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds

    def answer() -> ProbeResult[T]:
        thread.join(max(0.0, deadline - time.monotonic()))
        return got[0] if got else ProbeResult(None, f"no answer within {seconds:g} s")

    return answer


def model(settings: Settings) -> dict[str, str]:
    """Tries to make the model that the settings name, in a process of its own (learner/role/trial.py), and so finds
    what a role finds."""
    argv, environment = [*PYTHON, "learner.role.trial"], {**os.environ, **settings.environment()}
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        problem = f"model '{settings.model}' was not made within {TRIAL_SECONDS:g} s"
        return {"problem": problem, "remedy": "see that importing its module and making it come to an end"}
    try:
        return msgspec.json.decode(done.stdout, type=dict[str, str])
    except msgspec.MsgspecError:
        problem = f"model '{settings.model}' ended the process that tried it, with status {done.returncode}"
        return {"problem": problem, "remedy": "import its module in a Python of this environment to see why"}


def broker(settings: Settings) -> dict[str, int]:
    """How many partitions each topic has."""
    if not any(listens(address, SHORT) for address in settings.brokers):
        raise OSError("nothing answers there")
    with contextlib.closing(make_admin(settings, SHORT)) as admin:
        return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}


def newest_message_ms(settings: Settings) -> float | None:
    """When the newest message of ``model.deltas`` was written, by its writer's clock (Unix ms); None: there is none."""
    with contextlib.closing(make_reader(settings, MODEL_DELTAS)) as reader:
        place = TopicPartition(settings.topic(MODEL_DELTAS), 0)
        first, end = (offsets([place])[place] for offsets in (reader.beginning_offsets, reader.end_offsets))
        if end <= first:
            return None
        reader.seek(place, end - 1)
        for records in reader.poll(timeout_ms=SHORT * 1000).values():
            return float(records[-1].timestamp)
    return None


def redis_clock(address: str) -> float:
    """By how many seconds the clock of Redis' machine is ahead of ours."""
    seconds = {"socket_connect_timeout": SHORT, "socket_timeout": SHORT}
    try:
        with redis_client(address, **seconds, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
            asked = time.time()
            seconds_there, micros = client.time()
            return float(seconds_there + micros / 1e6 - (asked + time.time()) / 2)
    except redis.RedisError as error:
        raise store_error("no answer", error) from None


def role(url: str) -> tuple[str, bool]:
    """The version that a role names in its metrics, and whether it reports that it works."""
    figures = RoleMetrics()
    figures.update(fetch(url, SHORT))
    versions = list(figures.by_label("millrace_role_info", "version"))
    return (versions[0] if versions else "", figures.gauge("millrace_ready") == 1)


def unseen(url: str) -> list[str]:
    """What the learner's gate cannot know, or not soon, at the traffic of now: of its ``GET /model``."""
    said = msgspec.json.decode(fetch(f"{url}/model", SHORT), type=dict[str, Any])
    return [str(line) for line in said.get("unseen", [])]


def folder(path: Path) -> tuple[str, int | None]:
    """Why a folder cannot be written to (empty: it can), and how much disk is free. It need not be there yet."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"cannot be made: '{there}' is no folder", None
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot be written to: '{there}' is not ours to write", None
    return "", shutil.disk_usage(there).free


def libraries() -> tuple[dict[str, str], list[str]]:
    found, missing = {}, []
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing
