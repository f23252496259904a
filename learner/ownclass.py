# core
"""A model of one's own before it is trusted: found by its name, made, and tried on a few rows.

Nothing is imported that the caller's own setting does not name: names in messages and manifests are compared with it,
and never looked up.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.verbs import TRAINING, Verbs
from millrace.contracts.errors import MillraceError, SettingError, one_line
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array

Factory = Callable[[Schema, dict[str, Any], int], Verbs]

VERBS = ("score", "learn", "snapshot", "resume")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DTYPE = re.compile(r"[<|=]?([fiu][1248]|b1)")
_LONGEST = 200  # of an array's name
_DAY_MS = 86_400_000
_ROWS = 8
_NOT_ITS = ("model", "settled_minutes", "retrieval_width")


class Unsound(Exception):
    """What a model of one's own gave is not what its verb promises."""


def is_own(name: object) -> bool:
    """Whether a model's name is that of a class, ``module:Class``, and not of a registered model."""
    return isinstance(name, str) and ":" in name


def own_class(name: str) -> Factory:
    """The class that ``name`` names. Imports its module, so ``name`` must be the caller's own setting.

    Raises:
        SettingError: the name is none, its module cannot be imported, or has no such class.
    """
    if not _NAME.fullmatch(name):
        raise SettingError(f"model '{name[:100]}' is no name", "write module:Class, or the name of a registered model")
    module, _, path = name.partition(":")
    try:
        # Not import_module: nobody can tell from this source which module it is.
        found = pkgutil.resolve_name(name)
    except AttributeError:
        raise SettingError(
            f"model '{name}': module '{module}' has no '{path}'", "correct the name; it is module:Class"
        ) from None
    except ModuleNotFoundError as error:
        raise SettingError(
            f"model '{name}' cannot be imported: {error}", "install the package, or add its folder to PYTHONPATH"
        ) from None
    except Exception as error:
        raise SettingError(f"model '{name}' cannot be imported: {one_line(error)}", "correct the module") from None
    if not callable(found):
        raise SettingError(f"model '{name}' is {type(found).__name__}, and no class", "name a class") from None
    if isinstance(found, type):
        _check_verbs(name, found)
    factory: Factory = found
    return factory


def entries_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of a spec its class is given: all but the name, and what learner and replay tell every model."""
    return {name: value for name, value in spec.items() if name not in _NOT_ITS}


def make(name: str, factory: Factory, schema: Schema, entries: Mapping[str, Any], seed: int) -> Verbs:
    """A new object.

    Raises:
        SettingError: its class raises, or lacks a verb.
    """
    try:
        made = factory(schema, dict(entries), seed)
    except MillraceError:
        raise
    except Exception as error:
        raise SettingError(
            f"model '{name}' cannot be made with {dict(entries)}: {one_line(error)}",
            "correct MILLRACE_MODEL_SPEC or the class; it is made as Class(schema, spec, seed)",
        ) from error
    _check_verbs(name, made)
    return made


def _check_verbs(name: str, has: object) -> None:
    lacking = [verb for verb in VERBS if not callable(getattr(has, verb, None))]
    if lacking:
        raise SettingError(f"model '{name}' has no {', '.join(lacking)}", f"give it {', '.join(VERBS)}")


def scores_of(model: Verbs, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model scores rows cat (B, F), num (B, N) with, (B,), when all is as promised.

    Raises:
        Unsound: it is not; says how. Whatever the model raises goes through.
    """
    p = np.asarray(model.score(cat, num))
    if p.shape != (len(cat),):
        raise Unsound(f"score gave an array of shape {p.shape} for {len(cat)} rows, not ({len(cat)},)")
    if p.dtype.kind not in "fiub":
        raise Unsound(f"score gave {p.dtype}, not float32")
    p = p.astype(np.float32)
    sound = (p >= 0) & (p <= 1)  # false of NaN too
    if not sound.all():
        at = int(np.argmin(sound))
        raise Unsound(f"score gave {p[at]} for {int((~sound).sum())} of {len(cat)} rows, not a number in [0, 1]")
    return p


