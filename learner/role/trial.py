# core
"""``python -m learner.role.trial``: makes the model that the settings name, as `millrace doctor` asks.

A class of one's own may do anything when it is imported, also never return. So it is tried in a process that the caller
can end. The one line on the standard output is JSON, one of::

    {"text": "'mymodel:Logit' does what its verbs promise; an untrained version has 66,416 bytes"}
    {"problem": "model 'mymodel:Logit' has no learn", "remedy": "give it score, learn, snapshot, resume"}
"""

from __future__ import annotations

import os
import sys

import msgspec

from learner.custom.ownclass import is_own, own_class
from millrace.basics.errors import MillraceError
from millrace.contracts.settings import Settings, load_settings


def tried(settings: Settings) -> dict[str, str]:
    try:
        if is_own(settings.model):
            own_class(settings.model)  # whether it is there is told before seconds of imports of PyTorch
        from learner.custom.own import OwnModel
        from learner.role.model_factory import model_of

        model = model_of(settings.load_schema(), settings.spec(), settings.seed)
    except MillraceError as error:
        return {"problem": error.problem, "remedy": error.remedy}
    name = model.spec["model"]
    if not isinstance(model, OwnModel):
        return {"text": f"'{name}'"}
    size = sum(array.nbytes for array in model.changes().dense.values())
    return {"text": f"'{name}' does what its verbs promise; an untrained version has {size:,} bytes"}


def main() -> None:
    """Tries the model of this process' settings. The class's own output goes to the standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    os.write(out, msgspec.json.encode(tried(load_settings({}))))
    sys.stdout.flush()
    os._exit(0)  # a thread that the class left is not waited for


if __name__ == "__main__":
    main()
