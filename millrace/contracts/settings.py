# core
"""Settings: read once, validated, frozen, handed down.

Precedence, highest first: flags (passed as overrides), the environment (``MILLRACE_KAFKA`` sets ``kafka``), a TOML file
(``kafka`` below ``[services]``), the defaults below. The file is the one that ``MILLRACE_CONFIG`` names (empty: none),
else ``millrace.toml`` in the folder of the loop, else in the current folder.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from millrace.basics.errors import BrokerError, SettingError, invalid
from millrace.contracts.clock import EventClock
from millrace.contracts.events import MODEL
from millrace.contracts.schema import Schema, load_schema, shop_schema
from millrace.contracts.topics import MODEL_DELTAS, unsafe_prefix
from millrace.evidence.exploration import Exploration
from millrace.evidence.learners import LEARNER_ROLE, LEARNS_FROM, PLACES, LearnsFrom, NamedLearner, check_names
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm, check_arms

FILE = "millrace.toml"
"""Name of the settings file."""
DATA = "millrace-data"
"""Folder of the loop where neither flag nor setting names one, in the current folder."""

Positive = Annotated[float, Meta(gt=0, le=1e9)]  # so that a time in milliseconds fits 64 bits
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,40}\Z")]

_SHARES = {"vectors": 0.6, "liked": 0.1, "coclicked": 0.05, "hot": 0.2, "new": 0.03, "random": 0.02}


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a role needs to know. Times of the *event* clock say so; all others are wall time.

    Those in :data:`SECTIONS` are public: the text in a type is what reference and settings file say of it. The others
    are hidden: tests and benchmarks set them, by the environment or in code; no file has them and no page names them.
    """

    # [services]
    kafka: Annotated[str, "host:port[,host:port]"] = ""
    kafka_client: Annotated[str, "file with the login, client.properties: docs/how-to/run-in-production.md"] = ""
    redis: Annotated[str, "host:port, or a redis:// or rediss:// URL; ${NAME} and ${file:PATH} stand for secrets"] = ""
    scorer: Annotated[str, "http://host:port"] = ""
    intake: Annotated[str, "http://host:port"] = ""
    prefix: Annotated[Prefix, "before topics, consumer groups and Redis keys, so loops can share Kafka and Redis"] = ""
    data: Annotated[str, "the folder of the loop: this machine's working files"] = ""
    store: Annotated[
        str,
        "Folder or object store (any URL that fsspec knows, as s3://bucket/prefix) of checkpoints and models, which"
        " roles on several machines share. Empty: within `data`.",
    ] = ""
    log_format: Annotated[Literal["text", "json"], "of the roles' logs: a line of text or a JSON object"] = "text"

    # [ports]
    host: str = "127.0.0.1"
    port: Annotated[Port, "scorer's HTTP"] = 8700
    intake_port: Annotated[Port, "intake's HTTP"] = 8720
    page_port: Annotated[Port, "live page of `millrace up`"] = 8710
    admin_port: Annotated[Port, "learner's HTTP: verdicts; with a token, promote, hold and roll back"] = 8750
    broker_port: Annotated[Port, "embedded broker of `millrace up`, where `kafka` names none"] = 8730

    # [access]
    tokens: Annotated[str, "token[,token]"] = ""
    token_file: Annotated[str, "a file with one token a line; read again when it changes"] = ""
    admin_token_file: Annotated[str, "a file with one token a line: each may command the learner"] = ""
    allowed_hosts: Annotated[
        str, "name[,name]: by which other hosts reach listeners that need no token; loopback and `host` always may"
    ] = ""
    allowed_origins: Annotated[str, "https://name[,https://name]: pages that may send there without a token"] = ""

    # [schema]
    schema: Annotated[str, "path of a schema file, or shop: the simulated shop's. `millrace run` takes no default"] = ""
    evolve: Annotated[bool, "carry over a model and a state of another schema or spec instead of refusing them"] = False

    # [labels]
    label_policy: Literal["wait", "equal-wait", "fake-negative-weighted", "es-dfm", "prompt"] = "prompt"
    attribution_minutes: Annotated[Positive, "an exposure without a click for so long is a negative"] = 5.0
    observation_seconds: Annotated[Positive, "es-dfm and prompt: without a click for so long it is a negative"] = 10.0
    lateness_minutes: Annotated[NotNegative, "clicks later than this after attribution are dead letters"] = 120.0
    disorder_seconds: Annotated[NotNegative, "how much out of order events may come"] = 60.0

    # [model]
    model: Annotated[str, "a model of docs/internals/learner.md, or module:Class of your own"] = "wide_resnet"
    model_spec: Annotated[dict[str, Any], "entries of the model's spec, as negative_keep = 0.25"] = {}
    segments: Annotated[dict[str, list[str]], "metrics by value of a field: the values of each"] = field(
        default_factory=lambda: {"kind": ["business", "consumer"]}
    )
    learners: Annotated[
        dict[str, NamedLearner], "more learners, in [model.learners.NAME]; see docs/how-to/try-a-second-model.md"
    ] = {}
    learns_from: Annotated[
        LearnsFrom, "pages that learners learn from: all; `own`, of their own model; `weighted`: all, by 1 / propensity"
    ] = "all"

    # [gate]
    gate: Annotated[Literal["on", "observe", "off"], "on: refuse; observe: only what is damaged or absurd"] = "on"
    heldout_share: Annotated[float, Meta(ge=0, le=0.1), "share of pages that are never learnt, to judge by"] = 0.01
    teach_limits: Annotated[
        dict[str, Annotated[int, Meta(ge=1, le=2**63 - 1)]],
        "rows that a user, an item or an id of a field may teach in an hour; empty: no limit",
    ] = field(default_factory=lambda: {"user": 1000, "item": 20000})
    quarantine_minutes: Annotated[Positive, "after so long a refused change is accepted"] = 120.0
    keep_minutes: Annotated[Positive, "versions are kept for so long, thinned, to go back to"] = 60.0

    # [serving]
    workers: Annotated[int, Meta(ge=1, le=64), "processes that answer requests, on one port"] = 1
    candidates: Annotated[int, Meta(ge=1, le=2**31 - 1), "items that are ranked for a page"] = 1000
    recall: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=1)]],
        "shares of the candidates by source, which add up to 1; see docs/concepts/recall-and-ranking.md",
    ] = field(default_factory=_SHARES.copy)
    recall_index: Annotated[Literal["exact", "usearch"], "usearch: approximate, for over a million items"] = "exact"
    control_share: Annotated[float, Meta(ge=0, le=1), "share of users who always get random pages"] = 0.1
    arms: Annotated[
        dict[str, Arm], "more arms of users, in [serving.arms.NAME]; see docs/how-to/see-which-arm-earns-more.md"
    ] = {}
    arms_value: Annotated[str, "a number of the item that a purchase counts in the live figures of arms, as price"] = ""
    explore: Annotated[
        str,
        "Pages of the model that are drawn by chance, with logged propensities. 0: none. share[,rule[,temperature]],"
        " e.g. 0.05,softmax,0.5; rules: softmax, uniform, swap",
    ] = "0"
    hide: Annotated[
        str,
        Meta(pattern="^((bought|clicked|seen)(,(bought|clicked|seen))*)?$"),
        "what the user did is left out of /recommend unless a request says: bought,clicked,seen or some of them",
    ] = ""
    bought_days: Annotated[NotNegative, "event time: an item that a user bought comes last"] = 7.0
    rerank: Annotated[
        Rerank, "weights, boosts, diversity and pins, read again when the file changes; see docs/how-to/filter-pages.md"
    ] = Rerank()

    # [limits]
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 4
    broker_gib: Annotated[Positive, "most that the embedded broker's topics take of the disk"] = 32.0
    archive_days: Annotated[NotNegative, "how long the archive's files are kept; 0: for ever"] = 0.0
    archive_features: Annotated[bool, "each exposure's features too, as the scorer logged them: some 40 bytes"] = False

    # [demo]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    shoppers: Annotated[int, Meta(ge=1, le=1_000_000), "shoppers who come on an average day"] = 4000

    # hidden
    rerank_file: str = ""  # the settings file, where `rerank` is of it and of no variable or flag
    learner: str = ""  # the learner whose topic and places these are; empty: the first. `millrace run learn --name`
    metrics_port: Port | None = None  # nothing: the role's own, see docs/reference/metrics.md; 0: any that is free
    clock: str = ""  # see EventClock.encode; whoever starts the roles of a loop sets it
    from_log: str = ""  # a log that the role `simulate` plays, by `schema`, in place of shoppers
    session_timeout_ms: Annotated[int, Meta(ge=1000, le=2**31 - 1)] = 6000
    patience_seconds: Positive = 30.0  # how long a role waits, aloud, for a broker that does not answer at its start
    outage_seconds: Positive = 60.0  # how long a running worker waits for a broker or Redis that went away
    idle_seconds: Positive = 5.0  # a partition silent for this long follows the others' watermark
    checkpoint_seconds: Positive = 2.0
    intake_seconds: Positive = 10.0  # how long a request waits for its messages to be kept; then it gets 503
    archive_seconds: Positive = 60.0  # how often the archive's files are closed
    horizon_minutes: Positive = 1440.0  # event time: how long a user counts in the live figures of arms
    snapshot_seconds: Positive = 30.0
    redis_seconds: Positive = 0.005  # how long a page waits for Redis; at least 0.05 for a user not read before
    index_seconds: Positive = 60.0  # how often the item index is written down, for scorers that start

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a prefix makes the name of a topic that another loop's prefix makes too; a host or an origin is
                none.
        """
        if unsafe_prefix(self.prefix):
            raise ValueError(f"prefix '{self.prefix}' makes one topic's name out of another's; take another ending")
        for host in entries(self.allowed_hosts):
            if host.count(":") == 1 or {"/", "*"} & {*host}:
                raise ValueError(f"'{host}' is no host; give its name or address alone, as shop.example")
        for origin in entries(self.allowed_origins):
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin.lower()):
                raise ValueError(f"'{origin}' is no origin; give scheme, name and port alone, as https://shop.example")

    def topic(self, name: str) -> str:
        """The name at the broker of the topic that :mod:`millrace.contracts.topics` calls ``name``.

        >>> Settings(prefix="shop.").topic("events")
        'shop.events'
        >>> Settings(learner="b").topic("model.deltas")
        'model.deltas.b'
        """
        return f"{self.prefix}{name}{self._topic_end if name == MODEL_DELTAS else ''}"

    @property
    def _topic_end(self) -> str:
        return f".{self.learner}" if self.learner else ""

    def logical(self, topic: str) -> str:
        """What :mod:`millrace.contracts.topics` calls a topic of the broker; a foreign topic's name comes back whole.

        >>> Settings(prefix="shop.").logical("shop.events")
        'events'
        """
        name = topic.removeprefix(self.prefix)
        return MODEL_DELTAS if name == MODEL_DELTAS + self._topic_end else name

    def group(self, name: str) -> str:
        return self.prefix + name

    def key(self, name: str) -> str:
        """The key in Redis of what :mod:`millrace.contracts.online_layout` calls ``name``.

        >>> Settings(prefix="shop.").key("user:7")
        'shop.user:7'
        """
        return self.prefix + name

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["redis"], shown["tokens"] = without_password(self.redis), "***" if self.tokens else ""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def load_schema(self) -> Schema:
        """The schema named by the settings, or the simulated shop's."""
        return load_schema(self.schema) if self.schema else shop_schema()

    def spec(self) -> dict[str, Any]:
        return {"model": self.model} | self.model_spec

    @property
    def by_page(self) -> bool:
        """Whether the model learns a loss within pages."""
        return _by_page(self.model_spec)

    @property
    def sends_pages(self) -> bool:
        """Whether the model of any learner does, so that the stream has to send pages again."""
        return self.by_page or any(_by_page(learner.spec) for learner in self.learners.values())

    @property
    def served_learners(self) -> tuple[str, ...]:
        """Names of those whose models make the pages of an arm."""
        return tuple(dict.fromkeys(arm.learner for arm in self.arms.values() if arm.learner))

    @property
    def learner_roles(self) -> dict[str, str]:
        """The others' names, by the role that each is in a loop."""
        return {replace(self, learner=name).learner_role: name for name in self.learners}

    @property
    def samples_say_arms(self) -> bool:
        """Whether samples name the arms and the odds of their pages: where a learner asks for them, or pages are drawn
        by chance (learner/ranker/slot_effect.py)."""
        drawn = [self.explore, *(arm.explore for arm in self.arms.values() if arm.explore is not None)]
        asked = bool(self.served_learners) or self.learns_from != "all"
        return asked or any(Exploration.of(how) is not None for how in drawn)

    @property
    def learner_role(self) -> str:
        """The role of this learner's process in a loop."""
        return f"{LEARNER_ROLE}{self.learner}" if self.learner else "learn"

    def makers(self) -> dict[str, str]:
        """Whose model makes the pages of each arm that a model makes, and what this learner learns from, in words.
        Empty: all such pages are the first learner's.

        >>> Settings(arms={"b": Arm("model", 0.5, learner="x")}, learners={"x": NamedLearner("deepfm")}).makers()["b"]
        "learner 'x' (deepfm), which learns from all pages"
        """
        if not self.served_learners:
            return {}
        names = {MODEL: ""} | {name: arm.learner for name, arm in self.arms.items() if arm.kind == "model"}
        learns = f"which learns from {LEARNS_FROM[self.learns_from]}"
        return {
            arm: f"{_QUOTED.format(name) if name else _FIRST} ({self.of_learner(name).model}), {learns}"
            for arm, name in names.items()
        }

    def of_learner(self, name: str) -> Settings:
        """The settings of a learner: its model, and topic and places of its own; of the first where ``name`` is empty.
        Raises SettingError: there is none of this name."""
        if not name:
            return replace(self, learner="")
        own = self.learners.get(name)
        if own is None:
            there = f"learners are {', '.join(self.learners)}" if self.learners else "there is none yet"
            raise SettingError(f"there is no learner '{name[:60]}'", f"name it in [model.learners.NAME]; {there}")
        return replace(self, learner=name, model=own.model, model_spec=own.spec)

    def own(self, name: str) -> str:
        """The place ``name`` of this learner, as a path below the store or the data folder.

        >>> Settings(learner="b").own("models"), Settings(learner="b").own("schemas")
        ('learners/b/models', 'schemas')
        """
        return f"learners/{self.learner}/{name}" if self.learner and name in PLACES else name

    @property
    def recalls(self) -> list[dict[str, float]]:
        """The shares of recall of all pages, and of each arm that has its own."""
        return [self.recall, *(arm.recall for arm in self.arms.values() if arm.recall is not None)]

    def event_clock(self) -> EventClock:
        return EventClock.decode(self.clock)

    @property
    def brokers(self) -> list[str]:
        """The broker's addresses, ``host:port`` each. Raises BrokerError: none is set."""
        if not self.kafka:
            raise BrokerError("no Kafka address is set", "set MILLRACE_KAFKA to host:port, or use 'millrace demo'")
        return self.kafka.split(",")

    def folder(self, *parts: str) -> Path:
        """A folder below ``data``, created if need be. Raises SettingError if ``data`` is not set or not writable."""
        if not self.data:
            raise SettingError("'data' is not set", "set MILLRACE_DATA to a folder for checkpoints and models")
        path = Path(self.data, *map(self.own, parts))
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
        return f"{self.store.rstrip('/')}/{self.own(name)}" if self.store else str(self.folder(name))

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process: the schema, what else differs from the defaults,
        and no file."""
        default = Settings()
        changed = {n: v for n in self.__struct_fields__ if (v := getattr(self, n)) != getattr(default, n)}
        changed.setdefault("schema", SHOP)
        texts = {
            n: msgspec.json.encode(v).decode() if isinstance(v, dict | Struct) else str(v) for n, v in changed.items()
        }
        return {"MILLRACE_CONFIG": ""} | {variable(name): text for name, text in texts.items()}


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "services": ("kafka", "kafka_client", "redis", "scorer", "intake", "prefix", "data", "store", "log_format"),
    "ports": ("host", "port", "intake_port", "page_port", "admin_port", "broker_port"),
    "access": ("tokens", "token_file", "admin_token_file", "allowed_hosts", "allowed_origins"),
    "schema": ("schema", "evolve"),
    "labels": ("label_policy", "attribution_minutes", "observation_seconds", "lateness_minutes", "disorder_seconds"),
    "model": ("model", "model_spec", "segments", "learners", "learns_from"),
    "gate": ("gate", "heldout_share", "teach_limits", "quarantine_minutes", "keep_minutes"),
    "serving": (
        *("workers", "candidates", "recall", "recall_index"),
        *("control_share", "arms", "arms_value", "explore", "hide", "bought_days", "rerank"),
    ),
    "limits": ("partitions", "broker_gib", "archive_days", "archive_features"),
    "demo": ("seed", "shoppers"),
}
"""The public settings, by their section of the file."""
SHOP = "shop"
"""Names the schema of the simulated shop, in place of a path."""
ABOUT: Mapping[str, str] = {
    "services": "Where things are. An empty address means that `millrace demo` or `millrace up` starts an own one.",
    "ports": "What to bind. Loopback unless set otherwise.",
    "access": (
        "Who may use the HTTP of intake, scorer and learner: bearer tokens. None at all: everybody who reaches "
        "intake and scorer but web pages of elsewhere, and nobody commands the learner."
    ),
    "schema": "What users, items and events of the shop are.",
    "labels": "When an exposure's label is learnt, and with what weight. All of it is event time.",
    "model": "What is learnt, and which figures are kept of it.",
    "gate": "What stands in front of what is served; see docs/concepts/trust.md. Its minutes are event time.",
    "serving": "What a scorer makes a page of.",
    "limits": "What disks and brokers hold.",
    "demo": "The simulated shop.",
}
"""What each section is about."""
SECRET = frozenset({"tokens"})
"""What is never shown."""
HIDDEN = "***"
"""Stands where a secret is left out."""
_PATHS = frozenset({"kafka_client", "data", "store", "schema", "token_file", "admin_token_file"})
"""In a file, a relative path is relative to the file's folder."""


