# core
"""Rows that any reader of Arrow takes, and frames of other libraries made of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from millrace.basics.errors import SettingError

if TYPE_CHECKING:
    import pyarrow as pa


def package(name: str) -> Any:
    """A package that Millrace does not need for itself, but for its user. Raises SettingError without it."""
    modules = {"pandas": "pandas", "polars": "polars", "river": "river.base", "millrace_client": "millrace_client"}
    try:
        return import_module(modules[name])
    except ModuleNotFoundError:
        raise SettingError(f"'{name}' is not installed here", f"pip install {name.replace('_', '-')}") from None


class ArrowRows:
    """What has a ``table`` of Arrow, as its readers see it: DuckDB, pandas, Polars, pyarrow and others."""

    __slots__ = ()

    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame. Raises SettingError without pandas."""
        package("pandas")
        return self.table.to_pandas()

    def to_polars(self) -> Any:
        """A polars.DataFrame. Raises SettingError without Polars."""
        return package("polars").DataFrame(self)
