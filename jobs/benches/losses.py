"""Users per second of each loss in one process, of beams over the catalogue, and of groups against TRL's GRPO.

Supervised losses stand beside `sft`, objectives beside `dpo` with K = 3 negatives, or groups of 3 titles that hold the
target, on the same rows; each takes its steps in turn with the others, for several rounds in one process. Beams over
the catalogue's probabilities stand beside those over the vocabulary's. `rere` with groups of 16 stands beside TRL's
GRPOTrainer, whose roll-out function gives it the same 16 answers, in the same steps, rewards and loss: what it takes to
write them is in neither. ``grad_norm`` is that of the first step.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from benches import decode, peak, preference, reset_peak
from benches.training import Example, group_of_one, make_worker, shard, table_of, worker_steps

PACKAGES, SIZE, COLUMNS, UNIT = ("trl",), "k", ("what",), "users or prompts per second"
FACTS, PAIRS = ("grad_norm",), ("grad_norm",)
BATCH, MICRO, LR, K, GROUP, TITLES = 16, 4, 1e-4, 3, 16, 1682
#: What stands beside the losses of each kind.
BESIDE = {"sft": "sft", "prefer": "dpo"}


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    from rayrec.objectives import OBJECTIVES, SFT_LOSSES

    rows, titles = (16, 200) if args.quick else (48, TITLES)
    base = scratch / "base"
    decode.make_base(base, titles)
    common = {"rows": rows, "dtype": "float32", "titles": titles, "base": str(base)}
    losses = {"sft": [*SFT_LOSSES], "prefer": [*OBJECTIVES]}
    found: list[tuple[dict[str, Any], list[str]]] = [
        (
            {"what": kind, "k": 0 if kind == "sft" else K, "together": [n for n in losses[kind] if n != beside]}
            | common,
            [beside],
        )
        for kind, beside in BESIDE.items()
    ]
    found += [
        ({"what": "beams", "k": width} | common, ["vocabulary"]) for width in ((10,) if args.quick else (10, 20, 50))
    ]
    return [*found, ({"what": "rere", "k": GROUP} | common, ["trl"])]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in ("base", "together", "titles", "rounds")}


def measure(
    contender: str,
    what: str,
    k: int,
    rows: int,
    dtype: str,
    titles: int,
    base: str,
    together: list[str] | None = None,
    rounds: int = 1,
) -> dict[str, Any]:
    """Users or prompts per second of a contender, or of all ``together`` and it, a list of results for each name."""
    if together:
        return in_turn(what, [*together, contender], base, titles, rows, rounds)
    if what == "rere":
        return group_steps(contender, rows)
    template, names = known(base, titles)
    prompts = [prompt for prompt, _ in examples(template, names, rows, 0)]
    normalise = "catalogue" if contender == "ours" else "vocabulary"
    found = decode.ours(base, dtype, prompts, k, names, template, normalise)
    return {name: found[name] for name in ("rate", "memory")}


def known(base: str, titles: int) -> tuple[Any, list[str]]:
    """The template of the base model, and the catalogue's titles."""
    from rayrec.models.policy import load_tokenizer
    from rayrec.prompts import make_template

    return make_template("compact", load_tokenizer(base)), decode.catalogue(titles)


def examples(template: Any, names: list[str], rows: int, k: int) -> list[Example]:
    """Histories of ten titles, and 1 + k titles as answers."""
    draw = random.Random(1)
    return [
        (template.prompt_ids(draw.sample(names, 10)), [template.answer_ids(t) for t in draw.sample(names, 1 + k)])
        for _ in range(rows)
    ]


