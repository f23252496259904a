# core
"""What crosses Kafka, for programs: an AsyncAPI document, and a JSON Schema of every JSON message. Pure.

::

    contracts.events: types ──► msgspec ──► JSON Schemas ──┬──► docs/reference/schemas/*.json
    contracts.topics: topics ──────────────────────────────┴──► docs/reference/asyncapi.json
    packed messages: their modules' texts ─────────────────┘

Types say what is refused; :data:`MEANS` says in words what each field is for. A test finds a field without words, and
one that is no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from millrace import __version__
from millrace.commands.reference.examples import EXAMPLES
from millrace.contracts import coclick_message, itemtiles, page_logs, samples, topics
from millrace.contracts.events import (
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    Cart,
    Click,
    Collect,
    DeadLetter,
    Exposure,
    Item,
    ItemChange,
    ItemTiles,
    Order,
    PageLog,
    Purchase,
    Refund,
    Truth,
    User,
)
from millrace.contracts.settings import Settings
from millrace.contracts.topics import TOPICS, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
JSON, PACKED, BYTES = "application/json", "application/msgpack", "application/octet-stream"

KINDS: Mapping[str, type[Struct]] = {
    "exposure": Exposure,
    "click": Click,
    "collect": Collect,
    "cart": Cart,
    "purchase": Purchase,
    "order": Order,
    "refund": Refund,
    "user": User,
    "item": Item,
    "item-change": ItemChange,
    "dead-letter": DeadLetter,
}
"""Messages in JSON, by the name of their schema."""
EVENTS = tuple(KINDS)[:7]

_EVENT = {
    "event_id": "Name of this event, made by its sender; the intake keeps one message of each.",
    "request_id": "The page: `request_id` of the answer that it came with.",
    "ts_ms": "When it happened, in Unix milliseconds of the event clock.",
    "user_id": 'Who did it: the user that the page was asked for. `7` and `"7"` are the same.',
    "sent_ms": "Wall time of sending, to time a click's way to the weights; 0: not known.",
}
_ACTION = _EVENT | {
    "type": "What was done.",
    "item_id": "The item that it was done with.",
    "position": "The item's position in the answer, whatever place it was shown at.",
}
_ORDER = {name: text for name, text in _ACTION.items() if name not in ("request_id", "position")}
MEANS: Mapping[str, Mapping[str, str]] = {
    "exposure": _EVENT
    | {
        "type": "What was seen.",
        "items": "The items that the user saw, in the order shown.",
        "offset": "Slot of the first of them; the others follow it.",
        "slots": "Position in the answer of each of `items`; null: they were shown as answered, from `offset` on.",
    },
    **dict.fromkeys(EVENTS[1:5], _ACTION),
    **dict.fromkeys(EVENTS[5:], _ORDER),
    "user": {
        "user_id": "The user; it is the Kafka key too.",
        "attributes": "Values by attribute, named as in the schema. They replace all that was said before.",
        "sessions": "Ids that the user had as a guest: what happened under them counts for the user.",
    },
    "item": {
        "item_id": "The item; it is the Kafka key too.",
        "attributes": "Values by attribute, named as in the schema. They replace all that was said before.",
        "born_ms": "When it came into the catalogue, in Unix milliseconds; 0: not known.",
        "gone": "It is recommended no more, and may still be scored.",
        "expires_ms": "When it is gone by itself, in Unix milliseconds of event time; left out: never.",
    },
    "item-change": {
        "item_id": "The item, which has to be there.",
        "changes": "New values by attribute; null removes one. All others stay.",
        "gone": "True takes it off pages, false puts it back; left out: as it is.",
    },
    "dead-letter": {
        "reason": "Why: a word of docs/reference/dead-letters.md.",
        "detail": "One line that names the value.",
        "topic": "Where the message lies: its topic,",
        "partition": "its partition,",
        "offset": "and its offset there. The three together are this dead letter's identity.",
        "exposures": "Exposures that are lost with it.",
        "raw": "The message itself (of a tombstone, its key), in base64.",
        "truncated": "Whether `raw` is only the beginning.",
    },
}
"""Words for each field, by the name of the schema."""


class TopicMessages(NamedTuple):
    """A topic's messages. ``is_read``: Millrace reads what others write there; otherwise it writes."""

    about: str
    key: str
    is_read: bool
    messages: tuple[str, ...]


