"""Checkpoints inside a training phase: a phase that is cut short goes on at its last one, with the same bits.

A checkpoint is a folder ``PHASE/checkpoint/policy/STEPS``: weights and Adam's moments of every trainable parameter,
whole and in float32, whatever the ZeRO stage and the number of workers that wrote them, so any number can go on.
``PHASE/checkpoint/reference/STEPS`` holds what a preference phase has computed of its reference, by step and slot. Of
either kind the newest one counts, and the one before it is removed only when it is finished, in the storage too. Random
numbers and rows need no saving: both follow from the number of the step.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rayrec.config import Config, PlacementConfig
from rayrec.runs.manifest import CHECKPOINT, damage, empty, read_json, seal
from rayrec.runs.storage import Storage

_TENSORS, _RECORDS, _REFERENCE = "state.safetensors", "records.parquet", "reference.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Clock:
    """When checkpoints are due: every ``steps``, and every ``seconds`` as long as they cost a twentieth of the time."""

    def __init__(self, placement: PlacementConfig):
        self.steps, self.seconds = placement.checkpoint_steps, placement.checkpoint_seconds
        self.on = self.steps > 0 or self.seconds > 0
        self._saved, self._took = time.monotonic(), 0.0

    def late(self, rank: int) -> float:
        """1.0 where one is due by the clock; rank 0 decides, so the sum over all ranks tells them."""
        since = time.monotonic() - self._saved
        return float(rank == 0 and self.seconds > 0 and max(self.seconds, 20 * self._took) < since)

    def due(self, number: int, late: bool) -> bool:
        """Whether one is due after so many steps."""
        return late or (self.steps > 0 and number % self.steps == 0)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Note when a checkpoint was saved, and what that took."""
        begun = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._took = self._saved - begun


def folder_of(out: str, *kind: str) -> Path:
    """Where the checkpoints of the phase lie that writes the policy ``out``, or those of one kind."""
    return Path(out).parent.joinpath(CHECKPOINT, *kind)


def clear_copies(folder: Path, storage: Storage) -> None:
    """Free this node of a phase's checkpoints that lie in a store."""
    if storage.url:
        shutil.rmtree(folder, ignore_errors=True)


def deciding(training: dict[str, Any], config: Config) -> dict[str, Any]:
    """What a checkpoint's key is made of: all that decides a phase's numbers, but not where it is computed.

    Going on with another number of workers or threads, or on another type of CPU, changes them by rounding.
    """
    phase = {name: value for name, value in training["phase"].items() if name != "threads"}
    kept = {name: value for name, value in training.items() if name not in ("workers", "processor", "gpu")}
    return kept | {"phase": phase, "loss": repr(config.loss)}


def records_of(folder: Path, key: str, storage: Storage) -> list[dict]:
    """The records of the steps that the newest sound checkpoint of this very phase has behind it; empty without one.

    ``key`` says what decides the phase's numbers: a checkpoint of other rows, settings or code is none.
    """
    import pyarrow.parquet as pq

    one, _ = _newest(folder, key, storage)
    return pq.read_table(one / _RECORDS).to_pylist() if one else []


def reference_of(folder: Path, key: str, begun: int, slots: range, storage: Storage) -> Any:
    """What the newest sound checkpoint has of the reference from step ``begun`` on, for a worker's ``slots``.

    Float32 [S, B, A], as :func:`save_reference` took it: S steps, 0 without a checkpoint, and B slots.
    """
    import torch
    from safetensors import safe_open

    one, facts = _newest(folder, key, storage)
    if one is None or not facts["first"] <= begun < int(one.name):
        return torch.zeros(0, len(slots), 0)
    with safe_open(one / _REFERENCE, framework="pt") as file:
        return file.get_slice("reference")[begun - facts["first"] :, slots.start : slots.stop]


def _newest(folder: Path, key: str, storage: Storage) -> tuple[Path | None, dict[str, Any]]:
    """The newest sound checkpoint of a key, and what was sealed with it."""
    saved = [one for one in storage.finished_in(folder) if one.name.isdecimal()]
    for one in sorted(saved, key=lambda path: int(path.name), reverse=True):
        storage.download_sound(one)
        if not damage(one) and (found := read_json(one / "metrics.json"))["key"] == key:
            return one, found
    return None, {}


def save(folder: Path, key: str, records: list[dict], engine: Any, rank: int, storage: Storage) -> None:
    """Replace the checkpoints by one of this moment, after ``len(records)`` steps; every rank must call it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    state = {}
    for name, tensor in _state(engine):  # every rank gathers the tensors, one after the other; rank 0 keeps them
        if not rank:
            state[name] = tensor.cpu().contiguous()

    def write(made: Path) -> None:
        save_file(state, made / _TENSORS)
        pq.write_table(pa.Table.from_pylist(records), made / _RECORDS)  # JSON takes 7 times as long

    if not rank:
        _replace(folder / str(len(records)), write, {"key": key}, storage)


def save_reference(folder: Path, key: str, first: int, mine_SBA: Any, rank: int, storage: Storage) -> None:
    """Replace the reference's checkpoint by the numbers of S steps from ``first`` on; every rank must call it.

    ``mine_SBA``: float32, the B slots of this rank and A numbers for each; A may differ between ranks.
    """
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file

    widest = torch.tensor(mine_SBA.shape[2])
    dist.all_reduce(widest, dist.ReduceOp.MAX)
    mine_SBA = torch.nn.functional.pad(mine_SBA, (0, int(widest) - mine_SBA.shape[2])).contiguous()
    parts = None if rank else [torch.empty_like(mine_SBA) for _ in range(dist.get_world_size())]
    dist.gather(mine_SBA, parts)
    if parts:
        state = {"reference": torch.cat(parts, dim=1)}
        made = folder / str(first + len(mine_SBA))
        _replace(made, lambda made: save_file(state, made / _REFERENCE), {"key": key, "first": first}, storage)


def _replace(made: Path, write: Callable[[Path], None], facts: dict[str, Any], storage: Storage) -> None:
    """Let ``write`` fill the checkpoint ``made``; once that is finished, remove the others of its kind."""
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    write(made)
    seal(made, CHECKPOINT, facts)
    storage.upload(made)
    storage.clear(made.parent, but=made.name)
    empty(made.parent, but=made.name)


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
        adam.state[partition] = {"step": torch.tensor(float(steps), device=partition.device), **moments}
    if hasattr(outer, "_lazy_init_hp_params_optimizer_state"):
        outer._lazy_init_hp_params_optimizer_state()
