"""What the pages for newcomers show is true: their schemas are schemas, their model is a model, their messages are
messages, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from cyclopts import App

import millrace as mr
from learner.custom.ownclass import is_own, own_class
from learner.network.models import REGISTRY
from learner.ranker.model import OnlineModel
from learner.role.model_factory import model_of
from millrace.commands.cli.cli import app
from millrace.commands.reference.examples import EXAMPLES
from millrace.contracts.events import Item, ItemChange, User, decode_event
from millrace.contracts.profile_reader import Intake
from millrace.contracts.profile_warnings import ProfileChecks
from millrace.contracts.schema import parse_schema
from millrace.windows.features import FeatureBuilder
from tests.architecture import ROOT
from tests.docs.walk import PAGES
from tests.scenes.learning import SCHEMA, make_samples

DOCS = ROOT / "docs"
CODE = "millrace|stream|learner|scorer|simulator|benchmarks|experiments|tests|examples"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)


SCHEMAS = blocks("how-to/describe-your-data", "toml")


def test_there_are_schemas_for_four_kinds_of_shop() -> None:
    assert [parse_schema(text).name for text in SCHEMAS] == ["shop", "news", "feed", "ads"]


@pytest.mark.parametrize("text", SCHEMAS, ids=lambda text: parse_schema(text).name)
def test_a_schema_of_the_page_takes_items_that_fit_it_and_ids_by_their_names(text: str) -> None:
    schema = parse_schema(text)
    builder = FeatureBuilder(schema)
    assert (builder.user_column, builder.item_column) == ("user_id", "item_id")
    values = {"numeric": 3, "categorical": "x"}
    of_items: dict[str, Any] = {
        f.name: values[f.kind] for f in schema.fields if f.of == "item" and f.name != "age_days"
    }
    attributes = {name: value for name, value in of_items.items() if name != "item_id"}
    item = Intake(schema).item(msgspec.json.encode(Item("a", attributes | dict.fromkeys(schema.filters, True))))
    assert isinstance(item, Item)
    assert ProfileChecks(schema).of_item(item, b"a") == []
    columns, _ = builder.attributes("item", {**item.attributes, "item_id": item.item_id})
    assert builder.keys(columns, 1).any(), "a key of items counts"


def test_the_feature_of_the_page_is_one() -> None:
    (source,) = blocks("how-to/describe-your-data", "python")
    log = '[log]\ntime = "t"\nuser = "user_id"\nitem = "item_id"\nlabel = "clicked"\ntime_unit = "s"\n'
    ids = {"user_id": [1, 2] * 20, "item_id": [3, 3, 4, 4] * 10, "clicked": [0, 1] * 20}
    frame = pd.DataFrame(
        ids | {"t": range(1_700_000_000, 1_700_000_040), "category": 1, "position": 0, "price": 6.0, "weight": 2.0}
    )
    names: dict[str, Any] = {"mr": mr, "frame": frame, "schema": parse_schema(SCHEMAS[0] + log)}
    exec(compile(source, "describe-your-data.md", "exec"), names)
    assert names["schema"].layout.num_names[:2] == ("price", "per_kg")
    assert set(names["frame"]["per_kg"]) == {3.0}


def test_the_ids_of_a_live_schema_are_named_by_its_log() -> None:
    own = '[[fields]]\nname = "customer"\nof = "user"\n[[fields]]\nname = "sku"\nof = "item"\n'
    log = '[log]\ntime = "t"\nuser = "customer"\nitem = "sku"\nlabel = "clicked"\n'
    builder = FeatureBuilder(parse_schema(f'name = "shop"\n{own}{log}'))
    assert (builder.user_column, builder.item_column) == ("customer", "sku")
    assert "customer" in (DOCS / "reference" / "messages.md").read_text()


def test_the_model_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, source = blocks("how-to/use-your-own-model", "python")
    before = dict(REGISTRY)
    try:
        exec(compile(source, "use-your-own-model.md", "exec"), {"__name__": "narrow"})
        model = OnlineModel(SCHEMA, {"model": "narrow", "hidden": [16], "width": 4, "step_rows": 1}, 0)
        first = model.learn(make_samples(256, 0)).loss
        for seed in range(1, 12):
            last = model.learn(make_samples(256, seed)).loss
        assert last < first
        image, training = model.snapshot()
        again = OnlineModel(SCHEMA, {"model": "narrow", "hidden": [16], "width": 4, "step_rows": 1}, 1)
        again.resume(image, training)
        assert again.snapshot()[0].same_bits(image) == ""
    finally:
        for name in REGISTRY.keys() - before:
            del REGISTRY[name]


@pytest.mark.parametrize(("number", "name", "spec"), [(0, "Hashed", {"step": 5.0}), (1, "Sum", {"rate": 0.05})])
def test_the_classes_of_the_page_are_models_of_ones_own(
    number: int, name: str, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved as the page says, found by name, tried, and better for having learnt."""
    module = f"mymodel_of_the_page_{number}"
    (tmp_path / f"{module}.py").write_text(blocks("how-to/use-your-own-model", "python")[number])
    monkeypatch.syspath_prepend(str(tmp_path))
    model = model_of(SCHEMA, {"model": f"{module}:{name}", **spec}, 0)
    first = model.learn(make_samples(256, 0)).loss
    for seed in range(1, 12):
        last = model.learn(make_samples(256, seed)).loss
    assert last < first
    again = model_of(SCHEMA, model.spec, 1)
    again.resume(*model.snapshot())
    assert again.snapshot()[0].same_bits(model.snapshot()[0]) == ""


