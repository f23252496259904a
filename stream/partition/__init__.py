# core
"""One partition's state: the join, the windows, who clicked what, and the checkpoint of it all."""
