"""Load, adapt, save and merge policies: ordinary PEFT or Hugging Face folders, safetensors only.

Saved dtypes are fixed: adapters are float32; full and merged weights have the base model's dtype, merged in float32.
Names are those of ``model.named_parameters()``; files have the names that the base model's own files have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from rayrec.models import adapters, item_vectors, lora, norms, weights
from rayrec.models.card import write as write_card
from rayrec.models.folder import vocabulary

ADAPTER, FULL = "adapter_model.safetensors", "model.safetensors"
#: Modules of models with vision or hearing that a prompt of text never reaches.
_SENSES = r".*(vision|visual|projector|audio).*"


def load_base(path: str | Path, dtype: torch.dtype | str = "float32", device: str | torch.device = "cpu") -> Any:
    """Return the causal LM in a folder or of a hub id, in evaluation mode.

    It attends by `sdpa` where that is exact, else `eager`: `sdpa` does not cap scores, and some models do not have it.

    Raises:
        ValueError: the folder holds no safetensors weights (pickled weights are never read), lacks a tensor, or needs
            code of its own.
    """
    _check_folder(Path(path))
    # cuDNN's attention, which torch prefers on new GPUs, makes a plan of some tenths of a second for every new shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = open_base(path, dtype, device=device).to(device).eval()
    if torch.device(device).type != "cpu":
        norms.fuse(model)
    return model


def open_base(path: str | Path, dtype: torch.dtype | str, few: bool = False, device: str | torch.device = "cpu") -> Any:
    """Open the model of a folder or hub id, or a ``few`` of its layers, one of each kind; raises as `load_base`.

    Its weights are read to a GPU without a copy of the model in the machine's memory.
    """
    settings = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    text = settings.get_text_config()
    if few:
        types = list(getattr(text, "layer_types", None) or [])
        first = [types.index(kind) for kind in set(types)] + [1, getattr(text, "first_k_dense_replace", 0) or 0]
        text.num_hidden_layers = min(text.num_hidden_layers, max(first) + 1)
    kinds = ["eager"] if getattr(text, "attn_logit_softcapping", None) else ["sdpa", "eager"]
    with weights.quiet():
        try:
            model, report = _opened(path, settings, dtype, kinds, torch.device(device))
        except (OSError, RuntimeError, SafetensorError) as error:
            if Path(path).is_dir():
                weights.check_names(path)  # raises with the name, if a tensor is wrong
            raise ValueError(f"{path}: no model with safetensors weights could be opened there: {error}") from error
    weights.refuse_missing(path, report)
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if text.tie_word_embeddings and head is not None and head.weight is not words.weight:
        # The file has a head of its own, which transformers takes; a policy's settings must say so too.
        settings = model.config
        settings.tie_word_embeddings = settings.get_text_config().tie_word_embeddings = False
    return model


def _opened(
    path: str | Path, settings: Any, dtype: torch.dtype | str, kinds: list[str], device: torch.device
) -> tuple[Any, dict]:
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    given: dict[str, Any] = {"config": settings, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if device.type != "cpu":
        given["device_map"] = {"": device}
    try:
        made: Any = AutoModelForCausalLM.from_pretrained(
            str(path), trust_remote_code=False, attn_implementation=kinds[0], **given
        )
        return made
    except ValueError:  # the class does not have it
        if not kinds[1:]:
            raise
    return _opened(path, settings, dtype, kinds[1:], device)


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        merged = folder / "merged"
        made = "PeftModel.from_pretrained(base, policy).merge_and_unload().save_pretrained(new)"
        remedy = f"the folder that peft's {made} writes, with the tokenizer's files copied there"
        remedy = str(merged) if merged.is_dir() else remedy
        raise ValueError(f"{folder}: found an adapter, wanted a whole model. Name its base, or {remedy}.")
    if folder.is_dir():
        weights.weight_files(folder)


def check_model(path: str | Path, whole: bool = True) -> None:
    """Refuse a folder or hub id that :func:`load_base` would not open, without reading a weight.

    Unless ``whole``, settings and tokenizer are enough.

    Raises:
        ValueError: a folder as there, or no model's settings and tokenizer can be read, here or from the hub.
    """
    if whole:
        _check_folder(Path(path))
    if (Path(path) / item_vectors.FILE).exists():
        raise ValueError(
            f"{path}: found a policy that reads item vectors, wanted one of text alone. It is evaluated in its own run."
        )
    try:
        vocabulary(path)
        load_tokenizer(path)
    except Exception as error:  # libraries raise anything for a damaged tokenizer
        wanted = "wanted a Hugging Face folder with config.json, tokenizer.json and *.safetensors"
        if not Path(path).is_dir():
            wanted = "no such folder here, and the hub does not give such a model. Name a folder, or download it first"
        elif not (Path(path) / "tokenizer.json").exists():
            wanted = f"found no tokenizer.json, {wanted}. Copy the model's tokenizer files there"
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model {path}: {wanted}. ({why})") from error
    if whole and Path(path).is_dir():
        weights.check_names(path)


def load_policy(
    folder: str | Path,
    dtype: torch.dtype | str = "float32",
    device: str | torch.device = "cpu",
    base: str | Path | None = None,
) -> Any:
    """Return the policy in a finished folder; an adapter's ``base``, unless given, is the one of its settings.

    Raises:
        ValueError: an adapter without safetensors weights, damaged, or of another model; or a base as in
            :func:`load_base`.
    """
    settings = Path(folder) / "adapter_config.json"
    if not settings.exists():
        model = load_base(folder, dtype, device)
    elif (Path(folder) / ADAPTER).exists():
        model = _open_adapter(Path(folder), dtype, device, base)
    else:  # peft would take pickled weights, or ask the hub
        weights.check_kept(Path(folder))
        found = sorted(p.name for p in Path(folder).iterdir())
        raise ValueError(f"{folder}: found {found}, but no {ADAPTER}. Convert the adapter with save_pretrained.")
    item_vectors.load(model, folder)
    if torch.device(device).type != "cpu":
        adapters.lighten(model, fused=True)
        adapters.copy(model)
    return model.eval()


def _open_adapter(folder: Path, dtype: torch.dtype | str, device: str | torch.device, base: str | Path | None) -> Any:
    """Return an adapter on its base. peft itself leaves layers as they are whose adapters the file lacks."""
    again = "Copy the folder anew, or save the adapter again with peft's save_pretrained."
    try:
        base = base or json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        held = load_file(folder / ADAPTER)
    except (ValueError, LookupError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: adapter_config.json or {ADAPTER} is damaged ({error}). {again}") from error
    weights.check_finite(folder, held.items())
    named = f"{folder}/adapter_config.json: base_model_name_or_path is {base}"
    if not base:
        raise ValueError(f"{named}, wanted the model that was tuned. Write its folder or hub id there.")
    try:
        model = load_base(str(base), dtype, device)
    except OSError as error:
        raise ValueError(f"{named}, which cannot be opened: {error}. Write the model's folder there.") from error
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: is no adapter that peft can open on {base}: {why}. {again}") from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if missing := sorted(wanted - held.keys()):
        raise ValueError(f"{folder}: {ADAPTER} lacks {missing[:3]}, which adapters of {base} have. {again}")
    return adapted


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer in a folder or of a hub id; its padding token is EOS where it has none."""
    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_lora(model: Any, rank: int, alpha: int, dropout: float, seed: int = 0) -> PeftModel:
    """Return ``model`` with seeded LoRA adapters in float32 on all linear layers except the head.

    Adapters of experts have no ``dropout``: peft adds theirs to the weights, where an input cannot be dropped. Of a
    model with vision only the language model has adapters.
    """
    sees = model.config.get_text_config() is not model.config
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=_SENSES if sees else None,
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, settings)
    set_lora_dropout(adapted, dropout)
    if not any(isinstance(layer, ParamWrapper) for _, layer in lora.layers(adapted)):
        adapted.peft_config["default"].lora_dropout = dropout  # as a saved adapter states it
    return adapted


