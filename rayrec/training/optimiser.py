"""The optimiser of all training phases: AdamW in float32."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Any

#: Names of its state, beside the step count, of each parameter; a checkpoint holds them under these names.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: Bytes of that state for each trained weight.
STATE_BYTES = 4 * len(MOMENTS)


def settings(lr: float, weight_decay: float) -> dict[str, Any]:
    """Return the settings of ``optimizer`` in DeepSpeed's configuration."""
    return {
        "type": "AdamW",
        "params": {"lr": lr, "weight_decay": weight_decay, "torch_adam": True, "fused": True},
    }


def sums(stage: int) -> dict[str, Any]:
    """Return DeepSpeed's settings by which a bfloat16 model's gradients are added in float32.

    Over ranks at every ZeRO stage. Over the micro-batches of a step from stage 2 on: stage 0 does not know it, and
    stage 1 takes another optimiser then, whose state is not where checkpoints look for it.
    """
    return {"communication_data_type": "fp32"} | ({"data_types": {"grad_accum_dtype": "fp32"}} if stage >= 2 else {})


def release(engine: Any) -> None:
    """End a DeepSpeed engine and free what it holds: master weights, moments, gradients and buffers.

    ``engine.destroy`` leaves two hooks on the module, which keep the engine, and ZeRO-3 the optimiser, for good.
    """
    import torch

    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    engine.module.zero_grad(set_to_none=True)
    engine.optimizer.__dict__.clear()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # between its phases a worker needs the memory least
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
