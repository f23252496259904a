# core
"""Evidence that may be looked at whenever one likes: alarms with a stated average time between false ones."""
