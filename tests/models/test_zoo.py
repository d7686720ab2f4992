"""Over a zoo of architectures: a saved policy is the model that was trained, every pass agrees, or it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rayrec.decoding import Trie, beam_search, generate
from rayrec.decoding.exact import check_base
from rayrec.models import policy
from rayrec.models.logprobs import Packed, PackedLM, Row, pack
from tests.models.zoo import ZOO, make

RUNS = [name for name, kind in ZOO.items() if not kind.refused]
#: Nats by which the log-probabilities of an answer may differ between two passes in float32: rounding of sums near 60.
TOLERANCE = 2e-4
#: Names in the first cell of a table.
NAMES = re.compile(r"`(\w+)`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def folder_of(name: str, folders: Path) -> Path:
    folder = folders / name
    return folder if folder.exists() else make(name, folder)


def rows(base: Path) -> list[Row]:
    """Three prompts of different lengths, each with the same three answers, which end with EOS."""
    tokenizer = policy.load_tokenizer(base)
    eos, generator = tokenizer.eos_token_id, torch.Generator().manual_seed(0)
    ids = torch.randint(10, 300, (4, 24), generator=generator).tolist()
    answers = [[*ids[3][:6], eos], [*ids[3][6:9], eos], [*ids[3][9:13], eos]]
    return [(line[:length], answers) for line, length in zip(ids, (7, 12, 24), strict=False)]


@torch.no_grad()
def plain(model: Any, examples: list[Row]) -> torch.Tensor:
    """Log-probabilities [B, A] by transformers' own pass, every answer in a sequence of its own."""
    made = torch.zeros(len(examples), 3)
    for b, (prompt, answers) in enumerate(examples):
        for a, answer in enumerate(answers):
            logprob_TV = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            made[b, a] = logprob_TV[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].sum()
    return made


def step(model: Any, examples: list[Row]) -> torch.Tensor:
    """One optimiser step in training mode; returns what the trainer then computes."""
    lm = PackedLM(policy.without_dropout(model)).train()
    optimiser = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=2e-3)
    before_BA = lm(pack(examples, 64))
    (-before_BA[:, 0].sum() + before_BA[:, 1].sum()).backward()
    optimiser.step()
    with torch.no_grad():
        after_BA = lm.eval()(pack(examples, 64))
    assert not torch.allclose(after_BA, before_BA, atol=0.05)
    return after_BA


def opened(folder: Path, like: Any) -> Any:
    """By transformers alone, with the attention of ``like``."""
    kind = like.config._attn_implementation
    return AutoModelForCausalLM.from_pretrained(folder, dtype=like.dtype, attn_implementation=kind).eval()


def assert_agree(model: Any, examples: list[Row], wanted_BA: torch.Tensor, eos: int) -> None:
    """Plain passes, packed scores, beams over the catalogue, and greedy generation of ``model`` say ``wanted_BA``."""
    torch.testing.assert_close(plain(model, examples), wanted_BA, rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(PackedLM(model)(pack(examples, 64)), wanted_BA, rtol=0, atol=TOLERANCE)
    prompts, answers = [list(prompt) for prompt, _ in examples], [list(answer) for answer in examples[0][1]]
    for found, wanted_A in zip(beam_search(model, prompts, Trie.build(answers), 3), wanted_BA, strict=True):
        by_item = torch.tensor([score for _, score in sorted(found)])
        torch.testing.assert_close(by_item, wanted_A, rtol=0, atol=TOLERANCE)
    for prompt, [one] in zip(prompts, generate(model, prompts, eos, max_new_tokens=4), strict=True):
        own = plain(model, [(prompt, [one.token_ids] * 3)])[0, 0]
        assert abs(one.logprob - float(own)) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RUNS)
def test_saved_without_training_it_is_the_base(name: str, dtype: str, folders: Path, tmp_path: Path) -> None:
    base = folder_of(name, folders) if dtype == "float32" else make(name, tmp_path / "base", dtype)
    model = policy.load_base(base, dtype)
    policy.save(policy.trainable_state(model), model, policy.load_tokenizer(base), tmp_path / "policy", {})
    ids = torch.tensor([rows(base)[2][0]])
    with torch.no_grad():
        assert torch.equal(opened(tmp_path / "policy", model)(ids).logits, opened(base, model)(ids).logits)
    kept, saved = load_file(base / policy.FULL), load_file(tmp_path / "policy" / policy.FULL)
    assert saved.keys() >= kept.keys() and all(torch.equal(saved[name], kept[name]) for name in kept)


