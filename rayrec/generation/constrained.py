"""Catalogue-constrained beams, D3 and packed scores for any engine."""

from __future__ import annotations

import math
import time
from typing import Any

from rayrec.generation.engine import Part, Scored, Setup, move, set_threads, weights_folder


class Constrained:
    """An engine, and beside it a model of the same policy that answers the modes which the engine lacks.

    Each of the two loads a policy when it is first asked for an answer of it, so a run whose modes the engine has
    holds no second model.
    """

    def __init__(self, setup: Setup):
        self.setup, self.engine = setup, setup.engine(setup)
        self.died = self.engine.died
        self.model: Any = None
        self._device, self._is_adapter = "cuda" if setup.gpu else "cpu", False
        self._policy, self._kept = ("", ""), dict[str, Any]()
        self._loaded: dict[bool, tuple[str, str]] = {}
        self._sequential = dict[str, Any]()

    def load(self, version: str, folder: str) -> None:
        """Name the policy that answers from now on."""
        self._policy = version, folder

    def prepare(self, part: Part) -> list[dict[str, Any]]:
        """Load the named policy into the model that answers a part, unless it is there.

        Returns what was stated: of a load two statements, their difference and times.
        """
        # A load is stated with the same bits whichever part it is for.
        set_threads(self.setup.threads)
        inner, stated = part.mode in self.engine.modes, list[dict[str, Any]]()
        if self._loaded.get(inner) != self._policy:
            if inner:
                self.engine.load(*self._policy)
            else:
                self._load(self._policy[1])
            stated = self._prove(inner, part)
            self._loaded[inner] = self._policy
        return stated

    def answer(self, part: Part) -> list[list[Scored]]:
        """Return answers to each prompt of a prepared part, best first, scored ones in the order of its choices."""
        if part.mode in self.engine.modes:
            return self.engine.answer(part)
        set_threads(part.threads or self.setup.threads)
        return {"score": self._score, "gumbel": self._draw}.get(part.mode, self._beams)(part)

    def _prove(self, inner: bool, part: Part) -> list[dict[str, Any]]:
        """Compare what was loaded with the trainer's statement on it, or with a plain pass where there is none.

        Raises:
            ValueError: they differ by more than is allowed.
        """
        from rayrec.models import proof

        probe, begun = self.setup.probe, time.time()
        if probe is None:
            return []
        found = self.engine.state(probe) if inner else proof.model_statement(self.model, probe)
        if found is None:
            return []
        wanted, whose = part.stated, "the trainer's"
        if wanted is None or wanted["probe"] != probe.key:
            wanted, whose = None, "transformers'"
            if inner and not self.engine.opens_plainly:
                wanted = self._plain_statement()
        name = type(self.engine).__name__ if inner else "beams and scores"
        apart = proof.difference(found, wanted, self.setup.config.train.precision, probe) if wanted else ""
        one = {"version": self._policy[0], "holder": name, "found": found, "wanted": wanted, "wanted_of": whose}
        one |= {"compared": ["logprob", *proof.compared(found, wanted)] if wanted else []}
        ended = time.time()
        if apart:
            other = " Add --engine torch." if inner and not self.engine.opens_plainly else ""
            raise ValueError(
                f"{self._policy[0]}: the generator ({name}) does not hold {whose} weights: {apart}. Nothing that it "
                f"answered with them is kept.{other}"
            )
        return [one | {"start": begun, "end": ended}]

    def _plain_statement(self) -> dict[str, Any] | None:
        """The statement of transformers about the policy, in a model that is freed again."""
        from rayrec.models import policy, proof

        assert self.setup.probe is not None
        dtype, base = self.setup.config.train.precision, self.setup.base
        model = policy.load_policy(weights_folder(self._policy[1]), dtype=dtype, base=base)
        return proof.model_statement(model, self.setup.probe)

    def sleep(self) -> None:
        """Free the GPU's memory."""
        self.engine.sleep()
        if self.model is not None:
            move(self.model, "cpu")

    def wake(self) -> None:
        """Take the GPU's memory back."""
        self.engine.wake()
        if self.model is not None:
            move(self.model, self._device)

    def _load(self, path: str) -> None:
        """Load a finished policy, in place after the first."""
        import torch

        from rayrec.decoding import Trie, titles_of
        from rayrec.models import lora, policy

        folder = weights_folder(path)
        is_adapter = (folder / "adapter_config.json").exists()
        if self.model is not None and is_adapter == self._is_adapter:
            policy.load_weights(self.model, folder)
            return lora.fold(self.model, self._kept)
        self._is_adapter, self._kept = is_adapter, {}
        # The policy's own settings name its base as the user typed it, which may not resolve on this machine.
        dtype, base = self.setup.config.train.precision, self.setup.base
        self.model = policy.load_policy(folder, dtype=dtype, device=self._device, base=base)
        lora.fold(self.model, self._kept)
        self.ids = [self.setup.template.answer_ids(title) for title in self.setup.titles]
        self.trie, self.items = Trie.build(self.ids).to(torch.device(self._device)), titles_of(self.ids)

    def _beams(self, part: Part) -> list[list[Scored]]:
        """Titles by log P(title + EOS | prompt), or with a guide by D3's scores."""
        from rayrec.decoding import Prior, measured_search
        from rayrec.models import sequential

        prior, normalise = None, self.setup.config.evaluate.normalise
        if guide := part.guide:
            if guide.folder not in self._sequential:
                self._sequential[guide.folder] = sequential.load(guide.folder)
            scores_PI = sequential.scores(self._sequential[guide.folder], guide.histories)
            prior = Prior(scores_PI.log_softmax(-1), guide.alpha)
        targets = None if part.targets is None else [self.items.get(tuple(ids), -1) for ids in part.targets]
        found = measured_search(
            self.model, part.prompts, self.trie, part.n, prior=prior, normalise=normalise, targets=targets
        )
        made: list[list[Scored]] = [
            [(self.ids[item], score, None if prior else kept) for item, score, kept in one] for one, _ in found
        ]
        for row, ids, (_, score) in zip(made, part.targets or (), found, strict=False):
            row.append((ids, math.nan if score is None else score))
        return made

    def _draw(self, part: Part) -> list[list[Scored]]:
        """Distinct titles drawn by their probabilities over the catalogue, in the order of the draw."""
        from rayrec.decoding import sample_titles

        seeds = [(part.seed + row) % 2**63 for row in range(len(part.prompts))]
        found = sample_titles(self.model, part.prompts, self.trie, part.n, seeds)
        return [[(self.ids[item], logprob) for item, logprob in sample.titles] for sample in found]

    def _score(self, part: Part) -> list[list[Scored]]:
        """Log-probabilities of the choices of each prompt, in packed passes."""
        from rayrec.decoding import score_answers
        from rayrec.models.logprobs import PackedLM

        choices, normalise = part.choices or [], self.setup.config.evaluate.normalise
        examples = list(zip(part.prompts, choices, strict=True))
        found = score_answers(PackedLM(self.model), examples, self.trie, self.items, normalise)
        return [[(ids, *scored) for ids, scored in zip(*one, strict=True)] for one in zip(choices, found, strict=True)]
