"""Starting points of the command line: presets, the papers' methods as settings, and how both are read."""

import argparse
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from rayrec import flags
from rayrec.config import Config
from rayrec.deciding import read_config
from rayrec.fields import check, flag, giving
from rayrec.models.fitting import HIDDEN, PUBLISHED

_log = logging.getLogger(__name__)


def _preset(**groups: dict[str, Any]) -> Config:
    base = Config()
    return dataclasses.replace(base, **{k: dataclasses.replace(getattr(base, k), **v) for k, v in groups.items()})


#: Starting points of the command line; any flag overrides its value.
PRESETS = {
    # The cells of RESULTS.md: a few minutes each on two cores, once another one has made the shared base.
    "small": _preset(
        model={"pretrain_steps": 1000},
        train={"iterations": 2, "first_rows": 2048, "rows_per_iteration": 512, "lr": 1e-4},
    ),
    # A model of so few steps may write nothing but the end of an answer.
    "toy": _preset(
        data={"test_rows": 200, "valid_rows": 64},
        model={"pretrain_steps": 60, "tiny_layers": 2, "tiny_hidden": 64, "tiny_vocab": 1024},
        train={"iterations": 2, "first_rows": 256, "rows_per_iteration": 128, "allow_random_negatives": True},
    ),
    # Three minutes on two cores: enough steps for the model to know sequels and tastes, so that it beats Popular.
    "demo": _preset(
        data={"test_rows": 500, "valid_rows": 128},
        model={"pretrain_steps": 1000, "tiny_vocab": 2048},
        train={
            "iterations": 3,
            "first_rows": 8192,
            "first_epochs": 3,
            "first_lr": 1e-3,
            "rows_per_iteration": 1024,
            "lr": 5e-5,
        },
        evaluate={"decode": ("greedy", "beams")},
    ),
    # A real model of 135 million parameters on two cores: about twenty minutes. Small batches make 512 rows 32 steps.
    "real": _preset(
        data={"test_rows": 200, "valid_rows": 64},
        train={
            "iterations": 1,
            "first_rows": 512,
            "rows_per_iteration": 128,
            "batch": 16,
            "prefer_batch": 16,
        },
        evaluate={"decode": ("greedy", "beams")},
    ),
    # The released settings of SPRec on four cards.
    "paper": _preset(
        model={"model": "meta-llama/Llama-3.2-1B-Instruct", "lora_rank": 16},
        train={
            "iterations": 5,
            "first_epochs": 4,
            "first_warmup": 20.0,
            "warmup": 20.0,
            "dtype": "bfloat16",
        },
        placement={"train_workers": 4, "generators": 4, "device": "gpu"},
    ),
}


#: The preference step of S-DPO (appendix B.3) and of RecPO (D.3, which adopts S-DPO's epochs).
_PREFERENCE = {"lr": 1e-5, "prefer_batch": 128, "prefer_epochs": 3, "schedule": "cosine", "warmup": 0.05}


def _prefer(objective: str, negatives: str, k: int = 1, once: bool = True, **groups: dict[str, Any]) -> dict[str, Any]:
    """A preference method with K = ``k`` negatives; ``once``: it tunes once, offline. ``groups`` are more settings."""
    loss, train = groups.pop("loss", {}), groups.pop("train", {})
    train = {"negatives": (negatives,)} | ({"num_negatives": k} if k > 1 else {}) | train
    return {"loss": {"objective": objective, **loss}, "train": train, **({"offline": {}} if once else {}), **groups}


def _recpo(margin: str) -> dict[str, Any]:
    """RecPO with one of the margins of its table 2."""
    loss, train = {"beta": 1.0, "lam": 2.0, "margin": margin}, {"target": "utility", "min_rating": 4.0}
    return _prefer("recpo", "candidates", 3, loss=loss, train=train, adapters={"train": _PREFERENCE})


def _rollouts(objective: str, batches: int, loss: dict[str, Any]) -> dict[str, Any]:
    """A method that learns from groups of 16 beams, in ``batches`` steps of each roll-out."""
    train, adapters = {"sft": False}, {"train": {"lr": 1e-5, "clip": 0.3}}
    return _prefer(objective, "group_beams", 16, once=False, loss=loss, train=train, adapters=adapters) | {
        "rollout": {"batches": batches}
    }


