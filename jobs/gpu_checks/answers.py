"""Answers: beams over a catalogue, sleep, hand-offs, and vLLM where it is installed."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

from gpu_checks import ALPHA, RANK, Check, Line, Place


def titles(place: Place, count: int) -> list[list[int]]:
    """So many different answers of about ten tokens that share beginnings, each ended by token 2."""
    draw, words = random.Random(5), 200 if place.shape == "1B" else 40
    found = {tuple(draw.randrange(3, words) for _ in range(draw.randint(6, 12))) for _ in range(count)}
    return [[*one, 2] for one in sorted(found)]


def exact(place: Place) -> Iterator[Line]:
    """Beams of a small float32 model here and on the CPU."""
    from rayrec.decoding import Trie, beam_search

    model, trie = place.model("float32", rank=0, shape="small"), Trie.build(titles(place, 300))
    prompts = [[i % 512 for i in prompt] for prompt, _ in place.examples(16, 0)]
    here = beam_search(model, prompts, trie, 10)
    there = beam_search(model.to("cpu"), prompts, trie, 10)
    same = sum([i for i, _ in a] == [i for i, _ in b] for a, b in zip(here, there, strict=True))
    worst = max(abs(x - y) for a, b in zip(here, there, strict=True) for (_, x), (_, y) in zip(a, b, strict=True))
    found = f"{same} of {len(prompts)} lists equal, scores off by {worst:.1g}"
    yield Line("beams against the CPU", "equal lists, < 1e-3 nats", found, same == len(prompts) and worst < 1e-3)


def waits(place: Place) -> Iterator[Line]:
    """How often a search makes the host wait for the GPU, in short and in long titles."""
    import torch

    from rayrec.decoding import Trie, beam_search

    if not place.gpu:
        return (yield Line("waits of a step of beams", "", "not run: no GPU"))
    model, found = place.model("float32", rank=0, shape="small"), list[int]()
    for length in (3, 9):
        trie = Trie.build([[*[3] * length, 4 + i, 2] for i in range(16)]).to(place.device)
        beam_search(model, [[1, 5, 9]], trie, 4)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                beam_search(model, [[1, 5, 9]], trie, 4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(sum("synchronizing" in str(one.message) for one in told))
    short, long = found
    yield Line("waits of a step of beams", "none", f"{short} of 5 steps, {long} of 11", short == long)


def beams(place: Place) -> Iterator[Line]:
    """Prompts per second of beams over 10,000 titles, and of Hugging Face's constrained generate."""
    from rayrec.decoding import Trie, beam_search
    from rayrec.models import adapters

    model, answers = place.model(), titles(place, 10_000 if place.shape == "1B" else 300)
    adapters.lighten(model, fused=place.gpu)
    adapters.copy(model)
    trie = Trie.build(answers).to(place.device)
    prompts = [prompt for prompt, _ in place.examples(64 if place.quick else 256, 0)]
    for width in (10,) if place.quick else (10, 20, 50):
        beam_search(model, prompts[:64], trie, width)
        spent = []
        for at in range(0, len(prompts), 64):
            place.wait()
            begun = time.perf_counter()
            beam_search(model, prompts[at : at + 64], trie, width)
            spent.append(time.perf_counter() - begun)
        rate, alone = len(prompts) / sum(spent), list[float]()
        for prompt in prompts[: 10 if place.quick else 100]:
            begun = time.perf_counter()
            beam_search(model, [prompt], trie, width)
            alone.append(1e3 * (time.perf_counter() - begun))
        numbers = {"prompts_per_s": rate, "p50_ms": statistics.median(alone)}
        numbers["p99_ms"] = sorted(alone)[int(0.99 * len(alone))]
        found = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        passed = rate >= 200 if place.gpu and width == 20 else None
        yield Line(f"beams of width {width}", ">= 200 prompts/s" if width == 20 else "", found, passed, numbers)
    own = place.seconds(lambda: beam_search(model, prompts[:16], trie, 10), 1)
    theirs = place.seconds(lambda: constrained(place, model, prompts[:16], answers, 10), 1)
    times = theirs / own
    yield Line("beams against Hugging Face's, 16 prompts", "", f"{times:.1f} times as fast", None, {"times": times})


