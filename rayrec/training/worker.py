"""One training process: it loads the base model once, and trains phase after phase with DeepSpeed."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rayrec.cluster.devices import check_gpu
from rayrec.cluster.memory import peak
from rayrec.config import Config
from rayrec.errors import Stopped
from rayrec.runs.storage import TROUBLES, Storage, errno_of
from rayrec.training import checkpoint, memory, optimiser
from rayrec.training.batches import read_shard
from rayrec.training.board import Heartbeat, Phase, give_up, take_phases
from rayrec.training.phases import Preference, Supervised
from rayrec.training.steps import Process, Shard, Steps, clips

if TYPE_CHECKING:
    from rayrec.models.proof import Probe


def work(setup: dict) -> None:
    """Ray Train's function in every worker: do phases until the board closes."""
    import ray
    import torch
    from ray import train
    from safetensors import SafetensorError

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if setup["gpu"] else "cpu")
    rank, board = train.get_context().get_world_rank(), setup["board"]
    try:
        worker = Worker(setup, rank, train.get_context().get_world_size())
    except Exception as error:
        return give_up(error, board, rank)
    nodes = [""] * worker.world
    torch.distributed.all_gather_object(nodes, ray.util.get_node_ip_address())
    worker.report = Heartbeat(board, rank)
    for number, phase in take_phases(board, rank):
        torch.set_num_threads(phase.threads)
        shard = partial(read_shard, phase, rank, worker.world, worker.storage)
        try:
            result = worker.run(phase, shard)
            result["facts"]["nodes"] = nodes
        except FloatingPointError as error:  # every rank raises it: the loss is summed over all
            result = {"error": str(error)}
        except (Stopped, OSError, SafetensorError) as error:
            if isinstance(error, Stopped) or errno_of(error) in TROUBLES:
                # The storage has been asked often enough: another group would only ask it again.
                ray.get(board.finish.remote(number, {"stopped": str(error)}))
            raise
        except Exception as error:
            return give_up(error, board, rank)
        torch.distributed.barrier()  # no rank asks for the next phase before this one's files are written
        if rank == 0:
            ray.get(board.finish.remote(number, result))


