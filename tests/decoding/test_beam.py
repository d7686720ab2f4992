"""The catalogue beam search against teacher-forced scores of whole titles."""

import gc
import random
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.cache_utils import DynamicLayer

from rayrec.decoding import Prior, Trie, beam_search, measured_search, packed, sample_titles
from rayrec.decoding.beam import Normalise
from tests.decoding.small_models import CONFIGS, EOS, PROMPTS, SIZES, random_model, teacher_forced


def random_titles(count: int, seed: int = 0) -> list[list[int]]:
    """Distinct titles of 1 to 8 tokens over few tokens, so that many share a beginning or begin another."""
    rng, titles = random.Random(seed), {}
    while len(titles) < count:
        titles[tuple(rng.choice((3, 4, 5, 20)) for _ in range(rng.randint(1, 8)))] = None
    return [[*title, EOS] for title in titles]


@pytest.mark.parametrize("name", CONFIGS)
def test_full_width_is_exhaustive_scoring(name: str) -> None:
    model, titles = random_model(name), random_titles(30)
    for prompt, found in zip(PROMPTS, beam_search(model, PROMPTS, Trie.build(titles), 30), strict=True):
        exact = [teacher_forced(model, prompt, t) for t in titles]
        assert [item for item, _ in found] == sorted(range(30), key=lambda i: -exact[i])
        assert [score for _, score in found] == pytest.approx([exact[i] for i, _ in found], abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("width", [1, 4, 11])
def test_scores_are_teacher_forced_at_any_width(name: str, width: int) -> None:
    model, titles = random_model(name), random_titles(60, seed=width)
    for prompt, found in zip(PROMPTS, beam_search(model, PROMPTS, Trie.build(titles), width), strict=True):
        items = [item for item, _ in found]
        assert len(items) == len(set(items)) == width
        assert all(0 <= item < 60 for item in items)
        scores = [score for _, score in found]
        assert scores == pytest.approx([teacher_forced(model, prompt, titles[i]) for i in items], abs=1e-4)
        assert scores == sorted(scores, reverse=True)


def test_bfloat16_scores_are_those_of_the_bfloat16_model() -> None:
    model, titles = random_model("llama", dtype=torch.bfloat16), random_titles(30)
    assert model.dtype == torch.bfloat16
    (found,) = beam_search(model, PROMPTS[:1], Trie.build(titles), 30)
    exact = [teacher_forced(model, PROMPTS[0], t) for t in titles]
    assert [s for _, s in found] == pytest.approx([exact[i] for i, _ in found], rel=0.02)


def test_eager_attention_gives_the_same() -> None:
    trie = Trie.build(random_titles(30))
    sdpa = beam_search(random_model("llama"), PROMPTS, trie, 8)
    eager = beam_search(random_model("llama", attn_implementation="eager"), PROMPTS, trie, 8)
    for a, b in zip(sdpa, eager, strict=True):
        assert dict(a) == pytest.approx(dict(b), abs=1e-4)


def test_neighbours_in_the_batch_change_nothing_but_rounding() -> None:
    model, trie = random_model("qwen2"), Trie.build(random_titles(60))
    together = beam_search(model, PROMPTS, trie, 8)
    for batch in (1, 3):
        for a, b in zip(together, beam_search(model, PROMPTS, trie, 8, batch=batch), strict=True):
            assert dict(a) == pytest.approx(dict(b), abs=1e-4)


def test_tails_in_several_passes_are_tails_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, trie = random_model("llama"), Trie.build(random_titles(60))
    whole = beam_search(model, PROMPTS, trie, 16)
    monkeypatch.setattr("rayrec.decoding.tails.TAIL_LOGITS", 1)
    for a, b in zip(whole, beam_search(model, PROMPTS, trie, 16), strict=True):
        assert dict(a) == pytest.approx(dict(b), abs=1e-4)


def test_a_call_repeats_to_the_bit() -> None:
    model, trie = random_model("neox"), Trie.build(random_titles(60))
    first = beam_search(model, PROMPTS, trie, 10)
    assert beam_search(model, PROMPTS, trie, 10) == first


@pytest.mark.parametrize("best", [1, 3, 10, 50])
def test_return_best_leaves_out_work_but_changes_no_answer(best: int) -> None:
    model, trie = random_model("neox"), Trie.build(random_titles(60))
    full, cut = (beam_search(model, PROMPTS, trie, 10, return_best=b) for b in (None, best))
    for a, b in zip(full, cut, strict=True):
        assert [item for item, _ in a[:best]] == [item for item, _ in b]
        assert [s for _, s in a[:best]] == pytest.approx([s for _, s in b], abs=1e-4)


def test_titles_that_begin_others_and_share_long_beginnings() -> None:
    titles = [[7, EOS], [7, 8, EOS], [7, 8, 9, 9, 9, 9, 9, 10, EOS], [7, 8, 9, 9, 9, 9, 9, 11, EOS], [12, 7, EOS]]
    model = random_model("llama")
    (found,) = beam_search(model, [[1, 5]], Trie.build(titles), 5)
    assert dict(found) == pytest.approx({i: teacher_forced(model, [1, 5], t) for i, t in enumerate(titles)}, abs=1e-4)


@pytest.mark.parametrize("title", [[EOS], [9, 4, 31, EOS]])
def test_a_catalogue_of_one_title(title: list[int]) -> None:
    model = random_model("gpt2")
    (found,) = beam_search(model, [[1, 5]], Trie.build([title]), 4)
    assert found == [(0, pytest.approx(teacher_forced(model, [1, 5], title), abs=1e-4))]


def test_byte_level_titles() -> None:
    titles = ["Amélie", "Amélie 2", "七人の侍", "七人", "Ωmega: “quoted”, title", "Æon\nFlux"]
    answers = [[3 + b % 37 for b in title.encode()] + [EOS] for title in titles]
    model = random_model("gpt2")
    (found,) = beam_search(model, [[1, 5]], Trie.build(answers), 6)
    assert dict(found) == pytest.approx({i: teacher_forced(model, [1, 5], a) for i, a in enumerate(answers)}, abs=1e-4)


def test_equal_scores_come_in_the_order_of_items() -> None:
    model = random_model("llama")
    for p in model.parameters():
        torch.nn.init.zeros_(p)  # every token has probability 1 / 40
    titles = [[9, 5, EOS], [3, EOS], [8, EOS], [4, 5, EOS]]
    (found,) = beam_search(model, [[1, 5]], Trie.build(titles), 4)
    assert [item for item, _ in found] == [1, 2, 0, 3]


def test_beams_are_pruned_by_score_of_the_tokens_read() -> None:
    """Width 1 takes the likeliest first token among the catalogue's, then the likeliest second one."""
    model, titles = random_model("llama"), [[a, b, EOS] for a in (3, 4, 5) for b in (6, 7, 8)]
    with torch.no_grad():
        first = max((3, 4, 5), key=lambda t: model(torch.tensor([[1, 9]])).logits[0, -1, t].item())
        second = max((6, 7, 8), key=lambda t: model(torch.tensor([[1, 9, first]])).logits[0, -1, t].item())
    (found,) = beam_search(model, [[1, 9]], Trie.build(titles), 1)
    assert titles[found[0][0]] == [first, second, EOS]


def test_finished_searches_leave_no_keys_and_values_behind() -> None:
    """Without Python's collector of circles, which comes by seldom."""
    trie, model = Trie.build(random_titles(30)), random_model(next(iter(CONFIGS)))
    gc.collect()
    gc.disable()
    try:
        beam_search(model, PROMPTS, trie, 4)
        sample_titles(model, PROMPTS, trie, 2, list(range(len(PROMPTS))))
        measured_search(model, PROMPTS, trie, 2, targets=[0] * len(PROMPTS))
        assert not [one for one in gc.get_objects() if isinstance(one, DynamicLayer)]
    finally:
        gc.enable()


def test_no_prompts_no_answers() -> None:
    assert beam_search(random_model("llama"), [], Trie.build([[5, EOS]]), 3) == []


def test_what_cannot_be_computed_exactly_is_refused() -> None:
    trie = Trie.build([[5, 6, EOS]])
    with pytest.raises(ValueError, match="width 0"):
        beam_search(random_model("llama"), [[1]], trie, 0)
    with pytest.raises(ValueError, match="empty prompt"):
        beam_search(random_model("llama"), [[1], []], trie, 2)
    with pytest.raises(ValueError, match="training mode"):
        beam_search(random_model("llama").train(), [[1]], trie, 2)
    with pytest.raises(ValueError, match="the model sees 64"):
        beam_search(random_model("gpt2"), [[1] * 62], trie, 2)
    window = MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=8)
    with pytest.raises(ValueError, match=r"the model sees 8 \(sliding_window\)"):
        beam_search(AutoModelForCausalLM.from_config(window).eval(), [[1] * 6], trie, 2)