def _by_page(spec: Mapping[str, Any]) -> bool:
    weight = spec.get("page_weight", 0)  # the learner refuses what is no number
    return isinstance(weight, int | float) and weight > 0


def variable(name: str) -> str:
    """The environment variable of a setting.

    >>> variable("kafka")
    'MILLRACE_KAFKA'
    """
    return f"MILLRACE_{name.upper()}"


def entries(text: str) -> list[str]:
    """What a setting with commas names.

    >>> entries("a, b,")
    ['a', 'b']
    """
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def without_password(url: str) -> str:
    """An address as a log may show it: without user and password, and without options, which may have one too.

    >>> without_password("rediss://ann:secret@host:6379/0?ssl_password=other")
    'rediss://***@host:6379/0?***'
    """
    scheme = found[0] if (found := re.match(r"\w+://", url)) else ""
    _, at, place = url.removeprefix(scheme).rpartition("@")
    place, question, _ = place.partition("?")
    return f"{scheme}{HIDDEN + at if at else ''}{place}{question + HIDDEN if question else ''}"


class Given(NamedTuple):
    """A value that somebody set. ``origin``: ``flag``, a variable's name, or ``FILE:LINE``."""

    value: Any
    origin: str


class SettingSources(NamedTuple):
    """What flags, environment and file say."""

    settings: Settings
    """Of all that is right; a mistake leaves the default."""
    given: dict[str, Given]
    """By name; what is not here is the default."""
    file: Path | None
    mistakes: list[str]
    """One line each, with the origin and the value."""


