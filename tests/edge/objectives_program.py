"""One training process of ``world``: a phase with each objective and each supervised loss over the catalogue.

Started by test_objectives.py. Objectives of groups learn from other rows than those of pairs.

Policies lie in ``root/NAME/policy``, and what the steps recorded in ``root/steps.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import Config
from rayrec.data.catalogue import Catalogue
from rayrec.methods import parse
from rayrec.objectives import Objective, Pairs
from rayrec.objectives.pairs import log_ratios, mean_k
from rayrec.objectives.settings import make_objective
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage
from rayrec.training.batches import Tokenise
from rayrec.training.board import Phase
from rayrec.training.supervised import make
from tests.edge.worker_program import leave

STEPS, BATCH, LR = 3, 8, 3e-3
#: Settings of the objectives, none of them a default, so that a setting that is lost on the way is seen.
SETTINGS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.3},
    "sdpo": {"beta": 0.7},
    "dmpo": {"beta": 0.4},
    "simpo": {"beta": 1.5, "gamma": 0.8},
    "recpo": {"beta": 0.6, "lam": 0.9},
    "rosepo": {"beta": 0.2},
    "ipo": {"tau": 0.3},
    "cpo": {"beta": 0.25, "alpha": 0.5},
    "kto": {"beta": 0.35, "lambda_d": 1.2, "lambda_u": 0.7},
    "odpo": {"beta": 0.45, "alpha": 0.6},
    "orpo": {"lam": 0.35},
    "dynamicpo": {"beta": 0.8, "shift": 1.5},
    "anchored": {"beta": 0.5, "anchor": 0.8},
    "rere": {},
    "gspo": {"clip_low": 0.004, "clip_high": 0.003},
}
#: Those of groups, whose rows are in ``root/groups.parquet``, with what they want of a run.
GROUPS = ("rere", "gspo")
ROLLOUT = ["--negatives", "group_beams", "--num-negatives", "4", "--no-sft", "--rows-per-iteration", "32"]
#: The same of the supervised losses that read the catalogue; `ats` is MSL with a temperature that adapts itself.
SUPERVISED: dict[str, tuple[str, dict[str, float]]] = {
    "msl": ("msl", {"temperature": 1.7}),
    "ats": ("msl", {"eta": 0.8}),
    "bear": ("bear", {"temperature": 1.2, "beams": 2, "lam": 0.6, "xi": 1.4}),
    "flower": ("flower", {"theta": 0.7}),
}
TITLES = [f"The {word} of {name}" for word in ("Night", "Return", "Last Day") for name in ("Ann", "Bob", "Eve Smith")]
#: Titles that no row has, so that there is a choice at the first token too.
OTHERS = ["Amber Road", "Blue River", "Cold Days", "Deep Water", "Every Night", "Far Away", "Golden"]


@dataclass(frozen=True)
class Outside(Objective):
    """A loss that OBJECTIVES does not have, without β or τ, which reads a column of its own: the titles' letters."""

    reads = frozenset({"letters"})

    def __call__(self, pairs: Pairs) -> Any:
        delta_B, delta_BK = log_ratios(pairs)
        letters_BK = pairs.columns_BA["letters"][:, 1:]
        return mean_k(letters_BK * (1 - delta_B[:, None] + delta_BK).relu(), pairs.mask_BK)


def letters(row: dict) -> list[float]:
    """Letters of the chosen and then of the rejected titles, in tens."""
    return [len(title) / 10 for title in (row["chosen"], *row["rejected"])]


def settings(name: str) -> Config:
    """A resolved configuration for direct use; four rows of a step for each of two workers, in two micro-batches."""
    from rayrec.driver.checks import resolve

    args = ["--micro-batch", "2", "--lora-rank", "0"]
    if name in SUPERVISED:
        loss, given = SUPERVISED[name]
        args += ["--sft-loss", loss, *(f"--sft-{one}={value}" for one, value in given.items())]
    else:
        args += ["--objective", "sdpo" if name == "anchored" else name]
        args += [f"--{one.replace('_', '-')}={value}" for one, value in SETTINGS[name].items()]
        args += ROLLOUT if name in GROUPS else []
    return resolve(parse("", [*args, "--dtype", "float32", "--checkpoint-steps", "0", "--checkpoint-seconds", "0"]))


def catalogue() -> Catalogue:
    """The titles, each chosen another number of times, and the last never."""
    titles = [*TITLES, *OTHERS]
    return Catalogue.from_items(titles, [()] * len(titles)).with_training(np.arange(len(titles))[::-1].copy(), [])


def shard(table: pa.Table, rank: int, world: int, begun: int) -> Iterator[pa.Table]:
    """A worker's rows of every step, as Ray Data gives them."""
    for step in range(begun, STEPS):
        yield table.slice(step * BATCH + rank * (BATCH // world), BATCH // world)


def main(root: Path, rank: int, world: int) -> None:
    """Train with every objective, from the same weights and on the same rows."""
    import torch

    torch.set_num_threads(1)
    from rayrec.models.policy import load_tokenizer
    from rayrec.training.worker import Worker

    base, steps = str(root / "base"), {}
    template = make_template("compact", load_tokenizer(base))
    table = pq.read_table(root / "rows.parquet")
    table = table.append_column("letters", pa.array(map(letters, table.to_pylist()), pa.list_(pa.float32())))
    doubted = Tokenise("prefer", template)(table)
    place = doubted.column_names.index("smoothing")
    sure = doubted.set_column(place, "smoothing", pa.nulls(len(doubted), doubted["smoothing"].type))
    groups = Tokenise("prefer", template)(pq.read_table(root / "groups.parquet"))
    for name in [*SETTINGS, "outside", *SUPERVISED]:
        config = settings("dpo" if name == "outside" else name)
        setup: dict[str, Any] = {"config": config, "base": base, "gpu": False, "storage": Storage("")}
        setup["objective"] = Outside() if name == "outside" else make_objective(config.loss)
        setup["catalogue"] = make(config.supervised, catalogue(), template)
        worker = Worker(setup, rank, world)
        worker.report = lambda **facts: None
        phase = Phase(
            name,
            "sft" if name in SUPERVISED else "prefer",
            "",
            base,
            str(root / name / "policy"),
            STEPS,
            BATCH,
            LR,
            0,
            0.0,
            1,
            key="k",
            schedule="constant",
        )
        tokens = groups if name in GROUPS else doubted if name == "rosepo" else sure
        steps[name] = worker.run(phase, partial(shard, tokens, rank, world))["steps"]
    if rank == 0:
        (root / "steps.json").write_text(json.dumps(steps))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
