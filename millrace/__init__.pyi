from commands.delays.delaysrun import delays as delays
from commands.freshness.freshnessrun import freshness as freshness
from commands.guess.write import guess as guess
from commands.judge.command import judge as judge
from commands.replay.onlinemodel import Model as Model
from commands.replay.reading import read as read
from commands.replay.replayrun import replay as replay
from commands.up.started import up as up
from millrace.contracts.schema import Schema as Schema

__version__: str
__all__ = ["Model", "Schema", "delays", "freshness", "guess", "judge", "read", "replay", "up"]
