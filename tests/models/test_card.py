"""A policy's folder says how the policy is asked, to programs and to people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrec.data.catalogue import Catalogue
from rayrec.driver import asked
from rayrec.methods import parse
from rayrec.models import card
from rayrec.models.policy import add_lora, load_base, load_tokenizer, save, trainable_state
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template

CATALOGUE = Catalogue.from_items(["Film", "Other"], [[], []])


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A LoRA policy with merged weights that was tuned with a history of 7."""
    base, folder = tmp_path / "base", tmp_path / "run" / "03" / "prefer" / "policy"
    make_tiny(CATALOGUE.titles, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), base, 0)
    model, tokenizer = add_lora(load_base(base), 4, 8, 0.0), load_tokenizer(base)
    config, template = parse("", ["--history", "7"]), make_template("compact", tokenizer)
    how = {"policy": "03/prefer", **asked.how_asked(config, template, "compact", CATALOGUE)}
    save(trainable_state(model), model, tokenizer, folder, {"phase": "03/prefer"}, merged=True, how=how)
    return folder


def test_the_folder_and_its_merged_weights_say_how_the_policy_is_asked(policy: Path) -> None:
    for folder in (policy, policy / "merged"):
        found = card.asked(folder)
        assert found and {name: found[name] for name in card.ASKED} == {
            "template": "compact", "history": 7, "protocol": "open", "ask": "title", "ratings": False
        }  # fmt: skip
        assert found["policy"] == "03/prefer" and found["items"] == 2
        assert found["catalogue"] == card.catalogue_hash(["Film", "Other"]) and "First title" in found["prompt"]
        text = (folder / "README.md").read_text()
        assert "history 7" in text and "rayrec.Recommender.open" in text and repr(found["eos"]) in text
    assert "library_name: peft" in (policy / "README.md").read_text()
    assert "library_name: transformers" in (policy / "merged" / "README.md").read_text()


def test_a_model_of_others_says_nothing_and_a_damaged_file_is_refused(policy: Path) -> None:
    assert card.asked(policy.parents[3] / "base") is None
    (policy / card.FILE).write_text('{"template": "compact"}')
    with pytest.raises(ValueError, match=r"policy\.json: not readable .*wanted an object with template, history"):
        card.asked(policy)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--template chat --history 7", "--template chat: the policy .* was tuned with --template compact"),
        ("--history 10", "--history 10: .* Take --history 7"),
        ("--history 7 --ratings", "--ratings: .* was tuned with --no-ratings"),
        ("--history 7 --protocol candidates", "--protocol candidates: .* --protocol open"),
    ],
)
def test_another_prompt_is_refused(policy: Path, args: str, says: str) -> None:
    known = json.loads((policy / card.FILE).read_text())
    plain = ["--method", "zero-shot", "--model", str(policy)]
    with pytest.raises(ValueError, match=f"^{says}"):
        asked.check_asked(parse("", [*plain, *args.split()]), known)
    asked.check_asked(parse("", [*plain, "--history", "7"]), known)
    if "--template" not in args:  # a policy that is tuned further may get other rows
        asked.check_asked(parse("", ["--model", str(policy), *args.split()]), known)


def test_the_plan_tells_of_another_catalogue(policy: Path) -> None:
    known = json.loads((policy / card.FILE).read_text())
    assert (
        asked.described(known, CATALOGUE) == "tuned by rayrec (03/prefer); template compact, history 7, protocol open"
    )
    others = Catalogue.from_items(["A", "B", "C"], [[]] * 3)
    assert asked.described(known, others).endswith("; its catalogue was another one, of 2 titles: here are 3")
