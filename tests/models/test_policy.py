"""Policies are ordinary folders: they repeat to the byte, open elsewhere, and load back whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig

from rayrec.models import policy
from rayrec.models.folder import context_length
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from tests.models.zoo import make

IDS = torch.tensor([[1, 40, 41, 2, 50, 51]])
CARD = {"phase": "01/prefer", "seed": 0}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and a GPT-2, whose linear layers are stored the other way round."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny(["Heat (1995)", "Ran (1985)"], ModelConfig(tiny_hidden=32, tiny_layers=2, tiny_vocab=280), folder, 0)
    if request.param == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=280, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def tuned(base: Path, lora: bool, seed: int = 0) -> Any:
    """The base model, or its adapters, moved by seeded noise."""
    model = policy.load_base(base)
    if lora:
        model = policy.add_lora(model, 4, 8, 0.05)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def write(model: Any, base: Path, folder: Path, merged: bool = False) -> Path:
    policy.save(policy.trainable_state(model), model, policy.load_tokenizer(base), folder, CARD, merged=merged)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("lora", [False, True])
def test_saved_loaded_and_saved_again(base: Path, tmp_path: Path, lora: bool) -> None:
    model = tuned(base, lora)
    first = write(model, base, tmp_path / "a", merged=lora)
    other = tuned(base, lora, seed=1)
    pointers = [p.data_ptr() for p in other.parameters()]
    assert not torch.equal(logits(other), logits(model))
    policy.load_weights(other, first)
    assert [p.data_ptr() for p in other.parameters()] == pointers
    assert torch.equal(logits(other), logits(model))
    assert contents(write(other, base, tmp_path / "b", merged=lora)) == contents(first)
    assert torch.equal(logits(policy.load_policy(first)), logits(model))
    card = (first / "README.md").read_text()
    assert "- phase: 01/prefer" in card and f'base_model: "{base}"' in card


def test_adapters_open_with_peft_and_merge(base: Path, tmp_path: Path) -> None:
    model = tuned(base, lora=True)
    folder = write(model, base, tmp_path, merged=True)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(logits(plain), logits(model), atol=1e-3)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    assert torch.equal(logits(peft.eval()), logits(model))
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name in load_file(folder / "merged" / policy.FULL))
    for opened in (folder, folder / "merged"):
        assert AutoTokenizer.from_pretrained(opened)("Heat")["input_ids"]


def test_full_policies_open_with_transformers(base: Path, tmp_path: Path) -> None:
    model = tuned(base, lora=False)
    opened = AutoModelForCausalLM.from_pretrained(write(model, base, tmp_path))
    assert torch.equal(logits(opened), logits(model)) and opened.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 2


def test_dtypes_are_fixed(base: Path, tmp_path: Path) -> None:
    model = policy.add_lora(policy.load_base(base, "bfloat16"), 4, 8, 0.0)
    write(model, base, tmp_path, merged=True)
    assert {t.dtype for t in load_file(tmp_path / policy.ADAPTER).values()} == {torch.float32}
    assert {t.dtype for t in load_file(tmp_path / "merged" / policy.FULL).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("lora", [False, True])
def test_weights_that_do_not_fit_change_nothing(base: Path, tmp_path: Path, lora: bool) -> None:
    model = tuned(base, lora)
    write(model, base, tmp_path)
    file = tmp_path / (policy.ADAPTER if lora else policy.FULL)
    good = load_file(file)
    name = next(iter(good))
    cases = {
        "missing": {n: t for n, t in good.items() if n != name},
        "left over": good | {"stray": torch.ones(1)},
        "wants": good | {name: torch.ones(3, 5)},
    }
    before = logits(model)
    for message, tensors in cases.items():
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            policy.load_weights(model, tmp_path)
    with pytest.raises(ValueError, match="--lora-rank"):
        policy.load_weights(tuned(base, not lora), tmp_path)
    assert torch.equal(logits(model), before)


def test_pickled_weights_are_refused(base: Path, tmp_path: Path) -> None:
    policy.load_base(base).config.save_pretrained(tmp_path)
    torch.save(policy.load_base(base).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        policy.load_base(tmp_path)


def test_an_adapter_is_no_base(base: Path, tmp_path: Path) -> None:
    model = tuned(base, lora=True)
    with pytest.raises(ValueError, match=f"adapter, .* or {tmp_path}/a/merged.$"):
        policy.load_base(write(model, base, tmp_path / "a", merged=True))
    with pytest.raises(ValueError, match=r"or the folder that peft's .* writes, with the tokenizer's files"):
        policy.check_model(write(model, base, tmp_path / "b"))
    # What the message says, done by hand.
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "b"))
    peft.merge_and_unload().save_pretrained(tmp_path / "new")
    AutoTokenizer.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "new")
    policy.check_model(tmp_path / "new")
    torch.testing.assert_close(logits(policy.load_base(tmp_path / "new")), logits(model), rtol=1e-4, atol=1e-5)


def changed(**settings: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], object]:
    return lambda folder: save_file(change(load_file(folder / policy.ADAPTER)), folder / policy.ADAPTER)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda folder: (folder / policy.ADAPTER).write_text("version https://git-lfs"),
            "is damaged .*Copy the folder",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is damaged .*Copy the folder anew"),
        (changed(base_model_name_or_path=None), "is None, wanted the model that was tuned"),
        (changed(base_model_name_or_path="/nowhere/base"), "is /nowhere/base, which cannot be opened"),
        (changed(peft_type="NEWKIND"), "is no adapter that peft can open on"),
        (rewritten(lambda held: dict(sorted(held.items())[1:])), "lacks .* which adapters of"),
        (rewritten(lambda held: {n.replace("lora_", "other_"): v for n, v in held.items()}), "lacks .* which adapters"),
        (rewritten(lambda held: {n: v[..., 1:].clone() for n, v in held.items()}), "open on .* size mismatch"),
        (rewritten(lambda held: {n: v * torch.nan for n, v in held.items()}), "holds NaN or infinity"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    base: Path, tmp_path: Path, change: Callable[[Path], object], error: str
) -> None:
    folder = write(tuned(base, lora=True), base, tmp_path / "policy")
    policy.load_policy(folder)
    change(folder)
    with pytest.raises(ValueError, match=error):
        policy.load_policy(folder)


def test_lora_is_on_all_linear_layers_but_the_head(base: Path) -> None:
    model = policy.add_lora(policy.load_base(base), 4, 8, 0.05, seed=3)
    adapted = {
        name.rpartition(".lora_A")[0].rpartition(".")[2] for name in policy.trainable_state(model) if "lora_A" in name
    }
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (llama if model.config.model_type == "llama" else {"c_attn", "c_proj", "c_fc"})
    again = policy.add_lora(policy.load_base(base), 4, 8, 0.05, seed=3)
    other = policy.add_lora(policy.load_base(base), 4, 8, 0.05, seed=4)
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_of_a_model_with_vision_the_language_model_is_adapted(tmp_path: Path) -> None:
    model = policy.add_lora(policy.load_base(make("gemma3 with vision", tmp_path)), 4, 8, 0.05)
    adapted = [name for name in policy.trainable_state(model) if "lora_A" in name]
    assert len(adapted) == 2 * 7 and all(".language_model." in name for name in adapted)
    assert any("vision" in name for name, _ in model.named_parameters())


def test_experts_have_adapters_without_dropout(tmp_path: Path) -> None:
    base = make("qwen3_moe", tmp_path)
    model = policy.add_lora(policy.load_base(base), 4, 8, 0.5)
    rates = {
        name.rpartition(".lora_dropout")[0].rpartition(".")[2]: getattr(module, "p", 0.0)
        for name, module in model.named_modules()
        if name.endswith("lora_dropout.default")
    }
    assert rates["q_proj"] == 0.5 and rates["experts"] == rates["base_layer"] == 0.0
    policy.set_lora_dropout(model, 0.25)
    write(model, base, tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "adapter_config.json").read_text())["lora_dropout"] == 0.0


def test_dropout_can_be_switched(base: Path) -> None:
    model = tuned(base, lora=True)
    for module in model.modules():  # GPT-2 has dropout of its own
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    policy.set_lora_dropout(model, 0.5)
    model.train()
    assert not torch.equal(logits(model), logits(model))
    policy.set_lora_dropout(model, 0.0)
    assert torch.equal(logits(model), logits(model))


def test_only_adapters_have_dropout() -> None:
    ids = torch.arange(12)[None]
    for settings in (
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2),
        LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, attention_dropout=0.5),
    ):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
        policy.without_dropout(model)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_context_length(base: Path) -> None:
    assert context_length(ModelConfig(max_length=512), base) == 512
    with pytest.raises(ValueError, match="--max-length"):
        context_length(ModelConfig(max_length=9999), base)


def test_adapter_settings_have_one_order(base: Path, tmp_path: Path) -> None:
    """Python orders a set of strings anew in each process; the file's bytes must not follow it."""
    settings = json.loads((write(tuned(base, lora=True), base, tmp_path) / "adapter_config.json").read_text())
    assert len(settings["target_modules"]) > 2 and list(settings) == sorted(settings)
    assert all(value == sorted(value) for value in settings.values() if isinstance(value, list))
    assert settings["base_model_name_or_path"] == str(base) and settings["inference_mode"]
