"""What a run will do, known and checked before anything is started or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset

#: Device bytes that one parameter needs in a policy folder, for the disk estimate.
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class PhasePlan:
    """One phase of the run: its name is that of its folder, log lines, metrics and trace events."""

    name: str
    kind: str
    needs: tuple[str, ...]
    """Policies whose weights it reads."""
    rows: int
    steps: int = 0
    epochs: int = 1

    @property
    def makes_policy(self) -> bool:
        """Whether its folder holds a policy."""
        return self.kind in ("pretrain", "sft", "prefer")


def phases(config: Config, evaluated: int) -> list[PhasePlan]:
    """All phases in the order of the sequential run; ``evaluated`` counts the rows of an evaluation."""
    train, model = config.train, config.model
    plan: list[PhasePlan] = []
    start: tuple[str, ...] = ()
    if model.model == "tiny":
        rows = model.pretrain_steps * model.pretrain_batch
        plan.append(PhasePlan("00/pretrain", "pretrain", (), rows, model.pretrain_steps))
        start = ("00/pretrain",)
    plan.append(PhasePlan("00/baseline", "baseline", (), evaluated))
    steps = -(-train.first_rows * train.first_epochs // train.batch)
    plan.append(PhasePlan("00/sft", "sft", start, train.first_rows, steps, train.first_epochs))
    plan.append(PhasePlan("00/evaluate", "evaluate", ("00/sft",), evaluated))
    policy = "00/sft"
    for t in range(1, train.iterations + 1):
        rows = train.rows_per_iteration
        if train.prefer:
            plan.append(PhasePlan(f"{t:02d}/negatives", "negatives", (policy,), rows))
        if train.sft:
            plan.append(PhasePlan(f"{t:02d}/sft", "sft", (policy,), rows, -(-rows // train.batch)))
            policy = f"{t:02d}/sft"
        if train.prefer:
            plan.append(PhasePlan(f"{t:02d}/prefer", "prefer", (policy,), rows, -(-rows // train.prefer_batch)))
            policy = f"{t:02d}/prefer"
        plan.append(PhasePlan(f"{t:02d}/evaluate", "evaluate", (policy,), evaluated))
    return plan


def resolve(config: Config) -> Config:
    """Fill in the settings whose default depends on others.

    Raises:
        ValueError: a setting that is out of range or at odds with another.
    """
    model, train, evaluate, placement = config.model, config.train, config.evaluate, config.placement
    tiny = model.model == "tiny"
    if model.lora_rank is None:
        config = dataclasses.replace(config, model=dataclasses.replace(model, lora_rank=0 if tiny else 16))
    positive = {
        **{name: getattr(train, name) for name in ("first_rows", "first_epochs", "rows_per_iteration", "batch")},
        **{name: getattr(train, name) for name in ("prefer_batch", "micro_batch", "num_negatives", "clip")},
        **{name: getattr(train, name) for name in ("lr", "first_lr", "beta")},
        **{name: getattr(model, name) for name in ("pretrain_steps", "pretrain_batch", "pretrain_lr")},
        **{name: getattr(model, name) for name in ("max_length", "max_new_tokens")},
        **{
            name: getattr(placement, name)
            for name in ("train_workers", "generators", "tensor_parallel", "wait_seconds")
        },
        "part": evaluate.part,
        "beam_width": evaluate.beam_width,
    }
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted a finite number above 0.")
    if train.iterations < 0 or train.warmup_steps < 0 or placement.max_deaths < 0:
        raise ValueError("--iterations, --warmup-steps and --max-deaths must be 0 or more.")
    if not evaluate.decode or not evaluate.top_k or min(evaluate.top_k) < 1:
        raise ValueError(
            f"--decode is {evaluate.decode} and --top-k is {evaluate.top_k}: each wants at least one value."
        )
    for name, batch in (("batch", train.batch), ("prefer-batch", train.prefer_batch)):
        if batch % placement.train_workers:
            raise ValueError(f"--{name} is {batch}: not divisible by --train-workers {placement.train_workers}.")
    if tiny and model.pretrain_batch % placement.train_workers:
        raise ValueError(f"--pretrain-batch is {model.pretrain_batch}: wanted a multiple of --train-workers.")
    if not train.sft and not train.prefer and train.iterations:
        raise ValueError(
            "--no-sft and --no-prefer leave an iteration nothing to do. Give one of them, or --iterations 0."
        )
    if "beams" in evaluate.decode and evaluate.beam_width < max(evaluate.top_k):
        raise ValueError(f"--beam-width {evaluate.beam_width} gives fewer titles than --top-k {max(evaluate.top_k)}.")
    if config.output.keep != "all" and not (config.output.keep.isdigit() and int(config.output.keep) > 0):
        raise ValueError(f"--keep is {config.output.keep!r}: wanted a number of policies above 0, or `all`.")
    if placement.placement == "shared" and not placement.sequential:
        placement = dataclasses.replace(placement, sequential=True)
        config = dataclasses.replace(config, placement=placement)
    return config


def check_data(config: Config, data: Dataset) -> None:
    """Refuse settings that this catalogue cannot serve.

    Raises:
        ValueError: more negatives, a longer list or more history than there are items.
    """
    items = len(data.catalogue)
    longest = max(config.evaluate.top_k)
    if longest > items:
        raise ValueError(f"--top-k {longest} asks for a longer list than the catalogue has items ({items}).")
    free = items - config.data.history - 1
    if config.train.num_negatives > free:
        raise ValueError(
            f"--num-negatives {config.train.num_negatives}: the catalogue has {items} items, so besides a history of "
            f"{config.data.history} and the target only {max(free, 0)} are left. Take fewer negatives or more data."
        )


def check_lengths(config: Config, data: Dataset, template: Any) -> dict[str, int]:
    """Measure prompts and answers in tokens and refuse what the model cannot see.

    Raises:
        ValueError: a prompt with its answer is longer than ``--max-length``, or a title than ``--max-new-tokens``.
    """
    answers = {title: len(template.answer_ids(title)) for title in data.catalogue.titles}
    longest_title = max(answers, key=lambda title: answers[title])
    if answers[longest_title] > config.model.max_new_tokens:
        raise ValueError(
            f"The title {longest_title!r} has {answers[longest_title]} tokens, --max-new-tokens is "
            f"{config.model.max_new_tokens}: it could never be generated. Raise --max-new-tokens."
        )
    prompts = np.array(
        [len(template.prompt_ids(h)) for t in (data.train, data.valid, data.test) for h in t["history"].to_pylist()]
    )
    room = config.model.max_length - config.model.max_new_tokens
    if int(prompts.max()) > room:
        raise ValueError(
            f"{int((prompts > room).sum())} of {len(prompts)} prompts are longer than {room} tokens (the longest has "
            f"{prompts.max()}): --max-length {config.model.max_length} less --max-new-tokens "
            f"{config.model.max_new_tokens}. Shorten --history, or raise --max-length up to the model's context."
        )
    return {"prompt": round(float(prompts.mean())), "answer": round(float(np.mean(list(answers.values()))))}


def describe(
    config: Config, data: Dataset, plan: Iterable[PhasePlan], tokens: dict[str, int], parameters: int, **resources: Any
) -> dict[str, Any]:
    """The plan as a person reads it (``plan.json``, ``--dry-run``)."""
    train, model = config.train, config.model
    trained = parameters if not model.lora_rank else 0
    per_policy = trained * _BYTES[train.dtype]
    rows = []
    for phase in plan:
        length = tokens["prompt"] + tokens["answer"]
        if phase.kind == "prefer":
            length += train.num_negatives * tokens["answer"]
        seen = phase.rows * (phase.epochs if phase.kind != "baseline" else 0)
        batches = phase.steps or -(-phase.rows // config.evaluate.part)
        rows.append({"phase": phase.name, "rows": phase.rows, "batches": batches, "tokens": seen * length})
        rows[-1] |= {"epochs": phase.epochs}
    return {
        "rows": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
        "counts": data.counts,
        "phases": rows,
        "model": {"name": model.model, "parameters": parameters, "lora_rank": model.lora_rank},
        "resources": resources,
        "disk_bytes": per_policy * sum(p.makes_policy for p in plan),
    }


def write_inputs(folder: Path, data: Dataset) -> None:
    """Write the tables that the numbers rest on: catalogue, validation and test examples, rejected rows."""
    import pyarrow.parquet as pq

    tables: dict[str, pa.Table] = {
        "catalogue.parquet": data.catalogue.to_table(),
        "examples/valid.parquet": data.valid,
        "examples/test.parquet": data.test,
    }
    if len(data.rejected):
        tables["rejected.parquet"] = data.rejected
    (folder / "examples").mkdir(exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / name)


def count_parameters(model: str) -> int:
    """Parameters of a Hugging Face model, from its configuration alone (tied ones counted once)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(shape, trust_remote_code=False).parameters())
