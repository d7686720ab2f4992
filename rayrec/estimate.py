"""What a run would take on a cluster that is not there: seconds, memory and traffic (``--dry-run --cluster 8x8xH100``).

The cost model, for N weights in blocks of L layers and hidden size H, V words, and rows of T tokens of which A are
answers:

* A forward pass of a row costs (2 N + 4 L H T) T + 2 V H A operations, less 2 M for each place of the prompt but its
  last, with M weights in the last block's MLP, unless activations are made twice. Training costs it three times; twice
  where the base is frozen (adapters); a preference step adds one pass for the reference. Padding adds 15 %.
* A step takes the longer of its operations at the devices' training rate and of its gradients' exchange, plus ``step``.
* A part of prompts takes their forward pass at the generation rate; then for every token of the longest answer the
  longer of its operations and of reading all weights once, plus ``token``.
* Phases follow each other on the two lanes of the loop, each when what it reads is finished, ``phase`` seconds apart;
  the first begins after ``start`` seconds.

A SASRec, Popular and grounding are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayrec.config import Config
from rayrec.data.candidates import CANDIDATES
from rayrec.negatives import NEGATIVES, mixture
from rayrec.plan import Lengths, PhasePlan


@dataclass(frozen=True)
class Device:
    """What a device can do, and the share of it that is reached. Of GPUs the data sheets' dense figures."""

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
    """Seconds that an optimiser step takes besides."""
    token: float = 0.01
    """Seconds that one more token of all answers of a part takes besides."""
    phase: float = 5.0
    """Seconds that a phase takes besides."""
    start: float = 60.0
    """Seconds until the processes are up and have read the model."""


#: Bytes per second that a node sends to others: 400 Gbit/s.
_NETWORK = 50e9
#: Shares, steps and phases of GPUs are assumptions. Those of ``cpu``, one core of an AMD EPYC with AVX2, were fitted to
#: one measured run (README, "Cluster").
DEVICES = {
    "H100": Device(989e12, 67e12, 3.35e12, 80e9, 450e9),
    "H200": Device(989e12, 67e12, 4.8e12, 141e9, 450e9),
    "A100": Device(312e12, 19.5e12, 2.04e12, 80e9, 300e9),
    "L40S": Device(362e12, 91.6e12, 0.864e12, 48e9, 32e9),
    "cpu": Device(34e9, 34e9, 10e9, 12e9, 5e9, 1.0, 1.0, step=0.04, token=0.012, phase=3.5, start=20.0),
}
#: n threads of one process do as much as n ** this cores, which the other processes leave them.
_THREADS = 0.5
#: Tokens that are computed for one that is meant: rows of a batch are not equally long.
_PADDING = 1.15


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal LM."""

    blocks: int
    """Weights besides the words' embeddings."""
    words: int
    """Weights of the words' embeddings; ``tied``: the head's are the same."""
    tied: bool
    layers: int
    hidden: int
    kv: int
    """Numbers that a token leaves in the key-value cache."""
    last_mlp: int
    """Weights of the last block's MLP, which prompts pass by (logprobs.py)."""
    adapters: int
    """Weights of adapters of rank 1 on all linear layers but the head."""

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.blocks + self.words * (1 if self.tied else 2)

    @classmethod
    def of(cls, model: str) -> Shape:
        """Read from the configuration of a folder or hub id alone."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from rayrec.logprobs import last_mlp

        settings: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            lm: Any = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        head, words = lm.get_output_embeddings(), lm.get_input_embeddings().weight
        linear = [m for m in lm.modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]
        text = settings.get_text_config()
        heads = text.num_attention_heads
        kv_heads, size = getattr(text, "num_key_value_heads", None) or heads, words.shape[1] // heads
        total, tied = sum(p.numel() for p in lm.parameters()), head.weight is words
        return cls(
            blocks=total - words.numel() * (1 if tied else 2),
            words=words.numel(),
            tied=tied,
            layers=text.num_hidden_layers,
            hidden=words.shape[1],
            last_mlp=sum(p.numel() for p in mlp.parameters()) if (mlp := last_mlp(lm)) is not None else 0,
            kv=2 * text.num_hidden_layers * kv_heads * (getattr(text, "head_dim", None) or size),
            adapters=sum(sum(m.weight.shape) for m in linear),
        )


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


def estimate(config: Config, phases: Sequence[PhasePlan], tokens: Lengths, shape: Shape, valid: int) -> dict[str, Any]:
    """Seconds of every phase, of an iteration and of the run; bytes per device, and bytes moved in an iteration.

    ``valid`` counts the validation rows. Where devices are cores, the processes share them out.

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
    work = _Work(config, tokens, shape, valid, DEVICES[kind], each, cores)
    seconds = {phase.name: work.seconds(phase) for phase in phases}
    ends = _ends(phases, seconds, placement.sequential or shared, work.device.start)
    first, last = max(end for name, end in ends.items() if name.startswith("00/")), max(ends.values())
    turns = config.train.iterations
    return {
        "cluster": placement.cluster,
        "devices": {"used": taken, "there": nodes * each},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "first": round(first, 1),
        "iteration": round((last - first) / turns, 1) if turns else None,
        "total": round(last, 1),
        "memory": {"there": work.device.memory, "trainer": work.trainer_bytes(), "generator": work.generator_bytes()},
        "moved": work.moved([p for p in phases if p.name.startswith("01/")]) if turns else {},
    }


def _ends(phases: Sequence[PhasePlan], seconds: dict[str, float], one_lane: bool, begun: float) -> dict[str, float]:
    """When each phase ends: two lanes, each free for what can start first, negatives before evaluations."""
    ends: dict[str, float] = {}
    lanes: dict[bool, float] = {}
    left = list(phases)
    names = {phase.name for phase in phases}
    while left:
        options = []
        for number, phase in enumerate(left):
            needs = {*phase.needs, *([phase.name.replace("prefer", "negatives")] if phase.kind == "prefer" else [])}
            if needs & names <= ends.keys():
                lane = one_lane or phase.makes_policy
                start = max(lanes.get(lane, begun), *(ends[n] for n in needs & names), begun)
                options.append((start, phase.kind != "negatives", number, lane))
        start, _, number, lane = min(options)
        phase = left.pop(number)
        ends[phase.name] = lanes[lane] = start + seconds[phase.name]
    return ends


@dataclass(frozen=True)
class _Work:
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
    def trained(self) -> int:
        """Weights that training moves."""
        rank = self.config.model.lora_rank
        return self.shape.adapters * rank if rank else self.shape.parameters

    def _rate(self, share: float, alone: bool = False) -> float:
        """Operations per second of one process."""
        peak = self.device.bfloat16 if self._bytes == 2 else self.device.float32
        cores = self.threads[alone] ** _THREADS if self.device is DEVICES["cpu"] else 1.0
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

    def seconds(self, phase: PhasePlan) -> float:
        """Seconds of one phase."""
        if phase.makes_policy:
            return self._training(phase)
        if phase.kind == "negatives":
            shares = mixture.parse(self.config.train.negatives)
            found = sum(share * self._asking(NEGATIVES[name].decode, phase.rows) for name, share in shares.items())
            return found + self.device.phase * (found > 0)
        if phase.kind == "evaluate":
            return sum(self._asking(mode, phase.rows) for mode in self.config.evaluate.decode) + self.device.phase
        return 0.0

    def _training(self, phase: PhasePlan) -> float:
        workers = self.config.placement.train_workers
        passes = (2 if self.config.model.lora_rank else 3) + (phase.kind == "prefer")
        operations = _PADDING * phase.rows * phase.epochs * passes * self._forward(*self._row(phase.kind))
        computing = operations / phase.steps / workers / self._rate(self.device.train, phase.name.startswith("00/"))
        exchange = self._exchanged() / workers / self._link()
        return phase.steps * (max(computing, exchange) + self.device.step) + self.device.phase

    def _link(self) -> float:
        """Bytes per second of a worker to the next: within the node, or its share of the node's network."""
        inside = self.config.placement.train_workers <= self.each
        return self.device.link if inside else min(self.device.link, _NETWORK / self.each)

    def _exchanged(self) -> float:
        """Bytes that all workers send in one step: a ring's 2 (w - 1) parts of the gradients; under ZeRO-3 also the
        weights, twice."""
        train, workers = self.config.train, self.config.placement.train_workers
        sent = 2 * (workers - 1) * self.trained * self._bytes
        return sent + (2 * (workers - 1) * self.shape.parameters * self._bytes if train.zero_stage == 3 else 0)

    def _asking(self, mode: str | None, rows: int) -> float:
        """Seconds in which all generators answer ``rows`` prompts in one mode; no mode asks nothing."""
        evaluate, placement, shape = self.config.evaluate, self.config.placement, self.shape
        if mode is None:
            return 0.0
        if mode == "d3" and evaluate.d3_alpha is None:
            rows += 5 * self.valid  # its weight is tuned there
        rate = self._rate(self.device.generate) * placement.tensor_parallel
        prompt, part = self.tokens.prompt, min(evaluate.part, rows)
        rounds = -(-rows // part) / min(placement.generators, -(-rows // part))
        if mode == "score":
            length = prompt + CANDIDATES * self.tokens.answer
            return rounds * (part * self._forward(length, length - prompt, prompt - 1) / rate + self.device.token)
        width = evaluate.beam_width if mode in ("beams", "free_beams", "d3") else 1
        token = part * width * self._forward(1, 1) / rate
        weights = shape.parameters * self._bytes / placement.tensor_parallel / self.device.bandwidth
        steps = min(self.tokens.longest, 2 * self.tokens.answer)
        return rounds * (part * self._forward(prompt, 1) / rate + steps * (max(token, weights) + self.device.token))

    def trainer_bytes(self) -> float:
        """Bytes of a training worker: weights, gradients, Adam with its float32 copy, activations of a micro-batch."""
        train, workers = self.config.train, self.config.placement.train_workers
        cut = [workers if train.zero_stage >= stage else 1 for stage in (1, 2, 3)]
        held = self.shape.parameters * self._bytes / cut[2] + self.trained * self._bytes / cut[1]
        held += self.trained * (8 if self._bytes == 4 else 12) / cut[0]
        batch = max(train.batch, train.prefer_batch) // workers
        length, answers, _ = self._row("prefer" if train.prefer and train.iterations else "sft")
        # 34 H bytes in half precision for a token and layer (Korthikanti et al. 2022, without the scores).
        kept = 17 * self._bytes * self.shape.hidden * (1 if train.activation_checkpointing else self.shape.layers)
        kept += self._bytes * self.shape.hidden * self.shape.layers * train.activation_checkpointing
        rows = min(train.micro_batch, batch)
        logits = min(rows * answers * (self.shape.words / self.shape.hidden), 2**25) * 12
        return held + rows * length * kept + logits

    def generator_bytes(self) -> float:
        """Bytes that one device of a generator needs: its part of the weights, and of a part's key-value cache."""
        evaluate, placement = self.config.evaluate, self.config.placement
        width = evaluate.beam_width if {"beams", "free_beams", "d3"} & set(evaluate.decode) else 1
        cache = evaluate.part * (self.tokens.prompt + width * self.tokens.longest) * self.shape.kv * self._bytes
        return (self.shape.parameters * self._bytes + cache) / placement.tensor_parallel

    def moved(self, phases: Sequence[PhasePlan]) -> dict[str, float]:
        """Bytes that one iteration moves between processes, by what they are."""
        generators, rank = self.config.placement.generators, self.config.model.lora_rank
        steps = sum(phase.steps for phase in phases if phase.makes_policy)
        asked = sum(phase.rows for phase in phases if not phase.makes_policy)
        policy = self.trained * (4 if rank else self._bytes)
        trained = sum(p.rows * p.epochs * self._row(p.kind)[0] for p in phases if p.makes_policy)
        return {
            "gradients": steps * self._exchanged(),
            "policies": policy * generators * sum(p.kind in ("negatives", "evaluate") for p in phases),
            "rows": 4.0 * (trained + asked * (self.tokens.prompt + self.tokens.answer)),
        }
