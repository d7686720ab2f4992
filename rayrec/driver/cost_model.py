"""Estimated seconds, memory and traffic of a run on a cluster (``--dry-run --cluster 8x8xH100``).

The cost model, for N weights in blocks of L layers and hidden size H, V words, and rows of T tokens of which A are
answers:

* A forward pass of a row costs (2 N + 4 L H T) T + 2 V H A operations, less 2 M for each place of the prompt but its
  last, with M weights in the last block's MLP, unless activations are made twice. Training costs it three times; twice
  where the base is frozen (adapters); a preference step adds one pass for the reference. Padding adds 15 %.
* A step takes the longer of its work and of its gradients' exchange. The work is its operations at the devices'
  training rate; on a GPU also what norms, gates, residuals and adapters move between the card and its memory, each
  number of a layer ``moves`` times (``adapted`` times with adapters), and at least ``launch`` for each of the kernels
  that a layer launches (KERNELS, which tests/training/test_counts.py counts). A micro-batch of a worker takes ``step``
  more, and a preference step has a third more of them, for the reference.
* A part of prompts takes their forward pass at the generation rate; then for every token of the longest answer the
  longer of its operations and of reading all weights once, plus ``token``. An engine that answers several parts at once
  reads the weights once for all of them.
* Phases follow each other on the two lanes of the loop, each after the phases that it reads, ``phase`` seconds apart;
  the first begins after ``start`` seconds. An iteration is the time from one policy to the next.
* Workers exchange their weights when a phase begins. In a step all gradients circulate twice and, under ZeRO-1 and 2,
  the new weights once; under ZeRO-3 the gradients and the weights twice.
* A training worker holds DeepSpeed's state and the activations that a Llama's layers keep
  (rayrec/training/memory.py); 15 % more of these for padding.

A SASRec, Popular and grounding are not counted.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rayrec.config import ALPHAS, Config
from rayrec.data.candidates import CANDIDATES
from rayrec.driver import plan
from rayrec.driver.checks import Lengths
from rayrec.driver.device import DEVICES, KERNELS, NETWORK, Device, parse
from rayrec.driver.prepare import Prepared
from rayrec.lanes import Planned
from rayrec.models.shape import Shape
from rayrec.negatives import NEGATIVES, Sampler, mixture
from rayrec.report.terminal import size, span
from rayrec.training.memory import Memory

#: n threads of one process compute as fast as n ** this cores.
_THREADS = 0.5
#: Computed tokens per real token: rows of a batch differ in length.
_PADDING = 1.15
#: Bytes of a training row's id, place and weight.
_ROW = 60


def estimate(
    config: Config, phases: Sequence[Planned], tokens: Lengths, shape: Shape, valid: int, device: Device | None = None
) -> dict[str, Any]:
    """Seconds of every phase, of an iteration and of the run; bytes per device, and bytes moved in an iteration.

    ``valid`` counts the validation rows, ``device`` replaces the figures of the cluster's kind. Where devices are
    cores, the processes share them out.

    Raises:
        ValueError: the cluster has fewer devices than the plan takes.
    """
    nodes, each, kind = parse(config.placement.cluster or "")
    placement = config.placement
    generating = placement.generators * placement.tensor_parallel
    shared = placement.placement == "shared"
    taken = max(placement.train_workers, generating) if shared else placement.train_workers + generating
    if taken > nodes * each:
        raise ValueError(
            f"--cluster {placement.cluster} has {nodes * each} devices, the plan takes {taken}. Lower --train-workers, "
            "--generators or --tensor-parallel."
        )
    cores = placement.threads or nodes * each // taken, placement.threads or nodes * each // placement.train_workers
    work = Work(config, tokens, shape, valid, device or DEVICES[kind], each, cores)
    seconds = {phase.name: work.seconds(phase) for phase in phases}
    ends = _ends(phases, seconds, placement.sequential or shared, work.device.start)
    made = [(phase.name, ends[phase.name]) for phase in phases if phase.makes_policy]
    first = max((end for name, end in made if name.startswith("00/")), default=work.device.start)
    turns = config.train.iterations
    return {
        "cluster": placement.cluster,
        "devices": {"used": taken, "there": nodes * each},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "first": round(first, 1),
        "iteration": round((max(end for _, end in made) - first) / turns, 1) if turns else None,
        "total": round(max(ends.values()), 1),
        "memory": {"there": work.device.memory, "trainer": work.trainer_bytes(), "generator": work.generator_bytes()},
        "moved": work.moved([p for p in phases if p.name.startswith("01/")]) if turns else {},
    }


def _ends(phases: Sequence[Planned], seconds: dict[str, float], one_lane: bool, begun: float) -> dict[str, float]:
    """When each phase ends: two lanes, each free for what can start first, negatives before evaluations."""
    ends: dict[str, float] = {}
    lanes: dict[bool, float] = {}
    left = list(phases)
    names = {phase.name for phase in phases}
    while left:
        options = []
        for number, phase in enumerate(left):
            needs = {*phase.needs}
            if needs & names <= ends.keys():
                lane = one_lane or phase.makes_policy
                start = max(lanes.get(lane, begun), *(ends[n] for n in needs & names), begun)
                options.append((start, phase.kind != "negatives", number, lane))
        start, _, number, lane = min(options)
        phase = left.pop(number)
        ends[phase.name] = lanes[lane] = start + seconds[phase.name]
    return ends


class Step(NamedTuple):
    """Seconds of one optimiser step on one worker."""

    computing: float
    launching: float
    """Of the host, for its kernels."""
    exchange: float
    beside: float
    """Of each micro-batch, beside the longest of the others."""


@dataclass(frozen=True)
class Work:
    """The cost model, put to one plan."""

    config: Config
    tokens: Lengths
    shape: Shape
    valid: int
    device: Device
    each: int
    threads: tuple[int, int]
    """CPU threads of a process beside others, and of a trainer alone."""

    @property
    def _bytes(self) -> int:
        return 2 if self.config.train.dtype == "bfloat16" else 4

    @property
    def memory(self) -> Memory:
        """The memory of a training worker."""
        return Memory(self.shape, self.config, not self.device.cores)

    def _rate(self, share: float, alone: bool = False) -> float:
        """Operations per second of one process."""
        peak = self.device.bfloat16 if self._bytes == 2 else self.device.float32
        cores = self.threads[alone] ** _THREADS if self.device.cores else 1.0
        return peak * share * cores

    def _forward(self, length: float, answers: float, unread: float = 0.0) -> float:
        """Operations of one row's forward pass; ``unread`` places predict nothing."""
        shape = self.shape
        blocks = (2 * shape.blocks + 4 * shape.layers * shape.hidden * length) * length - 2 * shape.last_mlp * unread
        return blocks + 2 * shape.words * answers

    def _row(self, kind: str) -> tuple[float, float, float]:
        """Tokens that a training row puts in, those that it predicts, and those that predict none.

        An answer's last one is no input.
        """
        prompt, answer = self.tokens.prompt, self.tokens.answer
        if kind == "pretrain":
            return prompt + answer, prompt + answer, 0
        answers = 1 + self.config.train.num_negatives * (kind == "prefer")
        unread = 0 if self.config.train.activation_checkpointing else prompt - 1
        return prompt + answers * (answer - 1), answers * answer, unread

    def seconds(self, phase: Planned) -> float:
        """Seconds of one phase."""
        if phase.makes_policy:
            return self._training(phase)
        if phase.kind == "negatives":
            shares = mixture.parse(self.config.train.negatives)
            found = sum(share * self._drawing(NEGATIVES[name], phase.rows) for name, share in shares.items())
            return found + self.device.phase * (found > 0)
        if phase.kind == "evaluate":
            rows, widths = phase.rows, {"greedy": 1, "score": CANDIDATES}
            if self.config.data.ask == "liking":  # every candidate alone: Yes or No
                rows, widths = CANDIDATES * rows, {"score": 2}
            width = self.config.evaluate.beam_width
            found = sum(self._asking(m, rows, widths.get(m, width)) for m in self.config.evaluate.decode)
            return found + self.device.phase
        return 0.0

    def _drawing(self, sampler: Sampler, rows: int) -> float:
        """Seconds for the rejected answers of ``rows`` examples, and with --score-negatives for scoring drawn ones."""
        k = self.config.train.num_negatives
        written = sampler.answers(k) if sampler.decode else 0
        drawn = max(0, k - written) if self.config.train.score_negatives else 0
        return self._asking(sampler.decode, rows, written) + (self._asking("score", rows, drawn) if drawn else 0.0)

    def _training(self, phase: Planned) -> float:
        return phase.batches * self.step_seconds(phase) + self.device.phase

    def step_seconds(self, phase: Planned) -> float:
        """Seconds of one optimiser step of a training phase, the phase's share of the reference's pass included."""
        step = self.step(phase)
        return max(step.computing, step.launching, step.exchange) + step.beside

    def step(self, phase: Planned) -> Step:
        """Parts of the time of one optimiser step of a training phase, in seconds."""
        workers, preferring = self.config.placement.train_workers, phase.kind == "prefer"
        adapted, more = bool(self.config.model.lora_rank), 4 / 3 if preferring else 1
        length, answers, _ = row = self._row(phase.kind)
        rows = _PADDING * phase.rows * phase.epochs / phase.batches / workers
        operations = rows * ((2 if adapted else 3) + preferring) * self._forward(*row)
        computing = operations / self._rate(self.device.train, phase.name.startswith("00/"))
        numbers = self.shape.layers * (4 * self.shape.hidden + 3 * self.shape.mlp)
        moved = rows * length * numbers * (self.device.adapted if adapted else self.device.moves) * more * self._bytes
        batch = self.config.batches.get(f"{phase.kind}_batch", self.config.train.batch)
        most, _ = self.memory.largest(length, answers, batch)
        micro = -(-batch // (workers * most)) * more
        launching = micro * self.shape.layers * KERNELS[adapted] * self.device.launch
        exchange = self._exchanged() / workers / self._link()
        return Step(computing + moved / self.device.bandwidth, launching, exchange, micro * self.device.step)

    def _link(self) -> float:
        """Bytes per second of a worker to the next: within the node, or its share of the node's network."""
        inside = self.config.placement.train_workers <= self.each
        return self.device.link if inside else min(self.device.link, NETWORK / self.each)

    def _exchanged(self) -> float:
        """Bytes that all workers send in one step, in rings: gradients in float32, and from ZeRO-1 on new weights."""
        stage, others = self.config.train.zero_stage, self.config.placement.train_workers - 1
        number = 2 * 4 + (self.memory.trained_bytes if stage in (1, 2) else 0)
        sent = others * self.memory.trained * number
        return sent + (2 * others * self.shape.parameters * self._bytes if stage == 3 else 0)

    def sent(self, phases: Sequence[Planned]) -> float:
        """Bytes that all workers send in the training phases among ``phases``: each begins with the first's weights."""
        adapters = self.memory.trained * self.memory.trained_bytes if self.config.model.lora_rank else 0
        spread = (self.config.placement.train_workers - 1) * (self.shape.parameters * self._bytes + adapters)
        return sum(phase.batches * self._exchanged() + spread for phase in phases if phase.makes_policy)

    def _asking(self, mode: str | None, rows: int, width: int) -> float:
        """Seconds in which all generators give ``width`` answers to ``rows`` prompts; no mode asks nothing."""
        evaluate, placement = self.config.evaluate, self.config.placement
        if mode is None:
            return 0.0
        if mode == "d3" and evaluate.d3_alpha is None:
            rows += len(ALPHAS) * self.valid  # its weight is tuned there
        part = min(evaluate.part, rows)
        count = -(-rows // part)
        each = -(-count // placement.generators)  # parts of the generator that has most
        together = min(each, self.in_flight(mode))
        return count / min(placement.generators, count) / together * self.part_seconds(mode, part, width, together)

    def in_flight(self, mode: str) -> int:
        """Parts that a generator answers at once."""
        from rayrec.generation import ENGINES

        name = self.config.evaluate.engine
        engine = ENGINES["vllm" if name == "auto" else name]
        return engine.in_flight(not self.device.cores) if mode in engine.together else 1

    def part_seconds(self, mode: str, rows: int, width: int, together: int = 1) -> float:
        """Seconds in which a generator answers ``together`` parts of ``rows`` prompts at once."""
        placement, shape, prompt, rows = self.config.placement, self.shape, self.tokens.prompt, rows * together
        rate = self._rate(self.device.generate) * placement.tensor_parallel
        if mode == "score":
            length = prompt + width * self.tokens.answer
            return rows * self._forward(length, length - prompt, prompt - 1) / rate + self.device.token
        token = rows * width * self._forward(1, 1) / rate
        weights = shape.parameters * self._bytes / placement.tensor_parallel / self.device.bandwidth
        steps = min(self.tokens.longest, 2 * self.tokens.answer)
        return rows * self._forward(prompt, 1) / rate + steps * (max(token, weights) + self.device.token)

    def trainer_bytes(self) -> float:
        """Bytes of a training worker at its largest, in the backward pass of its largest micro-batch."""
        train = self.config.train
        length, answers, _ = self._row("prefer" if train.prefer and train.iterations else "sft")
        _, computing = self.memory.largest(length, answers, max(train.batch, train.prefer_batch))
        return self.memory.held_bytes(_PADDING * computing)

    def generator_bytes(self) -> float:
        """Bytes that one device of a generator needs: its part of the weights, and of a part's key-value cache."""
        return plan.generator_bytes(self.config, self.tokens, self.shape, gpu=True)

    def moved(self, phases: Sequence[Planned]) -> dict[str, float]:
        """Bytes that one iteration moves between processes, by what they are."""
        generators, rank = self.config.placement.generators, self.config.model.lora_rank
        asked = sum(phase.rows for phase in phases if not phase.makes_policy)
        whole = not rank or self.device.cores  # where adapters are merged for the generators
        policy = self.shape.parameters * self._bytes if whole else self.memory.trained * 4
        trained = sum(p.rows * p.epochs * (4 * self._row(p.kind)[0] + _ROW) for p in phases if p.makes_policy)
        return {
            "gradients": self.sent(phases),
            "policies": policy * generators * sum(p.kind in ("negatives", "evaluate") for p in phases),
            "rows": trained + 4.0 * asked * (self.tokens.prompt + self.tokens.answer),
        }


def _core(dtype: str) -> Device:
    """A core of this machine by the speed of its matrix products, of which real models reach about a half."""
    import torch

    kind, before = getattr(torch, dtype), torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.ones(1024, 576, dtype=kind), torch.ones(576, 1536, dtype=kind)
    took = []
    for _ in range(8):
        begun = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - begun)
    torch.set_num_threads(before)
    speed = 2 * 1024 * 576 * 1536 / min(took)
    return dataclasses.replace(DEVICES["cpu"], bfloat16=speed, float32=speed, train=0.5, generate=0.5)


def time_here(ready: Prepared) -> dict[str, str]:
    """The plan's line about the time on this machine, of a real model that takes more than an hour."""
    config, placement = ready.config, ready.config.placement
    kind = next((name for name in DEVICES if name in ready.device), None)
    if config.model.model == "tiny" or config.evaluate.endpoint or placement.cluster or kind is None:
        return {}
    taken = placement.train_workers + placement.generators * placement.tensor_parallel
    cluster = f"1x{max(taken, os.cpu_count() or 1) if kind == 'cpu' else taken}x{kind}"
    config = dataclasses.replace(config, placement=dataclasses.replace(placement, cluster=cluster))
    device = _core(config.train.precision) if kind == "cpu" else DEVICES[kind]
    idle = idle_trainers(config, ready.phases, Work(config, ready.tokens, ready.shape, 0, device, 1, (1, 1)))
    found = estimate(config, ready.phases, ready.tokens, ready.shape, len(ready.data.valid), device)
    if found["total"] < 3600:
        return idle
    phase, longest = max(found["seconds"].items(), key=lambda item: item[1])
    text = f"about {span(found['total'])} from the start to the end here ({phase} {span(longest)}); fewer "
    return {"time": f"{text}--first-rows, --rows-per-iteration, --test-rows and --iterations take less", **idle}


def idle_trainers(config: Config, phases: Sequence[Planned], work: Work) -> dict[str, str]:
    """The plan's line about training workers that gain nothing: each launches a whole pass for its few rows."""
    workers = config.placement.train_workers
    for phase in phases if workers > 1 else ():
        if not phase.makes_policy:
            continue
        step = work.step(phase)
        if step.computing < step.launching:
            name = "prefer_batch" if phase.kind == "prefer" else "batch"
            most, all_ = int(workers * step.computing / step.launching), config.batches.values()
            enough = next(n for n in range(max(1, most), 0, -1) if not any(batch % n for batch in all_))
            text = (
                f"{phase.name}: a worker's {config.batches[name] // workers} rows of a batch compute for "
                f"{1e3 * step.computing:.0f} ms and take {1e3 * step.launching:.0f} ms to launch (estimated), so "
                f"{workers} training workers are hardly faster than {enough}. Take --train-workers {enough}, or larger "
                "--batch and --prefer-batch under another --name"
            )
            return {"trainers": text}
    return {}


def of_plan(ready: Prepared) -> dict[str, Any]:
    """The additions to the plan of a run on ``--cluster``: ``estimate``, its ``lines``, and ``phases`` with seconds."""
    found = estimate(ready.config, ready.phases, ready.tokens, ready.shape, len(ready.data.valid))
    times = found.pop("seconds")
    phases = [row | {"seconds": times[row["phase"]]} for row in ready.shown["phases"]]
    told = {name: text for name, text in ready.shown["lines"].items() if name != "memory"}  # of this machine
    _, each, kind = parse(ready.config.placement.cluster or "")
    work = Work(ready.config, ready.tokens, ready.shape, 0, DEVICES[kind], each, (1, 1))
    idle = idle_trainers(ready.config, ready.phases, work)
    return {"estimate": found, "lines": told | lines(found) | idle, "phases": phases}


def lines(found: Mapping[str, Any]) -> dict[str, str]:
    """The lines of an estimate for people, by their names."""
    devices = f"{found['devices']['used']} of {found['devices']['there']} devices of {found['cluster']}"
    turn = found["iteration"]
    parts = [f"iteration 0 in {span(found['first'])}", *([f"each further one in {span(turn)}"] if turn else [])]
    memory = found["memory"]
    needs = [f"{name} {size(memory[name])}" for name in ("trainer", "generator")]
    short = "" if max(memory["trainer"], memory["generator"]) < memory["there"] else "; it does not fit"
    moved = ", ".join(f"{name} {size(count)}" for name, count in found["moved"].items())
    return {
        "estimate": f"{devices}: {', '.join(parts)}, in all {span(found['total'])}",
        "memory": f"of a device's {size(memory['there'])}: {', '.join(needs)}{short}",
        "moved": f"in an iteration: {moved}" if moved else "",
    }
