"""The self-play loop (SPRec section 4.3), and the only list of a run's phases."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from rayrec.config import Config
from rayrec.generation.lane import GenerateLane
from rayrec.training.lane import TrainLane


def self_play(
    config: Config, trainers: TrainLane, generators: GenerateLane, draw: Callable[[int], pa.Table], first_rows: pa.Table
) -> None:
    """Submit every phase of a run.

    Each call returns a future at once, and its phase starts as soon as the phases whose futures it takes are finished.
    Negatives and the SFT step both read π_θt, and an evaluation reads π_θ(t+1), so generation runs beside training, and
    the numbers are those of the sequential order. With lanes that only list their phases the loop gives the plan.
    """
    train = config.train
    start = trainers.pretrain() if config.pretrains else trainers.base
    generators.baseline()
    oracle = trainers.oracle()  # a SASRec, trained beside the first SFT; None if no phase reads it
    policy = trainers.sft(start, first_rows, 0, oracle) if len(first_rows) else start  # BIGRec, or the model as it is
    generators.evaluate(policy, oracle, 0)
    for t in range(1, train.iterations + 1):
        rows = draw(t)
        current, tuned = policy, policy
        negatives = generators.negatives(current, rows, t) if train.prefer else None  # runs beside the next line
        if train.sft:
            tuned = policy = trainers.sft(current, rows, t)
        if negatives is not None:
            policy = trainers.prefer(tuned, rows, negatives, oracle, t)  # reference = tuned, frozen
        if t % config.evaluate.every == 0 or t == train.iterations:
            generators.evaluate(policy, oracle, t)  # runs beside iteration t + 1