def without_dropout(model: Any) -> Any:
    """Return ``model`` with all its dropout off: only adapters have some, in SFT."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates that attention reads when it is called
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)
    return model


def set_lora_dropout(model: Any, p: float) -> None:
    """Set the dropout of every adapter: SFT uses some, the preference step none."""
    for _, layer in lora.layers(model):
        if isinstance(layer, ParamWrapper):
            continue
        layer.lora_dropout = torch.nn.ModuleDict({name: torch.nn.Dropout(p) for name in layer.lora_dropout})


def trainable_state(model: Any) -> dict[str, Tensor]:
    """Return copies of the trainable parameters on the CPU (where DeepSpeed has not cut them up)."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def read_weights(model: Any, folder: str | Path) -> dict[str, Tensor]:
    """Return the weights of a finished policy folder under the parameter names of ``model``, checked whole.

    Raises:
        ValueError: a trainable parameter is not in the folder, a tensor is left over, or a shape differs.
    """
    whole = not isinstance(model, PeftModel)
    wanted = {n: p for n, p in model.named_parameters() if whole or p.requires_grad or "lora_" in n}
    wanted = {name: p for name, p in wanted.items() if not item_vectors.owns(name)}
    adapter = Path(folder) / ADAPTER
    if isinstance(model, PeftModel) != adapter.exists():
        held = "an adapter" if adapter.exists() else "a whole model"
        raise ValueError(
            f"{folder}: found {held}, which the model is not. Set --lora-rank as it was when this was saved."
        )
    if adapter.exists():
        found, names, more = load_file(adapter), {lora.file_name(n): n for n in wanted}, set()
    else:
        found, names = dict(weights.tensors(folder)), {n: n for n in wanted}
        more = _tied(model) | _buffers(model).keys()
        if getattr(model, "_weight_conversions", None):
            found = _own_names(model, found)
    missing, left = sorted(names.keys() - found.keys()), sorted(found.keys() - names.keys() - more)
    if missing or left:
        raise ValueError(f"{folder}: weights do not fit the model: missing {missing[:3]}, left over {left[:3]}.")
    for name, own in names.items():
        # A parameter that ZeRO-3 has cut up keeps its whole shape in ds_shape.
        if found[name].shape != (shape := getattr(wanted[own], "ds_shape", wanted[own].shape)):
            raise ValueError(f"{folder}: {name} is {tuple(found[name].shape)}, the model wants {tuple(shape)}.")
    return {own: found[name] for name, own in names.items()}


