# core
"""Finds the class of a model of one's own by name, makes it, and tries it on a few rows.

It imports only what the caller's own setting names. Names in messages and manifests are compared with that, and never
looked up.

Each method of the class is called through a function here. It hands out read-only arrays, since a page logs them and
other models learn from them, and it checks the answer.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import TRAINING, CustomModel
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import MillraceError, SettingError, one_line
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array
from millrace.versions.packing import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from learner.ranker.model import LearnReport

A = TypeVar("A", bound=np.generic)
Factory = Callable[[Schema, dict[str, Any], int], CustomModel]

VERBS = ("score", "learn", "snapshot", "resume")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DTYPE = re.compile(r"[<|=]?([fiu][1248]|b1)")
_LONGEST = 200  # of an array's name
MOST_BYTES = MAX_IMAGE_BYTES
"""The most bytes of the arrays that scorers get: each delta carries all of them."""
_ROWS = 8
_SOURCE = "class_source"
_NOT_ITS = ("model", "settled_minutes", _SOURCE)
_OF_TABLES = ("negative_keep", "page_weight", "admit", "max_age_days", "retrieval_")
"""Prefixes of entries for registered models alone. A class would silently ignore them."""


class InvalidModelError(Exception):
    """A model of one's own broke the rules of its methods."""


def is_own(model: object) -> bool:
    """Whether a model is a class, or the name of one, ``module:Class``, and not that of a registered model."""
    return isinstance(model, type) or (isinstance(model, str) and ":" in model)


def name_of(model: str | type[Any]) -> str:
    """The name of a model that is given by its name, or as a class."""
    return f"{model.__module__}:{model.__qualname__}" if isinstance(model, type) else model


def own_class(model: str | type[Any]) -> Factory:
    """The class of this name, or this class. Imports a name's module, so it must be the caller's own setting. Raises
    SettingError where the name is none, its module cannot be imported, or has no such class; or it lacks a method."""
    name, factory = name_of(model), model if isinstance(model, type) else _found(model)
    if isinstance(factory, type):
        _check_verbs(name, factory)
    digest_of(getattr(factory, "__module__", ""))
    return factory


def _found(name: str) -> Factory:
    if not _NAME.fullmatch(name):
        raise SettingError(f"model '{name[:100]}' is no name", "write module:Class, or the name of a registered model")
    module, _, path = name.partition(":")
    try:
        with _as_error():
            # Not import_module: a reader of this source cannot know which module it is.
            found = pkgutil.resolve_name(f"{module}:")
    except ModuleNotFoundError as error:
        raise SettingError(
            f"model '{name}' cannot be imported: {error}", "install the package, or add its folder to PYTHONPATH"
        ) from None
    except Exception as error:
        raise SettingError(
            f"model '{name}' cannot be imported: {error_text(error, name)}", "correct the module"
        ) from None
    file = getattr(found, "__file__", None) or "no file"
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise SettingError(
            f"model '{name}': module '{module}' ({file}) has no '{path}'", "correct the name; it is module:Class"
        )
    if not callable(found):
        raise SettingError(f"model '{name}' is {type(found).__name__}, and no class", "name a class")
    factory: Factory = found
    return factory


def entries_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec for its class: without the name, and without the entries that learner and replay add to every
    spec. Raises SettingError where it has an entry for registered models alone."""
    found = {name: value for name, value in spec.items() if name not in _NOT_ITS}
    for name in found:
        if name.startswith(_OF_TABLES):
            raise SettingError(
                f"model spec has '{name}', which model '{name_of(spec['model'])}' cannot have: sampling of negatives, "
                "admission, removal by age and retrieval belong to registered models",
                "take it out; if the class does so itself, use another name",
            )
    return found


@cache
def digest_of(module: str) -> str:
    """The digest of a module's file, cached soon after the import, for the file may change."""
    try:
        code = Path(getattr(sys.modules.get(module), "__file__", None) or "").read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(code).hexdigest()[:12]


def error_text(error: BaseException, name: str) -> str:
    """An error in one line, with the line of the class's own module that led to it."""
    module = name.partition(":")[0]
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_globals.get("__name__") == module]
    text = str(error) if isinstance(error, InvalidModelError) else one_line(error)
    return f"{text} (line {lines[-1]} of {module})" if lines else text


