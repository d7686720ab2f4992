"""Preference objectives, chosen by name. Each returns a loss per example; the batch loss is their mean."""

from rayrec.objectives.cpo import Cpo
from rayrec.objectives.dmpo import Dmpo
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.ipo import Ipo
from rayrec.objectives.kto import Kto
from rayrec.objectives.odpo import Odpo
from rayrec.objectives.pairs import Pairs, rewards
from rayrec.objectives.recpo import Recpo
from rayrec.objectives.rosepo import Rosepo
from rayrec.objectives.sdpo import Sdpo
from rayrec.objectives.sft import sft
from rayrec.objectives.simpo import Simpo

OBJECTIVES = {
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

__all__ = ["OBJECTIVES", "Pairs", "rewards", "sft"]
