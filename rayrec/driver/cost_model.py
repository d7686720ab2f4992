"""Estimated seconds, memory and traffic of a run on a cluster (``--dry-run --cluster 8x8xH100``).

The cost model, for N weights in blocks of L layers and hidden size H, V words, and rows of T tokens of which A are
answers:

* A forward pass of a row costs (2 N + 4 L H T) T + 2 V H A operations, less 2 M for each place of the prompt but its
  last, with M weights in the last block's MLP, unless activations are made twice. Training costs it three times; twice
  where the base is frozen (adapters); a preference step adds one pass for the reference. Padding adds 15 %.
* A step takes the longer of its operations at the devices' training rate and of its gradients' exchange, plus ``step``
  for each micro-batch of a worker; a preference step a third more, for the reference.
* A part of prompts takes their forward pass at the generation rate; then for every token of the longest answer the
  longer of its operations and of reading all weights once, plus ``token``.
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
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayrec.config import Config
from rayrec.data.candidates import CANDIDATES
from rayrec.decoding.beam import ALPHAS
from rayrec.driver import plan
from rayrec.driver.checks import Lengths
from rayrec.driver.prepare import Prepared
from rayrec.lanes import Planned
from rayrec.models.shape import Shape
from rayrec.negatives import NEGATIVES, Sampler, mixture
from rayrec.report.terminal import size, span
from rayrec.training.memory import Memory


@dataclass(frozen=True)
class Device:
    """Speed and memory of a device, and the shares that are reached. GPUs have the data sheets' dense figures."""

    bfloat16: float
    """Operations per second."""
    float32: float
    bandwidth: float
    """Bytes per second between the device and its memory."""
    memory: float
    link: float
    """Bytes per second from one device to another of its node."""
    train: float = 0.35
    """Share of the operations that a training step reaches."""
    generate: float = 0.4
    """Share of them that the pass of a prompt reaches."""
    step: float = 0.02
    """Further seconds per micro-batch."""
    token: float = 0.01
    """Further seconds per token of the longest answer of a part."""
    phase: float = 5.0
    """Further seconds per phase."""
    start: float = 60.0
    """Seconds until the processes are up and have read the model."""
    cores: bool = False
    """Whether it is a core, of which a process takes as many as it has threads."""


#: Bytes per second that a node sends to others: 400 Gbit/s.
_NETWORK = 50e9
#: Shares, steps and phases of GPUs are assumptions. Those of ``cpu``, one core of an AMD EPYC with AVX-512, were fitted
#: to two runs, `fitted` and `model` of jobs/benches/estimate.py, which checks them on others.
DEVICES = {
    "H100": Device(989e12, 67e12, 3.35e12, 80e9, 450e9),
    "H200": Device(989e12, 67e12, 4.8e12, 141e9, 450e9),
    "A100": Device(312e12, 19.5e12, 2.04e12, 80e9, 300e9),
    "L40S": Device(362e12, 91.6e12, 0.864e12, 48e9, 32e9),
    "cpu": Device(260e9, 260e9, 10e9, 12e9, 5e9, 1.0, 1.0, step=0.018, token=0.003, phase=1.3, start=24.0, cores=True),
}
#: n threads of one process compute as fast as n ** this cores.
_THREADS = 0.5
#: Computed tokens per real token: rows of a batch differ in length.
_PADDING = 1.15
#: Bytes of a training row's id, place and weight.
_ROW = 60


