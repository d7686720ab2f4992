"""Models in one GGUF file, converted once into Hugging Face folders, which every other part opens."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

SUFFIX = ".gguf"


def folder_of(model: str) -> str:
    """Return ``model``, or the folder of a GGUF file's weights, settings and tokenizer.

    The weights are dequantised by transformers and kept in bfloat16, below ``~/.cache/rayrec`` and named after the
    file's contents; the same file is converted once.

    Raises:
        ValueError: there is no such file, or transformers cannot read it.
    """
    file = Path(model).expanduser()
    if file.suffix != SUFFIX:
        return model
    if not file.is_file():
        raise ValueError(f"model {model}: no such file. Name a GGUF file, a Hugging Face folder or hub id, or `tiny`.")
    with file.open("rb") as opened:
        contents = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = Path("~/.cache/rayrec/models").expanduser() / contents[:16] / file.stem
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")  # no mkdtemp, which only its owner may read
        made.mkdir()
        try:
            _convert(file, made)
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # else another run has converted the same file
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return str(folder)


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"model {file}: transformers cannot read this GGUF file. Name the model's Hugging Face folder instead. "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    # The loaded model counts as quantised and refuses to be saved; the same weights in a plain one do not.
    settings: Any = read.config
    del settings.quantization_config
    settings.dtype = torch.bfloat16
    with torch.device("meta"):
        model: Any = type(read)(settings)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
