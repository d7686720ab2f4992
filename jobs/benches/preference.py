"""The preference step: prompts computed once for all answers, against TRL's DPOTrainer on chosen-rejected pairs.

Same weights, rows, order, batches of users, AdamW, clipping and DPO loss, in float32; the last loss must agree.
``memory`` is the peak RSS less the RSS with the models loaded, so it has no weights, nor those of TRL's reference, a
second model.
"""

from __future__ import annotations

import random
import tempfile
import time
from argparse import Namespace
from typing import Any

from benches import peak, reset_peak
from benches.dpo import dpo_trainer, words
from benches.training import worker_steps

PACKAGES, SIZE, COLUMNS, UNIT = ("trl",), "k", (), "users per second, reference pass included"
FACTS, PAIRS = ("tokens_per_user", "loss"), ("tokens_per_user",)
BATCH, MICRO, LR, BETA = 16, 4, 1e-4, 0.1


def cases(args: Namespace, scratch: Any) -> list[tuple[dict[str, Any], list[str]]]:
    sizes, users = ((2,), 32) if args.quick else ((3, 8, 15), 48)
    return [({"k": k, "users": users, "dtype": "float32"}, ["trl", "trl_cached"]) for k in sizes]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return setting


def rows(users: int, k: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of 120 to 160 tokens with 1 + k titles of 8 to 12; token 2 is EOS and ends each title."""
    draw = random.Random(0)

    def text(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 4096) for _ in range(draw.randint(low, high))]

    return [(text(120, 160), [[*text(7, 11), 2] for _ in range(1 + k)]) for _ in range(users)]


def model() -> Any:
    """A Llama of 4.5 million parameters; equal weights at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512}
    shape |= {"tie_word_embeddings": True, "attn_implementation": "sdpa"}
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**shape))


def warm_up() -> None:
    """A pass as wide as a batch, so that no contender pays for the first use of PyTorch and memory."""
    import torch

    ids_BT = torch.ones(4, 300, dtype=torch.long)
    model()(input_ids=ids_BT, labels=ids_BT).loss.backward()


def measure(contender: str, k: int, users: int, dtype: str) -> dict[str, Any]:
    """Users per second, peak memory above the loaded model's, tokens per user, and the loss of the last step."""
    run = ours if contender == "ours" else trl
    seconds, memory, tokens, loss = run(rows(users, k), contender == "trl_cached")
    return {"rate": users / seconds, "memory": memory, "tokens_per_user": tokens / users, "loss": loss}


def ours(data: list, cached: bool) -> tuple[float, int, int, float]:
    """A training worker's second preference phase, from the loading of its start to the last step."""
    args = ["--objective", "dpo", "--beta", str(BETA), "--micro-batch", str(MICRO)]
    with tempfile.TemporaryDirectory() as base:
        for part in (model(), tokenizer()):
            part.save_pretrained(base)
        done = worker_steps(base, args, "prefer", data, BATCH, LR)
    return done["seconds"], done["memory_above"], done["tokens"], done["losses"][-1]


def tokenizer() -> Any:
    """One word per token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 4096)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def trl(data: list, cached: bool) -> tuple[float, int, int, float]:
    """TRL's DPOTrainer; ``cached`` lets it compute the reference once before training."""
    settings = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": BATCH, "learning_rate": LR}
    settings |= {"beta": BETA, "precompute_ref_log_probs": cached}
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        ids = kwargs.get("input_ids")
        tokens += (args[0] if ids is None else ids).numel()

    with tempfile.TemporaryDirectory() as folder:
        policy, reference = model(), None if cached else model()
        before = reset_peak()
        warm_up()
        for one in (policy, reference):
            if one is not None:
                one.model.register_forward_pre_hook(count, with_kwargs=True)
        of = {"model": policy, "ref_model": reference, "processing_class": tokenizer()}
        trainer, spent = dpo_trainer(data, words, BATCH, folder, settings, **of)
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun + sum(spent)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return seconds, peak() - before, tokens, losses[-1]
