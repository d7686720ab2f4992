"""Losses, chosen by name: preference objectives, whose batch loss is a mean over examples, and supervised losses.

A new one is a file here, a row in :data:`OBJECTIVES` or :data:`SFT_LOSSES` and a test. A script may add a row before it
imports :mod:`rayrec.objectives.settings`, which makes flags of the fields.
"""

from rayrec.objectives.base import Objective, setting
from rayrec.objectives.bear import Bear
from rayrec.objectives.cpo import Cpo
from rayrec.objectives.dmpo import Dmpo
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.dynamicpo import Dynamicpo
from rayrec.objectives.flower import Flower
from rayrec.objectives.group import Group
from rayrec.objectives.gspo import Gspo
from rayrec.objectives.ipo import Ipo
from rayrec.objectives.kto import Kto
from rayrec.objectives.msl import Msl
from rayrec.objectives.odpo import Odpo
from rayrec.objectives.orpo import Orpo
from rayrec.objectives.pairs import Pairs, chosen_nll, rewards
from rayrec.objectives.recpo import Recpo
from rayrec.objectives.rere import Rere
from rayrec.objectives.rosepo import Rosepo
from rayrec.objectives.sdpo import Sdpo
from rayrec.objectives.simpo import Simpo
from rayrec.objectives.supervised import Choices, SftLoss

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
    "orpo": Orpo,
    "dynamicpo": Dynamicpo,
    "rere": Rere,
    "gspo": Gspo,
}
DEFAULT = "dpo"
SFT_LOSSES: dict[str, type[SftLoss]] = {"sft": SftLoss, "msl": Msl, "bear": Bear, "flower": Flower}

__all__ = [
    "DEFAULT",
    "OBJECTIVES",
    "SFT_LOSSES",
    "Choices",
    "Group",
    "Objective",
    "Pairs",
    "SftLoss",
    "chosen_nll",
    "rewards",
    "setting",
]
