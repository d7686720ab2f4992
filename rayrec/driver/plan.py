"""The plan of a run: its phases, and their rows, tokens and disk, before anything is started or written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.mapped import SLICE
from rayrec.driver.checks import Lengths
from rayrec.generation.lane import GenerateLane
from rayrec.grounding import TitleEmbedder
from rayrec.lanes import BASE, Planned, Policy, Shared
from rayrec.negatives import NEGATIVES, mixture
from rayrec.report.terminal import size
from rayrec.selfplay import self_play
from rayrec.training.lane import TrainLane
from rayrec.training.memory import LIBRARIES, Memory

if TYPE_CHECKING:
    from rayrec.models.shape import Shape

#: Bytes that one parameter needs in a policy folder, for the disk estimate.
_BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes of a generator without a model: Python and its libraries.
_GENERATOR = 1.5e9
#: Modes in which a generator computes many titles of a prompt at once.
_SEARCHES = {"beams", "free_beams", "d3", "score", "gumbel"}
#: Limits of this machine's memory for a container, where there is one.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def phases(config: Config, data: Dataset) -> list[Planned]:
    """All phases in the order of the sequential run: the loop, with lanes that only list them."""
    shared = Shared(config, data)
    trainers = TrainLane(shared, _nothing, Policy(BASE, Path()))
    generators = GenerateLane(shared, _nothing, TitleEmbedder([]))
    counts: Any = range(config.train.rows_per_iteration), range(config.train.first_rows)
    self_play(config, trainers, generators, lambda t: counts[0], counts[1])
    return shared.planned


def _nothing() -> None:
    """Stand for the actors, which a plan never asks for."""


def describe(
    config: Config, data: Dataset, plan: Iterable[Planned], tokens: Lengths, shape: Shape, **resources: Any
) -> dict[str, Any]:
    """The plan as a person reads it (``plan.json``, ``--dry-run``)."""
    train, model = config.train, config.model
    rank = model.lora_rank or 0
    whole = not rank or resources["device"] == "cpu"  # there a policy has its merged weights beside its adapters
    per_policy = 4 * rank * shape.adapters + whole * shape.parameters * _BYTES[train.precision]
    memory = _memory(config, tokens, shape, resources["device"])
    rows = []
    for phase in plan:
        length = tokens.prompt + phase.answers * tokens.answer if phase.answers else 0
        tokens_seen = phase.rows * phase.epochs * length
        row = {"phase": phase.name, "rows": phase.rows, "batches": phase.batches}
        rows.append(row | {"tokens": tokens_seen, "epochs": phase.epochs})
    return {
        "rows": {"train": len(data.train), **{split: len(rows) for split, rows in data.evaluated.items()}},
        "counts": {**data.counts, "titles_changed_by_tokenizer": tokens.changed_titles},
        "phases": rows,
        "model": {"name": model.model, "parameters": shape.parameters, "lora_rank": model.lora_rank},
        "resources": resources,
        "disk_bytes": per_policy * sum(p.makes_policy for p in plan),
        "memory": memory,
        "lines": {**data.told, "memory": _memory_line(memory)},
    }


def disk_here(phases: Iterable[Planned], whole: float, keep: str, runs: Path) -> dict[str, str]:
    """The plan's line about the disk of ``runs``, where that has less room than the policies which a run keeps at once:
    the last and the best ones, and two that are being made. ``whole``: bytes of all policies."""
    policies = sum(phase.makes_policy for phase in phases)
    held = policies if keep == "all" else min(policies, int(keep) + 3)
    needed = whole * held / max(1, policies)
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free > needed:
        return {}
    text = f"{size(needed)}, and {there} has {size(free)} free: the run will stop there. Name another folder with "
    return {"disk": text + ("--runs, or take --keep 1" if keep != "1" else "--runs")}


def _memory(config: Config, tokens: Lengths, shape: Shape, device: str) -> dict[str, Any]:
    """Bytes of each training worker and each generator, of this machine, and the rows of a worker's largest pass."""
    gpu = device != "cpu"
    of, kinds = Memory(shape, config, gpu), ["prefer"] * (config.train.prefer and config.train.iterations > 0)
    found: dict[str, Any] = {"trainer": 0.0}
    for kind in ("sft", *kinds):
        answers = 1 + config.train.num_negatives * (kind == "prefer")
        batch = config.train.prefer_batch if kind == "prefer" else config.train.batch
        length, predicted = tokens.prompt + answers * (tokens.answer - 1), answers * tokens.answer
        rows, computing = of.largest(length, predicted, batch)
        needs = of.held_bytes(computing) + (0 if gpu else LIBRARIES)
        if needs > found["trainer"]:
            found = {"trainer": needs, "rows": rows, "tokens": rows * length}
    generator = generator_bytes(config, tokens, shape, gpu) + (0 if gpu else _GENERATOR)
    return found | {"generator": generator, "machine": None if gpu else _machine()}


