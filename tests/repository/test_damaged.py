"""What a loop leaves, damaged or with an odd content: whoever reads it gets what can be read, or an error of ours."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from learner.gate.quarantine import Quarantine, forget_user, listed
from learner.network.models.spec import read_spec
from learner.retrieval.tower import Tower
from learner.role.model_factory import resumed, writer_of
from learner.training.learner_versions import newest_valid
from millrace.basics.errors import UNFIT
from millrace.basics.store import AbsentError, DamagedError, Store, unseal
from millrace.broker.log import Limits
from millrace.broker.offsets import Offsets
from millrace.broker.topic_store import Topics
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings, load_settings
from millrace.labels.policy import Waits
from millrace.logs import read_log
from millrace.versions.image import check_head, split
from millrace.versions.modelstore import ModelStore
from millrace.windows.features import FeatureBuilder
from scorer.catalog.index_checkpoint import TilePart, manifests, read_part, store_of
from scorer.catalog.item_index import ItemIndex
from scorer.feeder.arithmetic import choices
from scorer.pagelog.spool import Spool
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.archive_rows import Archive
from stream.partition.partition import Partition
from stream.partition.partition_checkpoint import CheckpointStore
from tests.scenes.left_folder import GENEROUS, leave
from tests.scenes.mangled import raw, said, sealed

# -- who reads what ----------------------------------------------------------------------------------------------------


def learner(folder: Path, schema: Schema) -> None:
    store = ModelStore(folder / "models")
    newest_valid(store, schema.id, {}, lambda note, parts: resumed(schema, note, parts))


def scorer(folder: Path, schema: Schema) -> None:
    store = ModelStore(folder / "models", writes=False)
    for note in store.snapshots():
        writer_of(schema, note.spec, (split(part)[0] for part in store.read_parts(note)))
        tower = Tower(schema, read_spec(note.spec))
        for _, head in map(split, store.read_parts(note)):
            check_head(head, tower.width)
            tower.apply(head)
    choices(store.store)


def decisions(folder: Path, _: Schema) -> None:
    store = ModelStore(folder / "models", writes=False)
    for note in store.snapshots():
        with contextlib.suppress(AbsentError):
            store.read_cuts(note.place)


def stream(folder: Path, schema: Schema) -> None:
    SchemaBook(folder / "schemas").history()
    CheckpointStore(folder / "checkpoints").load(Partition(0, schema, GENEROUS))


def index(folder: Path, schema: Schema) -> None:
    store, items = Store(folder / "index", writes=False), ItemIndex(FeatureBuilder(schema))
    for _, manifest in manifests(store, lambda *_: None):
        for part in (read_part(store, file) for file in manifest.parts):
            with contextlib.suppress(*UNFIT):  # as its reader does: the checkpoint before is tried
                if isinstance(part, TilePart):
                    items.put_store(part.partition, store_of([part], schema.windows))
                else:
                    items.put([part])


def quarantine(folder: Path, schema: Schema) -> None:
    store = Store(folder / "quarantine")
    listed(store)
    kept = Quarantine(store, schema.id)
    kept.resume((folder / "quarantine.state").read_bytes())
    for entry in kept.entries():
        kept.spans(entry.name)
    for name in kept.copies():
        kept.read_copy(name)
    forget_user(store, 7)


def archive(folder: Path, schema: Schema) -> None:
    with closing(ArchiveFolder(folder / "archive")) as found:
        state = found.load()
        if state is not None:
            Archive(schema, Waits.of(Settings()), MAX_AHEAD_MS, 1, True).resume(state)


def replay(folder: Path, _: Schema) -> None:
    read_log(folder / "archive" / "exposures", load_schema(folder / "archive" / "schema.toml"))


def spool(folder: Path, _: Schema) -> None:
    found = Spool(folder / "spool", 1 << 30, lambda *_: None)
    while (place := found.next()) is not None:
        found.acknowledge(place.at)
    found.close()


def broker(folder: Path, _: Schema) -> None:
    topics = Topics(folder / "broker" / "topics", "", Limits(), now_ms=0)
    for topic in topics:
        for log in topic.logs:
            log.fetch(log.start, 1 << 20)
    topics.close()
    Offsets(folder / "broker" / "topics" / "offsets")


def settings(folder: Path, _: Schema) -> None:
    load_settings(environ={"MILLRACE_CONFIG": str(folder / "millrace.toml")}).load_schema()


READERS: dict[str, tuple[Callable[[Path, Schema], None], tuple[str, ...]]] = {
    "learner": (learner, ("models",)),
    "scorer": (scorer, ("models",)),
    "decisions": (decisions, ("models",)),
    "stream": (stream, ("checkpoints", "schemas")),
    "index": (index, ("index",)),
    "quarantine": (quarantine, ("quarantine", "quarantine.state")),
    "archive": (archive, ("archive",)),
    "replay": (replay, ("archive",)),
    "spool": (spool, ("spool",)),
    "broker": (broker, ("broker",)),
    "settings": (settings, ("millrace.toml", "schema.toml")),
}
"""Who reads, and the parts of the folder that it reads."""


# -- what is tried -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave(tmp_path_factory.mktemp("loop"))


@contextmanager
def copied(left: Path, parts: tuple[str, ...]) -> Iterator[tuple[Path, list[Path]]]:
    """A copy of parts of the folder, and the files in it."""
    with tempfile.TemporaryDirectory(dir=left.parent) as name:
        folder = Path(name)
        for part in parts:
            if (left / part).is_dir():
                shutil.copytree(left / part, folder / part)
            elif (left / part).exists():
                shutil.copy(left / part, folder / part)
        yield folder, sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def tried(read: Callable[[Path, Schema], None], folder: Path, schema: Schema) -> None:
    """Reads. What the reader cannot make sense of is an error of ours, in one line unless it is a log's faults."""
    with structlog.testing.capture_logs(), said() as lines:
        read(folder, schema)
    assert len(lines) <= 1 or lines[0].startswith("log ")


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
def test_damaged_bytes_are_a_named_error(left: Path, reader: str, data: st.DataObject) -> None:
    read, parts = READERS[reader]
    schema = load_schema(left / "schema.toml")
    with copied(left, parts) as (folder, files):
        read(folder, schema)
        file = data.draw(st.sampled_from(files).map(str))
        path = Path(file)
        path.write_bytes(data.draw(st.composite(raw)(path.read_bytes())))
        tried(read, folder, schema)


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("replay", "broker", "spool", "settings")])
@given(data=st.data())
def test_whole_files_of_an_odd_content_are_a_named_error(left: Path, reader: str, data: st.DataObject) -> None:
    read, parts = READERS[reader]
    schema = load_schema(left / "schema.toml")
    with copied(left, parts) as (folder, files):
        file = data.draw(st.sampled_from([path for path in files if is_sealed(path)]).map(str))
        data.draw(sealed(Path(file).parent, Path(file).name))
        tried(read, folder, schema)


def is_sealed(path: Path) -> bool:
    try:
        unseal(path.read_bytes(), path.name)
    except DamagedError:
        return False
    return True
