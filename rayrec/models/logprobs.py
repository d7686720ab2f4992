"""Log-probabilities of many answers to one prompt in one pass.

An example is laid out once as [prompt | answer 0 | ... | answer K]; an answer sees the prompt and itself, its positions
start after the prompt, and the head runs on the answers only. Several examples share a row. SFT is the case K = 0.
Shapes: R rows, T tokens of a row, B examples, A answers of an example, N answer tokens of the batch, V vocabulary,
H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayrec.models import adapters, varlen

#: Logits held at once; more are computed chunk by chunk, and again in the backward pass.
MAX_LOGITS = 2**25

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
Self = TypeVar("Self")


class Legal(Protocol):
    """Tokens that a catalogue allows in the places of N answer tokens (:class:`rayrec.decoding.Legal`)."""

    def cut(self: Self, begin: int, end: int) -> Self: ...


#: Some values of N answer tokens, [N] each, from their logits [N, V], the tokens [N] and what is legal in their places.
Values = Callable[[Tensor, Tensor, Any], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Packed:
    """One batch laid out for :class:`PackedLM`.

    ``ids_RT``, ``positions_RT``; ``example_RT`` (−1 is padding) and ``segment_RT`` (0 prompt, a + 1 answer a) decide
    which tokens attend to which. Answer token n is predicted at flat place ``source_N`` of the row tensor, is
    ``target_N``, and is number ``offset_N`` of answer ``answer_N`` (b · A + a). ``lengths_BA`` counts tokens, EOS
    included; 0 is an absent answer, and ``longest`` the largest. ``read_U`` are the places of ``source_N``, each once.
    ``runs`` stand in place of a mask, where they were asked for.
    """

    ids_RT: Tensor
    positions_RT: Tensor
    example_RT: Tensor
    segment_RT: Tensor
    source_N: Tensor
    target_N: Tensor
    answer_N: Tensor
    offset_N: Tensor
    lengths_BA: Tensor
    read_U: Tensor
    longest: int
    runs: varlen.Runs | None = None

    def to(self, device: torch.device | str) -> Packed:
        """Return the batch on ``device``; a GPU does not wait for it."""
        there: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        there |= {name: carried(value, device) for name, value in there.items() if isinstance(value, Tensor)}
        there["runs"] = self.runs and replace(self.runs, lists=carried(self.runs.lists, device))
        return Packed(**there)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return the additive mask [R, 1, T, T]: 0 where a token may look, the lowest number elsewhere."""
        places_T = torch.arange(self.ids_RT.shape[1], device=self.ids_RT.device)
        sees_RTT = self.example_RT[:, :, None] == self.example_RT[:, None, :]
        sees_RTT &= places_T[:, None] >= places_T[None, :]
        segment_R1T = self.segment_RT[:, None, :]
        sees_RTT &= (segment_R1T == 0) | (segment_R1T == self.segment_RT[:, :, None])
        return torch.where(sees_RTT[:, None], 0.0, torch.finfo(dtype).min).to(dtype)