def random_prior(items: int, alpha: float) -> Prior:
    logit_PI = 2 * torch.randn(len(PROMPTS), items, generator=torch.Generator().manual_seed(1))
    return Prior(logit_PI.log_softmax(-1), alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_d3_is_the_brute_force_mixture_of_both_models(alpha: float) -> None:
    """D3: a finished item scores α log π(title + EOS) + (1 - α) log p_CF(item)."""
    model, titles, prior = random_model("llama"), random_titles(40), random_prior(40, alpha)
    lists = beam_search(model, PROMPTS, Trie.build(titles), 40, prior=prior)
    for prompt, found, logp_I in zip(PROMPTS, lists, prior.logprob_PI.tolist(), strict=True):
        exact = [
            alpha * teacher_forced(model, prompt, t) + (1 - alpha) * lp for t, lp in zip(titles, logp_I, strict=True)
        ]
        assert [item for item, _ in found] == sorted(range(40), key=lambda i: -exact[i])
        assert [score for _, score in found] == pytest.approx([exact[i] for i, _ in found], abs=1e-4)


def test_d3_changes_narrow_searches_and_keeps_their_scores_exact() -> None:
    model, titles, prior = random_model("qwen3"), random_titles(200), random_prior(200, 0.4)
    trie = Trie.build(titles)
    plain = beam_search(model, PROMPTS, trie, 5)
    guided = beam_search(model, PROMPTS, trie, 5, prior=prior)
    assert [[i for i, _ in one] for one in plain] != [[i for i, _ in one] for one in guided]
    for prompt, found, logp_I in zip(PROMPTS, guided, prior.logprob_PI.tolist(), strict=True):
        exact = [0.4 * teacher_forced(model, prompt, titles[i]) + 0.6 * logp_I[i] for i, _ in found]
        assert [score for _, score in found] == pytest.approx(exact, abs=1e-4)


def test_d3_follows_the_step_by_step_rule() -> None:
    """Each token adds α log softmax_LM + (1 - α) log p_CF, the CF mass renormalised over the allowed tokens."""
    model, titles, prior = random_model("gpt2"), random_titles(30), random_prior(30, 0.5)
    found = dict(beam_search(model, PROMPTS[:1], Trie.build(titles), 30, prior=prior)[0])
    prob_I = prior.logprob_PI[0].exp()
    for item, title in enumerate(titles):
        score = 0.5 * teacher_forced(model, PROMPTS[0], title)
        for depth in range(len(title)):
            alike = [i for i, t in enumerate(titles) if t[:depth] == title[:depth]]
            chosen = [i for i in alike if titles[i][: depth + 1] == title[: depth + 1]]
            score += 0.5 * float((prob_I[chosen].sum() / prob_I[alike].sum()).log())
        assert found[item] == pytest.approx(score, abs=1e-4)


class Reads(TorchDispatchMode):
    """Counts what a device would be waited for: a number that is read, or a size that follows from numbers."""

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.found, listed = Counter(), torch.Tensor.tolist

        def tolist(tensor: torch.Tensor) -> list:
            self.found["tolist"] += 1
            return listed(tensor)

        patch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__.split(".")[0], kwargs or {}
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
        masks = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
        if (
            name in ("_local_scalar_dense", "item", "nonzero", "unique_consecutive")
            or masks
            or (not sized and "repeat" in name)
        ):
            self.found[name] += 1
        return func(*args, **kwargs)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches on the CPU go as on a GPU, which is not read between two steps."""
    monkeypatch.setattr(packed, "reads_at_once", lambda device: False)


@pytest.mark.parametrize("normalise", ["vocabulary", "catalogue"])
def test_steps_of_a_bounded_size_find_the_same(normalise: Normalise, request: pytest.FixtureRequest) -> None:
    """In titles of one token and more, the last of which is found when most prompts have no beam left."""
    model, titles = random_model("llama"), [*random_titles(60), [6, EOS], [*[7] * 12, 8, EOS], [*[7] * 12, 9, EOS]]
    trie, n = Trie.build(titles), len(titles)
    allowed_PI = torch.rand(len(PROMPTS), n, generator=torch.Generator().manual_seed(0)) < 0.3

    def found() -> list[dict[int, float]]:
        made = [dict(one) for w in (1, 5, n) for one in beam_search(model, PROMPTS, trie, w, normalise=normalise)]
        limited = {"normalise": normalise, "prior": random_prior(n, 0.6), "allowed_PI": allowed_PI}
        made += [dict(one) for one in beam_search(model, PROMPTS, trie, 5, **limited)]
        for limit_PI in (None, allowed_PI):
            drawn = sample_titles(model, PROMPTS, trie, 5, [1, 2, 3, 4], allowed_PI=limit_PI)
            made += [{one.item: one.logprob for one in some.titles} for some in drawn]
        return made

    wanted = found()
    request.getfixturevalue("late")
    for one, other in zip(wanted, found(), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_flag_is_read_a_call_late(late: None) -> None:
    flags, stopped = [False, True, False, True], packed.Late(torch.device("cpu"))
    assert [stopped(torch.tensor(flag)) for flag in flags] == [False, *flags[:-1]]


def test_a_gpu_is_read_late_alone(late: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step more reads the flag of the step before it, and nothing else."""
    short, long = (reads_of(length, monkeypatch) for length in (3, 9))
    long.subtract(short)
    assert {name: count for name, count in long.items() if count} == {"item": 9 - 3}


def reads_of(length: int, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Count the reads of a search in titles of ``length`` + 2 tokens."""
    trie = Trie.build([[*[3] * length, 4 + i, EOS] for i in range(16)])
    assert len(trie.bounds(4)) == length + 1  # on the host, of the trie alone
    with monkeypatch.context() as patch, Reads(patch) as reads:
        beam_search(random_model("llama"), PROMPTS[:2], trie, 4)
    return reads.found


def test_a_step_reads_one_line_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of longer titles waits for the device once more for each step, and else as often."""
    found = [reads_of(length, monkeypatch) for length in (3, 9)]
    short, long = found
    assert long["tolist"] - short["tolist"] == 9 - 3
    del short["tolist"], long["tolist"]
    assert short == long
