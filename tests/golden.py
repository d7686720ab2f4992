"""Toy runs whose weights and metrics must not change by a refactor: ``python -m tests.golden`` compares them.

Each run is ``jobs/sprec.py --preset toy`` with the arguments of RUNS; of its folder the policies' weights and
``metrics.jsonl`` are hashed. The hashes of ``tests/golden.json`` hold for the processor and the versions that stand
beside them, on which equal computations give equal bits; ``--write`` replaces them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".json")
#: Two CPU threads for a process that works alone and one beside others, whatever the machine has.
COMMON = ["--preset", "toy", "--keep", "all", "--threads", "1", "--decode", "greedy", "beams"]
RUNS = {
    "SPRec": ["--method", "SPRec"],
    "S-DPO": ["--method", "S-DPO", "--score-negatives"],
    "RosePO": ["--method", "RosePO"],
    "KTO": ["--method", "KTO"],
    "D3": ["--method", "D3", "--decode", "d3"],
    "LoRA": ["--method", "SPRec", "--lora-rank", "8", "--negatives", "self_play:0.5", "random:0.5"],
}


def machine() -> dict[str, str]:
    """The processor and the packages that decide the bits."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in about if line.startswith("model name")), "unknown")
    return {"processor": model, **{name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")}}


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the weights and of the metrics of a run, by file."""
    files = [folder / "metrics.jsonl", *sorted(folder.rglob("policy/**/*.safetensors"))]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def run(names: list[str], runs: Path) -> dict[str, dict[str, str]]:
    """Do the runs that are not done in ``runs``; their hashes by name."""
    found = {}
    for name in names:
        words = [sys.executable, "jobs/sprec.py", *COMMON, *RUNS[name], "--runs", str(runs), "--name", name]
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{name}: {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found[name] = hashes(runs / name)
        print(f"{name}: {len(found[name])} files", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*RUNS], help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: a new one in TMPDIR")
    parser.add_argument("--write", action="store_true", help="replace the record by what is found")
    args = parser.parse_args()
    found = run(args.names, args.runs or Path(tempfile.mkdtemp(prefix="golden-")))
    if args.write:
        RECORD.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    if record["machine"] != machine():
        print(f"another machine: recorded on {record['machine']}, this is {machine()}")
    differing = 0
    for name, files in found.items():
        wanted = record["runs"][name]
        for file in sorted(wanted.keys() | files.keys()):
            if files.get(file) != wanted.get(file):
                differing += 1
                print(f"{name}/{file}: {files.get(file, 'missing')[:12]}, wanted {wanted.get(file, 'none')[:12]}")
    print("identical" if not differing else f"{differing} files differ")
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
