# core
"""Anyone's exposure log, read as rows: by replay, experiments and the simulator's playback."""

from millrace.logs.exposures import TS, LogTable, local_days, read_log

__all__ = ["TS", "LogTable", "local_days", "read_log"]
