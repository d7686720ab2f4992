"""One training process of ``world``: SFT and preference phases under every ZeRO stage, started by test_worker.py.

Some of them are cut off after their last step but one and go on from its checkpoint, with another number of processes
too; one is cut off in the reference's pass and begins again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import Config
from rayrec.methods import parse
from rayrec.objectives.settings import make_objective
from rayrec.prompts import Items, make_template
from rayrec.runs.storage import Storage
from rayrec.training.batches import Tokenise
from rayrec.training.board import Phase

#: Kind of phase and objective, by the name of the case.
CASES: dict[str, tuple[Literal["sft", "prefer"], str]]
CASES = {"sft": ("sft", "dpo"), "sdpo": ("prefer", "sdpo"), "kto": ("prefer", "kto")}
#: The same, of policies that read item vectors; text alone is shown in the first step, and in the second.
ITEMS: dict[str, tuple[Literal["sft", "prefer"], str]] = {"llara": ("sft", "dpo")}
#: A loss that divides by ratings.
BROKEN: dict[str, tuple[Literal["sft", "prefer"], str]] = {"recpo": ("prefer", "recpo")}
STEPS, BATCH, LR, WARMUP = 3, 4, 3e-3, 1
#: Rows of each step that are no padding.
REAL = [4, 4, 3]


class Case(NamedTuple):
    """A phase of CASES or ITEMS and how its state is held."""

    name: str
    stage: int
    lora: int = 0
    dtype: str = "float32"
    timed: bool = False
    """Its checkpoint comes by the clock, after the first step, and not by the number of steps."""
    early: bool = False
    """It is cut off in the reference's pass, and not in training."""
    attention: str = "sdpa"

    @property
    def folder(self) -> str:
        marks = ["lora"] * bool(self.lora) + ["bf16"] * (self.dtype != "float32") + ["timed"] * self.timed
        marks += ["early"] * self.early + ["runs"] * (self.attention == "varlen")
        return "-".join([self.name, str(self.stage), *marks])

    @property
    def whole(self) -> Case:
        """The same without a break: when checkpoints are made changes nothing."""
        return self._replace(timed=False, early=False)

    @property
    def kind(self) -> Literal["sft", "prefer"]:
        return (CASES | ITEMS)[self.name][0]


#: What is cut off.
CUT_OFF = [
    Case("sft", 0),
    Case("sft", 1),
    Case("sdpo", 2),
    Case("sdpo", 3),
    Case("sdpo", 3, early=True),
    Case("kto", 1, timed=True),
    Case("sft", 1, lora=4),
    Case("sdpo", 0, lora=4, dtype="bfloat16"),
    Case("sdpo", 2, lora=4, dtype="bfloat16"),
    Case("sft", 0, dtype="bfloat16"),
    Case("sft", 2, dtype="bfloat16"),
    Case("sft", 3, dtype="bfloat16"),
    Case("llara", 1, lora=4),
]
#: What is run to its end without a break.
WHOLE = [
    *(Case(name, stage) for name in CASES for stage in (1, 2, 3)),
    *(Case("sdpo", stage, lora=4) for stage in (0, 1, 2, 3)),
    *(Case("sdpo", stage, lora=4, dtype="bfloat16") for stage in (0, 2)),
    Case("sft", 0),
    Case("sft", 1, lora=4),
    *(Case(name, stage, attention="varlen") for name, stage in (("sft", 1), ("sdpo", 3), ("kto", 2))),
    *(Case("sft", stage, dtype="bfloat16") for stage in (0, 2, 3)),
    *(Case(name, stage, lora=4) for name in ITEMS for stage in (1, 2, 3)),
]


def settings(
    objective: str = "dpo",
    stage: int = 1,
    lora: int = 0,
    dtype: str = "float32",
    timed: bool = False,
    attention: str = "sdpa",
) -> Config:
    """A resolved configuration for direct use."""
    from rayrec.driver.checks import resolve

    args = ["--objective", objective, "--zero-stage", str(stage), "--micro-batch", "2", "--lora-rank", str(lora)]
    when = ["--checkpoint-seconds", "1e-9", "--checkpoint-steps", "0"] if timed else ["--checkpoint-seconds", "0"]
    args += ["--attention", attention]
    config = resolve(parse("", [*args, "--dtype", dtype, "--checkpoint-steps", str(STEPS - 1), *when]))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, max_new_tokens=48))


class CutOff(Exception):
    """The end of a process in the middle of a phase."""


def cut_off(early: bool) -> Callable[..., None]:
    """A report that raises at the last step, or at the last of the reference, before anything is saved of it."""

    def report(**beat: object) -> None:
        if beat.get("reference" if early else "step") == STEPS:
            raise CutOff

    return report


def check_resumed(case: Case, facts: dict[str, Any]) -> None:
    """A phase goes on after its last checkpoint, and passes only the rows that are left."""
    at = facts.get("resumed_at", 0)
    assert at in ((0,) if case.early else range(1, STEPS) if case.timed else (STEPS - 1,)), (case, facts)
    # KTO's z takes a pass of its own, and so does a reference.
    seen = sum(REAL[at:]) * (1 + (case.name == "kto") + (case.kind == "prefer"))
    assert facts["examples"] == seen, (case, facts)


