"""The forward pass that all decoders share: many branches of a prompt in one row, on one cache of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from rayrec.models.folder import reach


def together(device: str) -> int:
    """Return how many prompts a search computes at once on a kind of device: few on a CPU, where padding costs most."""
    return 16 if device == "cpu" else 64


def reads_at_once(device: torch.device) -> bool:
    """Whether the host reads a number of a device at no cost: a CPU has computed it when the host comes to it."""
    return device.type == "cpu"


class Late:
    """Reads a flag of a device one call late: while the host waits, the device has the work of a whole step to do.

    Where the host reads at no cost, the flag is not late.
    """

    def __init__(self, device: torch.device):
        self.late = not reads_at_once(device)
        self._before: tuple[Tensor, torch.Event | None] | None = None

    def __call__(self, flag: Tensor) -> bool:
        """Return the flag of the call before, at the first call False; this call's where it is not late."""
        if not self.late:
            return bool(flag)
        before, copied = self._before, None
        copy = flag.to("cpu", non_blocking=True)
        if flag.device.type != "cpu":
            copied = torch.Event(flag.device)
            copied.record()
        self._before = copy, copied
        if before is None:
            return False
        if before[1]:
            before[1].synchronize()
        return bool(before[0])


@dataclass
class _Columns:
    """The columns in use of all layers, and by how many their buffers grow."""

    used: int
    spare: int


class _Buffer(DynamicLayer):
    """Keys and values of one layer in a buffer with spare columns: a step writes its own and moves no others.

    It knows the columns and not the :class:`PromptCache`: a circle of references would keep the buffers of every
    finished search until Python's collector comes by, half a gigabyte for each part of a model of 135 million weights.
    """

    def __init__(self, columns: _Columns):
        super().__init__()
        self.columns, self.room = columns, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        begin, end = self.columns.used, self.columns.used + key_states.shape[-2]
        if end > self.room:
            self.room = end + self.columns.spare
            self.keys, self.values = self._grown(self.keys, key_states), self._grown(self.values, value_states)
            self.is_initialized = True
        assert self.keys is not None and self.values is not None
        self.keys[:, :, begin:end], self.values[:, :, begin:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor | None, like: Tensor) -> Tensor:
        new = like.new_empty(*like.shape[:2], self.room, like.shape[3])
        if old is not None:
            new[:, :, : self.columns.used] = old[:, :, : self.columns.used]
        return new

    def get_seq_length(self) -> int:
        return self.columns.used


class PromptCache:
    """Keys and values of B prompts, each computed once, and of the tokens decoded after them.

    A row holds one prompt, its last token in column ``root``, then one column for every token that :meth:`forward` has
    read, whichever branch it belongs to. A token attends to its prompt and to the columns that the caller names as its
    ancestors; columns are never moved. Prompts stand at the left of their rows and the gap up to ``root`` is masked,
    so a prompt's numbers do not depend on its neighbours beyond rounding.

    ``logits_B1V`` follow the prompts. ``longest`` is the longest answer to come, in tokens; ``spare`` is the number of
    columns by which the buffers grow.

    Raises:
        ValueError: a model or prompt for which this pass would not be exact, with the reason.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], longest: int, spare: int = 0):
        _check(model, prompts, longest)
        self.model, self._columns = model, _Columns(0, spare)
        device, low = model.device, torch.finfo(model.dtype).min
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.root = max(map(len, prompts)) - 1
        self.prompt_mask = torch.zeros(len(prompts), 1, self.root + 1, dtype=model.dtype, device=device)
        self.prompt_mask[:, 0, :-1].masked_fill_(
            torch.arange(self.root, device=device) >= self.lengths[:, None] - 1, low
        )
        self.layers = Cache(layer_class_to_replicate=partial(_Buffer, self._columns))  # type: ignore[arg-type]
        if self.root:
            padded = [p[:-1] + [0] * (self.root + 1 - len(p)) for p in prompts]
            model(torch.tensor(padded, device=device), past_key_values=self.layers, use_cache=True, logits_to_keep=1)
            self._columns.used = self.root
        last = torch.tensor([p[-1:] for p in prompts], device=device)
        nothing = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)
        self.logits_B1V = self.forward(last, self.lengths[:, None] - 1, nothing)

    def forward(self, token_BN: Tensor, position_BN: Tensor, ancestors_BNS: Tensor) -> Tensor:
        """Return float32 logits after N tokens of each row, which take the next N columns.

        ``ancestors_BNS`` names, for each token, the columns of its branch after the root, itself included; ``root``
        fills the places that a shorter branch leaves.
        """
        B, N = token_BN.shape
        mask_BNT = self.prompt_mask.new_full((B, N, self.columns + N), torch.finfo(self.prompt_mask.dtype).min)
        mask_BNT[:, :, : self.root + 1] = self.prompt_mask
        mask_BNT.scatter_(2, ancestors_BNS, 0.0)
        out = self.model(
            token_BN,
            attention_mask=mask_BNT[:, None],
            position_ids=position_BN,
            past_key_values=self.layers,
            use_cache=True,
        )
        self._columns.used += N
        return out.logits.float()

    @property
    def columns(self) -> int:
        """Columns in use."""
        return self._columns.used

    def rewind(self, columns: int) -> None:
        """Forget the columns from ``columns`` on."""
        self._columns.used = columns


def batches(prompts: list[list[int]], size: int) -> list[list[int]]:
    """Return indices of ``prompts`` in groups of ``size`` of nearly equal lengths, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def check_kinds(config: Any) -> None:
    """Raise ValueError for a model with layers whose state is no cache of keys and values."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(f"Found layers of type {sorted(unknown)}, wanted attention in every layer.")


def _check(model: PreTrainedModel, prompts: list[list[int]], longest: int) -> None:
    """Raise ValueError for a model or prompt that the packed pass cannot compute exactly."""
    config = model.config
    length = max(map(len, prompts)) + longest
    if model.training:
        raise ValueError("Found a model in training mode, wanted eval mode. Call model.eval() before decoding.")
    if not all(prompts):
        raise ValueError("Found an empty prompt, wanted at least one token. Begin prompts with BOS.")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"Found attention '{config._attn_implementation}', which takes no 4-D mask. "
            "Load the model with attn_implementation='sdpa'."
        )
    check_kinds(config)
    limit, name = reach(config)
    if limit and length > limit:
        raise ValueError(
            f"Prompt and answer need {length} tokens, and the model sees {limit} ({name}). Shorten the prompts."
        )
