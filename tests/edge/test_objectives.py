"""Objectives through the real worker and DeepSpeed, against their formulas written out for one example."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rayrec.data import preferences, schema
from rayrec.models.policy import load_base, load_tokenizer
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.prompts import Template, make_template
from rayrec.runs.manifest import read_json
from tests.edge.conftest import ROOT
from tests.edge.network import free_port
from tests.edge.objectives_program import BATCH, GROUPS, LR, SETTINGS, STEPS, SUPERVISED, TITLES, catalogue, letters


def rows() -> pa.Table:
    """23 examples and a row of padding, in three steps; a third rejected answer scores more than the chosen one."""
    examples = [
        {"example_id": f"e{i}", "policy": "p", "history": [TITLES[(i + j) % 9] for j in range(i % 4 + 1)]}
        | {"chosen": TITLES[(2 * i + 3) % 9], "rejected": [TITLES[(2 * i + 4 + k) % 9] for k in range(i % 3 + 1)]}
        | {"weight": 0.5 + i % 3, "scores": [3.5, *(1.0 + 1.5 * k for k in range(i % 3 + 1))], "neighbour": None}
        | {"smoothing": [0.1 + 0.1 * k for k in range(i % 3 + 1)]}
        for i in range(STEPS * BATCH - 1)
    ]
    table = pa.Table.from_pylist(examples, schema=schema.PREFERENCES).drop_columns(["step", "slot"])
    return preferences.with_neighbours(preferences.arrange(table, BATCH, 1, 0, "t"))


def groups() -> pa.Table:
    """The same examples with groups of two to four titles; in every third group the target is missing."""
    table = rows()
    made = []
    for i, row in enumerate(table.to_pylist()):
        others = [title for title in TITLES if title != row["chosen"]][i % 5 :][: 2 + i % 2]
        made.append([*others[: i % 2], *[row["chosen"]] * (i % 3 > 0), *others[i % 2 :]])
    return schema.with_column(schema.with_column(table, "rejected", made), "scores", [None] * len(table))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the policies of all objectives, by two workers of one process group."""
    root = tmp_path_factory.mktemp("objectives")
    make_tiny(TITLES, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), root / "base", 0)
    pq.write_table(rows(), root / "rows.parquet")
    pq.write_table(groups(), root / "groups.parquet")
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    logs = [root / "log.0", root / "log.1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.edge.objectives_program", str(root), str(rank), "2"],
            cwd=ROOT,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n\n".join(log.read_text()[-3000:] for log in logs)
    return root


def minus_log_sigmoid(x: Tensor) -> Tensor:
    """softplus(−x), the form in which METHODS has its losses."""
    return torch.log1p(torch.exp(-x))


def of_group(name: str, l_K: Tensor, length_K: Tensor, row: dict, delta_K: Tensor) -> Tensor:
    """A loss over a group: log π of its titles, their tokens, and log π - log π_old."""
    place = row["rejected"].index(row["chosen"]) if row["chosen"] in row["rejected"] else None
    gains = [1 / math.log2(k + 2) for k in range(len(l_K))]
    reward_K = torch.tensor([1.0 if k == place else -gain / sum(gains) for k, gain in enumerate(gains)])
    reward_K = reward_K * (place is not None)
    a_K = (reward_K - reward_K.mean()) / (torch.std(reward_K) + 1e-4)
    if name == "rere":  # REINFORCE, and the value of a ratio, 1
        return -(a_K * (1 + (l_K - l_K.detach()) / length_K)).mean()
    s, ratio_K = SETTINGS[name], (delta_K / length_K).exp()
    kept_K = ratio_K.clamp(1 - s["clip_low"], 1 + s["clip_high"])
    return -torch.minimum(ratio_K * a_K, kept_K * a_K).mean()


