# core
"""Reports for people: one page of HTML, its plots, the JSON beside them."""

from millrace.reports.names import NAMES, name_of
from millrace.reports.page import make_folder, surroundings, write_all
from millrace.reports.plots import (
    MAIN,
    QUIET,
    SECOND,
    Plot,
    calibration_plot,
    canvas,
    day_plot,
    days_plot,
    distinct,
    grid,
    interval_plot,
    line,
    lines_canvas,
)
from millrace.reports.tables import say, show

__all__ = [
    "MAIN",
    "NAMES",
    "QUIET",
    "SECOND",
    "Plot",
    "calibration_plot",
    "canvas",
    "day_plot",
    "days_plot",
    "distinct",
    "grid",
    "interval_plot",
    "line",
    "lines_canvas",
    "make_folder",
    "name_of",
    "say",
    "show",
    "surroundings",
    "write_all",
]
