"""Checks of one GPU: a table of what is expected and what is found.

A check is a generator of :class:`Line`; its module lists it in ``CHECKS`` with the seconds that it may take.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

#: Random models: the shape of Llama-3.2-1B, and one for a CPU.
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "small": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
}
#: Dense operations a second in bfloat16 by a word of the device's name (NVIDIA's data sheets), for MFU.
PEAKS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "L40": 181e12, "L4": 121e12}
#: Adapters and optimiser of all checks: the preset `paper`.
RANK, ALPHA, DROPOUT, LR = 16, 32, 0.05, 2e-5

#: An example: the tokens of the prompt and of its answers, the chosen one first.
Example = tuple[list[int], list[list[int]]]


@dataclass(frozen=True)
class Line:
    """A line of the table; ``passed`` is None where nothing was expected, or nothing could be found."""

    what: str
    expected: str
    found: str
    passed: bool | None = None
    numbers: dict[str, float] = field(default_factory=dict)


#: A check, and the most seconds that it may take on a GPU.
Check = tuple[Callable[["Place"], Iterator[Line]], float]


@dataclass
class Place:
    """The device, the shape of the model, and a folder for what is written."""

    device: Any
    shape: str
    folder: Path
    quick: bool

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.device.type == "cuda"

    def model(self, dtype: str = "bfloat16", rank: int = RANK, dropout: float = 0.0, shape: str = "") -> Any:
        """A random Llama on the device, with adapters that are not zero; equal weights at every call."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from rayrec.models import policy

        settings = SHAPES[shape or self.shape] | {"max_position_embeddings": 4096, "tie_word_embeddings": True}
        torch.manual_seed(0)
        torch.backends.cuda.enable_cudnn_sdp(False)
        with torch.device(self.device):
            lm = LlamaForCausalLM._from_config(LlamaConfig(**settings), dtype=getattr(torch, dtype))
        if not rank:
            return lm.eval()
        adapted = policy.add_lora(lm, rank, ALPHA, dropout)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        return adapted.eval()

    @cached_property
    def base(self) -> str:
        """The folder of the model without adapters, with a tokenizer of one word per token."""
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = {f"w{i}": i for i in range(SHAPES[self.shape]["vocab_size"])}
        plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w0", bos_token="w1", eos_token="w2")
        for part in (self.model(rank=0), tokenizer):
            part.save_pretrained(self.folder / "base")
        return str(self.folder / "base")

    def examples(self, count: int, k: int) -> list[Example]:
        """Prompts of about 170 tokens with 1 + k titles of about 10; shorter ones for the small model."""
        draw, words = random.Random(k), SHAPES[self.shape]["vocab_size"]
        low, high = (150, 190) if self.shape == "1B" else (10, 20)

        def text(least: int, most: int) -> list[int]:
            return [draw.randrange(3, words) for _ in range(draw.randint(least, most))]

        return [(text(low, high), [[*text(6, 12), 2] for _ in range(1 + k)]) for _ in range(count)]

    def wait(self) -> None:
        """Wait for the device."""
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], times: int = 3) -> float:
        """The fewest seconds of ``work``, which has been done once before."""
        work()
        found = []
        for _ in range(times):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begun)
        return min(found)

    def held(self) -> int:
        """Bytes that tensors of this process take on the GPU."""
        import gc

        import torch

        gc.collect()
        return torch.cuda.memory_allocated() if self.gpu else 0

    def flops(self) -> float:
        """Dense operations a second of the device in bfloat16; 0 where unknown."""
        import torch

        name = torch.cuda.get_device_name() if self.gpu else ""
        return next((peak for word, peak in PEAKS.items() if word in name), 0.0)

    def operations(self, tokens: float, passes: float) -> float:
        """Operations of ``tokens`` through the model's blocks, times ``passes`` over the weights."""
        shape = SHAPES[self.shape]
        hidden, heads = shape["hidden_size"], shape["head_dim"]
        attention = heads * hidden * (2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"])
        return 2 * shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"]) * tokens * passes


def apart(found: Any, wanted: Any) -> float:
    """The largest difference of two tensors, as a share of the largest number of the second."""
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-30))
