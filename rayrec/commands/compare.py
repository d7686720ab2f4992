"""Methods × seeds on one data set, side by side: every cell is a run of jobs/sprec.py that resumes.

    rayrec compare --data DIR --methods BIGRec S-DPO SPRec --seeds 0 1 2
    rayrec compare --data DIR --preset table2 --scale toy
    rayrec compare --data DIR --preset table2 --iterations 3   # any flag of jobs/sprec.py holds for all cells
    rayrec compare --data DIR --methods BIGRec SPRec --vary beta 0.03 0.1 0.3
    rayrec compare --data DIR --preset figure6    # SPRec's: K beams of the policy, the mean of three iterations
    rayrec compare --data DIR --methods BIGRec SPRec SPRec:sft-loss=msl --tune lr 3e-5 1e-4 --tune first-lr 1e-4 3e-4

The presets also set what their tables and figures hold fixed (SETTINGS, and for models with adapters PUBLISHED), where
the command does not name it. sdpo takes MoRec along with --embedder-path, and ChatRec with --endpoint and --served.

The same command again does what is left, and rewrites the table, comparison.json, comparison.csv and comparison.html.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rayrec import flags, signals
from rayrec.compare.tables import Row, numbers, on_validation, row_of, tried, vary
from rayrec.methods import BASELINES, METHODS, baseline_args, decodes, parse
from rayrec.runs.manifest import write_json, write_text
from rayrec.runs.storage import TROUBLES, errno_of

if TYPE_CHECKING:
    from rayrec.compare.cells import Cell

#: The systems of a published table that are methods of jobs/sprec.py.
PRESETS = {
    "table2": "BIGRec SPRec SASRec RW D3 DMPO S-DPO RosePO SPRec-noSFT SPRec-noDPO SPRec-RN",
    "sdpo": "zero-shot TALLRec TALLRec-generate LLaRA BIGRec GRU4Rec Caser SASRec DPO S-DPO",
    "recpo": "zero-shot BIGRec GRU4Rec Caser SASRec DPO SimPO S-DPO RecPO RecPO-log-ratio RecPO-log-diff",
    "figure5": "BIGRec SPRec",
    "figure6": "BIGRec SPRec",
}
#: What those tables hold fixed, unless the command names it: the rows and their targets, and of preference methods the
#: negatives and β, so that S-DPO and DPO differ in K alone, and RecPO and its baselines learn from the same rows.
_FIGURE = "iterations 5, rows-per-iteration 1024"
SETTINGS = {
    "sdpo": "protocol candidates, negatives candidates, beta 1",
    "recpo": "protocol candidates, history 20, ratings, split leave_last_two, k-core 5, max-length 1024, "
    "target utility, min-rating 4, negatives candidates, beta 1",
    "figure5": _FIGURE,
    "figure6": f"{_FIGURE}, negatives self_play_beam, objective sdpo, beta 0.1",
}
#: The training that S-DPO B.3 and RecPO D.3 print for all their methods; the tiny model has that of --scale.
_TRAINING = "lr 1e-5, prefer-batch 128, prefer-epochs 3, schedule cosine, warmup 0.05"
_TRAINING += ", first-schedule cosine, first-warmup 0.05, batch 128"
PUBLISHED = {"sdpo": _TRAINING, "recpo": f"{_TRAINING}, first-lr 1e-5"}
#: What SPRec's figures vary, and the iterations whose mean they show. Their values are ours.
VARIED = {"figure5": "random-share 0 0.25 0.5 0.75 1", "figure6": "num-negatives 1 3 8"}
LAST = dict.fromkeys(VARIED, 3)
#: Flags of jobs/sprec.py that differ between cells, and the flags of this job that set them.
OWN = {"--seed": "--seeds 0 1 2", "--method": "--methods BIGRec SPRec"}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in which no name of a method is broken at its hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def options() -> argparse.ArgumentParser:
    """The flags of this job; all others are those of jobs/sprec.py."""
    parser = argparse.ArgumentParser(
        prog="rayrec compare",
        description=flags.wrapped(__doc__ or "", flags.width()),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    text = f"{', '.join([*METHODS, *BASELINES])}; METHOD:flag=value,flag=value is a row with settings of its own"
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=text)
    parser.add_argument("--preset", choices=PRESETS, help="the methods of a published table or figure")
    parser.add_argument("--scale", choices=("toy", "small", "paper"), default="small", help="--preset of every cell")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    text = "a number among the flags, such as `beta` or `num-negatives`, or `random-share`, and its values for every "
    text += "language model but --against"
    parser.add_argument("--vary", nargs="+", metavar=("SETTING", "VALUE"), help=text)
    text = "a setting and values of which each method takes the one with the best NDCG on the validation rows of the "
    text += "first seed: `lr` for methods with iterations, `first-lr` for the others. Give it once for each"
    parser.add_argument("--tune", nargs="+", action="append", default=[], metavar=("SETTING", "VALUE"), help=text)
    text = "iterations of self-play whose mean is compared; default: 3 in figures 5 and 6, else the last alone"
    parser.add_argument("--average-last", type=int, help=text)
    parser.add_argument("--against", default="BIGRec", help="the method that all others are tested against")
    text = "of language models but D3, TALLRec and ChatRec, which have their own; the first makes the lists. "
    text += "Default: beams, and with --protocol candidates score greedy"
    ways = ("beams", "greedy", "free_beams", "score")
    parser.add_argument("--decode", nargs="+", choices=ways, default=(), help=text)
    parser.add_argument("--endpoint", help="of ChatRec's cells")
    parser.add_argument("--served", help="of ChatRec's cells")
    parser.add_argument("--k", type=int, help="length of the lists in the tables; default: 5, of candidates 1")
    parser.add_argument("--runs", help="a folder; a comparison reads all its cells")
    parser.add_argument("--name", default="comparison", help="folder of the cells and the tables, in --runs")
    text = "cells at once, each with resources of its own. Default: as many as the cluster has room for, or one"
    parser.add_argument("--at-once", type=int, help=text)
    return parser


def main(words: list[str] | None = None) -> int:
    """Read a command line and do what is left of its comparison; returns the exit status."""
    args, rest = options().parse_known_args(words)
    signals.catch("the same command goes on with what is left")
    try:
        rest, rows = settle(args, rest)
        check(args, rows, rest)
        folder = Path(args.runs).absolute() / args.name
        if args.output.dry_run:
            return plans(args, rows, rest, folder)
        failed, rows = tune(args, rows, rest, folder)
        failed |= run_cells(args, rows, args.seeds, rest, folder)
        made = show(args, rows, rest, folder, failed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if errno_of(error) not in TROUBLES:
            raise
        print(f"error: {error}. Finished cells are kept. The same command goes on with what is left.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signals.announce()
        return signals.EXIT_CODE
    return 1 if failed or not made else 0


def named(rest: list[str], flag: str) -> bool:
    """Whether the command names a flag."""
    return any(word == flag or word.startswith(f"{flag}=") for word in rest)


def settle(args: argparse.Namespace, rest: list[str]) -> tuple[list[str], list[Row]]:
    """The flags of all cells and the rows, with the preset's; sets ``args.protocol``, ``k`` and ``output``."""
    from rayrec.cluster import address
    from rayrec.driver import checks

    args.runs = address.settle_runs(args.runs)
    if "://" in args.runs:  # the error does not repeat it, since it may hold keys
        raise ValueError("--runs is a URL; a comparison reads all its cells. Name a folder.")
    checks.check_open(args.endpoint or "")
    checks.check_name(args.name)
    for flag, instead in OWN.items():
        if named(rest, flag) or f"--{(args.vary or [''])[0]}" == flag:
            raise ValueError(f"{flag} would be that of every cell. Take {instead}.")
    settings = [SETTINGS.get(args.preset, "")]
    if parse("", ["--preset", args.scale, *rest]).model.model != "tiny":
        settings.append(PUBLISHED.get(args.preset, ""))
    for setting in filter(None, ", ".join(settings).split(", ")):
        flag, *words = f"--{setting}".split()
        if not named(rest, flag) and not named(rest, flag.replace("--", "--no-", 1)):
            rest = [*rest, flag, *words]
    args.vary = args.vary or VARIED.get(args.preset, "").split()
    args.average_last = LAST.get(args.preset, 1) if args.average_last is None else args.average_last
    rows = [row_of(words) for words in (args.methods or []) + PRESETS.get(args.preset, "").split()]
    if args.preset == "sdpo":
        rows += [Row("MoRec")] if named(rest, "--embedder-path") else []
        rows += [Row("ChatRec")] if args.endpoint else []
    rows = list(dict.fromkeys(rows))
    if not rows:
        raise ValueError("No method is named. Add --methods BIGRec SPRec, or --preset table2.")
    own = [parse("", [*(["--method", row.method] if row.method in METHODS else []), *rest, *row.flags]) for row in rows]
    choosing = [row.label for row, config in zip(rows, own, strict=True) if config.data.protocol == "candidates"]
    if choosing and len(choosing) < len(rows):
        raise ValueError(f"{', '.join(choosing)} would choose from candidates alone. Add --protocol candidates.")
    args.protocol = "candidates" if choosing else "open"
    args.k = (1 if choosing else 5) if args.k is None else args.k
    args.output = own[0].output
    return rest, vary(rows, args.vary, args.against)