def shard(table: pa.Table, rank: int, world: int, begun: int) -> Iterator[pa.Table]:
    """A worker's rows of every step, as Ray Data gives them."""
    for step in range(begun, STEPS):
        yield table.slice(step * BATCH + rank * (BATCH // world), BATCH // world)


def with_ratings(table: pa.Table) -> pa.Table:
    """The rows with ratings, of which one in the first step is no number."""
    scores = [[4.0, *[2.0] * len(rejected)] for rejected in table["rejected"].to_pylist()]
    scores[BATCH - 1][0] = float("nan")
    column = table.column_names.index("scores")
    return table.set_column(column, "scores", pa.array(scores, table.schema.field("scores").type))


def main(root: Path, rank: int, world: int) -> None:
    """Run every case and write its policy to ``root/out{world}/{case}-{stage}``, and the other programs, once.

    ``root/cut{world}`` has the cases that were cut off, and ``root/moved{world}`` those which another number has begun.
    """
    import torch

    torch.set_num_threads(1)
    from rayrec.models.folder import vocabulary
    from rayrec.models.item_vectors import maps
    from rayrec.models.policy import load_tokenizer
    from rayrec.training import checkpoint
    from rayrec.training.phases import Supervised
    from rayrec.training.worker import Worker
    from tests.edge import exactness_program, phases_program

    gc.freeze()  # what was imported stays; without it every phase walks through all of it

    class WatchedSteps(Supervised):
        """Checks that a step which shows text alone changes nothing of the vectors' network."""

        @contextlib.contextmanager
        def _frozen(self, number: int) -> Iterator[None]:
            with super()._frozen(number):
                before = self._network()
                yield
            after = self._network()
            same = [torch.equal(after[name], tensor) for name, tensor in before.items()]
            assert same == [not self._shows_items(number)] * len(same), (self.phase.name, number, same)

        def _network(self) -> dict[str, Any]:
            """Its weights, and their moments where there are some."""
            found = [(name, p) for name, p in self.engine.module.named_parameters() if maps(name)]
            if getattr(self.engine.optimizer, "optimizer", self.engine.optimizer).state:
                return {name: tensor.clone() for name, tensor in checkpoint._state(self.engine, found)}
            with self.process.whole():
                return {name: parameter.detach().clone() for name, parameter in found}

    class Watched(Worker):
        kinds = Worker.kinds | {"sft": WatchedSteps}

    base = str(root / "base")
    table = pq.read_table(root / "rows.parquet")
    items = Items(sorted({title for history in table["history"].to_pylist() for title in history}), vocabulary(base))
    template, shown = (make_template("compact", load_tokenizer(base), items=one) for one in (None, items))

    def train(case: Case, out: Path, report: Any = lambda **facts: None, table: pa.Table = table) -> dict:
        kind, objective = (CASES | ITEMS | BROKEN)[case.name]
        items = str(root / "oracle") if case.name in ITEMS else ""
        setup = {
            "config": settings(objective, *case[1:5], case.attention),
            "base": base,
            "gpu": False,
            "storage": Storage(""),
        }
        worker = Watched(setup | {"objective": make_objective(setup["config"].loss)}, rank, world)
        worker.report = report
        # Without it where stages are compared: ZeRO-3 draws it by peft's layers, the others by our own.
        dropout = 0.1 if case.lora and case.name in CASES and kind == "sft" else 0.0
        phase = Phase(case.name, kind, "", base, str(out / "policy"), STEPS, BATCH, LR, WARMUP, dropout, 1, items, "k")
        tokens = Tokenise(kind, shown if items else template)(table)
        return worker.run(phase, partial(shard, tokens, rank, world))

    if not (root / f"out{world}").exists():
        for case in WHOLE:
            beats: list[dict[str, Any]] = []
            done = train(case, root / f"out{world}" / case.folder, lambda beats=beats, **facts: beats.append(facts))
            assert all(step["grad_norm"] > 0 for step in done["steps"]), (case, done)
            # A heartbeat for each of a step's micro-batches of two rows, and one behind it.
            micro = BATCH // world // 2
            assert len(beats) >= 1 + STEPS * (micro + 1), (case, beats)
        for case in CUT_OFF:
            folder = root / f"cut{world}" / case.folder
            folder.mkdir(parents=True, exist_ok=True)  # before the first checkpoint there is nothing else
            with contextlib.suppress(CutOff):
                train(case, folder, cut_off(case.early))
                raise AssertionError("a phase that was cut off has ended")
            if rank == 0:
                shutil.copytree(folder, root / f"moved{3 - world}" / case.folder)
            check_resumed(case, train(case, folder)["facts"])
    rated = with_ratings(table)
    broken = rated["example_id"][BATCH - 1].as_py()  # of the last rank
    try:
        train(Case("recpo", 1), root / "broken", table=rated)
        raise AssertionError("a loss that is no number changed the policy")
    except FloatingPointError as error:
        assert "step 1 has loss nan" in str(error) and f"Its examples: ['{broken}']." in str(error), error
    if (root / f"moved{world}").exists():
        for case in CUT_OFF:
            check_resumed(case, train(case, root / f"moved{world}" / case.folder)["facts"])
    if not (root / f"exact{world}.json").exists():
        if world == 1:
            phases_program.hold(root)
        torch.distributed.barrier()
        exactness_program.measure(root, rank, world)
    leave()


def leave() -> None:
    """End this process as Ray ends a worker: without the interpreter's finalisation, in which gloo's threads abort."""
    import torch

    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
