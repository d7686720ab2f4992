"""vLLM as an engine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rayrec.generation.engine import Mode, Setup, two_models
from rayrec.lanes import BASE
from rayrec.seeds import seed_of


class VllmEngine:
    """vLLM on a CPU in the actor's own process, or as VLLM_ENABLE_V1_MULTIPROCESSING=1 has it; on GPUs in processes of
    its own over ``tensor_parallel`` cards."""

    def __init__(self, setup: Setup):
        gpu, threads = setup.gpu, setup.threads
        if not gpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            os.environ |= {
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_LOGGING_LEVEL": "ERROR",
                "OMP_NUM_THREADS": str(threads),
                # It would compile how the rank of a sampled token is counted: seconds, and not without a compiler.
                "TORCH_COMPILE_DISABLE": "1",
            }
        import torch
        from vllm import LLM

        from rayrec.models import policy

        torch.set_num_threads(threads)
        config = setup.config
        model, train, placement = config.model, config.train, config.placement
        self.gpu, self.template, self.max_new = gpu, setup.template, model.max_new_tokens or model.max_length
        self.lora = gpu and bool(model.lora_rank)
        self.adapter: Any = None
        # Whole policies replace every weight before the first answer, so the base's need not be read here.
        here = {"enforce_eager": True, "block_size": 32, "distributed_executor_backend": "uni", "load_format": "dummy"}
        if not gpu:
            # The cache of a full batch of the longest sequences, in whole blocks; up to a GiB, or else for two of them.
            # All of it is zeroed at the start, which takes seconds.
            longest = (model.max_length + 32) * policy.cache_size(setup.base) * getattr(torch, train.dtype).itemsize
            here |= {"max_num_seqs": 256, "kv_cache_memory_bytes": max(2 * longest, min(2**30, 256 * longest))}
        cards = {
            "tensor_parallel_size": placement.tensor_parallel,
            "distributed_executor_backend": "ray" if placement.tensor_parallel > 1 else "uni",
            "gpu_memory_utilization": 0.45 if placement.placement == "shared" or two_models(config) else 0.9,
            "enable_sleep_mode": placement.placement == "shared",
            "enable_lora": self.lora,
            "load_format": "safetensors",  # by itself vLLM would unpickle a model that comes as *.bin
            **({"max_lora_rank": max(8, model.lora_rank or 0)} if self.lora else {}),
        }
        self.llm = LLM(
            model=setup.base,
            dtype=train.dtype,
            max_model_len=model.max_length,
            max_logprobs=2 * max(10, config.evaluate.beam_width, 2 * train.num_negatives),
            enable_prefix_caching=True,
            disable_log_stats=True,
            worker_extension_cls=f"{__name__}.{Extension.__name__}",
            seed=0,
            **(cards if gpu else here),
        )
        # vLLM itself may wait for ever for an engine that is gone, and an engine outlive its actor on its card.
        if engines := multiprocessing.active_children():
            _end_after(engine.sentinel for engine in engines)
            self.llm.collective_rpc("end_with_actor")

    def load(self, version: str, folder: str) -> None:
        """Take a finished policy: an adapter under its own name and id, or full weights in place of the old ones."""
        if self.lora and version == BASE:
            self.adapter = None
            return
        if self.lora and (Path(folder) / "adapter_config.json").exists():
            from vllm.lora.request import LoRARequest

            # A reused name or id would serve stale weights: the caches are keyed on them.
            self.adapter = LoRARequest(version, seed_of(version, folder) % 2**31 + 1, folder)
            return
        folder = _whole(folder)
        if (Path(folder) / "adapter_config.json").exists():
            raise ValueError(
                f"{folder}: found an adapter alone, as runs on GPUs keep it; vLLM on a CPU wants merged weights. Go on "
                "with --device gpu."
            )
        self.llm.collective_rpc("take_policy", args=(folder,))

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        self.llm.reset_prefix_cache()
        if not self.gpu:
            self.llm.collective_rpc("seed", args=(seed,))
        inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
        eos = self.template.eos_id
        if mode == "free_beams":
            beams = BeamSearchParams(beam_width=n, max_tokens=self.max_new, length_penalty=0.0)
            found = self.llm.beam_search(inputs, beams, lora_request=self.adapter)
            written = [
                [(beam.tokens[len(ids) :], float(beam.cum_logprob)) for beam in out.sequences]
                for ids, out in zip(prompts, found, strict=True)
            ]
            return [[(ids, lp) for ids, lp in one if ids and ids[-1] == eos] for one in written]
        sampling = [
            SamplingParams(
                temperature=0.0 if mode == "greedy" else 1.0,
                n=n,
                max_tokens=self.max_new,
                logprobs=0,
                stop_token_ids=[eos],
                detokenize=False,
                # On a CPU there are no seeds of requests.
                seed=seed_of(seed, i) % 2**31 if self.gpu and mode == "sample" else None,
            )
            for i in range(len(prompts))
        ]
        outputs = self.llm.generate(inputs, sampling, lora_request=self.adapter, use_tqdm=False)
        return [[(list(o.token_ids), float(o.cumulative_logprob or 0.0)) for o in out.outputs] for out in outputs]

    def sleep(self) -> None:
        if self.gpu:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if self.gpu:
            self.llm.wake_up()


def _whole(folder: str) -> str:
    """The folder with all weights of a policy: its merged ones where it has them, a hub id's local copy."""
    from rayrec.models import policy

    merged = Path(folder) / "merged"
    return str(merged if merged.exists() else policy.local_folder(folder))


def tensors(folder: str) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a folder's weight files.

    Raises:
        ValueError: it has none.
    """
    import safetensors

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no *.safetensors there, and weights in other files are not read.")
    for file in files:
        with safetensors.safe_open(file, framework="pt") as weights:
            yield from ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118


def _end_after(sentinels: Iterable[int]) -> None:
    """End this process as soon as one of others has ended."""
    others = list(sentinels)

    def watch() -> None:
        multiprocessing.connection.wait(others)
        os._exit(1)

    threading.Thread(target=watch, name="ends with others", daemon=True).start()


class Extension:
    """Methods that vLLM's workers get, in whatever process: the engine calls them by name, so no code is sent."""

    model_runner: Any

    def take_policy(self, folder: str) -> None:
        """Replace every weight by those of a folder."""
        self.model_runner.reload_weights(weights_iterator=tensors(folder))
        model = self.model_runner.get_model()
        # On a CPU every layer computes with a packed copy of its weight, and a reload renews the copies only of layers
        # that the file names; a tied head is not named, and would answer with the old weights.
        if self.model_runner.device.type == "cpu" and getattr(model.config, "tie_word_embeddings", False):
            model.lm_head.quant_method.process_weights_after_loading(model.lm_head)

    def end_with_actor(self) -> None:
        """End this process once the one that has started it has ended."""
        if actor := multiprocessing.parent_process():
            _end_after([actor.sentinel])

    def seed(self, number: int) -> None:
        """Seed what samples."""
        import torch

        torch.manual_seed(number)