def check(args: argparse.Namespace, rows: list[Row], rest: list[str]) -> None:
    """Raise ValueError for settings that some cell would refuse, before the first cell starts."""
    from rayrec.driver import checks

    popular = ["Popular"] if any(row.method not in BASELINES for row in rows) else []
    if args.against not in (names := [*(row.label for row in rows), *popular]):
        raise ValueError(f"--against {args.against} is not compared. Name one of {names}.")
    labels = [row.label for row in rows]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is a row twice. Name each once.")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds {args.seeds} has one twice. Name each once.")
    if args.average_last < 1:
        raise ValueError(f"--average-last is {args.average_last}, wanted at least 1. Leave it out for the last one.")
    if args.at_once is not None and args.at_once < 1:
        raise ValueError(f"--at-once is {args.at_once}, wanted at least 1. Without it the cluster's room decides.")
    if any(row.method == "ChatRec" for row in rows) and not (args.endpoint and args.served):
        raise ValueError("ChatRec, --endpoint URL and --served NAME go together. Name all three, or none of them.")
    for setting, *values in args.tune:
        numbers(f"--tune {setting}", values, least=2)
        if named(rest, f"--{setting}"):
            raise ValueError(f"--{setting} and --tune {setting} both set it. Leave one of them out.")
    for row in rows:
        config = checks.resolve(parse("", cell_args(args, row, args.seeds[0], rest)))
        for one in tried(row, config, args.tune):
            checks.resolve(parse("", cell_args(args, one, args.seeds[0], rest)))
        if row.method in BASELINES:
            baseline_args(config, BASELINES[row.method])
        if args.k not in config.evaluate.top_k:
            raise ValueError(f"--k {args.k} is not among --top-k {config.evaluate.top_k}. Name one of them.")
        if row.method in METHODS and 1 < config.train.iterations < args.average_last:
            raise ValueError(
                f"--average-last {args.average_last}: {row.label} has {config.train.iterations} iterations. Take "
                f"--iterations {args.average_last}, or average fewer."
            )


