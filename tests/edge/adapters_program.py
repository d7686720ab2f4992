"""vLLM with the settings of GPUs, adapters under names of their own, on a CPU; started by test_adapters.py.

The engine is a process of its own, as on a GPU. Prints, for each policy in turn, what it answers and states, and what
transformers and peft do on the same folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rayrec.driver.checks import resolve
from rayrec.generation.engine import Part, Setup
from rayrec.generation.vllm import VllmEngine
from rayrec.lanes import BASE
from rayrec.methods import parse
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage

TITLES = [f"The {word} of {name}" for word in ("Night", "Return", "Last Day") for name in ("Ann", "Bob", "Eve Smith")]
RANK = 12


class OnCpu(VllmEngine):
    """The engine of a GPU, but for what a CPU has not."""

    def arguments(self, setup: Setup) -> dict[str, Any]:
        found = super().arguments(setup)
        for name in ("gpu_memory_utilization", "enable_sleep_mode"):
            del found[name]
        return found | {"enforce_eager": True, "kv_cache_memory_bytes": 2**26, "max_num_seqs": 64, "block_size": 32}


def main(root: Path) -> list[dict[str, Any]]:
    """Load policies in turn, one of them twice."""
    import torch

    from rayrec.decoding import generate
    from rayrec.models import policy, proof
    from rayrec.models.settings import ModelConfig
    from rayrec.models.tiny import make_tiny

    torch.set_num_threads(1)
    base, folders = str(root / "base"), {}
    make_tiny(TITLES, ModelConfig(tiny_hidden=64, tiny_layers=2, tiny_vocab=300), root / "base", 0)
    tokenizer = policy.load_tokenizer(base)
    template = make_template("compact", tokenizer)
    for seed, version in enumerate(("01/sft", "01/prefer", "02/sft"), 1):
        model = policy.add_lora(policy.load_base(base), RANK, 32, 0.05, seed)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        folders[version] = root / version / "policy"
        policy.save(policy.trainable_state(model), model, tokenizer, folders[version], {"seed": seed}, base=base)
    flags = ["--model", base, "--lora-rank", str(RANK), "--dtype", "float32", "--max-length", "128"]
    config = resolve(parse("", [*flags, "--max-new-tokens", "8"]))
    prompts = [template.prompt_ids([TITLES[i], TITLES[(i + 2) % 9]]) for i in range(9)]
    probe = proof.Probe(prompts[0], template.answer_ids(TITLES[4]))
    engine = OnCpu(Setup(config, Storage(""), base, template, (), True, OnCpu, 1))
    out = list[dict[str, Any]]()
    for version in (BASE, "01/sft", "01/prefer", "01/sft", "02/sft", BASE, "01/prefer"):
        folder = base if version == BASE else str(folders[version])
        engine.load(version, folder)
        found = engine.answer(Part("check", 0, version, folder, prompts, "greedy"))
        model = policy.load_base(base) if version == BASE else policy.load_policy(folder, base=base)
        wanted = generate(model, prompts, template.eos_id, max_new_tokens=8, mode="greedy", n=1, seed=0)
        one = {"version": version, "found": found, "stated": [engine.state(probe), proof.model_statement(model, probe)]}
        one["apart"] = proof.difference(*one["stated"], "float32", probe)
        out.append(one | {"wanted": [[(list(one.token_ids), one.logprob) for one in some] for some in wanted]})
        out[-1]["compared"] = proof.compared(*one["stated"])
    return out


if __name__ == "__main__":
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    os.environ |= {"TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    print("RESULT", json.dumps(main(Path(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # as an actor ends: its engine must end with it
