"""Cache keys of training phases: everything that decides the bytes of a policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrec.config import Config
from rayrec.deciding import deciding
from rayrec.runs import cache
from rayrec.runs.manifest import sha256

if TYPE_CHECKING:
    from rayrec.training.board import Phase

#: Settings that cannot change the training of iteration 0, which runs of one folder share, by the reason. A setting
#: that is not listed is part of the key: runs that differ in it train for themselves.
NOT_READ_FIRST: dict[str, tuple[str, ...]] = {
    "reaches training through the Phase and its rows, which are in the key": (
        *("model.item_vectors", "model.lora_dropout", "train.target", "train.min_rating", "train.reweight"),
        *("supervised.sft_loss", "supervised.sft_temperature", "supervised.sft_eta", "supervised.sft_beams"),
        *("supervised.sft_lam", "supervised.sft_xi", "supervised.sft_theta"),
        *("train.first_rows", "train.first_epochs", "train.first_lr", "train.batch"),
        *("train.first_warmup", "train.first_schedule"),
    ),
    "decides the iterations after the first": (
        *("train.iterations", "train.rows_per_iteration", "train.sft", "train.prefer", "train.lr"),
        *("train.prefer_batch", "train.prefer_epochs", "train.warmup", "train.schedule"),
        *("loss.objective", "loss.beta", "loss.gamma", "loss.lam", "loss.margin", "loss.tau", "loss.average"),
        *("loss.alpha", "loss.lambda_d", "loss.lambda_u", "loss.smoothing", "loss.anchor", "loss.shift", "loss.inner"),
        *("loss.clip_low", "loss.clip_high"),
    ),
    "decides what generators write and how it is judged": (
        *("model.max_new_tokens", "train.negatives", "train.num_negatives", "train.score_negatives"),
        *("train.equal_target", "train.ground"),
        *("evaluate.decode", "evaluate.normalise", "evaluate.d3_alpha", "evaluate.beam_width", "evaluate.top_k"),
        *("evaluate.embedder", "evaluate.popularity_gamma", "evaluate.engine", "evaluate.endpoint"),
        *("evaluate.served", "evaluate.part"),
    ),
}
#: Fields of a Phase that are paths; the contents are hashed.
_PATHS = ("rows", "start", "out", "items")


def shared_key(phase: Phase, config: Config, gpu: bool) -> dict[str, Any]:
    """Key of a phase of iteration 0, to share its policy among runs: equal keys, equal bytes."""
    unread = {name for names in NOT_READ_FIRST.values() for name in names}
    settings = {name: value for name, value in deciding(config).items() if name not in unread}
    place = {"workers": config.worker_counts, "threads": phase.threads, "processor": cache.processor(), "gpu": gpu}
    return _inputs(phase) | {"settings": settings, "place": place}


def checkpoint_key(phase: Phase, config: Config) -> dict[str, Any]:
    """Key of a phase's checkpoints: where the phase is computed is left out, since it changes numbers by rounding."""
    return _inputs(phase) | {"settings": deciding(config)}


def _inputs(phase: Phase) -> dict[str, Any]:
    kept = {n: value for n, value in dataclasses.asdict(phase).items() if n not in (*_PATHS, "threads", "key")}
    return {
        "phase": kept,
        "rows": sha256(Path(phase.rows)),
        "start": _file_hashes(Path(phase.start)) or phase.start,
        "items": _file_hashes(Path(phase.items)) if phase.items else {},
    }


def _file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of a folder's files by name; empty for a hub id."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: sha256(path) for path in files if path.is_file()}
