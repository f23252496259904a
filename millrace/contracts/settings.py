# core
"""Settings: read once, validated, frozen, handed down.

Precedence, highest first: flags (passed as overrides), the environment (``MILLRACE_KAFKA`` sets ``kafka``), the file
named by ``MILLRACE_CONFIG`` (TOML, same names), the defaults below.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from millrace.basics.errors import BrokerError, SettingError, invalid
from millrace.contracts.clock import EventClock
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.contracts.topics import unsafe_prefix

Positive = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a role needs to know. Times of the *event* clock say so; all others are wall time."""

    # Where things are. An empty address means that `millrace demo` starts an embedded service.
    kafka: str = ""  # host:port[,host:port]
    redis: str = ""  # host:port or redis:// URL
    scorer: str = ""  # http://host:port
    intake: str = ""  # http://host:port
    # Before the name of each topic, consumer group and Redis key, so that several loops share one Kafka and one Redis.
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,40}$")] = ""
    data: str = ""  # folder of this machine's working files
    # Folder or object store (any URL that fsspec knows, as s3://bucket/prefix) of checkpoints and models, which roles
    # on several machines share. Empty: within `data`.
    store: str = ""
    schema: str = ""  # path of a schema file; empty: the simulated shop's
    clock: str = ""  # see EventClock.encode

    # What to bind. Loopback unless told otherwise.
    host: str = "127.0.0.1"
    port: Port = 8700  # scorer's HTTP
    intake_port: Port = 8720  # intake's HTTP
    page_port: Port = 8710  # live page of `millrace up`
    broker_gib: Annotated[float, Meta(gt=0)] = 32.0  # most that the embedded broker's topics take of the disk
    broker_port: Port = 8730  # embedded broker of `millrace up`, where `kafka` names none
    redis_port: Port = 8740  # embedded Redis of `millrace up`, where `redis` names none
    metrics_port: Port | None = None  # None: the role's own, see millrace.processes.metrics; 0: any that is free

    # Who may use the HTTP doors of intake and scorer: bearer tokens. None at all: everybody who reaches them.
    tokens: str = ""  # token[,token]
    token_file: str = ""  # a file with a token a line; read again when it changes

    seed: int = 0
    from_log: str = ""  # a log that the role `simulate` plays, by `schema`, in place of shoppers
    shoppers: Annotated[int, Meta(ge=1, le=1_000_000)] = 4000  # of the simulated shop, who come on an average day
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 4
    idempotence: bool = True  # off only where the broker cannot
    # What a broker takes in one message: its message.max.bytes, less some room. A larger one is never sent.
    message_bytes: Annotated[int, Meta(ge=800_000)] = 1_000_000
    compression: Literal["zstd", "none"] = "zstd"  # of what we write; any kind is read
    session_timeout_ms: Annotated[int, Meta(ge=1000)] = 6000
    patience_seconds: Positive = 30.0  # how long a role waits, aloud, for a broker that does not answer at its start

    # stream, in event time
    attribution_minutes: Positive = 5.0  # an exposure without a click for so long is a negative
    disorder_seconds: Annotated[float, Meta(ge=0)] = 60.0  # how much out of order events may come
    lateness_minutes: Annotated[float, Meta(ge=0)] = 120.0  # clicks later than this after attribution are dead letters
    ahead_minutes: Positive = 60.0  # an event further ahead of the event clock is from the future; less far, it waits
    # When an exposure's label is learnt, and with what weight: see millrace/labels. Samples carry it to the learner.
    label_policy: Literal["wait", "equal-wait", "fake-negative-weighted", "es-dfm", "prompt"] = "prompt"
    observation_seconds: Positive = 10.0  # es-dfm and prompt: an exposure without a click for so long is a negative

    # stream, in wall time
    idle_seconds: Positive = 5.0  # a partition silent for this long follows the others' watermark
    checkpoint_seconds: Positive = 2.0
    publish_seconds: Positive = 1.0  # item aggregates to the scorer
    outage_seconds: Positive = 60.0  # how long a running worker waits for a broker or Redis that went away

    # intake
    intake_waiting: Annotated[int, Meta(ge=1)] = 20_000  # messages not kept yet; beyond it, requests get 429
    intake_seconds: Positive = 10.0  # how long a request waits for its messages to be kept; then it gets 503

    # archive
    archive_seconds: Positive = 60.0  # how often files are closed
    archive_days: Annotated[float, Meta(ge=0)] = 0.0  # how long files are kept; 0: for ever
    archive_features: bool = False  # also the features of each exposure, as the scorer logged them: 40 bytes or so each

    # learner
    model: str = "wide_resnet"
    model_spec: str = (
        ""  # JSON: entries of the model's spec (learner/network/models/spec.py), as {"negative_keep": 0.25}
    )
    batch_rows: Annotated[int, Meta(ge=1)] = 128
    batch_ms: Positive = 250.0
    delta_seconds: Positive = 0.25
    snapshot_seconds: Positive = 30.0
    dense_seconds: Positive = 5.0  # how often a delta carries the network's weights; rows go with each
    retrieval_seconds: Positive = 10.0  # how often a delta carries the retrieval head: recall lags ranking by so much
    delta_bodies: Literal["kafka", "store"] = "kafka"  # where deltas travel: on the topic model.deltas, or as files
    rolling_rows: Annotated[int, Meta(ge=100)] = 10_000  # length of the rolling metrics
    segments: str = "kind:business|consumer"  # metrics by value of a field: "field:value|value;field:value"
    # The gate in front of what is served; see docs/trust.md. Its minutes are event time. `observe`: it says what it
    # would refuse, and refuses only what is damaged or absurd. `on`: it refuses. `off`: nothing is judged.
    gate: Literal["observe", "on", "off"] = "observe"
    heldout_share: Annotated[float, Meta(ge=0, le=0.1)] = 0.01  # of pages that are never learnt, to judge models by
    teach_limits: str = "user=1000,item=20000"  # event time: rows that a user, item or id may teach in an hour
    quarantine_minutes: Positive = 120.0  # event time: what stays different for so long is the world, and is learnt
    keep_minutes: Positive = 60.0  # event time: versions are kept for so long, thinned, to go back to
    admin_port: Port = 8750  # learner's HTTP: verdicts; with a token, promote, hold and roll back
    admin_token_file: str = ""  # a file with a token a line; without one nobody may command the learner
    shadow_model: str = ""  # of the role `millrace shadow`: a second learner, judged beside the first
    shadow_spec: str = ""  # JSON: entries of its spec
    evolve: bool = False  # a model and a state of another schema or spec are carried over, aloud, instead of refused

    # scorer
    workers: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that answer requests, on one port
    redis_seconds: Positive = 0.005  # how long a page waits for Redis; at least 0.05 for a user not read before
    requests_limit: Annotated[int, Meta(ge=1)] = 32  # in work at a worker; beyond it, one is refused at once (503)
    spool_mb: Annotated[int, Meta(ge=1)] = 256  # logs of pages kept on disk while the broker is away
    candidates: Annotated[int, Meta(ge=1)] = 1000
    # Shares of the candidates by source; see scorer/recall/recall.py. They add up to 1.
    recall: str = "vectors=0.6,liked=0.1,coclicked=0.05,hot=0.2,new=0.03,random=0.02"
    recall_index: Literal["exact", "usearch"] = "exact"  # usearch: approximate, for more than a million items
    recall_clicks: Annotated[int, Meta(ge=0)] = 1000  # that the retrieval head has to have learnt before it is used
    new_exposures: Annotated[int, Meta(ge=1)] = 100  # after so many an item has had its chance, and is new no longer
    bought_days: Annotated[float, Meta(ge=0)] = 7.0  # event time: an item that a user bought comes last for so long
    page_limit: Annotated[int, Meta(ge=1)] = 600
    control_share: Annotated[float, Meta(ge=0, le=1)] = 0.1  # of requests that get a random page
    list_seconds: Positive = 300.0  # how long a ranked list is kept, to be handed out in parts
    index_seconds: Positive = 60.0  # how often the item index is written down, for scorers that start

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a prefix makes the name of a topic that another loop's prefix makes too.
        """
        if unsafe_prefix(self.prefix):
            raise ValueError(f"prefix '{self.prefix}' makes one topic's name out of another's; take another ending")

    def topic(self, name: str) -> str:
        """The name at the broker of the topic that :mod:`millrace.contracts.topics` calls ``name``.

        >>> Settings(prefix="shop.").topic("events")
        'shop.events'
        """
        return self.prefix + name

    def logical(self, topic: str) -> str:
        """What :mod:`millrace.contracts.topics` calls a topic of the broker; a foreign topic's name comes back whole.

        >>> Settings(prefix="shop.").logical("shop.events")
        'events'
        """
        return topic.removeprefix(self.prefix)

    def group(self, name: str) -> str:
        """The name at the broker of a consumer group."""
        return self.prefix + name

    def key(self, name: str) -> str:
        """The key in Redis of what :mod:`millrace.contracts.online` calls ``name``.

        >>> Settings(prefix="shop.").key("user:7")
        'shop.user:7'
        """
        return self.prefix + name

    def __repr__(self) -> str:
        """Without what is secret."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["redis"], shown["tokens"] = without_password(self.redis), "***" if self.tokens else ""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def load_schema(self) -> Schema:
        """The schema named by the settings, or the simulated shop's."""
        return load_schema(self.schema) if self.schema else shop_schema()

    def spec(self) -> dict[str, Any]:
        """The model and the entries of its spec that were given.

        Raises:
            SettingError: ``model_spec`` is not a JSON object, or has an entry that is no more.
        """
        try:
            given = msgspec.json.decode(self.model_spec or "{}", type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise SettingError(f"model_spec '{self.model_spec}': {error}", "give a JSON object, or nothing") from None
        if "delayed_feedback" in given:
            raise SettingError(
                "model_spec has 'delayed_feedback', which is no more", "set MILLRACE_LABEL_POLICY instead"
            )
        return {"model": self.model} | given

    def event_clock(self) -> EventClock:
        return EventClock.decode(self.clock)

    @property
    def codec(self) -> str | None:
        """The compression by the name that both Kafka clients know it under; None: none."""
        return None if self.compression == "none" else self.compression

    @property
    def brokers(self) -> list[str]:
        """The broker's addresses, ``host:port`` each.

        Raises:
            BrokerError: none is set.
        """
        if not self.kafka:
            raise BrokerError("no Kafka address is set", "set MILLRACE_KAFKA to host:port, or use 'millrace demo'")
        return self.kafka.split(",")

    def folder(self, *parts: str) -> Path:
        """A folder below ``data``, created if need be.

        Raises:
            SettingError: ``data`` is not set or cannot be written to.
        """
        if not self.data:
            raise SettingError("'data' is not set", "set MILLRACE_DATA to a folder for checkpoints and models")
        path = Path(self.data, *parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"folder '{path}' cannot be made ({error.strerror})",
                "set MILLRACE_DATA to a folder you can write to",
            ) from None
        return path

    def place(self, name: str) -> str:
        """Where the store keeps ``name``: a folder or URL, for :class:`~millrace.basics.store.Store`.

        Raises:
            SettingError: neither ``store`` nor ``data`` is set, or a folder cannot be made.
        """
        return f"{self.store.rstrip('/')}/{name}" if self.store else str(self.folder(name))

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process; only what differs from the defaults."""
        default = Settings()
        changed = {n: getattr(self, n) for n in self.__struct_fields__ if getattr(self, n) != getattr(default, n)}
        return {f"MILLRACE_{name.upper()}": str(value) for name, value in changed.items()}


def without_password(url: str) -> str:
    """An address as a log may show it.

    >>> without_password("redis://:secret@host:6379/0")
    'redis://***@host:6379/0'
    """
    head, at, host = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{host}" if at else url


_FORMER_GATE = {"true": "on", "1": "on", "false": "off", "0": "off"}
"""What ``gate`` was called before there were three values."""


def load_settings(overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags, environment, file and defaults, in this order of precedence.

    Args:
        overrides: flags by setting name; None values are "not given".
        environ: the environment (default: the process's own).

    Raises:
        SettingError: an unknown name or an unusable value, with where it came from.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    config = env.get("MILLRACE_CONFIG", "")
    if config:
        try:
            values.update(tomllib.loads(Path(config).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingError(f"MILLRACE_CONFIG '{config}' cannot be read ({error})", "name a TOML file") from None
    for name in Settings.__struct_fields__:
        text = env.get(f"MILLRACE_{name.upper()}")
        if text is not None:
            values[name] = text
    values.update({k: v for k, v in (overrides or {}).items() if v is not None})
    if "gate" in values:
        values["gate"] = _FORMER_GATE.get(str(values["gate"]).lower(), values["gate"])
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(
            f"settings: {invalid(error, Settings)}", "correct the flag, the MILLRACE_* variable or the settings file"
        ) from None