def cell_args(args: argparse.Namespace, row: Row, seed: int, rest: list[str]) -> list[str]:
    """The flags of one cell without its folder; for a baseline, those of a language model on the same rows."""
    words = ["--preset", args.scale]
    if row.method in METHODS:
        words += ["--method", row.method, "--decode", *decodes(row.method, args.protocol, args.decode)]
    words += ["--seed", str(seed), *rest, *row.flags]
    if row.method == "ChatRec":
        # The last one counts: --engine among the flags of all cells is that of the others.
        words += ["--engine", "chat", *(["--endpoint", args.endpoint] if args.endpoint else [])]
        words += ["--served", args.served] if args.served else []
    return words


def command(args: argparse.Namespace, row: Row, seed: int, rest: list[str], folder: Path) -> list[str]:
    """The command line of one cell."""
    job, words = "sprec", cell_args(args, row, seed, rest)
    if row.method in BASELINES:
        job, words = "baselines", baseline_args(parse("", words), BASELINES[row.method])
    place = ["--runs", str(folder), "--name", f"{row.folder}-seed{seed}"]
    return [sys.executable, "-m", "rayrec.commands", job, *words, *place]


def plans(args: argparse.Namespace, rows: list[Row], rest: list[str], folder: Path) -> int:
    """Print the plan of every method's first cell; the exit status of the first that has none, else 0."""
    code = 0
    for row in rows:
        print(f"\n{row.label}, the first of {len(args.seeds)} seeds", flush=True)
        done = subprocess.run(command(args, row, args.seeds[0], rest, folder), check=False)
        code = code or done.returncode
    return code


