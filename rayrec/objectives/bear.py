"""BEAR: SFT over the legal tokens, weighed by where a beam search would have the token."""

from dataclasses import dataclass

from rayrec.objectives.base import setting
from rayrec.objectives.pairs import Tensor
from rayrec.objectives.supervised import Choices, SftLoss


@dataclass(frozen=True)
class Bear(SftLoss):
    """w·(-log p), w = 1 + λσ((log p - log p_(B))/ξ) without gradient, mean over the tokens with more than one choice.

    p is the softmax of z/τ over the legal tokens, p_(B) the B-th largest of these, the smallest where there are fewer.
    The release divides by Σ w instead of the count. λ = 0 with τ = 1 is MSL.
    """

    temperature: float = setting(1.0, "Temperature τ over the legal tokens, > 0")
    beams: int = setting(10, "Beams B of the search in which a token should stay, > 0")
    lam: float = setting(0.25, "Weight of the tokens' places among the beams, >= 0", zero=True)
    xi: float = setting(2.75, "Width of the step from lost to kept tokens, in nats, > 0")
    reads_catalogue = True
    counts_all = False

    def __call__(self, choices: Choices, temperature: float) -> Tensor:
        legal, z_N, z_E = choices.legal, choices.logit_N / temperature, choices.logit_E / temperature
        kept_N = (z_N - legal.largest(z_E, self.beams)).detach() / self.xi
        weight_N = 1 + self.lam * kept_N.sigmoid()
        return (weight_N * (legal.logsumexp(z_E) - z_N)).where(choices.open_N, 0.0)
