"""Checkpoints inside a training phase: a phase that is cut short resumes at its last one, with the same bits.

A checkpoint is a folder ``PHASE/checkpoint/STEPS``: weights and Adam's moments of every trainable parameter, whole and
in float32, whatever the ZeRO stage and the number of workers that wrote them, so any number can go on. The newest one
counts; the one before it is removed when the new one is finished, in the storage too. Random numbers and rows need no
saving: both follow from the number of the step. The reference of a preference phase is computed again, in one pass.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rayrec.config import PlacementConfig
from rayrec.runs import cache
from rayrec.runs.manifest import CHECKPOINT, empty
from rayrec.runs.storage import Storage
from rayrec.training.optimiser import MOMENTS

#: Gathers parameters that ZeRO-3 has split.
Whole = Callable[[], AbstractContextManager]
#: Parameters and their names.
Named = Iterable[tuple[str, Any]]
_TENSORS, _RECORDS = "state-{:05d}.safetensors", "records.parquet"
#: Bytes of a file of tensors, about, and so of what rank 0 holds of them on the host.
_FILE = 1 << 30


class Clock:
    """Times of checkpoints: every ``steps``, and every ``seconds`` while they take at most a twentieth of them."""

    def __init__(self, placement: PlacementConfig):
        self.steps, self.seconds = placement.checkpoint_steps, placement.checkpoint_seconds
        self._saved, self._took = time.monotonic(), 0.0

    def late(self, rank: int) -> float:
        """1.0 on rank 0 when one is due by its clock, else 0.0: the sum over all ranks is the same on each."""
        since = time.monotonic() - self._saved
        return float(rank == 0 and self.seconds > 0 and max(self.seconds, 20 * self._took) < since)

    def due(self, number: int, late: bool) -> bool:
        """Whether one is due after ``number`` steps."""
        return late or (self.steps > 0 and number % self.steps == 0)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long saving takes."""
        begun = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._took = self._saved - begun


def folder_of(out: str) -> Path:
    """Folder of the checkpoints of the phase that writes the policy ``out``."""
    return Path(out).parent / CHECKPOINT


def clear_copies(folder: Path, storage: Storage) -> None:
    """Remove this node's copies of checkpoints that lie in a store."""
    if storage.url:
        shutil.rmtree(folder, ignore_errors=True)


def records_of(folder: Path, key: str, storage: Storage) -> list[dict]:
    """The records of all steps before the newest sound checkpoint of ``key``; empty without one."""
    import pyarrow.parquet as pq

    found = list(cache.entries(folder, key, storage))
    newest = max(found, key=lambda entry: int(entry.name), default=None)
    return pq.read_table(newest / _RECORDS).to_pylist() if newest else []


def save(folder: Path, key: str, records: list[dict], engine: Any, rank: int, storage: Storage) -> None:
    """Save a checkpoint after ``len(records)`` steps and remove the older ones; every rank must call it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(entry: Path) -> None:
        _write_state(engine, entry)
        pq.write_table(pa.Table.from_pylist(records), entry / _RECORDS)  # JSON takes 7 times as long

    if rank:
        for _ in _state(engine):  # every rank gathers the tensors, one after the other; rank 0 writes them
            pass
    else:
        entry = folder / str(len(records))
        cache.write_entry(entry, key, write, storage)
        storage.clear(folder, but=entry.name)
        empty(folder, but=entry.name)


def _write_state(engine: Any, entry: Path) -> None:
    """Write all tensors, file by file: with its moments a large model is more than a machine's memory."""
    from safetensors.torch import save_file

    some: dict[str, Any] = {}
    numbers = itertools.count()
    for name, tensor in _state(engine):
        some[name] = tensor.cpu().contiguous()
        if sum(one.nbytes for one in some.values()) >= _FILE:
            save_file(some, entry / _TENSORS.format(next(numbers)))
            some = {}
    if some:
        save_file(some, entry / _TENSORS.format(next(numbers)))


def restore(folder: Path, steps: int, engine: Any, whole: Whole) -> None:
    """Load the checkpoint after ``steps`` steps into a fresh engine; every rank must call it."""
    from safetensors.torch import load_file

    _make_moments(engine, steps)
    state = dict[str, Any]()
    for path in sorted((folder / str(steps)).glob(_TENSORS.replace("{:05d}", "*"))):
        state |= load_file(path)  # mapped, so processes of one machine share what they read
    _load(state, list(_trainable(engine)), engine, whole)


@contextmanager
def frozen(engine: Any, chosen: Callable[[str], bool], whole: Whole) -> Iterator[None]:
    """Keep the ``chosen`` parameters and their moments through an optimiser step; every rank must call it."""
    if not getattr(engine.optimizer, "optimizer", engine.optimizer).state:
        _make_moments(engine, 0)
    parameters = [(name, parameter) for name, parameter in _trainable(engine) if chosen(name)]
    state = {name: tensor.clone() for name, tensor in _state(engine, parameters)}
    yield
    _load(state, parameters, engine, whole)


def _load(state: dict[str, Any], parameters: Named, engine: Any, whole: Whole) -> None:
    """Load parameters and their moments, whole tensors of these names."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    with whole(), torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(state[name])
    for name, parameter in parameters:
        if _is_split(parameter):
            device = parameter.device
            safe_set_full_fp32_param(parameter, state[name].to(device))
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{name}.{moment}"].to(device), moment)
        else:
            master, moments = _whole_state(engine, parameter)
            if master is not parameter:
                master.data.copy_(state[name])
            for moment in MOMENTS:
                moments[moment].copy_(state[f"{name}.{moment}"])


def _state(engine: Any, parameters: Named | None = None) -> Iterator[tuple[str, Any]]:
    """Names and whole tensors of parameters, by default all that are trained, and of their moments."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in _trainable(engine) if parameters is None else parameters:
        if _is_split(parameter):
            yield name, safe_get_full_fp32_param(parameter)
            yield from ((f"{name}.{one}", safe_get_full_optimizer_state(parameter, one)) for one in MOMENTS)
        else:
            master, moments = _whole_state(engine, parameter)
            yield name, master.detach().float()
            yield from ((f"{name}.{one}", moments[one]) for one in MOMENTS)


def _trainable(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _is_split(parameter: Any) -> bool:
    """Whether ZeRO splits the parameter's state among ranks."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _whole_state(engine: Any, parameter: Any) -> tuple[Any, dict[str, Any]]:
    """The tensor that ZeRO stage 0 updates, a parameter or its float32 copy, and Adam's state of it."""
    outer, master = engine.optimizer, parameter
    if hasattr(outer, "fp32_groups"):
        pairs = zip(itertools.chain(*outer.fp16_groups), itertools.chain(*outer.fp32_groups), strict=True)
        master = next(high for low, high in pairs if low is parameter)
    return master, getattr(outer, "optimizer", outer).state[master]


def _make_moments(engine: Any, steps: int) -> None:
    """Create AdamW's state, which a fresh engine does not have before its first step."""
    import torch

    outer = engine.optimizer
    adam = getattr(outer, "optimizer", outer)
    # ZeRO-3 hands its flat partitions to AdamW only during a step.
    flat = getattr(outer, "fp32_partitioned_groups_flat", None)
    for partition in flat if flat is not None else [p for group in adam.param_groups for p in group["params"]]:
        moments = {moment: torch.zeros_like(partition) for moment in MOMENTS}
        adam.state[partition] = {"step": torch.tensor(float(steps), device=partition.device), **moments}
    if hasattr(outer, "_lazy_init_hp_params_optimizer_state"):
        outer._lazy_init_hp_params_optimizer_state()
