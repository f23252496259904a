from millrace.commands.delays.delaysrun import delays as delays
from millrace.commands.freshness.freshnessrun import freshness as freshness
from millrace.commands.guess.write import guess as guess
from millrace.commands.history.command import bootstrap as bootstrap
from millrace.commands.judge.command import judge as judge
from millrace.commands.proofs.auditrun import audit as audit
from millrace.commands.replay.onlinemodel import Model as Model
from millrace.commands.replay.reading import read as read
from millrace.commands.replay.replayrun import replay as replay
from millrace.commands.up.started import up as up
from millrace.contracts.schema import Schema as Schema

__version__: str
__all__ = ["Model", "Schema", "audit", "bootstrap", "delays", "freshness", "guess", "judge", "read", "replay", "up"]
