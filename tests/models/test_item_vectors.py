"""Item tokens are the MLP of their vectors, and nothing else changes; they are saved and loaded with their policy."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.decoding import generate
from rayrec.models import item_vectors, policy
from rayrec.models.folder import vocabulary
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny

WORDS, ITEMS = 280, 5
VECTORS = torch.randn(ITEMS, 8, generator=torch.Generator().manual_seed(0))
#: Words, the items 2 and 4, and no item.
IDS = [1, 40, WORDS + 2, 41, WORDS + 4, 2, WORDS + ITEMS, 50]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny(["Heat (1995)", "Ran (1985)"], ModelConfig(tiny_hidden=32, tiny_layers=2, tiny_vocab=WORDS), folder, 0)
    assert vocabulary(folder) == WORDS
    return folder


def with_items(base: Path, lora: bool = False, seed: int = 0) -> Any:
    model = policy.load_base(base)
    if lora:
        model = policy.add_lora(model, 4, 8, 0.0)
    item_vectors.attach(model, VECTORS, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits


def test_words_are_what_they_were(base: Path) -> None:
    plain, model = policy.load_base(base), policy.load_base(base)
    item_vectors.attach(model, VECTORS)
    words = [token for token in IDS if token < WORDS]
    assert torch.equal(logits(model, words), logits(plain, words))


def test_an_item_is_the_mlp_of_its_vector(base: Path) -> None:
    model = with_items(base)
    items = item_vectors.attached(model)
    assert items is not None
    table_VH = model.get_input_embeddings().weight
    first, _, last = items.map
    with torch.no_grad():
        mapped_IH = torch.nn.functional.gelu(VECTORS @ first.weight.T + first.bias) @ last.weight.T + last.bias
        rows = [table_VH[t] if t < WORDS else items.none if t == WORDS + ITEMS else mapped_IH[t - WORDS] for t in IDS]
        wanted = model(inputs_embeds=torch.stack(rows)[None]).logits
    torch.testing.assert_close(logits(model, IDS), wanted, rtol=1e-5, atol=1e-6)
    assert (logits(model, IDS) - logits(model, items.hide(IDS))).abs().max() > 1e-3


def test_text_only_prompts_hold_no_item(base: Path) -> None:
    items = item_vectors.attached(with_items(base))
    assert items is not None
    assert items.hide(IDS) == [1, 40, WORDS + ITEMS, 41, WORDS + ITEMS, 2, WORDS + ITEMS, 50]
    assert items.hide(items.hide(IDS)) == items.hide(IDS)


@pytest.mark.parametrize("hidden", [False, True])
def test_what_a_step_trains(base: Path, hidden: bool) -> None:
    model = with_items(base, lora=True)
    items = item_vectors.attached(model)
    assert items is not None
    prompt = IDS[:5]
    PackedLM(model)(pack([(items.hide(prompt) if hidden else prompt, [[60, 2]])])).sum().backward()
    moved = {name: bool(p.grad.any()) for name, p in items.named_parameters() if p.grad is not None}
    network = [f"map.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    assert moved == {"none": hidden, **dict.fromkeys(network, not hidden)}
    assert not items.vectors.requires_grad and model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("lora", [False, True])
def test_saved_loaded_and_saved_again(base: Path, tmp_path: Path, lora: bool) -> None:
    def write(model: Any, folder: Path) -> dict[str, bytes]:
        policy.save(policy.trainable_state(model), model, policy.load_tokenizer(base), folder, {}, merged=lora)
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    model = with_items(base, lora)
    first = write(model, tmp_path / "a")
    assert torch.equal(logits(policy.load_policy(tmp_path / "a"), IDS), logits(model, IDS))
    fresh = policy.load_base(base)
    fresh = policy.add_lora(fresh, 4, 8, 0.0) if lora else fresh
    for other in (with_items(base, lora, seed=1), fresh):  # with item tokens of its own, and without
        policy.load_weights(other, tmp_path / "a")
        assert torch.equal(logits(other.eval(), IDS), logits(model, IDS))
        assert write(other, tmp_path / f"b{other is fresh}") == first
    if lora:
        merged = policy.load_policy(tmp_path / "a" / "merged")
        torch.testing.assert_close(logits(merged, IDS), logits(model, IDS), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="reads item vectors"):
        policy.check_model(tmp_path / "a" / ("merged" if lora else ""))


def test_generation_reads_them(base: Path) -> None:
    model = with_items(base)
    (made,), (other,) = (generate(model, [ids], 2, max_new_tokens=4)[0] for ids in (IDS, IDS[:2]))
    with torch.inference_mode():
        scored = PackedLM(model)(pack([(IDS, [made.token_ids])])).item()
    assert made.logprob == pytest.approx(scored, abs=1e-4)
    assert made.logprob != pytest.approx(other.logprob, abs=1e-4)
    assert max(made.token_ids) < WORDS
