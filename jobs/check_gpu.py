"""Check one GPU: what is expected of it, what is found, pass or fail, in about nine minutes.

    python jobs/check_gpu.py --json gpu.json

needs torch, transformers and peft; what deepspeed, vllm and trl would tell is left out where they are missing. A model
with the shape of Llama-3.2-1B and random weights is made on the GPU, so nothing is downloaded. `--device cpu` does the
same with a small model, in a minute. docs/cluster.md says where to send the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_checks import Check, Line, Place, answers, passes, steps

CHECKS: dict[str, Check] = {**passes.CHECKS, **steps.CHECKS, **answers.CHECKS}
#: Seconds of the whole. A check begins if half of its own limit is left.
LIMIT = 540.0


def machine(device: Any) -> dict[str, str]:
    """The device and what computes on it."""
    import peft
    import torch
    import transformers

    found = {"device": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        found["memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"
    found |= {"transformers": transformers.__version__, "peft": peft.__version__}
    packages = importlib.metadata.packages_distributions()
    for name in ("deepspeed", "vllm", "ray", "trl"):
        found[name] = importlib.metadata.version(packages[name][0]) if name in packages else "–"
    return found


def run(place: Place, names: list[str], limit: float = LIMIT) -> list[dict[str, Any]]:
    """Do the checks in turn and print their lines; an error is a line that fails."""
    begun, lines = time.perf_counter(), list[dict[str, Any]]()

    def told(name: str, line: Line, seconds: float) -> None:
        mark = {True: "pass", False: "FAIL", None: "–"}[line.passed]
        print(f"| {name} | {line.what} | {line.expected} | {line.found} | {mark} |", flush=True)
        lines.append({"check": name, **asdict(line), "seconds": seconds})

    print("| check | what | expected | found | |\n|---|---|---|---|---|")
    for name in names:
        work, most = CHECKS[name]
        started = time.perf_counter()
        if place.gpu and started - begun + most / 2 > limit:
            told(name, Line(name, "", f"not run: {limit:.0f} s are over"), 0.0)
            continue
        try:
            for line in work(place):
                told(name, line, time.perf_counter() - started)
        except Exception as error:
            traceback.print_exc()
            told(name, Line(name, "no error", f"{type(error).__name__}: {error}".splitlines()[0], False), 0.0)
        place.held()
    return lines


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="some checks alone")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, stages and widths")
    parser.add_argument("--json", type=Path, help="file for the same table, with all numbers")
    return parser


def main(args: list[str] | None = None) -> int:
    """Print the table; 1 if a line fails."""
    given = options().parse_args(args)
    import torch

    from rayrec.cluster.devices import unusable

    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"error: {unusable() or 'this machine has no CUDA device'}. Or take --device cpu.", file=sys.stderr)
        return 1
    device = torch.device(given.device)
    found = machine(device)
    print(", ".join(f"{name} {value}" for name, value in found.items()), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="rayrec-", ignore_cleanup_errors=True) as folder:
        place = Place(device, "1B" if device.type == "cuda" else "small", Path(folder), given.quick)
        lines = run(place, given.only)
    if given.json:
        given.json.write_text(json.dumps({"machine": found, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    failed = sum(line["passed"] is False for line in lines)
    print(f"\n{failed} of {len(lines)} lines failed" if failed else f"\nall of {len(lines)} lines fine")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
