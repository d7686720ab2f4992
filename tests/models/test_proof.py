"""Two processes state the same about equal weights, and something else about others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rayrec.models import item_vectors, policy, proof
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny

PROBE = proof.Probe([5, 6, 7, 8], [9, 10, 2])
SHAPE = ModelConfig(tiny_hidden=32, tiny_layers=2, tiny_vocab=300)


def moved(model: Any, by: float = 0.01) -> Any:
    """The model after a step of some kind."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def base(folder: Path, kind: str) -> Path:
    """A tiny model with a tokenizer; GPT-2's matrices have a row for each input."""
    make_tiny(["Red River", "Blue House"], SHAPE, folder, 0)
    if kind == "gpt2":
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(
            folder
        )
    return folder


def test_a_model_states_nothing_on_a_probe_with_items_that_it_gets_later(tmp_path: Path) -> None:
    """LLaRA's base is pre-trained before its items are attached."""
    model = policy.load_base(base(tmp_path, "llama")).eval()
    probe = proof.Probe([5, model.get_input_embeddings().num_embeddings + 2, 7], [9, 2])
    assert proof.model_statement(model, probe) is None
    item_vectors.attach(model, torch.randn(3, 4))
    stated = proof.model_statement(model, probe)
    assert stated is not None and stated["logprob"] < 0 and stated["probe"] == probe.key


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_trainer_and_whoever_loads_its_folder_state_the_same(
    tmp_path: Path, kind: str, dtype: str, rank: int
) -> None:
    start = base(tmp_path / "base", kind)
    model = policy.load_base(start, dtype)
    if rank:
        model = policy.add_lora(model, rank, 2 * rank, 0.0)
    moved(model).eval()
    out, tokenizer = tmp_path / "policy", policy.load_tokenizer(start)
    policy.save(policy.trainable_state(model), model, tokenizer, out, {}, merged=bool(rank), base=str(start))
    wanted = proof.folder_statement(out, model, PROBE, proof.logprob(model, PROBE))
    assert wanted.keys() == {"probe", "logprob", "whole", *(["adapter"] if rank else [])}
    for folder in (out, out / "merged") if rank else (out,):
        loaded = policy.load_policy(folder, dtype, base=str(start))
        found = proof.model_statement(loaded, PROBE)
        assert proof.compared(found, wanted) == ["adapter" if rank and folder == out else "whole"]
        assert proof.difference(found, wanted, dtype, PROBE) == ""
    if rank:
        former = policy.add_lora(policy.load_base(start, dtype), rank, 2 * rank, 0.0)
    else:
        former = policy.load_base(start, dtype)
    stale = policy.load_policy(out, dtype, base=str(start))
    with torch.no_grad():
        name = next(n for n, p in stale.named_parameters() if p.ndim == 2 and ("lora_A" in n or not rank))
        stale.get_parameter(name).copy_(former.get_parameter(name))
    assert "digest of the" in proof.difference(proof.model_statement(stale, PROBE), wanted, dtype, PROBE)


def test_a_digest_does_not_depend_on_how_matrices_are_fused_or_rows_are_ordered() -> None:
    q, k, v, bias = torch.randn(6, 40), torch.randn(2, 40), torch.randn(2, 40), torch.randn(7)
    fused = torch.cat([v, q, k])[torch.randperm(10)]
    apart, joined = (proof.digest(map(proof.sample, some)) for some in ([q, k, v, bias], [fused, bias]))
    assert apart[0] == joined[0] == 10 * len(proof.columns(40)) + 7
    assert apart[1:] == pytest.approx(joined[1:], rel=1e-12)
    assert proof.columns(40) == [*range(0, 40, 3)] and proof.columns(7) == [*range(7)]


def test_the_difference_of_two_statements() -> None:
    wanted = {"logprob": -10.0, "whole": [100, 3.0, 50.0]}
    assert proof.difference({"logprob": -10.0009, "whole": [100, 3.0, 50.0]}, wanted, "float32", PROBE) == ""
    found = proof.difference({"logprob": -10.002, "whole": [100, 3.0, 50.0]}, wanted, "float32", PROBE)
    assert found == "log-probability of the probe -10.0020, wanted -10.0000 within 0.001"
    assert proof.difference({"logprob": -10.1, "whole": [100, 3.0, 50.0]}, wanted, "bfloat16", PROBE) == ""
    # Relative to 50, the sum of squares: 5e-9 / 50 = 1e-10 is allowed, 5e-7 / 50 = 1e-8 is not; a sum alike.
    assert proof.difference({"logprob": -10.0, "whole": [100, 3.0, 50.0 + 5e-9]}, wanted, "float32", PROBE) == ""
    found = proof.difference({"logprob": -10.0, "whole": [100, 3.0, 50.0 + 5e-7]}, wanted, "float32", PROBE)
    assert found == "digest of the whole weights off by 1e-08, allowed 1e-09"
    assert "off by" in proof.difference({"logprob": -10.0, "whole": [100, 3.1, 50.0]}, wanted, "float32", PROBE)
    # An engine that holds other numbers than the trainer, such as a share of them, is known by its answer alone.
    assert proof.compared({"whole": [99, 3.0, 50.0]}, wanted) == []
    for broken in (float("nan"), float("inf")):
        assert proof.difference({"logprob": -10.0, "whole": [100, broken, 50.0]}, wanted, "float32", PROBE)
        assert proof.difference({"logprob": broken}, wanted, "float32", PROBE)
        assert proof.difference({"logprob": -10.0, "whole": [100, 3.0, broken]}, wanted, "float32", PROBE)
