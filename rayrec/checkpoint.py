"""Checkpoints inside a training phase: a phase that is cut short goes on at its last one, with the same bits.

A checkpoint is a folder ``PHASE/checkpoint/STEPS``: weights and Adam's moments of every trainable parameter, whole and
in float32, whatever the ZeRO stage and the number of workers that wrote them, so any number of workers can go on. The
newest one counts, and the one before it is removed only when it is finished, in the storage too. Random numbers and
rows need no saving: both follow from the number of the step.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rayrec.config import Config
from rayrec.folders import CHECKPOINT, damage, empty, read_json, seal
from rayrec.storage import Storage

_TENSORS = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def folder_of(out: str) -> Path:
    """Where the checkpoints of the phase lie that writes the policy ``out``."""
    return Path(out).parent / CHECKPOINT


def clear(phase: Path, storage: Storage) -> None:
    """Remove the checkpoints in the folder of a phase that has ended."""
    storage.remove(phase / CHECKPOINT)
    shutil.rmtree(phase / CHECKPOINT, ignore_errors=True)


def clear_copies(folder: Path, storage: Storage) -> None:
    """Free this node of a phase's checkpoints that lie in a store."""
    if storage.url:
        shutil.rmtree(folder, ignore_errors=True)


def deciding(training: dict[str, Any], config: Config) -> dict[str, Any]:
    """What a checkpoint's key is made of: all that decides a phase's numbers, but not where it is computed.

    Going on with another number of workers or threads, or on another type of CPU, changes them by rounding.
    """
    phase = {name: value for name, value in training["phase"].items() if name != "threads"}
    kept = {name: value for name, value in training.items() if name not in ("workers", "processor")}
    return kept | {"phase": phase, "loss": repr(config.loss)}


def records_of(folder: Path, key: str, storage: Storage) -> list[dict]:
    """The records of the steps that the newest sound checkpoint of this very phase has behind it; empty without one.

    ``key`` says what decides the phase's numbers: a checkpoint of other rows, settings or code is none.
    """
    saved = [one for one in storage.finished_in(folder) if one.name.isdecimal()]
    for one in sorted(saved, key=lambda path: int(path.name), reverse=True):
        storage.fetch_sound(one)
        if not damage(one) and (found := read_json(one / "metrics.json"))["key"] == key:
            return found["records"]
    return []


def save(folder: Path, key: str, records: list[dict], engine: Any, rank: int, storage: Storage) -> None:
    """Replace the checkpoints by one of this moment, after ``len(records)`` steps; every rank must call it."""
    from safetensors.torch import save_file

    state = {name: tensor.cpu().contiguous() for name, tensor in _state(engine)}
    if rank:
        return
    made = folder / str(len(records))
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    save_file(state, made / _TENSORS)
    seal(made, CHECKPOINT, {"key": key, "records": records})
    storage.keep(made)
    storage.clear(folder, but=made.name)
    empty(folder, but=made.name)


def restore(folder: Path, steps: int, engine: Any, whole: Callable[[], AbstractContextManager]) -> None:
    """Put a fresh engine where the checkpoint was saved, after ``steps`` steps; every rank must call it."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
    from safetensors.torch import load_file

    state = load_file(folder / str(steps) / _TENSORS)
    _make_moments(engine, steps)
    parameters = list(_trainable(engine))
    with whole(), torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(state[name])
    for name, parameter in parameters:
        if _cut_up(parameter):
            device = parameter.device
            safe_set_full_fp32_param(parameter, state[name].to(device))
            for moment in _MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{name}.{moment}"].to(device), moment)
        else:
            master, moments = _unsplit(engine, parameter)
            if master is not parameter:
                master.data.copy_(state[name])
            for moment in _MOMENTS:
                moments[moment].copy_(state[f"{name}.{moment}"])


def _state(engine: Any) -> Iterator[tuple[str, Any]]:
    """Names and whole tensors of what decides the next step."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in _trainable(engine):
        if _cut_up(parameter):
            yield name, safe_get_full_fp32_param(parameter)
            yield from ((f"{name}.{one}", safe_get_full_optimizer_state(parameter, one)) for one in _MOMENTS)
        else:
            master, moments = _unsplit(engine, parameter)
            yield name, master.detach().float()
            yield from ((f"{name}.{one}", moments[one]) for one in _MOMENTS)


def _trainable(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _cut_up(parameter: Any) -> bool:
    """Whether ZeRO holds the parameter's state in parts."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _unsplit(engine: Any, parameter: Any) -> tuple[Any, dict[str, Any]]:
    """What ZeRO stage 0 updates for a parameter, itself or its float32 copy, and Adam's state of it."""
    outer, master = engine.optimizer, parameter
    if hasattr(outer, "fp32_groups"):
        pairs = zip(itertools.chain(*outer.fp16_groups), itertools.chain(*outer.fp32_groups), strict=True)
        master = next(high for low, high in pairs if low is parameter)
    return master, getattr(outer, "optimizer", outer).state[master]


def _make_moments(engine: Any, steps: int) -> None:
    """AdamW makes its state at the first step; a fresh engine that goes on later needs it before."""
    import torch

    outer = engine.optimizer
    adam = getattr(outer, "optimizer", outer)
    # ZeRO-3 hands its flat partitions to AdamW only during a step.
    flat = getattr(outer, "fp32_partitioned_groups_flat", None)
    for partition in flat if flat is not None else [p for group in adam.param_groups for p in group["params"]]:
        moments = {moment: torch.zeros_like(partition) for moment in _MOMENTS}
        adam.state[partition] = {"step": torch.tensor(float(steps)), **moments}
    if hasattr(outer, "_lazy_init_hp_params_optimizer_state"):
        outer._lazy_init_hp_params_optimizer_state()