def constrained(place: Place, model: Any, prompts: list[list[int]], answers: list[list[int]], width: int) -> Any:
    """Hugging Face's beam search, which may write the answers alone."""
    import torch

    after: dict[tuple[int, ...], set[int]] = {}
    for one in answers:
        for i, token in enumerate(one):
            after.setdefault(tuple(one[:i]), set()).add(token)
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=place.device)
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=place.device)

    def allowed(_: int, ids: Any) -> list[int]:
        return list(after.get(tuple(ids[longest:].tolist()), {2}))

    shape = {"num_beams": width, "num_return_sequences": width, "max_new_tokens": max(map(len, answers))}
    settings: dict[str, Any] = {"do_sample": False, "length_penalty": 0.0, "eos_token_id": 2, "pad_token_id": 0}
    return model.generate(ids_BT, attention_mask=mask_BT, prefix_allowed_tokens_fn=allowed, **shape, **settings)


def sleep(place: Place) -> Iterator[Line]:
    """Measure the memory of a sleeping engine on the GPU, and the seconds of a hand-off."""
    import torch

    from rayrec.generation.engine import move
    from rayrec.models import policy

    model = place.model()
    state = {name: value + 0.01 for name, value in policy.trainable_state(model).items()}
    seconds = place.seconds(lambda: policy.copy_weights(model, state), 1)
    yield Line("a new policy's adapters in place", "< 1 s", f"{seconds:.3f} s", seconds < 1, {"seconds": seconds})
    if not place.gpu:
        return
    before = torch.cuda.mem_get_info()[0]
    begun = time.perf_counter()
    move(model, "cpu")
    free, slept = torch.cuda.mem_get_info()[0] - before, time.perf_counter() - begun
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    found = f"{free / weights:.2f} of the weights' bytes free after {slept:.1f} s"
    yield Line("an engine that sleeps", ">= 0.9 of its weights", found, free >= 0.9 * weights, {"seconds": slept})
    begun = time.perf_counter()
    move(model, str(place.device))
    place.wait()
    yield Line("and wakes", "", f"{time.perf_counter() - begun:.1f} s")


def vllm(place: Place) -> Iterator[Line]:
    """vLLM with adapters, as generators have it, against transformers and peft on the same policy."""
    import dataclasses

    from rayrec.decoding import generate
    from rayrec.driver.checks import resolve
    from rayrec.generation.engine import Part, Setup
    from rayrec.methods import parse
    from rayrec.models import policy
    from rayrec.prompts import make_template
    from rayrec.runs.storage import Storage

    if not place.gpu or importlib.util.find_spec("vllm") is None:
        return (yield Line("vLLM with adapters", "", "not run: no GPU, or vllm is not installed"))
    from rayrec.generation.vllm import VllmEngine

    model, tokenizer = place.model(), policy.load_tokenizer(place.base)
    folder = place.folder / "01" / "sft" / "policy"
    policy.save(policy.trainable_state(model), model, tokenizer, folder, {"phase": "check"}, base=place.base)
    prompts = [prompt for prompt, _ in place.examples(32, 0)]
    wanted = generate(model, prompts, 2, max_new_tokens=8, mode="greedy", n=1, seed=0)
    del model
    place.held()
    flags = ["--model", place.base, "--lora-rank", str(RANK), "--lora-alpha", str(ALPHA), "--decode", "beams"]
    config = resolve(parse("", [*flags, "--max-length", "1024", "--max-new-tokens", "8"]), True)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, placement="shared"))
    template = make_template("compact", tokenizer)
    begun = time.perf_counter()
    engine = VllmEngine(Setup(config, Storage(""), place.base, template, (), True, VllmEngine, 4))
    yield Line("vLLM comes up", "< 300 s", f"{time.perf_counter() - begun:.0f} s", time.perf_counter() - begun < 300)
    begun = time.perf_counter()
    engine.load("01/sft", str(folder))
    found = engine.answer(Part("check", 0, "01/sft", str(folder), prompts, "greedy"))
    seconds = time.perf_counter() - begun
    same = sum(one[0][0][:4] == list(other[0].token_ids)[:4] for one, other in zip(found, wanted, strict=True))
    yield Line("answers of a new policy by vLLM", "9 of 10 begin alike", f"{same} of 32 in {seconds:.1f} s", same >= 28)
    engine.sleep()
    engine.wake()
    again = engine.answer(Part("check", 0, "01/sft", str(folder), prompts, "greedy"))
    equal = sum(a[0][0] == b[0][0] for a, b in zip(found, again, strict=True))
    yield Line("after sleep and wake", "the same answers", f"{equal} of 32", equal >= 30)


CHECKS: dict[str, Check] = {
    "beams-exact": (exact, 15),
    "beams-waits": (waits, 10),
    "beams": (beams, 60),
    "sleep": (sleep, 20),
    "vllm": (vllm, 180),
}
