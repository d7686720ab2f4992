"""Proof of delivery: what two processes state about the weights that each holds, and where they differ.

A statement has the log-probability of the run's probe and digests of the weights. The digest of a matrix reads some of
its columns, whole, so every row and every matrix counts; a vector is read whole. Counts, sums and sums of squares do
not depend on how an engine fuses, splits or orders rows, and a layer that is packed for a processor can be read through
its own product with unit vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Digests by the form in which weights are held: ``whole`` model, or ``adapter`` with its scale in its second matrix.
FORMS = ("whole", "adapter")
#: Allowed difference of two log-probabilities, in nats: of the answer, and in bfloat16 for each of its tokens.
NATS = {"float32": 1e-3, "bfloat16": 0.05}
#: Allowed difference of two digests, relative to the sum of squares; of adapters that an engine rounds to 16 bits.
EXACT, ROUNDED = 1e-9, 1e-3
#: Columns of a matrix that are read, about.
_COLUMNS = 16


@dataclass(frozen=True)
class Probe:
    """A prompt and an answer of the run, as token ids, whose log-probability is stated."""

    prompt: list[int]
    answer: list[int]

    @property
    def key(self) -> str:
        """A hash of its tokens: statements on other probes do not compare."""
        return hashlib.sha256(repr((self.prompt, self.answer)).encode()).hexdigest()[:16]


def columns(width: int) -> list[int]:
    """Return the columns that are read of a matrix of so many."""
    return list(range(0, width, -(-width // _COLUMNS)))


def sample(weight: Tensor) -> Tensor:
    """Return what is read of a weight: some columns of a matrix, all of a vector."""
    return weight[..., columns(weight.shape[-1])] if weight.ndim > 1 else weight


def digest(samples: Iterable[Tensor]) -> list[float]:
    """Return count, sum and sum of squares of some numbers, in float64."""
    count, total, squares = 0, 0.0, 0.0
    for one in samples:
        read = one.detach().double()
        count += read.numel()
        total += float(read.sum())
        squares += float(read.square().sum())
    return [count, total, squares]


def folder_statement(folder: str | Path, model: Any, probe: Probe, logprob: float) -> dict[str, Any]:
    """Return the statement of a process that has written ``model`` to a policy folder, in every form that lies there.

    ``logprob``: of the probe, by the weights in memory.
    """
    from safetensors.torch import load_file

    from rayrec.models.policy import ADAPTER, FULL

    folder, stated = Path(folder), {"probe": probe.key, "logprob": logprob}
    if (folder / ADAPTER).exists():
        stated["adapter"] = _of_adapters(load_file(folder / ADAPTER), _scale(model))
    for place in (folder / FULL, folder / "merged" / FULL):
        if place.exists():
            stated["whole"] = _of_model(load_file(place), model)
    return stated


def reads(model: Any, probe: Probe) -> bool:
    """Return whether the model knows all tokens of the probe: those of items are attached after pre-training."""
    from rayrec.models import item_vectors

    return item_vectors.attached(model) is not None or max(probe.prompt) < model.get_input_embeddings().num_embeddings


def model_statement(model: Any, probe: Probe) -> dict[str, Any] | None:
    """Return the statement of a process that holds ``model``, a causal LM of transformers or of peft.

    None where the model does not know all tokens of the probe.
    """
    if not reads(model, probe):
        return None
    return {"probe": probe.key, "logprob": logprob(model, probe), **model_digest(model)}


def model_digest(model: Any) -> dict[str, list[float]]:
    """Return the digest of a model's adapters where any is not zero, else of the whole model."""
    from rayrec.models import item_vectors

    weights = {name: value for name, value in model.named_parameters() if not item_vectors.owns(name)}
    adapters = {name: value for name, value in weights.items() if "lora_" in name}
    if any(bool(value.any()) for name, value in adapters.items() if "lora_B" in name):
        return {"adapter": _of_adapters(adapters, _scale(model))}
    return {"whole": _of_model({n: v for n, v in weights.items() if n not in adapters}, model)}


def logprob(model: Any, probe: Probe) -> float:
    """Return the log-probability of the probe's answer in nats, by a plain pass."""
    import torch

    ids = torch.tensor([probe.prompt + probe.answer], device=model.device)
    with torch.inference_mode():
        logits_TV = model(input_ids=ids).logits[0, len(probe.prompt) - 1 : -1].float()
    return float(logits_TV.log_softmax(-1)[range(len(probe.answer)), probe.answer].sum())


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], dtype: str, probe: Probe) -> str:
    """Return in what two statements differ beyond the allowed, empty if in nothing.

    Digests of another count are of weights that are held in another way, and not compared.
    """
    allowed = NATS[dtype] * (len(probe.answer) if dtype == "bfloat16" else 1)
    parts = []
    if not abs(found["logprob"] - wanted["logprob"]) <= allowed:
        parts.append(
            f"log-probability of the probe {found['logprob']:.4f}, wanted {wanted['logprob']:.4f} within {allowed:.4g}"
        )
    for form in compared(found, wanted):
        (count, total, squares), (_, other, of_squares) = found[form], wanted[form]
        near = ROUNDED if form == "adapter" and found.get("rounded") else EXACT
        apart = abs(squares - of_squares) / of_squares if of_squares else abs(squares)
        shifted = abs(total - other) / (count * of_squares) ** 0.5 if of_squares else abs(total)
        if not (apart <= near and shifted <= near):
            parts.append(f"digest of the {form} weights off by {max(apart, shifted):.2g}, allowed {near:g}")
    return "; ".join(parts)


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the forms of which both statements have a digest of as many numbers."""
    return [form for form in FORMS if form in found and form in wanted and found[form][0] == wanted[form][0]]


def _of_adapters(weights: Mapping[str, Tensor], scale: float) -> list[float]:
    return digest(sample(value) * scale if "lora_B" in name else sample(value) for name, value in weights.items())


def _of_model(weights: Mapping[str, Tensor], model: Any) -> list[float]:
    """The digest of all weights, named as in a file or in ``model``, but buffers, which not every engine holds."""
    prefix = f"{getattr(model, 'get_base_model', lambda: model)().base_model_prefix}."

    def plain(name: str) -> str:
        return name.removeprefix("base_model.model.").replace(".base_layer", "").removeprefix(prefix)

    buffers = {plain(name) for name, _ in model.named_buffers()}
    # Those of GPT-2 have a row for each input.
    turned = {f"{plain(name)}.weight" for name, one in model.named_modules() if type(one).__name__ == "Conv1D"}
    kept = {plain(name): value for name, value in weights.items()}
    return digest(sample(v.T if name in turned else v) for name, v in kept.items() if name not in buffers)


def _scale(model: Any) -> float:
    settings = model.peft_config["default"]
    return settings.lora_alpha / settings.r
