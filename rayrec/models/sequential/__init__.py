"""Sequential recommenders over item numbers: the baselines, the oracle of RosePO's smoothing, the scores in D3's beams.

Every one is a :class:`SequentialModel`, trained by :func:`fit` and chosen from :data:`SEQUENTIAL`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayrec.data.catalogue import Catalogue
from rayrec.models.fitting import Fitting
from rayrec.models.sequential.caser import Caser
from rayrec.models.sequential.gru4rec import GRU4Rec
from rayrec.models.sequential.items import SequentialModel, pad
from rayrec.models.sequential.ranking import each_score, ndcg, scores, top_lists
from rayrec.models.sequential.rows import item_numbers, known_rows, longest_history, sequences_of
from rayrec.models.sequential.sasrec import SASRec
from rayrec.models.sequential.training import Share, fit
from rayrec.seeds import seed_of

#: Architectures; ``morec`` reads its item vectors from the embeddings of the titles.
SEQUENTIAL: dict[str, type[SequentialModel]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "caser": Caser, "morec": SASRec}

__all__ = [
    "SEQUENTIAL",
    "Caser",
    "Fitting",
    "GRU4Rec",
    "SASRec",
    "SequentialModel",
    "Share",
    "build",
    "each_score",
    "fit",
    "fit_sasrec",
    "item_numbers",
    "known_rows",
    "load",
    "ndcg",
    "pad",
    "save",
    "scores",
    "sequences_of",
    "top_lists",
]


def build(name: str, shape: Mapping[str, Any], seed: int, features: Tensor | None = None) -> SequentialModel:
    """Make a model with the initial weights of a seed; ``features`` [I, E] are the frozen embeddings of ``morec``."""
    torch.manual_seed(seed_of(seed, "sequential"))
    whole = dict(shape) | ({} if features is None else {"features": features.shape[1]})
    model: Any = SEQUENTIAL[name](**whole)
    model.name, model.shape = name, whole
    if features is not None:
        model.table.features.copy_(features)
    return model


def fit_sasrec(
    train: pa.Table,
    valid: pa.Table,
    catalogue: Catalogue,
    seed: int,
    folder: str,
    on_forward: Callable[..., None] = lambda *_: None,
) -> dict[str, float]:
    """Train a SASRec on the training split, stopped early on the validation rows, and save it in ``folder``.

    ``on_forward`` is called after every pass.
    """
    model = build("sasrec", {"items": len(catalogue), "length": longest_history(train)}, seed)
    model.register_forward_hook(on_forward)
    report = fit(model, sequences_of(train, catalogue), known_rows(valid, catalogue), seed)
    save(model, folder)
    return report


def save(model: Any, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` of a model that :func:`build` made."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, Path(folder) / "model.safetensors")
    (Path(folder) / "config.json").write_text(json.dumps({"model": model.name, "shape": model.shape}))


def load(folder: str | Path) -> SequentialModel:
    """Read a folder that :func:`save` wrote; the model is in evaluation mode."""
    record = json.loads((Path(folder) / "config.json").read_text())
    model: Any = SEQUENTIAL[record["model"]](**record["shape"])
    model.name, model.shape = record["model"], record["shape"]
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
