"""Greedy, sampled and free-beam answers against Hugging Face's generate, teacher forcing and full enumeration."""

import itertools
import math
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rayrec.decoding import generate, packed
from tests.decoding.small_models import CONFIGS, EOS, PROMPTS, random_model, teacher_forced


def small_vocabulary() -> LlamaForCausalLM:
    """A model of 5 tokens, whose answers of up to 4 tokens can all be listed."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=5, initializer_range=0.5)).eval()


def hugging_face(model: PreTrainedModel, prompt: list[int], **settings) -> list[list[int]]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    rows = model.generate(ids, attention_mask=mask, do_sample=False, eos_token_id=EOS, pad_token_id=0, **settings)
    return rows[:, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_hugging_face_greedy_with_exact_logprobs(name: str) -> None:
    model = random_model(name)
    answers = generate(model, PROMPTS, EOS, max_new_tokens=12)
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert [answer.token_ids] == hugging_face(model, prompt, max_new_tokens=12)
        assert answer.logprob == pytest.approx(teacher_forced(model, prompt, answer.token_ids), abs=1e-4)


def test_beams_wide_enough_give_all_finished_answers_in_order() -> None:
    model, prompt = small_vocabulary(), [1, 3, 4]
    every = [[*body, EOS] for length in range(4) for body in itertools.product((0, 1, 3, 4), repeat=length)]
    exact = sorted(((teacher_forced(model, prompt, a), a) for a in every), reverse=True)  # 1 + 4 + 16 + 64 answers
    (found,) = generate(model, [prompt], EOS, max_new_tokens=4, mode="beam", n=200)
    assert [g.token_ids for g in found] == [a for _, a in exact]
    assert [g.logprob for g in found] == pytest.approx([s for s, _ in exact], abs=1e-4)


def test_beams_are_at_least_as_likely_as_hugging_faces() -> None:
    model, prompts, compared = small_vocabulary(), [[1, 3, 4], [3, 2, 2], [4, 4, 1, 1, 3, 0]], 0
    for prompt, found in zip(prompts, generate(model, prompts, EOS, max_new_tokens=10, mode="beam", n=6), strict=True):
        settings = {"num_beams": 6, "num_return_sequences": 6, "length_penalty": 0.0, "early_stopping": "never"}
        hf = hugging_face(model, prompt, max_new_tokens=10, **settings)
        finished = [row[: row.index(EOS) + 1] for row in hf if EOS in row]
        theirs = sorted((teacher_forced(model, prompt, row) for row in finished), reverse=True)
        ours = [teacher_forced(model, prompt, g.token_ids) for g in found]
        assert [g.logprob for g in found] == pytest.approx(ours, abs=1e-4)
        assert ours == sorted(ours, reverse=True)
        assert len({tuple(g.token_ids) for g in found}) == len(found) >= len(theirs)
        assert all(g.token_ids.index(EOS) == len(g.token_ids) - 1 for g in found)
        assert all(a >= b - 1e-4 for a, b in zip(ours, theirs, strict=False))
        compared += len(theirs)
    assert compared > 5


def test_beams_that_never_finish_are_not_answers() -> None:
    outside = 10_000  # an EOS that the model cannot write
    assert generate(random_model("llama"), PROMPTS, outside, max_new_tokens=3, mode="beam", n=2) == [[], [], [], []]


def test_samples_have_exact_logprobs_and_repeat_with_their_seed() -> None:
    model = random_model("qwen3")
    first = generate(model, PROMPTS, EOS, max_new_tokens=8, mode="sample", n=5, seed=3)
    assert generate(model, PROMPTS, EOS, max_new_tokens=8, mode="sample", n=5, seed=3) == first
    assert generate(model, PROMPTS, EOS, max_new_tokens=8, mode="sample", n=5, seed=4) != first
    for prompt, answers in zip(PROMPTS, first, strict=True):
        assert len(answers) == 5
        for g in answers:
            assert EOS not in g.token_ids[:-1]
            assert g.logprob == pytest.approx(teacher_forced(model, prompt, g.token_ids), abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"mode": "sample", "n": 3, "seed": 3}])
def test_a_gpu_that_is_read_late_writes_the_same(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = small_vocabulary(), [[1, 3]]
    ((first, *_),) = generate(model, prompt, 10_000, max_new_tokens=4)
    end = first.token_ids[3]
    wanted = generate(model, prompt, end, max_new_tokens=60, **settings)
    assert max(len(g.token_ids) for g in wanted[0]) < 60  # all have ended before
    monkeypatch.setattr(packed, "reads_at_once", lambda device: False)
    assert generate(model, prompt, end, max_new_tokens=60, **settings) == wanted


def test_samples_follow_the_model() -> None:
    """4,000 draws of one token: each share within 4 standard errors of its probability."""
    model = small_vocabulary()
    (answers,) = generate(model, [[1, 3]], EOS, max_new_tokens=1, mode="sample", n=4000)
    shares = Counter(g.token_ids[0] for g in answers)
    for token in range(5):
        p = math.exp(teacher_forced(model, [1, 3], [token]))
        assert shares[token] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_sampling_leaves_the_global_generator_alone() -> None:
    model, before = small_vocabulary(), torch.get_rng_state()
    generate(model, [[1, 3], [4]], EOS, max_new_tokens=3, mode="sample", n=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "beams"}, "mode 'beams'"),
        ({"n": 0}, "n 0"),
        ({"n": 2}, "n 1 for greedy"),
        ({"max_new_tokens": 0}, "tokens 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(random_model("llama"), PROMPTS, EOS, **{"max_new_tokens": 4, **settings})