@contextmanager
def _as_error() -> Iterator[None]:
    """Turns what is no Exception into RuntimeError, as ``sys.exit()`` in a script or a panic of a library in Rust: it
    must end neither learner nor scorer. KeyboardInterrupt passes: our own signals raise it."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(one_line(error)).with_traceback(error.__traceback__) from None


@dataclass(frozen=True, slots=True)
class OwnClass:
    """Makes objects of a class, with a schema and the class's part of a spec (:func:`entries_of`)."""

    name: str
    factory: Factory
    schema: Schema
    entries: dict[str, Any]

    @classmethod
    def of(cls, schema: Schema, spec: Mapping[str, Any]) -> OwnClass:
        """The class that a spec names, or has. The name must be the caller's own setting, for it is imported. Raises
        SettingError as :func:`own_class` and :func:`entries_of`."""
        entries, model = entries_of(spec), spec["model"]
        return cls(name_of(model), own_class(model), schema, entries)

    @property
    def source(self) -> dict[str, str]:
        """A spec's entry with the digest of the class's file when a version was made. Empty: there is no file."""
        digest = digest_of(getattr(self.factory, "__module__", ""))
        return {_SOURCE: digest} if digest else {}

    def other_source(self, spec: Mapping[str, Any]) -> bool:
        """Whether a version's spec names other code than this class has now."""
        own = self.source
        return bool(own) and _SOURCE in spec and spec[_SOURCE] != own[_SOURCE]

    def make(self, seed: int) -> CustomModel:
        """A new object. Raises SettingError where its class raises, or lacks a method."""
        try:
            with _as_error():
                made = self.factory(self.schema, dict(self.entries), seed)
        except MillraceError:
            raise
        except Exception as error:
            raise SettingError(
                f"model '{self.name}' cannot be made with {self.entries}: {error_text(error, self.name)}",
                "correct MILLRACE_MODEL_SPEC or the class; it is made as Class(schema, spec, seed)",
            ) from error
        _check_verbs(self.name, made)
        return made

    def resumed(self, arrays: Mapping[str, Array], seed: int = 0) -> CustomModel:
        """A new object that has resumed copies of these arrays. Exceptions of the model pass; errors as
        :meth:`make`."""
        model = self.make(seed)
        with _as_error():
            model.resume({name: np.array(array) for name, array in arrays.items()})
        return model

    def probe(self) -> None:
        """Tries each method on eight made-up rows, with objects of its own, so that faults show before pages are
        served. Raises SettingError where a method raises, or breaks its rules."""
        try:
            _try(self)
        except MillraceError:
            raise
        except Exception as error:
            problem = (
                str(error) if type(error) is InvalidModelError else f"{error_text(error, self.name)}, on made-up rows"
            )
            raise SettingError(
                f"model '{self.name}' cannot be used: {problem}",
                "correct it; docs/how-to/use-your-own-model.md has the verbs",
            ) from None


def _check_verbs(name: str, has: object) -> None:
    lacking = [verb for verb in VERBS if not callable(getattr(has, verb, None))]
    if lacking:
        raise SettingError(f"model '{name}' has no {', '.join(lacking)}", f"give it {', '.join(VERBS)}")