def formula(name: str, w: Tensor, l_K: Tensor, lengths: list[int], row: dict, delta_w: Tensor, delta_K: Tensor, z):
    """The formula: log π of the chosen and rejected answers, Δ of both, tokens, and KTO's z."""
    if name in GROUPS:
        return of_group(name, l_K, torch.tensor(lengths[1:]), row, delta_K)
    if name == "outside":
        return (torch.tensor(letters(row)[1:]) * (1 - delta_w + delta_K).clamp(min=0)).mean()
    s = SETTINGS[name]
    beta = s.get("beta", math.nan)
    if name == "dpo":
        return minus_log_sigmoid(beta * (delta_w - delta_K)).mean()
    if name == "sdpo":
        return torch.log1p((beta * (delta_K - delta_w)).exp().sum())
    if name == "anchored":
        return torch.log1p((beta * (delta_K - delta_w)).exp().sum()) - s["anchor"] * w / lengths[0]
    if name == "orpo":
        mean_w, mean_K = w / lengths[0], l_K / torch.tensor(lengths[1:])
        odds_w, odds_K = (x - torch.log(1 - x.exp()) for x in (mean_w, mean_K))
        return -mean_w + s["lam"] * minus_log_sigmoid(odds_w - odds_K).mean()
    if name == "dynamicpo":
        s_w, s_K = w.detach(), l_K.detach()
        border = s_K >= s_w if bool((s_K >= s_w).any()) else s_K == s_K.max()  # three answers are three clusters
        a_K, b_K = s_w - s_K, s_K - (s_K[border] if bool(border.all()) else s_K[~border]).mean()
        beta_K = beta * (1 + torch.tanh((a_K - b_K - s["shift"]) / (a_K.abs() + b_K.abs())) / 2)
        return minus_log_sigmoid((beta_K * (delta_w - delta_K))[border].mean())
    if name == "dmpo":
        return minus_log_sigmoid(beta * delta_w - beta / len(delta_K) * delta_K.sum())
    if name == "simpo":
        mean_K = l_K / torch.tensor(lengths[1:])
        return minus_log_sigmoid(beta * w / lengths[0] - beta * mean_K - s["gamma"]).mean()
    if name == "recpo":
        gamma_K = torch.tensor([s["lam"] * row["scores"][0] / phi for phi in row["scores"][1:]])
        return torch.log1p((beta * (delta_K - delta_w) + gamma_K).exp().sum())
    if name == "rosepo":
        h_K, e_K = beta * (delta_w - delta_K), torch.tensor(row["smoothing"])
        return ((1 - e_K) * minus_log_sigmoid(h_K) + e_K * minus_log_sigmoid(-h_K)).mean()
    if name == "ipo":
        return (delta_w - delta_K - 1 / (2 * s["tau"])).square().mean()
    if name == "cpo":
        return minus_log_sigmoid(beta * (w - l_K)).mean() - s["alpha"] * w / lengths[0]
    if name == "kto":
        liked = s["lambda_d"] * (1 - torch.sigmoid(beta * (delta_w - z)))
        return (liked + s["lambda_u"] * (1 - torch.sigmoid(beta * (z - delta_K))).sum()) / (1 + len(delta_K))
    assert name == "odpo"
    chosen, *others = row["scores"]
    kept = [k for k, score in enumerate(others) if chosen > score]
    offset_K = torch.tensor([s["alpha"] * math.log(chosen - others[k]) for k in kept])
    return minus_log_sigmoid(beta * (delta_w - delta_K[kept]) - offset_K).mean()