def _sft(**train: Any) -> dict[str, Any]:
    """A method that has the first SFT alone."""
    return {"train": {"iterations": 0, **train}}


def _over_titles(loss: str, model: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A method whose SFT and beams choose among the tokens that continue a title."""
    supervised, evaluate = {"sft_loss": loss}, {"decode": ("beams",), "normalise": "catalogue"}
    return _sft() | {"supervised": supervised, "evaluate": evaluate, "adapters": {"model": model, "train": train}}


def _tallrec(ask: str, decode: str) -> dict[str, Any]:
    """TALLRec; its adapters are on q and v alone in the paper."""
    adapters = {"model": {"lora_rank": 8, "lora_alpha": 16}, "train": {"first_lr": 1e-4, "batch": 128}}
    data, evaluate = {"protocol": "candidates", "ask": ask}, {"decode": (decode,)}
    return _sft() | {"data": data, "evaluate": evaluate, "adapters": adapters}


_BETA = {"beta": 0.1}
#: MSL's and BEAR's scripts; their adapters are on q and v alone, and the base is in 8 bit.
_MSL: dict[str, Any] = {"model": {"lora_rank": 8, "lora_alpha": 16}, "first_lr": 1e-4, "first_epochs": 10, "batch": 128}
_LLARA = {
    "model": {"lora_rank": 8},
    "train": {"first_lr": 5e-4, "first_epochs": 5, "first_warmup": 0.05, "batch": 128},
}
#: The methods of the papers as settings, by --method. ``offline`` methods tune once, against the first SFT, on all the
#: rows of the iterations that they replace. A method with a ``rollout`` divides these rows into iterations of so many
#: batches. ``adapters`` are settings for models that get some; the tiny one is trained
#: whole. The run decides the rest: the number of rows, the first SFT of preference methods, and most protocols.
METHODS: dict[str, dict[str, Any]] = {
    "zero-shot": _sft(first_rows=0),
    "ChatRec": _sft(first_rows=0)
    | {"evaluate": {"engine": "chat", "decode": ("greedy",)}, "model": {"template": "instruct"}},
    "BIGRec": _sft(),
    "MSL": _over_titles("msl", **_MSL),
    "BEAR": _over_titles("bear", **_MSL),
    "Flower": _over_titles("flower", {"lora_rank": 0}, first_lr=3e-4, first_epochs=7, batch=256),
    "D3": _sft() | {"evaluate": {"decode": ("d3",)}},
    "TALLRec": _tallrec("liking", "score"),
    "TALLRec-generate": _tallrec("title_by_liking", "greedy"),
    "LLaRA": _sft(first_schedule="cosine")
    | {"data": {"protocol": "candidates"}, "model": {"item_vectors": True, "lora_dropout": 0.1}, "adapters": _LLARA},
    "RW": _sft(reweight="genre"),
    "SPRec": _prefer("dpo", "self_play", once=False, loss=_BETA),
    "SPRec-noSFT": _prefer("dpo", "self_play", once=False, loss=_BETA, train={"sft": False}),
    "SPRec-noDPO": {"train": {"prefer": False}},
    "SPRec-RN": _prefer("dpo", "random", once=False, loss=_BETA),
    "SPIN": _prefer("dpo", "self_play", once=False, loss=_BETA, train={"sft": False}),
    "DPO": _prefer("dpo", "random", loss=_BETA),
    "SimPO": _prefer("simpo", "random"),
    "S-DPO": _prefer("sdpo", "candidates", 3, loss={"beta": 1.0}, adapters={"train": _PREFERENCE}),
    "DynamicPO": _prefer(
        "dynamicpo", "candidates", 15, loss={"beta": 1.0, "shift": 6.0}, adapters={"train": _PREFERENCE}
    ),
    "ReRe": _rollouts("rere", 1, {}),
    "GSPO": _rollouts("gspo", 4, {"clip_low": 3e-4, "clip_high": 4e-4}),
    "DMPO": _prefer("dmpo", "random", 3),
    "RecPO": _recpo("ratio"),
    "RecPO-log-ratio": _recpo("log_ratio"),
    "RecPO-log-diff": _recpo("log_diff"),
    "IPO": _prefer("ipo", "random", loss={"tau": 0.1}),
    "CPO": _prefer("cpo", "random", loss=_BETA | {"alpha": 1.0}),
    "ORPO": _prefer("orpo", "random", loss={"lam": 0.1}, adapters={"train": {"lr": 1e-6}}),
    "KTO": _prefer("kto", "random", loss=_BETA),
    "ODPO": _prefer("odpo", "random", loss=_BETA | {"alpha": 1.0}),
    "RosePO": _prefer("rosepo", "self_hard"),
    "RosePO-popular": _prefer("rosepo", "popular"),
    "RosePO-semantic": _prefer("rosepo", "semantic"),
}


#: Methods that are no language models: the models of jobs/baselines.py.
BASELINES = {"SASRec": "sasrec", "GRU4Rec": "gru4rec", "Caser": "caser", "MoRec": "morec"}


#: Methods that answer in one way only.
_OWN_DECODE = {"D3": "d3", "TALLRec": "score", "ChatRec": "greedy"}


def decodes(method: str, protocol: str, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """How the cell of a method answers: the first makes its lists; ``chosen`` replaces the protocol's ways.

    A language model that ranks candidates also writes its answer, for the ValidRatio.
    """
    if method in BASELINES:
        return ("score",) if protocol == "candidates" else ("unmasked",)
    if method in _OWN_DECODE:
        return (_OWN_DECODE[method],)
    return tuple(chosen) or (("score", "greedy") if protocol == "candidates" else ("beams",))


#: Placement of a language model's run that one of a baseline does not read.
UNREAD = ("generators", "tensor_parallel", "generate_resource", "placement", "sequential")
UNREAD += ("checkpoint_steps", "checkpoint_seconds")
#: Placement that the run of a baseline refuses; it trains in a group of fixed size.
_NOT_BASELINE = (*UNREAD, "max_train_workers", "cluster")


def baseline_args(config: Config, model: str) -> list[str]:
    """The command line of jobs/baselines.py for a model on the rows of ``config``; ValueError: no embedder."""
    evaluate, output = config.evaluate, config.output
    found: dict[str, Any] = {"models": model, "top_k": evaluate.top_k, "hidden": HIDDEN}
    found |= dataclasses.asdict(PUBLISHED)
    for group in (config.data, config.placement):
        found |= {f.name: getattr(group, f.name) for f in dataclasses.fields(group) if f.name not in _NOT_BASELINE}
    found |= {"on_existing": output.on_existing, "dry_run": output.dry_run}
    if model == "morec":
        # As where titles are grounded, `lm` is the policy's own base unless another is named.
        base = config.model.model if evaluate.embedder == "lm" and config.model.model != "tiny" else None
        found |= {"embedder": evaluate.embedder, "embedder_path": evaluate.embedder_path or base}
        if not found["embedder_path"]:
            raise ValueError("MoRec reads item vectors from titles. Add --embedder sentence --embedder-path FOLDER.")
    args: list[str] = []
    for name, value in found.items():
        if isinstance(value, bool):
            args.append(flag(name if value else f"no-{name}"))
        elif value is not None:
            args += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return args


def with_method(config: Config, method: str, model: str) -> Config:
    """The configuration with the settings of one of :data:`METHODS` for ``model``; ValueError: no rows to tune on."""
    groups = dict(METHODS[method])
    for group, settings in groups.pop("adapters", {}).items():
        groups[group] = groups.get(group, {}) | (settings if model != "tiny" else {})
    if groups.pop("offline", None) is not None:
        train = config.train
        if not train.iterations:
            raise ValueError(
                f"--iterations 0: --method {method} tunes once, on the rows of all --iterations together, wanted 1 or "
                "more. Take --iterations 1, or --method BIGRec, which has the first SFT alone."
            )
        once = {"iterations": 1, "sft": False, "rows_per_iteration": train.iterations * train.rows_per_iteration}
        groups["train"] = once | groups["train"]
    if (rollout := groups.pop("rollout", None)) is not None:
        train = config.train
        rows = rollout["batches"] * train.prefer_batch
        iterations = -(-train.iterations * train.rows_per_iteration // rows)
        groups["train"] = {"iterations": iterations, "rows_per_iteration": rows} | groups["train"]
        groups["evaluate"] = {"every": max(1, train.rows_per_iteration // rows)} | groups.get("evaluate", {})
    return dataclasses.replace(config, **{k: dataclasses.replace(getattr(config, k), **v) for k, v in groups.items()})


def _ranges(args: Sequence[str]) -> list[str]:
    """``--train-workers 2:8`` as the two flags that it means."""
    made: list[str] = []
    for arg in args:
        least, colon, most = arg.removeprefix("--train-workers=").partition(":")
        ours = arg.startswith("--train-workers=") or made[-1:] == ["--train-workers"]
        if ours and colon and least.isdecimal() and most.isdecimal():
            made += [arg[: -len(colon + most)], "--max-train-workers", most]
        else:
            made.append(arg)
    return made


#: The settings that ``--help`` shows, by their purpose.
FIRST = {
    "Data": ("data", "seed"),
    "Model": ("model",),
    "Training": ("iterations", "rows_per_iteration", "lr"),
    "Evaluation": ("decode", "top_k"),
    "Machine": ("train_workers", "generators", "device"),
    "Output": ("runs", "name", "dry_run"),
}


def parse(
    description: str, args: list[str] | None = None, engines: Iterable[str] = (), prog: str | None = None
) -> Config:
    """Read the command line; ``--config`` or ``--preset`` and then ``--method`` choose the defaults of all other flags.

    ``engines``: the names that ``--engine`` takes beside `auto`; without them it takes any. Beside ``--method``,
    ``--iterations`` and ``--rows-per-iteration`` say what self-play would do: methods that tune once see as many rows,
    and methods with roll-outs of some batches of ``--prefer-batch`` as many, to a whole roll-out.

    Raises:
        ValueError: no such preset or method; a number from which the method's rows follow is out of range; the file of
            ``--config`` is no run's config.json, or stands beside ``--preset``.
    """
    import sys

    args = _ranges(sys.argv[1:] if args is None else args)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--method")
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(args)
    for name, value, known in (("preset", chosen.preset, PRESETS), ("method", chosen.method, METHODS)):
        if value is not None and value not in known:
            alike = [one for one in known if one.lower() == value.lower()] or get_close_matches(value, known, 3)
            near = f" Did you mean {' or '.join(alike)}?" if alike else ""
            raise ValueError(f"--{name} {value}: no such {name}.{near} Take one of {', '.join(known)}.")
    default = PRESETS[chosen.preset] if chosen.preset else Config()
    if chosen.config:
        if chosen.preset:
            raise ValueError(f"--config and --preset {chosen.preset} both set all defaults. Leave one of them out.")
        default = read_config(chosen.config)
    if chosen.method:
        budget = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        budget.add_argument("--iterations", type=int)
        budget.add_argument("--rows-per-iteration", type=int)
        given, rest = budget.parse_known_args(rest)
        named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        named.add_argument("--model", default=default.model.model)
        named.add_argument("--prefer-batch", type=int, default=default.train.prefer_batch)
        also = named.parse_known_args(rest)[0]
        train = dataclasses.replace(default.train, prefer_batch=also.prefer_batch, **vars(given))
        check(train)  # before the rows of the method are computed from these
        default = with_method(dataclasses.replace(default, train=train), chosen.method, also.model)
        if prog and default.train.iterations == 0 and vars(given).get("iterations"):
            told = "--iterations %d: %s has none, and its run is the same with any."
            _log.warning(told, given.iterations, chosen.method)
    own = {
        "--preset NAME": f"{', '.join(PRESETS)}: sets the defaults of all flags below",
        "--method NAME": f"{', '.join(METHODS)}: a paper's settings; the number of rows, the first SFT of preference "
        "methods and the protocol (but for TALLRec and LLaRA) stay those of the run",
        "--config FILE": "a run's config.json, whose settings are the defaults of all flags",
    }
    with giving(engines=["auto", *engines] if engines else []):
        return flags.read(Config, rest, default=default, description=description, prog=prog, first=FIRST, own=own)
