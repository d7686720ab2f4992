"""A model that the passes compute exactly is accepted, any other is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, LlamaForCausalLM

from rayrec.decoding import exact
from rayrec.decoding.exact import check_base, check_exact
from rayrec.models import policy, varlen
from rayrec.models.logprobs import Packed
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.models.varlen import attend_by_runs
from tests.decoding.small_models import CONFIGS, random_model


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exact_is_accepted(name: str) -> None:
    model = random_model(name).train()
    check_exact(model)
    assert model.training
    check_exact(policy.add_lora(model, 4, 8, 0.0))


def test_attention_over_runs_is_checked_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that a key too few is found."""
    lm: Any = random_model("llama", attn_implementation="sdpa")
    attend_by_runs(lm)
    check_exact(lm)
    own = varlen.runs
    monkeypatch.setattr(varlen, "runs", lambda example_RT, segment_RT: own(example_RT, segment_RT.clamp(max=1)))
    with pytest.raises(ValueError, match="log-probabilities of the packed pass differ by"):
        check_exact(lm)


def test_runs_that_are_not_exact_name_the_other_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model("llama").save_pretrained(tmp_path)
    check_base(str(tmp_path), "varlen")
    own = varlen.runs
    monkeypatch.setattr(varlen, "runs", lambda example_RT, segment_RT: own(example_RT, segment_RT.clamp(max=1)))
    with pytest.raises(ValueError, match=r"does not honour masks or positions. Add --attention sdpa\.$"):
        check_base(str(tmp_path), "varlen")


def test_a_model_without_such_masks_is_refused() -> None:
    lm = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=90, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match=r"BloomForCausalLM does not run packed: .* Take another model"):
        check_exact(lm)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("place", [(3, 0), (14, 4), (16, 15), (39, 24)])
def test_a_mask_that_is_wrong_for_one_token_is_refused(
    name: str, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token sees one that it may not, or does not see one that it may."""
    right = Packed.mask

    def wrong(self: Packed, dtype: torch.dtype) -> torch.Tensor:
        mask_R1TT = right(self, dtype)
        query, key = place
        seen = mask_R1TT[0, 0, query, key] == 0
        mask_R1TT[0, 0, query, key] = torch.finfo(dtype).min if seen else 0
        return mask_R1TT

    monkeypatch.setattr(Packed, "mask", wrong)
    with pytest.raises(ValueError, match="log-probabilities of the packed pass differ by"):
        check_exact(random_model(name))


def test_a_model_that_ignores_the_mask_is_refused() -> None:
    """With causal attention alone, later answers see the earlier ones."""
    lm: Any = random_model("llama")
    inner = lm.model.forward
    lm.model.forward = lambda *given, **named: inner(*given, **{**named, "attention_mask": None})
    with pytest.raises(ValueError, match="does not honour masks or positions"):
        check_exact(lm)


def test_large_models_are_checked_by_their_first_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(["Heat (1995)"], ModelConfig(tiny_hidden=32, tiny_layers=5, tiny_vocab=280), tmp_path, 0)
    assert policy.open_base(tmp_path, "float32", few=True).model.layers.__len__() == 2
    opened: list[bool] = []
    whole = exact.open_base

    def note(*given: Any, few: bool) -> Any:
        opened.append(few)
        return whole(*given, few=few)

    monkeypatch.setattr(exact, "open_base", note)
    check_base(str(tmp_path))
    monkeypatch.setattr(exact, "LARGE", 1000)
    check_base(str(tmp_path))
    assert opened == [False, True]


def test_bfloat16_weights_are_checked_in_float32(tmp_path: Path) -> None:
    """Large logits, whose rounding in bfloat16 is tenths of a nat, are no wrong mask."""
    make_tiny(["Heat (1995)"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=280), tmp_path, 0)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 280, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    lm = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, initializer_range=0.3)).to(torch.bfloat16)
    rows = exact._rows(280)
    with torch.no_grad():
        assert (exact._packed(lm, rows) - exact._plain(lm, rows)).abs().max() > 0.2
    lm.save_pretrained(tmp_path)
    check_base(str(tmp_path))