CHANNELS: Mapping[str, TopicMessages] = {
    topics.EVENTS: TopicMessages("What users saw and did.", "user_id", True, EVENTS),
    topics.USERS: TopicMessages("Users, the newest message of each.", "user_id", True, ("user", "user-tombstone")),
    topics.ITEMS: TopicMessages(
        "Items, the newest message of each and the newest change of each attribute.",
        "item_id",
        True,
        ("item", "item-change", "item-tombstone"),
    ),
    topics.PAGE_LOGS: TopicMessages(
        "Pages as the scorer made them: features and scores.", "user_id", False, ("page_log",)
    ),
    topics.SAMPLES: TopicMessages("Labelled exposures, from stream to learner.", "", False, ("sample-batch",)),
    topics.DEAD_LETTERS: TopicMessages("Messages that could not be used.", "reason", False, ("dead-letter",)),
    topics.FEATURES_ITEMS: TopicMessages("Window counts of items.", "partition of events", False, ("item-tiles",)),
    topics.FEATURES_COCLICKS: TopicMessages("Items clicked together.", "partition of events", False, ("co-clicks",)),
    topics.MODEL_DELTAS: TopicMessages("The model's versions.", "", False, ("model-message",)),
    topics.TRUTH: TopicMessages("True probabilities, of the simulator alone.", "user_id", False, ("truth",)),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one kind of :data:`KINDS`, whole in itself."""
    made = _described(name, KINDS[name])
    return {"$schema": DIALECT, "$id": f"{name}.json", **made, "examples": [_plain(EXAMPLES[name])]}


def schemas() -> dict[str, dict[str, Any]]:
    """Every JSON Schema by its file's name; ``event.json`` is any of the events."""
    anyone = {
        "$schema": DIALECT,
        "$id": "event.json",
        "title": "Event",
        "description": "Any message of the topic events.",
        "oneOf": [{"$ref": f"{name}.json"} for name in EVENTS],
    }
    return {"event.json": anyone, **{f"{name}.json": schema_of(name) for name in KINDS}}


def _described(name: str, kind: type[Struct]) -> dict[str, Any]:
    (_,), parts = msgspec.json.schema_components([kind])
    made: dict[str, Any] = dict(parts[kind.__name__])
    words = MEANS[name]
    made["properties"] = {field: {**of, "description": words[field]} for field, of in made["properties"].items()}
    made["description"] = _text(kind.__doc__)
    return made


def _plain(message: Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(message))


def _text(doc: str | None) -> str:
    """A docstring as Markdown: without the indentation and the marks of reStructuredText."""
    lines = (doc or "").strip().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    text = "\n".join([lines[0], *(line[margin:] for line in lines[1:])]) if lines else ""
    for role in (":class:", ":func:", ":data:", ":meth:", ":mod:"):
        text = text.replace(f"{role}`~", "`").replace(f"{role}`", "`")
    return text.replace("``", "`").replace("`:", "`:")


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document of all topics and messages."""
    by_name = {topic.name: topic for topic in TOPICS}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Millrace",
            "version": __version__,
            "description": "What crosses Kafka. What comes from outside is JSON, so that any program can send it:"
            f" events, users, items. A message has at most {MAX_EVENT_BYTES} bytes and {MAX_DEPTH} levels of nesting;"
            " fields that are not named here are passed over. The setting `prefix` stands before each topic's name.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "channels": {name: _channel(by_name[name], channel) for name, channel in CHANNELS.items()},
        "operations": {
            f"{'read' if channel.is_read else 'write'} {name}": {
                "action": "receive" if channel.is_read else "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": channel.about,
            }
            for name, channel in CHANNELS.items()
        },
        "components": {"messages": _messages(), "schemas": _components()},
    }


def _channel(topic: Topic, channel: TopicMessages) -> dict[str, Any]:
    config: dict[str, Any] = dict(topic.config)
    if "cleanup.policy" in config:
        config["cleanup.policy"] = [config["cleanup.policy"]]
    if "retention.ms" in config:
        config["retention.ms"] = int(config["retention.ms"])
    many = "as many partitions as MILLRACE_PARTITIONS says" if topic.partitions == 0 else "one partition"
    key = f"Key: {channel.key}." if channel.key else "No key."
    return {
        "address": topic.name,
        "description": f"{channel.about} {key} {many[0].upper()}{many[1:]}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions or Settings().partitions,
                "topicConfiguration": config,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _messages() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, channel in ((name, of) for of in CHANNELS.values() for name in of.messages):
        key = {"type": "string", "description": f"the text of {channel.key}"}
        found[name] = {"name": name, "bindings": {"kafka": {"key": key}} if channel.key else {}}
        if name in KINDS:
            example = {"name": name, "payload": _plain(EXAMPLES[name])}
            payload = {"$ref": f"#/components/schemas/{name}"}
            found[name] |= {"contentType": JSON, "payload": payload, "examples": [example]}
        elif name.endswith("-tombstone"):
            whose = name.removesuffix("-tombstone")
            about = f"No value under the {whose}'s id as key: takes the {whose} back."
            found[name] |= {"contentType": JSON, "summary": about, "payload": {"type": "null"}}
        else:
            content, text = _PACKED[name]
            payload = {"$ref": f"#/components/schemas/{name}"} if name in _STRUCTS else {"type": "string"}
            found[name] |= {"contentType": content, "description": text, "payload": payload}
    return found


_STRUCTS: Mapping[str, type[Struct]] = {"page_log": PageLog, "item-tiles": ItemTiles, "truth": Truth}
"""Packed messages whose fields a struct names; `bytes` are packed arrays, little-endian, in C order."""
_PACKED: Mapping[str, tuple[str, str]] = {
    "page_log": (PACKED, _text(page_logs.__doc__)),
    "sample-batch": (PACKED, _text(samples.__doc__)),
    "item-tiles": (PACKED, _text(itemtiles.__doc__)),
    "co-clicks": (BYTES, _text(coclick_message.__doc__)),
    "truth": (PACKED, _text(Truth.__doc__)),
    "model-message": (BYTES, "Claims, deltas and snapshots' announcements: millrace/versions/modellog.py draws them."),
}


def _components() -> dict[str, Any]:
    parts: dict[str, Any] = {name: _described(name, kind) for name, kind in KINDS.items()}
    for name, kind in _STRUCTS.items():
        (_,), found = msgspec.json.schema_components([kind])
        made = {**found[kind.__name__], "description": _text(kind.__doc__)}
        bytes_ = {"type": "string", "format": "binary"}  # MessagePack has bytes; JSON's base64 is not meant
        fields = made["properties"].items()
        made["properties"] = {field: bytes_ if "contentEncoding" in of else of for field, of in fields}
        parts[name] = made
    return parts
