"""Bad input is refused before an actor starts: what was found, what was wanted, the remedy, and nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rayrec.cluster.address import settle_runs
from rayrec.data import load
from rayrec.driver import checks, plan
from rayrec.driver.prepare import prepare
from rayrec.driver.session import run
from rayrec.methods import parse
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from tests.models.zoo import make

ROOT = Path(__file__).parents[2]
ITEMS = [f"{i},Film {i} ({1970 + i}),x|y" for i in range(30)]
#: Three users with 16 films each: 18 windows of ten.
ROWS = [f"u{u},{(7 * u + n) % 30},{n % 5 + 0.5},{100 * n + u}" for n in range(16) for u in range(3)]


def write_csv(
    folder: Path, items: list[str] = ITEMS, rows: list[str] = ROWS, header: str = "user,item,rating,timestamp"
):
    folder.mkdir()
    (folder / "items.csv").write_text("\n".join(["item,title,genres", *items, ""]))
    (folder / "interactions.csv").write_text("\n".join([header, *rows, ""]))


CHATS = {
    "demands_system": "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system message is demanded') }}"
    "{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "broken_chat": "{% for m in messages %}{{ m['content'] }",
}


def write_models(root: Path) -> None:
    """A Hugging Face folder of 512 tokens of context, and folders that are almost one."""
    make_tiny(["Film"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), root / "model", 0)
    pickled = Path(shutil.copytree(root / "model", root / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    adapter = Path(shutil.copytree(root / "model", root / "adapter"))
    (adapter / "adapter_config.json").write_text("{}")
    nameless = Path(shutil.copytree(root / "model", root / "nameless"))
    (nameless / "config.json").write_text("{}")
    small = Path(shutil.copytree(root / "model", root / "small"))
    settings = json.loads((small / "config.json").read_text()) | {"head_dim": 16}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(small)
    foreign = Path(shutil.copytree(root / "model", root / "foreign"))
    settings = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(settings | {"vocab_size": 50}))
    reshaped = Path(shutil.copytree(foreign, root / "reshaped"))
    weights = load_file(reshaped / "model.safetensors")
    words = weights.pop("model.embed_tokens.weight")
    save_file(weights, root / "reshaped" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(reshaped, root / "headless")
    few = {"model.embed_tokens.weight": words[:50].contiguous()}
    save_file(weights | few, foreign / "model.safetensors", metadata={"format": "pt"})
    save_file(weights | {"model.embed_tokens.weight": words}, reshaped / "model.safetensors", metadata={"format": "pt"})
    weights["model.layers.0.mlp.down_proj.weight"][3, 2] = math.nan
    holed = Path(shutil.copytree(root / "model", root / "holed"))
    save_file(weights | {"model.embed_tokens.weight": words}, holed / "model.safetensors", metadata={"format": "pt"})
    speechless = Path(shutil.copytree(root / "model", root / "speechless"))
    for file in speechless.glob("tokenizer*"):
        file.unlink()
    for name in ("bloom", "mpt", "mistral with a window of 64", "llama4"):
        make(name, root / name.split()[0])
    for name, template in CHATS.items():
        chat = Path(shutil.copytree(root / "model", root / name))
        (chat / "chat_template.jinja").write_text(template)
    lower = Path(shutil.copytree(root / "model", root / "lower"))
    tokenizer = json.loads((lower / "tokenizer.json").read_text())
    (lower / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of data and of models, good and bad, by the names that the cases use."""
    root = tmp_path_factory.mktemp("refusals")
    write_csv(root / "films")
    write_csv(root / ("f" * 240))
    write_csv(root / "no_items", items=[], rows=[])
    write_csv(root / "short", rows=ROWS[:30])
    write_csv(root / "no_time", rows=[row.rpartition(",")[0] for row in ROWS], header="user,item,rating")
    write_csv(
        root / "unrated",
        rows=[",".join(r.split(",")[i] for i in (0, 1, 3)) for r in ROWS],
        header="user,item,timestamp",
    )
    write_csv(root / "plain", items=[item.rpartition(",")[0] + "," for item in ITEMS])
    write_csv(root / "zero", rows=[row.replace(",0.5,", ",0,") for row in ROWS])
    write_csv(root / "forms", items=[*ITEMS, "30,FILM 0 (1970),z"])
    write_csv(root / "nan", rows=[*ROWS, "u9,1,five,5"])
    write_csv(root / "twice", items=[*ITEMS, "30,Film 0 (1970),z"])
    write_csv(root / "long", items=[*ITEMS, f"30,{'Very long ' * 40},z"])
    for name in ("unknown", "garbage", "cut"):
        (root / name).mkdir()
    for name in ("interactions", "items"):
        (root / "garbage" / f"{name}.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    for name in ("train", "valid", "test", "id2name"):
        (root / "cut" / f"{name}.json").write_text('[{"instruction": "", "input": "\\"A\\"')
    write_models(root)
    return root


def refused(root: Path, tmp_path: Path, *args: str) -> str:
    """The message with which the run is refused; nothing was written and no Ray was started."""
    given = [arg.format(root=root) for arg in args]
    if "--data" not in given and "--source" not in given:
        given += ["--data", str(root / "films")]
    with pytest.raises(ValueError) as error:
        run(parse("", ["--preset", "toy", "--runs", str(tmp_path / "runs"), *given]))
    assert not (tmp_path / "runs").exists()
    assert not ray_is_up()
    return str(error.value)


def ray_is_up() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


#: Arguments, and what the message must say: what was found, what was wanted, the remedy.
CASES = {
    "missing path": (
        ["--data", "{root}/gone"],
        ["--data {root}/gone", "there is no such file", "Name one that exists"],
    ),
    "unknown format": (["--data", "{root}/unknown"], ["format is not known", "ratings.csv, movies.csv", "Looked for"]),
    "other format": (
        ["--data", "{root}/films", "--source", "movielens"],
        ["not there", "wants ['ratings.csv', 'movies.csv']", "Try --source auto"],
    ),
    "tensor parallel on a CPU": (
        ["--tensor-parallel", "2", "--device", "cpu"],
        ["--tensor-parallel 2 spreads an engine's model over GPUs", "on CPUs", "Leave it out"],
    ),
    "attention over runs on a CPU": (
        ["--attention", "varlen", "--device", "cpu"],
        ["--attention varlen is FlashAttention, on GPUs", "on CPUs", "Take --attention sdpa"],
    ),
    "no data": (["--source", "csv"], ["--data is missing", "reads files", "Add --data"]),
    "two data": (
        ["--source", "synthetic", "--data", "{root}/films"],
        ["--data is {root}/films", "reads nothing", "Remove one"],
    ),
    "truncated json": (["--data", "{root}/cut"], ["row 1 is not JSON", "Is the file cut off", "Fetch it again"]),
    "garbage parquet": (["--data", "{root}/garbage"], ["items.parquet", "not readable Parquet", "Write it again"]),
    "missing column": (
        ["--data", "{root}/no_time"],
        ["found columns ['user', 'item', 'rating']", "['timestamp'] are missing", "Say which column is which"],
    ),
    "empty catalogue": (["--data", "{root}/no_items"], ["catalogue is empty", "found no item", "item file has rows"]),
    "no user long enough": (
        ["--data", "{root}/short"],
        ["the longest has 10 interactions", "wanted more than 10", "Lower --history"],
    ),
    "nan rating": (
        ["--data", "{root}/nan"],
        ["found 1 bad rows, the first in interactions.csv row 50", "rating is not a number", "--bad-rows drop"],
    ),
    "too many negatives": (
        ["--num-negatives", "25", "--negatives", "random"],
        ["--num-negatives 25", "the catalogue has 30 items", "Take fewer negatives"],
    ),
    "too long a list": (["--top-k", "1", "31"], ["--top-k 31", "(30)", "Take a shorter list"]),
    "no room for a prompt": (
        ["--max-length", "40", "--max-new-tokens", "48"],
        ["--max-length 40", "no room", "Raise --max-length"],
    ),
    "prompt too long": (
        ["--model", "{root}/model", "--max-length", "100", "--max-new-tokens", "48", "--long-prompts", "stop"],
        ["18 of 18 prompts are longer than 52 tokens", "--max-length 100", "Shorten --history", "--long-prompts drop"],
    ),
    "no prompt short enough": (
        ["--model", "{root}/model", "--max-length", "60", "--max-new-tokens", "48", "--long-prompts", "drop"],
        ["leaves none of", "train rows", "--max-length 60", "--long-prompts trim"],
    ),
    "prompt too long with one title": (
        ["--model", "{root}/model", "--max-length", "60", "--max-new-tokens", "48"],
        ["18 of 18 prompts are longer than 12 tokens", "with 1 titles left", "--long-prompts drop"],
    ),
    "beyond the context": (
        ["--model", "{root}/model", "--max-length", "513"],
        ["513", "sees 512 tokens", "Set --max-length 512"],
    ),
    "titles too long": (
        ["--data", "{root}/long", "--model", "{root}/model", "--max-new-tokens", "4"],
        ["31 of 31 titles", "more than 4 tokens", "'Very long Very", "Take --max-new-tokens"],
    ),
    "titles too long for half a prompt": (
        ["--data", "{root}/long", "--model", "{root}/model", "--max-length", "16"],
        ["31 of 31 titles", "more than 8 tokens", "--max-length 16", "Raise --max-length"],
    ),
    "no chat template": (
        ["--model", "{root}/model", "--template", "chat"],
        ["no chat template", "'chat' needs", "Add --template instruct"],
    ),
    "no chat template in tiny": (
        ["--template", "chat"],
        ["no chat template", "'chat' needs", "Add --template instruct"],
    ),
    "model missing": (["--model", "{root}/gone"], ["model {root}/gone", "no such folder", "Name a Hugging Face"]),
    "model is a file": (["--model", "{root}/films/items.csv"], ["items.csv", "no such folder", "Name a Hugging Face"]),
    "pickled model": (["--model", "{root}/pickled"], ["pytorch_model.bin", "no *.safetensors", "Convert the weights"]),
    "adapter as model": (["--model", "{root}/adapter"], ["found an adapter", "wanted a whole model", "Name its base"]),
    "no model in the folder": (["--model", "{root}/nameless"], ["Unrecognized model", "config.json", "wanted a"]),
    "no gpu": (["--device", "gpu"], ["--device gpu", "no CUDA device", "--device cpu"]),
    "no cluster": (["--address", "127.0.0.1:1"], ["--address 127.0.0.1:1", "no Ray cluster answers", "ray start"]),
    "dashboard": (["--address", "http://127.0.0.1:8265"], ["is a dashboard", "wanted HOST:PORT", "ray job submit"]),
    "no model to embed with": (["--embedder", "lm"], ["--embedder lm needs --embedder-path", "language model's"]),
    "a model to embed with that is not there": (
        ["--embedder", "lm", "--model", "{root}/gone"],
        ["model {root}/gone", "no such folder", "Name a folder"],
    ),
    "no embedder": (["--embedder", "sentence"], ["--embedder sentence", "needs --embedder-path", "model2vec"]),
    "embedder unused": (["--embedder-path", "x"], ["--embedder-path x", "is not read by", "Add --embedder sentence"]),
    "name with a slash": (["--name", "a/b"], ["--name 'a/b'", "not a plain folder name", "Put folders into --runs"]),
    "name too long": (["--name", "a" * 256], ["has 256 bytes, wanted at most 255", "Take a shorter --name"]),
    "default name too long": (
        ["--data", "{root}/" + "f" * 240],
        ["The name of the run folder, 'fff", "wanted at most 255", "Take a shorter --name"],
    ),
    "empty name": (["--name", ""], ["--name ''", "not a plain folder name", "Put folders into --runs"]),
    "item vectors that nothing trains": (["--item-vectors", "--first-rows", "0"], ["--item-vectors", "--first-rows"]),
    "item vectors in vllm": (["--item-vectors", "--engine", "vllm"], ["--item-vectors", "--engine torch"]),
    "likings among all titles": (["--ask", "liking", "--iterations", "0"], ["--ask liking", "--method TALLRec"]),
    "halves among all titles": (["--ask", "title_by_liking"], ["--ask title_by_liking", "--protocol candidates"]),
    "a range of workers upside down": (["--train-workers", "4:2"], ["--train-workers 4:2 is no range"]),
    "a store of no kind": (["--runs", "ftp://host/runs"], ["ftp://host/runs", "s3://BUCKET/FOLDER"]),
    "a key in the address": (
        ["--runs", "s3://me:s3cret@bucket/runs"],
        ["a key in its address", "AWS_SECRET_ACCESS_KEY"],
    ),
    "keep 0": (["--keep", "0"], ["--keep is '0'", "above 0, or `all`", "default"]),
    "keep some": (["--keep", "some"], ["--keep is 'some'", "above 0, or `all`", "default"]),
    "batch and workers": (
        ["--train-workers", "3", "--batch", "64"],
        ["--batch is 64", "a multiple of --train-workers 3", "Take 66"],
    ),
    "pretraining batch and workers": (
        ["--train-workers", "3", "--batch", "66", "--prefer-batch", "33", "--pretrain-batch", "64"],
        ["--pretrain-batch is 64", "a multiple of --train-workers 3", "Take 66"],
    ),
    "nothing to do": (["--no-sft", "--no-prefer"], ["--no-sft and --no-prefer", "nothing to do", "Leave one"]),
    "kto alone": (
        ["--objective", "kto", "--prefer-batch", "1"],
        ["--objective kto compares the rows of a batch", "--prefer-batch 1 has one", "at least 2"],
    ),
    "one card and more": (
        ["--placement", "shared", "--tensor-parallel", "2"],
        ["lets one GPU alternate", "--tensor-parallel 2 takes more", "Leave one out"],
    ),
    "narrow beams": (
        ["--decode", "beams", "--beam-width", "5", "--top-k", "10"],
        ["--beam-width 5", "fewer titles than --top-k 10", "Take --beam-width 10"],
    ),
    "no ratings for recpo": (
        ["--data", "{root}/unrated", "--objective", "recpo"],
        ["--objective recpo reads ratings", "the source csv has none", "Take data with ratings"],
    ),
    "no ratings for odpo": (
        ["--data", "{root}/unrated", "--objective", "odpo"],
        ["--objective odpo reads ratings", "the source csv has none", "Take data with ratings"],
    ),
    "no ratings for a limit": (["--data", "{root}/unrated", "--min-rating", "4"], ["--min-rating 4 reads ratings"]),
    "no genres for RW": (["--data", "{root}/plain", "--method", "RW"], ["--reweight genre", "no genre", "with genres"]),
    "chat without an endpoint": (["--engine", "chat"], ["--engine chat, --endpoint URL and --served NAME go together"]),
    "an endpoint without chat": (["--endpoint", "http://x", "--served", "m"], ["go together"]),
    "chat that tunes": (
        ["--engine", "chat", "--endpoint", "http://127.0.0.1:9/v1", "--served", "m"],
        ["--engine chat tunes nothing", "Take --method ChatRec"],
    ),
    "an endpoint that is down": (
        ["--method", "ChatRec", "--endpoint", "http://127.0.0.1:9/v1", "--served", "m"],
        ["--endpoint http://127.0.0.1:9/v1: Connection error", "OPENAI_API_KEY"],
    ),
    "a target without ratings": (
        ["--data", "{root}/unrated", "--target", "utility"],
        ["--target utility reads ratings", "has no ratings", "--target next"],
    ),
    "a target without a limit": (["--target", "nearest"], ["--min-rating is missing", "Add --min-rating 4"]),
    "no row rated so high": (["--min-rating", "9"], ["--min-rating 9: none of", "Lower it"]),
    "log_diff of low ratings": (
        ["--objective", "recpo", "--margin", "log_diff"],
        ["--margin log_diff of targets rated", "below 0", "Add --min-rating", "or --margin ratio"],
    ),
    "log_diff of the nearest": (
        ["--objective", "recpo", "--margin", "log_diff", "--target", "nearest", "--min-rating", "4"],
        ["--margin log_diff with --target nearest", "below 0", "Take --target utility, or --margin ratio"],
    ),
    "a rating of 0": (
        ["--data", "{root}/zero", "--objective", "recpo"],
        ["--objective recpo divides by ratings", "one is 0", "starts above 0"],
    ),
    "titles that are one to the model": (
        ["--data", "{root}/forms", "--model", "{root}/lower", "--template", "compact"],
        ["'Film 0 (1970)' and 'FILM 0 (1970)' are the same tokens", "Rename one"],
    ),
    "heads too small for vllm": (
        ["--model", "{root}/small", "--engine", "vllm", "--device", "cpu"],
        ["a head dimension of 16", "wants 32 or more", "--engine torch"],
    ),
    "another model's tokenizer": (
        ["--model", "{root}/foreign"],
        ["have token", "vocabulary size is 50", "Take the tokenizer"],
    ),
    "a tensor of another shape": (
        ["--model", "{root}/reshaped"],
        ["model.embed_tokens.weight is (300, 32)", "config.json asks for (50, 32)", "Copy the model's files"],
    ),
    "a missing tensor": (
        ["--model", "{root}/headless"],
        ["its weights lack lm_head.weight, model.embed_tokens.weight", "Copy the model's files"],
    ),
    "a weight that is no number": (
        ["--model", "{root}/holed"],
        ["model.layers.0.mlp.down_proj.weight holds NaN", "Take weights of finite numbers"],
    ),
    "a window shorter than the prompts may be": (
        ["--model", "{root}/mistral"],
        ["sees 64 tokens (sliding_window)", "Set --max-length 64"],
    ),
    "adapters on a router": (
        ["--model", "{root}/llama4", "--engine", "torch"],
        ["Llama4ForCausalLM does not run with LoRA adapters", "Add --lora-rank 0"],
    ),
    "no tokenizer": (["--model", "{root}/speechless"], ["found no tokenizer.json", "Copy the model's tokenizer files"]),
    "a chat template that demands a system message": (
        ["--model", "{root}/demands_system", "--template", "chat"],
        ["chat template fails", "a system message is demanded", "Add --template instruct"],
    ),
    "a chat template that is broken": (
        ["--model", "{root}/broken_chat", "--template", "auto"],
        ["chat template fails", "Add --template instruct"],
    ),
    "a setting of another loss": (["--tau", "1"], ["--objective dpo has no --tau", "it has --beta"]),
    "beta 0": (["--beta", "0"], ["--objective dpo: Found beta = 0.0", "a finite number > 0"]),
    "beta below 0": (["--beta", "-1"], ["--objective dpo: Found beta = -1.0", "a finite number > 0"]),
    "beta nan": (["--beta", "nan"], ["--objective dpo: Found beta = nan", "a finite number > 0"]),
    "gamma below 0": (
        ["--objective", "simpo", "--gamma", "-1"],
        ["--objective simpo: Found gamma = -1.0", "a finite number >= 0"],
    ),
    "lam below 0": (
        ["--objective", "recpo", "--lam", "-1"],
        ["--objective recpo: Found lam = -1.0", "a finite number >= 0"],
    ),
    "tau 0": (["--objective", "ipo", "--tau", "0"], ["--objective ipo: Found tau = 0.0", "a finite number > 0"]),
    "alpha of cpo": (
        ["--objective", "cpo", "--alpha", "inf"],
        ["--objective cpo: Found alpha = inf", "a finite number >= 0"],
    ),
    "alpha of odpo": (
        ["--objective", "odpo", "--alpha", "0"],
        ["--objective odpo: Found alpha = 0.0", "a finite number > 0"],
    ),
    "lambda_d": (
        ["--objective", "kto", "--lambda-d", "-1"],
        ["--objective kto: Found lambda_d = -1.0", "a finite number > 0"],
    ),
    "lambda_u": (
        ["--objective", "kto", "--lambda-u", "0"],
        ["--objective kto: Found lambda_u = 0.0", "a finite number > 0"],
    ),
    "unknown negatives": (
        ["--negatives", "self_pray"],
        ["--negatives self_pray: found no sampler 'self_pray'", "Choose from self_play, self_play_sample"],
    ),
    "too small for candidates": (["--negatives", "candidates"], ["30 items", "wanted 20 candidates", "more data"]),
    "shares": (["--negatives", "random:0.5", "popular:0.4"], ["sum to 1, found 0.9"]),
    "semantic by title": (["--negatives", "semantic"], ["sentence embedder", "Add --embedder sentence"]),
    "a decoder twice": (["--decode", "greedy", "greedy"], ["--decode is", "each once", "Name them"]),
    "score without candidates": (
        ["--decode", "score"],
        ["--decode score does not go with --protocol open", "Take one"],
    ),
    "beams among candidates": (
        ["--protocol", "candidates", "--decode", "beams"],
        ["--decode beams does not go with --protocol candidates", "greedy, score"],
    ),
    "more than the candidates": (
        ["--protocol", "candidates", "--top-k", "1", "21"],
        ["--top-k 21", "a list of 20 candidates", "at most"],
    ),
    "no room for candidates": (
        ["--protocol", "candidates"],
        ["items that the user never met", "Take a larger catalogue"],
    ),
    "ratings of a source without": (["--data", "{root}/unrated", "--ratings"], ["--ratings: the source csv has none"]),
    "min_history": (["--min-history", "11"], ["--min-history is 11, wanted 1 to --history 10"]),
    "k_core": (["--k-core", "-1"], ["--k-core is -1", "wanted at least", "0"]),
    "k_core of too few": (["--k-core", "100000"], ["--k-core 100000 leaves none", "Lower it"]),
    "targets of another split": (["--targets", "all"], ["--targets all is read by --split sequences"]),
    "d3_alpha": (["--decode", "d3", "--d3-alpha", "1.5"], ["--d3-alpha is 1.5", "from 0 to 1", "have it tuned"]),
    "d3_alpha without d3": (["--d3-alpha", "0.5"], ["is read by --decode d3 alone", "leave this out"]),
    "tiny_hidden": (["--tiny-hidden", "33"], ["tiny_hidden 33", "a multiple of 32", "such as 128"]),
    "lora_dropout": (["--lora-dropout", "1"], ["--lora-dropout is 1", "wanted a share below 1", "such as"]),
    "warm-up that is too long": (["--warmup", "999"], ["--warmup 999: 01/sft has", "steps", "such as --warmup 0.05"]),
    "warm-up of the first": (["--first-warmup", "1.5"], ["--first-warmup 1.5: 00/sft has", "a whole number"]),
    "history": (["--history", "0"], ["--history is 0", "wanted at least", "1"]),
    "seed": (["--seed", "-1"], ["--seed is -1", "wanted at least", "0"]),
}

ABOVE_0 = """min-rating lr first-lr clip batch prefer-batch prefer-epochs micro-batch first-epochs rows-per-iteration
num-negatives max-length max-new-tokens pretrain-steps pretrain-batch pretrain-lr tiny-layers lora-alpha top-k
beam-width part train-workers generators tensor-parallel threads wait-seconds pass-memory"""
FROM_0 = "iterations first-rows first-warmup warmup max-deaths lora-rank weight-decay popularity-gamma"


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused(root: Path, tmp_path: Path, case: str) -> None:
    args, says = CASES[case]
    message = refused(root, tmp_path, *args)
    for part in says:
        assert part.format(root=root) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("model", ["bloom", "mpt", "holed", "headless", "mistral", "foreign"])
def test_one_check_serves_training_and_evaluation(root: Path, tmp_path: Path, model: str) -> None:
    """jobs/evaluate.py is zero-shot with its policy as the model."""
    trains = refused(root, tmp_path, "--model", "{root}/" + model, "--engine", "torch")
    evaluates = refused(root, tmp_path, "--model", "{root}/" + model, "--engine", "torch", "--method", "zero-shot")
    assert trains == evaluates


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((flag, value) for flag in ABOVE_0.split() for value in ("0", "-1")),
        *((flag, "-1") for flag in FROM_0.split()),
        *((flag, value) for flag in ("lr", "clip", "weight-decay", "wait-seconds") for value in ("nan", "inf")),
    ],
)
def test_a_number_out_of_range_is_refused(root: Path, tmp_path: Path, flag: str, value: str) -> None:
    message = refused(root, tmp_path, f"--{flag}={value}")
    assert re.match(rf"--{flag} is {value}(\.0)?, wanted a finite number.* has its default", message)


