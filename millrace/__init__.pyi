from commands.guess.write import guess as guess
from commands.replay.reading import read as read
from commands.replay.replayrun import replay as replay
from millrace.contracts.schema import Schema as Schema

__version__: str
__all__ = ["Schema", "guess", "read", "replay"]