def carried(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on ``device``, through pinned memory to a GPU, whose work the copy waits for alone."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(rows: Sequence[Row], token_budget: int = 0, pad_id: int = 0, multiple: int = 1, runs: bool = False) -> Packed:
    """Lay out (prompt, answers) examples; K may differ. Answers end with EOS, prompts are not empty.

    Rows take whole examples up to ``token_budget`` tokens or, where that is longer, the longest example. Attention over
    a dense mask grows with the square of the row, so rows no longer than the longest example are fastest. With ``runs``
    attention needs no mask, and all examples share one row. Rows are padded to a ``multiple`` of tokens, by which the
    kernels of GPUs work.

    Raises:
        ValueError: there is no example, or a prompt or an answer is empty.
    """
    empty = [b for b, (prompt, answers) in enumerate(rows) if not prompt or not all(answers)]
    if empty or not rows:
        raise ValueError(f"Examples {empty} of {len(rows)} have an empty prompt or answer. Every one needs a token.")
    # An answer's last token predicts nothing, so it is never an input.
    sizes = [len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in rows]
    lines = _fill(sizes, sum(sizes) if runs else max(token_budget, *sizes))
    A = max(len(answers) for _, answers in rows)
    T = -(-max(sum(sizes[b] for b in line) for line in lines) // multiple) * multiple
    table = {"ids": pad_id, "positions": 0, "example": -1, "segment": 0}
    table = {name: torch.full((len(lines), T), value) for name, value in table.items()}
    lengths_BA = torch.tensor([[*map(len, answers), *[0] * (A - len(answers))] for _, answers in rows])
    loose: tuple[list[int], ...] = ([], [], [], [])
    source, target, number, offset = loose
    for r, line in enumerate(lines):
        columns: tuple[list[int], ...] = ([], [], [], [])
        ids, positions, example, segment = columns
        for b in line:
            prompt, answers = rows[b]
            ids += prompt
            positions += range(len(prompt))
            segment += [0] * len(prompt)
            last = r * T + len(ids) - 1
            for a, answer in enumerate(answers):
                end, more = r * T + len(ids), len(answer) - 1
                source += [last, *range(end, end + more)]
                target += answer
                number += [b * A + a] * len(answer)
                offset += range(len(answer))
                ids += answer[:-1]
                positions += range(len(prompt), len(prompt) + more)
                segment += [a + 1] * more
            example += [b] * sizes[b]
        for name, values in zip(table, columns, strict=True):
            table[name][r, : len(ids)] = torch.tensor(values)
    source_N, target_N, answer_N, offset_N = map(torch.tensor, loose)
    read_U, longest = torch.tensor(sorted({*source})), max(max(map(len, answers), default=0) for _, answers in rows)
    ids_RT, positions_RT, example_RT, segment_RT = table.values()
    loose_N = source_N, target_N, answer_N, offset_N
    found = varlen.runs(example_RT, segment_RT) if runs else None
    return Packed(ids_RT, positions_RT, example_RT, segment_RT, *loose_N, lengths_BA, read_U, longest, found)


def _fill(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Return the examples of each row: longest first, each in the first row with room."""
    lines: list[list[int]] = []
    room: list[int] = []
    for b in sorted(range(len(sizes)), key=lambda b: -sizes[b]):
        r = next((r for r, left in enumerate(room) if left >= sizes[b]), len(lines))
        if r == len(lines):
            lines.append([])
            room.append(budget)
        lines[r].append(b)
        room[r] -= sizes[b]
    return lines


class PackedLM(nn.Module):
    """A Hugging Face causal language model, plain or with PEFT adapters, that scores packed answers.

    Submodules are called as modules, never their weights, so DeepSpeed ZeRO-3 may gather parameters by hooks.
    """

    def __init__(self, model: Any, activation_checkpointing: bool = False):
        super().__init__()
        adapters.lighten(model, fused=plain(model).device.type != "cpu")
        self.model = model
        # Recomputed in the backward pass, when the hooks of the forward pass are gone.
        self.narrows = not activation_checkpointing
        if activation_checkpointing:
            plain(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(self, packed: Packed, legal: Legal | None = None, values: Values | None = None) -> Any:
        """Return log π(answer | prompt) as ``logprob_BA`` in float32 nats, summed over tokens; 0 for absent answers.

        With ``legal``, of the batch's answer tokens, and ``values`` of these it returns their sums [B, A] instead.
        """
        adapters.copy(self.model)
        logits = Logits(plain(self.model))
        if legal is None or values is None:
            return _per_answer(packed, token_logprobs(logits, self.hidden(packed), packed.target_N))
        found = token_values(logits, self.hidden(packed), packed.target_N, legal, values)
        return tuple(_per_answer(packed, value_N) for value_N in found)

    def hidden(self, packed: Packed) -> Tensor:
        """Return ``hidden_NH``, what the head reads for each answer token."""
        lm = plain(self.model)
        with _last_mlp_at(packed, lm if self.narrows else None):
            hidden_RTH = decoder(lm)(
                input_ids=packed.ids_RT,
                attention_mask=packed.runs.mask() if packed.runs else packed.mask(lm.dtype),
                position_ids=packed.positions_RT,
                use_cache=False,
            )[0]
        return take_rows(hidden_RTH.flatten(0, 1), packed.source_N)


def _per_answer(packed: Packed, value_N: Tensor) -> Tensor:
    """Return the sum of ``value_N`` over the tokens of each answer, [B, A]."""
    # Every token has its own cell, so the sum has one order and no answer can touch another.
    B, A = packed.lengths_BA.shape
    cells = value_N.new_zeros(B * A, packed.longest)
    return cells.index_put((packed.answer_N, packed.offset_N), value_N).sum(1).view(B, A)


class Logits:
    """The head of a causal LM and what its class does to the head's input and output, by its settings.

    Gemma-2 and its kin cap logits, Cohere multiplies and Granite divides them, MiniCPM divides what the head reads.
    """

    def __init__(self, lm: Any):
        text = lm.config.get_text_config()
        self.head: nn.Module = lm.get_output_embeddings()
        weight: Any = self.head.weight
        self.words = int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 cuts a weight up
        self.cap: float | None = getattr(text, "final_logit_softcapping", None)
        divided, self.read_by = getattr(text, "logits_scaling", None) or 1, 1
        if text.model_type.startswith("minicpm"):
            divided, self.read_by = 1, divided
        self.scale = (getattr(text, "logit_scale", None) or 1) / divided

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Return ``logits_NV`` in float32."""
        logits_NV = self.head(hidden_NH if self.read_by == 1 else hidden_NH / self.read_by).float()
        if self.scale != 1:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.cap is None else self.cap * torch.tanh(logits_NV / self.cap)


def decoder(lm: Any) -> Any:
    """Return the part of a causal LM below its head, of a model with vision the language model alone."""
    if lm.config.get_text_config() is not lm.config:
        return lm.get_decoder()
    return lm.model if lm.base_model is lm else lm.base_model  # Llama 4 names a base that its text model has not


def take_rows(values_PH: Tensor, places_N: Tensor) -> Tensor:
    """Return the rows of ``values_PH`` at ``places_N``: index_select, whose backward pass on a CPU takes far longer."""
    return nn.functional.embedding(places_N, values_PH)


def last_mlp(lm: Any) -> nn.Module | None:
    """Return the part of the last block that works place by place; None where a model does not call it ``mlp``."""
    inner = decoder(lm)
    blocks = getattr(inner, "layers", None) or getattr(inner, "h", None)
    return getattr(blocks[-1], "mlp", None) if blocks else None


@contextmanager
def _last_mlp_at(packed: Packed, lm: Any) -> Iterator[None]:
    """Let the last block's MLP see only the places that the head reads: its output elsewhere reaches no answer.

    In prompts of 140 tokens with sixteen titles of 10 these are half of all places. Blocks without a module ``mlp`` are
    left as they are.
    """
    mlp = None if lm is None else last_mlp(lm)
    if mlp is None:
        yield
        return
    read_U, (R, T) = packed.read_U, packed.ids_RT.shape

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (take_rows(args[0].flatten(0, 1), read_U)[None], *args[1:])

    def widen(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        made_1UH, *more = (output,) if isinstance(output, Tensor) else output
        wide_RTH = made_1UH.new_zeros(R * T, made_1UH.shape[-1]).index_copy(0, read_U, made_1UH[0]).view(R, T, -1)
        return (wide_RTH, *more) if more else wide_RTH

    hooks = mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def token_logprobs(logits: Logits, hidden_NH: Tensor, target_N: Tensor) -> Tensor:
    """Return the float32 log-probability of each target, with at most MAX_LOGITS logits held at once."""
    size = max(1, MAX_LOGITS // logits.words)
    if len(target_N) <= size:
        return _chunk_logprobs(logits, hidden_NH, target_N)
    chunks = zip(hidden_NH.split(size), target_N.split(size), strict=True)
    return torch.cat([checkpoint(_chunk_logprobs, logits, *chunk, use_reentrant=False) for chunk in chunks])


def token_values(
    logits: Logits, hidden_NH: Tensor, target_N: Tensor, legal: Legal, values: Values
) -> tuple[Tensor, ...]:
    """Return the values of every answer token, with at most MAX_LOGITS logits held at once."""

    def chunk(hidden_NH: Tensor, target_N: Tensor, legal: Legal) -> tuple[Tensor, ...]:
        return values(logits(hidden_NH), target_N, legal)

    N, size = len(target_N), max(1, MAX_LOGITS // logits.words)
    if size >= N:
        return chunk(hidden_NH, target_N, legal)
    parts = [(n, min(n + size, N)) for n in range(0, N, size)]
    made = [checkpoint(chunk, hidden_NH[a:b], target_N[a:b], legal.cut(a, b), use_reentrant=False) for a, b in parts]
    return tuple(map(torch.cat, zip(*made, strict=True)))


def _chunk_logprobs(logits: Logits, hidden_NH: Tensor, target_N: Tensor) -> Tensor:
    # Its backward pass takes a quarter less time than that of gather and logsumexp.
    return -nn.functional.cross_entropy(logits(hidden_NH), target_N, reduction="none")


def plain(model: Any) -> Any:
    """Return the causal LM itself, under its adapters if it has any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
