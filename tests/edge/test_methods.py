"""Whole runs of what is put together: mixed negatives with RecPO margins and RosePO smoothing, and D3 decoding."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rayrec.config import ALPHAS
from rayrec.data.catalogue import Catalogue
from rayrec.data.likings import NO, YES
from rayrec.grounding import fold
from rayrec.models import sequential
from rayrec.models.folder import vocabulary
from rayrec.models.item_vectors import attach
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models.policy import load_base, load_policy, load_tokenizer
from rayrec.prompts import Items, make_template
from tests.edge.conftest import Command, contents
from tests.edge.test_runs import records
from tests.faults.kinds import named

MIX = {"self_play_sample": 77, "self_hard": 58, "candidates": 38, "popular": 19}


@pytest.fixture(scope="module")
def mixed(runs: Path) -> Path:
    args = ["--iterations", "1", "--objective", "recpo", "--smoothing", "sasrec", "--num-negatives", "3"]
    args += ["--min-rating", "3", "--keep", "all", "--decode", "beams", "d3", "--negatives"]
    args += ["self_play_sample:0.4", "self_hard:0.3", "candidates:0.2", "popular:0.1", "--score-negatives"]
    args += ["--sft-loss", "msl", "--valid-rows", "32", "--engine", "torch"]
    # Two workers and activations that are computed twice change nothing but rounding.
    args += ["--train-workers", "2", "--activation-checkpointing"]
    command = Command(runs, "mixed", *args)
    command.until_inside("00/oracle")
    os.kill(named("ray::Oracle", command.process.pid)[0], signal.SIGKILL)
    return command.wait()


def test_every_sampler_made_its_share(mixed: Path) -> None:
    table = pq.read_table(sorted((mixed / "01" / "negatives").glob("*.parquet"))).to_pylist()
    made = {r["sampler"]: r for r in records(mixed) if r["kind"] == "negatives"}
    wanted = MIX | {"mixture": sum(MIX.values())}
    assert {name: record["rows"] + record["dropped"] for name, record in made.items()} == {
        name: 3 * rows for name, rows in wanted.items()
    }
    assert max(made[name]["distinct"] for name in MIX) < made["mixture"]["distinct"]
    assert len(table) == 3 * 192
    hard = [row for row in table if row["sampler"] == "self_hard"]
    assert len(hard) == 3 * MIX["self_hard"]
    assert all(row["logprob"] < 0 for row in table)  # --score-negatives: of titles that no policy wrote, too
    assert {row["policy"] for row in table} == {"00/sft"}


def test_two_workers_train_the_same_base(mixed: Path, overlapped: Path) -> None:
    one, two = (json.loads((f / "00/pretrain/metrics.json").read_text())["steps"] for f in (overlapped, mixed))
    assert abs(one[0]["loss"] - two[0]["loss"]) < 1e-4 * one[0]["loss"]  # the same first global batch
    assert all(abs(a["loss"] - b["loss"]) < 2e-3 * a["loss"] for a, b in zip(one, two, strict=True))
    weights = [load_file(f / "00" / "pretrain" / "policy" / "model.safetensors") for f in (overlapped, mixed)]
    assert all((weights[0][n] - weights[1][n]).abs().max() < 5e-3 for n in weights[0])


def test_pairs_carry_utilities_and_doubts_into_the_loss(mixed: Path) -> None:
    rows = pq.read_table(mixed / "01" / "prefer" / "rows.parquet").to_pylist()
    real = [row for row in rows if row["weight"]]
    assert all(len(row["scores"]) == 4 and len(row["smoothing"]) == 3 for row in real)
    assert all(row["scores"][0] >= 3 and 0 <= min(row["smoothing"]) <= max(row["smoothing"]) < 0.5 for row in real)
    assert all(fold(row["chosen"]) not in map(fold, row["rejected"]) for row in real)
    # At the reference h = 0, so the first loss is known: smoothed S-DPO with margins 2 φ_w/φ_k (RecPO eq. 6).
    first = [row for row in real if row["step"] == 0]
    losses = []
    for row in first:
        margin = math.log(sum(math.exp(2 * row["scores"][0] / score) for score in row["scores"][1:]))
        doubt = sum(row["smoothing"]) / 3
        losses.append((1 - doubt) * math.log1p(math.exp(margin)) + doubt * math.log1p(math.exp(-margin)))
    found = next(r for r in records(mixed) if r["kind"] == "prefer")
    assert found["first_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["final_reward_margin"] > 0
    oracle = next(r for r in records(mixed) if r["kind"] == "oracle")
    assert oracle["phase"] == "00/oracle"
    assert "Traceback" not in (mixed.parent / "mixed.log").read_text()  # the oracle's process was killed once


def test_msl_trains_both_sft_phases(mixed: Path) -> None:
    """The first tokens of so small a model ask for less than the least temperature, 1.5, at which it stays."""
    phases = {r["phase"]: r for r in records(mixed) if r["kind"] == "sft"}
    assert [*phases] == ["00/sft", "01/sft"]
    for name, record in phases.items():
        assert not {"final_gap", "final_variance", "final_first"} & record.keys()
        steps = json.loads((mixed / name / "metrics.json").read_text())["steps"]
        assert [step["temperature"] for step in steps] == pytest.approx([1.5] * len(steps))
    assert phases["00/sft"]["final_loss"] > 0


def test_what_beams_lose_is_counted(mixed: Path) -> None:
    """The policy leaves mass to strings that are no title, and the exact scores of targets tell what beams lost."""
    made = pq.read_table(mixed / "01" / "evaluate" / "predictions.parquet").to_pylist()
    found = {r["decode"]: r for r in records(mixed) if r.get("kind") == "evaluation" and r["iteration"] == 1}
    assert 0 < found["beams"]["LostMass"] < 1 and "LostMass" not in found["d3"]
    for decode in ("beams", "d3"):
        assert 0 <= found[decode]["LostTargets"] <= 1 and found[decode]["N_searched"] > 0
    rows = [row for row in made if row["decode"] == "beams" and row["target"] in row["titles"]]
    assert rows
    for row in rows:
        assert row["logprobs"][row["titles"].index(row["target"])] == pytest.approx(row["target_logprob"], abs=1e-3)
        assert 0 < row["kept"] <= 1


def test_d3_is_both_models_word(mixed: Path) -> None:
    folder = mixed
    alpha, valid_alpha = (r["alpha"] for r in records(folder) if r.get("decode") == "d3" and r["iteration"] == 1)
    assert alpha == valid_alpha and alpha in ALPHAS
    made = pq.read_table(folder / "01" / "evaluate" / "predictions.parquet").to_pylist()
    lists = {decode: [row for row in made if row["decode"] == decode] for decode in ("beams", "d3")}
    assert [row["titles"] for row in lists["beams"]] != [row["titles"] for row in lists["d3"]]

    catalogue = Catalogue.from_table(pq.read_table(folder / "catalogue.parquet"))
    histories = {
        row["example_id"]: row["history"] for row in pq.read_table(sorted((folder / "examples").iterdir())).to_pylist()
    }
    own, judge = folder / "01" / "prefer" / "policy", sequential.load(folder / "00" / "oracle")
    template = make_template("compact", load_tokenizer(str(own)))
    lm = PackedLM(load_policy(str(own), dtype="float32", device="cpu"))
    for row in lists["d3"][:5]:
        history = histories[row["example_id"]]
        answers = [template.answer_ids(title) for title in row["titles"]]
        with torch.inference_mode():
            policy_A = lm(pack([(template.prompt_ids(history), answers)]))[0]
            items = sequential.item_numbers([history], catalogue)
            judge_I = sequential.scores(judge, items)[0].log_softmax(-1)
        judge_A = judge_I[[catalogue.index[title] for title in row["titles"]]]
        assert row["logprobs"] == pytest.approx((alpha * policy_A + (1 - alpha) * judge_A).tolist(), abs=1e-3)


@pytest.mark.slow
def test_rere_learns_from_groups_of_its_own_beams(runs: Path) -> None:
    """Two roll-outs of a batch each: titles in the order of the policy that wrote them, the target where it stands."""
    rows = ["--iterations", "1", "--rows-per-iteration", "16", "--num-negatives", "24", "--lr", "1e-3", "--keep", "all"]
    rows += ["--test-rows", "32", "--valid-rows", "16", "--decode", "beams", "--normalise", "catalogue"]
    folder = Command(runs, "rere", "--method", "ReRe", *rows).wait()
    titles = {*Catalogue.from_table(pq.read_table(folder / "catalogue.parquet")).titles}
    found = {r["phase"]: r for r in records(folder) if r["kind"] == "prefer"}
    assert [*found] == ["01/prefer", "02/prefer"] and not (folder / "01" / "sft").exists()
    held = []
    for name, policy in (("01", "00/sft"), ("02", "01/prefer")):
        made = pq.read_table(folder / name / "negatives" / "group_beams.parquet").to_pylist()
        trained = [row for row in pq.read_table(folder / name / "prefer" / "rows.parquet").to_pylist() if row["weight"]]
        assert {row["policy"] for row in made} == {policy} and len(made) == 8 * 24 and len(trained) == 8
        for row in trained:
            group = [one for one in made if one["example_id"] == row["example_id"]]
            assert [one["text"] for one in group] == row["rejected"] and len({*row["rejected"]}) == 24
            assert {*row["rejected"]} <= titles
            logprobs = [one["logprob"] for one in group]
            assert logprobs == sorted(logprobs, reverse=True) and sum(map(math.exp, logprobs)) < 1
        hits = sum(row["chosen"] in row["rejected"] for row in trained)
        record = found[f"{name}/prefer"]
        assert (record["groups_with_target"], record["group_hit"], record["final_group_hit"]) == (
            (hits, hits / 8, pytest.approx(hits / 8))
        )
        assert record["steps"] == 1 and abs(record["first_loss"]) < 1e-5
        assert (record["final_grad_norm"] > 0) == (hits > 0)
        held.append(hits)
    assert sum(held)  # else nothing was learnt, and nothing tested
    assert f"groups_with_target {held[0]}" in (runs / "rere.log").read_text()


@pytest.mark.slow
def test_a_group_run_that_is_killed_in_a_roll_out_and_in_a_step_ends_alike(runs: Path) -> None:
    args = ["--method", "GSPO", "--iterations", "1", "--rows-per-iteration", "64", "--num-negatives", "24"]
    args += ["--lr", "1e-3", "--keep", "all", "--test-rows", "32", "--valid-rows", "16", "--decode", "beams"]
    args += ["--checkpoint-steps", "1"]
    whole = contents(Command(runs, "gspo", *args).wait())
    for phase in ("01/negatives", "01/prefer"):
        command = Command(runs, "gspo-killed", *args)
        command.until_inside(phase)
        command.kill()
    assert contents(Command(runs, "gspo-killed", *args).wait()) == whole


@pytest.mark.slow
def test_tallrec_ranks_candidates_by_its_yes_against_its_no(runs: Path) -> None:
    """TALLRec, with the item vectors of LLaRA in its questions: one run for both."""
    rows = ["--test-rows", "48", "--valid-rows", "16"]
    folder = Command(runs, "tallrec", "--method", "TALLRec", "--item-vectors", *rows).wait()
    rows = pq.read_table(folder / "00" / "sft" / "rows.parquet").to_pylist()
    assert {row["chosen"] for row in rows} == {YES, NO} and all(len(row["candidates"]) == 1 for row in rows)
    examples = {row["example_id"]: row for row in pq.read_table(sorted((folder / "examples").iterdir())).to_pylist()}
    assert {row["model"] for row in records(folder) if row["kind"] == "evaluation"} == {"first SFT"}  # no BIGRec
    own = folder / "00" / "sft" / "policy"
    titles = Catalogue.from_table(pq.read_table(folder / "catalogue.parquet")).titles
    template = make_template("compact", load_tokenizer(str(own)), ask="liking", items=Items(titles, vocabulary(own)))
    items = load_file(own / "item_vectors.safetensors")
    assert torch.equal(items["vectors"], sequential.load(folder / "00" / "oracle").table())
    fresh = attach(load_base(own), items["vectors"], seed=0)
    assert all((items[name] - value).abs().max() > 1e-4 for name, value in fresh.named_parameters())
    model = load_policy(str(own), dtype="float32", device="cpu")
    yes, no = template.scored_ids(YES)[0], template.scored_ids(NO)[0]
    made = pq.read_table(folder / "00" / "evaluate" / "predictions.parquet").to_pylist()
    for row in made[:4]:
        example = examples[row["example_id"]]
        odds = {}
        for title in example["candidates"]:
            prompt = template.prompt_ids(example["history"], example["history_ratings"], [title])
            with torch.inference_mode():
                logits_V = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            odds[title] = float(logits_V[yes] - logits_V[no])
        assert dict(zip(row["texts"], row["logprobs"], strict=True)) == pytest.approx(odds, abs=1e-4)
        assert [odds[title] for title in row["titles"]] == sorted(odds.values(), reverse=True)[: len(row["titles"])]
    test = next(r for r in records(folder) if r["kind"] == "evaluation" and r["split"] == "test")
    assert test["protocol"] == "candidates" and test["ValidRatio"] == 1.0 and "HR@1" in test


@pytest.mark.slow
def test_llara_reads_the_items_of_its_oracle(runs: Path) -> None:
    rows = ["--test-rows", "48", "--valid-rows", "16"]
    folder = Command(runs, "llara", "--method", "LLaRA", "--decode", "greedy", "score", *rows).wait()
    own, judge = folder / "00" / "sft" / "policy", sequential.load(folder / "00" / "oracle")
    items = load_file(own / "item_vectors.safetensors")
    assert torch.equal(items["vectors"], judge.table())
    fresh = attach(load_base(own), judge.table(), seed=0)
    assert all((items[name] - value).abs().max() > 1e-4 for name, value in fresh.named_parameters())

    # The same prompts, put together by hand: words from the table of a plain model, items from the network's file.
    catalogue = Catalogue.from_table(pq.read_table(folder / "catalogue.parquet"))
    model, template = load_base(own), make_template("compact", load_tokenizer(str(own)), candidates=True)
    first, last = ((items[f"map.{n}.weight"], items[f"map.{n}.bias"]) for n in (0, 2))
    mapped_IH = torch.nn.functional.gelu(items["vectors"] @ first[0].T + first[1]) @ last[0].T + last[1]
    words = model.get_input_embeddings()
    examples = {row["example_id"]: row for row in pq.read_table(sorted((folder / "examples").iterdir())).to_pylist()}
    made = pq.read_table(folder / "00" / "evaluate" / "predictions.parquet").to_pylist()
    assert {row["decode"] for row in made} == {"greedy", "score"}
    for row in [row for row in made if row["decode"] == "score"][:3]:
        example = examples[row["example_id"]]
        frame, eos = template.frames[0], template.eos_id

        def shown(titles: list[str]) -> list[torch.Tensor]:
            parts = []
            for title in titles:
                text = words(torch.tensor(template.answer_ids(title)[:-1]))
                item = mapped_IH[catalogue.index[title]] if title in catalogue.index else items["none"]
                parts += [text, item[None], words(torch.tensor(template.separator))]
            return parts

        with torch.inference_mode():
            around = [words(torch.tensor(ids)) for ids in (frame.before, frame.middle, frame.after)]
            prompt = [around[0], *shown(example["history"]), around[1], *shown(example["candidates"]), around[2]]
            found = []
            for title in row["texts"]:
                answer = template.answer_ids(title)
                x_TH = torch.cat([*prompt, words(torch.tensor(answer))])
                logp_TV = model(inputs_embeds=x_TH[None]).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
                found.append(float(logp_TV[range(len(answer)), answer].sum()))
                assert answer[-1] == eos
        assert row["logprobs"] == pytest.approx(found, abs=1e-3)