def load_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, **defaults: Any
) -> Settings:
    """Settings from flags, environment, file and defaults, in this order of precedence.

    Args:
        overrides: flags by setting name; None values are "not given".
        environ: the environment (default: the process's own).
        defaults: a command's own, by setting name.

    Raises:
        SettingError: an unknown name or an unusable value, with where it came from.
    """
    found = read_settings(overrides, environ)
    if found.mistakes:
        raise SettingError(found.mistakes[0], "correct it; 'millrace config check' names every mistake")
    own = {name: value for name, value in defaults.items() if name not in found.given}
    by = found.given["rerank"].origin if "rerank" in found.given else f"{found.file}:"
    if found.file is not None and by.startswith(f"{found.file}:"):
        own["rerank_file"] = str(found.file.absolute())
    return replace(found.settings, **own)


def read_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> SettingSources:
    """As :func:`load_settings`, with origins, and with every mistake in place of an error."""
    env = os.environ if environ is None else environ
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    path = _file_of(str(flags.get("data") or env.get("MILLRACE_DATA") or DATA), env.get("MILLRACE_CONFIG"))
    given, mistakes = ({}, []) if path is None else _of_file(path)
    for name in Settings.__struct_fields__:
        if (text := env.get(variable(name))) is not None:
            given[name] = Given(text, variable(name))
    given |= {name: Given(value, "flag") for name, value in flags.items()}
    right: dict[str, Any] = {}
    for name, (value, origin) in given.items():
        text = str(value)
        try:
            if not text.isascii() and text.encode(errors="replace").decode() != text:
                raise ValueError("it is no UTF-8")
            if "\0" in text:
                raise ValueError("it has a NUL")
            plain = _table(value) if name in _TABLES and isinstance(value, str) else value
            read = getattr(msgspec.convert({name: plain}, Settings, strict=False), name)
            if name == "explore":
                Exploration.of(read)
            right[name] = "" if (name, read) == ("schema", SHOP) else read
        except (ValueError, RecursionError, SettingError) as error:
            why = invalid(error, Settings) if isinstance(error, msgspec.ValidationError) else str(error)
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            mistake = f"{origin}: {name} '{shown}': {why.replace(text, shown) if text else why}"
            mistakes.append(" ".join(mistake.encode(errors="backslashreplace").decode().split()))
    settings = Settings(**right)
    for name, check in _CHECKS.items():
        try:
            check(settings)
        except SettingError as error:
            mistakes.append(f"{given[name].origin}: {error}")
            settings = replace(settings, **{name: {}})
    return SettingSources(settings, given, path, mistakes)


