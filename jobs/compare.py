"""Methods × seeds on one data set, side by side: every cell is a run of jobs/sprec.py that resumes.

    python jobs/compare.py --data DIR --methods BIGRec S-DPO SPRec --seeds 0 1 2
    python jobs/compare.py --data DIR --preset table2 --scale toy
    python jobs/compare.py --data DIR --preset table2 --lr 1e-4          # any flag of jobs/sprec.py holds for all cells
    python jobs/compare.py --data DIR --methods BIGRec SPRec --vary num-negatives 1 3 8

The same command again does what is left, and rewrites the table, comparison.json, comparison.csv and comparison.html.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayrec.methods import BASELINES, METHODS, baseline_args, parse

ROOT = Path(__file__).parents[1]
#: The systems of a published table that are methods of jobs/sprec.py.
PRESETS = {
    "table2": "BIGRec SPRec SASRec RW D3 DMPO S-DPO RosePO SPRec-noSFT SPRec-noDPO SPRec-RN",
    "sdpo": "TALLRec TALLRec-generate LLaRA BIGRec GRU4Rec Caser SASRec DPO S-DPO",
    "recpo": "BIGRec GRU4Rec SASRec S-DPO SimPO RecPO",
}
#: Those tables whose prompts list candidates.
CHOOSING = ("sdpo", "recpo")


KNOWN = [*METHODS, *BASELINES]


@dataclass(frozen=True)
class Row:
    """A method of the table, and the setting in which it differs from others of its name."""

    method: str
    setting: str = ""
    value: float = 0.0

    @property
    def label(self) -> str:
        """Its name in tables and folders."""
        return f"{self.method} {self.setting}={self.value:g}" if self.setting else self.method

    @property
    def flags(self) -> list[str]:
        """The setting on the command line of a cell."""
        if self.setting == "random-share":  # SPRec figure 5
            own = [f"self_play:{1 - self.value:g}"] if self.value < 1 else []
            return ["--negatives", *own, *([f"random:{self.value:g}"] if self.value else [])]
        return [f"--{self.setting}", f"{self.value:g}"] if self.setting else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--methods", nargs="+", choices=KNOWN, metavar="METHOD", help=", ".join(KNOWN))
    parser.add_argument("--preset", choices=PRESETS, help="the methods of a published table")
    parser.add_argument("--scale", choices=("toy", "small", "paper"), default="small", help="--preset of every cell")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--vary",
        nargs="+",
        metavar=("SETTING", "VALUE"),
        help="a number among the flags, such as `beta` or `num-negatives`, or `random-share`, and its values for every "
        "language model but --against",
    )
    parser.add_argument("--against", default="BIGRec", help="the method that all others are tested against")
    parser.add_argument("--decode", choices=("beams", "greedy", "free_beams", "score"), help="all but D3's")
    parser.add_argument("--k", type=int, default=5, help="length of the lists in the tables")
    parser.add_argument("--runs", default="runs", help="a folder; a comparison reads all its cells")
    parser.add_argument("--name", default="comparison", help="folder of the cells and the tables, in --runs")
    parser.add_argument("--at-once", type=int, default=1, help="cells at once; each reserves its own resources")
    args, rest = parser.parse_known_args()
    if args.preset in CHOOSING and "--protocol" not in rest:
        rest += ["--protocol", "candidates"]
    args.decode = args.decode or ("score" if parse("", rest).data.protocol == "candidates" else "beams")
    methods = list(dict.fromkeys((args.methods or []) + PRESETS.get(args.preset, "").split()))
    try:
        if "://" in args.runs:
            raise ValueError(f"--runs {args.runs} is a URL; a comparison reads all its cells. Name a folder.")
        rows = rows_of(args, methods)
        check(args, rows, rest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = Path(args.runs).absolute() / args.name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = run_cells(args, rows, rest, folder)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        return 130
    made = show(args, rows, rest, folder, failed)
    return 1 if failed or not made else 0


def rows_of(args: argparse.Namespace, methods: list[str]) -> list[Row]:
    """The rows of the table: the methods, each in all its settings."""
    if not args.vary:
        return [Row(method) for method in methods]
    setting, *values = args.vary
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise ValueError(f"--vary {setting} {' '.join(values)}: wanted numbers, such as --vary beta 0.1 1.") from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"--vary {setting} {' '.join(values)}: wanted at least one value, each once.")
    rows: list[Row] = []
    for method in methods:
        varied = method not in BASELINES and method != args.against
        rows += [Row(method, setting, value) for value in numbers] if varied else [Row(method)]
    return rows


def check(args: argparse.Namespace, rows: list[Row], rest: list[str]) -> None:
    """Refuse what no cell could do, before the first starts."""
    from rayrec import plan

    if not rows:
        raise ValueError("No method is named. Add --methods BIGRec SPRec, or --preset table2.")
    if args.against not in (names := [*(row.label for row in rows), "Popular"]):
        raise ValueError(f"--against {args.against} is not compared. Name one of {names}.")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds {args.seeds} has one twice. Name each once.")
    if args.at_once < 1:
        raise ValueError(f"--at-once is {args.at_once}, wanted at least 1. The default is 1.")
    for row in rows:
        config = plan.resolve(parse("", cell_args(args, row, args.seeds[0], rest)))
        if row.method == "MoRec" and not config.evaluate.embedder_path:
            raise ValueError("MoRec reads item vectors from titles. Add --embedder sentence --embedder-path FOLDER.")
        if args.k not in config.evaluate.top_k:
            raise ValueError(f"--k {args.k} is not among --top-k {config.evaluate.top_k}. Name one of them.")


def cell_args(args: argparse.Namespace, row: Row, seed: int, rest: list[str]) -> list[str]:
    """The command line of one cell, but its place; of a baseline, that of a language model on the same rows."""
    decode, named = "d3" if row.method == "D3" else args.decode, ["--method", row.method]
    named = [] if row.method in BASELINES else named
    return ["--preset", args.scale, *named, "--seed", str(seed), "--decode", decode, *rest, *row.flags]


def run_cells(args: argparse.Namespace, rows: list[Row], rest: list[str], folder: Path) -> dict[str, str]:
    """Do every cell, seed by seed, so that methods share the first training; returns what failed, with its words."""
    folder.mkdir(parents=True, exist_ok=True)
    record, lock, failed = folder / "cells.json", threading.Lock(), {}
    facts = json.loads(record.read_text()) if record.exists() else {}
    running: list[subprocess.Popen] = []

    def do(seed: int, row: Row) -> None:
        name = f"{row.label}-seed{seed}"
        place = ["--runs", str(folder), "--name", name]
        command = [sys.executable, str(ROOT / "jobs" / "sprec.py"), *cell_args(args, row, seed, rest), *place]
        if row.method in BASELINES:
            one = baseline_args(parse("", cell_args(args, row, seed, rest)), BASELINES[row.method])
            command = [sys.executable, str(ROOT / "jobs" / "baselines.py"), *one, *place]
        print(f"{time.strftime('%X')}  {name}", flush=True)
        begun = time.monotonic()
        with (folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            running.append(process)
            memory = watch(process)
            running.remove(process)
        with lock:
            fact = facts.setdefault(name, {"seconds": 0.0, "memory": 0})
            fact["seconds"] += time.monotonic() - begun
            fact["memory"] = max(fact["memory"], memory)
            record.write_text(json.dumps(facts, indent=1))
        if process.returncode:
            lines = (folder / f"{name}.log").read_text().strip().splitlines()
            failed[name] = lines[-1] if lines else f"exit {process.returncode}"
            print(f"{time.strftime('%X')}  {name} failed: {failed[name]} (see {log.name})", flush=True)

    with ThreadPoolExecutor(args.at_once) as pool:
        cells = [pool.submit(do, seed, row) for seed in args.seeds for row in rows]
        try:
            for cell in cells:
                cell.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:  # each ends its own cluster, and goes on with the next start
                process.terminate()
            raise
    return failed


def watch(process: subprocess.Popen) -> int:
    """Wait for a cell; the most bytes that its processes held at once, shared memory left out."""
    import psutil

    most = 0
    while process.poll() is None:
        held = 0
        try:
            for one in (found := psutil.Process(process.pid), *found.children(recursive=True)):
                found_memory = one.memory_info()
                held += found_memory.rss - getattr(found_memory, "shared", 0)
        except psutil.NoSuchProcess:
            pass
        most = max(most, held)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    return most


def show(args: argparse.Namespace, compared: list[Row], rest: list[str], folder: Path, failed: dict[str, str]) -> bool:
    """Print the table and write the files, of the cells that are finished; whether there was one to write."""
    from rich.console import Console
    from rich.table import Table

    from rayrec import comparison_page
    from rayrec.comparison import compare, read_cell
    from rayrec.published import published
    from rayrec.runs import versions

    cells = []
    for seed in args.seeds:
        for one in compared:
            if (name := f"{one.label}-seed{seed}") not in failed:
                decode = "d3" if one.method == "D3" else args.decode
                cells.append(read_cell(folder / name, one.label, seed, decode))
    if not cells:
        return False
    tuned = [cell for cell in cells if cell.method not in BASELINES]
    of_popular = {cell.seed: folder / f"{cell.method}-seed{cell.seed}" for cell in tuned}
    cells = [read_cell(path, "Popular", seed, args.decode) for seed, path in of_popular.items()] + cells
    against = args.against if any(c.method == args.against for c in cells) else cells[0].method
    rows, facts = compare(cells, against, args.k), json.loads((folder / "cells.json").read_text())
    varied = {one.label: {"method": one.method, "value": one.value} for one in compared if one.setting}
    for row in rows:
        row |= {"varied": varied[row["method"]]} if row["method"] in varied else {}
        mine = [fact for seed in row["seeds"] if (fact := facts.get(f"{row['method']}-seed{seed}"))]
        row |= {"seconds": sum(f["seconds"] for f in mine), "memory": max((f["memory"] for f in mine), default=0)}
    data = parse("", cell_args(args, compared[0], args.seeds[0], rest)).data
    beside = published(data.data or "")
    about = f"{Path(data.data or data.source).name}, {args.scale}, test, {args.decode}, N = {rows[0]['N']:,}"
    about += f" × {len(of_popular)} seeds"
    known = {"command": sys.argv, "versions": versions(), "k": args.k, "against": against, "failed": failed}
    (folder / "comparison.json").write_text(json.dumps({**known, "rows": rows, "published": beside}, indent=1))
    (folder / "comparison.csv").write_text(comparison_page.as_csv(rows))
    setting = args.vary[0] if args.vary else ""
    text = comparison_page.page(rows, beside, args.k, against, f"Comparison: {args.name}", about, setting)
    (folder / "comparison.html").write_text(text, encoding="utf-8")
    table = Table(*comparison_page.head_of(args.k, against), title=about, title_justify="left", box=None)
    for row in rows:
        table.add_row(*comparison_page.cells_of(row, args.k))
    console = Console() if sys.stdout.isatty() else Console(width=220)
    console.print(table)
    console.print(f"{folder}/comparison.html, .json, .csv", highlight=False, soft_wrap=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
