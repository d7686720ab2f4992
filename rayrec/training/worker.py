"""What one training process does: load the base model once, then phase after phase with DeepSpeed.

Shapes: B examples of a micro-batch, A answers of an example (the chosen one first), K = A − 1 rejected answers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.cluster.devices import check_gpu
from rayrec.cluster.memory import peak
from rayrec.config import Config
from rayrec.data import schema
from rayrec.errors import Stopped
from rayrec.objectives import Objective
from rayrec.runs.storage import TROUBLES, Storage, errno_of
from rayrec.seeds import seed_of
from rayrec.training import checkpoint, memory, optimiser
from rayrec.training.batches import read_shard
from rayrec.training.board import Heartbeat, Phase, give_up, take_phases
from rayrec.training.supervised import CatalogueLoss, CatalogueSteps

if TYPE_CHECKING:
    from rayrec.models.proof import Probe

#: Loss per example and what else is logged per example, of a micro-batch's rows.
Loss = Callable[[list[dict]], tuple[Any, dict[str, Any]]]
#: Readers of this worker's rows of every step from a given step on: as tables, and as dicts.
Shard = Callable[[int], Iterable[pa.Table]]
Read = Callable[[int], Iterator[list[dict]]]


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
    """One training process of ``world``."""

    report: Callable[..., Any]

    def __init__(self, setup: dict, rank: int, world: int):
        import deepspeed
        import torch

        from rayrec.models import policy
        from rayrec.models.logprobs import PackedLM, attend_by_flex
        from rayrec.models.shape import Shape

        self.config: Config = setup["config"]
        self.objective: Objective = setup["objective"]
        self.storage: Storage = setup["storage"]
        self.probe: Probe | None = setup.get("probe")
        self.asked: dict[str, Any] | None = setup.get("asked")
        self.catalogue: CatalogueLoss | None = setup.get("catalogue")
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
        # The tokens of a row on a GPU: whole blocks of FlexAttention, or of the mask that its other kernels want.
        self.multiple = 1 if not setup["gpu"] else 128 if train.attention == "flex" else 16
        if train.attention == "flex":
            attend_by_flex(lm)
        self.hidden = int(lm.config.get_text_config().hidden_size)
        self.memory = memory.Memory(Shape.of(here), self.config, setup["gpu"])
        if model.lora_rank:
            lm = policy.add_lora(lm, model.lora_rank, model.lora_alpha, model.lora_dropout, self.config.data.seed)
        self.lm = PackedLM(lm, train.activation_checkpointing)
        # A phase that starts from the base finds its adapters here. A whole model is as it was read before the first
        # phase, and read again after it: a copy would take as much memory in every worker.
        self.initial = policy.trainable_state(lm) if model.lora_rank else None
        self.fresh = True

    def run(self, phase: Phase, shard: Shard) -> dict:
        """Train one phase and save its policy on rank 0; returns its ``steps`` and the ``facts`` for the trace."""
        import torch
        import torch.distributed as dist

        from rayrec.models import item_vectors, policy, sequential

        begun, from_base = time.time(), phase.start == self.base
        phase = dataclasses.replace(
            phase,
            start=phase.start if from_base else str(self.storage.download(phase.start)),
            out=str(self.storage.here(phase.out)),
            items=str(self.storage.download(phase.items)) if phase.items else "",
        )
        self._tell(phase=phase.name, step=0, steps=phase.steps)
        with self._whole():
            if not from_base:
                policy.load_weights(self.lm.model, phase.start)
            elif not self.fresh:
                policy.copy_weights(self.lm.model, self.initial or self._base_state())
        self.fresh = False
        if phase.items:
            item_vectors.attach(self.lm.model, sequential.load(phase.items).table(), self.config.data.seed)
        policy.set_lora_dropout(self.lm.model, phase.dropout)
        self.seen = torch.zeros(2, dtype=torch.float64)  # examples and tokens that went through the model
        done = checkpoint.records_of(checkpoint.folder_of(phase.out), phase.key, self.storage)
        self.resumed = {"resumed_at": len(done)} if done else {}
        engine = self._engine(phase)
        try:
            train = self._prefer if phase.kind == "prefer" else self._sft
            steps = train(engine, phase, done, lambda begun: self._rows(phase, shard, begun))
            self._save(phase)
            proof = self._prove(engine, phase)
        finally:
            optimiser.release(engine)
        dist.all_reduce(self.seen)  # by now rank 0 has saved the policy
        checkpoint.clear_copies(checkpoint.folder_of(phase.out), self.storage)
        examples, tokens = map(int, self.seen)
        seconds = time.time() - begun
        facts = {"examples": examples, "tokens": tokens, "examples_per_s": examples / seconds}
        facts |= {"tokens_per_s": tokens / seconds, "worker_pid": os.getpid(), "peak_memory": peak()}
        return {"steps": steps, "facts": facts | self.resumed, "proof": proof}

    def _base_state(self) -> dict[str, Any]:
        """The weights of the base, read again."""
        from rayrec.models import policy

        return policy.trainable_state(policy.load_base(self.storage.download(self.base), self.config.train.precision))

    def _rows(self, phase: Phase, shard: Shard, begun: int) -> Iterator[list[dict]]:
        """Yield the rows of each step from ``begun`` on as dicts, checked for their step and slots."""
        slots = self._slots(phase)
        for number, batch in enumerate(shard(begun), begun):
            rows = batch.to_pylist()
            found = [(row["step"], row["slot"]) for row in rows]
            assert found == [(number, slot) for slot in slots], f"step {number}, slots {slots} received rows {found}"
            yield [row if row["weight"] else _stub(row) for row in rows]

    def _slots(self, phase: Phase) -> range:
        """Return this worker's slots of the global batch."""
        rows = phase.batch // self.world
        return range(self.rank * rows, (self.rank + 1) * rows)

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped here: at stage 0 in float32 DeepSpeed reads the norm of each by itself, and
        does not tell that of all."""
        train = self.config.train
        return train.zero_stage == 0 and (train.dtype == "float32" or bool(self.config.model.lora_rank))

    def _engine(self, phase: Phase) -> Any:
        """A fresh DeepSpeed engine: optimiser state and schedule belong to one phase."""
        import deepspeed

        train = self.config.train
        trainable: Any = [p for p in self.lm.parameters() if p.requires_grad]
        bucket = min(memory.BUCKET, sum(getattr(p, "ds_numel", p.numel()) for p in trainable))
        settings = {
            # How many passes make a step differs from step to step: _step tells which is the last.
            "train_micro_batch_size_per_gpu": phase.batch // self.world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0 if self.clips else train.clip,
            # They would wait for the GPU before and after every pass.
            "timers": {"throughput": {"enabled": False}},
            # Adapters stay in float32 over a bfloat16 base; DeepSpeed would round them.
            "bf16": {"enabled": train.dtype == "bfloat16" and not self.config.model.lora_rank},
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

    def _sft(self, engine: Any, phase: Phase, done: list[dict], read: Read) -> list[dict]:
        """Weighted log-probabilities over the completion tokens of the global batch; the prompt is not trained on.

        With ``--sft-loss`` another loss of the completion tokens.
        """

        def loss(rows: list[dict]) -> tuple[Any, dict]:
            return -engine(self._pack(rows))[:, 0], {}

        def count(row: dict) -> float:
            return len(row["answers"][0]) if row["weight"] else 0

        steps, around = read(len(done)), dict[str, Any]()
        if phase.items:
            steps, around = self._curriculum(phase, len(done), steps), {"around": partial(self._frozen, engine, phase)}
        if self.catalogue is None or phase.kind == "pretrain":
            return self._steps(engine, phase, done, steps, loss, count, **around)
        by = CatalogueSteps(self.catalogue, self.device, done)

        def over_titles(rows: list[dict]) -> tuple[Any, dict]:
            return by.losses(engine, self._packed(rows), rows)

        return self._steps(engine, phase, done, by.numbered(steps), over_titles, by.count, after=by.after, **around)

    def _shows_items(self, phase: Phase, number: int) -> bool:
        """Whether a step shows item vectors, with a probability that grows with the step, or text alone (LLaRA)."""
        draw = seed_of(self.config.data.seed, phase.name, "curriculum", number) / 2**63
        return draw < (number + 1) / phase.steps

    def _curriculum(self, phase: Phase, begun: int, steps: Iterable[list[dict]]) -> Iterator[list[dict]]:
        """Yield the rows of each step with or without item vectors in their prompts."""
        from rayrec.models.item_vectors import attached

        items: Any = attached(self.lm.model)
        for number, rows in enumerate(steps, begun):
            shown = self._shows_items(phase, number)
            yield rows if shown else [{**row, "prompt": items.hide(row["prompt"])} for row in rows]

    def _frozen(self, engine: Any, phase: Phase, number: int) -> AbstractContextManager:
        """Keep the vectors' network as it is in a text-only step, where Adam's momentum would move it."""
        from rayrec.models.item_vectors import maps

        return nullcontext() if self._shows_items(phase, number) else checkpoint.frozen(engine, maps, self._whole)

    def _prefer(self, engine: Any, phase: Phase, done: list[dict], read: Read) -> list[dict]:
        """The preference step; its reference is the policy that the phase starts from (SPRec section 4.3)."""
        from rayrec.models.logprobs import carried
        from rayrec.objectives import chosen_nll, pairs_of, rewards

        objective, begun, first = self.objective, len(done), self._slots(phase).start
        anchor = self.config.loss.anchor
        further = sorted(objective.reads - set(schema.PREFERENCES.names))
        baseline: float | None = None
        reference_SBA = self._reference(engine, phase, begun, read) if objective.needs_reference else None

        def reference(rows: list[dict]) -> Any:
            """log π_ref of the rows' answers and then of their neighbours, [B, A], zeros behind them."""
            if reference_SBA is not None:
                return reference_SBA[[row["step"] - begun for row in rows], [row["slot"] - first for row in rows]]

        def before(rows: list[dict]) -> None:
            nonlocal baseline
            if "neighbour" in objective.reads:
                baseline = self._baseline(engine, phase, rows, reference)

        def loss(rows: list[dict]) -> tuple[Any, dict]:
            logprob_BA = engine(self._pack(rows))
            ref_BA = reference(rows)
            if ref_BA is not None:
                ref_BA = carried(ref_BA[:, : logprob_BA.shape[1]], logprob_BA.device)
            pairs = pairs_of(logprob_BA, rows, ref_BA, baseline, further)
            margin_B, accuracy_B = rewards(pairs, objective.scale)
            loss_B = objective(pairs) + anchor * chosen_nll(pairs) if anchor else objective(pairs)
            return loss_B, {"reward_margin": margin_B, "reward_accuracy": accuracy_B}

        return self._steps(engine, phase, done, read(begun), loss, lambda row: float(row["weight"] > 0), before)

    def _steps(
        self,
        engine: Any,
        phase: Phase,
        done: list[dict],
        steps: Iterable[list[dict]],
        loss: Loss,
        count: Callable,
        before: Callable[[list[dict]], None] = lambda rows: None,
        around: Callable[[int], AbstractContextManager] = lambda number: nullcontext(),
        after: Callable[[dict], None] = lambda record: None,
    ) -> list[dict]:
        """Do the steps after those that are ``done``, each between ``before(rows)`` and ``after(record)``.

        Each is done within ``around(number)``. Returns the records of all.
        """
        import torch

        folder = checkpoint.folder_of(phase.out)
        self.clock = checkpoint.Clock(self.config.placement)
        if done:
            checkpoint.restore(folder, len(done), engine, self._whole)
        records = list(done)
        for rows in steps:
            # Dropout follows from the number of the step, so a phase that goes on at one draws what it would have.
            if phase.dropout:
                torch.manual_seed(seed_of(self.config.data.seed, phase.name, len(records), self.rank))
            before(rows)
            engine.train()
            with around(len(records)):
                records.append(self._step(engine, phase, len(records), rows, loss, count))
            after(records[-1])
            if len(records) < phase.steps and self.clock.due(len(records), self.late):
                with self.clock.saving():
                    checkpoint.save(folder, phase.key, records, engine, self.rank, self.storage)
        return records

    def _reference(self, engine: Any, phase: Phase, begun: int, read: Read) -> Any:
        """log π_ref of every answer and then of the neighbour, of this worker's rows from step ``begun`` on: [S, B, A].

        One pass without gradients, before training, so no second model is held.
        """
        import torch

        slots, made = self._slots(phase), list[tuple[int, list[int], Any]]()
        engine.eval()
        with torch.no_grad():
            for number, rows in enumerate(read(begun)):
                for micro in self._micro(rows):
                    extra = [[row["neighbour"]] if row["neighbour"] else [] for row in micro]
                    places = [row["slot"] - slots.start for row in micro]
                    made.append((number, places, engine(self._pack(micro, extra))))
                self._tell(phase=phase.name, step=begun, steps=phase.steps, reference=begun + number + 1)
        widest = max((logprob_BA.shape[1] for *_, logprob_BA in made), default=0)
        table_SBA = torch.zeros(phase.steps - begun, len(slots), widest)
        for number, places, logprob_BA in made:  # read at the end, so that a GPU never waits
            table_SBA[number, places, : logprob_BA.shape[1]] = logprob_BA.cpu()
        return table_SBA

    def _baseline(self, engine: Any, phase: Phase, rows: list[dict], reference: Callable[[list[dict]], Any]) -> float:
        """The objective's z of a step, over the global batch, so that the number of workers does not matter."""
        import torch
        import torch.distributed as dist

        engine.eval()
        sums, made = torch.zeros(2, dtype=torch.float64), list[tuple[list[dict], Any]]()
        with torch.no_grad():
            for micro in self._micro(rows):
                # A row without a neighbour goes along: with ZeRO-3 all workers pass the model equally often.
                packed = self._pack([{**row, "answers": [row["neighbour"] or row["answers"][0]]} for row in micro])
                made.append((micro, engine(packed)[:, 0]))
        for micro, logprob_B in made:
            for row, logprob, ref_A in zip(micro, logprob_B.cpu(), reference(micro), strict=True):
                if row["neighbour"]:
                    sums += torch.tensor([logprob - ref_A[len(row["answers"])], 1.0])
        dist.all_reduce(sums)
        return self.objective.reference_point(*sums.tolist())

    def _step(self, engine: Any, phase: Phase, number: int, rows: list[dict], loss: Loss, count: Callable) -> dict:
        """One optimiser step on a global batch; every sum is over all workers, so their number does not matter.

        A GPU is waited for once, at the end, where the sums are read.
        """
        import torch
        import torch.distributed as dist

        from rayrec.models.logprobs import carried

        total = torch.tensor(float(sum(map(count, rows))), dtype=torch.float64)
        dist.all_reduce(total)
        rate = phase.lr * _schedule(phase.schedule, number, phase.steps, phase.warmup)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Any] = {}
        losses: list[tuple[list[dict], Any]] = []
        micros, norm = self._micro(rows), None
        for micro in micros:
            engine.set_gradient_accumulation_boundary(last := micro is micros[-1])
            loss_B, logged = loss(micro)
            weight_B = carried(torch.tensor([row["weight"] for row in micro]), loss_B.device)
            share = (weight_B * loss_B).sum() / float(total)
            losses.append((micro, loss_B.detach()))
            for name, value_B in {"loss": loss_B.detach(), **logged}.items():
                part = (weight_B * value_B.detach()).sum().double() / float(total)
                sums[name] = sums.get(name, 0) + part
            # DeepSpeed averages over workers; the share is already of the global batch.
            engine.backward(share * self.world)
            if last and self.clips:
                trained = [p for p in self.lm.parameters() if p.grad is not None]
                norm = torch.nn.utils.clip_grad_norm_(trained, self.config.train.clip)
            engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        norm = torch.as_tensor(0.0 if norm is None else norm).double().to(losses[-1][1].device)
        *values, norm = torch.stack([*sums.values(), norm]).cpu()
        values = torch.stack([*values, torch.tensor(self.clock.late(self.rank), dtype=torch.float64)])
        dist.all_reduce(values)
        self.late, norm = bool(values[-1]), float(norm)
        if not math.isfinite(values[0]) or not math.isfinite(norm):
            raise FloatingPointError(
                f"{phase.name}: step {number + 1} has loss {float(values[0])} and gradient norm {norm}; nothing of "
                f"this phase is kept. Its examples: {self._suspects(losses)[:16]}. Lower --lr, or look at these rows."
            )
        self._tell(phase=phase.name, step=number + 1, steps=phase.steps, loss=float(values[0]))
        record = {name: float(v) for name, v in zip(sums, values[:-1], strict=True)}
        return {"step": number + 1, **record, "grad_norm": norm, "lr": rate}

    def _suspects(self, losses: list[tuple[list[dict], Any]]) -> list[str]:
        """Ids of the examples of all ranks whose own loss is not finite; of all examples where every one is."""
        import torch.distributed as dist

        own = [
            (row["example_id"], math.isfinite(loss))
            for rows, loss_B in losses
            for row, loss in zip(rows, loss_B.tolist(), strict=True)
        ]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, own)
        ids = [one for some in found for one in some]
        return [name for name, fine in ids if not fine] or [name for name, _ in ids]

    def _tell(self, **facts: Any) -> None:
        """Report how far the phase is."""
        self.told = facts
        self.report(**facts)

    def _micro(self, rows: list[dict]) -> list[list[dict]]:
        """Cut a worker's rows of one step into micro-batches of similar length, as many as the other workers."""
        import torch
        import torch.distributed as dist

        def size(row: dict) -> int:
            return len(row["prompt"]) + sum(map(len, row["answers"]))

        rows = sorted(rows, key=lambda row: (size(row), row["slot"]))
        counts = [(size(row), sum(map(len, row["answers"]))) for row in rows]
        parts = torch.tensor(self.memory.passes(counts))
        dist.all_reduce(parts, dist.ReduceOp.MAX)
        return [rows[a:b] for a, b in memory.cuts(len(rows), int(parts))]

    def _pack(self, rows: list[dict], extra: list[list[list[int]]] | None = None) -> Any:
        """Pack the examples of ``rows``, each with its answers and then the ``extra`` ones, on the device."""
        return self._packed(rows, extra).to(self.device)

    def _packed(self, rows: list[dict], extra: list[list[list[int]]] | None = None) -> Any:
        """The same on the host; a pass is a heartbeat."""
        from rayrec.models.logprobs import pack

        more = extra or [[]] * len(rows)
        examples = [(row["prompt"], row["answers"] + other) for row, other in zip(rows, more, strict=True)]
        packed = pack(examples, self.config.train.row_tokens, multiple=self.multiple)
        self.report(**self.told)
        self.seen[0] += sum(1 for row in rows if row["weight"])
        self.seen[1] += packed.ids_RT.numel()
        return packed

    def _whole(self) -> AbstractContextManager:
        """Gather parameters that ZeRO-3 has split, for loading (rank 0's values reach all) and saving."""
        import deepspeed

        split = [p for p in self.lm.parameters() if hasattr(p, "ds_id")]
        return deepspeed.zero.GatheredParameters(split, modifier_rank=0) if split else nullcontext()

    def _prove(self, engine: Any, phase: Phase) -> dict[str, Any] | None:
        """State on rank 0 what was trained and written, for the generators that will load it; every rank computes."""
        import torch

        from rayrec.models.logprobs import pack
        from rayrec.models.proof import folder_statement

        if self.probe is None:
            return None
        engine.eval()
        with torch.no_grad():
            logprob_BA = engine(pack([(self.probe.prompt, [self.probe.answer])]).to(self.device))
        if self.rank:
            return None
        return folder_statement(phase.out, self.lm.model, self.probe, float(logprob_BA[0, 0]))

    def _save(self, phase: Phase) -> None:
        from rayrec.models import policy

        with self._whole():
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


def _stub(row: dict) -> dict:
    """Shorten padding to one token each: with ZeRO all workers must run the model equally often, also for padding."""
    short = {"prompt": row["prompt"][:1], "answers": [answer[:1] for answer in row["answers"]]}
    return row | short | {"neighbour": row["neighbour"] and row["neighbour"][:1]}


def _schedule(name: str, step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linear or cosine decay, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[name]