def rerank_of(file: str) -> Rerank:
    """What a settings file says of re-ranking now. Raises SettingError: it cannot be read, or anything in it is
    wrong."""
    found = read_settings({}, {"MILLRACE_CONFIG": file})
    if found.mistakes:
        raise SettingError(found.mistakes[0], "correct it; 'millrace config check' names every mistake")
    return found.settings.rerank


def unread_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable MILLRACE_* that nothing reads. Kubernetes sets some for each service of a namespace."""
    known = [variable(name) for name in (*Settings.__struct_fields__, "config", "token")]
    strange = sorted(
        name
        for name, text in environ.items()
        if name.startswith("MILLRACE_") and name not in known and "_TEST_" not in name
        if not re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_", name) and not re.match(r"(tcp|udp|sctp)://", text)
    )
    return [f"nothing reads {name}; {_meant(name, known)}" for name in strange]


def _file_of(folder: str, named: str | None) -> Path | None:
    if named is not None:
        return Path(named) if named else None
    return next((path for path in (Path(folder, FILE), Path(FILE)) if os.path.isfile(path)), None)


def _of_file(path: Path) -> tuple[dict[str, Given], list[str]]:
    """What a file sets, and its mistakes."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        return {}, [" ".join(f"the settings file '{str(path)[:_SHOWN]}' cannot be read ({why})".split())]
    lines, section_of = _lines(text), {name: s for s, names in SECTIONS.items() for name in names}
    given: dict[str, Given] = {}
    mistakes: list[str] = []

    def strange(what: str, name: str, *keys: str) -> None:
        remedy = f"it belongs in [{section_of[name]}]" if name in section_of else _meant(name, section_of)
        mistakes.append(f"{path}:{lines.get(keys, 1)}: {what} setting '{name}'; {remedy}")

    for key, values in document.items():
        if not isinstance(values, dict):
            strange("outside of the sections there is no", key, key)
        elif key not in SECTIONS:
            mistakes.append(f"{path}:{lines.get((key,), 1)}: there is no section [{key}]; {_meant(key, SECTIONS)}")
        else:
            for name, value in values.items():
                if section_of.get(name) != key:
                    strange(f"[{key}] has no", name, key, name)
                    continue
                relative = name in _PATHS and isinstance(value, str) and value and "://" not in value
                relative = relative and (name, value) != ("schema", SHOP)
                found = str(path.absolute().parent / value) if relative else value
                given[name] = Given(found, f"{path}:{lines.get((key, name), 1)}")
    return given, mistakes