def tune(args: argparse.Namespace, rows: list[Row], rest: list[str], folder: Path) -> tuple[dict[str, str], list[Row]]:
    """Run the values of ``--tune`` with the first seed, and choose for each row the best one on validation rows.

    ``--against`` comes first: rows with iterations start from the first SFT that was chosen for it. Returns the last
    line of the log of each cell that failed, and the rows with their chosen settings.
    """
    seed, failed, best, shared = args.seeds[0], dict[str, str](), dict[Row, Row](), tuple[tuple[str, str], ...]()
    for now in (True, False) if args.tune else ():
        some = [row for row in rows if (row.label == args.against) == now]
        own = {row: tried(row, parse("", cell_args(args, row, seed, rest)), args.tune, shared) for row in some}
        failed |= run_cells(args, [one for ones in own.values() for one in ones], [seed], rest, folder)
        for row, ones in own.items():
            decode = decodes(row.method, args.protocol, args.decode)[0]
            done = [one for one in ones if f"{one.folder}-seed{seed}" not in failed] if len(ones) > 1 else []
            found = {one: on_validation(folder / f"{one.folder}-seed{seed}", decode, args.k) for one in done}
            value = {" ".join(map("=".join, one.tuned)): found[one] for one in done}
            best[row] = replace(max(done or ones[:1], key=lambda one: found.get(one, 0)), validation=value)
            if now:
                shared = tuple(pair for pair in best[row].tuned if pair[0].startswith("first-"))
    return failed, [best.get(row, row) for row in rows]


