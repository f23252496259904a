# core
"""Stable 64-bit hashing: the same value has the same id in every process, on every machine, in every version.

- :func:`value_hash` turns one attribute value into 64 bits (``None``, NaN and the empty string are *missing*: 0).
- :func:`mix` puts a salt (a field's, a window key's) into value hashes, vectorised.
- :func:`combine` folds several hashed columns into one key.

With 64 bits, a million distinct keys collide with probability 3e-8. The sparse tables resolve ids exactly, so no other
place can confuse two values. :func:`kafka_partition` is Kafka's own hash.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

C1 = np.uint64(0x9E3779B97F4A7C15)
C2 = np.uint64(0xBF58476D1CE4E5B9)
C3 = np.uint64(0x94D049BB133111EB)
_INVERSE_C1, _INVERSE_C2, _INVERSE_C3 = (np.uint64(pow(int(c), -1, 1 << 64)) for c in (C1, C2, C3))
_U32 = 0xFFFFFFFF


def value_hash(value: object) -> int:
    """64-bit hash of one attribute value; 0 when it is missing.

    Whole numbers hash like the integer (``1.0`` and ``1`` are one value, since a column with gaps is read as floats),
    booleans like 0 and 1, all other values by their text.
    """
    text = value_text(value)
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def value_text(value: object) -> str:
    """The text by which :func:`value_hash` knows a value; empty when it is missing."""
    if value is None or value == "" or value != value:  # NaN is the only value unequal to itself
        return ""
    if isinstance(value, bool | np.bool_) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        value = int(value)
    return str(value)


def column_hash(column: Any) -> U64:
    """:func:`value_hash` of a whole column (any sequence or array); hashes each distinct value one time. (n,) uint64"""
    values = np.asarray(column)
    if values.dtype.kind in "OUS":
        known: dict[object, int] = {}
        out = np.empty(len(values), np.uint64)
        for i, value in enumerate(values.tolist()):
            h = known.get(value)
            if h is None:
                h = known[value] = value_hash(value)
            out[i] = h
        return out
    distinct, where = np.unique(values, return_inverse=True)
    hashed = np.fromiter((value_hash(v) for v in distinct.tolist()), np.uint64, len(distinct))
    result: U64 = hashed[where]
    return result


def salt(*names: str) -> np.uint64:
    """The salt of a named field, window key or cross."""
    return np.uint64(value_hash("\x1f".join(names)))


def _avalanche(x: U64) -> U64:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit flips each output bit half the time."""
    x = x ^ (x >> np.uint64(30))
    x = x * C2
    x = x ^ (x >> np.uint64(27))
    x = x * C3
    return x ^ (x >> np.uint64(31))


def mix(seed: np.uint64, hashed: U64) -> U64:
    """Puts ``seed`` into ``hashed``; a missing value (0) stays 0, nothing else becomes 0. Same shape, uint64"""
    hashed = np.asarray(hashed, np.uint64)
    with np.errstate(over="ignore"):
        out = _avalanche(hashed * C1 + seed)
    out = np.where(out == 0, np.uint64(1), out)
    return np.where(hashed == 0, np.uint64(0), out)


def unmix(seed: np.uint64, mixed: U64) -> U64:
    """The input of :func:`mix`: each of its steps has an inverse. (But for the one value in 2^64 that it moves to 1.)

    >>> int(unmix(salt("field"), mix(salt("field"), np.array([42], np.uint64)))[0])
    42
    """
    x = np.asarray(mixed, np.uint64)
    missing = x == 0
    with np.errstate(over="ignore"):
        x = _unshift(x, 31) * _INVERSE_C3
        x = _unshift(x, 27) * _INVERSE_C2
        x = (_unshift(x, 30) - seed) * _INVERSE_C1
    out: U64 = np.where(missing, np.uint64(0), x)
    return out


def _unshift(x: U64, by: int) -> U64:
    """The inverse of ``x ^ (x >> by)``, for at least 22 bits."""
    out: U64 = x ^ (x >> np.uint64(by)) ^ (x >> np.uint64(2 * by))
    return out


def combine(seed: np.uint64, *columns: U64) -> U64:
    """One key from several hashed columns (broadcast); order matters; missing when any column is. uint64"""
    out = np.asarray(columns[0], np.uint64)
    missing = out == 0
    with np.errstate(over="ignore"):
        out = _avalanche(out * C1 + seed)
        for column in columns[1:]:
            hashed = np.asarray(column, np.uint64)
            missing = missing | (hashed == 0)
            out = _avalanche(out * C1 + hashed)
    out = np.where(out == 0, np.uint64(1), out)
    return np.where(missing, np.uint64(0), out)


def murmur2(data: bytes) -> int:
    """MurmurHash2 (Appleby 2008), 32 bits, with the seed of Kafka's ``org.apache.kafka.common.utils.Utils.murmur2``, as
    an unsigned number."""
    m, whole = 0x5BD1E995, len(data) & ~3
    h = 0x9747B28C ^ len(data)
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & _U32
        k = (k ^ k >> 24) * m & _U32
        h = (h * m & _U32) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & _U32
    h = (h ^ h >> 13) * m & _U32
    return h ^ h >> 15


def kafka_partition(key: bytes, partitions: int) -> int:
    """The partition of a message with this key by Kafka's default partitioner: the Java client's, kafka-python's and
    aiokafka's. (librdkafka's default is another one, by CRC32.)

    >>> kafka_partition(b"7", 4)
    3
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions
