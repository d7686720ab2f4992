"""Every setting of a run, in groups by the cost of a change.

The groups ``data`` to ``evaluate`` decide the numbers of a run: they are hashed, and a run folder that was made with
other values is refused. ``placement`` and ``output`` decide where and how it runs and may change when a run is resumed.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from rayrec.data.settings import DataConfig
from rayrec.fields import NOT_NEGATIVE, POSITIVE, one_given, one_of
from rayrec.grounding import EMBEDDERS
from rayrec.models.settings import ModelConfig, SequentialConfig
from rayrec.negatives import mixture
from rayrec.objectives.settings import LossConfig, SupervisedConfig

_EMBEDDER = one_of(lambda: EMBEDDERS)
#: The job gives the engines, since generation reads the settings.
_ENGINE = one_given("engines")
Schedule = Literal["linear", "cosine", "constant"]
#: Weights of the language model from which D3 takes the best on the validation rows.
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class TrainConfig:
    """The self-play iteration (SPRec section 4.3) and its two training phases."""

    iterations: Annotated[int, NOT_NEGATIVE] = 3
    """Self-play iterations T after the first SFT."""
    first_rows: Annotated[int, NOT_NEGATIVE] = 4096
    """Rows of the first SFT (BIGRec); 0 starts from the model as it is."""
    first_epochs: Annotated[int, POSITIVE] = 1
    first_lr: Annotated[float, POSITIVE] = 3e-4
    first_warmup: Annotated[float | None, NOT_NEGATIVE] = None
    """Warm-up of the first SFT, as --warmup."""
    first_schedule: Schedule = "linear"
    """Schedule of the first SFT's learning rate; pre-training of the tiny model has its own, linear."""
    rows_per_iteration: Annotated[int, POSITIVE] = 2048
    """Training rows drawn for each iteration, without replacement until the split is used up."""
    target: Literal["next", "utility", "nearest"] = "next"
    """Which title a tuning row asks for: the next one; `utility`: of the next ten the one with the largest rating over
    the root of its distance (RecPO); `nearest`: the first of them that is rated --min-rating or more."""
    min_rating: Annotated[float | None, POSITIVE] = None
    """Rows whose target is rated lower are left out of SFT and preference steps (RecPO takes 4); they are counted."""
    reweight: Literal["none", "genre"] = "none"
    """Weights of examples in SFT and preference steps: `genre` evens out the genres of histories and targets (RW)."""
    negatives: Annotated[tuple[str, ...], tyro.conf.arg(help=mixture.help_text())] = ()
    num_negatives: Annotated[int, POSITIVE] = 1
    """Rejected answers K of an example."""
    score_negatives: bool = False
    """Write log π of titles that no policy wrote into the negatives table too: a pass of the generators more."""
    equal_target: Literal["next", "drop"] = "next"
    """A negative equal to the target: replaced (`next` beam, else random), or its pair dropped (`drop`)."""
    allow_random_negatives: bool = False
    """Go on where more than half of the rows of a negatives phase lost the policy's own answer."""
    ground: bool = False
    """Replace self-play text by its nearest catalogue title."""
    sft: bool = True
    """False skips the SFT step of the iterations (SPRec's noSFT: the reference is then the iteration's start)."""
    prefer: bool = True
    """False skips the preference step of the iterations (SPRec's noDPO)."""
    lr: Annotated[float, POSITIVE] = 2e-5
    """Peak learning rate of both phases of an iteration."""
    batch: Annotated[int, POSITIVE] = 64
    """Global batch of the SFT phases, whatever the number of workers."""
    prefer_batch: Annotated[int, POSITIVE] = 32
    """Global batch of the preference phases."""
    prefer_epochs: Annotated[int, POSITIVE] = 1
    """Epochs of the preference step of an iteration."""
    micro_batch: Annotated[int, POSITIVE] = 16
    """Most examples that one worker computes at once; the rest is gradient accumulation."""
    pass_memory: Annotated[float | None, POSITIVE] = None
    """GiB that what is computed at once may take for activations, attention mask and logits: as many examples as fit,
    --micro-batch at most. Default: 1 on CPUs, 16 on GPUs."""
    attention: Literal["sdpa", "varlen"] | None = None
    """How training attends: over a dense mask (`sdpa`), or on GPUs in bfloat16 by FlashAttention over the runs of
    tokens that see each other, without padding (`varlen`). Default: `varlen` there, where the model's own attention is
    the same, else `sdpa`."""
    activation_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept."""
    warmup: Annotated[float | None, NOT_NEGATIVE] = None
    """Steps in which the learning rate of an iteration's phase rises, below 1 their share of its steps; default: 20,
    and at most half of its steps."""
    schedule: Schedule = "linear"
    """Of the learning rate in the phases of an iteration, after the warm-up."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    clip: Annotated[float, POSITIVE] = 1.0
    """Largest gradient norm."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of training and of generation. Default: on GPUs bfloat16 for models other than the tiny one, else
    float32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage. Default: on GPUs 0 for adapters, of which there is nothing to save, and 2 for whole models;
    on CPUs 1."""

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """``dtype``; float32 until that is resolved."""
        return self.dtype or "float32"


