"""Names of run folders."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from rayrec.config import Config, TrainConfig
from rayrec.data.store import is_url
from rayrec.models import card
from rayrec.runs.storage import Storage


def run_folder(config: Config, of_model: str = "") -> Path:
    """``RUNS/NAME``; without --name it says what distinguishes the run (:func:`default_name`)."""
    return Storage(config.output.runs or "runs").root / (config.output.name or default_name(config, of_model))


def default_name(config: Config, of_model: str = "") -> str:
    """Data folder, model, method, and where they are not the default learning rate and K; the seed.

    What a run can be extended by, such as --iterations, is no part of it. ``of_model`` is the hash of the model's
    contents, which tells policies of other runs apart.
    """
    data, train, plain = config.data, config.train, TrainConfig()
    parts = [_folder(data.data) if data.data else data.source, model_name(config.model.model, of_model)]
    parts += ["candidates"] * (data.protocol == "candidates") + [data.ask] * (data.ask != "title")
    parts += [config.evaluate.served] if config.evaluate.endpoint and config.evaluate.served else []
    if train.iterations and train.prefer:
        parts += [config.loss.objective, "+".join(train.negatives).replace(":", "")] + ["nosft"] * (not train.sft)
        parts += [f"K{train.num_negatives}"] * (train.num_negatives != plain.num_negatives)
    else:
        parts.append("sft" if train.iterations else "bigrec" if train.first_rows else "as-is")
    parts += ["reweighted"] * (train.reweight != "none") + ["items"] * config.model.item_vectors
    if train.iterations:
        parts += [f"lr{train.lr:g}"] * (train.lr != plain.lr)
    elif train.first_rows:
        parts += [f"lr{train.first_lr:g}"] * (train.first_lr != plain.first_lr)
    return re.sub(r"[^\w.+=-]+", "_", "-".join([*parts, f"seed{data.seed}"])).lstrip(".")


def _folder(data: str) -> str:
    """The name of the folder or file of ``--data``."""
    parts = urlsplit(data) if is_url(data) else None
    return Path(data).resolve().name if parts is None else Path(parts.path).name or parts.netloc


def model_name(model: str, of_model: str) -> str:
    """The name of a model's folder or hub id; of a run's policy that of run and phase, and six digits of its hash."""
    path = Path(model).expanduser()
    if not path.is_dir() or card.asked(path) is None:
        return path.name
    parts = [part for part in path.resolve().parts if part not in ("policy", "merged")]
    own = parts[-3:] if re.fullmatch(r"\d\d+", "".join(parts[-2:-1])) else parts[-1:]
    return "-".join([*own, of_model[:6]])