def dry_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The plan as it is printed, on one line."""
    given = [arg.format(root=root) for arg in args]
    given += [] if {"--data", "--source"} & {*given} else ["--data", str(root / "films")]
    capsys.readouterr()
    assert run(parse("", ["--runs", str(tmp_path / "runs"), "--dry-run", *given])) is None
    assert not ray_is_up()
    return " ".join(capsys.readouterr().out.split())


def test_after_a_refusal_the_corrected_command_has_its_plan(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(root, tmp_path, "--top-k", "31")
    assert "00/pretrain" in dry_run(root, tmp_path, capsys, "--top-k", "30")
    assert not (tmp_path / "runs").exists()  # a plan writes nothing


def test_equal_titles_are_one_item_and_told(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(root, tmp_path, capsys, "--data", "{root}/twice")
    assert "item rows read 31" in told and "duplicate titles 1" in told and "catalogue 30" in told


def test_only_a_preference_step_wants_items_for_negatives(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [",".join([user, str(int(item) % 11), *more]) for user, item, *more in (row.split(",") for row in ROWS)]
    write_csv(tmp_path / "few", items=ITEMS[:11], rows=rows)
    given = ["--data", str(tmp_path / "few")]
    assert "--num-negatives 1: the catalogue has 11 items" in refused(root, tmp_path, *given)
    assert "00/sft" in dry_run(root, tmp_path, capsys, *given, "--method", "BIGRec")
    assert "01/prefer" in dry_run(root, tmp_path, capsys, *given, "--history", "9")


def test_the_plan_names_what_auto_decodes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--source", "synthetic", "--preset", "toy", "--decode", "auto", "greedy"]
    assert "decode beams greedy" in dry_run(root, tmp_path, capsys, *given)
    given += ["--protocol", "candidates", "--beam-width", "1"]  # no search is made
    assert "decode score greedy" in dry_run(root, tmp_path, capsys, *given)


def test_long_prompts_lose_their_oldest_titles_or_their_rows(root: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    # Titles of the first rows, which only training has.
    write_csv(tmp_path / "films", items=[item.replace("Film", "A long film") for item in ITEMS[:3]] + ITEMS[3:])
    line = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "films"), "--model", str(root / "model")]
    line += ["--max-new-tokens", "48"]
    whole = prepare(parse("", line), tmp_path / "scratch")
    lengths = {name: len(ids) for name, ids in zip(
        whole.data.train["example_id"].to_pylist(), whole.template.prompts(whole.data.train), strict=True
    )}  # fmt: skip
    room = max(map(len, whole.template.prompts(whole.data.test)))
    line += ["--max-length", str(room + 48)]
    long = {name for name, length in lengths.items() if length > room}
    assert 0 < len(long) < len(lengths)
    trimmed = prepare(parse("", line), tmp_path / "scratch")
    assert trimmed.data.counts["train_prompts_trimmed"] == len(long) and trimmed.tuning is trimmed.data.train
    assert max(map(len, trimmed.template.prompts(trimmed.data.train))) <= room
    for before, after in zip(whole.data.train.to_pylist(), trimmed.data.train.to_pylist(), strict=True):
        kept = len(after["history"])
        assert after["history"] == before["history"][-kept:] and kept >= 1
        assert (kept < len(before["history"])) == (before["example_id"] in long)
        assert {**after, "history": 0, "history_ratings": 0} == {**before, "history": 0, "history_ratings": 0}
        one_more = before["history"][-kept - 1 :]
        assert before["example_id"] not in long or len(whole.template.prompt_ids(one_more)) > room
    dropped = prepare(parse("", [*line, "--long-prompts", "drop"]), tmp_path / "scratch")
    assert {*dropped.data.train["example_id"].to_pylist()} == lengths.keys() - long
    assert dropped.data.counts["train_prompts_dropped"] == len(long)
    assert dropped.shown["counts"]["train_prompts_dropped"] == len(long)


@pytest.mark.parametrize("protocol", ["open", "candidates"])
@pytest.mark.parametrize("limit", [["--max-new-tokens", "48"], []])
def test_a_title_that_no_answer_can_hold_is_left_out_and_named(
    root: Path, tmp_path: Path, protocol: str, limit: list[str]
) -> None:
    title = "Very long " * 40
    rows = [line for n, line in enumerate(ROWS) if n not in (30, 31)] + ["u0,30,5,1250", "u1,30,5,1530"]
    more = [f"{i},Film {i},z" for i in range(31, 60)]
    write_csv(tmp_path / "films", items=[*ITEMS, *more, f"30,{title},z"], rows=rows)
    line = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "films"), "--model", str(root / "model")]
    whole = load(parse("", [*line, "--protocol", protocol]).data)
    made = prepare(parse("", [*line, *limit, "--protocol", protocol]), tmp_path / "scratch")
    assert whole.catalogue.titles == [*made.data.catalogue.titles, title]
    dropped = 0
    for split in ("train", "valid", "test"):
        kept = [row for row in getattr(whole, split).to_pylist() if row["target"] != title]
        assert [row["example_id"] for row in getattr(made.data, split).to_pylist()] == [r["example_id"] for r in kept]
        dropped += len(getattr(whole, split)) - len(kept)
        for row in getattr(made.data, split).to_pylist():
            assert title not in (row["candidates"] or [])
    assert dropped == 2 and made.shown["counts"]["titles_too_long"] == 1
    told = made.shown["lines"]["long titles"]
    length = len(made.template.answer_ids(title))
    assert f"({length} tokens)" in told and "2 rows" in told and f"at most {limit[1] if limit else 256}" in told
    assert made.config.model.max_new_tokens < 49 if limit else made.config.model.max_new_tokens < length


def test_rows_for_sft_alone_reserve_their_own_answer(root: Path, tmp_path: Path) -> None:
    title = "A film of many words " * 4
    write_csv(tmp_path / "films", items=[*ITEMS, f"30,{title},z"])
    line = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "films"), "--model", str(root / "model")]
    whole = prepare(parse("", line), tmp_path / "scratch")
    lengths, longest = list(map(len, whole.template.prompts(whole.tuning))), whole.tokens.longest
    own = [len(whole.template.answer_ids(title)) for title in whole.tuning["target"].to_pylist()]
    room = max(n + answer for n, answer in zip(lengths, own, strict=True))
    assert longest > max(own)
    line += ["--max-length", str(room), "--max-new-tokens", str(longest)]
    alone = prepare(parse("", [*line, "--method", "BIGRec"]), tmp_path / "scratch")
    assert alone.tuning["history"].equals(whole.tuning["history"]) and alone.tokens.longest == longest
    assert max(map(len, alone.template.prompts(alone.data.test))) <= room - longest
    paired = prepare(parse("", line), tmp_path / "scratch")
    assert max(map(len, paired.template.prompts(paired.tuning))) <= room - longest < max(lengths)


def test_titles_that_the_tokenizer_changes_are_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "titles changed by tokenizer 0" in dry_run(root, tmp_path, capsys, "--model", "{root}/model")
    assert "titles changed by tokenizer 30" in dry_run(root, tmp_path, capsys, "--model", "{root}/lower")


def test_bad_rows_are_set_aside_when_asked(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(root, tmp_path, capsys, "--data", "{root}/nan", "--bad-rows", "drop")
    assert "rows read 49" in told and "rejected: rating is not a number 1" in told
    data = load(parse("", ["--data", str(root / "nan"), "--bad-rows", "drop"]).data)
    plan.write_inputs(tmp_path, data)
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert rows == [
        {"file": "interactions.csv", "row": 50, "reason": "rating is not a number", "text": "u9, 1, five, 5"}
    ]


def claimed(tmp_path: Path, *args: str) -> tuple[list[str], Path]:
    """A run folder as a run with these arguments begins it, and the arguments."""
    given = ["--runs", str(tmp_path / "runs"), "--name", "mine", "--source", "csv", "--engine", "vllm", *args]
    given += ["--max-new-tokens", "5"]
    (scratch := tmp_path / "scratch").mkdir(parents=True, exist_ok=True)
    ready = prepare(parse("", given), scratch)
    return given, Run(Storage(str(tmp_path / "runs")), ready.root, ready.config, ready.hashes).root


def test_a_run_folder_of_another_configuration(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, folder = claimed(tmp_path, "--data", str(root / "films"), "--beta", "0.1", "--lr", "0.5")
    before = (folder / "config.json").read_bytes()
    for more in ([], ["--dry-run"]):
        with pytest.raises(ValueError) as error:
            run(parse("", [*given, "--beta", "0.2", "--lr", "0.25", *more]))
        lines = str(error.value).splitlines()
        assert lines[0] == f"{folder} was made with other settings:"
        assert lines[1:3] == ["  --beta: there 0.1, here 0.2", "  --lr: there 0.5, here 0.25"]
        assert "--name" in lines[3] and "--on-existing overwrite" in lines[3]
    with pytest.raises(ValueError, match=r"data: there [0-9a-f]{12}, here [0-9a-f]{12} \(content hash\)"):
        run(parse("", [*given, "--data", str(root / "twice")]))
    with pytest.raises(ValueError, match=r"exists already\. Take another --name, or --on-existing"):
        run(parse("", [*given, "--on-existing", "fail"]))
    assert (folder / "config.json").read_bytes() == before and not ray_is_up()
    # Placement and output may change, and a fresh start may change everything.
    assert "00/sft" in dry_run(root, tmp_path, capsys, *given, "--generators", "2", "--keep", "all")
    assert "00/sft" in dry_run(root, tmp_path, capsys, *given, "--beta", "0.2", "--on-existing", "overwrite")


def test_a_run_that_tunes_once_says_why_it_takes_no_more_iterations(root: Path, tmp_path: Path) -> None:
    given, _ = claimed(tmp_path, "--data", str(root / "films"), "--method", "DPO", "--iterations", "2")
    with pytest.raises(ValueError) as error:
        run(parse("", [*given, "--iterations", "3", "--dry-run"]))
    assert str(error.value).splitlines()[1:3] == [
        "  --rows-per-iteration: there 4096, here 6144",
        "It tunes once, on the rows of all --iterations together, so more of them are another training.",
    ]
    given, _ = claimed(tmp_path / "other", "--data", str(root / "films"), "--lr", "0.5", "--rows-per-iteration", "64")
    with pytest.raises(ValueError) as error:
        run(parse("", [*given, "--lr", "0.25", "--dry-run"]))
    assert "tunes once" not in str(error.value)


def test_a_run_goes_on_with_the_embedder_it_began_with(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(root / "model", tmp_path / "embedder"))
    given, _ = claimed(tmp_path, "--data", str(root / "films"), "--embedder", "lm", "--embedder-path", str(path))
    moved = [*given, "--embedder-path", str(path.rename(tmp_path / "moved"))]
    assert "00/sft" in dry_run(root, tmp_path, capsys, *moved)
    (tmp_path / "moved" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"made with other settings:\n  embedder: there [0-9a-f]{12}, here [0-9a-f]{12}"
    ):
        run(parse("", [*moved, "--dry-run"]))


def test_a_run_that_goes_on_with_other_packages_says_so_and_keeps_what_it_began_with(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, folder = claimed(tmp_path, "--data", str(root / "films"))
    record = json.loads((folder / "config.json").read_text())
    now = record["versions"].pop("torch")
    (folder / "config.json").write_text(json.dumps(record | {"versions": record["versions"] | {"ray": "1.0"}}))
    told = dry_run(root, tmp_path, capsys, *given)
    assert "this run began with ray 1.0, and goes on with" in told
    assert f"this run began with torch none, and goes on with {now}" in told
    claimed(tmp_path / "again", "--data", str(root / "films"))
    shutil.copy(folder / "config.json", tmp_path / "again" / "runs" / "mine")
    folder = claimed(tmp_path / "again", "--data", str(root / "films"))[1]
    kept = json.loads((folder / "config.json").read_text())["versions"]
    assert kept["ray"] == "1.0" and "torch" not in kept


@pytest.mark.parametrize("existing", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_folder_is_left_alone(root: Path, existing: str) -> None:
    """Every Hugging Face folder has a config.json; overwriting a run must not take one for a run."""
    before = {path.name: path.read_bytes() for path in (root / "model").iterdir()}
    given = ["--data", str(root / "films"), "--runs", str(root), "--name", "model", "--on-existing", existing]
    with pytest.raises(ValueError, match=r"model is neither empty nor a run folder\. Take another --name or --runs"):
        run(parse("", given))
    assert {path.name: path.read_bytes() for path in (root / "model").iterdir()} == before


def test_a_folder_below_a_file_cannot_be_written(root: Path) -> None:
    given = ["--data", str(root / "films"), "--runs", str(root / "films" / "items.csv")]
    with pytest.raises(ValueError, match=r"cannot be written \(Not a directory\)\. Name another folder with --runs"):
        run(parse("", given))
    assert not ray_is_up()


#: The real script, and at its end whether Ray was imported.
SCRIPT = (
    "import atexit, runpy, sys; atexit.register(lambda: print('ray' in sys.modules)); "
    "sys.argv = sys.argv[1:]; sys.path.insert(0, 'jobs'); runpy.run_path(sys.argv[0], run_name='__main__')"
)


def command(*args: str, before: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """``python jobs/sprec.py`` in a process of its own."""
    line = [*before, sys.executable, "-c", SCRIPT, "jobs/sprec.py", *args]
    return subprocess.run(line, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=300)


def test_the_command_refuses_on_one_line(tmp_path: Path) -> None:
    done = command("--data", "nowhere", "--runs", str(tmp_path / "runs"), "--preset", "toy")
    assert done.returncode == 1
    assert done.stderr == "error: --data nowhere: there is no such file or folder. Name one that exists.\n"
    assert done.stdout == "False\n" and not (tmp_path / "runs").exists()


@contextlib.contextmanager
def listening(kind: str) -> Iterator[str]:
    """HOST:PORT of a server that is no Ray cluster."""
    with contextlib.ExitStack() as stack:
        if kind == "silent":  # it takes connections, and never a word
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        else:
            service = grpc.server(ThreadPoolExecutor(1))
            port = service.add_insecure_port("127.0.0.1:0")
            service.start()
            stack.callback(lambda: service.stop(None).wait())
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("kind", "says"),
    [("silent", "lets nobody join within 10 s"), ("grpc", "answers with 'RpcError: RPC error: Method not")],
)
def test_a_server_that_is_no_cluster_is_refused_in_seconds(tmp_path: Path, kind: str, says: str) -> None:
    """Ray's own client tries for minutes."""
    with listening(kind) as address:
        begun = time.monotonic()
        given = ["--runs", str(tmp_path / "runs"), "--preset", "toy"]
        done = command(*given, "--address", address) if kind == "silent" else command(*given, RAY_ADDRESS=address)
        seconds = time.monotonic() - begun
    assert done.returncode == 1 and seconds < 60  # 10 of them to join, the others for imports on a busy machine
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "Traceback" not in done.stderr
    assert told[0].startswith(f"error: --address (or RAY_ADDRESS) {address}: what listens there {says}")
    assert "wanted the head of a Ray cluster. Give the HOST:PORT" in told[0]
    assert done.stdout == "False\n" and not (tmp_path / "runs").exists()


