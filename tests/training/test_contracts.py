"""The inner names of DeepSpeed that checkpoints and steps use: an upgrade that takes one away fails here with its name.

By stage: 0 in bfloat16 wraps AdamW in ``unfused_optimizer``, 1 and 2 cut up float32 copies, 3 the parameters too.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path((importlib.util.find_spec("deepspeed") or pytest.fail("no deepspeed")).origin or "").parent

#: File, the name, and a pattern of the line that defines it.
NAMES = [
    ("runtime/fp16/unfused_optimizer.py", "fp32_groups", r"self\.fp32_groups = "),
    ("runtime/fp16/unfused_optimizer.py", "fp16_groups", r"self\.fp16_groups = "),
    ("runtime/fp16/unfused_optimizer.py", "optimizer", r"self\.optimizer = "),
    ("runtime/zero/stage_1_and_2.py", "_hp_mapping", r"\._hp_mapping = "),
    (
        "runtime/zero/stage_1_and_2.py",
        "_lazy_init_hp_params_optimizer_state",
        r"def _lazy_init_hp_params_optimizer_state",
    ),
    ("runtime/zero/stage3.py", "fp32_partitioned_groups_flat", r"self\.fp32_partitioned_groups_flat\b.* = "),
    ("runtime/zero/partition_parameters.py", "ds_id", r"param\.ds_id = "),
    ("runtime/zero/partition_parameters.py", "ds_numel", r"param\.ds_numel = "),
    ("ops/__init__.py", "__compatible_ops__", r'"__compatible_ops__"'),
    ("utils/__init__.py", "safe_get_full_fp32_param", r"\bsafe_get_full_fp32_param\b"),
    ("utils/__init__.py", "safe_set_full_fp32_param", r"\bsafe_set_full_fp32_param\b"),
    ("utils/__init__.py", "safe_get_full_optimizer_state", r"\bsafe_get_full_optimizer_state\b"),
    ("utils/__init__.py", "safe_set_full_optimizer_state", r"\bsafe_set_full_optimizer_state\b"),
]


@pytest.mark.parametrize(("file", "name", "line"), NAMES, ids=[f"{Path(file).stem}-{name}" for file, name, _ in NAMES])
def test_deepspeed_still_has(file: str, name: str, line: str) -> None:
    assert re.search(line, (ROOT / file).read_text()), f"deepspeed/{file} has no {name}"