class Worker:
    """One training process of ``world``, and the model of all its phases."""

    #: The steps of each kind of phase.
    kinds: ClassVar[dict[str, type[Steps]]] = {"pretrain": Supervised, "sft": Supervised, "prefer": Preference}
    report: Callable[..., Any]

    def __init__(self, setup: dict, rank: int, world: int):
        import deepspeed
        import torch

        from rayrec.decoding.exact import check_kernel
        from rayrec.models import policy, varlen
        from rayrec.models.logprobs import PackedLM
        from rayrec.models.shape import Shape

        self.config: Config = setup["config"]
        self.storage: Storage = setup["storage"]
        self.probe: Probe | None = setup.get("probe")
        self.asked: dict[str, Any] | None = setup.get("asked")
        self.base, self.rank, self.world = setup["base"], rank, world
        if setup["gpu"]:
            check_gpu()
        here = str(self.storage.download(self.base))
        model, train = self.config.model, self.config.train
        self.device = torch.device("cuda", torch.cuda.current_device()) if setup["gpu"] else torch.device("cpu")
        # Equal inputs give equal bits on a CPU; on a GPU the fast kernels are kept and results agree to rounding.
        torch.use_deterministic_algorithms(not setup["gpu"], warn_only=True)
        # Filling every new buffer would cost more than the training of a small model.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        # gloo does; the shared-memory collectives would be compiled here first, which takes minutes and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
        deepspeed.init_distributed(dist_backend="nccl" if setup["gpu"] else "gloo", auto_mpi_discovery=False)
        self.tokenizer = policy.load_tokenizer(here)
        lm = policy.without_dropout(policy.load_base(here, getattr(torch, train.precision), self.device))
        # Tokens of a row: for the mask that a GPU's kernels want, or one row whose length would never come again.
        multiple = (128 if train.attention == "varlen" else 16) if setup["gpu"] else 1
        if train.attention == "varlen":
            varlen.attend_by_runs(lm)
            check_kernel(lm)
        self.hidden = int(lm.config.get_text_config().hidden_size)
        self.memory = memory.Memory(Shape.of(here), self.config, setup["gpu"])
        if model.lora_rank:
            lm = policy.add_lora(lm, model.lora_rank, model.lora_alpha, model.lora_dropout, self.config.data.seed)
        self.lm = PackedLM(lm, train.activation_checkpointing)
        # A phase that starts from the base finds its adapters here. A whole model is as it was read before the first
        # phase, and read again after it: a copy would take as much memory in every worker.
        self.initial = policy.trainable_state(lm) if model.lora_rank else None
        self.fresh = True
        self.process = Process(
            config=self.config,
            objective=setup["objective"],
            catalogue=setup.get("catalogue"),
            storage=self.storage,
            rank=rank,
            world=world,
            device=self.device,
            lm=self.lm,
            memory=self.memory,
            multiple=multiple,
        )

    def run(self, phase: Phase, shard: Shard) -> dict:
        """Train one phase and save its policy on rank 0; returns its ``steps`` and the ``facts`` for the trace."""
        import torch.distributed as dist

        begun = time.time()
        self.report(phase=phase.name, step=0, steps=phase.steps)
        phase = self._load(phase)
        done = checkpoint.records_of(checkpoint.folder_of(phase.out), phase.key, self.storage)
        engine = self._engine(phase)
        steps = self.kinds[phase.kind](self.process, engine, phase, shard, self.report)
        try:
            records = steps.train(done)
            self._save(phase)
            proof = self._prove(engine, phase)
        finally:
            optimiser.release(engine)
        dist.all_reduce(steps.seen)  # by now rank 0 has saved the policy
        checkpoint.clear_copies(checkpoint.folder_of(phase.out), self.storage)
        examples, tokens = map(int, steps.seen)
        seconds = time.time() - begun
        facts = {"examples": examples, "tokens": tokens, "examples_per_s": examples / seconds}
        facts |= {"tokens_per_s": tokens / seconds, "worker_pid": os.getpid(), "peak_memory": peak()}
        resumed = {"resumed_at": len(done)} if done else {}
        return {"steps": records, "facts": facts | resumed, "proof": proof}

    def _load(self, phase: Phase) -> Phase:
        """Load the policy that a phase starts from, and its item vectors; the phase with this node's folders."""
        from rayrec.models import item_vectors, policy, sequential

        from_base = phase.start == self.base
        phase = dataclasses.replace(
            phase,
            start=phase.start if from_base else str(self.storage.download(phase.start)),
            out=str(self.storage.here(phase.out)),
            items=str(self.storage.download(phase.items)) if phase.items else "",
        )
        # Of whole models rank 0 alone reads, so that a machine holds one copy and not one for each of its GPUs.
        spreads = self.world > 1 and not self.config.model.lora_rank
        with self.process.whole():
            if spreads and self.rank:
                if not from_base:
                    item_vectors.load(self.lm.model, phase.start)
            elif not from_base:
                policy.load_weights(self.lm.model, phase.start)
            elif not self.fresh:
                policy.copy_weights(self.lm.model, self.initial or self._base_state())
        if spreads and not (from_base and self.fresh):
            self.process.spread()
        self.fresh = False
        if phase.items:
            item_vectors.attach(self.lm.model, sequential.load(phase.items).table(), self.config.data.seed)
        policy.set_lora_dropout(self.lm.model, phase.dropout)
        return phase

    def _base_state(self) -> dict[str, Any]:
        """The weights of the base, read again."""
        from rayrec.models import policy

        found = policy.load_base(self.storage.download(self.base), self.config.train.precision)
        return dict(found.named_parameters())

    def _engine(self, phase: Phase) -> Any:
        """A fresh DeepSpeed engine: optimiser state and schedule belong to one phase."""
        import deepspeed

        train = self.config.train
        trainable: Any = [p for p in self.lm.parameters() if p.requires_grad]
        bucket = min(memory.BUCKET, sum(getattr(p, "ds_numel", p.numel()) for p in trainable))
        settings = {
            # How many passes make a step differs from step to step: Steps marks the last one.
            "train_micro_batch_size_per_gpu": phase.batch // self.world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0 if clips(self.config) else train.clip,
            # They would wait for the GPU before and after every pass.
            "timers": {"throughput": {"enabled": False}},
            # Adapters stay in float32 over a bfloat16 base; DeepSpeed would round them.
            "bf16": {"enabled": (whole := train.dtype == "bfloat16" and not self.config.model.lora_rank)},
            **(optimiser.sums(train.zero_stage or 0) if whole else {}),
            # DeepSpeed allocates whole buckets, 2 GB each by default, at every backward pass.
            "zero_optimization": {
                "stage": train.zero_stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                # Smaller parameters are not cut up (stage 3); DeepSpeed's own 1e5 is every matrix of a small model.
                "stage3_param_persistence_threshold": 10 * self.hidden,
            },
            "zero_allow_untested_optimizer": True,
            "optimizer": optimiser.settings(phase.lr, train.weight_decay),
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(model=self.lm, model_parameters=trainable, config=settings)
        outer: Any = engine.optimizer
        if hasattr(outer, "fp32_groups"):  # bfloat16 at stage 0: DeepSpeed's empty step before the first is none
            outer.optimizer.state.clear()
        return engine

    def _prove(self, engine: Any, phase: Phase) -> dict[str, Any] | None:
        """State on rank 0 what was trained and written, for the generators that will load it; every rank computes."""
        import torch

        from rayrec.models.logprobs import pack
        from rayrec.models.proof import folder_statement, reads

        if self.probe is None or not reads(self.lm.model, self.probe):
            return None
        engine.eval()
        with torch.no_grad():
            runs, multiple = self.config.train.attention == "varlen", self.process.multiple
            packed = pack([(self.probe.prompt, [self.probe.answer])], multiple=multiple, runs=runs)
            logprob_BA = engine(packed.to(self.device))
        if self.rank:
            return None
        return folder_statement(phase.out, self.lm.model, self.probe, float(logprob_BA[0, 0]))

    def _save(self, phase: Phase) -> None:
        from rayrec.models import policy

        with self.process.whole():
            if self.rank == 0:
                version = "/".join(Path(phase.start).parts[-3:-1])  # .../01/sft/policy
                start = self.config.model.model if phase.start == self.base else version
                card = {"phase": phase.name, "start": start, "seed": self.config.data.seed}
                state = policy.trainable_state(self.lm.model)
                # Named as the user named it: the same policy has the same bytes in every run folder.
                base, merged = self.config.model.model, self.device.type == "cpu"
                how = self.asked and {"policy": phase.name, **self.asked}
                policy.save(state, self.lm.model, self.tokenizer, phase.out, card, merged=merged, base=base, how=how)
                self.storage.upload(Path(phase.out))
