# core
"""A streaming recommender that learns online. ``import millrace as mr`` gives what its commands do, as values."""

__version__ = "0.3.0"
__all__ = ["Model", "Schema", "audit", "bootstrap", "delays", "freshness", "guess", "judge", "read", "replay", "up"]

_ROOMS = {
    "Model": "millrace.commands.replay.onlinemodel",
    "Schema": "millrace.contracts.schema",
    "audit": "millrace.commands.proofs.auditrun",
    "bootstrap": "millrace.commands.history.command",
    "delays": "millrace.commands.delays.delaysrun",
    "freshness": "millrace.commands.freshness.freshnessrun",
    "guess": "millrace.commands.guess.write",
    "judge": "millrace.commands.judge.command",
    "read": "millrace.commands.replay.reading",
    "replay": "millrace.commands.replay.replayrun",
    "up": "millrace.commands.up.started",
}


def __getattr__(name: str) -> object:
    """A public name, imported from its room when it is first used: every process runs this file."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'millrace' has no attribute '{name}'; it has {', '.join(__all__)}")
    from importlib import import_module

    found = getattr(import_module(_ROOMS[name]), name)
    if not isinstance(found, type):
        found = import_module("millrace.basics.arguments").checked(found)
        found.__module__ = __name__  # where pickle finds it
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
