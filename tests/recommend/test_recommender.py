"""Lists of a policy: the catalogue's best titles, without those that are not allowed."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MptConfig

from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.recommend import Recommender

TITLES = [f"{a} {b}" for a in ("Red", "Blue", "Old", "Lost") for b in ("River", "House", "Road", "Winter (1999)")]
HISTORIES = [TITLES[:3], TITLES[5:6], TITLES[2:9]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_tiny(TITLES, ModelConfig(tiny_hidden=64, tiny_layers=1, tiny_vocab=300), folder / "model", 0)
    rows = "".join(f"{title},{number}\n" for number, title in enumerate(TITLES))
    (folder / "titles.csv").write_text("title,popularity\n" + rows)
    return folder


@pytest.fixture(scope="module")
def recommender(policy: Path) -> Recommender:
    return Recommender.open(policy / "model", policy / "titles.csv", template="compact", device="cpu", width=16)


def lists(table) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["row"], []).append(row["title"])
        assert row["rank"] == len(found[row["row"]])
    return list(found.values())


def test_lists_are_the_best_titles_by_exact_scores(recommender: Recommender) -> None:
    scores = recommender.score(HISTORIES, TITLES)
    whole = recommender.recommend(HISTORIES, 16, exclude_history=False)
    for row, one in enumerate(lists(whole)):
        assert one == sorted(TITLES, key=lambda title: -scores[row][TITLES.index(title)])
    first = whole.slice(0, 1).to_pylist()[0]
    assert first["logprob"] == pytest.approx(max(scores[0]), abs=1e-5) and not first["fallback"]
    assert TITLES[first["item"]] == first["title"]


def test_what_is_not_allowed_is_in_no_list(recommender: Recommender) -> None:
    scores = recommender.score(HISTORIES, TITLES)
    allow, exclude = TITLES[::2], TITLES[4:5]
    found = lists(recommender.recommend(HISTORIES, 3, allow=allow, exclude=exclude))
    for row, one in enumerate(found):
        wanted = [title for title in allow if title not in HISTORIES[row] and title not in exclude]
        assert one == sorted(wanted, key=lambda title: -scores[row][TITLES.index(title)])[:3]
    assert lists(recommender.recommend(HISTORIES[:1], 5, allow=TITLES[:4])) == [[TITLES[3]]]


def test_an_empty_history_gets_popular_titles_and_says_so(recommender: Recommender) -> None:
    found = recommender.recommend([[], HISTORIES[0], []], 2, exclude=[TITLES[-1]]).to_pylist()
    assert [row["title"] for row in found[:2]] == [TITLES[-2], TITLES[-3]] == [row["title"] for row in found[4:]]
    assert [row["fallback"] for row in found] == [True, True, False, False, True, True]
    assert [row["logprob"] is None for row in found] == [True, True, False, False, True, True]


def test_a_history_is_cut_to_what_the_policy_read(policy: Path, recommender: Recommender) -> None:
    short = Recommender.open(policy / "model", policy / "titles.csv", template="compact", device="cpu", history=2)
    assert short.score([TITLES[:9]], TITLES) == recommender.score([TITLES[7:9]], TITLES)


def test_a_prompt_is_no_longer_than_the_policy_reads(policy: Path, recommender: Recommender) -> None:
    long = "Long " * 30
    short = Recommender.open(policy / "model", policy / "titles.csv", template="compact", device="cpu", width=16)
    answer = max(len(short.template.answer_ids(title)) for title in TITLES)
    short.max_length = len(short.template.prompt_ids(TITLES[:3])) + answer
    histories = [[long, *TITLES[:3]], [*TITLES[:2], long], [*TITLES[4:9], *TITLES[:3]]]
    assert short.score(histories[::2], TITLES) == [recommender.score([TITLES[:3]], TITLES)[0]] * 2
    assert short.recommend(histories[2:]) == short.recommend([TITLES[:3]], exclude=TITLES[4:9])
    length, room = len(short.template.prompt_ids([long])), short.max_length - answer
    told = (
        f"makes a prompt of {length} tokens; the policy reads {short.max_length} with the answer, which leaves {room}. "
    )
    assert [refused and told in refused for refused in short.refusals(histories)] == [None, True, None]
    with pytest.raises(ValueError, match=told):
        short.recommend(histories)


def test_drawn_lists_permit_unbiased_estimates(policy: Path, recommender: Recommender) -> None:
    history, k, draws = HISTORIES[0], 4, 1500
    rest = [title for title in TITLES if title not in history]
    (policy / "rest.csv").write_text("title\n" + "\n".join(rest))
    alone = Recommender.open(
        policy / "model", policy / "rest.csv", template="compact", device="cpu", normalise="catalogue"
    )
    prob = dict(zip(rest, map(math.exp, alone.score([history], rest)[0]), strict=True))
    assert sum(prob.values()) == pytest.approx(1, abs=1e-5) and max(prob.values()) < 0.9
    worth = {title: math.sin(3 * number) for number, title in enumerate(rest)}
    found = recommender.recommend([history] * draws, k, explore="gumbel", seeds=5).to_pylist()
    estimates, masses = [0.0] * draws, [0.0] * draws
    for one in found:
        assert one["title"] in prob and not one["fallback"]
        assert math.exp(one["logprob"]) == pytest.approx(prob[one["title"]], rel=1e-3)
        assert one["inclusion"] == pytest.approx(-math.expm1(-math.exp(one["logprob"] - one["threshold"])), rel=1e-4)
        weight = math.exp(one["logprob"]) / one["inclusion"]
        estimates[one["row"]] += weight * worth[one["title"]]
        masses[one["row"]] += weight
    assert len(found) == draws * k and len({*masses}) > draws / 2
    for made, wanted in ((estimates, sum(prob[t] * worth[t] for t in rest)), (masses, 1.0)):
        assert statistics.fmean(made) == pytest.approx(wanted, abs=4 * statistics.stdev(made) / math.sqrt(draws))
    # A sum that takes every title with weight 1 is far from it.
    assert abs(k * statistics.fmean(worth[one["title"]] for one in found) - sum(prob[t] * worth[t] for t in rest)) > 0.1


def test_draws_follow_their_seeds_and_best_lists_have_none(recommender: Recommender) -> None:
    one = recommender.recommend(HISTORIES, 5, explore="gumbel", seeds=[7, 8, 9])
    again = recommender.recommend([HISTORIES[2], [], HISTORIES[0]], 5, explore="gumbel", seeds=[9, 1, 7])
    assert lists(again)[0] == lists(one)[2] and lists(again)[2] == lists(one)[0]
    assert lists(recommender.recommend(HISTORIES[:1], 5, explore="gumbel", seeds=[8])) != lists(one)[:1]
    fallback = [row for row in again.to_pylist() if row["row"] == 1]
    assert [row["title"] for row in fallback] == TITLES[:-6:-1]
    assert {(row["inclusion"], row["threshold"], row["logprob"]) for row in fallback} == {(None, None, None)}
    best = recommender.recommend(HISTORIES, 5)
    assert best["inclusion"].null_count == best["threshold"].null_count == best.num_rows
    every = recommender.recommend(HISTORIES[:1], 16, explore="gumbel")
    assert len(every) == 13 and {*every["inclusion"].to_pylist()} == {1.0} and every["threshold"].null_count == 13
    with pytest.raises(ValueError, match="2 seeds for 3 histories"):
        recommender.recommend(HISTORIES, 5, explore="gumbel", seeds=[1, 2])
    with pytest.raises(ValueError, match=r"explore 'beams'\. Choose one of none, gumbel"):
        recommender.recommend(HISTORIES, 5, explore="beams")  # type: ignore[arg-type]


def test_wrong_questions_are_refused(policy: Path, recommender: Recommender, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k = 0, wanted at least 1"):
        recommender.recommend(HISTORIES, 0)
    with pytest.raises(ValueError, match="1 titles to allow or exclude are not in the catalogue, the first is 'Nope'"):
        recommender.recommend(HISTORIES, 2, allow=["Nope"])
    with pytest.raises(ValueError, match="outside of a run has no catalogue"):
        Recommender.open(policy / "model")
    with pytest.raises(ValueError, match="no such file"):
        Recommender.open(policy / "model", "nowhere.csv")
    (tmp_path / "twice.csv").write_text("title\nA\nA\n")
    with pytest.raises(ValueError, match="a title is empty or comes twice"):
        Recommender.open(policy / "model", tmp_path / "twice.csv")
    (tmp_path / "names.csv").write_text("name\nA\n")
    with pytest.raises(ValueError, match=r"found columns \['name'\], wanted `title`"):
        Recommender.open(policy / "model", tmp_path / "names.csv")
    assert recommender.recommend([], 3).num_rows == 0


def test_a_model_whose_probabilities_would_be_wrong_is_refused(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy / "model", tmp_path / "alibi")
    (tmp_path / "alibi" / "model.safetensors").unlink()
    size = len(AutoTokenizer.from_pretrained(policy / "model"))
    torch.manual_seed(0)
    settings = MptConfig(vocab_size=size, d_model=32, n_layers=1, n_heads=2, max_seq_len=512)
    lm = AutoModelForCausalLM.from_config(settings)
    for weight in lm.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    lm.save_pretrained(tmp_path / "alibi")
    with pytest.raises(ValueError, match="MptForCausalLM: log-probabilities of the packed pass differ by"):
        Recommender.open(tmp_path / "alibi", policy / "titles.csv", template="compact", device="cpu")
    shutil.copytree(policy / "model", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    next(iter(weights.values()))[:] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds NaN or infinity\. Take weights of finite numbers"):
        Recommender.open(tmp_path / "broken", policy / "titles.csv", template="compact", device="cpu")