def scores_of(model: CustomModel, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
    """The model's scores (B,) of rows cat (B, F), num (B, N). Exceptions of the model pass.
    Raises InvalidModelError."""
    with _as_error():
        p = np.asarray(model.score(_fixed(cat), _fixed(num)))
    if p.shape != (len(cat),):
        raise InvalidModelError(f"score gave an array of shape {p.shape} for {len(cat)} rows, not ({len(cat)},)")
    if p.dtype.kind not in "fiub":
        raise InvalidModelError(f"score gave {p.dtype}, not float32")
    p = p.astype(np.float32)
    valid = (p >= 0) & (p <= 1)  # false of NaN too
    if not valid.all():
        at = int(np.argmin(valid))
        raise InvalidModelError(
            f"score gave {p[at]} for {int((~valid).sum())} of {len(cat)} rows, not a number in [0, 1]"
        )
    return p


def learnt(model: CustomModel, batch: SampleBatch) -> LearnReport | None:
    """Has the model learn a batch. Exceptions of the model pass."""
    names = [f.name for f in fields(batch) if f.name != "request"]
    fixed: dict[str, Any] = {name: _fixed(getattr(batch, name)) for name in names}
    with _as_error():
        return model.learn(replace(batch, **fixed))


def _fixed(array: NDArray[A]) -> NDArray[A]:
    view = array.view()
    view.flags.writeable = False
    return view


def arrays_of(model: CustomModel) -> dict[str, Array]:
    """The model's checked snapshot. Exceptions of the model pass. Raises InvalidModelError with
    what is wrong with it."""
    with _as_error():
        given = model.snapshot()
    if not isinstance(given, Mapping):
        raise InvalidModelError(f"snapshot gave {type(given).__name__}, not a dict of arrays")
    found: dict[str, Array] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name or len(name) > _LONGEST:
            raise InvalidModelError(
                f"snapshot gave an array the name {str(name)[:40]!r}; names are texts of 1 to {_LONGEST}"
            )
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None
        if array is None or not _DTYPE.fullmatch(array.dtype.str):
            kind = type(value).__name__ if array is None else str(array.dtype)
            raise InvalidModelError(f"snapshot gave '{name}' as {kind}, not an array of numbers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidModelError(f"snapshot gave '{name}' with numbers that are not finite")
        found[name] = array
    serving = serving_of(found)
    if not serving:
        raise InvalidModelError(f"snapshot gave no array to score with, of {sorted(found)}")
    size = sum(array.nbytes for array in serving.values())
    if size > MOST_BYTES:
        raise InvalidModelError(f"snapshot gave {size:,} bytes to score with; {MOST_BYTES:,} can be published")
    return found


def serving_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if not name.startswith(TRAINING)}


def _try(own: OwnClass) -> None:
    """Raises what the model raises, and InvalidModelError with what is wrong."""
    batch, one = probe_rows(own.schema), probe_rows(own.schema, 1)
    model, twin = (own.make(0) for _ in range(2))
    before = _copies(arrays_of(model))
    scores_of(model, one.cat, one.num)
    p = scores_of(model, batch.cat, batch.num)
    if changed := differs(before, arrays_of(model)):
        raise InvalidModelError(f"score changed '{changed}' of its snapshot; scoring only reads")
    if scores_of(model, batch.cat, batch.num).tobytes() != p.tobytes():
        raise InvalidModelError("score gave other numbers for the same rows when it was asked again")
    for each in (model, twin):
        report = learnt(each, batch)
        if report is not None and not hasattr(report, "skipped"):
            raise InvalidModelError(f"learn gave {type(report).__name__}, not a LearnReport or None")
    p, live = scores_of(model, batch.cat, batch.num), arrays_of(model)
    after = _copies(live)
    if set(after) != set(before):
        raise InvalidModelError(f"snapshot gave other names after a batch: {sorted(set(after) ^ set(before))}")
    if changed := differs(after, arrays_of(twin)):
        raise InvalidModelError(
            f"two objects of one seed learnt the same batch, and '{changed}' is not the same to the bit; "
            "draw from a generator that the seed makes and the snapshot keeps"
        )
    again = own.resumed(after)
    for other, what in (
        (again, "all arrays"),
        (own.resumed(serving_of(after)), f"the arrays without those of '{TRAINING}'"),
    ):
        if scores_of(other, batch.cat, batch.num).tobytes() != p.tobytes():
            raise InvalidModelError(
                f"an object that resumed {what} scores otherwise than the one whose snapshot they are"
            )
    for rows in (batch, one):  # what an optimiser keeps shows at the second step
        learnt(model, rows)
        learnt(again, rows)
    if changed := differs(after, live):
        raise InvalidModelError(f"snapshot gave '{changed}' in memory that learning goes on to change; give a copy")
    if changed := differs(arrays_of(model), arrays_of(again)):
        raise InvalidModelError(
            f"an object that resumed all arrays learnt otherwise than the one whose snapshot they are: '{changed}' "
            "differs; the snapshot lacks something, as an optimiser's state"
        )


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def differs(a: Mapping[str, Array], b: Mapping[str, Array]) -> str:
    """The first array that is not the same to the bit in both; empty: there is none."""
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        if x is None or y is None or (x.dtype, x.shape) != (y.dtype, y.shape) or x.tobytes() != y.tobytes():
            return name
    return ""


def probe_rows(schema: Schema, rows: int = _ROWS) -> SampleBatch:
    """Made-up rows: unused ids, missing ones among them, and numbers of all sizes."""
    layout, rng = schema.layout, np.random.default_rng(0)
    cat = rng.integers(-(2**63), 2**63 - 1, (rows, layout.F))
    cat[rng.random(cat.shape) < 0.25] = 0
    num = rng.lognormal(1.0, 2.0, (rows, layout.N)).astype(np.float32)
    num[rng.random(num.shape) < 0.25] = 0
    kind = np.where(np.arange(rows) % 2 > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    hashes = rng.integers(1, 2**63, (2, rows)).astype(np.uint64)
    ts_ms = np.full(rows, 20_000 * DAY_MS)
    position = np.arange(rows, dtype=np.int32)
    return SampleBatch.of_rows(kind, ts_ms, cat, num, position=position, user=hashes[0], item=hashes[1])


def unknown_entries(spec: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """For classes: refuses misspelt entries of ``spec``. Raises SettingError where ``known`` lacks one."""
    for name in spec:
        if name not in known:
            raise SettingError(f"model spec has '{name}'", f"the model's entries are {', '.join(known)}")
