"""Preference objectives, chosen by name. Each returns a loss per example; the batch loss is their mean."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

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
from rayrec.objectives.settings import LossConfig
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

#: Objectives that read ``Pairs.smoothing_BK``, and those that read the scores of the items.
SMOOTHED = {"dpo", "sdpo", "recpo", "rosepo", "odpo"}
SCORED = {"recpo", "odpo"}


def make_objective(loss: LossConfig) -> Any:
    """Return the objective with its settings.

    Raises:
        ValueError: a setting that the objective does not have, or out of its range.
    """
    kind = OBJECTIVES[loss.objective]
    settings = {"beta": loss.beta, "gamma": loss.gamma, "lam": loss.lam, "margin": loss.margin, "tau": loss.tau}
    settings |= {"average": loss.average, "alpha": loss.alpha, "lambda_d": loss.lambda_d, "lambda_u": loss.lambda_u}
    given = {name: value for name, value in settings.items() if value is not None}
    own = [field.name for field in fields(kind)]
    for name in given.keys() - own:
        flags = ", ".join(f"--{other.replace('_', '-')}" for other in own)
        raise ValueError(f"--objective {loss.objective} has no --{name.replace('_', '-')}; it has {flags}.")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"--objective {loss.objective}: {error}") from error


__all__ = ["OBJECTIVES", "SCORED", "SMOOTHED", "Pairs", "make_objective", "pairs_of", "rewards"]
