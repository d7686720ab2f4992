"""Flower: SFT, and probabilities over the catalogue that flow as users chose."""

from dataclasses import dataclass

from rayrec.objectives.base import setting
from rayrec.objectives.pairs import Tensor, need
from rayrec.objectives.supervised import Choices, SftLoss


@dataclass(frozen=True)
class Flower(SftLoss):
    """θ·(-log π(y)) + (1 - θ)·Σ_{v∈L} q_v log(q_v/p_v), mean over all tokens.

    p is the softmax over the legal tokens L, q_v the share of v among the titles that users chose below this place: at
    the minimum of the second term the probability of a title over the catalogue is its share of popularity. The paper
    samples titles and squares Σ log(p/q) over parts of their paths; this is the same minimum without sampling.
    """

    theta: float = setting(0.995, "Weight of the likelihood; popularity has the rest, > 0")
    reads_catalogue = True
    reads_words = True
    reads_shares = True

    def __call__(self, choices: Choices, temperature: float) -> Tensor:
        from torch import xlogy

        legal, q_E = choices.legal, need(choices.share_E, "share_E")
        logp_E = choices.logit_E - legal.logsumexp(choices.logit_E)[legal.owner_E]
        apart_N = legal.sum(xlogy(q_E, q_E) - q_E * logp_E)
        return self.theta * (choices.words_N - choices.logit_N) + (1 - self.theta) * apart_N

    def check_catalogue(self, choices: int) -> None:
        if self.theta > 1:
            raise ValueError(f"--sft-theta {self.theta:g} is no share. Take one up to 1, such as 0.995.")
