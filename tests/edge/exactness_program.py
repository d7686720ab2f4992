"""A packed pass of every architecture under every ZeRO stage, against plain passes; called by worker_program.py.

The examples are dealt out to the workers; what all of them found lies in
``root/exact{world}.json``: by case, how far the log-probabilities and the gradients are from those of one sequence per
answer in one process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from rayrec.training.board import Phase
from rayrec.training.worker import Worker
from tests.edge.worker_program import settings

STAGES = (1, 2, 3)


class OneModel(Worker):
    """A worker of a given model, for its engine alone."""

    def __init__(self, lm: Any, stage: int, world: int):
        from rayrec.models.logprobs import PackedLM

        config = settings(stage=stage)
        self.config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=16))
        self.world, self.lm, self.hidden = world, PackedLM(lm), 32


def measure(root: Path, rank: int, world: int) -> None:
    """Measure every case."""
    import torch
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from rayrec.models.logprobs import pack
    from tests.models.test_logprobs import CONFIGS, batch, gradients, model, plain

    rows, found = batch(), {}
    own = list(range(rank, len(rows), world))
    phase = Phase("exact", "prefer", "", "", "", 1, len(rows), 1e-3, 0, 0.0, 1, "", "k")
    for name, lora, stage in itertools.product(CONFIGS, (False, True), STAGES):
        lm = model(name, lora)
        wanted_BA = plain(lm, rows)
        wanted = gradients(lm, wanted_BA)
        lm.zero_grad()
        weight_BA = torch.linspace(-1, 1, wanted_BA.numel()).view_as(wanted_BA)[own]
        engine = OneModel(lm, stage, world)._engine(phase)
        found_BA = engine(pack([rows[i] for i in own], 0))
        A = found_BA.shape[1]  # this worker's examples may have fewer answers than the longest of all
        assert not wanted_BA[own][:, A:].any()
        engine.backward((weight_BA[:, :A] * found_BA).sum() * world)  # DeepSpeed takes the mean over the workers
        error = ((found_BA - wanted_BA[own][:, :A]) / wanted_BA[own][:, :A].clamp(max=-1e-9)).abs().max()
        errors: list[Any] = [None] * world
        dist.all_gather_object(errors, float(error))
        gradient = {key: safe_get_full_grad(p) for key, p in lm.named_parameters() if p.requires_grad}
        assert gradient.keys() == wanted.keys() and None not in gradient.values()
        apart = [float((gradient[k] - v).abs().max() / v.abs().max().clamp(min=1e-6)) for k, v in wanted.items()]
        found[f"{name}-{stage}{'-lora' if lora else ''}"] = {"logprobs": max(errors), "gradients": max(apart)}
        engine.destroy()
    if rank == 0:
        (root / f"exact{world}.json").write_text(json.dumps(found))