def plain(root: Path, name: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of the steps and weights after them: one plain pass for every answer, PyTorch's AdamW and clipping."""
    model = load_base(str(root / "base"), dtype=torch.float32, device="cpu").train()
    frozen = load_base(str(root / "base"), dtype=torch.float32, device="cpu").eval()
    template = make_template("compact", load_tokenizer(str(root / "base")))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)

    def logprob(lm: torch.nn.Module, row: dict, title: str) -> Tensor:
        prompt, answer = template.prompt_ids(row["history"]), template.answer_ids(title)
        logp_TV = lm(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logp_TV[range(len(answer)), answer].sum()

    own_rows = groups() if name in GROUPS else rows()
    table, found = [row for row in own_rows.to_pylist() if row["weight"]], []
    for step in range(STEPS):
        batch, losses = [row for row in table if row["step"] == step], []
        with torch.no_grad():
            apart = [logprob(model, r, r["neighbour"]) - logprob(frozen, r, r["neighbour"]) for r in batch]
            z = max(0.0, float(torch.stack(apart).mean()))
        for row in batch:
            titles = [row["chosen"], *row["rejected"]]
            own = torch.stack([logprob(model, row, title) for title in titles])
            with torch.no_grad():
                ref = torch.stack([logprob(frozen, row, title) for title in titles])
            lengths = [len(template.answer_ids(title)) for title in titles]
            delta = own - ref
            losses.append(row["weight"] * formula(name, own[0], own[1:], lengths, row, delta[0], delta[1:], z))
        optimiser.zero_grad()
        loss = torch.stack(losses).sum() / len(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        found.append(loss.item())
    return found, {key: value.detach() for key, value in model.named_parameters()}


class Supervised:
    """The supervised losses written out, one token after the other, over a list of titles."""

    def __init__(self, name: str, template: Template):
        self.loss, self.settings = SUPERVISED[name]
        self.titles = [template.answer_ids(title) for title in catalogue().titles]
        self.popularity, self.adapts = catalogue().popularity.tolist(), name == "ats"
        self.temperature = 1.5 if self.adapts else self.settings.get("temperature", 1.0)
        self.told: list[tuple[float, float]] = []

    def of(self, logits_TV: Tensor, answer: list[int]) -> tuple[Tensor, int]:
        """Return the loss of a title's tokens and how many of them count."""
        total, count, tau, s = logits_TV.new_zeros(()), 0, self.temperature, self.settings
        for depth, token in enumerate(answer):
            below = [i for i, title in enumerate(self.titles) if title[:depth] == answer[:depth]]
            here = sorted({self.titles[i][depth] for i in below})
            z_V, place = logits_TV[depth], here.index(token)
            logp_L = (z_V[here] / tau).log_softmax(0)
            if self.loss == "flower":
                behind = [sum(self.popularity[i] for i in below if self.titles[i][depth] == v) for v in here]
                pairs = [(n / sum(behind), logp) for n, logp in zip(behind, logp_L, strict=True) if n]
                apart = sum(q * (math.log(q) - logp) for q, logp in pairs)
                total = total - s["theta"] * z_V.log_softmax(0)[token] + (1 - s["theta"]) * apart
                count += 1
            elif len(here) > 1:
                last = logp_L.detach().sort(descending=True).values[: int(s.get("beams", 1))][-1]
                weight = 1 + s.get("lam", 0.0) * torch.sigmoid((logp_L[place].detach() - last) / s.get("xi", 1.0))
                total = total - (tau if self.loss == "msl" else weight) * logp_L[place]
                count += 1
            if not depth:
                z_L = z_V[here].detach()
                self.told.append((float(z_V[token].detach() - z_L.mean()), float(z_L.var())))
        return total, count

    def follow(self, weights: list[float]) -> None:
        """Set the temperature after a step."""
        if self.adapts:
            gap, s = (sum(w * one[i] for w, one in zip(weights, self.told, strict=True)) / sum(weights) for i in (0, 1))
            c = math.log(self.settings["eta"] * len({title[0] for title in self.titles}))
            found = (gap + math.sqrt(max(0.0, gap**2 - 2 * c * s))) / (2 * c)
            self.temperature = 0.95 * self.temperature + 0.05 * min(5.0, max(1.5, found))
        self.told = []


def supervised(root: Path, name: str) -> tuple[list[float], dict[str, Tensor], float]:
    """As :func:`plain`, of a supervised loss; and the temperature after the last step."""
    model = load_base(str(root / "base"), dtype=torch.float32, device="cpu").train()
    template = make_template("compact", load_tokenizer(str(root / "base")))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    by, found = Supervised(name, template), []
    for step in range(STEPS):
        batch = [row for row in rows().to_pylist() if row["weight"] and row["step"] == step]
        losses, tokens = [], 0
        for row in batch:
            prompt, answer = template.prompt_ids(row["history"]), template.answer_ids(row["chosen"])
            loss, count = by.of(
                model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1], answer
            )
            losses.append(row["weight"] * loss)
            tokens += count
        optimiser.zero_grad()
        loss = torch.stack(losses).sum() / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        by.follow([row["weight"] for row in batch])
        found.append(loss.item())
    return found, {key: value.detach() for key, value in model.named_parameters()}, by.temperature


@pytest.mark.parametrize("name", [*SETTINGS, "outside", *SUPERVISED])
def test_the_worker_takes_the_steps_of_the_formula(trained: Path, name: str) -> None:
    steps = read_json(trained / "steps.json")[name]
    if name in SUPERVISED:
        losses, wanted, temperature = supervised(trained, name)
        assert [*steps[-1]] == ["step", "loss", "grad_norm", "lr", "temperature"]
        assert steps[-1]["temperature"] == pytest.approx(temperature, rel=1e-5)
    else:
        losses, wanted = plain(trained, name)
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5, abs=1e-6 * (name in GROUPS))
    if name in GROUPS:
        table = [row for row in groups().to_pylist() if row["weight"]]
        held = [[r["weight"] * (r["chosen"] in r["rejected"]) for r in table if r["step"] == n] for n in range(STEPS)]
        assert [step["group_hit"] for step in steps] == pytest.approx([sum(one) / len(one) for one in held])
    start, found = (load_file(folder / "model.safetensors") for folder in (trained / "base", trained / name / "policy"))
    moved = torch.cat([(wanted[key] - start[key]).abs().flatten() for key in found])
    errors = torch.cat([(wanted[key] - found[key]).abs().flatten() for key in found])
    # Adam moves a weight by about the learning rate a step, by any share of it where its gradient is rounding alone.
    assert float(moved.mean()) > LR and float(moved.max()) < 1.1 * STEPS * LR
    assert float(errors.mean()) < 1e-5 * LR and float(errors.max()) < 0.05 * LR
