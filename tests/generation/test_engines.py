"""The choice of an engine and its refusals, with an engine from outside among them."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
import sysconfig
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rayrec.config import Config
from rayrec.driver.checks import resolve
from rayrec.generation import ENGINES, resolve_engine
from rayrec.generation.actor import Generator
from rayrec.generation.chat import ChatEngine
from rayrec.generation.engine import EngineDied, Part, Setup, modes_of
from rayrec.generation.vllm_models import RANKS, lora_room, takes_adapters
from rayrec.lanes import BASE
from rayrec.methods import parse
from rayrec.models import lora, policy
from rayrec.models.policy import load_tokenizer
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage
from tests.generation.fake_engine import FakeEngine

TITLES = ["Red River", "Red House", "Blue Road"]


class Missing(FakeEngine):
    """An engine that is not installed."""

    @classmethod
    def missing(cls) -> str:
        return "it is not installed. Take another."


def config_of(*args: str) -> Config:
    return resolve(parse("", ["--preset", "toy", "--tiny-hidden", "32", "--tiny-vocab", "300", *args]))


def test_auto_takes_the_first_engine_that_is_installed_and_serves_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*args: str) -> str:
        return resolve_engine(config_of(*args), gpu=False).evaluate.engine

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine() == "vllm"
        assert engine("--item-vectors") == "torch"
    vllm, torch, chat = ENGINES["vllm"], ENGINES["torch"], ENGINES["chat"]
    monkeypatch.setattr("rayrec.generation.ENGINES", {"chat": chat, "gone": Missing, "torch": torch, "vllm": vllm})
    with pytest.warns(UserWarning, match=r"--engine auto passes over gone: it is not installed\. Take another\."):
        assert engine() == "torch"
    with pytest.raises(ValueError, match=r"--engine gone: it is not installed\. Take another\."):
        engine("--engine", "gone")
    with pytest.raises(ValueError, match=r"--engine other: no such engine\. Take one of auto, chat, gone, torch, vllm"):
        engine("--engine", "other")


def test_settings_that_an_engine_does_not_declare_to_serve_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", FakeEngine)
    for args, message in (
        (["--tensor-parallel", "2"], "has the engine fake on GPUs.*take --device gpu and --engine vllm"),
        (["--item-vectors"], "--item-vectors has tokens that only --engine torch reads"),
        (["--endpoint", "http://x/v1", "--served", "m"], "--engine chat, --endpoint URL and --served NAME go together"),
        (["--endpoint", "http://x/v1"], "--engine chat, --endpoint URL and --served NAME go together"),
        (["--served", "m"], "--engine chat, --endpoint URL and --served NAME go together"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_engine(config_of("--engine", "fake", *args), gpu=True)
    assert resolve_engine(config_of("--engine", "fake", "--method", "D3"), gpu=True).evaluate.engine == "fake"
    with pytest.raises(ValueError, match="--tensor-parallel 2: constrained beams, d3 and scores"):
        resolve_engine(config_of("--engine", "vllm", "--tensor-parallel", "2", "--decode", "beams"), gpu=True)


class Page(BaseHTTPRequestHandler):
    """Answers everything by a page of HTML, or by JSON without what was asked for."""

    kind, body = "text/html", b"<html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html", b"<html>"), ("application/json", b"["), ("application/json", b'["choices"]')]
)
def test_an_endpoint_of_another_kind_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, body: bytes
) -> None:
    monkeypatch.setattr(Page, "kind", kind)
    monkeypatch.setattr(Page, "body", body)
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        config = config_of("--method", "ChatRec", "--endpoint", url, "--served", "m")
        make_tiny(TITLES, config.model, tmp_path, 0)
        template = make_template("compact", load_tokenizer(tmp_path))
        setup = Setup(config, Storage(""), "", template, (), False, ChatEngine, 1)
        with pytest.raises(ValueError, match=r"its answer has not the form.* such as http://127.0.0.1:8000/v1"):
            resolve_engine(config, gpu=False)
        for answer in (body, b'{"error": "busy"}', b'{"choices": []}'):
            Page.body = answer
            with pytest.raises(ConnectionError, match=f"--endpoint {url} failed: its answer has not the form"):
                ChatEngine(setup).answer(Part("00/evaluate", 0, "base", "", [[1]], "greedy"))
        Page.kind, Page.body = "application/json", b'{"data": []}'
        with pytest.raises(ValueError, match=f"--endpoint {url} serves no model"):
            resolve_engine(config, gpu=False)
        server.shutdown()


def test_the_modes_of_a_plan_are_those_of_its_evaluations_negatives_and_scores() -> None:
    assert modes_of(config_of()) == {"greedy"}
    assert modes_of(config_of("--decode", "beams", "--negatives", "self_play_sample")) == {"beams", "sample"}
    assert modes_of(config_of("--negatives", "random", "--score-negatives")) == {"greedy", "score"}
    assert modes_of(config_of("--method", "TALLRec")) >= {"score"}


def generator(folder: Path) -> tuple[Generator, Part]:
    """A generator with a fake engine, and a part that it is asked for."""
    config = config_of()
    make_tiny(TITLES, config.model, folder, 0)
    template = make_template("compact", load_tokenizer(folder))
    setup = Setup(config, Storage(str(folder)), str(folder), template, tuple(TITLES), False, FakeEngine, 1)
    prompts = [template.prompt_ids(TITLES[:2]), template.prompt_ids(TITLES[1:])]
    choices = [[template.answer_ids(title) for title in TITLES]] * 2
    return Generator(setup), Part("01/evaluate", 5, BASE, str(folder), prompts, "score", 3, choices=choices)


def test_an_engine_gets_the_modes_that_it_lacks(tmp_path: Path) -> None:
    actor, part = generator(tmp_path)
    scored, facts = actor.answer(part)
    beams, _ = actor.answer(Part("01/evaluate", 6, BASE, str(tmp_path), part.prompts, "beams", 3))
    # Beams as wide as the catalogue rank it by the same log-probabilities; scores keep the order of the choices.
    assert [[answer.text for answer in one] for one in scored] == [TITLES] * 2
    for exact, ranked in zip(scored, beams, strict=True):
        wanted = {answer.text: answer.logprob for answer in exact}
        assert [answer.text for answer in ranked] == sorted(wanted, key=lambda title: -wanted[title])
        assert [answer.logprob for answer in ranked] == pytest.approx([wanted[a.text] for a in ranked], abs=1e-4)
        assert all(answer.ids == actor.template.answer_ids(answer.text) for answer in ranked)
    drawn, _ = actor.answer(Part("01/negatives", 6, BASE, str(tmp_path), part.prompts, "gumbel", 3, seed=5))
    for exact, one in zip(scored, drawn, strict=True):
        # Over the catalogue the three titles have probability 1; the order is that of the draw.
        assert {answer.text for answer in one} == {*TITLES}
        assert sum(math.exp(answer.logprob) for answer in one) == pytest.approx(1, abs=1e-5)
        wanted = [a.logprob - (a.kept or 0.0) for a in exact]
        found = {answer.text: answer.logprob for answer in one}
        assert [found[a.text] for a in exact] == pytest.approx(wanted, abs=1e-4)
    assert facts["tokens"] == sum(len(answer.ids) for one in scored for answer in one)
    own, _ = actor.answer(Part("01/evaluate", 7, BASE, str(tmp_path), [[5, 6]], "greedy", seed=4))
    assert own[0][0].ids == [5, 6] and own[0][0].logprob == -4.0  # the engine's own mode


def test_beams_over_adapters_have_the_weights_of_each_policy_in_turn(tmp_path: Path) -> None:
    """A run on GPUs keeps adapters alone."""
    actor, part = generator(tmp_path / "base")
    answers = []
    for number, name in enumerate(("a", "b", "a")):
        lm = policy.add_lora(policy.load_base(tmp_path / "base"), 4, 8, 0.0, seed=ord(name))
        for _, layer in lora.layers(lm):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.manual_seed(ord(name)))
        lm.save_pretrained(tmp_path / name)
        asked = Part("01/evaluate", number, f"0{number}/prefer", str(tmp_path / name), part.prompts, "beams", 3)
        found, _ = actor.answer(asked)
        answers.append([answer.logprob for one in found for answer in one])
        lm.eval()
        wanted = [
            logprob(lm, prompt, answer.ids) for prompt, one in zip(part.prompts, found, strict=True) for answer in one
        ]
        assert answers[-1] == pytest.approx(wanted, abs=1e-4)
    assert answers[0] == answers[2] != answers[1]


@torch.no_grad()
def logprob(lm: Any, prompt: list[int], answer: list[int]) -> float:
    """Log-probability of an answer, by a plain pass."""
    logp_TV = lm(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logp_TV[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer))


def test_an_error_that_the_engine_declares_is_its_death(tmp_path: Path) -> None:
    actor, part = generator(tmp_path)
    with pytest.raises(EngineDied, match="LostError: no connection"):
        actor.answer(Part("01/evaluate", 1, BASE, str(tmp_path), part.prompts, "greedy"))


def test_vllm_refuses_models_before_the_start(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    for kind, experts in (
        ("qwen3_moe", {"num_experts": 4}),
        ("mixtral", {"num_local_experts": 4}),
        ("deepseek_v3", {"n_routed_experts": 4}),
    ):
        AutoConfig.for_model(kind, **shape, **experts).save_pretrained(tmp_path / kind)
        with pytest.raises(ValueError, match=r"it has 4 experts a layer.*Add --engine torch\."):
            ENGINES["vllm"].check_model(config_of(), False, str(tmp_path / kind))
        ENGINES["torch"].check_model(config_of(), False, str(tmp_path / kind))
    for kind, name in (("llama", "LlamaForCausalLM"), ("phi", "PhiForCausalLM")):
        AutoConfig.for_model(kind, **shape, architectures=[name]).save_pretrained(tmp_path / kind)
    ENGINES["vllm"].check_model(config_of(), False, str(tmp_path / "llama"))
    with pytest.raises(ValueError, match=r"vLLM has no PhiForCausalLM of its own.*Add --engine torch\."):
        ENGINES["vllm"].check_model(config_of(), False, str(tmp_path / "phi"))


def test_vllm_makes_room_for_every_rank_that_it_takes() -> None:
    for rank, room in ((1, 8), (8, 8), (12, 16), (24, 32), (48, 64), (100, 128), (257, 320), (512, 512)):
        assert lora_room(rank) == room
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    stated = (Path(spec.origin).parent / "config" / "lora.py").read_text()
    ranks = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", stated)
    assert ranks and tuple(map(int, ranks[1].split(","))) == RANKS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lora-rank", "513", "--dtype", "bfloat16"], r"--lora-rank 513: vLLM takes adapters of rank 512 at most"),
        (["--lora-rank", "4", "--dtype", "float32"], r"--dtype float32: vLLM's adapters on GPUs are of 16 bits"),
    ],
)
def test_vllm_refuses_adapters_that_its_kernels_do_not_take_on_gpus(args: list[str], message: str) -> None:
    config = config_of("--engine", "vllm", *args)
    with pytest.raises(ValueError, match=message):
        resolve_engine(config, gpu=True)
    resolve_engine(config, gpu=False)
    resolve_engine(config_of("--engine", "torch", *args), gpu=True)
    # vLLM's kernel says so itself.
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    kernel = (Path(spec.origin).parent / "lora/ops/triton_ops/lora_shrink_op.py").read_text()
    assert "assert inputs.dtype in [torch.float16, torch.bfloat16]" in kernel


def test_vllm_refuses_adapters_of_architectures_without(tmp_path: Path) -> None:
    for name in ("GPT2LMHeadModel", "FalconForCausalLM", "BloomForCausalLM", "StableLmForCausalLM"):
        assert not takes_adapters(name), name
    for name in ("LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "MistralForCausalLM", "NotAModel"):
        assert takes_adapters(name), name
    shape = {"n_embd": 64, "n_head": 2, "n_layer": 1}
    AutoConfig.for_model("gpt2", **shape, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"vLLM has no LoRA for GPT2LMHeadModel\. Add --engine torch, or --lora-rank 0"
    ):
        ENGINES["vllm"].check_model(config_of("--lora-rank", "4"), True, str(tmp_path))
    ENGINES["vllm"].check_model(config_of(), True, str(tmp_path))


def test_without_vllm_the_torch_engine_takes_over_with_one_line(tmp_path: Path) -> None:
    """In an environment of all packages but vLLM's."""
    root = Path(__file__).parents[2]
    (packages := tmp_path / "packages").mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("vllm") and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    command = [sys.executable, "-S", "jobs/sprec.py", "--preset", "toy", "--dry-run", "--runs", str(tmp_path / "runs")]
    env = {"PYTHONPATH": f"{root}:{packages}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = " ".join((done.stdout + done.stderr).split())
    assert said.count("--engine auto passes over vllm: vllm is not installed. Install rayrec[cpu]") == 1, said
    assert re.search(r"engine\W+torch", said), said
