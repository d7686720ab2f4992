"""The generation lane: a pool of engine actors, alive for the whole run, that answer prompts part by part.

A part is a fixed number of prompts, answered whole by one actor in one call. Before each part the actor loads the
policy version that the part names, empties the prefix cache and seeds the generator from (seed, phase, part), so that a
part made again, by whichever actor and after whatever traffic, is the same part bit for bit (on CPUs of one type).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayrec.config import Config
from rayrec.prompts import Template
from rayrec.seeds import seed_of

Mode = Literal["greedy", "sample", "beams", "free_beams"]


@dataclass(frozen=True)
class Part:
    """Some prompts of one phase, and what is asked for them."""

    phase: str
    number: int
    version: str
    """Name of the policy, such as ``01/prefer``."""
    folder: str
    """Its policy folder."""
    prompts: tuple[tuple[int, ...], ...]
    mode: Mode
    n: int = 1
    """Samples, or width of the beam."""


@dataclass(frozen=True)
class Answer:
    """One generated text with its log-probability (EOS included, nats)."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Setup:
    """What every generator is made from."""

    config: Config
    base: str
    """Folder or hub id of the base model."""
    template: Template
    titles: tuple[str, ...]
    """The catalogue, for catalogue-constrained beams."""
    gpu: bool
    engine: Literal["vllm", "torch"]
    threads: int


class Generator:
    """Actor that holds one engine and loads policy versions into it in place."""

    def __init__(self, setup: Setup):
        from rayrec.models import opens

        opens.install()
        self.setup, self.seed, self.template = setup, setup.config.data.seed, setup.template
        self.engine = {"vllm": VllmEngine, "torch": TorchEngine}[setup.engine](setup)
        self.beams = BeamEngine(setup)
        self.versions: dict[int, str] = {}

    def ready(self) -> dict:
        """Facts about the engine, once it is up."""
        return {"pid": os.getpid(), "engine": type(self.engine).__name__}

    def answer(self, part: Part) -> tuple[list[list[Answer]], dict]:
        """Answers to the prompts of a part, best first, and facts for the trace."""
        import torch

        from rayrec.models import opens

        begun = time.time()
        engine = self.beams if part.mode == "beams" else self.engine
        if self.versions.get(id(engine)) != part.version:
            engine.load(part.version, part.folder)
            self.versions[id(engine)] = part.version
        seed = seed_of(self.seed, part.phase, part.number)
        torch.manual_seed(seed)  # vLLM on a CPU takes no seed of a request
        answers = engine.answer([list(p) for p in part.prompts], part.mode, part.n, seed)
        made = [[Answer(self.template.text(ids), logprob) for ids, logprob in one] for one in answers]
        facts = {"start": begun, "end": time.time(), "generator_pid": os.getpid(), "weight_opens": opens.opens()}
        return made, {**facts, "tokens": sum(len(ids) for one in answers for ids, _ in one)}

    def sleep(self) -> None:
        """Give the card's memory to training (``--placement shared``)."""
        self.engine.sleep()

    def wake(self) -> None:
        """Take the memory back."""
        self.engine.wake()


