"""The cost model's terms are those of torch's own counting and of known models; its lanes are the loop's."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from rayrec.config import Config, TrainConfig
from rayrec.data import load, preferences
from rayrec.driver import checks, cost_model, plan
from rayrec.driver.checks import Lengths
from rayrec.driver.cost_model import DEVICES, Work, _ends, estimate
from rayrec.driver.cost_model import parse as parse_cluster
from rayrec.driver.prepare import prepare
from rayrec.generation.engine import weights_folder
from rayrec.lanes import Planned
from rayrec.methods import parse
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models.policy import add_lora, load_base, load_tokenizer, save, trainable_state
from rayrec.models.settings import ModelConfig
from rayrec.models.shape import Shape
from rayrec.models.tiny import make_tiny
from rayrec.training.batches import Tokenise
from tests.driver.test_refusals import command

TOKENS = Lengths(prompt=120, answer=10, longest=24, changed_titles=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3.2-1B, of which only the settings and another tokenizer are there."""
    folder = tmp_path_factory.mktemp("big")
    make_tiny(["Heat (1995)"], ModelConfig(), folder, 0)
    (folder / "model.safetensors").unlink()
    sizes = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}
    LlamaConfig(**sizes, **heads).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def big(folder: Path) -> Shape:
    return Shape.of(str(folder))


def paper(*args: str, cluster: str = "8x8xH100") -> Config:
    return checks.resolve(parse("", ["--preset", "paper", "--dry-run", "--cluster", cluster, *args]))


def of(config: Config, shape: Shape) -> dict:
    return estimate(config, plan.phases(config, load(config.data)), TOKENS, shape, 256)


def test_sizes_of_a_known_model(big: Shape) -> None:
    assert (big.parameters, big.tied, big.kv) == (1_235_814_400, True, 2 * 16 * 8 * 64)
    assert 16 * big.adapters == 11_272_192  # what peft prints for rank 16 on all linear layers


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    sizes = ModelConfig(tiny_hidden=64, tiny_layers=2, tiny_vocab=512)
    make_tiny(["Heat (1995)"], sizes, tmp_path, 0)
    model, shape = load_base(tmp_path), Shape.of(str(tmp_path))
    model.set_attn_implementation("eager")  # products that torch counts on a CPU too
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    config = Config(model=dataclasses.replace(sizes, lora_rank=0), train=TrainConfig(num_negatives=3))
    tokens = Lengths(40, 8, 8, 0)
    work = Work(config, tokens, shape, 0, DEVICES["cpu"], 1, (1, 1))
    row = (list(range(40)), [list(range(8))] * 4)
    lm = PackedLM(model)
    with FlopCounterMode(display=False) as forward:
        logprob_BA = lm(pack([row]))
    with FlopCounterMode(display=False) as backward:
        logprob_BA.sum().backward()
    wanted = work._forward(*work._row("prefer"))
    assert forward.get_total_flops() == pytest.approx(wanted, rel=0.01)
    assert backward.get_total_flops() == pytest.approx(2 * wanted, rel=0.01)


def small(tmp_path: Path, rank: int, dtype: str, cluster: str = "cpu", **train: Any) -> tuple[Any, Work, Path]:
    """A real model, with adapters if ``rank``, the cost model's view of it, and the folder of its base."""
    sizes = ModelConfig(tiny_hidden=128, tiny_layers=4, tiny_vocab=512, lora_rank=rank)
    base = tmp_path / "base"
    make_tiny(["Heat (1995)"], sizes, base, 0)
    model = load_base(base, dtype)
    model = add_lora(model, rank, 32, 0.0) if rank else model
    config = Config(model=sizes, train=TrainConfig(dtype=dtype, micro_batch=4, **train))  # pyright: ignore[reportArgumentType]
    return model, Work(config, Lengths(60, 10, 10, 0), Shape.of(str(base)), 0, DEVICES[cluster], 8, (1, 1)), base


WEIGHTS = [(0, "float32"), (0, "bfloat16"), (8, "float32"), (8, "bfloat16")]


