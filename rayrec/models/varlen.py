"""Attention of packed rows as runs of tokens, without a mask: the varlen form of FlashAttention, on GPUs.

A prompt and its first answer are one run, of which every token sees the earlier ones. Each further answer is a run of
its own, whose tokens see the prompt and the earlier ones of the answer. The tokens of a run lie side by side.
Shapes: R rows, T tokens of a row, P = R · T places, S runs, C keys of all runs, H heads, G heads of keys, D numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rayrec.models.folder import head_size_of
from rayrec.models.weights import quiet

#: What transformers knows this attention by.
NAME = "varlen"
#: Numbers of the largest head of FlashAttention.
LARGEST_HEAD = 256


@dataclass(frozen=True)
class Runs:
    """The runs of packed rows.

    ``lists`` holds, one after another and in int32, where the queries of each run begin and the last ends [S + 1],
    the same of its keys [S + 1], and the places of all keys [C]. ``queries`` and ``keys`` are those of the largest run.
    """

    lists: Tensor
    count: int
    queries: int
    keys: int

    def mask(self) -> Tensor:
        """Return the runs in the form of a mask, of four dimensions, which transformers hands on as it is.

        Its values are the lists; its shape, over which they are repeated without a copy, is the three numbers.
        """
        return self.lists.expand(self.count, self.queries, self.keys, -1)


def runs(example_RT: Tensor, segment_RT: Tensor) -> Runs:
    """Return the runs of rows laid out by :func:`rayrec.models.logprobs.pack`; a row's padding is a run of its own."""
    example_P, segment_P = example_RT.flatten().numpy(), segment_RT.flatten().numpy()
    run_P = np.maximum(segment_P, 1)  # the first answer goes on where its prompt ends
    begins_P = (np.diff(example_P, prepend=-2) != 0) | (np.diff(run_P, prepend=0) != 0)
    begins_P[:: example_RT.shape[1]] = True
    starts = np.flatnonzero(begins_P)
    ends = np.append(starts[1:], len(example_P))
    keys, prompt = [], np.arange(0)
    for start, end in zip(starts, ends, strict=True):
        own = np.arange(start, end)
        if run_P[start] == 1:
            prompt = own[segment_P[start:end] == 0]
        keys.append(own if run_P[start] == 1 else np.concatenate([prompt, own]))
    sizes = [len(one) for one in keys]
    lists = np.concatenate([starts, ends[-1:], [0], np.cumsum(sizes), *keys]).astype(np.int32)
    return Runs(torch.from_numpy(lists), len(starts), int((ends - starts).max()), max(sizes))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend over the runs that stand in place of a mask, [R, H, T, D] to [R, T, H, D]; over others as sdpa does."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    S, queries, keys, length = attention_mask.shape
    begin_q, begin_k, place_C = attention_mask[0, 0, 0].split([S + 1, S + 1, length - 2 * (S + 1)])
    q_PHD, k_PGD, v_PGD = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if len(place_C) > len(q_PHD):  # else every place is one key, in order
        k_PGD, v_PGD = k_PGD.index_select(0, place_C), v_PGD.index_select(0, place_C)
    if query.device.type == "cpu":
        out_PHD = _one_by_one(q_PHD, k_PGD, v_PGD, begin_q, begin_k, scaling)
    else:
        window = (-1, 0)  # a run's last token sees all its keys
        where = begin_q, begin_k, queries, keys
        out_PHD: Any = varlen_attn(q_PHD, k_PGD, v_PGD, *where, scale=scaling, window_size=window, enable_gqa=True)
    return out_PHD.unflatten(0, (query.shape[0], query.shape[2])), None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, begin_q: Tensor, begin_k: Tensor, scale: float | None) -> Tensor:
    """The same on a CPU, where FlashAttention does not run: slow, to check models and this module."""
    made = []
    for (a, b), (c, d) in zip(pairwise(begin_q.tolist()), pairwise(begin_k.tolist()), strict=True):
        one = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
        bias: Any = causal_lower_right(b - a, d - c)
        made.append(scaled_dot_product_attention(*one, attn_mask=bias, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(made)


def attend_by_runs(lm: Any) -> None:
    """Let a causal LM attend over runs where it finds them in place of a mask.

    Raises:
        ValueError: its class takes no attention from outside, or attends otherwise than sdpa.
    """
    found = lm.config._attn_implementation
    if found == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        lm.set_attn_implementation(NAME)
    if not by_runs(lm):
        raise ValueError(f"--attention varlen: {type(lm).__name__} attends by {found} alone. Take --attention sdpa.")


def by_runs(lm: Any) -> bool:
    """Whether a causal LM attends over runs."""
    return lm.config._attn_implementation == NAME


def fits(path: str) -> bool:
    """Whether FlashAttention computes the attention of a folder or hub id, by its configuration alone."""
    settings: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    text = settings.get_text_config()
    size = head_size_of(text)
    latent = hasattr(text, "v_head_dim")  # its keys are longer than its values
    if latent or size % 8 or size > LARGEST_HEAD or getattr(text, "attn_logit_softcapping", None):
        return False
    text.num_hidden_layers = 1
    with torch.device("meta"), quiet():
        try:
            lm = AutoModelForCausalLM.from_config(settings, trust_remote_code=False, attn_implementation="sdpa")
            attend_by_runs(lm)
        except ValueError:
            return False
    return True
