"""Whether this library's passes compute what a model computes, which is checked before the first actor starts.

A GPU's own kernel of attention is checked on the GPU, when a worker starts.
A wrong mask or position moves a log-probability by far more than rounding does in float32, so the check works in
float32 whatever the run works in, and allows what the model's own plain passes, padded and not, differ by.
Shapes: B examples, A answers, N answer tokens, L tokens of a sequence, S of a branch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayrec.decoding.packed import PromptCache, check_kinds
from rayrec.models import varlen, weights
from rayrec.models.folder import head_size_of, local_folder
from rayrec.models.logprobs import Logits, PackedLM, Row, pack, plain
from rayrec.models.policy import add_lora, open_base

#: Times the difference of the model's own plain passes that a pass of ours may differ by.
TIMES = 4
#: The least difference that is allowed, as a share of the largest log-probability: some units of float32's rounding.
LEAST = 1e-6
#: Weights above which a model is checked by its first layers alone: 4 GiB of float32.
LARGE = 2**30
#: Share of the largest number by which attention in bfloat16 may differ from that in float32.
ROUNDING = 0.03


OTHER = "Take another model: docs/models.md lists those that run."


def check_base(path: str, attention: str = "sdpa", lora: bool = False) -> None:
    """Refuse a folder or hub id whose weights are not whole or not numbers, or that our passes do not compute exactly.

    The same check serves training, evaluation without training and recommendation. It reads every weight once, and
    opens the model in float32 in this process: one of more than LARGE weights with its first layers alone, which
    show every kind of layer and the head, so that a driver without much memory can check a model of any size.

    Raises:
        ValueError: with the tensor's name, or as :func:`check_exact`, or the model does not run with adapters.
    """
    try:
        folder = local_folder(path)
    except OSError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"model {path}: the hub does not give its weights. Download them first. ({why})") from error
    large = weights.check_names(folder) > LARGE
    weights.check_numbers(folder)
    model = open_base(folder, torch.float32, few=large).eval()
    check_exact(model)
    if attention == "varlen":
        varlen.attend_by_runs(model)
        try:
            check_exact(model)
        except ValueError as error:
            raise ValueError(str(error).replace(OTHER, "Add --attention sdpa.")) from error
    if lora:
        _check_adapters(model)


def _check_adapters(model: Any) -> None:
    """Refuse a model that stops with adapters, such as one whose router is a linear layer of two outputs."""
    name, rows = type(model).__name__, _rows(int(model.config.get_text_config().vocab_size))
    try:
        with torch.no_grad():
            PackedLM(add_lora(model, 1, 1, 0.0).eval())(pack(rows))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name} does not run with LoRA adapters ({error}). Add --lora-rank 0.") from error


def check_exact(model: Any) -> None:
    """Refuse a float32 model that the packed pass or the prompt cache does not compute as the model does.

    A model that attends over runs trains alone, without a prompt cache.

    Raises:
        ValueError: with the model's class and the difference, or the error that a pass stops with.
    """
    lm, name = plain(model), type(plain(model)).__name__
    if any(buffer.dim() == 4 and buffer.shape[-1] == buffer.shape[-2] > 1 for buffer in lm.buffers()):
        raise ValueError(f"{name} masks by a table of its own, which a row of several answers outgrows. {OTHER}")
    rows = _rows(int(lm.config.get_text_config().vocab_size))
    passes = {"packed pass": _packed} | ({} if varlen.by_runs(lm) else {"prompt cache": _cached})
    training = model.training
    model.eval()
    try:
        check_kinds(lm.config)
        with torch.no_grad():
            plain_NV = _plain(lm, rows)
            noise = float((_padded(lm, rows) - plain_NV).abs().max())
            allowed = TIMES * max(noise, LEAST / TIMES * float(plain_NV.abs().max()))
            errors = {what: float((made(lm, rows) - plain_NV).abs().max()) for what, made in passes.items()}
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} does not run packed: {why.rstrip('.')}. {OTHER}") from error
    finally:
        model.train(training)
    for what, error in errors.items():
        if not error <= allowed:
            raise ValueError(
                f"{name}: log-probabilities of the {what} differ by {error:.2g} nats from those of plain passes, which "
                f"differ by {noise:.2g} among themselves: the model does not honour masks or positions. {OTHER}"
            )


def check_kernel(lm: Any) -> None:
    """Compare the device's own kernel with sdpa in float32, forward and back, in the shapes of a causal LM's heads.

    Raises:
        ValueError: it does not run there, or differs by more than rounding.
    """
    text, device = lm.config.get_text_config(), lm.device
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    size = head_size_of(text)
    packed = pack([([1] * 19, [[1] * 5, [1] * 9, [1]]), ([1] * 3, [[1] * 17])], runs=True).to(device)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, n, packed.ids_RT.shape[1], size, generator=generator) for n in (heads, groups, groups)]
    module = torch.nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]

    def computed(dtype: torch.dtype, mask: Tensor) -> list[Tensor]:
        query, key, value = inputs = [one.to(device, dtype, copy=True).requires_grad_() for one in given]
        out, _ = varlen.attend(module, query, key, value, mask)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]

    assert packed.runs is not None
    wanted = computed(torch.float32, packed.mask(torch.float32))
    try:
        found = computed(lm.dtype, packed.runs.mask())
    except (RuntimeError, TypeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--attention varlen does not run on {device}: {why} Take --attention sdpa.") from error
    for one, other in zip(found, wanted, strict=True):
        far = float((one.float() - other).abs().max() / other.abs().max())
        if not far < ROUNDING:
            raise ValueError(f"--attention varlen differs from sdpa on {device} by {far:.2g}. Take --attention sdpa.")


def _rows(vocabulary: int) -> list[Row]:
    """Two examples of random tokens, with prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    lines = torch.randint(vocabulary, (2, 26), generator=generator).tolist()
    starts = (5, 9)
    return [(line[:n], [line[9:15], line[15:19], line[19:]]) for line, n in zip(lines, starts, strict=True)]


