"""Real DeepSpeed engines, one and two processes, every ZeRO stage, against a plain loop of PyTorch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rayrec.data import preferences, schema
from rayrec.models import item_vectors, sequential
from rayrec.models.policy import load_base, load_tokenizer
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.objectives import Pairs
from rayrec.objectives.settings import make_objective
from rayrec.prompts import make_template
from rayrec.runs.manifest import read_json
from tests.edge.conftest import ROOT
from tests.edge.exactness_program import STAGES
from tests.edge.worker_program import BATCH, CASES, CUT_OFF, LR, STEPS, WHOLE, Case, settings
from tests.models.test_logprobs import CONFIGS

TITLES = [f"The {word} of {name}" for word in ("Night", "Return", "Last Day") for name in ("Ann", "Bob", "Eve Smith")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the policies of all cases, by one worker (out1) and by two (out2), and of those that were cut off."""
    root = tmp_path_factory.mktemp("worker")
    make_tiny(TITLES, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), root / "base", 0)
    pq.write_table(rows(), root / "rows.parquet")
    (root / "oracle").mkdir()
    sequential.save(sequential.build("sasrec", {"items": len(TITLES), "length": 4, "hidden": 8}, 0), root / "oracle")
    for world in (1, 2, 1):  # two go on with what one has begun, and then one with what two have
        start("worker_program", root, world)
    return root


def start(program: str, root: Path, world: int) -> None:
    """Run one of the programs beside this file in ``world`` processes, to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    log = (root / f"log{world}").open("w")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.edge.{program}", str(root), str(rank), str(world)],
            cwd=ROOT,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        for rank in range(world)
    ]
    codes = [process.wait(300) for process in processes]
    assert codes == [0] * world, (root / f"log{world}").read_text()[-3000:]


def rows() -> pa.Table:
    """Eleven examples of three weights in three steps of four, one row of padding; one to three rejected answers."""
    examples = [
        {"example_id": f"e{i}", "policy": "p", "history": [TITLES[(i + j) % 9] for j in range(i % 4 + 1)]}
        | {"chosen": TITLES[(2 * i + 3) % 9], "rejected": [TITLES[(2 * i + 4 + k) % 9] for k in range(i % 3 + 1)]}
        | {"weight": 0.5 + i % 3, "scores": None, "smoothing": None, "neighbour": None, "step": 0, "slot": 0}
        for i in range(11)
    ]
    table = pa.Table.from_pylist(examples, schema=schema.PREFERENCES).drop_columns(["step", "slot"])
    return preferences.with_neighbours(preferences.arrange(table, BATCH, 1, 0, "t"))


def plain(root: Path, case: str) -> dict[str, torch.Tensor]:
    """The weights after the same steps with one plain pass for every answer, AdamW and clipping of PyTorch."""
    kind, objective = CASES[case]
    model = load_base(str(root / "base"), dtype=torch.float32, device="cpu").train()
    frozen = load_base(str(root / "base"), dtype=torch.float32, device="cpu").eval()
    template = make_template("compact", load_tokenizer(str(root / "base")))
    loss_of = make_objective(settings(objective).loss)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)

    def logprob(lm: torch.nn.Module, row: dict, title: str) -> torch.Tensor:
        prompt, answer = template.prompt_ids(row["history"]), template.answer_ids(title)
        logits_TV = lm(input_ids=torch.tensor([prompt + answer])).logits[0]
        logp_TV = logits_TV[len(prompt) - 1 : -1].log_softmax(-1)
        return logp_TV[range(len(answer)), answer].sum()

    table = [row for row in rows().to_pylist() if row["weight"]]
    for step in range(STEPS):
        batch = [row for row in table if row["step"] == step]
        with torch.no_grad():
            ratios = [
                float(logprob(model, r, r["neighbour"]) - logprob(frozen, r, r["neighbour"]))
                for r in batch
                if r["neighbour"]
            ]
        z, losses, tokens = max(0.0, sum(ratios) / max(1, len(ratios))), [], 0
        for row in batch:
            answers = [row["chosen"], *row["rejected"]]
            lengths = [len(template.answer_ids(title)) for title in answers]
            if kind == "sft":
                losses.append(-row["weight"] * logprob(model, row, answers[0]))
                tokens += lengths[0]
                continue
            own = torch.stack([logprob(model, row, title) for title in answers])
            with torch.no_grad():
                ref = torch.stack([logprob(frozen, row, title) for title in answers])
            pairs = Pairs(
                chosen_B=own[:1],
                rejected_BK=own[None, 1:],
                mask_BK=torch.ones(1, len(own) - 1, dtype=torch.bool),
                ref_chosen_B=ref[:1],
                ref_rejected_BK=ref[None, 1:],
                chosen_length_B=torch.tensor(lengths[:1]),
                rejected_length_BK=torch.tensor([lengths[1:]]),
                baseline_B=torch.tensor([z]),
            )
            losses.append(row["weight"] * loss_of(pairs)[0])
        optimiser.zero_grad()
        (torch.stack(losses).sum() / (tokens or len(batch))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = LR * ((STEPS - step) / (STEPS - 1) if step else 1.0)  # one step of warm-up, then linear decay
        optimiser.step()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_every_stage_and_number_of_workers_is_the_plain_loop(trained: Path, case: str) -> None:
    wanted = plain(trained, case)
    start = load_file(trained / "base" / "model.safetensors")
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in start)
    assert moved > 5e-3  # Adam moves every weight by about the learning rate a step
    for world in (1, 2):
        for stage in (1, 2, 3):
            found = load_file(trained / f"out{world}" / f"{case}-{stage}" / "policy" / "model.safetensors")
            assert_same(found, wanted, 0.3 * moved)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], most: float) -> None:
    """AdamW divides by the root of tiny squared gradients, so rounding is seen in the weights that hardly move."""
    errors = torch.cat([(found[name] - wanted[name]).abs().flatten() for name in found])
    assert float(errors.mean()) < 1e-5 * LR / 1e-3 and float(errors.max()) < most


@pytest.mark.parametrize("case", [case for case in WHOLE if case.attention == "varlen"], ids=lambda case: case.folder)
def test_attention_over_runs_ends_as_over_a_mask(trained: Path, case: Case) -> None:
    start = load_file(trained / "base" / "model.safetensors")
    for world in (1, 2):
        one, other = case, case._replace(attention="sdpa")
        found, wanted = (load_file(weights_of(trained / f"out{world}" / each.folder)) for each in (one, other))
        moved = max(float((wanted[name] - start[name]).abs().max()) for name in start)
        assert_same(found, wanted, 0.3 * moved)


@pytest.mark.parametrize("world", [1, 2])
def test_every_architecture_is_exact_under_every_stage(trained: Path, world: int) -> None:
    found = read_json(trained / f"exact{world}.json")
    assert len(found) == len(CONFIGS) * 2 * len(STAGES)
    for case, apart in found.items():
        assert apart["logprobs"] <= 1e-5 and apart["gradients"] <= 1e-5, (case, apart)


def test_every_phase_frees_its_engine(trained: Path) -> None:
    """Phases alternate between SFT and preference, so one is compared with the one before the last."""
    for case, held in read_json(trained / "held.json").items():
        engines, sizes = zip(*held, strict=True)
        assert not any(engines) and sizes[5] == sizes[1] and sizes[4] == sizes[2], (case, held)


def test_adapters_end_alike_under_stages_and_workers(trained: Path) -> None:
    found = [
        load_file(trained / f"out{world}" / f"sdpo-{stage}-lora" / "policy" / "adapter_model.safetensors")
        for world in (1, 2)
        for stage in (0, 1, 2, 3)
    ]
    assert any(value.abs().max() > 1e-3 for name, value in found[0].items() if "lora_B" in name)
    for other in found[1:]:
        assert all((other[name] - value).abs().mean() < 1e-5 for name, value in found[0].items())


def test_adapters_over_a_base_in_bfloat16_are_float32_and_end_alike(trained: Path) -> None:
    found = {
        (world, stage): load_file(weights_of(trained / f"out{world}" / f"sdpo-{stage}-lora-bf16"))
        for world in (1, 2)
        for stage in (0, 2)
    }
    start = found[1, 0]
    assert {value.dtype for value in start.values()} == {torch.float32}
    assert any(value.abs().max() > 1e-3 for name, value in start.items() if "lora_B" in name)
    for other in found.values():  # log-probabilities are rounded as rows are laid out
        apart = torch.cat([(other[name] - value).abs().flatten() for name, value in start.items()])
        assert float(apart.mean()) < 0.02 * LR


def test_item_vectors_end_alike_under_stages_and_workers(trained: Path) -> None:
    """The vectors' network has learnt the same."""
    for world in (1, 2):
        found = [
            load_file(trained / f"out{world}" / f"llara-{stage}-lora" / "policy" / "item_vectors.safetensors")
            for stage in (1, 2, 3)
        ]
        oracle = sequential.load(trained / "oracle")
        assert torch.equal(found[0]["vectors"], oracle.table().detach())
        fresh = item_vectors.attach(load_base(trained / "base"), oracle.table())
        moved = {name: float((found[0][name] - value.detach()).abs().max()) for name, value in fresh.named_parameters()}
        # The first of three steps shows text alone, the others items: both sides have learnt.
        assert min(moved.values()) > LR / 2, moved
        for other in found[1:]:
            assert all((other[name] - value).abs().mean() < 1e-5 for name, value in found[0].items())