def arrays_of(model: Verbs) -> dict[str, Array]:
    """The model's snapshot, when all is as promised.

    Raises:
        Unsound: it is not; says how. Whatever the model raises goes through.
    """
    given = model.snapshot()
    if not isinstance(given, Mapping):
        raise Unsound(f"snapshot gave {type(given).__name__}, not a dict of arrays")
    found: dict[str, Array] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name or len(name) > _LONGEST:
            raise Unsound(f"snapshot gave an array the name {str(name)[:40]!r}; names are texts of 1 to {_LONGEST}")
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None
        if array is None or not _DTYPE.fullmatch(array.dtype.str):
            kind = type(value).__name__ if array is None else str(array.dtype)
            raise Unsound(f"snapshot gave '{name}' as {kind}, not an array of numbers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unsound(f"snapshot gave '{name}' with numbers that are not finite")
        found[name] = array
    if not any(not name.startswith(TRAINING) for name in found):
        raise Unsound(f"snapshot gave no array to score with, of {sorted(found)}")
    return found


def serving_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those that reach a scorer."""
    return {name: array for name, array in arrays.items() if not name.startswith(TRAINING)}


def copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays of the receiver's own, to keep and to write to."""
    return {name: np.array(array) for name, array in arrays.items()}


def probe(name: str, factory: Factory, schema: Schema, entries: Mapping[str, Any]) -> None:
    """Tries each verb on eight made-up rows, with objects of its own. What it finds here would else be found while
    pages are served.

    Raises:
        SettingError: a verb raises, or does not do what it promises.
    """
    batch = probe_rows(schema)
    try:
        problem = _problem(lambda: make(name, factory, schema, entries, 0), batch)
    except MillraceError:
        raise
    except Unsound as error:
        problem = str(error)
    except Exception as error:
        problem = f"{one_line(error)} (on {_ROWS} made-up rows)"
    if problem:
        raise SettingError(f"model '{name}' cannot be used: {problem}", "correct it; docs/own-model.md has the verbs")


def _problem(new: Callable[[], Verbs], batch: SampleBatch) -> str:
    """What is wrong, in words; empty when nothing is. Raises what the model raises, and Unsound."""
    model = new()
    before = copies(arrays_of(model))
    scores_of(model, batch.cat[:1], batch.num[:1])
    scores_of(model, batch.cat, batch.num)
    changed = differs(before, arrays_of(model))
    if changed:
        return f"score changed '{changed}' of its snapshot; scoring only reads"
    report = model.learn(batch)
    if report is not None and not hasattr(report, "skipped"):
        return f"learn gave {type(report).__name__}, not a LearnReport or None"
    p, live = scores_of(model, batch.cat, batch.num), arrays_of(model)
    after = copies(live)
    if set(after) != set(before):
        return f"snapshot gave other names after a batch: {sorted(set(after) ^ set(before))}"
    for given, what in ((after, "all arrays"), (serving_of(after), f"the arrays without those of '{TRAINING}'")):
        again = new()
        again.resume(copies(given))
        if scores_of(again, batch.cat, batch.num).tobytes() != p.tobytes():
            return f"an object that resumed {what} scores otherwise than the one whose snapshot they are"
    model.learn(batch)
    changed = differs(after, live)
    return f"snapshot gave '{changed}' in memory that learning goes on to change; give a copy" if changed else ""


def differs(a: Mapping[str, Array], b: Mapping[str, Array]) -> str:
    """The first array that is not the same to the bit in both; empty: there is none."""
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        if x is None or y is None or x.shape != y.shape or x.tobytes() != y.tobytes():
            return name
    return ""


def probe_rows(schema: Schema, rows: int = _ROWS) -> SampleBatch:
    """Made-up rows: ids that nobody has, missing ones among them, and numbers of all sizes."""
    layout, rng = schema.layout, np.random.default_rng(0)
    cat = rng.integers(-(2**63), 2**63 - 1, (rows, layout.F))
    cat[rng.random(cat.shape) < 0.25] = 0
    num = rng.lognormal(1.0, 2.0, (rows, layout.N)).astype(np.float32)
    num[rng.random(num.shape) < 0.25] = 0
    kind = np.where(np.arange(rows) % 2 > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    hashes = rng.integers(1, 2**63, (2, rows)).astype(np.uint64)
    ts_ms = np.full(rows, 20_000 * _DAY_MS)
    position = np.arange(rows, dtype=np.int32)
    return SampleBatch.of_rows(kind, ts_ms, cat, num, position=position, user=hashes[0], item=hashes[1])


def unknown_entries(spec: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """For classes: refuses what the user of a class has misspelt.

    Raises:
        SettingError: ``spec`` has an entry that ``known`` has not.
    """
    for name in spec:
        if name not in known:
            raise SettingError(f"model spec has '{name}'", f"the model's entries are {', '.join(known)}")
