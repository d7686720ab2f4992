"""Norms in one kernel compute what the model's own compute, or are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rayrec.models import norms, policy
from rayrec.models.logprobs import PackedLM, pack
from tests.models.test_logprobs import assert_same, gradients
from tests.models.zoo import make

#: Norms of a model of two layers: two a layer and one at the end; Qwen3 also norms queries and keys.
FUSED = {"llama": 5, "mistral": 5, "qwen2, tied": 5, "qwen3": 9, "phi3": 5, "smollm3": 5, "gemma": 0, "gpt_neox": 0}


@pytest.mark.parametrize("name", FUSED)
def test_a_model_computes_the_same(name: str, tmp_path: Path) -> None:
    lm = policy.without_dropout(policy.load_base(make(name, tmp_path / "base")))
    packed = pack([([5, 9, 30, 7], [[8, 3, 2], [21, 2]]), ([12, 4], [[6, 6, 6, 2]])])
    wanted_BA = PackedLM(lm)(packed)
    wanted = gradients(lm, wanted_BA)
    assert norms.fuse(lm) == FUSED[name]
    found_BA = PackedLM(lm)(packed)
    torch.testing.assert_close(found_BA, wanted_BA, rtol=1e-5, atol=1e-5)
    assert_same(gradients(lm, found_BA), wanted)
    policy.save(policy.trainable_state(lm), lm, policy.load_tokenizer(tmp_path / "base"), tmp_path / "policy", {})
    with torch.no_grad():
        torch.testing.assert_close(PackedLM(policy.load_base(tmp_path / "policy"))(packed), wanted_BA)


def test_in_bfloat16_it_differs_by_rounding() -> None:
    own: Any = LlamaRMSNorm(64).to(torch.bfloat16)
    torch.nn.init.normal_(own.weight)
    x = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    wanted = own(x)
    assert norms.fuse(torch.nn.ModuleList([own])) == 1 and own.weight.dtype == torch.bfloat16
    torch.testing.assert_close(own(x), wanted, rtol=0.02, atol=0.02)


def test_norms_of_other_formulas_are_left_alone() -> None:
    one, other = GemmaRMSNorm(64), torch.nn.LayerNorm(64)
    assert norms.fuse(torch.nn.ModuleList([one, other])) == 0
    assert type(one) is GemmaRMSNorm and type(other) is torch.nn.LayerNorm
    assert bool((one.weight == 0).all())  # as it was
