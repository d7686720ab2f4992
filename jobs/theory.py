"""How near the preference step comes to the policy that SPRec's theorem 1 predicts, on data whose truth is known.

    python jobs/theory.py                             # 16 runs
    python jobs/theory.py --betas 1 --rows 512 --prompts 50
    python jobs/theory.py --json theory.json

Positives come from p, the true distribution of the next title, and negatives from q. The theorem says that DPO then
ends at π* ∝ π_ref · (p/q)^(1/β). Here p is that of the embedded data, q is uniform over the titles outside the history
(`random`) or π_ref (the policy's own titles), and π_ref is the policy after the first SFT. All runs start from it, take
one epoch of preference steps without SFT, and drop pairs of equal titles. `self_play`, the most likely title alone, is
no draw from π_ref: its row is measured against the π* of one. ReRe takes 48 short iterations of its own.

Total variation is ½ Σ |π − π'| over the titles, whose exact probabilities are normalised over the catalogue; its mean
is over test prompts. "Lists" compares the means of the distributions over all prompts: 0 if every title is recommended
as often as it is watched. Runs resume; --json writes the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
#: A row: its name, whose draws the negatives are, and its flags.
ROWS = {
    "SPRec-RN, random": ("uniform", "--negatives random"),
    "S-DPO, 3 random": ("uniform", "--negatives random --num-negatives 3 --objective sdpo"),
    "SPRec, self_play": ("policy", "--negatives self_play"),
    "SPRec, self_play_sample": ("policy", "--negatives self_play_sample"),
    "S-DPO, 3 self_play_gumbel": ("policy", "--negatives self_play_gumbel --num-negatives 3 --objective sdpo"),
}
#: Rows without β and without a prediction. ReRe divides its 1,536 rows into 48 iterations.
OTHERS = {"ReRe": "--method ReRe --iterations 3 --rows-per-iteration 512"}


class Found(NamedTuple):
    """Total variations of a row, before and after the preference step: to π*, to p, and of the means over prompts."""

    row: str
    beta: float | None
    predicted: tuple[float, float] | None
    truth: tuple[float, float]
    lists: tuple[float, float]
    moved: float


def normalised(log_BI: np.ndarray) -> np.ndarray:
    """Return the distributions (B, I) of unnormalised log-probabilities, which may be -inf."""
    weight_BI = np.exp(log_BI - log_BI.max(axis=1, keepdims=True))
    return weight_BI / weight_BI.sum(axis=1, keepdims=True)


def prediction(ref_BI: np.ndarray, p_BI: np.ndarray, q_BI: np.ndarray, beta: float) -> np.ndarray:
    """Return π* ∝ π_ref (p/q)^(1/β) (B, I); where p is 0 so is π*."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_BI = np.log(ref_BI) + (np.log(p_BI) - np.log(q_BI)) / beta
    return normalised(np.where((p_BI > 0) & (q_BI > 0), log_BI, -np.inf))


def variation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over rows of ½ Σ |one − other| over the last axis."""
    return float(np.abs(one - other).sum(axis=-1).mean() / 2)


def words(args: argparse.Namespace, flags: str, beta: float | None) -> list[str]:
    """The command line of a run, without its folder."""
    flags += f" --pretrain-steps 350 --tiny-vocab 2048 --first-rows {args.first_rows} --lr {args.lr} --seed {args.seed}"
    flags += " --decode beams --test-rows 200 --valid-rows 128"
    if beta:
        flags += f" --iterations 1 --rows-per-iteration {args.rows} --no-sft --beta {beta} --equal-target drop"
        flags += " --allow-random-negatives"
    return flags.split()


def run(args: argparse.Namespace, name: str, flags: str, beta: float | None) -> Path:
    """Do a run, or what is left of it, and return its folder."""
    folder = "-".join("".join(c if c.isalnum() else " " for c in name).split()) + (f"-{beta:g}" if beta else "")
    given = [sys.executable, str(ROOT / "jobs/sprec.py"), *words(args, flags, beta)]
    given += ["--runs", str(args.runs), "--name", folder]
    done = subprocess.run(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(given)}\n{done.stdout[-3000:]}")
    return args.runs / folder


def probabilities(policy: Path, histories: list[list[str]], titles: list[str]) -> np.ndarray:
    """Return a policy's exact distribution over the titles after every history, (B, I)."""
    from rayrec import Recommender

    found = Recommender.open(policy, device="cpu", normalise="vocabulary").score(histories, titles)
    return normalised(np.array(found))


def measure(args: argparse.Namespace) -> Iterator[Found]:
    """Yield every row once its run is done."""
    from rayrec.data import load
    from rayrec.data.settings import DataConfig
    from rayrec.data.synthetic import Truth

    data = load(DataConfig(seed=args.seed))
    truth, rows = data.truth, data.test.slice(0, args.prompts).to_pylist()
    assert isinstance(truth, Truth)
    histories = [row["history"] for row in rows]
    p_BI = np.stack([truth.probabilities(row["history"], row["user"]) for row in rows])
    outside_BI = np.array([[title not in row["history"] for title in truth.titles] for row in rows], float)
    started: np.ndarray | None = None
    settings = [(name, q, flags, beta) for name, (q, flags) in ROWS.items() for beta in args.betas]
    for name, q, flags, beta in [*settings, *((name, "", flags, None) for name, flags in OTHERS.items())]:
        folder = run(args, name, flags, beta)
        if started is None:
            started = probabilities(folder / "00/sft/policy", histories, truth.titles)
        last = max(folder.glob("*/prefer/policy"), key=lambda path: int(path.parts[-3]))
        ended_BI = probabilities(last, histories, truth.titles)
        both, predicted = (started, ended_BI), None
        if beta:
            q_BI = started if q == "policy" else outside_BI
            wanted_BI = prediction(started, p_BI, q_BI, beta)
            predicted = (variation(started, wanted_BI), variation(ended_BI, wanted_BI))
        to_truth = (variation(started, p_BI), variation(ended_BI, p_BI))
        lists = [variation(one.mean(axis=0), p_BI.mean(axis=0)) for one in both]
        yield Found(name, beta, predicted, to_truth, (lists[0], lists[1]), variation(*both))


def options() -> argparse.ArgumentParser:
    """The flags of this job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=float, default=[0.1, 1.0, 3.0])
    parser.add_argument("--rows", type=int, default=4096, help="of the preference step, but for ReRe's")
    parser.add_argument("--first-rows", type=int, default=4096, help="of the first SFT")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/theory"))
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Do the runs and print the table."""
    args = options().parse_args()
    found = []
    print("| row | β | to π*: before, after | to p | lists | moved |\n|---|---|---|---|---|---|", flush=True)
    for one in measure(args):
        found.append(one._asdict())
        beta, pairs = one.beta or "", (one.predicted, one.truth, one.lists)
        cells = ["{:.3f}, {:.3f}".format(*pair) if pair else "" for pair in pairs]
        print(f"| {one.row} | {beta} | {' | '.join(cells)} | {one.moved:.3f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
