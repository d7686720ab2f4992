"""The optimiser of all training phases: AdamW in float32."""

from __future__ import annotations

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
