"""Speed, side by side with what people use: ratios from one run on this machine.

    python jobs/bench.py preference              # the packed preference step against TRL's DPOTrainer
    python jobs/bench.py decode                  # catalogue-constrained beams against vLLM's and Hugging Face's
    python jobs/bench.py ground                  # exact nearest titles against numpy's argsort and faiss
    python jobs/bench.py overhead                # the generators' pool against bare calls of Ray
    python jobs/bench.py preference --quick --json out.json

Every contender runs in a process of its own, in turn, several rounds long; a ratio is the median over the rounds, its
spread the smallest and the largest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHES = ("preference", "decode", "ground", "overhead")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--quick", action="store_true", help="small cases, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--against", nargs="+", help="only these contenders")
    parser.add_argument("--sizes", nargs="+", type=int, help="only these K, beam widths or items")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="only these precisions")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one measurement may take")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = importlib.import_module(f"benches.{args.bench}")
    if args.one:
        import torch

        torch.set_num_threads(args.threads)
        print("\n" + json.dumps(bench.measure(**json.loads(args.one))), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        records = [record for case in cases(bench, args, Path(scratch)) for record in compare(bench, args, *case)]
    show(bench, records)
    if args.json:
        args.json.write_text(json.dumps(records, indent=1))


def cases(bench: Any, args: argparse.Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    """Settings of each comparison with the contenders, less those that the command line leaves out."""
    found = bench.cases(args.quick, scratch)
    found = [(s, r) for s, r in found if not args.sizes or s[bench.SIZE] in args.sizes]
    found = [(s, r) for s, r in found if not args.dtype or s["dtype"] in args.dtype]
    return [(s, [name for name in r if not args.against or name in args.against]) for s, r in found]


def compare(bench: Any, args: argparse.Namespace, setting: dict[str, Any], rivals: list[str]) -> list[dict[str, Any]]:
    """Measure ours and the rivals in turn; one record per rival."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *rivals)}
    for _ in range(1 if args.quick else args.rounds):
        for name, results in made.items():
            if not results or "failed" not in results[-1]:
                results.append(run_one(args, setting, name))
                print(f"{setting} {name}: {results[-1]}", flush=True)
    records = []
    for name in rivals:
        record = {**bench.shown(setting), "against": name, "rounds": len(made[name])}
        failed = next((r["failed"] for r in made["ours"] + made[name] if "failed" in r), None)
        for key, side in (("ours", made["ours"]), ("theirs", made[name])):
            if "failed" not in side[-1]:
                record |= {key: statistics.median(r["rate"] for r in side)}
                record |= {f"{key}_{k}": v for k, v in side[-1].items() if k != "rate"}
        if failed is None:
            pairs = list(zip(made["ours"], made[name], strict=True))
            ratios = [ours["rate"] / theirs["rate"] for ours, theirs in pairs]
            record |= {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
            record |= {"memory": pairs[-1][0]["memory"] / pairs[-1][1]["memory"]}
            record |= {"invalid": made[name][-1].get("invalid")}
        records.append(record | {"failed": failed})
    return records


def run_one(args: argparse.Namespace, setting: dict[str, Any], contender: str) -> dict[str, Any]:
    """One measurement in a fresh process; ``failed`` says why there is none."""
    one = json.dumps({"contender": contender, **setting})
    command = [sys.executable, __file__, args.bench, "--threads", str(args.threads), "--one", one]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not finish in {args.limit:g} s"}
    if done.returncode:
        return {
            "failed": done.stderr.strip().splitlines()[-1][-300:] if done.stderr.strip() else "ended without a word"
        }
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(bench: Any, records: list[dict[str, Any]]) -> None:
    """Print the table, with the machine and the versions."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    packages = ("torch", "transformers", *bench.PACKAGES)
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    about = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), "")
    table = Table(title=f"{bench.UNIT}; {os.cpu_count()} × {processor or platform.machine()}; {found}")
    measures = ("dtype", "against", "ours", "theirs", "ratio", "spread", "memory", "invalid")
    for name in (bench.SIZE, *bench.COLUMNS, *measures):
        table.add_column(name, justify="right")
    for r in records:
        start = [str(r[name]) for name in (bench.SIZE, *bench.COLUMNS)] + [r["dtype"], r["against"]]
        if r["failed"]:
            table.add_row(*start, f"{r['ours']:.3g}" if "ours" in r else "", r["failed"])
            continue
        low, high = r["spread"]
        numbers = [f"{r['ours']:.3g}", f"{r['theirs']:.3g}", f"{r['ratio']:.3g} ×", f"{low:.3g} to {high:.3g}"]
        invalid = "" if r["invalid"] is None else f"{r['invalid']:.0%}"
        table.add_row(*start, *numbers, f"{r['memory']:.2f} ×", invalid)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "jobs"))
    main()
