# core
"""Windows, label join and online store: pure cores, and the Faust worker that runs them live."""
