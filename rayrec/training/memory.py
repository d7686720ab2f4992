"""The memory of a training worker, by the shape of its model, and how many rows it may compute at once.

Nothing here is measured while a run goes on: settings and rows alone decide the size of a pass, so a phase that is
resumed computes the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayrec.training.optimiser import STATE_BYTES

if TYPE_CHECKING:
    from rayrec.config import Config
    from rayrec.models.shape import Shape

#: Bytes that a pass may take by default (--pass-memory), on CPUs and on GPUs.
ON_CPU, ON_GPU = 1.0, 16.0
GIB = 2**30
#: Bytes of a training worker without a model: Python and its libraries, whose pages in files processes share.
LIBRARIES = 0.8e9
#: Environment of a training worker. By themselves glibc's small free lists keep the edges of large blocks, so that a
#: block does not fit again where an equal one was, and the heap grows to 1.7 times of what is held.
HEAP = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
#: The same on a GPU: nearly every pass has another shape, and segments that grow serve them all.
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
#: Factor by which the heap of a CPU outgrows its contents with this (jobs/bench.py memory).
HEAP_GROWTH = 1.25
#: Weights that DeepSpeed gathers at once under ZeRO-3 (its own limit), and puts into one bucket (worker.py's).
GATHERED, BUCKET = 10**9, 5 * 10**8
#: Bytes of a logit: itself, its log-softmax and its gradient, in float32.
_LOGIT = 12


@dataclass(frozen=True)
class Memory:
    """The memory of one training worker of a run."""

    shape: Shape
    config: Config
    gpu: bool

    @property
    def number(self) -> int:
        """Bytes of a number of the base model."""
        return 2 if self.config.train.dtype == "bfloat16" else 4

    @property
    def trained(self) -> int:
        """Weights that training moves."""
        rank = self.config.model.lora_rank
        return self.shape.adapters * rank if rank else self.shape.parameters

    @property
    def trained_bytes(self) -> int:
        """Bytes of one of them: adapters are float32 over any base."""
        return 4 if self.config.model.lora_rank else self.number

    def token(self) -> float:
        """Bytes that a pass keeps of one token for the backward pass.

        A norm keeps its input in float32, what it gives and, where it is trained, its normed input. A layer keeps two
        norms, queries, keys, values and their mixture, and four numbers of each of the MLP; with activation
        checkpointing its input alone, and one layer at a time all of this and its gradients. The end has one more norm.
        """
        shape, size = self.shape, self.number
        norm = shape.hidden * (4 + size + (0 if self.config.model.lora_rank else size))
        layer = 2 * norm + 4 * size * shape.queries + self._dropped()
        mlp = 4 * size * shape.mlp
        if self.config.train.activation_checkpointing:
            return 2 * (layer + mlp) + size * shape.hidden * shape.layers + norm
        return layer * shape.layers + norm + mlp * (shape.layers - 1)  # of the last MLP the prompt takes no part

    def _dropped(self) -> float:
        """Bytes of the places that the dropout of a layer's adapters takes from one token, 8 for each of them, or on a
        GPU of the mask of all."""
        model = self.config.model
        inputs = 3 * self.shape.hidden + self.shape.queries + 2 * self.shape.hidden + self.shape.mlp
        if not model.lora_rank:
            return 0.0
        return (float(model.lora_dropout > 0) if self.gpu else 8 * model.lora_dropout) * inputs

    def pass_bytes(self, rows: Sequence[tuple[float, float]]) -> float:
        """Bytes of one pass: of activations, mask and logits, with what the heap of a CPU holds between them.

        ``rows`` are pairs of the tokens put in and the tokens predicted. Each row is as long as the longest, but where
        attention takes no mask.
        """
        from rayrec.models.logprobs import MAX_LOGITS

        longest, predicted = max(n for n, _ in rows), sum(m for _, m in rows)
        masked = self.config.train.attention != "varlen"
        tokens = len(rows) * longest if masked else sum(n for n, _ in rows)
        logits = min(predicted * self.shape.words // self.shape.hidden, MAX_LOGITS) * _LOGIT
        mlp = 4 * self.number * self.shape.mlp * predicted  # of the last layer
        # Beside them a layer's widest numbers, their gradients, and what a product is cast to.
        beside = 12 * self.shape.mlp * tokens
        mask = self.number * longest if masked else 0
        counted = tokens * (self.token() + mask) + mlp + max(logits, beside)
        return counted * (1.0 if self.gpu else HEAP_GROWTH)

    @property
    def budget(self) -> float:
        """Bytes that one pass may take."""
        return GIB * (self.config.train.pass_memory or (ON_GPU if self.gpu else ON_CPU))

    def passes(self, rows: Sequence[tuple[float, float]]) -> int:
        """Return into how many passes rows, sorted by length, are cut evenly so that each fits, or has one row.

        ``rows`` are pairs of the tokens put in and the tokens predicted.
        """
        least, budget = -(-len(rows) // self.config.train.micro_batch), self.budget
        for parts in range(least, len(rows)):
            found = [rows[a:b] for a, b in cuts(len(rows), parts)]
            if all(self.pass_bytes(one) <= budget for one in found):
                return parts
        return len(rows)

    def largest(self, longest: float, predicted: float, batch: int) -> tuple[int, float]:
        """Return the most rows of a pass, where all have ``longest`` tokens, and the bytes that it takes."""
        rows = [(longest, predicted)] * (batch // self.config.placement.train_workers)
        most = -(-len(rows) // self.passes(rows))
        return most, self.pass_bytes(rows[:most])

    def held_bytes(self, computing: float) -> float:
        """Bytes of a training worker at its largest: in a pass that takes ``computing``, or as the optimiser steps.

        Pass: weights, gradients, in float32 from ZeRO-2 on, and Adam's moments; from ZeRO-1 on and for bfloat16 a
        float32 copy of the weights, with ZeRO-0 and bfloat16 also of the gradients; from ZeRO-1 on also a bucket of
        gradients, for bfloat16 with a float32 copy. Step, from ZeRO-1 on: weights, moments, and float32 copies of
        weights and gradients with two temporary ones, for all weights are stepped through at once. ZeRO-3 keeps its
        bucket, and gathers weights. On a CPU also the adapters of the base; and as a policy is written, a copy of its
        weights, but nothing of the optimiser's work.
        """
        config, shape = self.config, self.shape
        workers, stage, size = config.placement.train_workers, config.train.zero_stage or 0, self.trained_bytes
        cut = [workers if stage >= one else 1 for one in (1, 2, 3)]
        adapters = self.trained * size if config.model.lora_rank else 0
        weights = (shape.parameters * self.number + adapters) / cut[2]
        weights += min(shape.parameters, GATHERED) * self.number if stage == 3 else 0
        weights += 0 if self.gpu else adapters
        gradient = 4 if stage >= 2 else size  # there they are added in float32
        bucket = min(self.trained, BUCKET) * (size if size == 4 else size + 4) if stage else 0  # and over ranks too
        copies = 1 if stage else 0 if size == 4 else 2  # in float32, of weights and of gradients
        state = self.trained * (STATE_BYTES + 4 * copies) / cut[0]
        passing = self.trained * gradient / cut[1] + bucket + computing
        step = self.trained * 12 / cut[0] + (bucket if stage == 3 else 0) if stage else 0
        saving = 0 if self.gpu else shape.parameters * self.number
        return weights + state + max(passing, step, saving)


def cuts(rows: int, parts: int) -> list[tuple[int, int]]:
    """Return the first row and the end of each of so many even parts."""
    ends = [round(i * rows / parts) for i in range(parts + 1)]
    return [*itertools.pairwise(ends)]