def _lines(text: str) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([\w\s.-]+)\]", line):
            table = path = tuple(part.strip() for part in header[1].split("."))
        elif key := re.match(r"\s*([\w.-]+)\s*=", line):
            path = (*table, *key[1].split("."))
        else:
            continue
        for end in range(1, len(path) + 1):
            found.setdefault(path[:end], number)
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "docs/reference/settings.md lists them all"


_CHECKS: dict[str, Callable[[Settings], None]] = {
    "learners": lambda settings: check_names(settings.learners),
    "arms": lambda settings: check_arms(settings.control_share, settings.arms, settings.learners),
}
"""What no type says of a setting, by its name."""

_QUOTED, _FIRST = "learner '{}'", "the first learner"
_SHOWN = 200  # characters of a value in a mistake
_TABLES = frozenset({"model_spec", "segments", "learners", "teach_limits", "recall", "arms", "rerank"})


def _table(text: str) -> Any:
    """A table as the environment has it: a JSON object, or one of two short forms.

    Raises:
        ValueError: it is none, or has a name twice.

    >>> _table("user=1000, item=20000")
    {'user': 1000, 'item': 20000}
    >>> _table("kind:business|consumer;seller:1")
    {'kind': ['business', 'consumer'], 'seller': ['1']}
    """
    if text.lstrip().startswith(("{", "[")):
        return json.loads(text, object_pairs_hook=_once)
    lists = ":" in text
    found: list[tuple[str, Any]] = []
    for part in filter(None, (part.strip() for part in text.split(";" if lists else ","))):
        name, mark, value = (word.strip() for word in part.partition(":" if lists else "="))
        if not name or not value:
            raise ValueError(f"'{part}' is no name{mark or '='}value; write a=1,b=2 or a:x|y;b:z or a JSON object")
        if lists:
            found.append((name, [word.strip() for word in value.split("|") if word.strip()]))
        else:
            found.append((name, int(value) if value.isdecimal() else float(value)))
    return _once(found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name in found:
        if sum(name == other for other, _ in pairs) > 1:
            raise ValueError(f"it names '{name}' twice")
    return found
