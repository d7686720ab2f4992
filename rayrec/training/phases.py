"""The losses of the phases: supervised steps on targets, and preference steps on targets and negatives.

Shapes: B examples of a micro-batch, A answers of an example (the chosen one first), S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rayrec.data import schema
from rayrec.seeds import seed_of
from rayrec.training import checkpoint
from rayrec.training.steps import Steps
from rayrec.training.supervised import CatalogueSteps


class Supervised(Steps):
    """Weighted log-probabilities over the completion tokens of the global batch; the prompt is not trained on.

    With ``--sft-loss`` another loss of the completion tokens.
    """

    def train(self, done: list[dict]) -> list[dict]:
        def loss(rows: list[dict]) -> tuple[Any, dict]:
            return -self.engine(self._pack(rows))[:, 0], {}

        def count(row: dict) -> float:
            return len(row["answers"][0]) if row["weight"] else 0

        steps, around = self._rows(len(done)), dict[str, Any]()
        if self.phase.items:
            steps, around = self._curriculum(len(done)), {"around": self._frozen}
        catalogue = self.process.catalogue
        if catalogue is None or self.phase.kind == "pretrain":
            return self._steps(done, steps, loss, count, **around)
        by = CatalogueSteps(catalogue, self.process.device, done)

        def over_titles(rows: list[dict]) -> tuple[Any, dict]:
            return by.losses(self.engine, self._packed(rows), rows)

        return self._steps(done, by.numbered(steps), over_titles, by.count, after=by.after, **around)

    def _shows_items(self, number: int) -> bool:
        """Whether a step shows item vectors, with a probability that grows with the step, or text alone (LLaRA)."""
        draw = seed_of(self.config.data.seed, self.phase.name, "curriculum", number) / 2**63
        return draw < (number + 1) / self.phase.steps

    def _curriculum(self, begun: int) -> Iterator[list[dict]]:
        """Yield the rows of each step with or without item vectors in their prompts."""
        from rayrec.models.item_vectors import attached

        items: Any = attached(self.process.lm.model)
        for number, rows in enumerate(self._rows(begun), begun):
            shown = self._shows_items(number)
            yield rows if shown else [{**row, "prompt": items.hide(row["prompt"])} for row in rows]

    def _frozen(self, number: int) -> AbstractContextManager:
        """Keep the vectors' network as it is in a text-only step, where Adam's momentum would move it."""
        from rayrec.models.item_vectors import maps

        if self._shows_items(number):
            return nullcontext()
        return checkpoint.frozen(self.engine, maps, self.process.whole)


class Preference(Steps):
    """Preference steps; their reference is the policy that the phase starts from (SPRec section 4.3)."""

    def train(self, done: list[dict]) -> list[dict]:
        from rayrec.models.logprobs import carried
        from rayrec.objectives import chosen_nll

        objective, begun, first = self.process.objective, len(done), self.slots.start
        anchor = self.config.loss.anchor
        further = sorted(objective.reads - set(schema.PREFERENCES.names))
        baseline: float | None = None
        reference_SBA = self._reference(begun) if objective.needs_reference else None

        def reference(rows: list[dict]) -> Any:
            """log π_ref of the rows' answers and then of their neighbours, [B, A], zeros behind them."""
            if reference_SBA is not None:
                return reference_SBA[[row["step"] - begun for row in rows], [row["slot"] - first for row in rows]]

        def before(rows: list[dict]) -> None:
            nonlocal baseline
            if "neighbour" in objective.reads:
                baseline = self._baseline(rows, reference)

        def loss(rows: list[dict]) -> tuple[Any, dict]:
            logprob_BA = self.engine(self._pack(rows))
            ref_BA = reference(rows)
            if ref_BA is not None:
                ref_BA = carried(ref_BA[:, : logprob_BA.shape[1]], logprob_BA.device)
            made = objective.shape.of(logprob_BA, rows, ref_BA, baseline, further)
            loss_B = objective(made) + anchor * chosen_nll(made) if anchor else objective(made)
            return loss_B, made.logged(objective.scale)

        return self._steps(done, self._rows(begun), loss, lambda row: float(row["weight"] > 0), before)

    def _rows(self, begun: int) -> Iterator[list[dict]]:
        """Yield the rows of each step with the answers that pass the model, as the objective's shape has them."""
        shaped = self.process.objective.shape.row
        return ([*map(shaped, rows)] for rows in super()._rows(begun))

    def _reference(self, begun: int) -> Any:
        """log π_ref of every answer and then of the neighbour, of this worker's rows from step ``begun`` on: [S, B, A].

        One pass without gradients, before training, so no second model is held.
        """
        import torch

        made = list[tuple[int, list[int], Any]]()
        self.engine.eval()
        with torch.no_grad():
            for number, rows in enumerate(self._rows(begun)):
                for micro in self._micro(rows):
                    extra = [[row["neighbour"]] if row["neighbour"] else [] for row in micro]
                    places = [row["slot"] - self.slots.start for row in micro]
                    made.append((number, places, self.engine(self._pack(micro, extra))))
                self._tell(step=begun, reference=begun + number + 1)
        widest = max((logprob_BA.shape[1] for *_, logprob_BA in made), default=0)
        table_SBA = torch.zeros(self.phase.steps - begun, len(self.slots), widest)
        for number, places, logprob_BA in made:  # read at the end, so that a GPU never waits
            table_SBA[number, places, : logprob_BA.shape[1]] = logprob_BA.cpu()
        return table_SBA

    def _baseline(self, rows: list[dict], reference: Callable[[list[dict]], Any]) -> float:
        """The objective's z of a step, over the global batch, so that the number of workers does not matter."""
        import torch
        import torch.distributed as dist

        self.engine.eval()
        sums, made = torch.zeros(2, dtype=torch.float64), list[tuple[list[dict], Any]]()
        with torch.no_grad():
            for micro in self._micro(rows):
                # A row without a neighbour goes along: with ZeRO-3 all workers pass the model equally often.
                packed = self._pack([{**row, "answers": [row["neighbour"] or row["answers"][0]]} for row in micro])
                made.append((micro, self.engine(packed)[:, 0]))
        for micro, logprob_B in made:
            for row, logprob, ref_A in zip(micro, logprob_B.cpu(), reference(micro), strict=True):
                if row["neighbour"]:
                    sums += torch.tensor([logprob - ref_A[len(row["answers"])], 1.0])
        dist.all_reduce(sums)
        return self.process.objective.reference_point(*sums.tolist())
