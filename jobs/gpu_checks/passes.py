"""Attention, adapters and whole passes of the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from gpu_checks import Check, Line, Place, apart


def shapes(place: Place) -> Iterator[Line]:
    """A new shape must cost no plan: cuDNN's attention makes one for each, so it is off."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    lengths, heads = range(131, 131 + (4 if place.quick else 12) * 5, 5), 32 if place.gpu else 2

    def pass_of(length: int) -> float:
        q, k, v = (torch.randn(16, heads, length, 64, dtype=torch.bfloat16, device=place.device) for _ in range(3))
        mask = torch.zeros(16, 1, length, length, dtype=torch.bfloat16, device=place.device)
        place.wait()
        begun = time.perf_counter()
        q.requires_grad_()
        attend(q, k, v, attn_mask=mask).sum().backward()
        place.wait()
        return time.perf_counter() - begun

    for cudnn in (False, True) if place.gpu else (False,):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        pass_of(128)
        first, second = ([1e3 * pass_of(length) for length in lengths] for _ in range(2))
        more = sum(first) / len(first) - sum(second) / len(second)
        passed = None if cudnn or not place.gpu else more < 5
        what = f"attention of a new shape, cuDNN {'on' if cudnn else 'off'}"
        yield Line(what, "" if cudnn else "< 5 ms more", f"{more:.1f} ms more", passed, {"ms": more})
    torch.backends.cuda.enable_cudnn_sdp(False)


def adapters(place: Place) -> Iterator[Line]:
    """The adapters of our layers against peft's: gradients to rounding, and the time."""
    import torch

    from rayrec.models.logprobs import PackedLM, pack
    from rayrec.models.policy import set_lora_dropout

    rows = place.examples(16, 0)
    packed = pack(rows, multiple=16).to(place.device)
    made: dict[str, tuple[float, list[Any]]] = {}
    for name in ("peft", "ours"):
        model = place.model()
        lm: Any = PackedLM(model)
        if name == "peft":
            from peft.tuners.lora import Linear

            for module in model.modules():
                if type(module).__name__ in ("AdaptedLinear", "FusedLinear"):
                    module.__class__ = Linear
        lm.train()

        def step(lm: Any = lm) -> None:
            lm.zero_grad(set_to_none=True)
            lm(packed).sum().backward()

        step()
        grads = [p.grad.float().cpu() for p in lm.parameters() if p.grad is not None]
        set_lora_dropout(model, 0.05)
        made[name] = place.seconds(step), grads
        del model, lm
    worst = max(apart(a, b) for a, b in zip(made["ours"][1], made["peft"][1], strict=True))
    yield Line("gradients of adapters against peft's", "< 0.05 of the largest", f"{worst:.3f}", worst < 0.05)
    ours, theirs = made["ours"][0], made["peft"][0]
    passed = ours < theirs if place.gpu else None
    numbers = {"ours_ms": 1e3 * ours, "peft_ms": 1e3 * theirs}
    yield Line(
        "16 rows forward and back", "faster than peft's", f"{1e3 * ours:.0f} of {1e3 * theirs:.0f} ms", passed, numbers
    )
    if place.gpu:
        torch.cuda.empty_cache()


def exact(place: Place) -> Iterator[Line]:
    """The packed pass and the prompt cache in float32, and what bfloat16 adds."""
    import torch

    from rayrec.decoding.exact import check_exact
    from rayrec.models.logprobs import PackedLM, pack

    model = place.model("float32", rank=0, shape="small")
    try:
        check_exact(model)
        found = ""
    except ValueError as error:
        found = str(error)
    yield Line("packed pass and prompt cache, float32", "as plain passes", found or "as plain passes", not found)
    lm, rows = PackedLM(place.model(rank=0)), place.examples(8, 3)
    with torch.inference_mode():
        packed_BA = lm(pack(rows, multiple=16).to(place.device)).cpu()
        alone_BA = torch.stack(
            [lm(pack([(p, [a]) for a in answers]).to(place.device))[:, 0].cpu() for p, answers in rows]
        )
    lengths_BA = torch.tensor([[len(a) for a in answers] for _, answers in rows])
    worst = float(((packed_BA - alone_BA).abs() / lengths_BA).max())
    yield Line("packed against alone, bfloat16, a token", "< 0.05 nats", f"{worst:.4f} nats", worst < 0.05)


def varlen(place: Place) -> Iterator[Line]:
    """FlashAttention over runs, forward and backward, against sdpa over a mask."""
    import torch

    from rayrec.decoding.exact import check_kernel
    from rayrec.models.logprobs import PackedLM, pack
    from rayrec.models.varlen import attend_by_runs

    rows, made = place.examples(32, 3), {}
    for runs in (False, True):
        model = place.model()
        if runs:
            attend_by_runs(model.get_base_model())
            check_kernel(model.get_base_model())
        lm = PackedLM(model)
        packed = pack(rows, multiple=128 if runs else 16, runs=runs).to(place.device)

        def step(lm: Any = lm, packed: Any = packed) -> Any:
            lm.zero_grad(set_to_none=True)
            out = lm(packed)
            out.sum().backward()
            return out.detach()

        out = step()
        grads = torch.cat([p.grad.flatten().float() for p in lm.parameters() if p.grad is not None])
        made[runs] = place.seconds(step), out, grads
        del lm, model
        if place.gpu:
            torch.cuda.empty_cache()
    (plain, a, x), (own, b, y) = made[False], made[True]
    worst = max(apart(b, a), apart(y, x))
    yield Line("attention over runs against sdpa", "< 0.05 of the largest", f"{worst:.3f}", worst < 0.05)
    found, numbers = f"{1e3 * own:.0f} of {1e3 * plain:.0f} ms", {"runs_ms": 1e3 * own, "sdpa_ms": 1e3 * plain}
    passed = own < plain if place.gpu else None
    yield Line("32 rows with four answers over runs", "faster than sdpa", found, passed, numbers)


CHECKS: dict[str, Check] = {
    "shapes": (shapes, 30),
    "adapters": (adapters, 40),
    "exact": (exact, 20),
    "varlen": (varlen, 30),
}