class VllmEngine:
    """vLLM in the actor's own process on a CPU; on GPUs over ``tensor_parallel`` cards."""

    def __init__(self, setup: Setup):
        gpu, threads = setup.gpu, setup.threads
        if not gpu:
            os.environ |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_LOGGING_LEVEL": "ERROR",
                "OMP_NUM_THREADS": str(threads),
            }
        import torch
        from vllm import LLM

        torch.set_num_threads(threads)
        config = setup.config
        model, placement = config.model, config.placement
        self.gpu, self.template, self.max_new = gpu, setup.template, model.max_new_tokens
        self.lora = gpu and bool(model.lora_rank)
        self.adapter: Any = None
        # Whole policies replace every weight before the first answer, so the base's need not be read here.
        here = {"enforce_eager": True, "block_size": 32, "distributed_executor_backend": "uni", "load_format": "dummy"}
        cards = {
            "tensor_parallel_size": placement.tensor_parallel,
            "distributed_executor_backend": "ray" if placement.tensor_parallel > 1 else "uni",
            "gpu_memory_utilization": 0.45 if placement.placement == "shared" else 0.9,
            "enable_sleep_mode": placement.placement == "shared",
            "enable_lora": self.lora,
            **({"max_lora_rank": max(8, model.lora_rank or 0)} if self.lora else {}),
        }
        self.llm = LLM(
            model=setup.base,
            dtype=config.train.dtype,
            max_model_len=model.max_length,
            max_logprobs=2 * max(10, config.evaluate.beam_width, 2 * config.train.num_negatives),
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
            **(cards if gpu else here),
        )

    def load(self, version: str, folder: str) -> None:
        """Take a finished policy: an adapter under its own name and id, or full weights in place of the old ones."""
        if self.lora and (Path(folder) / "adapter_config.json").exists():
            from vllm.lora.request import LoRARequest

            # A reused name or id would serve stale weights: the caches are keyed on them.
            self.adapter = LoRARequest(version, seed_of(version, folder) % 2**31 + 1, folder)
            return
        merged = Path(folder) / "merged"
        folder = str(merged if merged.exists() else folder)
        if self.gpu:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _tensors(folder)})
            self.llm.apply_model(_repack_tied_head)

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        self.llm.reset_prefix_cache()
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
        sampling = SamplingParams(
            temperature=0.0 if mode == "greedy" else 1.0,
            n=n,
            max_tokens=self.max_new,
            logprobs=0,
            stop_token_ids=[eos],
            detokenize=False,
        )
        outputs = self.llm.generate(inputs, sampling, lora_request=self.adapter, use_tqdm=False)
        return [[(list(o.token_ids), float(o.cumulative_logprob or 0.0)) for o in out.outputs] for out in outputs]

    def sleep(self) -> None:
        self.llm.sleep(level=1)

    def wake(self) -> None:
        self.llm.wake_up()


def _tensors(folder: str) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a folder's weight files."""
    import safetensors

    for file in sorted(Path(folder).glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            yield from ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118


def _repack_tied_head(model: Any) -> None:
    """Pack a head that shares the embedding's weight again.

    On a CPU every layer computes with a packed copy of its weight, and a reload renews the copies only of layers that
    the file names; a tied head is not named, and would answer with the old weights.
    """
    if getattr(model.config, "tie_word_embeddings", False):
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


class TorchEngine:
    """transformers in the same actor, for machines that vLLM does not support."""

    def __init__(self, setup: Setup):
        import torch

        from rayrec.models import policy

        torch.set_num_threads(setup.threads)
        model = setup.config.model
        self.device = "cuda" if setup.gpu else "cpu"
        self.template, self.max_new = setup.template, model.max_new_tokens
        self.model: Any = policy.load_base(setup.base, dtype=setup.config.train.dtype, device=self.device)
        if model.lora_rank:
            self.model = policy.add_lora(self.model, model.lora_rank, model.lora_alpha, 0.0)
        self.model.eval()

    def load(self, version: str, folder: str) -> None:
        """Load a finished policy's weights in place."""
        from rayrec.models import policy

        policy.load_weights(self.model, folder)

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from rayrec.decoding import generate

        kind: Any = {"free_beams": "beam"}.get(mode, mode)
        length = {"max_new_tokens": self.max_new, "mode": kind, "n": n, "seed": seed}
        made = generate(self.model, prompts, self.template.eos_id, **length)
        return [[(list(g.token_ids), g.logprob) for g in one] for one in made]

    def sleep(self) -> None:
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self.device)


class BeamEngine:
    """Catalogue-constrained beam search; its model is built from the first policy that it is asked for."""

    def __init__(self, setup: Setup):
        self.setup, self.model, self.device = setup, None, "cuda" if setup.gpu else "cpu"

    def load(self, version: str, folder: str) -> None:
        """Load a finished policy, in place after the first."""
        from rayrec.decoding import Trie
        from rayrec.models import policy

        merged = Path(folder) / "merged"
        folder = str(merged if merged.exists() else folder)
        if self.model is not None:
            return policy.load_weights(self.model, folder)
        self.model = policy.load_policy(folder, dtype=self.setup.config.train.dtype, device=self.device)
        self.ids = [self.setup.template.answer_ids(title) for title in self.setup.titles]
        self.trie = Trie.build(self.ids)

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from rayrec.decoding import beam_search

        assert self.model is not None, "load comes first"
        return [[(self.ids[i], lp) for i, lp in one] for one in beam_search(self.model, prompts, self.trie, n)]


@dataclass
class _Job:
    """The parts of one request, and what waits for them."""

    future: Future
    results: list[Any]
    left: int
    on_part: Callable[[int], None]