@pytest.mark.parametrize("name", [name for name in RUNS if not ZOO[name].no_lora])
def test_after_a_lora_step_all_passes_agree(name: str, folders: Path, tmp_path: Path) -> None:
    base = folder_of(name, folders)
    tokenizer, examples = policy.load_tokenizer(base), rows(base)
    model = policy.add_lora(policy.load_base(base), 4, 8, 0.05, seed=1)
    wanted_BA = step(model, examples)
    policy.save(policy.trainable_state(model), model, tokenizer, tmp_path, {}, merged=True)
    other = policy.add_lora(policy.load_base(base), 4, 8, 0.0, seed=2).eval()  # as the torch engine loads a version
    policy.load_weights(other, tmp_path)
    assert_agree(other, examples, wanted_BA, tokenizer.eos_token_id)
    assert_agree(policy.load_policy(tmp_path, base=base), examples, wanted_BA, tokenizer.eos_token_id)
    assert_agree(policy.load_policy(tmp_path / "merged"), examples, wanted_BA, tokenizer.eos_token_id)
    theirs: Any = PeftModel.from_pretrained(opened(base, model), str(tmp_path)).merge_and_unload()  # pyright: ignore
    ours = opened(tmp_path / "merged", model).state_dict()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_after_a_full_step_all_passes_agree(name: str, folders: Path, tmp_path: Path) -> None:
    base = folder_of(name, folders)
    tokenizer, examples = policy.load_tokenizer(base), rows(base)
    model = policy.load_base(base)
    wanted_BA = step(model, examples)
    policy.save(policy.trainable_state(model), model, tokenizer, tmp_path, {})
    torch.testing.assert_close(plain(opened(tmp_path, model), examples), wanted_BA, rtol=0, atol=TOLERANCE)
    other = policy.load_base(base)
    policy.load_weights(other, tmp_path)
    assert_agree(other, examples, wanted_BA, tokenizer.eos_token_id)


def test_the_document_lists_what_runs_and_what_does_not() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    tables = {}
    for title in ("Architectures that run", "Architectures that are refused"):
        part = text.split(f"## {title}\n")[1].split("\n## ")[0]
        lines = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("| `")]
        tables[title] = {name: [cell.strip() for cell in line[1:]] for line in lines for name in NAMES.findall(line[0])}
    runs, refused = tables.values()
    assert set(runs) == {ZOO[name].type for name in RUNS}
    assert set(refused) == {kind.type for kind in ZOO.values() if kind.refused}
    assert {name for name, cells in runs.items() if cells[0] == "no"} == {k.type for k in ZOO.values() if k.no_lora}
    assert {cells[1] for cells in runs.values()} == {"yes"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ZOO)
def test_the_check_accepts_what_runs_and_refuses_the_rest(
    name: str, dtype: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refuses every model once its mask is wrong for one token."""
    base = str(folder_of(name, folders) if dtype == "float32" else make(name, tmp_path / "model", dtype))
    if ZOO[name].refused:
        with pytest.raises(ValueError, match=ZOO[name].refused):
            check_base(base)
        return
    if ZOO[name].no_lora:
        check_base(base)
        with pytest.raises(ValueError, match=ZOO[name].no_lora):
            check_base(base, lora=True)
    else:
        check_base(base, lora=True)
    right = Packed.mask
    for query, key in ((16, 15), (14, 4), (39, 24)):  # not its neighbour; another answer; another example

        def wrong(self: Packed, dtype: torch.dtype, at: tuple[int, int] = (query, key)) -> torch.Tensor:
            mask_R1TT = right(self, dtype)
            seen = mask_R1TT[0, 0, *at] == 0
            mask_R1TT[0, 0, *at] = torch.finfo(dtype).min if seen else 0
            return mask_R1TT

        monkeypatch.setattr(Packed, "mask", wrong)
        with pytest.raises(ValueError, match="log-probabilities of the packed pass differ by"):
            check_base(base)