def generator_bytes(config: Config, tokens: Lengths, shape: Shape, gpu: bool) -> float:
    """Bytes that the weights and key-value caches of a generator take: of vLLM, and on CPUs of rayrec's own search.

    On a GPU of one card of it, where vLLM's cache takes what is left.
    """
    number, evaluate, width = _BYTES[config.train.precision], config.evaluate, _searched(config)
    weights = shape.parameters * number
    if gpu:
        rows, answers = evaluate.part, max(width, 1)
        cache = rows * (tokens.prompt + answers * tokens.longest) * shape.kv * number
        return (weights + cache) / config.placement.tensor_parallel
    cache = min(2**30, 256 * config.model.max_length * shape.kv * number)
    if not width:
        return weights + cache
    from rayrec.decoding.packed import together
    from rayrec.decoding.tails import TAIL_LOGITS

    # Keys and values of the prompts and of all tokens read; logits of a pass, in float32, and what normalises them.
    columns = together("cpu") * (tokens.prompt + width * tokens.longest)
    logits = min(together("cpu") * width * tokens.longest * shape.words // shape.hidden, TAIL_LOGITS)
    return weights + cache + weights + columns * shape.kv * number + 12 * logits


def _searched(config: Config) -> int:
    """Titles that the widest search of a prompt goes through, in evaluations and for negatives; 0 without a search."""
    train, k = config.train, config.train.num_negatives
    samplers = [NEGATIVES[name] for name in mixture.parse(train.negatives)]
    widths = [config.evaluate.beam_width] * bool(_SEARCHES & {*config.evaluate.decode})
    widths += [one.answers(k) for one in samplers if one.decode in _SEARCHES and train.iterations]
    return max([*widths, k * bool(train.score_negatives)])


def check_embedder(path: str) -> None:
    """Refuse a language model that would not fit this machine as an embedder: it is read in float32, on the CPU.

    Raises:
        ValueError: with its bytes, those of the machine, and what to take.
    """
    from rayrec.models.shape import Shape

    needs, there = 4 * Shape.of(path).parameters, _machine()
    if 2 * needs > there:
        raise ValueError(
            f"--embedder lm: {path} takes {size(needs)} in float32 on this machine's CPU, which has {size(there)}, "
            "wanted at most half of that. Take --embedder title, --embedder sentence with "
            "--embedder-path FOLDER, or name a smaller language model with --embedder-path."
        )


def _machine() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [Path(path).read_text().strip() for path in _LIMITS if Path(path).exists()]
    return min(whole, *(int(text) for text in texts if text.isdigit())) if texts else whole


def _memory_line(memory: dict[str, Any]) -> str:
    """The plan's line about memory."""
    there = "" if memory["machine"] is None else f", of this machine's {size(memory['machine'])}"
    passes = f"passes of at most {memory['rows']} rows, {memory['tokens']:,} tokens"
    trainer, generator = size(memory["trainer"]), size(memory["generator"])
    return f"each training worker {trainer} ({passes}), each generator {generator}{there}"


def write_inputs(folder: Path, data: Dataset) -> None:
    """Write the tables that the numbers rest on: catalogue, validation and test examples, rejected rows."""
    import pyarrow.parquet as pq

    tables: dict[str, pa.Table] = {
        "catalogue.parquet": data.catalogue.to_table(),
        **{f"examples/{split}.parquet": rows for split, rows in data.evaluated.items()},
    }
    if len(data.rejected):
        tables["rejected.parquet"] = data.rejected
    (folder / "examples").mkdir(exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / name, row_group_size=SLICE)
