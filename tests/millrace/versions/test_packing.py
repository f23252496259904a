"""Bodies of deltas: bit for bit, small, differences only against the right tensors, any bytes an error."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from millrace.basics.arrays import ArraySpec, lay, specs_of, view
from millrace.basics.errors import SnapshotError
from millrace.versions import packing
from millrace.versions.image import Image, TableRows
from millrace.versions.packing import pack, unpack

DTYPES = st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.float64, np.int32])
ARRAYS = DTYPES.flatmap(lambda d: some.arrays(d, some.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
DENSE = st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=4)


@st.composite
def images(draw: st.DrawFn) -> Image:
    tables = {}
    for name in draw(st.lists(st.sampled_from(["w0", "w16", "a/b"]), unique=True, max_size=2)):
        ids = draw(some.arrays(np.int64, st.integers(0, 6), unique=True))
        width = draw(st.integers(0, 3))
        embedding = draw(some.arrays(np.float32, (len(ids), width)))
        removed = draw(some.arrays(np.int64, st.integers(0, 3)))
        tables[name] = TableRows(ids, {"embedding": embedding, "wide": np.arange(len(ids), dtype=np.float32)}, removed)
    return Image(draw(DENSE), tables)


def same(a: Image, b: Image) -> None:
    mine, theirs = a.tensors(), b.tensors()
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        other = theirs[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


@given(images())
def test_an_image_comes_out_as_it_went_in(image: Image) -> None:
    same(unpack(pack(image)), image)


@given(images(), st.randoms())
def test_a_difference_needs_the_tensors_it_was_made_against(image: Image, random: Any) -> None:
    parent = {name: np.zeros_like(array) for name, array in image.dense.items()}
    body = pack(image, parent)
    same(unpack(body, parent), image)
    sizes = {name: array.size for name, array in image.dense.items() if array.size}
    if sizes:
        other = {name: array.copy() for name, array in parent.items()}
        other[random.choice(sorted(sizes))].reshape(-1).view(np.uint8)[0] ^= 1
        with pytest.raises(SnapshotError, match="against others"):
            unpack(body, other)
        with pytest.raises(SnapshotError, match="not there"):
            unpack(body)


def test_weights_that_moved_little_are_small_as_differences() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=60_000).astype(np.float32)
    after = before + rng.normal(scale=1e-6, size=before.size).astype(np.float32)
    image = Image({"w": after}, {})
    whole, plain = len(pack(image, {"w": before})), len(pack(image))
    assert whole < plain / 2 < after.nbytes / 2
    assert unpack(pack(image, {"w": before}), {"w": before}).dense["w"].tobytes() == after.tobytes()


@given(images(), st.data())
def test_damaged_bodies_end_in_the_named_error(image: Image, data: st.DataObject) -> None:
    body = bytearray(pack(image))
    at = data.draw(st.integers(0, len(body) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if how == "flip":
        body[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del body[at:]
    else:
        body += data.draw(st.binary(min_size=1, max_size=9))
    with contextlib.suppress(SnapshotError):
        unpack(bytes(body))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_the_named_error(body: bytes) -> None:
    with pytest.raises(SnapshotError):
        unpack(body)
    with pytest.raises(SnapshotError):
        unpack(b"MRI1" + body)


def test_what_is_said_makes_no_room() -> None:
    """A list that tells of a gigabyte too much, and a frame that does, are refused before anything is made for them."""
    body = pack(Image({"w": np.zeros(10, np.float32)}, {}))
    for shape in ("[10]", "[1000000000]", f"[{2**47}]", "[1,1,1,1,1,1,1,1,10]", "[-1]"):
        changed = body.replace(b"[10]", shape.encode())
        changed = (
            changed[:4] + (int.from_bytes(changed[4:8], "little") + len(shape) - 4).to_bytes(4, "little") + changed[8:]
        )
        if shape == "[10]":
            unpack(changed)
        else:
            with pytest.raises(SnapshotError):
                unpack(changed)


def test_a_delta_beyond_what_can_be_unpacked_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_IMAGE_BYTES", 39)
    with pytest.raises(SnapshotError, match="40 bytes"):
        pack(Image({"w": np.zeros(10, np.float32)}, {}))


@given(DENSE)
def test_arrays_are_read_where_they_lie(arrays: dict[str, Any]) -> None:
    body = b"".join(lay(arrays))
    assert len(body) % 64 == 0
    found = view(specs_of(arrays), body)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )
        assert not found[name].flags.writeable


@pytest.mark.parametrize(
    "reported",
    [
        [ArraySpec("a", "<f4", [3])],
        [ArraySpec("a", "<f4", [16]), ArraySpec("a", "<f4", [0])],
        [ArraySpec("a", "|O8", [2])],
        [ArraySpec("a", "<f1", [2])],
        [ArraySpec("a", "<f4", [-1])],
        [ArraySpec("a", "<f4", [2**40])],
        [],
    ],
)
def test_lists_that_do_not_fit_are_refused(reported: list[ArraySpec]) -> None:
    with pytest.raises(SnapshotError):
        view(reported, bytes(128))
