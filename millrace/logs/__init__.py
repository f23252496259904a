# core
"""Anyone's exposure log, read as rows: by replay, experiments and the simulator's playback."""

from millrace.logs.exposures import TS, LogTable, local_days, read_log
from millrace.logs.faults import Decision, Fault, LogFaults

__all__ = ["TS", "Decision", "Fault", "LogFaults", "LogTable", "local_days", "read_log"]
