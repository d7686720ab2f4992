"""Random models of five architectures, and the plain way to score a title."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB, EOS = 40, 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
IDS = {"bos_token_id": 1, "eos_token_id": EOS}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **IDS, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, **IDS, intermediate_size=64, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, **IDS, intermediate_size=64, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64),
    "neox": GPTNeoXConfig(**SIZES, **IDS, intermediate_size=64),
}
PROMPTS = [[1, 5, 9, 30, 7], [1], [1, 8, 8, 8, 3, 21, 33, 12, 4, 6, 17], [1, 39, 4]]


def random_model(name: str, **settings) -> PreTrainedModel:
    """A model whose weights are so large that a wrong mask or position shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), **settings).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.3)
    return model


@torch.no_grad()
def teacher_forced(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """log P(answer | prompt) from one sequence on its own."""
    logp = model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
