"""vLLM as an engine."""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.connection
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrec.generation.engine import Engine, Part, Scored, Setup, modes_of, set_threads, weights_folder
from rayrec.generation.vllm_models import RANKS, SMALLEST_HEAD, implements, lora_room, takes_adapters
from rayrec.generation.vllm_stream import Stream
from rayrec.generation.vllm_worker import Extension, end_after
from rayrec.models.weights import has_own_head
from rayrec.seeds import seed_of

if TYPE_CHECKING:
    from rayrec.config import Config
    from rayrec.models.proof import Probe


class VllmEngine(Engine):
    """vLLM: on GPUs in processes of its own over ``tensor_parallel`` cards; on a CPU in the actor's process, or with
    VLLM_ENABLE_V1_MULTIPROCESSING=1 in one of its own."""

    modes = frozenset({"greedy", "sample", "free_beams"})
    together = frozenset({"greedy", "sample"})
    spans_gpus = True

    def __init__(self, setup: Setup):
        gpu, threads = setup.gpu, setup.threads
        if not gpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            os.environ |= {
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_LOGGING_LEVEL": "ERROR",
                "OMP_NUM_THREADS": str(threads),
                # Else vLLM compiles the count of a sampled token's rank, which takes seconds and needs a compiler.
                "TORCH_COMPILE_DISABLE": "1",
            }
        import torch
        from vllm import LLM
        from vllm.v1.engine.exceptions import EngineDeadError

        self.died = (EngineDeadError,)
        if not gpu:
            torch._dynamo.config.disable = True  # it may have been imported before the variable was set
        set_threads(threads)
        model = setup.config.model
        self.gpu, self.template, self.max_new = gpu, setup.template, model.max_new_tokens or model.max_length
        self.rank, self.threads = model.lora_rank or 0, threads
        self.lora = gpu and bool(self.rank)
        self.adapter: Any = None
        self.llm = LLM(**self.arguments(setup))
        self.stream = Stream(self.llm.llm_engine)
        # Else vLLM may wait for ever for a dead engine process, and an engine process may outlive its actor.
        if engines := multiprocessing.active_children():
            end_after(engine.sentinel for engine in engines)
            self.llm.collective_rpc("end_with_actor", args=(os.getpid(),))

    def arguments(self, setup: Setup) -> dict[str, Any]:
        """Return what vLLM is started with."""
        from rayrec.models.folder import local_folder

        model, train = setup.config.model, setup.config.train
        found = {
            "model": setup.base,
            "dtype": train.precision,
            "max_model_len": model.max_length,
            "max_logprobs": 2 * max(10, setup.config.evaluate.beam_width, 2 * train.num_negatives),
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "worker_extension_cls": f"{Extension.__module__}.{Extension.__name__}",
            "seed": 0,
        }
        # vLLM ties a head where the settings say so, also one that the files hold apart.
        found |= {"hf_overrides": {"tie_word_embeddings": False}} if has_own_head(local_folder(setup.base)) else {}
        return found | (self._on_cards(setup) if self.gpu else self._on_cpu(setup))

    def _on_cards(self, setup: Setup) -> dict[str, Any]:
        placement = setup.config.placement
        alone = placement.placement != "shared" and setup.modes <= self.modes
        return {
            "tensor_parallel_size": placement.tensor_parallel,
            "distributed_executor_backend": "ray" if placement.tensor_parallel > 1 else "uni",
            "gpu_memory_utilization": 0.9 if alone else 0.45,
            "enable_sleep_mode": placement.placement == "shared",
            "enable_lora": self.lora,
            "load_format": "safetensors",  # vLLM's default unpickles *.bin files
            **({"max_lora_rank": lora_room(self.rank)} if self.lora else {}),
        }

    def _on_cpu(self, setup: Setup) -> dict[str, Any]:
        import torch

        from rayrec.models.folder import cache_size

        model, train = setup.config.model, setup.config.train
        # Room for a full batch of the longest sequences in whole blocks, at most 1 GiB but at least for two
        # sequences: vLLM zeroes the whole cache at its start, which takes seconds.
        longest = (model.max_length + 32) * cache_size(setup.base) * getattr(torch, train.precision).itemsize
        return {
            "enforce_eager": True,
            "block_size": 32,
            "distributed_executor_backend": "uni",
            "load_format": "dummy",  # a full policy replaces every weight before the first answer
            "max_num_seqs": 256,
            "kv_cache_memory_bytes": max(2 * longest, min(2**30, 256 * longest)),
        }

    def load(self, version: str, folder: str) -> None:
        """Take an adapter under a name and id of its own, or full weights in place of the old ones.

        Raises:
            ValueError: an adapter without merged weights, on a CPU.
        """
        from rayrec.lanes import BASE

        if self.lora and version == BASE:
            self.adapter = None
            return
        if self.lora and (Path(folder) / "adapter_config.json").exists():
            from vllm.lora.request import LoRARequest

            # vLLM's caches are keyed on name and id: with a reused one it would answer with old weights.
            self.adapter = LoRARequest(version, seed_of(version, folder) % 2**31 + 1, folder)
            return
        weights = weights_folder(folder)
        if (weights / "adapter_config.json").exists():
            raise ValueError(
                f"{weights}: found an adapter alone, as runs on GPUs keep it; vLLM on a CPU wants merged weights. Go "
                "on with --device gpu."
            )
        self.llm.collective_rpc("take_policy", args=(str(weights),))
        self.llm.reset_prefix_cache()

    def answer(self, part: Part) -> list[list[Scored]]:
        """Return answers to each prompt, best first; free beams without EOS are left out."""
        if not self.gpu:
            self.llm.reset_prefix_cache()
            self.llm.collective_rpc("prepare_part", args=(part.seed, part.threads or self.threads))
        return self._free_beams(part) if part.mode == "free_beams" else self._texts(part)

    def _free_beams(self, part: Part) -> list[list[Scored]]:
        from vllm.sampling_params import BeamSearchParams

        beams = BeamSearchParams(beam_width=part.n, max_tokens=self.max_new, length_penalty=0.0)
        found = self.llm.beam_search(self._inputs(part), beams, lora_request=self.adapter)
        made = [
            [(beam.tokens[len(ids) :], float(beam.cum_logprob)) for beam in out.sequences]
            for ids, out in zip(part.prompts, found, strict=True)
        ]
        return [[(ids, logprob) for ids, logprob in one if ids and ids[-1] == self.template.eos_id] for one in made]

    def _texts(self, part: Part) -> list[list[Scored]]:
        from vllm import SamplingParams

        sampling = [
            SamplingParams(
                temperature=0.0 if part.mode == "greedy" else 1.0,
                n=part.n,
                max_tokens=self.max_new,
                logprobs=0,
                stop_token_ids=[self.template.eos_id],
                detokenize=False,
                # vLLM has no seeds of single requests on a CPU.
                seed=seed_of(part.seed, i) % 2**31 if self.gpu and part.mode == "sample" else None,
            )
            for i in range(len(part.prompts))
        ]
        if self.gpu:
            outputs = self.stream.generate(part.prompts, sampling, self.adapter)
        else:
            outputs = self.llm.generate(self._inputs(part), sampling, use_tqdm=False)
        return [[(list(o.token_ids), float(o.cumulative_logprob or 0.0)) for o in out.outputs] for out in outputs]

    def _inputs(self, part: Part) -> Any:
        return [{"prompt_token_ids": ids} for ids in part.prompts]

    def state(self, probe: Probe) -> dict[str, Any]:
        """State what its workers hold, each its own share; the probe is scored as a prompt, which fills no cache."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        given: Any = {"prompt_token_ids": probe.prompt + probe.answer}
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        out, *_ = self.llm.generate(given, scored, lora_request=self.adapter, use_tqdm=False)
        places: Any = (out.prompt_logprobs or [])[len(probe.prompt) :]
        logprob = sum(float(place[token].logprob) for place, token in zip(places, probe.answer, strict=True))
        adapter = self.adapter.lora_int_id if self.adapter else 0
        own, *others = self.llm.collective_rpc("digests", args=(adapter, self.rank))
        # A model that is spread over cards is known by its log-probabilities alone.
        return {"probe": probe.key, "logprob": logprob, "rounded": bool(adapter), **({} if others else own)}

    def sleep(self) -> None:
        if self.gpu:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if self.gpu:
            self.llm.wake_up()

    @classmethod
    def in_flight(cls, gpu: bool) -> int:
        """On a CPU the answers of a part would depend on those beside it, and it is no faster."""
        return 4 if gpu else 1

    @classmethod
    def missing(cls) -> str:
        if importlib.util.find_spec("vllm") is not None:
            return ""
        return (
            "vllm is not installed. Install rayrec[cpu] or rayrec[gpu], or take --engine torch, which is several times "
            "slower."
        )

    @classmethod
    def check(cls, config: Config, gpu: bool) -> None:
        """Refuse to spread over GPUs what needs a second model.

        Raises:
            ValueError: ``--tensor-parallel`` with modes that vLLM lacks; adapters that it does not take on GPUs.
        """
        rank, dtype = config.model.lora_rank or 0, config.train.dtype
        if gpu and rank > RANKS[-1]:
            raise ValueError(
                f"--lora-rank {rank}: vLLM takes adapters of rank {RANKS[-1]} at most. Lower it, or add --engine torch."
            )
        if gpu and rank and dtype == "float32":
            raise ValueError(
                "--dtype float32: vLLM's adapters on GPUs are of 16 bits. Take --dtype bfloat16, or add --engine torch."
            )
        if (cards := config.placement.tensor_parallel) > 1 and not modes_of(config) <= cls.modes:
            raise ValueError(
                f"--tensor-parallel {cards}: constrained beams, d3 and scores have a model of their own, on one GPU. "
                "Take --decode greedy or free_beams and negatives without scores, or leave --tensor-parallel out."
            )

    @classmethod
    def check_model(cls, config: Config, gpu: bool, base: str) -> None:
        """Refuse a model that vLLM would stop at in the first part, with a page of text.

        Raises:
            ValueError: on GPUs, an architecture without LoRA where there are adapters; on a CPU, one that vLLM has not
                itself, heads that are too small, or experts.
        """
        from rayrec.models.folder import architecture, experts, head_size

        if gpu and config.model.lora_rank and (name := architecture(base)) and not takes_adapters(name):
            raise ValueError(
                f"--model {config.model.model}: vLLM has no LoRA for {name}. Add --engine torch, or --lora-rank 0."
            )
        if not gpu and (name := architecture(base)) and not implements(name):
            raise ValueError(
                f"--model {config.model.model}: vLLM has no {name} of its own, and runs transformers' there, "
                "which takes no policy. Add --engine torch."
            )
        if not gpu and (count := experts(base)):
            raise ValueError(
                f"--model {config.model.model}: it has {count} experts a layer, whose weights vLLM on a CPU keeps when "
                "a policy is loaded. Add --engine torch."
            )
        if not gpu and (found := head_size(base)) < SMALLEST_HEAD:
            raise ValueError(
                f"--model {config.model.model}: its attention has a head dimension of {found}, and vLLM on a CPU wants "
                f"{SMALLEST_HEAD} or more. Add --engine torch."
            )
