"""What a training pass launches and waits for, counted by dispatch: a GPU pays for every kernel and every wait."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from rayrec.data import schema
from rayrec.decoding import Trie, beam_search, packed, steps
from rayrec.models import adapters, lora, policy
from rayrec.models.logprobs import Packed, PackedLM, pack
from rayrec.objectives import OBJECTIVES

#: Operations that launch nothing.
VIEWS = {"view", "_unsafe_view", "reshape", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze"}
VIEWS |= {"permute", "detach", "alias", "split", "as_strided", "unbind", "empty", "empty_like", "new_empty"}
VIEWS |= {"empty_strided", "new_empty_strided", "is_same_size", "lift_fresh", "_has_compatible_shallow_copy_type"}
#: Most kernels of a pass forward and back, over 16 layers: of a whole model, and of adapters without and with dropout.
MOST = {"whole": (651, 1329), "adapters": (877, 1651), "dropout": (989, 1872)}
LAYERS = 16


class Count(TorchDispatchMode):
    """Counts the operations of a block by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """Those that launch something."""
        return sum(count for name, count in self.found.items() if name not in VIEWS)


def model(rank: int, dropout: float = 0.0, layers: int = LAYERS) -> PackedLM:
    """A small Llama of many layers, its adapters in the form for GPUs."""
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 512}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": layers}
    torch.manual_seed(0)
    lm: Any = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    if rank:
        lm = policy.add_lora(lm, rank, 2 * rank, dropout)
        adapters.lighten(lm, fused=True)
    return PackedLM(lm).train()


def batch(k: int) -> Packed:
    return pack([([1] * 12, [[2] * 4] * (1 + k)) for _ in range(2)], multiple=16)


@pytest.mark.parametrize("kind", MOST)
def test_kernels_of_a_training_pass(kind: str) -> None:
    lm, packed = model(0 if kind == "whole" else 16, 0.05 if kind == "dropout" else 0.0), batch(0)
    lm(packed).sum().backward()
    with Count() as forward:
        out = lm(packed)
    with Count() as backward:
        out.sum().backward()
    # A GPU's products give gradients of adapters in float32 by themselves; a CPU's are cast.
    casts = 0 if kind == "whole" else 2 * 7 * LAYERS
    found = forward.kernels, backward.kernels - casts
    assert found[0] <= MOST[kind][0] and found[1] <= MOST[kind][1], (kind, found)
    assert not {"_local_scalar_dense", "_unique2", "nonzero"} & {*forward.found, *backward.found}


def test_adapters_in_the_weights_launch_nothing() -> None:
    def launched(lm: PackedLM) -> int:
        with torch.no_grad(), Count() as count:
            lm(batch(3))
        return count.kernels

    whole, beside, inside = model(0).eval(), model(8).eval(), model(8).eval()
    adapters.copy(beside.model)
    lora.fold(inside.model, {})
    assert launched(inside) <= launched(whole) + 2 < launched(beside) - 7 * LAYERS  # two of peft's own


def test_kernels_of_a_step_of_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU, over merged weights, with the choice of the next beams; over adapters the pass alone launches 1,472."""
    lm, ends = model(8).eval(), list[int]()
    lora.fold(lm.model, {})
    monkeypatch.setattr(packed, "reads_at_once", lambda device: False)
    own = steps._read
    with torch.no_grad(), Count() as count:

        def noted(*args: Any) -> Any:
            ends.append(count.kernels)
            return own(*args)

        monkeypatch.setattr(steps, "_read", noted)
        trie = Trie.build([[*f"{i:04b}".encode(), 2] for i in range(16)])
        beam_search(lm.model.get_base_model(), [[1, 5, 9], [1, 4]], trie, 5)
    found = [b - a for a, b in pairwise(ends)]
    assert len(found) == 2 and max(found) <= 760, found


def test_passes_have_few_shapes() -> None:
    """Lengths of 150 to 250 tokens in rows of whole sixteens."""
    lengths = {pack([([1] * n, [[2] * 4])], multiple=16).ids_RT.shape[1] for n in range(150, 250)}
    assert len(lengths) <= 8 and all(length % 16 == 0 for length in lengths)
    plain, padded = (pack([([1] * 13, [[2, 3], [4]])], multiple=m) for m in (1, 16))
    assert plain.ids_RT.shape == (1, 14) and padded.ids_RT.shape == (1, 16)
    lm = model(0, layers=2).eval()
    assert torch.allclose(lm(plain), lm(padded), atol=0.02)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_reads_nothing_back(name: str) -> None:
    """On the device `meta`, which has no numbers: whatever asks for one stops."""
    lm, packed = model(4, 0.05, layers=2).to("meta"), batch(2).to("meta")
    objective, logprob_BA = OBJECTIVES[name](), lm(packed)
    further = sorted(objective.reads - set(schema.PREFERENCES.names))
    row: dict[str, Any] = {"answers": [[2] * 4] * 3, "scores": [5.0, 3.0, 1.0], "smoothing": [0.1, 0.2]}
    rows = [row | dict.fromkeys(further, [1.0] * 3)] * 2
    passed = [objective.shape.row(row) for row in rows]
    width = len(passed[0]["answers"])
    made = objective.shape.of(logprob_BA[:, :width], passed, torch.zeros(2, width).to("meta"), 0.5, further)
    logged, loss_B = made.logged(objective.scale), objective(made)
    loss_B.sum().backward()
    assert {one.device.type for one in (*logged.values(), loss_B)} == {"meta"} and logged
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in lm.parameters() if p.requires_grad)
