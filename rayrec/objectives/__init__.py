"""Preference objectives, chosen by name. Each returns a loss per example; the batch loss is their mean.

A new one is a file here, a row in :data:`OBJECTIVES` and a test. A script may add a row before it imports
:mod:`rayrec.objectives.settings`, which makes flags of the objectives' fields.
"""

from rayrec.objectives.base import Objective, setting
from rayrec.objectives.cpo import Cpo
from rayrec.objectives.dmpo import Dmpo
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.ipo import Ipo
from rayrec.objectives.kto import Kto
from rayrec.objectives.odpo import Odpo
from rayrec.objectives.pairs import Pairs, pairs_of, rewards
from rayrec.objectives.recpo import Recpo
from rayrec.objectives.rosepo import Rosepo
from rayrec.objectives.sdpo import Sdpo
from rayrec.objectives.simpo import Simpo

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": Dpo,
    "sdpo": Sdpo,
    "dmpo": Dmpo,
    "simpo": Simpo,
    "recpo": Recpo,
    "rosepo": Rosepo,
    "ipo": Ipo,
    "cpo": Cpo,
    "kto": Kto,
    "odpo": Odpo,
}
DEFAULT = "dpo"

__all__ = ["DEFAULT", "OBJECTIVES", "Objective", "Pairs", "pairs_of", "rewards", "setting"]
