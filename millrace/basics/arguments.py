# core
"""Arguments of the public functions: one of a wrong type is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from millrace.basics.errors import SettingError

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises SettingError for a value that its annotations exclude."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = get_type_hints(function)
        for name, value in signature(function).bind(*args, **kwargs).arguments.items():
            kinds = _kinds(hints.get(name, Any))
            if not any(_fits(value, kind) for kind in kinds):
                shown = " ".join(repr(value).split())[:60]
                words = [k if isinstance(k, str) else k.__name__ for k in kinds if k is not NoneType]
                raise SettingError(f"{name} is {shown}, of type {type(value).__name__}", f"give {' or '.join(words)}")
        return function(*args, **kwargs)

    return call


def _kinds(hint: Any) -> list[Any]:
    """What a value may be: classes, or words."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [kind for one in get_args(hint) for kind in _kinds(one)]
    return list(get_args(hint)) if origin is Literal else [origin or hint]


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any or getattr(kind, "_is_protocol", False):  # a frame: its reader says what is wrong
        return True
    return value == kind if isinstance(kind, str) else isinstance(value, Integral if kind is int else kind)
