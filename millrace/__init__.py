# core
"""A streaming recommender that learns online. ``import millrace as mr`` gives what its commands do, as values."""

__version__ = "0.2.0"
__all__ = ["Model", "Schema", "delays", "freshness", "guess", "judge", "read", "replay", "up"]

_ROOMS = {
    "Model": "commands.replay.onlinemodel",
    "Schema": "millrace.contracts.schema",
    "delays": "commands.delays.delaysrun",
    "freshness": "commands.freshness.freshnessrun",
    "guess": "commands.guess.write",
    "judge": "commands.judge.command",
    "read": "commands.replay.reading",
    "replay": "commands.replay.replayrun",
    "up": "commands.up.started",
}


def __getattr__(name: str) -> object:
    """A public name, imported from its room when it is first used: every process runs this file."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'millrace' has no attribute '{name}'; it has {', '.join(__all__)}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
