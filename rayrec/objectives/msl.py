"""MSL: the softmax of SFT over the tokens that continue some title, with a temperature that may adapt itself."""

import math
from dataclasses import dataclass

from rayrec.objectives.base import setting
from rayrec.objectives.pairs import Tensor
from rayrec.objectives.supervised import Choices, SftLoss


@dataclass(frozen=True)
class Msl(SftLoss):
    """τ·logsumexp_{v∈L}(z_v/τ) - z_y over the legal tokens L, mean over the tokens with |L| > 1 (Wang et al. 2025)."""

    temperature: float | None = setting(
        None, "Temperature τ over the legal tokens, > 0; msl's adapts itself if left out"
    )
    eta: float = setting(0.25, "Share of the first tokens that counts as hard where τ adapts itself, > 0")
    reads_catalogue = True
    counts_all = False

    def __call__(self, choices: Choices, temperature: float) -> Tensor:
        norm_N = temperature * choices.legal.logsumexp(choices.logit_E / temperature)
        return (norm_N - choices.logit_N).where(choices.open_N, 0.0)

    @property
    def start(self) -> float:
        return self.temperature or 1.5

    @property
    def adapts(self) -> bool:
        return self.temperature is None

    def following(self, temperature: float, gap: float, variance: float, choices: int) -> float:
        """Return 0.95 τ + 0.05 clamp((d + √max(0, d² - 2Cs))/(2C), 1.5, 5), C = log(η·choices), d gap, s variance."""
        c = math.log(self.eta * choices)
        found = (gap + math.sqrt(max(0.0, gap * gap - 2 * c * variance))) / (2 * c)
        return 0.95 * temperature + 0.05 * min(5.0, max(1.5, found))

    def check_catalogue(self, choices: int) -> None:
        if self.adapts and self.eta * choices <= 1:
            raise ValueError(
                f"titles begin with {choices} different tokens, of which --sft-eta {self.eta:g} is no more than one, "
                "so τ cannot adapt itself. Add --sft-temperature 1, or a larger --sft-eta."
            )
