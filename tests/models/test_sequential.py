"""Sequential models: causal, blind to padding, trained as brute force says, stopped at their best."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import spearmanr

from rayrec.data import load, schema
from rayrec.data.catalogue import Catalogue
from rayrec.data.settings import DataConfig
from rayrec.data.windows import cut
from rayrec.models import sequential
from rayrec.models.sequential import (
    Fitting,
    SequentialModel,
    Share,
    build,
    fit,
    ndcg,
    pad,
    scores,
    sequences_of,
    top_lists,
    training,
)


@pytest.fixture(params=[*sequential.SEQUENTIAL])
def model(request: pytest.FixtureRequest) -> SequentialModel:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) if request.param == "morec" else None
    model = build(request.param, {"items": 12, "length": 6, "hidden": 16}, 0, features)
    with torch.no_grad():
        for parameter in model.parameters():  # initial weights are so small that much would be equal to rounding
            parameter.mul_(3)
    return model.eval()


def test_a_later_item_changes_no_earlier_place_and_padding_changes_nothing(model: SequentialModel) -> None:
    one, other = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[1, 2, 3, 9, 8, 7]])
    torch.testing.assert_close(model(one)[:, :3], model(other)[:, :3])
    assert (model(one)[:, 3:] - model(other)[:, 3:]).abs().min() > 0
    short, padded = model(torch.tensor([[4, 5]])), model(pad([[4, 5]], 6, 12))
    torch.testing.assert_close(short, padded[:, -2:], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores(model, [[9, 1, 2, 3, 4, 5, 6]]), scores(model, [[1, 2, 3, 4, 5, 6]]))
    assert scores(model, [[], [1]])[0].tolist() == [0.0] * 12


def test_ndcg_ranks_the_whole_catalogue_and_counts_ties_against_the_target(model: SequentialModel) -> None:
    histories, targets = [[1, 2], [3], [5, 6, 7]], [4, 0, 11]
    order = [sorted(range(12), key=lambda i: -s[i]) for s in scores(model, histories).tolist()]
    ranks = [one.index(target) + 1 for one, target in zip(order, targets, strict=True)]
    wanted = np.mean([1 / np.log2(rank + 1) if rank <= 5 else 0 for rank in ranks])
    assert ndcg(model, histories, targets, k=5) == pytest.approx(wanted)
    assert ndcg(model, [[]], [0], k=10) == 0  # twelve equal scores: rank 12


def test_sequences_are_those_that_the_windows_were_cut_from() -> None:
    catalogue = Catalogue.from_items([f"Film {i}" for i in range(40)], [[]] * 40)
    rows = [
        {"user": user, "title": f"Film {(3 * u + n) % 40}", "rating": None, "timestamp": 7 * n + u}
        for u, user in enumerate("abc")
        for n in range(30 if user != "c" else 4)
    ]
    train = cut(pa.Table.from_pylist(rows, schema=schema.INTERACTIONS), 5).splits["train"]
    last = {
        user: max(
            t for u, t in zip(train["user"].to_pylist(), train["timestamp"].to_pylist(), strict=True) if u == user
        )
        for user in "ab"
    }
    wanted = [
        [catalogue.index[r["title"]] for r in rows if r["user"] == user and r["timestamp"] <= last[user]]
        for user in "ab"
    ]
    assert sequences_of(train, catalogue) == wanted
    broken = pa.concat_tables([train.slice(0, 2), train.slice(6, 2)])
    assert all(len(s) <= 7 for s in sequences_of(broken, catalogue))  # nothing is joined over the gap


SHAPE = {"items": 12, "length": 6, "hidden": 16}
CYCLE = [[(start + step) % 12 for step in range(9)] for start in range(12)]
PAIRS, NEXT = [[i, (i + 1) % 12] for i in range(12)], [(i + 2) % 12 for i in range(12)]


@pytest.mark.parametrize("name", sequential.SEQUENTIAL)
def test_a_cycle_is_learned_and_training_repeats_bit_for_bit(name: str) -> None:
    states = []
    for _ in range(2):
        model = build(name, SHAPE, 1, torch.eye(12) if name == "morec" else None)
        report = fit(model, CYCLE, (PAIRS, NEXT), 0, Fitting(batch=8, lr=1e-2, epochs=60))
        states.append(copy.deepcopy(model.state_dict()))
    assert report["valid_NDCG@10"] == 1
    assert scores(model, PAIRS).argmax(1).tolist() == NEXT
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_training_stops_early_at_the_best_state() -> None:
    model = build("sasrec", SHAPE, 1)
    wrong = ([[0, 1], [7, 8, 9]], [1, 0])  # the longer it learns, the worse it ranks these
    report = fit(model, CYCLE, wrong, 0, Fitting(batch=8, lr=1e-2, epochs=60, patience=3))
    assert report["epochs"] == report["best_epoch"] + 3 < 60
    assert ndcg(model, *wrong) == pytest.approx(report["valid_NDCG@10"])
    model = build("sasrec", SHAPE, 1)
    longer = fit(model, CYCLE, wrong, 0, Fitting(batch=8, lr=1e-2, epochs=60, patience=3, lr_drops=1))
    assert longer["epochs"] == max(longer["best_epoch"], report["epochs"]) + 3  # the drop came where training stopped
    assert longer["valid_NDCG@10"] >= report["valid_NDCG@10"]
    assert ndcg(model, *wrong) == pytest.approx(longer["valid_NDCG@10"])
    with pytest.raises(ValueError, match="no training sequence"):
        fit(model, [[1]], wrong, seed=0)


def test_pieces_of_two_workers_are_one_batch() -> None:
    """What two workers leave in the gradients, summed, is what one leaves; also where the loss draws wrong items."""
    for wrong in (None, torch.tensor([3, 9, 9, 1])):
        sums = []
        for world in (1, 2):
            parts = []
            for rank in range(world):
                model = build("sasrec", SHAPE | {"dropout": 0.0}, 1)
                share = Share(rank, world)
                loss = training._loss(model, [CYCLE[i][: 4 + i % 3] for i in range(5)], wrong, share)
                parts.append((loss, [p.grad for p in model.parameters()]))
            sums.append((sum(p[0] for p in parts), [sum(g) for g in zip(*(p[1] for p in parts), strict=True)]))
        assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
        for one, two in zip(sums[0][1], sums[1][1], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_a_sampled_loss_of_the_whole_catalogue_is_the_full_one() -> None:
    losses = []
    for wrong in (None, torch.arange(12)):
        losses.append(training._loss(build("gru4rec", SHAPE | {"dropout": 0.0}, 1), CYCLE[:5], wrong, Share()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    learned = build("gru4rec", SHAPE, 1)
    report = fit(learned, CYCLE, (PAIRS, NEXT), 0, Fitting(batch=8, lr=1e-2, epochs=60, sampled=6))
    assert report["valid_NDCG@10"] == 1


def test_morec_trains_the_map_and_not_the_embeddings() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    model = build("morec", SHAPE, 1, features)
    before = copy.deepcopy(model.state_dict())
    fit(model, CYCLE, (PAIRS, NEXT), 0, Fitting(batch=8, lr=1e-2, epochs=2))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "table.map.weight" in moved and "table.features" not in moved
    other = build("morec", SHAPE, 1, features.flip(0)).eval()
    assert not torch.equal(scores(other, [[1, 2]]), scores(build("morec", SHAPE, 1, features).eval(), [[1, 2]]))


def test_lists_are_the_best_items_without_those_left_out(model: SequentialModel) -> None:
    histories = [[1, 2], [3], [5, 6, 7]]
    lists, logprobs = top_lists(model, histories, 4)
    plain = scores(model, histories).log_softmax(-1)
    for row, (items, found) in enumerate(zip(lists, logprobs, strict=True)):
        assert items == sorted(range(12), key=lambda i: -plain[row, i].item())[:4]
        assert found == pytest.approx(plain[row, items].tolist(), abs=1e-6)
    without, _ = top_lists(model, histories, 12, histories)
    assert [sorted(items) for items in without] == [[i for i in range(12) if i not in h] for h in histories]


def test_save_and_load(model: SequentialModel, tmp_path: Path) -> None:
    sequential.save(model, tmp_path)
    again = sequential.load(tmp_path)
    assert torch.equal(scores(again, [[1, 2, 3]]), scores(model, [[1, 2, 3]]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_doubt_follows_the_true_preferences(tmp_path: Path, seed: int) -> None:
    """ε against the probability, known for the synthetic data, that the rejected item is the preferred one."""
    data = load(DataConfig(source="synthetic", seed=seed))
    assert data.truth is not None
    report = sequential.fit_sasrec(data.train, data.valid, data.catalogue, seed, str(tmp_path))
    rows, index = data.test.slice(0, 1000).to_pylist(), data.catalogue.index
    score_BI = scores(sequential.load(tmp_path), [[index[t] for t in row["history"]] for row in rows])
    true_BI = np.stack([data.truth.probabilities(row["history"], row["user"]) for row in rows])
    chosen = np.array([index[row["target"]] for row in rows])
    rejected = np.random.default_rng(seed).integers(len(index), size=len(rows))
    at = np.arange(len(rows))
    doubt = torch.sigmoid(score_BI[at, rejected] - score_BI[at, chosen]).numpy()
    truth = true_BI[at, rejected] / (true_BI[at, rejected] + true_BI[at, chosen])
    found = spearmanr(doubt, truth).statistic
    print(f"seed {seed}: Spearman correlation {found:.3f}")
    assert len(rows) == 1000 and found > 0.65, (found, report)
