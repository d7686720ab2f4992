"""The ``sentence`` embedder: a local model2vec or sentence-transformers folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class SentenceEmbedder:
    """Sentence vectors of a folder: static (model2vec), or a transformer with mean or CLS pooling.

    Two embedders are equal where their resolved folders are. Weights are read from safetensors only. ValueError:
    ``path`` is no such folder, or the package ``model2vec`` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not (self.path / "config.json").is_file() and not (self.path / "modules.json").is_file():
            raise ValueError(
                f"Found no config.json or modules.json in {path}, wanted a model2vec or sentence-transformers folder. "
                "Name its folder with --embedder-path; nothing is downloaded."
            )
        kinds = {m["type"].rsplit(".", 1)[-1]: self.path / m["path"] for m in _read(self.path / "modules.json") or []}
        static = "StaticEmbedding" in kinds or _read(self.path / "config.json").get("model_type") == "model2vec"
        self._embed = _static(self.path) if static else _transformer(self.path, kinds)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (n, d) float32; a text without known tokens gives the zero vector of a static model."""
        return self._embed(list(texts))

    def exact(self, text: str) -> None:
        """Look for no exact match: the released evaluations go by distance alone."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentenceEmbedder) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else {}


def _static(path: Path) -> Callable[[list[str]], torch.Tensor]:
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise ValueError(
            f"Found the model2vec folder {path}, but not the package that reads it: pip install model2vec."
        ) from error
    model = StaticModel.from_pretrained(path)
    return lambda texts: torch.from_numpy(model.encode(texts, use_multiprocessing=False))


def _transformer(path: Path, kinds: dict[str, Path]) -> Callable[[list[str]], torch.Tensor]:
    from transformers import AutoModel, AutoTokenizer

    if not {"Transformer", "Pooling"} <= set(kinds) <= {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"Found the modules {list(kinds)} in {path}, wanted Transformer, Pooling, maybe Normalize.")
    config = _read(kinds["Pooling"] / "config.json")
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    pooling = _POOLING.get(chosen[0]) if len(chosen) == 1 else config.get("pooling_mode")
    if pooling not in ("mean", "cls"):
        raise ValueError(f"Found the pooling {chosen or pooling} in {path}, wanted mean or cls.")
    limits = _read(kinds["Transformer"] / "sentence_bert_config.json")
    model = AutoModel.from_pretrained(kinds["Transformer"], use_safetensors=True, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(kinds["Transformer"], trust_remote_code=False)

    @torch.inference_mode()
    def embed(texts: list[str]) -> torch.Tensor:
        texts = [text.lower() for text in texts] if limits.get("do_lower_case") else texts
        parts = []
        for start in range(0, len(texts), 64):
            inputs = tokenizer(
                texts[start : start + 64],
                padding=True,
                truncation=True,
                max_length=limits.get("max_seq_length"),
                return_tensors="pt",
            )
            states_BTH, mask_BT1 = model(**inputs).last_hidden_state.float(), inputs["attention_mask"].unsqueeze(-1)
            mean_BH = (states_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1)
            parts.append(mean_BH if pooling == "mean" else states_BTH[:, 0])
        vectors = torch.cat(parts)
        return torch.nn.functional.normalize(vectors) if "Normalize" in kinds else vectors

    return embed