def test_the_page_on_models_names_what_is_there() -> None:
    text = (DOCS / "how-to" / "use-your-own-model.md").read_text()
    names = re.findall(r"`(learner\.[\w.]+:\w+)`", text)
    assert names
    for name in names:
        assert is_own(name)
        own_class(name)


def test_the_models_that_the_page_names_are_those_that_there_are() -> None:
    text = (
        (DOCS / "how-to" / "use-your-own-model.md")
        .read_text()
        .partition("`MILLRACE_MODEL` names one of")[2]
        .partition("\n`MILLRACE_MODEL_SPEC`")[0]
    )
    assert set(re.findall(r"`([a-z_]+)`", text)) == set(REGISTRY)


def test_the_messages_of_the_page_are_the_examples_of_the_reference() -> None:
    shown = [msgspec.json.decode(text) for text in blocks("reference/messages", "json")]
    kinds: dict[str, Any] = {"item": Item, "item-change": ItemChange, "user": User}
    found = [msgspec.convert(one, kind) for one, kind in zip(shown, kinds.values(), strict=False)]
    assert found == [EXAMPLES[name] for name in kinds]
    assert [decode_event(msgspec.json.encode(one)) for one in shown[3:]] == [EXAMPLES["exposure"], EXAMPLES["click"]]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_file_that_a_page_names_is_there(page: Path) -> None:
    if page.name != "CHANGELOG.md" and page.parent.name != "lab":  # they name what there was
        for path in re.findall(rf"`((?:{CODE})/[\w/.-]+)`", page.read_text()):
            assert (ROOT / path).exists() or path == "learner/network/models/narrow.py", path


def command(words: list[str], app: App) -> bool:
    """Whether words name a command or a group of them; what follows a command are its arguments."""
    names = {name for name in app if not name.startswith("-")}
    return not names or not words or (words[0] in names and command(words[1:], app[words[0]]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_that_a_page_names_is_one(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # it names what there was
        for words in re.findall(r"(?:^|`|\$ )millrace ((?:[a-z][a-z-]* ?)+)", page.read_text(), re.MULTILINE):
            assert command(words.split(), app) or words == "is up", words


def test_the_index_names_every_page() -> None:
    index = DOCS / "README.md"
    named = {index.parent / link for link in re.findall(r"\]\(([^)\s#]+)\)", index.read_text())}
    assert set(DOCS.rglob("*.md")) <= named | {index}


def test_the_glossary_is_in_order_and_has_each_word_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert words == sorted(words, key=str.lower)
    assert len(set(words)) == len(words) > 40


def test_all_pages_together_stay_short() -> None:
    """Words of docs/, without what only draws tables and lists."""
    pages = [path.read_text() for path in DOCS.rglob("*.md")]
    assert len(pages) > 40
    assert sum(len(re.findall(r"\S*\w\S*", page)) for page in pages) <= 38_000
