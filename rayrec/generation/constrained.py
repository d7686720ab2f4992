"""Beams over the catalogue and scores of given answers, which no other engine has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayrec.generation.engine import Guide, Mode, Setup
from rayrec.generation.vllm import _whole


class BeamEngine:
    """What vLLM has not: catalogue-constrained beam search and packed scores; its model is the first policy's."""

    def __init__(self, setup: Setup):
        self.setup, self.model, self.device = setup, None, "cuda" if setup.gpu else "cpu"
        self.adapter, self.judges = False, dict[str, Any]()

    def load(self, version: str, folder: str) -> None:
        """Load a finished policy, in place after the first."""
        from rayrec.decoding import Trie
        from rayrec.models import policy

        folder = _whole(folder)
        adapter = (Path(folder) / "adapter_config.json").exists()
        if self.model is not None and adapter == self.adapter:
            return policy.load_weights(self.model, folder)
        self.adapter = adapter
        # Its settings name the base as the user did, whose words may mean something else on this machine.
        dtype = self.setup.config.train.dtype
        self.model = policy.load_policy(folder, dtype=dtype, device=self.device, base=self.setup.base)
        self.ids = [self.setup.template.answer_ids(title) for title in self.setup.titles]
        self.trie = Trie.build(self.ids)

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from rayrec.decoding import beam_search

        assert self.model is not None, "load comes first"
        return [[(self.ids[i], lp) for i, lp in one] for one in beam_search(self.model, prompts, self.trie, n)]

    def guided(self, prompts: list[list[int]], n: int, guide: Guide) -> list[list[tuple[list[int], float]]]:
        """Titles with D3's scores: the policy's and a SASRec's word together."""
        from rayrec.decoding import Prior, beam_search
        from rayrec.models import sequential

        assert self.model is not None, "load comes first"
        if guide.folder not in self.judges:
            self.judges[guide.folder] = sequential.load(guide.folder)
        scores_PI = sequential.scores(self.judges[guide.folder], guide.histories)
        prior = Prior(scores_PI.log_softmax(-1), guide.alpha)
        found = beam_search(self.model, prompts, self.trie, n, prior=prior)
        return [[(self.ids[i], score) for i, score in one] for one in found]

    def score(self, prompts: list[list[int]], choices: list[list[list[int]]]) -> list[list[tuple[list[int], float]]]:
        """The given answers of each prompt in their order, with their log-probabilities, in packed passes."""
        import torch

        from rayrec.models.logprobs import PackedLM, pack

        assert self.model is not None, "load comes first"
        lm, made = PackedLM(self.model), []
        for start in range(0, len(prompts), 8):
            rows = list(zip(prompts[start : start + 8], choices[start : start + 8], strict=True))
            with torch.inference_mode():
                logprob_BA = lm(pack(rows).to(torch.device(self.device))).tolist()
            made += [
                list(zip(row[1], one[: len(row[1])], strict=True)) for row, one in zip(rows, logprob_BA, strict=True)
            ]
        return made
