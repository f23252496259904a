# core
"""The whole loop on one machine, as it is started, watched and shown: what the programs that run it share."""