def in_turn(kind: Any, losses: list[str], base: str, titles: int, rows: int, rounds: int) -> dict[str, Any]:
    """Take a phase with each loss after a first phase of one step, in turn; the rates of the rounds, by name."""
    import numpy as np
    import torch

    from rayrec.data.catalogue import Catalogue
    from rayrec.objectives import OBJECTIVES
    from rayrec.training import supervised
    from rayrec.training.board import Phase

    template, names = known(base, titles)
    popularity = np.random.default_rng(0).integers(1, 100, titles)
    catalogue = Catalogue.from_items(names, [()] * titles).with_training(popularity, [])
    data, steps, times = examples(template, names, rows, K * (kind == "prefer")), rows // BATCH, list[float]()
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in losses}
    workers, tables = {}, {}
    with group_of_one() as folder:
        for name in losses:
            args = ["--micro-batch", str(MICRO), "--prefer-batch", str(BATCH), "--rows-per-iteration", str(BATCH)]
            args += ["--sft-loss" if kind == "sft" else "--objective", name]
            own = data
            if kind == "prefer" and OBJECTIVES[name].shape.groups:
                args += ["--negatives", "group_beams", "--num-negatives", str(K), "--no-sft"]
                own = [(prompt, [target, *others[1:], target]) for prompt, (target, *others) in data]
            workers[name] = make_worker(
                base, args, times, catalogue=lambda config: supervised.make(config.supervised, catalogue, template)
            )
            tables[name] = table_of(own, BATCH, **columns(name, data) if kind == "prefer" else {})
        for turn in range(-1, rounds):
            for name, worker in workers.items():
                count = steps if turn >= 0 else 1
                out, threads = f"{folder}/{name}{turn}", torch.get_num_threads()
                phase = Phase(name, kind, "", base, out, count, BATCH, LR, 0, 0.0, threads, schedule="constant")
                times.clear()
                reset_peak()
                done = worker.run(phase, partial(shard, tables[name], BATCH, count))
                if turn >= 0:
                    found = {"rate": count * BATCH / (times[-1] - times[0]), "memory": peak()}
                    made[name].append(found | {"grad_norm": done["steps"][0]["grad_norm"]})
    return {"made": made}


def columns(name: str, data: list[Example]) -> dict[str, list]:
    """The columns that an objective reads."""
    from rayrec.objectives import OBJECTIVES

    after = [*data[1:], data[0]]
    known = {
        "scores": [[5.0, *(3.0 - k for k in range(K))]] * len(data),
        "smoothing": [[0.1 * (1 + k) for k in range(K)]] * len(data),
        "neighbour": [answers[0] for _, answers in after],
    }
    return {column: known[column] for column in OBJECTIVES[name].reads}


def groups(rows: int) -> list[Example]:
    """Prompts of 120 to 160 tokens, and after the target a group of 16 titles of 8 to 12 tokens that holds it."""
    draw, made = random.Random(0), []
    for prompt, answers in preference.rows(rows, GROUP - 1):
        made.append((prompt, [answers[0], *draw.sample(answers, GROUP)]))
    return made


def group_steps(contender: str, rows: int) -> dict[str, Any]:
    """Steps of `rere`, or of TRL's GRPOTrainer, on the same groups."""
    if contender != "ours":
        return trl(groups(rows))
    args = ["--objective", "rere", "--negatives", "group_beams", "--num-negatives", str(GROUP), "--no-sft"]
    args += ["--rows-per-iteration", str(BATCH), "--prefer-batch", str(BATCH), "--micro-batch", str(MICRO)]
    with tempfile.TemporaryDirectory() as base:
        for part in (preference.model(), preference.tokenizer()):
            part.save_pretrained(base)
        done = worker_steps(base, args, "prefer", groups(rows), BATCH, LR)
    return {"rate": rows / done["seconds"], "memory": done["memory_above"], "grad_norm": done["grad_norm"]}


def trl(data: list[Example]) -> dict[str, Any]:
    """TRL's GRPOTrainer: advantages by a group's deviation, token-level ratio, no reference, one step a roll-out."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from rayrec.objectives import Group
    from rayrec.objectives.group import ranked_rewards

    texts = [" ".join(f"w{i}" for i in prompt) for prompt, _ in data]
    by_text = dict(zip(texts, data, strict=True))

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """The answers of each prompt, which comes once for each of them."""
        rows = [by_text[text] for text in prompts[::GROUP]]
        assert prompts == [text for text in prompts[::GROUP] for _ in range(GROUP)]
        ids = [prompt for prompt, _ in rows for _ in range(GROUP)]
        return {"prompt_ids": ids, "completion_ids": [a for _, answers in rows for a in answers[1:]], "logprobs": None}

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        hits = [by_text[text][1][0] == ids for text, ids in zip(prompts, completion_ids, strict=True)]
        hit_BG = torch.tensor(hits).view(-1, GROUP)
        ones_BG = torch.ones(hit_BG.shape)
        return ranked_rewards(Group(ones_BG, hit_BG | True, hit_BG, ones_BG)).flatten().tolist()

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=MICRO * GROUP,
            gradient_accumulation_steps=BATCH // MICRO,
            num_generations=GROUP,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=0.0,
            loss_type="grpo",
            scale_rewards="group",
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            optim="adamw_torch",
        )
        policy, words = preference.model(), preference.tokenizer()
        before = reset_peak()
        preference.warm_up()
        trainer = GRPOTrainer(
            policy,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=words,
            rollout_func=roll_out,
        )
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {"rate": len(data) / seconds, "memory": peak() - before, "grad_norm": norms[0]}
