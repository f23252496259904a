# shell
"""Flags that several commands share, and how a result is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import msgspec
from cyclopts import Parameter

from millrace.basics.errors import SettingError
from millrace.commands.up.data_folder import broker_of, on_folder
from millrace.contracts.settings import Settings, load_settings

P = ParamSpec("P")

Data = Annotated[Path | None, Parameter(help="Folder of the loop (default: the setting 'data', else ./millrace-data).")]
Kafka = Annotated[
    str | None, Parameter(help="The broker (default: the setting 'kafka', else that of the loop on the folder).")
]
Learner = Annotated[
    str | None, Parameter(help="A learner of the setting learners; default: the first one.", name="--learner")
]
Json = Annotated[bool, Parameter(help="Print the result as one JSON value.", negative="")]
SchemaFile = Annotated[Path, Parameter(help="TOML file: which columns are time, user, item, label and features.")]
SkipBad = Annotated[
    bool, Parameter(help="Leave out rows that are wrong, counted by what is wrong, instead of ending with all faults.")
]
Seed = Annotated[int, Parameter(help="Seed of the model. The same seed gives the same report, bit for bit.")]
Log = Annotated[
    list[Path],
    Parameter(help="Exposure log: files or folders of Parquet, CSV, TSV or JSON lines; one row an exposure or a page."),
]
Model = Annotated[str | None, Parameter(help="Model to train: a name, or module:Class (default: the setting's).")]
Labels = Annotated[
    str | None,
    Parameter(
        help="When labels are learnt: wait, equal-wait, fake-negative-weighted, es-dfm, prompt (default: the"
        " setting's), or immediate: at the exposure, which no live loop can do, to compare with."
    ),
]
Out = Annotated[Path, Parameter(help="Folder for report.json, run.json, report.html and plots.")]


def settings_of(data: Path | None, **flags: Any) -> Settings:
    """The settings of a command about the loop on a folder, and about the ``learner`` among ``flags``. Nothing is made
    there."""
    settings = on_folder(load_settings({"data": absolute(data)} | flags))
    return settings.of_learner(settings.learner)


def with_broker(settings: Settings) -> Settings:
    """The settings with a broker: that of the loop that runs on the folder, where none is set.

    Raises:
        SettingError: none is set, and none runs.
    """
    if settings.kafka:
        return settings
    found = broker_of(Path(settings.data))
    if not found:
        raise SettingError(
            f"no Kafka address is set, and no 'millrace up' is ready on folder '{settings.data}'",
            "give --kafka or MILLRACE_KAFKA as host:port, or name the folder of a run with --data",
        )
    return msgspec.structs.replace(settings, kafka=found)


def absolute(path: Path | None) -> str | None:
    """A path that stays right for a process that starts elsewhere."""
    return None if path is None else str(path.absolute())


def emit(result: Any, lines: Iterable[str], json: bool) -> None:
    """Prints a result: as lines for people, or as one JSON value."""
    if json:
        print(msgspec.json.encode(result, enc_hook=str).decode())
        return
    for line in lines:
        print(line.encode("utf-8", "backslashreplace").decode())  # a name of a file may hold bytes that are no text


def report(json: bool, run: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Runs what prints its result itself, or gives one: a :class:`~millrace.reports.result.Result`, or what has
    ``report``, ``lines`` and ``error``. For ``json`` what is for people goes to standard error, and the report is
    printed. Then its error is raised, if it has one."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        result = run(*args, **kwargs)
        if (say := getattr(result, "print", None)) is not None:
            say()
    emit(getattr(result, "report", result), getattr(result, "lines", []), json)
    if (error := getattr(result, "error", None)) is not None:
        raise error
