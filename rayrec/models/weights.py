"""The weight files of a model's folder: which belong to it, whether all of its tensors are there, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

from rayrec.models.card import REMOVED

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: str | Path) -> list[Path]:
    """Return the files that hold a model's weights: ``model.safetensors``, or those that the index names.

    Other files beside them, such as ``consolidated.safetensors`` or shards of another saving, are no part of the model.

    Raises:
        ValueError: the folder has neither, the index is damaged, or a file of it is missing.
    """
    folder = Path(folder)
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    check_kept(folder)
    if not (folder / INDEX).exists():
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise ValueError(
            f"{folder}: found {found}, but no {WHOLE} or {INDEX}, so no *.safetensors of a Hugging Face model. Convert "
            "the weights with save_pretrained."
        )
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {INDEX} names no files of weights ({error}). Copy it there anew.") from error
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ValueError(f"{folder}: {INDEX} names {missing[:3]}, which are missing. Copy them there.")
    return [folder / name for name in names]


def check_kept(folder: Path) -> None:
    """Refuse a folder whose weights a run has removed. Raises ValueError: with how to keep them."""
    if (folder / REMOVED).exists() and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder}: the weights of this policy were removed; a run keeps those of its last two policies and of its "
            "best one. Name one of these, or run again with --keep all and another --name."
        )


def tensors(folder: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and tensors of a folder's weight files, one in memory at a time."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118


def check_names(folder: str | Path) -> int:
    """Refuse a folder that lacks a tensor which its model wants, by the files' headers alone; returns their numbers.

    Raises:
        ValueError: with the tensor's name, or a file is damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    held = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    one = opened.get_slice(name)
                    dtype = _DTYPES.get(one.get_dtype(), "uint8")
                    held[name] = torch.empty(one.get_shape(), dtype=getattr(torch, dtype), device="meta")
        except SafetensorError as error:
            raise ValueError(
                f"{file}: damaged, cut short, or a pointer of git-lfs in its place ({error}). Copy it there anew, or "
                "type `git lfs pull` in its repository."
            ) from error
    settings = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    with quiet():
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(settings, trust_remote_code=False))
        given: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            _, report = kind.from_pretrained(None, config=settings, state_dict=held, **given)
        except RuntimeError as error:  # experts that lie in files one by one do not stack
            raise ValueError(
                f"{folder}: the tensors of its weights do not make a {kind.__name__} of its config.json: one is "
                "missing, or has another shape. Copy the model's files anew."
            ) from error
    refuse_missing(folder, report)
    return sum(one.numel() for one in held.values())


#: Names of safetensors' dtypes in torch; what else there is has no part in a plain model.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}


def refuse_missing(folder: str | Path, report: dict[str, Any]) -> None:
    """Refuse what transformers reports to have made up while it opened a folder.

    Raises:
        ValueError: with the tensor's name.
    """
    if wrong := sorted(report["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise ValueError(
            f"{folder}: {name} is {tuple(found)} in its weights, and config.json asks for {tuple(wanted)}. Copy the "
            "model's files anew."
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder}: its weights lack {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}, which config.json asks "
            "for. Copy the model's files anew."
        )


def has_own_head(folder: str | Path) -> bool:
    """Return whether the files hold a head which is not the embeddings, although ``config.json`` says that it is.

    transformers takes that head, and so do policies made from it; an engine that believes the settings does not.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig

    if not AutoConfig.from_pretrained(str(folder), trust_remote_code=False).get_text_config().tie_word_embeddings:
        return False
    found = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight", "word_embeddings.weight")):
                    found[name] = opened.get_tensor(name)
    head = next((tensor for name, tensor in found.items() if name.endswith("lm_head.weight")), None)
    return head is not None and not any(torch.equal(head, one) for one in found.values() if one is not head)


def check_numbers(folder: str | Path) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ValueError: with the name of a tensor that holds NaN or infinity.
    """
    check_finite(folder, tensors(folder))


def check_finite(folder: str | Path, named: Iterable[tuple[str, Any]]) -> None:
    """Refuse tensors of a folder as :func:`check_numbers` does."""
    import torch

    for name, tensor in named:
        if tensor.is_floating_point() and tensor.itemsize > 1 and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{folder}: {name} holds NaN or infinity. Take weights of finite numbers.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing what it misses in a folder, which an error names instead."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