def test_a_submitted_job_takes_no_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # what Ray sets for a job's entry point
    with pytest.raises(ValueError, match=r"--runs runs is relative, .* runs in a copy .* path that every node sees\."):
        run(parse("", ["--runs", "runs", "--dry-run"]))
    with pytest.raises(ValueError, match=r"--data here is relative, .* Give an absolute path"):
        run(parse("", ["--runs", "/runs", "--data", "here"]))
    assert settle_runs(None) == str(Path.home() / "rayrec-runs")
    with pytest.raises(ValueError, match=r"--json here is relative"):
        settle_runs(None, json="here")


def test_a_hub_id_embeds_the_titles_too(root: Path, tmp_path: Path) -> None:
    """--embedder lm reads --model, a folder or a hub id; here one that was downloaded before."""
    there = tmp_path / "hub" / "models--some--body"
    shutil.copytree(root / "model", there / "snapshots" / ("a" * 40))
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("a" * 40)
    given = ["--data", str(root / "films"), "--runs", str(tmp_path / "runs"), "--dry-run", "--embedder", "lm"]
    done = command(*given, "--model", "some/body", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "some/body" in done.stdout


def test_a_read_only_mount_is_refused(root: Path, tmp_path: Path) -> None:
    """Root writes through file modes, so only a read-only mount is unwritable to everybody."""
    mount = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o ro none "{tmp_path}" && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        warnings.warn("no mount allowed here: the read-only mount is not checked", stacklevel=1)
        return
    given = ["--data", str(root / "films"), "--model", str(root / "model"), "--runs", str(tmp_path / "runs")]
    done = command(*given, "--name", "mine", before=mount)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        f"{tmp_path / 'runs'}/mine cannot be written (Read-only file system). Name another folder with --runs."
    )
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--betta", "1"], "--betta"),
        (["--objective", "dpoo"], "dpoo"),
        (["--iterations", "two"], "two"),
        (["stray"], "stray"),
    ],
)
def test_the_command_line_knows_its_options(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("", args)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_no_check_changes_a_setting() -> None:
    """``resolve`` only fills what was left open."""
    config = parse("", [])
    loss = dataclasses.replace(config.loss, beta=0.1, smoothing="none")
    model, train = (
        dataclasses.replace(config.model, lora_rank=0),
        dataclasses.replace(config.train, negatives=("self_play",), dtype="float32", zero_stage=1),
    )
    filled = dataclasses.replace(config, model=model, train=train, loss=loss)
    assert checks.resolve(config) == filled == checks.resolve(filled)
