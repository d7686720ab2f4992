"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LossConfig:
    """Loss of the preference step. A setting that is left out has the objective's own default; one that the objective
    does not have is refused."""

    objective: Literal["dpo", "sdpo", "dmpo", "simpo", "recpo", "rosepo", "ipo", "cpo", "kto", "odpo"] = "dpo"
    """Chosen against rejected answers, by this loss."""
    beta: float | None = None
    """Inverse temperature of the implicit reward, > 0 (all but ipo)."""
    gamma: float | None = None
    """Target margin of simpo."""
    lam: float | None = None
    """Weight of recpo's margins."""
    margin: Literal["ratio", "log_ratio", "log_diff"] | None = None
    """Form of recpo's margins."""
    tau: float | None = None
    """Regularisation of ipo, > 0."""
    average: Literal["sum", "mean"] | None = None
    """Log-probabilities of ipo: of the sequence, or per token."""
    alpha: float | None = None
    """Weight of cpo's likelihood term, or of odpo's offset."""
    lambda_d: float | None = None
    """Weight of kto's chosen answers."""
    lambda_u: float | None = None
    """Weight of kto's rejected answers; default 1/K."""
    smoothing: Literal["auto", "none", "sasrec"] = "auto"
    """Label smoothing by the doubt of a SASRec oracle in each pair; `auto` smooths rosepo only (dpo, sdpo, recpo and
    odpo can)."""