@dataclass(frozen=True)
class EvaluateConfig:
    """How policies answer and how the answers become top-k lists."""

    decode: tuple[Literal["auto", "greedy", "beams", "free_beams", "d3", "score", "gumbel"], ...] = ("greedy",)
    """How lists are made, in one way or several. `greedy` writes one title that is grounded; `beams` takes the best
    titles of the catalogue-constrained beam search; `free_beams` takes the engine's own beam search where it wrote
    titles; `d3` gives the `beams` also the scores of a SASRec; `gumbel` draws distinct titles by their probability over
    the catalogue; `auto` is the exact one that was fastest on all measured hardware: `beams`, or among candidates
    `score`; the plan names it. With --protocol candidates `greedy` is the candidate that the text names, and `score`
    ranks the candidates by their probability."""
    normalise: Literal["vocabulary", "catalogue"] = "vocabulary"
    """Tokens that share the probability of `beams`, `d3` and `score`: the `vocabulary`, or at each place those that
    continue a title of the `catalogue`, so that all titles together have probability 1."""
    d3_alpha: float | None = None
    """Weight of the language model in `d3`, SASRec has the rest; default: the one of 0.1, 0.3, 0.5, 0.7, 0.9 with the
    best NDCG on the validation rows, logged with every result."""
    every: Annotated[int, POSITIVE] = 1
    """Iterations from one evaluation to the next; the first SFT and the last iteration are always evaluated."""
    beam_width: Annotated[int, POSITIVE] = 10
    """Beams of a search."""
    top_k: Annotated[tuple[int, ...], POSITIVE] = (1, 5, 10)
    """Lengths k of the lists that are measured."""
    embedder: Annotated[str, _EMBEDDER] = "title"
    """Grounding: `title` is exact match, then character n-gram TF-IDF; `sentence` a sentence embedder; `lm` the last
    hidden state of a language model (BIGRec)."""
    embedder_path: str | None = None
    """Folder of the `sentence` embedder (model2vec or sentence-transformers) or of the `lm`, by default --model."""
    popularity_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    """Exponent of BIGRec's popularity weight in grounding; 0 switches it off."""
    engine: Annotated[str, _ENGINE] = "auto"
    """Generation engine; `auto` takes the first that is installed and serves the plan."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible endpoint that answers instead of a policy, such as http://127.0.0.1:8000/v1; its
    key is read from OPENAI_API_KEY."""
    served: str | None = None
    """Name of the model that the endpoint serves."""
    part: Annotated[int, POSITIVE] = 64
    """Prompts of one part: the unit that one generator makes in one call and that is made again after a death."""