def run_cells(
    args: argparse.Namespace, rows: list[Row], seeds: list[int], rest: list[str], folder: Path
) -> dict[str, str]:
    """Run every cell; return the last line of the log of each that failed, by its name.

    Where several run at once, --against runs before the others of its seed, which share its first training.
    """
    from rayrec.cluster.address import runs_at_once
    from rayrec.compare.cells import USED, account, finished_phases, read_used, start, watch

    at_once = args.at_once or runs_at_once(parse("", cell_args(args, rows[0], args.seeds[0], rest)))
    cells = [(seed, row) for seed in seeds for row in rows]
    first = next((row for row in rows if row.label == args.against), rows[0])
    rounds = [cells] if at_once == 1 else [[c for c in cells if (c[1] == first) == now] for now in (True, False)]
    folder.mkdir(parents=True, exist_ok=True)
    lock, failed, used = threading.Lock(), {}, read_used(folder)
    running, stopped = list[subprocess.Popen](), threading.Event()

    def do(seed: int, row: Row) -> None:
        name = f"{row.folder}-seed{seed}"
        before = finished_phases(folder / name)
        print(f"{time.strftime('%X')}  {name}", flush=True)
        begun = time.monotonic()
        with (folder / f"{name}.log").open("a") as log:
            line = command(args, row, seed, rest, folder)
            with lock:
                if stopped.is_set():
                    return
                running.append(process := start(line, log))
            memory = watch(process)
        with lock:
            attempt = {"seconds": time.monotonic() - begun, "memory": memory, "finished": not process.returncode}
            known = None if args.output.on_existing == "overwrite" else used.get(name)
            used[name] = account(known, attempt, before != finished_phases(folder / name))
            write_json(folder / USED, used)
        if process.returncode and not stopped.is_set():
            lines = (folder / f"{name}.log").read_text("utf-8", errors="replace").strip().splitlines()
            failed[name] = lines[-1] if lines else f"exit {process.returncode}"
            print(f"{time.strftime('%X')}  {name} failed: {failed[name]} (see {log.name})", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for some in rounds:
                signals.wait_for([pool.submit(do, seed, row) for seed, row in some])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with lock:
                stopped.set()
            for process in running:  # each ends its own cluster; the same command resumes it
                process.terminate()
            raise
    return failed


def read_cells(args: argparse.Namespace, rows: list[Row], folder: Path, failed: dict[str, str]) -> list[Cell]:
    """Read the finished cells, and Popular of each seed that has a language model."""
    from rayrec.compare.cells import read_cell

    cells, popular = [], {}
    names = {(seed, row): f"{row.folder}-seed{seed}" for seed in args.seeds for row in rows}
    for (seed, row), name in names.items():
        if name not in failed:
            ways = decodes(row.method, args.protocol, args.decode)
            cells.append(read_cell(folder / name, row.label, seed, ways, args.average_last))
            if row.method not in BASELINES:
                popular[seed] = read_cell(folder / name, "Popular", seed, ("popular",))
    return [*popular.values(), *cells]


def show(args: argparse.Namespace, compared: list[Row], rest: list[str], folder: Path, failed: dict[str, str]) -> bool:
    """Print the table of the finished cells and write its files; return whether any cell is finished."""
    from rich.console import Console
    from rich.table import Table

    from rayrec.compare import page
    from rayrec.compare.cells import read_used
    from rayrec.compare.compare import compare
    from rayrec.compare.published import published
    from rayrec.runs.run import versions

    if not (cells := read_cells(args, compared, folder, failed)):
        return False
    against = args.against if any(c.method == args.against for c in cells) else cells[0].method
    if against != args.against:
        print(f"--against {args.against} has no finished cell; the differences are to {against}.")
    rows, used = compare(cells, against, args.k), read_used(folder)
    setting = args.vary[0] if args.vary else ""
    of = {one.label: one for one in compared}
    for row in rows:
        one = of.get(row["method"], Row(row["method"]))
        if value := dict(one.own).get(setting):
            row["varied"] = {"method": one.method, "value": float(value)}
        row |= {"tuned": dict(one.tuned), "validation": one.validation} if one.tuned else {}
        if own := [found for seed in row["seeds"] if (found := used.get(f"{one.folder}-seed{seed}"))]:
            row |= {"seconds": sum(one["seconds"] for one in own), "memory": max(one["memory"] for one in own)}
    data = parse("", cell_args(args, compared[0], args.seeds[0], rest)).data
    beside, seeds = published(data.data or "", args.protocol), len({cell.seed for cell in cells})
    way, size = decodes("BIGRec", args.protocol, args.decode)[0], f"N = {rows[0]['N']:,}"
    parts = [Path(data.data or data.source).name, args.scale, "test", args.protocol, way]
    about = ", ".join([*parts, f"{size} × {seeds} seed{'s' * (seeds > 1)}"])
    known = {"command": sys.argv, "versions": versions(), "k": args.k, "against": against, "failed": failed}
    write_text(folder / "comparison.json", json.dumps({**known, "rows": rows, "published": beside}, indent=1))
    write_text(folder / "comparison.csv", page.as_csv(rows))
    title = f"Comparison: {args.name}"
    write_text(folder / "comparison.html", page.page(rows, beside, args.k, against, title, about, setting))
    head, lines = page.table(rows, args.k, against)
    table = Table(*head, title=about, title_justify="left", box=None)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 250).print(table)
    print(f"{folder}/comparison.html, .json, .csv")
    return True