class GeneratorPool:
    """The driver's handle on the actors: parts wait in one queue, each actor is fed by a thread of its own."""

    def __init__(self, setup: Setup, trace: Any):
        import ray

        self.config, self.trace, self._ray, self._gpu = setup.config, trace, ray, setup.gpu
        self._setup = ray.put(setup)
        self._queue: list[tuple[int, int, Part, _Job, int]] = []
        self._order, self._ready, self._closed = itertools.count(), threading.Condition(), False
        self._jobs: list[_Job] = []
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._feed, args=(i,), name=f"generator-{i}", daemon=True)
            for i in range(setup.config.placement.generators)
        ]
        for thread in self._threads:
            thread.start()

    def _actor(self) -> Any:
        ray, placement, gpu = self._ray, self.config.placement, self._gpu
        options: dict[str, Any] = {"num_cpus": 1}
        if gpu and placement.tensor_parallel > 1:
            from ray.util.placement_group import placement_group
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            cards = placement_group([{"GPU": 1, "CPU": 1}] * placement.tensor_parallel, strategy="PACK")
            bundle = PlacementGroupSchedulingStrategy(cards, placement_group_capture_child_tasks=True)
            options = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": bundle}
        elif gpu:
            options["num_gpus"] = 0.5 if placement.placement == "shared" else 1
        return ray.remote(Generator).options(**options).remote(self._setup)

    def submit(self, parts: list[Part], urgent: bool, on_part: Callable[[int], None] = lambda done: None) -> Future:
        """Queue the parts of one phase; the future holds their answers in order. Urgent parts go first."""
        job = _Job(Future(), [None] * len(parts), len(parts), on_part)
        if self.error is not None:
            job.future.set_exception(self.error)
            return job.future
        if not parts:
            job.future.set_result([])
        with self._ready:
            self._jobs = [other for other in self._jobs if not other.future.done()] + [job]
            for i, part in enumerate(parts):
                heapq.heappush(self._queue, (0 if urgent else 1, next(self._order), part, job, i))
            self._ready.notify_all()
        return job.future

    def _feed(self, index: int) -> None:
        """Feed one actor: take a part, wait for its answers, replace the actor if it dies."""
        actor, deaths = None, 0
        while not self._closed:
            item = None
            try:
                if actor is None:
                    actor = self._start(index)
                with self._ready:
                    while not self._queue and not self._closed:
                        self._ready.wait(1.0)
                    if self._closed:
                        break
                    item = heapq.heappop(self._queue)
                self._answer(actor, index, *item[2:])
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError) as error:
                deaths, actor = deaths + 1, self._bury(actor)
                what = f"generator {index} died{f' in {item[2].phase} part {item[2].number}' if item else ''}"
                print(f"{what} ({deaths} of {self.config.placement.max_deaths} allowed): it is replaced", flush=True)
                if item is not None:
                    with self._ready:
                        heapq.heappush(self._queue, item)
                        self._ready.notify_all()
                if deaths > self.config.placement.max_deaths:
                    return self._fail(RuntimeError(f"{what}, {deaths} times in all: {error}"))
            except BaseException as error:  # the error is told to whoever waits for the part
                return self._fail(error)
        self._bury(actor)

    def _start(self, index: int) -> Any:
        begun, actor = time.time(), self._actor()
        facts = self._ray.get(actor.ready.remote(), timeout=self.config.placement.wait_seconds)
        self.trace.add("engine", "start", "generators", f"generator {index}", begun, time.time(), **facts)
        return actor

    def _answer(self, actor: Any, index: int, part: Part, job: _Job, i: int) -> None:
        answers, facts = self._ray.get(actor.answer.remote(part), timeout=self.config.placement.wait_seconds)
        begun, end = facts.pop("start"), facts.pop("end")
        self.trace.add(part.phase, "part", "generators", f"generator {index}", begun, end, part=part.number, **facts)
        job.results[i] = answers
        with self._ready:
            job.left -= 1
            done = len(job.results) - job.left
        job.on_part(done)
        if done == len(job.results) and not job.future.done():
            job.future.set_result(job.results)

    def _bury(self, actor: Any) -> None:
        if actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone already, and the actor with it
                self._ray.kill(actor)

    def _fail(self, error: BaseException) -> None:
        """Tell everybody who waits, now or later: one actor that cannot be had is not made up for by the others."""
        self.error = error
        with self._ready:
            self._queue.clear()
            waiting, self._jobs = self._jobs, []
        for job in waiting:
            if not job.future.done():
                job.future.set_exception(error)

    def close(self, orderly: bool) -> None:
        """End all actors, and wait for that if ``orderly``; parts that wait are dropped."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        self._fail(RuntimeError("stopped"))
        for thread in self._threads if orderly else ():
            thread.join(timeout=5)