@pytest.mark.parametrize(("rank", "dtype"), WEIGHTS)
def test_gradients_and_activations_are_as_large_as_told(tmp_path: Path, rank: int, dtype: str) -> None:
    model, work, _ = small(tmp_path, rank, dtype)
    known, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    row = (list(range(60)), [list(range(10))] * 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprob_BA = PackedLM(model.train())(pack([row] * 4))
    logprob_BA.sum().backward()
    gradients = [p.grad.nbytes for p in model.parameters() if p.grad is not None]
    assert sum(gradients) == work.memory.trained * work.memory.trained_bytes


@pytest.mark.parametrize(("rank", "dtype"), WEIGHTS)
def test_generators_read_as_many_bytes_as_told(tmp_path: Path, rank: int, dtype: str) -> None:
    model, work, base = small(tmp_path, rank, dtype)
    save(trainable_state(model), model, load_tokenizer(base), tmp_path / "policy", {}, merged=True)
    phases = [Planned("01/evaluate", "evaluate", 8, 1, "parts")]

    def told(work: Work) -> float:
        return work.moved(phases)["policies"]

    read = weights_folder(str(tmp_path / "policy")) / "model.safetensors"
    assert told(work) == pytest.approx(read.stat().st_size, rel=0.02)  # the rest is the file's head
    if rank:  # vLLM on a GPU takes the adapter as it is
        adapter = tmp_path / "policy" / "adapter_model.safetensors"
        there = dataclasses.replace(work, device=DEVICES["H100"])
        assert told(there) == pytest.approx(adapter.stat().st_size, rel=0.15)


def test_rows_are_as_many_bytes_as_told(tmp_path: Path) -> None:
    given = parse(
        "", ["--preset", "toy", "--num-negatives", "3", "--negatives", "random", "--dry-run", "--cluster", "1x2xcpu"]
    )
    ready = prepare(given, tmp_path)
    config, tuning = ready.config, ready.tuning
    tokens = checks.check_lengths(config, ready.data, tuning, ready.template)
    work = Work(config, tokens, Shape.of(str(ready.base)), 0, DEVICES["cpu"], 2, (1, 1))
    rows = preferences.sft_rows(tuning.slice(0, 512), 64, 1, 0, "01/sft")
    phases = [Planned("01/sft", "sft", 512, 8, "steps", makes_policy=True)]
    assert work.moved(phases)["rows"] == pytest.approx(Tokenise("sft", ready.template)(rows).nbytes, rel=0.1)


def test_lanes_overlap_as_the_loop_does() -> None:
    config = checks.resolve(parse("", ["--preset", "toy"]))
    phases = plan.phases(config, load(config.data))
    seconds = {
        phase.name: {"sft": 10.0, "prefer": 20.0, "negatives": 4.0, "evaluate": 7.0}.get(phase.kind, 0.0)
        for phase in phases
    }
    ends = _ends(phases, seconds, one_lane=False, begun=5.0)
    assert ends["00/sft"] == 15 and ends["01/negatives"] == 19 and ends["00/evaluate"] == 26
    assert ends["01/sft"] == 25 and ends["01/prefer"] == 45 and ends["01/evaluate"] == 56
    assert ends["02/negatives"] == 49 and ends["02/prefer"] == 75 and ends["02/evaluate"] == 82
    assert max(_ends(phases, seconds, one_lane=True, begun=5.0).values()) == 5 + sum(seconds.values())


def test_more_devices_take_less_time_and_memory(big: Shape) -> None:
    one, four = (of(paper("--train-workers", n, "--generators", n), big) for n in ("1", "4"))
    assert one["devices"] == {"used": 2, "there": 64} and four["devices"]["used"] == 8
    assert one["iteration"] > four["iteration"]
    assert one["moved"]["gradients"] == 0 < four["moved"]["gradients"]
    whole = [of(paper("--lora-rank", "0", "--zero-stage", str(stage)), big)["memory"]["trainer"] for stage in range(4)]
    assert whole[0] > 16 * big.parameters > max(whole[1:])
    whole_model = ["--lora-rank", "0", "--train-workers", "8"]
    near, far = (of(paper(*whole_model, cluster=cluster), big) for cluster in ("2x8xH100", "16x1xH100"))
    assert far["moved"] == near["moved"] and far["iteration"] > near["iteration"]  # gradients go through the network
    halves = [of(paper("--tensor-parallel", n), big)["memory"]["generator"] for n in ("1", "2")]
    assert halves[0] == 2 * halves[1]


def test_every_iteration_counts(big: Shape) -> None:
    totals = {n: of(paper("--iterations", str(n)), big)["total"] for n in (2, 3, 12, 101)}
    one_more = totals[3] - totals[2]
    assert totals[12] - totals[2] == pytest.approx(10 * one_more, rel=0.02)
    assert totals[101] - totals[12] == pytest.approx(89 * one_more, rel=0.02)


def test_what_is_not_asked_takes_no_time(big: Shape) -> None:
    config = paper("--negatives", "random")
    work = Work(config, TOKENS, big, 256, DEVICES["H100"], 8, (1, 1))
    by_kind = {phase.kind: work.seconds(phase) for phase in plan.phases(config, load(config.data))}
    assert by_kind["negatives"] == by_kind["baseline"] == 0 < by_kind["evaluate"]


def test_likings_are_asked_candidate_by_candidate(big: Shape) -> None:
    asked = ["--protocol", "candidates", "--method"]
    talls, ranks = (paper(*asked, method, "--decode", "score") for method in ("TALLRec", "zero-shot"))
    works = [Work(config, TOKENS, big, 256, DEVICES["H100"], 8, (1, 1)) for config in (talls, ranks)]
    alone, together = (work.seconds(Planned("00/evaluate", "evaluate", 1256, 20, "parts")) for work in works)
    assert alone == works[0]._asking("score", 20 * 1256, 2) + works[0].device.phase
    assert together == works[1]._asking("score", 1256, 20) + works[1].device.phase < alone


@pytest.mark.parametrize("text", ["8xH100", "0x8xH100", "8x8xB52", "x", "8x8xH100x2"])
def test_other_clusters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NODESxDEVICESxKIND"):
        parse_cluster(text)
    assert parse_cluster("2x4xa100") == (2, 4, "A100")


def test_a_plan_that_does_not_fit_is_refused(big: Shape) -> None:
    with pytest.raises(ValueError, match="4 devices, the plan takes 8"):
        of(paper(cluster="1x4xH100"), big)
    with pytest.raises(ValueError, match="--dry-run"):
        checks.resolve(parse("", ["--cluster", "1x4xH100"]))


def test_a_dry_run_tells_what_a_cluster_would_take(folder: Path, tmp_path: Path) -> None:
    given = ["--preset", "paper", "--model", str(folder), "--dry-run", "--cluster", "8x8xH100"]
    done = command(*given, "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    told, n = " ".join(done.stdout.split()), r"([\d.]+)"
    spans = rf"iteration 0 in {n} min, each further one in {n} s, in all {n} min"
    times = re.search(f"8 of 64 devices of 8x8xH100: {spans}", told)
    needs = re.search(rf"of a device's 74.5 GiB: trainer {n} GiB, generator {n} GiB moved", told)
    assert times and needs, told
    assert 60 * float(times[3]) == pytest.approx(60 * float(times[1]) + 5 * float(times[2]), abs=60)
    assert all(2 * 1_235_814_400 / 2**30 < float(held) < 74.5 for held in needs.groups())
    # Four trainers begin two phases with weights of two bytes and adapters of four, and in 96 steps of stage 0
    # the adapters' gradients go round twice; four generators are handed two policies.
    adapters = 4 * 11_272_192
    gradients = (2 * 3 * (2 * 1_235_814_400 + adapters) + 96 * 3 * 2 * adapters) / 2**30
    policies = 4 * 2 * adapters / 2**20
    assert f"moved in an iteration: gradients {gradients:.1f} GiB, policies {policies:.1f} MiB, rows" in told
    assert "01/prefer 2,048 1 64" in told
    assert done.stdout.endswith("False\n") and not (tmp_path / "runs").exists()  # no Ray, and nothing written


@pytest.mark.parametrize(
    ("device", "told"),
    [("cpu", r"^about [\d.]+ h from .*\(\d\d/\w+ [\d.]+ h\)"), ("NVIDIA H100 80GB HBM3", ""), ("gpu", "")],
)
def test_hours_of_a_real_model_are_told(big: Shape, device: str, told: str) -> None:
    config = checks.resolve(parse("", ["--preset", "real", "--model", "some/model", "--first-rows", "8192"]))
    data = load(config.data)
    found = cost_model.time_here(ready_of(config, data, big, device))
    assert set(found) == ({"time"} if told else set())
    assert not told or re.search(told, found["time"])
    tiny = dataclasses.replace(config, model=dataclasses.replace(config.model, model="tiny"))
    assert cost_model.time_here(ready_of(tiny, data, big, device)) == {}


def ready_of(config: Config, data: Any, shape: Shape, device: str) -> Any:
    """What a run knows of itself when it asks for its time."""
    known = {"config": config, "phases": plan.phases(config, data), "tokens": TOKENS, "shape": shape}
    return SimpleNamespace(**known, device=device, data=data)
