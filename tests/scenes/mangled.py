"""Files as no writer leaves them: bytes that were damaged, and sealed files whose content is not what a reader expects.

The seal of a sealed file shows damage, so a reader meets an odd content only where its writer was another version, or
wrong. Such a file is made here: its seal is right, and files that name its digest name the new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard
from hypothesis import strategies as st
from numpy.typing import NDArray

from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import MillraceError
from millrace.basics.store import DamagedError, seal, unseal

ODD: Sequence[Any] = [
    None, True, False, -1, 0, 1, 7, 1.5, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -1e-308, "", "x",
    "\0", "../x", "é" * 300, "9" * 30, "<f8", [], [[]], [None], {}, {"a": 1}, [0, 0, 1 << 40, 1], [[0, 0, 0, 1 << 40]],
]  # fmt: skip
PACKED_ODD: Sequence[Any] = [*ODD, float("nan"), float("inf"), b"", b"\xff" * 64, b"\x80" * 3, b"\xc1", b"\x91" * 40]
FILLS: Sequence[Any] = [float("nan"), float("inf"), -float("inf"), 3e38, -1, 0, 1, 127, 1 << 31, (1 << 63) - 1]

Path_ = tuple[Any, ...]


@contextmanager
def said() -> Iterator[list[str]]:
    """The lines of the error of ours that ends what is within; none: it came to its end. Any other error is a fault."""
    lines: list[str] = []
    try:
        yield lines
    except MillraceError as error:
        lines += str(error).splitlines()
        assert lines


def places(tree: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where something stands in a tree of lists and dicts; the tree itself first."""
    yield at
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in inner:
        yield from places(value, (*at, key))


def changed(tree: Any, at: Path_, how: str, value: Any) -> Any:
    """``tree`` with another ``value`` in a place, or without what stands there, or (in a list) with it twice."""
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(at) > 1:
        copy[at[0]] = changed(tree[at[0]], at[1:], how, value)
    elif how == "gone":
        del copy[at[0]]
    elif how == "twice" and isinstance(copy, list):
        copy.insert(at[0], copy[at[0]])
    else:
        copy[at[0]] = value
    return copy


@st.composite
def trees(draw: st.DrawFn, tree: Any, odd: Sequence[Any] = ODD) -> Any:
    """``tree``, changed in one or two places."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(list(places(tree))))
        tree = changed(tree, at, draw(st.sampled_from(["odd", "odd", "gone", "twice"])), draw(st.sampled_from(odd)))
    return tree


@st.composite
def arrays(draw: st.DrawFn, good: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Named arrays, one of them changed: gone, of another type, length or shape, or with an odd value."""
    found = {name: np.array(array) for name, array in good.items()}
    if not found:
        return found
    name = draw(st.sampled_from(sorted(found)))
    array = found.pop(name)
    how = draw(st.sampled_from(["gone", "type", "short", "long", "flat", "deep", "point", "one", "all", "twin"]))
    match how:
        case "type":
            array = array.astype(draw(st.sampled_from(["<f4", "<f8", "<i8", "<i4", "<u8", "|u1", "|b1"])))
        case "short":
            array = array[:-1] if array.ndim else array
        case "long":
            array = np.concatenate([array, array[-1:]]) if array.ndim else array
        case "flat":
            array = array.reshape(-1)
        case "deep":
            array = array[None]
        case "point":
            array = array.reshape(-1)[0] if array.size else array
        case "one" | "all" if array.size:
            flat = array.reshape(-1)
            with np.errstate(all="ignore"):
                fill = np.array([draw(st.sampled_from(FILLS))], np.float64).astype(array.dtype)[0]
            flat[slice(None) if how == "all" else draw(st.integers(0, array.size - 1))] = fill
        case "twin":
            found[name + "x"] = array
    return found if how == "gone" else {**found, name: np.asarray(array)}


def raw(draw: st.DrawFn, body: bytes) -> bytes:
    """Bytes that were damaged: a bit flipped, cut off, longer, empty, zeros, or a piece of it somewhere else."""
    at = draw(st.integers(0, max(0, len(body) - 1)))
    match draw(st.sampled_from(["flip", "flip", "byte", "cut", "more", "zeros", "moved"])):
        case "flip" if body:
            return body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
        case "byte" if body:
            return body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :]
        case "more":
            return body + draw(st.binary(min_size=1, max_size=40))
        case "zeros":
            return body[:at] + bytes(min(512, len(body) - at)) + body[at + 512 :]
        case "moved":
            length = draw(st.integers(1, 64))
            return body[:at] + body[at + length :] + body[at : at + length]
    return body[:at]


def resealed(folder: Path, name: str, head: Any, *body: bytes | memoryview) -> None:
    """Writes a file as if its writer had made it so. Files of the folder that name its digest name the new one."""
    _, _, former = unseal((folder / name).read_bytes(), name)
    written = {former: _write(folder / name, head, *body)}
    while written:
        old, (new, size) = written.popitem()
        for path in sorted(folder.iterdir()):
            try:
                said, rest, own = unseal(path.read_bytes(), path.name)
            except (DamagedError, IsADirectoryError):
                continue
            if old.encode() in said:
                said = re.sub(
                    rb'"digest":"%s","size":\d+' % old.encode(), b'"digest":"%s","size":%d' % (new, size), said
                )
                written[own] = _write(path, msgspec.Raw(said.replace(old.encode(), new)), bytes(rest))


def _write(path: Path, head: Any, *body: bytes | memoryview) -> tuple[bytes, int]:
    chunks, digest = seal(head, *body)
    path.write_bytes(b"".join(chunks))
    return digest.encode(), path.stat().st_size


@st.composite
def sealed(draw: st.DrawFn, folder: Path, name: str) -> None:
    """Changes what a sealed file holds: its head, or its body in the form that it has."""
    said, body, _ = unseal((folder / name).read_bytes(), name)
    head = msgspec.json.decode(said)
    if not len(body) or draw(st.integers(0, 2)) == 0:
        return resealed(folder, name, draw(trees(head)), bytes(body))
    if isinstance(head, dict) and "arrays" in head:
        found = draw(arrays(view([ArraySpec(*one) for one in head["arrays"]], body)))
        return resealed(folder, name, {**head, "arrays": specs_of(found)}, *lay(found))
    packed = bytes(body[:4]) == b"\x28\xb5\x2f\xfd"
    plain = zstandard.ZstdDecompressor().decompress(bytes(body)) if packed else bytes(body)
    plain = draw(encoded(plain))
    if "bytes" in head:
        head["bytes"] = len(plain)
    return resealed(folder, name, head, zstandard.ZstdCompressor().compress(plain) if packed else plain)


@st.composite
def encoded(draw: st.DrawFn, plain: bytes) -> bytes:
    """JSON or MessagePack changed in a place of its tree; other bytes damaged, and sometimes these too."""
    if draw(st.integers(0, 3)):
        for codec, odd in ((msgspec.json, ODD), (msgspec.msgpack, PACKED_ODD)):
            try:
                changed_to: bytes = codec.encode(draw(trees(codec.decode(plain), odd)))
                return changed_to
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
    return raw(draw, plain)