def load_weights(model: Any, folder: str | Path) -> None:
    """Copy a finished policy folder into ``model`` in place; raises as :func:`read_weights`, with nothing changed."""
    found = read_weights(model, folder)
    item_vectors.load(model, folder)
    copy_weights(model, found)


def copy_weights(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters of their names, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])
    adapters.copy(model)


def save(
    state: Mapping[str, Tensor],
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    card: Mapping[str, Any],
    merged: bool = False,
    base: str | None = None,
    how: Mapping[str, Any] | None = None,
) -> None:
    """Write a policy folder; equal weights give equal bytes.

    Args:
        state: the trainable parameters, gathered; for ``merged`` under ZeRO-3 also the frozen ones.
        card: lines of README.md, one per entry.
        merged: also write ``merged/``, the whole model, for generators that take no adapter.
        base: ``base_model_name_or_path``; by default the place from which the base model was loaded.
        how: how the policy is asked (:data:`rayrec.models.card.FILE`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = str(base or model.config._name_or_path)
    items = {name: tensor for name, tensor in state.items() if item_vectors.owns(name)}
    state = {name: tensor for name, tensor in state.items() if name not in items}
    if isinstance(model, PeftModel):
        tensors = {lora.file_name(name): tensor.float() for name, tensor in state.items() if "lora_" in name}
        _write_tensors(tensors, folder / ADAPTER)
        lora.write_settings(model, base, folder)
        if merged:
            write_model(dict(lora.merge(state, model)), model.get_base_model(), tokenizer, folder / "merged")
    else:
        write_model({name: tensor.to(model.dtype) for name, tensor in state.items()}, model, None, folder)
    for place in (folder, folder / "merged"):
        if items and place.exists():
            item_vectors.write(model, items, place)
        if place.exists():
            write_card(place, card, base, isinstance(model, PeftModel) and place == folder, how)
    tokenizer.save_pretrained(str(folder))


def write_model(tensors: dict[str, Tensor], model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name for name, _ in model.named_parameters() if "lora_" not in name and not item_vectors.owns(name)}
    wanted = {name.replace(".base_layer", "") for name in wanted}
    if tensors.keys() != wanted:
        odd = sorted(wanted ^ tensors.keys())[:3]
        raise ValueError(f"{folder}: {odd} are in the state or in the model, not in both. Gather every weight.")
    # Buffers decide a model's numbers too where they are kept: the bias of a router, the shape of an activation.
    _write_tensors(revert_weight_conversion(model, tensors | _buffers(model)), folder / FULL)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(plain, path, metadata={"format": "pt"})


def _tied(model: Any) -> set[str]:
    """Return names under which tied weights may lie in a file a second time."""
    own = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - own


def _buffers(model: Any) -> dict[str, Tensor]:
    """Return the buffers that a model's files keep, such as the bias of a router, under their names in them."""
    kept = model.state_dict(keep_vars=True).keys()
    found = {name: buffer for name, buffer in model.named_buffers() if name in kept and not item_vectors.owns(name)}
    return {name.replace(".base_layer", ""): buffer for name, buffer in found.items()}


def _own_names(model: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of files under the names that ``model`` gives them, experts of a layer in one."""
    with weights.quiet():
        other = type(model).from_pretrained(None, config=model.config, state_dict=found, dtype=model.dtype)
    return dict(other.state_dict())
