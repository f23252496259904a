# shell
"""The commands that learn the past again: ``millrace repair`` and ``millrace bisect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from commands.up.folder import broker_of, of_loop
from millrace.basics.errors import SettingError
from millrace.contracts.settings import Settings, load_settings

_Data = Annotated[Path | None, Parameter(help="The data folder (default: MILLRACE_DATA, else ./millrace-data).")]
_Kafka = Annotated[
    str | None,
    Parameter(help="Broker with the topic samples (default: MILLRACE_KAFKA, or that of the loop on the data folder)."),
]
_Folder = Annotated[
    Path | None, Parameter(help="Read samples from files PARTITION-OFFSET.samples in this folder instead.")
]


def repair(
    *,
    since: str,
    without_users: str | None = None,
    without_items: str | None = None,
    without_arm: str | None = None,
    without_interval: str | None = None,
    of: int | None = None,
    dry_run: bool = False,
    data: _Data = None,
    kafka: _Kafka = None,
    from_folder: _Folder = None,
) -> None:
    """Learn the samples since a time again, without what is named; 'millrace promote --repair' adopts the result.

    Parameters
    ----------
    since
        Begin at the newest kept version of this time or before: 2026-03-01T14:30 (event time, UTC), or 2h for so long
        before the newest version.
    without_users
        Users by id, with commas, or a file with one a line. #HASH names one as 'millrace bisect' does.
    without_items
        Items, likewise.
    without_arm
        Arms of pages, with commas: model, control, logged.
    without_interval
        Exposures of this time, FROM..TO, each as --since.
    of
        Version to repair (default: the newest), as one that a rollback left.
    dry_run
        Say what would be left out, and write nothing.
    """
    from commands.repair.run import run_repair
    from commands.repair.without import Without, arms_of, ids_of

    without = Without(
        users=ids_of(_listed(without_users)), items=ids_of(_listed(without_items)), arms=arms_of(without_arm or "")
    )
    if without_interval is None and not without:
        raise SettingError("nothing is named that is to be left out", "give --without-users, -items, -arm or -interval")
    settings = _settings(data, kafka, from_folder is None)
    run_repair(settings, since, without, without_interval, from_folder, dry_run, of)


def bisect(
    *,
    since: str,
    figure: Literal["heldout_auc", "log_loss", "calibration", "auc"] = "heldout_auc",
    of: int | None = None,
    data: _Data = None,
    kafka: _Kafka = None,
    from_folder: _Folder = None,
) -> None:
    """Find the stretch of samples that moved a figure, and what stands out in it. Writes nothing.

    Parameters
    ----------
    since
        Begin at the newest kept version of this time or before, as for 'millrace repair'.
    figure
        heldout_auc, log_loss, calibration: on held-out pages of before. auc: on the rows learnt last before it.
    of
        Version to look back from (default: the newest), as one that a rollback left.
    """
    from commands.repair.run import run_bisect

    run_bisect(_settings(data, kafka, from_folder is None), since, figure, from_folder, of)


def _listed(text: str | None) -> list[str]:
    """The parts of a list with commas, or the lines of the file of this name."""
    if text is None:
        return []
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"file '{text}' cannot be read ({error})", "name one with an id a line") from None


def _settings(data: Path | None, kafka: str | None, broker: bool) -> Settings:
    """Settings with what a loop that runs on the data folder says of its broker.

    Raises:
        SettingError: the folder is no loop's, or no broker is named, and none runs.
    """
    settings = of_loop(load_settings({"kafka": kafka}), data)
    if settings.kafka or not broker:
        return settings
    found = broker_of(Path(settings.data))
    if not found:
        raise SettingError(
            f"no broker is named, and no loop runs on '{settings.data}'", "start it, or give --kafka: samples lie there"
        )
    return msgspec.structs.replace(settings, kafka=found)