@dataclass(frozen=True)
class PlacementConfig:
    """Where a run is computed. May change between the starts of one run."""

    train_workers: Annotated[int, POSITIVE] = 1
    """Training processes."""
    max_train_workers: int | None = None
    """Elastic training, also written `--train-workers 2:8`: as many workers as there is room for, of the numbers from
    --train-workers to this that divide every batch. After a loss fewer go on, before a phase more may join; results
    agree to rounding."""
    generators: Annotated[int, POSITIVE] = 1
    """Processes that write negatives and evaluations."""
    tensor_parallel: Annotated[int, POSITIVE] = 1
    """GPUs of one generator."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes GPUs where the machine or the cluster has any."""
    placement: Literal["auto", "apart", "shared"] = "auto"
    """`shared` lets each GPU of a trainer alternate between training and generation (vLLM sleep and wake); `auto` does
    so where there is one GPU."""
    sequential: bool = False
    """One phase at a time; the numbers are those of the overlapped run."""
    threads: Annotated[int | None, POSITIVE] = None
    """CPU threads of one process. Default: the cores shared out among workers and generators."""
    address: str | None = None
    """Ray cluster to join, or `local`; without it RAY_ADDRESS, then a cluster made by `ray start`, then a local one."""
    cluster: str | None = None
    """NODESxDEVICESxKIND, such as 8x8xH100: `--dry-run` prints the estimate of the run there."""
    checkpoint_steps: Annotated[int, NOT_NEGATIVE] = 200
    """Optimiser steps between the checkpoints that a training phase goes on from when it is cut short; 0: none."""
    checkpoint_seconds: Annotated[float, NOT_NEGATIVE] = 30.0
    """Seconds after which a phase has something new to go on from, 0: never: the answered parts of generation, and of
    training a checkpoint beside those of --checkpoint-steps, unless they take more than a twentieth of its time."""
    train_resource: str | None = None
    """Custom Ray resource of which every training worker takes 1: workers then run on the nodes that carry it."""
    generate_resource: str | None = None
    """The same for generators; the cards of one share it."""
    wait_for_resources: Annotated[float, NOT_NEGATIVE] = 0.0
    """Seconds to wait until the cluster has room for the plan, where nodes come when they are asked for."""
    max_deaths: Annotated[int, NOT_NEGATIVE] = 3
    """Times that training workers may die in one phase, and generators of one part or at their start, before the run
    stops."""
    wait_seconds: Annotated[float, POSITIVE] = 600.0
    """Longest silence of any process before it is taken for dead."""


@dataclass(frozen=True)
class OutputConfig:
    """Output: the run folder, and how much of it is kept."""

    runs: str | None = None
    """Folder of all runs. Default: runs, and in a submitted job ~/rayrec-runs."""
    name: str | None = None
    """Name of the run folder. Default: data, model, method, learning rate and K where they are no default, and seed."""
    on_existing: Literal["resume", "fail", "overwrite"] = "resume"
    keep: str = "2"
    """Policies that stay, a number or `all`; the last and the best on validation always do."""
    share: bool = True
    """Take the oracle, the tiny model's training from scratch, and the first SFT of it or of adapters of a model in a
    folder, from a run of --runs that had the same."""
    dry_run: bool = False
    """Print the plan and stop."""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers that get the curves, beside TensorBoard."""


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    supervised: Annotated[SupervisedConfig, tyro.conf.arg(name="")] = field(default_factory=SupervisedConfig)
    loss: Annotated[LossConfig, tyro.conf.arg(name="")] = field(default_factory=LossConfig)
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluateConfig)
    placement: Annotated[PlacementConfig, tyro.conf.arg(name="")] = field(default_factory=PlacementConfig)
    output: Annotated[OutputConfig, tyro.conf.arg(name="")] = field(default_factory=OutputConfig)

    @property
    def batches(self) -> dict[str, int]:
        """Settings that count the examples of a step, which training workers share out evenly."""
        found = {"batch": self.train.batch, "prefer_batch": self.train.prefer_batch}
        return found | ({"pretrain_batch": self.model.pretrain_batch} if self.model.model == "tiny" else {})

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of training workers that may be: those in range that divide every batch, upwards."""
        least = self.placement.train_workers
        most = self.placement.max_train_workers or least
        return tuple(n for n in range(least, most + 1) if not any(b % n for b in self.batches.values()))

    @property
    def pretrains(self) -> bool:
        """Whether a tiny model is trained from scratch first."""
        return self.model.model == "tiny" and not self.evaluate.endpoint

    @property
    def reads_oracle(self) -> bool:
        """Whether the prompts, the loss or the decoding ask a SASRec, once resolved."""
        return self.model.item_vectors or self.loss.smoothing != "none" or "d3" in self.evaluate.decode


@dataclass(frozen=True)
class BaselinesConfig:
    """All settings of jobs/baselines.py."""

    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: DataConfig(history=50, test_rows=10**9, valid_rows=10**9)
    )
    sequential: Annotated[SequentialConfig, tyro.conf.arg(name="")] = field(default_factory=SequentialConfig)
    placement: Annotated[PlacementConfig, tyro.conf.arg(name="")] = field(default_factory=PlacementConfig)
    output: Annotated[OutputConfig, tyro.conf.arg(name="")] = field(default_factory=OutputConfig)
    json: str | None = None
    """File for the results on the test rows, one record per model."""

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of training workers that may be: this group does not change its size."""
        return (self.placement.train_workers,)


AnyConfig = Config | BaselinesConfig