def _pieces(rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    return [(list(prompt), list(answer)) for prompt, answers in rows for answer in answers]


def _plain(lm: Any, rows: list[Row]) -> Tensor:
    """Log-probabilities ``[N, V]`` at every answer token, each answer in a pass of its own."""
    made = []
    for prompt, answer in _pieces(rows):
        logits_LV = lm(input_ids=torch.tensor([prompt + answer], device=lm.device)).logits[0]
        made.append(logits_LV[len(prompt) - 1 : -1])
    return _logprobs(torch.cat(made))


def _padded(lm: Any, rows: list[Row]) -> Tensor:
    """The same with all answers in one batch, filled up at the right, where causal attention never looks."""
    pieces = _pieces(rows)
    longest = max(len(prompt) + len(answer) for prompt, answer in pieces)
    ids = [[*prompt, *answer, *[0] * (longest - len(prompt) - len(answer))] for prompt, answer in pieces]
    logits_ALV = lm(input_ids=torch.tensor(ids, device=lm.device)).logits
    some = [logits_LV[len(p) - 1 : len(p) - 1 + len(a)] for logits_LV, (p, a) in zip(logits_ALV, pieces, strict=True)]
    return _logprobs(torch.cat(some))


def _packed(lm: Any, rows: list[Row]) -> Tensor:
    """The same in one row, as training and scores compute it."""
    tokens = sum(len(prompt) + sum(map(len, answers)) for prompt, answers in rows)
    packed = pack(rows, tokens, runs=varlen.by_runs(lm)).to(lm.device)
    order_N = torch.argsort(packed.answer_N * int(packed.lengths_BA.max()) + packed.offset_N)
    return _logprobs(Logits(lm)(PackedLM(lm).hidden(packed))[order_N])


def _cached(lm: Any, rows: list[Row]) -> Tensor:
    """The same by a cache of the prompts with the answers as branches, as beams and generation compute it."""
    answers_BA = [[list(answer) for answer in answers] for _, answers in rows]
    longest = max(len(answer) for answers in answers_BA for answer in answers)
    cache = PromptCache(lm, [list(prompt) for prompt, _ in rows], longest)
    tokens, depths, paths = [], [], []
    for prompt, answers in zip((prompt for prompt, _ in rows), answers_BA, strict=True):
        places: list[list[int]] = []
        for answer in answers:
            own = range(cache.columns + len(places), cache.columns + len(places) + len(answer) - 1)
            places += [[*own[: i + 1], *[cache.root] * (longest - i - 1)] for i in range(len(own))]
        paths.append(places)
        tokens.append([token for answer in answers for token in answer[:-1]])
        depths.append([len(prompt) + i for answer in answers for i in range(len(answer) - 1)])
    last_B1V = cache.logits_B1V
    logits_BNV = cache.forward(*(torch.tensor(x, device=lm.device) for x in (tokens, depths, paths)))
    made = []
    for last_1V, logits_NV, answers in zip(last_B1V, logits_BNV, answers_BA, strict=True):
        for after_NV in logits_NV.split([len(answer) - 1 for answer in answers]):
            made += [last_1V, after_NV]
    return _logprobs(torch.cat(made))


def _logprobs(logits_NV: Tensor) -> Tensor:
    """In float64: the sum over the vocabulary adds no rounding of its own."""
    return logits_NV.double().log_softmax(-1).cpu()
