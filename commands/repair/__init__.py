# core
"""An hour that never happened: samples since a snapshot are learnt again without what is named; see docs/repair.md."""
