"""Settings and data that do not fit together, refused before anything starts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from rayrec import fields, signals
from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.candidates import CANDIDATES
from rayrec.data.likings import one_by_one
from rayrec.data.mapped import SLICE, slices
from rayrec.data.touched import Touched
from rayrec.driver.groups import check_groups
from rayrec.driver.long_prompts import rooms
from rayrec.negatives import DEFAULTS, NEGATIVES, mixture
from rayrec.objectives.settings import LossConfig, make_objective, resolve_sft
from rayrec.objectives.settings import resolve as resolve_loss
from rayrec.training.pair_columns import COLUMNS

#: Most bytes of a file's name on Linux.
_NAME_BYTES = 255


def resolve(config: Config, gpu: bool = False) -> Config:
    """Fill in the settings whose default depends on others, and on whether the run is on GPUs.

    Raises:
        ValueError: a setting that is out of range or at odds with another.
    """
    train = dataclasses.replace(config.train, negatives=config.train.negatives or (DEFAULTS[config.data.protocol],))
    config = dataclasses.replace(config, train=train)
    model, placement = config.model, config.placement
    for group in (config.model, config.train, config.evaluate, config.placement):
        fields.check(group)
    _check_names(config)
    exact = "score" if config.data.protocol == "candidates" else "beams"
    decode = tuple(dict.fromkeys(exact if mode == "auto" else mode for mode in config.evaluate.decode))
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, decode=decode))
    _check_together(config)
    if model.lora_rank is None:
        model = dataclasses.replace(model, lora_rank=0 if model.model == "tiny" else 16)
    if train.dtype is None:
        train = dataclasses.replace(train, dtype="bfloat16" if gpu and model.model != "tiny" else "float32")
    if train.zero_stage is None:
        train = dataclasses.replace(train, zero_stage=(0 if model.lora_rank else 2) if gpu else 1)
    if placement.placement == "shared":
        placement = dataclasses.replace(placement, sequential=True)
    loss = resolve_loss(config.loss)
    check_objective(loss, train.prefer_batch)
    supervised = resolve_sft(config.supervised)
    return dataclasses.replace(config, model=model, train=train, loss=loss, supervised=supervised, placement=placement)


def check_objective(loss: LossConfig, batch: int) -> None:
    """Refuse an objective that reads a column which nothing fills, or more than one row of a smaller ``batch``."""
    objective, name = make_objective(loss), loss.objective
    if unknown := sorted(objective.reads - COLUMNS.keys()):
        raise ValueError(
            f"--objective {name} reads {', '.join(unknown)}, and columns are {', '.join(COLUMNS)}. Add a row to "
            "rayrec.training.pair_columns.COLUMNS."
        )
    if batch < objective.least_batch:
        has = "one" if batch == 1 else batch
        raise ValueError(
            f"--objective {name} compares the rows of a batch, and --prefer-batch {batch} has {has}. Take at least "
            f"{objective.least_batch}."
        )


def check_open(endpoint: str) -> None:
    """Refuse an address that may hold a secret.

    Raises:
        ValueError: which does not repeat it.
    """
    parts = urlsplit(endpoint)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "--endpoint holds a user name or a query, and the settings of a run are kept. Give the address alone, and "
            "the key in OPENAI_API_KEY."
        )


def check_name(name: str | None) -> None:
    """Refuse a name of a run that would not be a folder of its own in --runs; those with a leading dot are rayrec's.

    Raises:
        ValueError: with the name and the remedy.
    """
    if name is not None and (size := len(os.fsencode(name))) > _NAME_BYTES:
        raise ValueError(
            f"The name of the run folder, {name!r:.60}…, has {size} bytes, wanted at most {_NAME_BYTES}. Take a "
            "shorter --name."
        )
    if name is not None and (Path(name).name != name or name[:1] in ("", ".") or not name.isprintable()):
        raise ValueError(
            f"--name {name!r} is not a plain folder name, printable and without a leading dot. Put folders into --runs."
        )


def _check_names(config: Config) -> None:
    output, evaluate = config.output, config.evaluate
    check_name(output.name)
    if output.keep != "all" and not (output.keep.isdecimal() and int(output.keep) > 0):
        raise ValueError(f"--keep is {output.keep!r}, wanted a number of policies above 0, or `all`. The default is 2.")
    if evaluate.d3_alpha is not None and not 0 <= evaluate.d3_alpha <= 1:
        raise ValueError(
            f"--d3-alpha is {evaluate.d3_alpha}, wanted a share from 0 to 1. Leave it out to have it tuned."
        )
    if evaluate.d3_alpha is not None and "d3" not in evaluate.decode:
        raise ValueError(f"--d3-alpha {evaluate.d3_alpha} is read by --decode d3 alone. Add it, or leave this out.")
    for name in ("decode", "top_k"):
        values = getattr(evaluate, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{fields.flag(name)} is {values}, wanted at least one value, each once. Name them with spaces."
            )
    if evaluate.embedder == "title" and evaluate.embedder_path is not None:
        raise ValueError(
            f"--embedder-path {evaluate.embedder_path} is not read by --embedder title. Add --embedder sentence."
        )


def _check_together(config: Config) -> None:
    model, train, evaluate, workers = config.model, config.train, config.evaluate, config.placement.train_workers
    for name, batch in config.batches.items():
        if batch % workers:
            raise ValueError(
                f"{fields.flag(name)} is {batch}, wanted a multiple of --train-workers {workers}. "
                f"Take {batch + workers - batch % workers}."
            )
    if (most := config.placement.max_train_workers) is not None and most < workers:
        raise ValueError(f"--train-workers {workers}:{most} is no range. Put the smaller number first.")
    if model.max_new_tokens is not None and model.max_length <= model.max_new_tokens:
        raise ValueError(
            f"--max-length {model.max_length} holds a prompt and --max-new-tokens {model.max_new_tokens}, so no room "
            "is left for a prompt. Raise --max-length."
        )
    if config.placement.placement == "shared" and config.placement.tensor_parallel > 1:
        raise ValueError(
            "--placement shared lets one GPU alternate, "
            f"--tensor-parallel {config.placement.tensor_parallel} takes more. Leave one out."
        )
    if config.placement.placement == "shared" and (n := config.placement.generators) > workers:
        raise ValueError(
            f"--placement shared puts a generator beside a trainer, and there are {n} generators and {workers} "
            f"trainers. Take --generators {workers}, or more --train-workers."
        )
    if config.placement.placement == "shared" and config.placement.max_train_workers is not None:
        raise ValueError(
            f"--placement shared pairs generators and trainers, and --train-workers {workers}:"
            f"{config.placement.max_train_workers} changes their number. Take --train-workers {workers}."
        )
    if not train.sft and not train.prefer and train.iterations:
        raise ValueError(
            "--no-sft and --no-prefer leave an iteration nothing to do. Leave one of them out, or add --iterations 0."
        )
    if train.prefer and train.iterations:
        check_groups(config)
    for name in mixture.parse(train.negatives):
        if "embedder" in NEGATIVES[name].needs and evaluate.embedder == "title":
            raise ValueError(
                f"--negatives {name} compares titles by a sentence embedder. Add --embedder sentence and "
                "--embedder-path FOLDER."
            )
        sampler, k = NEGATIVES[name], train.num_negatives
        if train.prefer and train.iterations and sampler.decode and (most := sampler.answers(k)) < k:
            raise ValueError(
                f"--num-negatives {k}: --negatives {name} has {most} answer to a prompt, and random titles would fill "
                "the rest. Take --negatives self_play_beam --objective sdpo, or --negatives self_play_sample, or a "
                "mixture of these, such as --negatives self_play_beam:0.5 random:0.5."
            )
        if "candidates" in NEGATIVES[name].needs and train.num_negatives >= CANDIDATES:
            raise ValueError(
                f"--num-negatives {train.num_negatives}: --negatives {name} has {CANDIDATES - 1} wrong candidates. "
                "Take fewer."
            )
    if config.placement.cluster is not None and not config.output.dry_run:
        raise ValueError(
            f"--cluster {config.placement.cluster} is for an estimate. Add --dry-run to have it; to run on a cluster, "
            "take --address."
        )
    check_open(evaluate.endpoint or "")
    chooses = config.data.protocol == "candidates"
    modes = {"auto", "greedy", "score"} if chooses else {"auto", "greedy", "beams", "free_beams", "d3", "gumbel"}
    if wrong := sorted(set(evaluate.decode) - modes):
        raise ValueError(
            f"--decode {' '.join(wrong)} does not go with --protocol {config.data.protocol}. Take one of "
            f"{', '.join(sorted(modes))}."
        )
    tuned = train.iterations or train.reweight != "none"
    if config.data.ask == "title_by_liking" and not chooses:
        raise ValueError("--ask title_by_liking lists candidates. Add --protocol candidates, or leave --ask out.")
    if config.data.ask == "liking" and (tuned or evaluate.decode != ("score",) or not chooses):
        raise ValueError(
            "--ask liking has one question for each candidate, and no titles to prefer. Take --method TALLRec, which "
            "has --protocol candidates, --decode score and --iterations 0, and no --reweight."
        )
    decoders = {NEGATIVES[name].decode for name in mixture.parse(train.negatives)}
    scored = train.score_negatives or decoders & {"score", "beams"}
    searched = scored or set(evaluate.decode) - {"greedy", "free_beams", "gumbel"}
    if evaluate.normalise == "catalogue" and (config.data.ask == "liking" or not searched):
        raise ValueError(
            "--normalise catalogue is read where titles are searched or scored, and this plan does neither. Add "
            f"--decode {'score' if chooses else 'beams'} and take no --ask liking, or leave --normalise out."
        )
    if config.supervised.sft_loss != "sft" and config.data.ask == "liking":
        raise ValueError(
            f"--sft-loss {config.supervised.sft_loss} chooses among titles, and --ask liking is answered by Yes or No. "
            "Leave one of them out."
        )
    if model.item_vectors and not train.first_rows:
        raise ValueError("--item-vectors has a network that the first SFT trains. Take --first-rows above 0.")
    longest = max(evaluate.top_k)
    if chooses and longest > CANDIDATES:
        raise ValueError(f"--top-k {longest} is longer than a list of {CANDIDATES} candidates. Take at most that.")
    if set(evaluate.decode) - {"greedy", "score"} and evaluate.beam_width < longest:
        raise ValueError(
            f"--beam-width {evaluate.beam_width} gives fewer titles than --top-k {longest}. "
            f"Take --beam-width {longest}, or a shorter list."
        )


def check_data(config: Config, data: Dataset) -> None:
    """Refuse settings that this catalogue cannot serve.

    Raises:
        ValueError: more negatives, a longer list or more history than there are items.
    """
    items = len(data.catalogue)
    longest = max(config.evaluate.top_k)
    if longest > items:
        raise ValueError(
            f"--top-k {longest} asks for a longer list than the catalogue has items ({items}). "
            "Take a shorter list, or more data."
        )
    free = items - config.data.history - 1
    lists = [name for name in mixture.parse(config.train.negatives) if "candidates" in NEGATIVES[name].needs]
    if lists:
        most = Touched(data.train).most
        if items - most < CANDIDATES:
            raise ValueError(
                f"--negatives {lists[0]}: the catalogue has {items} items and a user touched {most} of them, wanted "
                f"{CANDIDATES} candidates. Take --negatives random or more data."
            )
    if config.train.num_negatives > free and config.train.prefer and config.train.iterations:
        raise ValueError(
            f"--num-negatives {config.train.num_negatives}: the catalogue has {items} items, so besides a history of "
            f"{config.data.history} and the target only {max(free, 0)} are left. Take fewer negatives, a shorter "
            "--history or more data."
        )


class Lengths(NamedTuple):
    """Mean tokens of a prompt and of an answer, most tokens of an answer, titles that the tokenizer changes, and
    prompts that are too long as the data has them."""

    prompt: int
    answer: int
    longest: int
    changed_titles: int
    long: int = 0


def check_lengths(config: Config, data: Dataset, tuning: pa.Table, template: Any, may_be_long: bool = False) -> Lengths:
    """Measure prompts and answers in tokens and refuse what the model cannot see.

    Raises:
        ValueError: a prompt with its answer is longer than ``--max-length`` and not ``may_be_long``.
    """
    read = (data.train, tuning, *data.evaluated.values())
    if config.data.ask == "liking":
        read = (tuning, *map(one_by_one, data.evaluated.values()))
    tables = {id(table): table for table in read}.values()
    parts = [some for table in tables for some in slices(table, 8 * SLICE)]  # each counts a title once
    targets = (title for some in parts for title in some["target"].unique().to_pylist())
    written: dict[tuple[int, ...], str] = {}
    for title in data.catalogue.titles:
        if (other := written.setdefault(tuple(template.answer_ids(title)), title)) != title:
            raise ValueError(
                f"The titles {other!r} and {title!r} are the same tokens to this model, which could not choose between "
                "them. Rename one, or give them one item."
            )
    answers = {title: len(template.answer_ids(title)) for title in dict.fromkeys([*data.catalogue.titles, *targets])}
    longest_title = max(answers, key=lambda title: answers[title])
    longest = config.model.max_new_tokens or answers[longest_title]
    rows = total = long = tallest = 0
    worst, most = -np.inf, 0
    for some in parts:
        signals.check()
        prompts = template.lengths(some)
        room = rooms(config, some, template, longest, some["split"][0].as_py() != "train")
        over = prompts - room
        rows, total, long = rows + len(some), total + int(prompts.sum()), long + int((over > 0).sum())
        tallest = max(tallest, int(prompts.max()))
        if over.max() > worst:
            worst, most = over.max(), int(room[over.argmax()])
    if long and not may_be_long:
        how = config.data.long_prompts
        kept = f", with {config.data.min_history or 1} titles left" if how == "trim" else ""
        titled = "" if config.model.max_new_tokens else f", as the title {longest_title!r:.80} has them"
        other = "" if how == "drop" else ", or leave these rows out with --long-prompts drop"
        raise ValueError(
            f"{long} of {rows} prompts are longer than {most} tokens (the longest has {tallest}{kept}): "
            f"--max-length {config.model.max_length} less {config.model.max_length - most} for the answer{titled}. "
            f"Shorten --history, or raise --max-length up to the model's context{other}."
        )
    changed = len(template.lossy(data.catalogue.titles))
    mean = round(float(np.mean(list(answers.values()))))
    return Lengths(round(total / rows), mean, longest, changed, long)


def check_vocabulary(template: Any, base: str) -> None:
    """Refuse texts in tokens that the model does not embed; a tokenizer may have more, which no text has.

    Raises:
        ValueError: with the highest token.
    """
    from rayrec.models.folder import vocabulary

    if (highest := template.highest()) >= (known := vocabulary(base)):
        raise ValueError(
            f"model {base}: prompts and titles have token {highest}, and the model's vocabulary size is {known}. Take "
            "the tokenizer that the model was trained with."
        )