def parse(cluster: str) -> tuple[int, int, str]:
    """Return nodes, devices of a node and their kind of ``8x8xH100``.

    Raises:
        ValueError: another form, or a kind without figures.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\w+)", cluster)
    kinds = {name.lower(): name for name in DEVICES}
    if not found or found[3].lower() not in kinds or not int(found[1]) or not int(found[2]):
        raise ValueError(
            f"--cluster {cluster}: wanted NODESxDEVICESxKIND, such as 8x8xH100, with a kind of {', '.join(DEVICES)}."
        )
    return int(found[1]), int(found[2]), kinds[found[3].lower()]


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
        workers = self.config.placement.train_workers
        passes = (2 if self.config.model.lora_rank else 3) + (phase.kind == "prefer")
        operations = _PADDING * phase.rows * phase.epochs * passes * self._forward(*self._row(phase.kind))
        computing = operations / phase.batches / workers / self._rate(self.device.train, phase.name.startswith("00/"))
        exchange = self._exchanged() / workers / self._link()
        length, answers, _ = self._row(phase.kind)
        batch = self.config.batches.get(f"{phase.kind}_batch", self.config.train.batch)
        most, _ = self.memory.largest(length, answers, batch)
        micro = -(-batch // (workers * most)) * (4 / 3 if phase.kind == "prefer" else 1)
        return phase.batches * (max(computing, exchange) + micro * self.device.step) + self.device.phase

    def _link(self) -> float:
        """Bytes per second of a worker to the next: within the node, or its share of the node's network."""
        inside = self.config.placement.train_workers <= self.each
        return self.device.link if inside else min(self.device.link, _NETWORK / self.each)

    def _exchanged(self) -> float:
        """Bytes that all workers send in one step, in rings."""
        stage, others = self.config.train.zero_stage, self.config.placement.train_workers - 1
        sent = others * self.memory.trained * self.memory.trained_bytes * (3 if stage in (1, 2) else 2)
        return sent + (2 * others * self.shape.parameters * self._bytes if stage == 3 else 0)

    def sent(self, phases: Sequence[Planned]) -> float:
        """Bytes that all workers send in the training phases among ``phases``: each begins with the first's weights."""
        adapters = self.memory.trained * self.memory.trained_bytes if self.config.model.lora_rank else 0
        spread = (self.config.placement.train_workers - 1) * (self.shape.parameters * self._bytes + adapters)
        return sum(phase.batches * self._exchanged() + spread for phase in phases if phase.makes_policy)

    def _asking(self, mode: str | None, rows: int, width: int) -> float:
        """Seconds in which all generators give ``width`` answers to ``rows`` prompts; no mode asks nothing."""
        evaluate, placement, shape = self.config.evaluate, self.config.placement, self.shape
        if mode is None:
            return 0.0
        if mode == "d3" and evaluate.d3_alpha is None:
            rows += len(ALPHAS) * self.valid  # its weight is tuned there
        rate = self._rate(self.device.generate) * placement.tensor_parallel
        prompt, part = self.tokens.prompt, min(evaluate.part, rows)
        rounds = -(-rows // part) / min(placement.generators, -(-rows // part))
        if mode == "score":
            length = prompt + width * self.tokens.answer
            return rounds * (part * self._forward(length, length - prompt, prompt - 1) / rate + self.device.token)
        token = part * width * self._forward(1, 1) / rate
        weights = shape.parameters * self._bytes / placement.tensor_parallel / self.device.bandwidth
        steps = min(self.tokens.longest, 2 * self.tokens.answer)
        return rounds * (part * self._forward(prompt, 1) / rate + steps * (max(token, weights) + self.device.token))

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
    found = estimate(config, ready.phases, ready.tokens, ready.shape, len(ready.data.valid), device)
    if found["total"] < 3600:
        return {}
    phase, longest = max(found["seconds"].items(), key=lambda item: item[1])
    text = (
        f"about {span(found['total'])} from the start to the end here ({phase} {span(longest)}); fewer --first-rows, "
    )
    return {"time": text + "--rows-per-iteration, --test-rows and --iterations take less"}


def of_plan(ready: Prepared) -> dict[str, Any]:
    """The additions to the plan of a run on ``--cluster``: ``estimate``, its ``lines``, and ``phases`` with seconds."""
    found = estimate(ready.config, ready.phases, ready.tokens, ready.shape, len(ready.data.valid))
    times = found.pop("seconds")
    phases = [row | {"seconds": times[row["phase"]]} for row in ready.shown["phases"]]
    told = {name: text for name, text in ready.shown["lines"].items() if name != "memory"}  # of this machine
    return {"estimate": found, "lines": told | lines(found), "phases": phases}


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