def test_bfloat16_keeps_float32_state_at_every_stage(trained: Path) -> None:
    start = load_file(trained / "base" / "model.safetensors")
    for world in (1, 2):
        a, b = (load_file(weights_of(trained / f"out{world}" / f"sft-{stage}-bf16")) for stage in (0, 2))
        moved = torch.cat([(a[name].float() - start[name]).abs().flatten() for name in a]).mean()
        apart = torch.cat([(a[name].float() - b[name].float()).abs().flatten() for name in a]).mean()
        assert moved > LR / 2 and apart < 0.02 * moved, (world, float(moved), float(apart))


@pytest.mark.parametrize("case", CUT_OFF, ids=lambda case: case.folder)
def test_a_phase_that_was_cut_off_ends_as_if_it_had_not(trained: Path, case: Case) -> None:
    """Bit for bit with as many workers; with another number, the weights are off, in the mean, by less than 1e-5 of
    the learning rate, by which Adam moves each of them in every step; 0.02 of it in bfloat16."""

    def weights(folder: str, case: Case) -> dict[str, torch.Tensor]:
        return load_file(weights_of(trained / folder / case.folder))

    for world in (1, 2):
        wanted, found = weights(f"out{world}", case.whole), weights(f"cut{world}", case)
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
        if not (case.lora and case.kind == "sft"):  # there every worker draws the dropout of its own adapters
            moved = weights(f"moved{world}", case)
            errors = torch.cat([(moved[name] - value).float().abs().flatten() for name, value in wanted.items()])
            assert float(errors.mean()) < ((1e-5 if case.dtype == "float32" else 0.02) * LR)


def weights_of(phase: Path) -> Path:
    """The weights or adapters that a phase has written."""
    return next((phase / "policy").glob("*model.safetensors"))
