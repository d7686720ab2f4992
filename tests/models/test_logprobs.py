"""The packed pass equals plain passes, in values and gradients, and nothing leaks by a bit."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from rayrec.models import logprobs
from rayrec.models.logprobs import PackedLM, Row, pack
from rayrec.models.policy import add_lora

V = 90
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = GPT2Config(
    vocab_size=V,
    n_embd=32,
    n_layer=2,
    n_head=4,
    attn_pdrop=0,
    embd_pdrop=0,
    resid_pdrop=0,
    bos_token_id=1,
    eos_token_id=2,
)
CONFIGS = {
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED),
    "gpt2": GPT2,
    "gpt_neox": GPTNeoXConfig(**SHAPE),
}


def model(name: str, lora: bool = False) -> Any:
    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").eval()
    if lora:
        lm = add_lora(lm, 4, 8, 0.0)
        for key, parameter in lm.named_parameters():
            if "lora_B" in key:  # they start at 0, where the adapter does nothing; large ones would magnify rounding
                torch.nn.init.normal_(parameter, std=0.1)
    return lm


def batch(seed: int = 0, B: int = 6, longest: int = 30) -> list[Row]:
    """Examples with 1 to ``longest`` prompt tokens and 1 to 5 answers of 1 to 10."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    def tokens(n: int) -> list[int]:
        return torch.randint(3, V, (n,), generator=g).tolist()

    return [(tokens(number(1, longest)), [[*tokens(number(0, 9)), 2] for _ in range(number(1, 5))]) for _ in range(B)]


def plain(lm: Any, rows: list[Row]) -> torch.Tensor:
    """Every answer in a sequence of its own."""
    logprob_BA = torch.zeros(len(rows), max(len(answers) for _, answers in rows))
    for b, (prompt, answers) in enumerate(rows):
        for a, answer in enumerate(answers):
            logprob_TV = lm(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            logprob_BA[b, a] = logprob_TV[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].sum()
    return logprob_BA


def gradients(lm: Any, logprob_BA: torch.Tensor) -> dict[str, torch.Tensor]:
    weight_BA = torch.linspace(-1, 1, logprob_BA.numel()).view_as(logprob_BA)
    lm.zero_grad()
    (weight_BA * logprob_BA).sum().backward()
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Gradients agree within 1e-5 of each tensor's largest entry."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(float(value.abs().max()), 1e-6)
        torch.testing.assert_close(found[name] / scale, value / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_plain(name: str, lora: bool) -> None:
    lm, rows = model(name, lora), batch()
    wanted_BA = plain(lm, rows)
    wanted = gradients(lm, wanted_BA)
    for budget in (0, 90, 1000):
        packed = pack(rows, budget)
        found_BA = PackedLM(lm)(packed)
        assert ((packed.lengths_BA == 0) == (wanted_BA == 0)).all()
        torch.testing.assert_close(found_BA, wanted_BA, rtol=1e-5, atol=0)
        assert_same(gradients(lm, found_BA), wanted)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("budget", [0, 1000])
def test_nothing_leaks(name: str, lora: bool, budget: int) -> None:
    """Another answer's tokens, or another example's, do not move a log-probability by one bit."""
    lm, rows = PackedLM(model(name, lora)), batch(seed=3)
    with torch.no_grad():
        before_BA = lm(pack(rows, budget))
        for b, (prompt, answers) in enumerate(rows):
            for a in range(len(answers)):
                other = [[(t + 5) % V for t in answer] if i == a else answer for i, answer in enumerate(answers)]
                moved_BA = lm(pack([*rows[:b], (prompt, other), *rows[b + 1 :]], budget)) != before_BA
                assert moved_BA.nonzero().tolist() == [[b, a]]
            other = [(t + 5) % V for t in prompt]
            moved_BA = lm(pack([*rows[:b], (other, answers), *rows[b + 1 :]], budget)) != before_BA
            assert set(moved_BA.nonzero()[:, 0].tolist()) == {b}


def test_layout() -> None:
    packed = pack([([5, 6], [[7, 8, 2], [9, 2]]), ([4], [[2]])], token_budget=6, pad_id=0)
    # An answer's last token is no input: 2 + 2 + 1 tokens, and the second example fits behind the first.
    assert packed.ids_RT.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert packed.positions_RT.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert packed.lengths_BA.tolist() == [[3, 2], [1, 0]]
    assert packed.source_N.tolist() == [1, 2, 3, 1, 4, 5]
    assert packed.target_N.tolist() == [7, 8, 2, 9, 2, 2]
    sees = (packed.mask(torch.float32)[0, 0] == 0).int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert pack([([5, 6], [[7, 8, 2]]), ([4], [[2]])], pad_id=0).ids_RT.tolist() == [[5, 6, 7, 8], [4, 0, 0, 0]]
    for rows in ([], [([], [[2]])], [([1], [[]])]):
        with pytest.raises(ValueError, match="empty"):
            pack(rows)


def test_rows_hold_no_more_than_they_must() -> None:
    rows = batch(seed=5, B=40, longest=20)
    for budget in (0, 100):
        packed = pack(rows, budget)
        tokens = sum(len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in rows)
        assert int((packed.example_RT >= 0).sum()) == tokens
        assert packed.ids_RT.shape[1] <= max(100, 20 + 5 * 9)
        if budget:
            assert packed.ids_RT.numel() < 1.1 * tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_mlp_sees_only_what_the_head_reads(name: str) -> None:
    lm, packed = model(name), pack(batch(), 64)
    blocks = getattr(lm.base_model, "layers", None) or lm.base_model.h
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].numel() // args[0].shape[-1])

    for block in blocks:
        next(iter(block.mlp.children())).register_forward_pre_hook(count)
    read, places = len(set(packed.source_N.tolist())), packed.ids_RT.numel()
    assert read < places
    PackedLM(lm)(packed)
    lm(input_ids=packed.ids_RT)
    PackedLM(lm, activation_checkpointing=True)(packed)
    assert seen == [places, read, *[places] * 4]


def test_chunks_and_checkpoints_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, packed = model("llama"), pack(batch())
    whole_BA = PackedLM(lm)(packed)
    wanted = gradients(lm, whole_BA)
    monkeypatch.setattr(logprobs, "MAX_LOGITS", 16 * V)
    chunked_BA = PackedLM(lm)(packed)
    assert len(packed.target_N) > 3 * 16
    torch.testing.assert_close(chunked_BA, whole_BA, rtol=1e-6, atol=0)
    assert_same(gradients(lm, chunked_BA), wanted)
    saved = PackedLM(lm, activation_checkpointing=True).train()
    assert saved.model.is_gradient_checkpointing
    assert_same(gradients(lm, saved(packed)), wanted)
