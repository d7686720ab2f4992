"""Attention over runs is that over the mask, in values and gradients; on a GPU it takes one kernel a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.bias import causal_upper_left
from transformers import AutoConfig

from rayrec.decoding.exact import check_kernel
from rayrec.models import norms, policy, varlen
from rayrec.models.logprobs import Packed, PackedLM, pack
from tests.models.test_logprobs import CONFIGS, assert_same, batch, gradients, model
from tests.models.zoo import ZOO, make
from tests.training.test_counts import LAYERS, Count
from tests.training.test_counts import model as llama


def test_runs_of_a_row() -> None:
    """A prompt of 2 with answers of 3, 1 and 2 tokens, a prompt of 1 with one of 2; the last token is no input."""
    packed = pack([([1, 1], [[2, 2, 3], [3], [2, 3]]), ([1], [[2, 3]])], multiple=8, runs=True)
    assert packed.segment_RT.tolist() == [[0, 0, 1, 1, 3, 0, 1, 0]] and packed.runs is not None
    found = packed.runs
    assert (found.count, found.queries, found.keys) == (4, 4, 4)
    queries, keys, places = found.lists.split([5, 5, 10])
    assert queries.tolist() == [0, 4, 5, 7, 8]  # prompt and first answer, third answer, second example, padding
    assert keys.tolist() == [0, 4, 7, 9, 10]
    assert places.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7]
    assert found.mask().shape == (4, 4, 4, 20) and found.mask().data_ptr() == found.lists.data_ptr()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_sees_what_a_mask_shows(name: str, lora: bool) -> None:
    lm, examples = model(name, lora), [batch(seed, longest=60) for seed in (0, 1)]
    wanted = [PackedLM(lm)(pack(rows)) for rows in examples]
    steps = [gradients(lm, wanted_BA) for wanted_BA in wanted]
    varlen.attend_by_runs(lm.get_base_model() if lora else lm)
    for checkpointing in (False, True):
        ours = PackedLM(lm, checkpointing).train(checkpointing)
        for rows, wanted_BA, step in zip(examples, wanted, steps, strict=True):
            packed = pack(rows, runs=True)
            assert len(packed.ids_RT) == 1  # without padding
            found_BA = ours(packed)
            torch.testing.assert_close(found_BA, wanted_BA, rtol=1e-5, atol=1e-5)
            assert_same(gradients(lm, found_BA), step)
    torch.testing.assert_close(ours.eval()(pack(examples[0])), wanted[0], rtol=1e-5, atol=1e-5)  # over a mask, too


@torch.library.custom_op("rayrec::rms_norm", mutates_args=())
def one_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """A norm that is one operation forward and one back, as on a GPU; elsewhere PyTorch takes it apart."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


@torch.library.custom_op("rayrec::rms_norm_backward", mutates_args=())
def one_norm_back(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.rms_norm(given, weight.shape, weight, epsilon), given, grad)[0]


one_norm.register_fake(lambda x, weight, epsilon: torch.empty_like(x))
one_norm_back.register_fake(lambda grad, x, weight, epsilon: torch.empty_like(x))


def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


one_norm.register_autograd(
    lambda ctx, grad: (one_norm_back(grad, *ctx.saved_tensors, ctx.epsilon), None, None), setup_context=keep
)


@pytest.mark.parametrize("k", [0, 3, 8])
def test_a_gpu_launches_one_kernel_a_layer_and_waits_for_none(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta`, which takes a GPU's way and has no numbers; the weights of norms are frozen."""
    monkeypatch.setattr(norms, "rms_norm", lambda x, shape, weight, epsilon: one_norm(x, weight, epsilon))
    lm = llama(16, 0.05)
    assert norms.fuse(lm) == 2 * LAYERS + 1
    lm.to("meta")
    varlen.attend_by_runs(lm.model.get_base_model())
    packed = pack([([1] * 12, [[2] * 4] * (1 + k)) for _ in range(2)], multiple=16, runs=True).to("meta")
    with Count() as forward:
        out = lm(packed)
    with Count() as backward:
        out.sum().backward()
    assert forward.found["_varlen_attn"] == backward.found["_varlen_attn_backward"] == LAYERS
    assert forward.found["index_select"] == 2 * LAYERS * (k > 0)  # the prompt's keys and values for other answers
    casts = 2 * 7 * LAYERS  # as in test_counts.py
    assert forward.found["rms_norm"] == 1 + backward.found["rms_norm_backward"] == 2 * LAYERS + 1
    assert forward.kernels <= 800 and backward.kernels - casts <= 1300
    assert not {"_local_scalar_dense", "_unique2", "nonzero"} & {*forward.found, *backward.found}
    assert not {"where", "bitwise_and", "__iand__"} & {*forward.found}  # which make a mask


def test_the_kernel_of_the_device_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    lm: Any = model("llama", False)
    check_kernel(lm)
    check_kernel(lm.to(torch.bfloat16))
    monkeypatch.setattr(varlen, "causal_lower_right", causal_upper_left)  # as other kernels read a run of few queries
    with pytest.raises(ValueError, match=r"varlen differs from sdpa on cpu by .* Take --attention sdpa"):
        check_kernel(lm)
    monkeypatch.setattr(varlen, "_one_by_one", lambda *_: torch.ops.aten._flash_attention_forward())
    with pytest.raises(ValueError, match=r"varlen does not run on cpu: .* Take --attention sdpa"):
        check_kernel(lm)


#: Models of the zoo that attend otherwise than sdpa, or in heads that FlashAttention does not take.
OTHERS = {"codegen", "deepseek_v3", "falcon", "gemma2", "gpt_oss", "gptj", "minicpm3", "xglm"}


def test_it_serves_what_attends_as_sdpa_does(tmp_path: Path) -> None:
    """Of the zoo; every one that it serves is computed as over a mask, the check before a run included."""
    found = set()
    for name, kind in ZOO.items():
        if kind.refused:
            continue
        folder = str(make(name, tmp_path / name))
        if not varlen.fits(folder):
            found.add(name)
            continue
        lm = policy.load_base(folder)
        rows = [([5, 9, 30, 7], [[8, 3, 2], [21, 2]]), ([12, 4], [[6, 6, 6, 2]])]
        with torch.no_grad():
            wanted_BA = PackedLM(lm)(pack(rows))
            varlen.attend_by_runs(lm)
            torch.testing.assert_close(PackedLM(lm)(pack(rows, runs=True)), wanted_BA, rtol=1e-5, atol=1e-4, msg=name)
    assert found == OTHERS


def test_heads_that_flash_attention_does_not_take(tmp_path: Path) -> None:
    for size, fits in ((12, False), (16, True), (256, True), (320, False)):
        AutoConfig.for_model("llama", head_dim=size, hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path)
        assert varlen.fits(str(tmp_path)) == fits


def test_a_model_of_its_own_attention_is_refused(tmp_path: Path) -> None:
    lm = policy.load_base(make("gemma2", tmp_path))
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM attends by eager alone. Take --attention sdpa"):
        varlen.attend_by_runs(lm)


def test_runs_go_where_the_batch_goes() -> None:
    packed: Packed = pack([([1, 1], [[2, 3]])], runs=True).to("meta")
    assert packed.runs is not None and packed.runs.lists.device.type == "meta"
